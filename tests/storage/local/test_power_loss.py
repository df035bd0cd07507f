"""What was published survives a power cut, whole; what was not is absent or whole, at whatever step the power went."""

import asyncio
import os
import subprocess
from contextlib import ExitStack, contextmanager, suppress
from unittest.mock import patch

import pytest

from app.errors import Unavailable
from app.storage import Mark
from app.storage.local import aio, syscalls
from tests.contracts.storage import MiB, content_of, get, keys, new_key, staged
from tests.contracts.unfinished import append, complete
from tests.support.stores import cut_power, local, mounted, needs_root
from tests.support.tools import tool

pytestmark = [pytest.mark.slow, needs_root]


@pytest.fixture
def disk(tmp_path):
    """A disk with an ext4 file system; yields what mounts it."""
    image = tmp_path / "image"
    image.touch()
    os.truncate(image, 128 * MiB)
    subprocess.run([tool("mkfs.ext4"), "-q", str(image)], check=True)

    @contextmanager
    def mount():
        with mounted(tmp_path / "volume", "-o", "loop", source=str(image)) as root:
            yield root

    return mount


@contextmanager
def power_cut_before(call: int, root):
    """Cut the power before the n-th system call that writes; yields the number of calls that were made."""
    made = [0]

    def counted(real):
        def counting(*arguments, **named):
            made[0] += 1
            if made[0] == call:
                cut_power(root)
            return real(*arguments, **named)

        return counting

    with ExitStack() as stack:
        for owner, name in [
            (os, "open"),
            (os, "write"),
            (aio, "begin_write"),
            (os, "fsync"),
            (os, "ftruncate"),
            (syscalls, "syncfs"),
            (syscalls, "rename_new"),
        ]:
            stack.enter_context(patch.object(owner, name, counted(getattr(owner, name))))
        yield made


async def publish(root, contents: dict[str, bytes], *, before_call: int) -> tuple[set[str], bool]:
    """Publish a batch, with a power cut on the way or right behind it. Which were acknowledged; was it behind?"""
    storage = local(root / "store")
    await storage.prepare()
    files = [await staged(storage, content, key=key) for key, content in contents.items()]
    with power_cut_before(before_call, root) as made:
        refused = await storage.publish(files)
    behind = made[0] < before_call
    if behind:
        cut_power(root)
    await storage.close()
    return contents.keys() - refused.keys(), behind


@pytest.mark.parametrize("sizes", [[10], [2 * MiB + 5], [10, 2 * MiB], [0, 10, 300_000, 2 * MiB, 5]])
def test_an_acknowledged_file_survives_and_no_part_of_a_file_appears(disk, sizes):
    before_call, behind = 1, False
    expected: dict[str, bytes] = {}
    while not behind:
        contents = {new_key(): content_of(size, before_call) for size in sizes}
        with disk() as root:
            acknowledged, behind = asyncio.run(publish(root, contents, before_call=before_call))
        with disk() as root:
            found = asyncio.run(everything(root))
        expected |= {key: contents[key] for key in acknowledged}
        assert expected.items() <= found.items()
        assert all(content == contents.get(key, expected.get(key)) for key, content in found.items())
        expected = found
        before_call += 1
    assert acknowledged == contents.keys()
    assert before_call > 4


async def send(root, key: str, pieces: list[bytes], *, before_call: int) -> tuple[list[tuple[int, Mark]], bool]:
    """Send a file in several requests, with a power cut on the way or right behind. Which marks were given, by fence?

    It is taken over once; the first bytes of every request are given up again.
    """
    storage = local(root / "store")
    await storage.prepare()
    given = [(1, Mark(0))]
    with power_cut_before(before_call, root) as made, suppress(Unavailable):
        for piece in pieces:
            fence, mark = given[-1]
            partial = await storage.open_unfinished(key, fence, mark)
            await append(partial, b"given up" + piece)
            await partial.back_to(mark)
            await append(partial, piece)
            given.append((fence, await partial.checkpoint()))
            await partial.detach()
        given.append((2, await storage.assemble(key, 2, [(key, *given[-1])])))
    behind = made[0] < before_call
    if behind:
        cut_power(root)
    await storage.close()
    return given, behind


@pytest.mark.parametrize("sizes", [[10], [5, 2 * MiB + 5, 4096], [MiB, 300_000]])
def test_bytes_up_to_the_mark_survive_and_no_unfinished_file_is_seen(disk, sizes):
    before_call, behind = 1, False
    while not behind:
        key, pieces = new_key(), [content_of(size, before_call + seed) for seed, size in enumerate(sizes)]
        with disk() as root:
            given, behind = asyncio.run(send(root, key, pieces, before_call=before_call))
        with disk() as root:
            content = asyncio.run(publish_what_is_left(root, key, *given[-1]))
        assert content == b"".join(pieces)[: given[-1][1].offset]
        before_call += 1
    assert content == b"".join(pieces)
    assert given[-1][0] == 2
    assert before_call > 10


async def publish_what_is_left(root, key: str, fence: int, mark: Mark) -> bytes:
    """What a service that starts after the cut makes of the last mark."""
    storage = local(root / "store")
    await storage.prepare()
    assert await storage.missing([key]) == [key]
    assert await storage.strays() == []
    content = await complete(storage, key, fence, mark)
    await storage.close()
    return content


async def everything(root) -> dict[str, bytes]:
    """All that a service finds which starts after the cut. What was staged is swept."""
    storage = local(root / "store")
    await storage.prepare()
    await storage.sweep()
    assert os.listdir(root / "store" / "staging") == [storage._directories.owner]
    found = {key: await get(storage, key) for key in await keys(storage)}
    await storage.close()
    return found
