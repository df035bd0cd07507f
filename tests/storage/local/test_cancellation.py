"""F26. Cancelled at any moment, an upload leaves nothing: no bytes, descriptor, memory, and never a byte elsewhere."""

import asyncio
import os
import threading

import pytest

from app.errors import Unavailable
from app.storage.local import syscalls
from app.storage.local.block_writer import DigestingFile
from app.storage.local.layout import Directories
from app.storage.local.staged import POOLED_BLOCKS
from tests.contracts.storage import MiB, content_of, fill, get, keys, new_key, put, staged
from tests.support.stores import Gate, descriptors, files_in, local


@pytest.fixture
async def storage(tmp_path):
    storage = local(tmp_path)
    await storage.prepare()
    yield storage
    await storage.close()


def assert_nothing_left(storage, root) -> None:
    assert files_in(root) == []
    assert (storage.space.held, storage.space.reserved, storage.space._writing) == (0, 0, 0)
    assert storage._staging.live == set()
    own = str(root / "staging" / storage._directories.owner)
    assert [target for target in descriptors().values() if target.startswith(f"{own}/")] == []
    pool = storage._staging._pool
    blocks = [pool.take() for _ in range(POOLED_BLOCKS)]
    assert None not in blocks
    for block in blocks:
        pool.give_back(block)


def in_staging(fd, *more) -> bool:
    return "/staging/" in os.readlink(f"/proc/self/fd/{fd}")


async def still_waits(task: asyncio.Task) -> bool:
    """Whether the task goes on although the loop has done all it could."""
    for _ in range(20):
        await asyncio.sleep(0)
    return not task.done()


@pytest.mark.parametrize("pooled", [True, False])
async def test_no_file_is_closed_under_a_thread_that_writes_it(tmp_path, storage, monkeypatch, pooled):
    """The number of a closed file is given out again: the thread would write into somebody else's upload."""
    with monkeypatch.context() as patched:
        if not pooled:
            patched.setattr(storage._staging._pool, "take", lambda: None)
        gate = Gate(patched, os, "write", when=in_staging)
        victim = storage.stage(new_key())
        writing = asyncio.create_task(fill(victim, b"victim" * MiB, MiB))
        await gate.reached()
        [number] = [fd for fd, target in descriptors().items() if target.endswith(victim.key)]
        writing.cancel()
        aborting = asyncio.create_task(abort_after(writing, victim))
        assert await still_waits(aborting)
        assert descriptors()[number].endswith(victim.key)
        other = os.open(tmp_path / "other", os.O_CREAT | os.O_WRONLY)
        assert other != int(number)
        gate.open()
        await aborting
    os.close(other)
    assert (tmp_path / "other").read_bytes() == b""
    assert writing.cancelled()
    (tmp_path / "other").unlink()
    assert_nothing_left(storage, tmp_path)


async def abort_after(task, file) -> None:
    """What a request does whose task was cancelled."""
    await asyncio.wait([task])
    await file.abort()


async def test_an_abort_waits_for_the_thread_also_if_it_is_cancelled_itself(tmp_path, storage, monkeypatch):
    with monkeypatch.context() as patched:
        gate = Gate(patched, os, "write", when=in_staging)
        file = storage.stage(new_key())
        await file.write(content_of(MiB + 1))
        await gate.reached()
        aborting = asyncio.create_task(file.abort())
        for _ in range(3):
            assert await still_waits(aborting)
            aborting.cancel()
        assert await still_waits(aborting)
        gate.open()
        await asyncio.wait([aborting])
    assert aborting.cancelled()
    assert_nothing_left(storage, tmp_path)


@pytest.mark.parametrize(
    ("step", "owner", "name"),
    [("create", os, "open"), ("write", os, "write"), ("leave", os, "unlink")],
)
async def test_an_upload_that_is_cancelled_at_any_step_leaves_nothing(
    tmp_path, storage, monkeypatch, step, owner, name
):
    """While its file is made, while a block is written, and while it is given up."""
    key = new_key()
    which = {"create": lambda path, *more: path == key, "leave": lambda path: path == key, "write": in_staging}[step]
    with monkeypatch.context() as patched:
        gate = Gate(patched, owner, name, when=lambda *arguments, **named: which(*arguments))
        uploading = asyncio.create_task(upload(storage.stage(key), content_of(5 * MiB)))
        await gate.reached()
        uploading.cancel()
        assert await still_waits(uploading)
        gate.open()
        await asyncio.wait([uploading])
    assert uploading.cancelled()
    assert_nothing_left(storage, tmp_path)


@pytest.mark.slow
async def test_an_upload_that_is_cancelled_at_any_moment_leaves_nothing(tmp_path, storage):
    ended = set()
    for moments in range(100):
        reservation = storage.reserve(3 * MiB)
        file = storage.stage(new_key(), reservation)
        uploading = asyncio.create_task(upload(file, content_of(3 * MiB - 7)))
        for _ in range(moments):
            await asyncio.to_thread(int)  # as long as it takes to go into a thread and to come back
        uploading.cancel()
        await asyncio.wait([uploading])
        await file.abort()  # cancelled before its first step, a task does not run its `finally`
        reservation.release()
        ended.add(uploading.cancelled())
        assert_nothing_left(storage, tmp_path)
    assert True in ended


async def upload(file, content: bytes) -> None:
    try:
        await fill(file, content, 500_000)
    finally:
        await file.abort()


@pytest.mark.parametrize(
    ("owner", "name"), [(os, "write"), (syscalls, "syncfs"), (syscalls, "rename_new"), (syscalls, "written_back")]
)
async def test_a_commit_group_that_has_begun_is_published_to_completion(tmp_path, storage, monkeypatch, owner, name):
    files = [await staged(storage, content_of(size, size)) for size in [10, 20, 30]]
    with monkeypatch.context() as patched:
        gate = Gate(patched, owner, name)
        publishing = asyncio.create_task(storage.publish(files))
        await gate.reached()
        publishing.cancel()
        aborting = [asyncio.create_task(file.abort()) for file in files]
        assert await still_waits(publishing)
        assert await still_waits(aborting[0])
        assert storage.space.held == 60
        gate.open()
        await asyncio.wait([publishing, *aborting])
    assert publishing.cancelled()
    assert await keys(storage) == sorted(file.key for file in files)
    for file in files:
        assert await get(storage, file.key) == content_of(file.size, file.size)
    await storage.remove([file.key for file in files])
    assert_nothing_left(storage, tmp_path)


async def test_a_slow_flush_keeps_nobody_from_anything_else(storage, monkeypatch):
    stored = await put(storage, b"stored")
    slow = await staged(storage, b"slow")
    gate = Gate(monkeypatch, os, "fsync", when=in_staging)
    publishing = asyncio.create_task(storage.publish([slow]))
    await gate.reached()
    assert await get(storage, stored) == b"stored"
    large = await staged(storage, content_of(5 * MiB))
    await large.abort()
    assert await keys(storage) == [stored]
    await storage.remove([stored])
    gate.open()
    assert await publishing == {}


async def test_closing_waits_for_the_threads_and_then_leaves_nothing(tmp_path, monkeypatch):
    storage = local(tmp_path)
    await storage.prepare()
    before = descriptors().keys()
    under_way, published = storage.stage(new_key()), await staged(storage, content_of(2 * MiB))
    writing_gate = Gate(monkeypatch, os, "write", when=lambda fd, view: in_staging(fd))
    flushing_gate = Gate(monkeypatch, os, "fsync")
    writing = asyncio.create_task(fill(under_way, content_of(5 * MiB), MiB))
    publishing = asyncio.create_task(storage.publish([published]))
    await writing_gate.reached()
    await flushing_gate.reached()
    closing = asyncio.create_task(storage.close())
    assert await still_waits(closing)
    assert descriptors().keys() > before
    writing_gate.open()
    flushing_gate.open()
    await closing
    assert await publishing == {}
    [outcome] = await asyncio.gather(writing, return_exceptions=True)
    assert outcome is None or isinstance(outcome, Unavailable)  # its last block was written before the end, or not
    assert files_in(tmp_path) == [f"files/{published.key[-2:]}/{published.key}"]
    assert os.listdir(tmp_path / "staging") == []
    assert not any(target.startswith(str(tmp_path)) for target in descriptors().values())
    with pytest.raises(Unavailable):
        storage.stage(new_key())


async def test_closing_lets_open_readers_finish(tmp_path, monkeypatch):
    storage = local(tmp_path)
    await storage.prepare()
    key, order = await put(storage, b"hello"), []
    gate = Gate(monkeypatch, os, "open", when=lambda path, *more: path == key)
    close = Directories.close
    monkeypatch.setattr(Directories, "close", lambda self: (order.append("closed"), close(self)))
    read = os.preadv
    monkeypatch.setattr(os, "preadv", lambda *arguments: order.append("read") or read(*arguments))
    reading = asyncio.create_task(storage.digest(key))
    await gate.reached()
    closing = asyncio.create_task(storage.close())
    assert await still_waits(closing)
    await asyncio.to_thread(int)
    gate.open()
    await closing
    assert (await reading)[0] == 5
    assert order == ["read", "closed"]


def test_the_end_of_the_event_loop_stops_no_commit_group_that_has_begun(tmp_path, monkeypatch):
    files = {new_key(): content_of(size, size) for size in (10, 20, 300_000, 30)}
    gate = Gate(monkeypatch, os, "open", when=lambda path, *more: path == next(iter(files)))

    async def main():
        storage = local(tmp_path)
        await storage.prepare()
        batch = [await staged(storage, content, key=key) for key, content in files.items()]
        batches.append(asyncio.create_task(storage.publish(batch)))
        await gate.reached()
        return storage

    batches = []
    storage = asyncio.run(main())
    assert batches[0].cancelled()
    gate.open()
    storage._publishing.shutdown()
    for key, content in files.items():
        assert (tmp_path / "files" / key[-2:] / key).read_bytes() == content
    asyncio.run(storage.close())


def test_the_end_of_the_event_loop_closes_no_file_under_a_thread(tmp_path, monkeypatch):
    """What is cancelled then is everything, also what waits for the threads."""
    key, events = new_key(), []
    gate = Gate(monkeypatch, os, "write", when=lambda fd, view: os.readlink(f"/proc/self/fd/{fd}").endswith(key))
    real = DigestingFile.close

    def close(self):
        threading.Timer(0.05, lambda: (events.append("the thread goes on"), gate.open())).start()
        real(self)
        events.append("closed")

    async def main():
        storage = local(tmp_path)
        await storage.prepare()
        monkeypatch.setattr(DigestingFile, "close", close)
        uploads.append(asyncio.create_task(upload(storage.stage(key), content_of(5 * MiB))))
        await gate.reached()
        return storage

    uploads = []
    storage = asyncio.run(main())
    assert uploads[0].cancelled()
    assert events == ["the thread goes on", "closed"]
    assert files_in(tmp_path) == []
    asyncio.run(storage.close())


async def test_no_mix_of_endings_leaks_anything(tmp_path, storage):
    before = len(descriptors())
    published = []

    async def one(number: int) -> None:
        size = [0, 100, 200_000, 300_000, MiB, 3 * MiB][number % 6]
        reservation = storage.reserve(size) if number % 3 else None
        file = storage.stage(new_key(), reservation)
        try:
            await fill(file, content_of(size, number), 250_000)
            if number % 4:
                assert await storage.publish([file]) == {}
                published.append(file.key)
        finally:
            await file.abort()
            if reservation:
                reservation.release()

    tasks = [asyncio.create_task(one(number)) for number in range(120)]
    for number, task in enumerate(tasks):
        if number % 5 == 0:
            for _ in range(number % 7):
                await asyncio.sleep(0)
            task.cancel()
    ended = await asyncio.gather(*tasks, return_exceptions=True)
    assert {type(end) for end in ended} <= {type(None), asyncio.CancelledError}
    assert len(published) > 50
    await storage.remove(await keys(storage))
    assert_nothing_left(storage, tmp_path)
    assert len(descriptors()) == before
