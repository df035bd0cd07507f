"""Unfinished files on a local disk: written from anywhere, held by one, kept through faults, left by whoever leaves."""

import asyncio
import ctypes
import errno
import fcntl
import hashlib
import os
import signal
import stat
import subprocess
import sys
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from app.errors import StorageFull, Unavailable
from app.storage import InUse, Mark, NotStored, digest_state
from app.storage.local import concatenate, syscalls
from app.storage.memory import MemoryStorage
from tests.contracts.storage import KiB, MiB, content_of, get, keys, new_key, put, staged
from tests.contracts.unfinished import UnfinishedContract, append, complete, found, kept
from tests.support.stores import Gate, descriptors, local, mounted, needs_root, tmpfs
from tests.support.tools import tool

CHECKOUT = Path(__file__).parents[3]
EIO = OSError(errno.EIO, "Input/output error")


@pytest.fixture
async def storage(tmp_path):
    storage = local(tmp_path)
    await storage.prepare()
    yield storage
    await storage.close()


def unfinished_files(root) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in (root / "partial").iterdir()}


def in_unfinished(fd, *more) -> bool:
    return "/partial/" in os.readlink(f"/proc/self/fd/{fd}")


def open_unfinished_files() -> list[str]:
    return [target for target in descriptors().values() if "/partial/" in target]


# --- the contract, where blocks, direct writes or OpenSSL are not to be had


@pytest.mark.slow  # the whole contract once more
class TestWithoutBlocks(UnfinishedContract):
    @pytest.fixture
    async def storage(self, storage, monkeypatch):
        monkeypatch.setattr(storage._staging._pool, "take", lambda: None)
        return storage

    small = pytest.fixture(lambda self: MemoryStorage(MiB))


@pytest.mark.slow  # the whole contract once more
class TestWithoutOpenSSL(UnfinishedContract):
    @pytest.fixture
    async def storage(self, storage, monkeypatch):
        monkeypatch.setattr(digest_state, "_openssl", lambda: None)
        return storage

    small = pytest.fixture(lambda self: MemoryStorage(MiB))


@pytest.mark.slow  # the whole contract once more
class TestWithoutDirectWrites(UnfinishedContract):
    @pytest.fixture
    async def storage(self, storage):
        storage._staging.direct = False
        return storage

    small = pytest.fixture(lambda self: MemoryStorage(MiB))


_STEPS = st.lists(
    st.tuples(st.just("write"), st.sampled_from([1, 63, 5000, 4096, 300 * KiB, MiB, MiB + 1]) | st.integers(0, 2 * MiB))
    | st.tuples(st.sampled_from(["checkpoint", "back", "leave", "take over"]), st.just(0)),
    max_size=12,
)


@pytest.mark.parametrize("direct", [True, False])
@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(steps=_STEPS)
def test_an_unfinished_file_keeps_its_committed_bytes_through_any_calls(tmp_path, direct, steps):
    asyncio.run(play(tmp_path, direct, steps))


async def play(root, direct, steps) -> None:
    """Play the steps against a plain bytes object."""
    storage = local(root)
    await storage.prepare()
    storage._staging.direct = storage._staging.direct and direct
    key, fence, mark, content = new_key(), 1, Mark(0), b""
    partial = await storage.open_unfinished(key, fence, mark)
    for number, (step, size) in enumerate(steps):
        if step == "write":
            await append(partial, content_of(size, number), 300_000)
            content += content_of(size, number)
        elif step == "checkpoint":
            mark = await partial.checkpoint()
            assert mark.offset == len(content)
        elif step == "back":
            await partial.back_to(mark)
            content = content[: mark.offset]
        else:
            await partial.detach()
            content = content[: mark.offset]
            if step == "take over":
                mark = await storage.assemble(key, fence + 1, [(key, fence, mark)])
                await storage.remove_unfinished([(key, fence)])
                fence += 1
            partial = await storage.open_unfinished(key, fence, mark)
        assert partial.size == len(content)
    await partial.finish()
    assert partial.sha256 == hashlib.sha256(content).hexdigest()
    assert await storage.publish([partial]) == {}
    assert await get(storage, key) == content
    assert unfinished_files(root) == {}
    await storage.remove([key])
    await storage.close()


class Writes:
    """What is written to partial files, and how much of it past the page cache: that only as disks demand it."""

    def __init__(self, monkeypatch):
        self.direct = self.cached = 0
        self._real = os.write
        monkeypatch.setattr(os, "write", self.write)

    def write(self, fd, block):
        if not in_unfinished(fd):
            return self._real(fd, block)
        if not fcntl.fcntl(fd, fcntl.F_GETFL) & os.O_DIRECT:
            self.cached += len(block)
            return self._real(fd, block)
        address = ctypes.addressof(ctypes.c_char.from_buffer(block))
        position = os.lseek(fd, 0, os.SEEK_CUR)
        assert (address % 4096, position % 4096, len(block) % 4096) == (0, 0, 0)
        half = len(block) // 8192 * 4096 or len(block)
        self.direct += half
        return self._real(fd, block[:half])  # the kernel may take less


@pytest.mark.parametrize("begin", [0, 5, 4096, 70_000])
async def test_large_requests_go_past_the_page_cache_wherever_they_begin(storage, monkeypatch, begin):
    if not storage._staging.direct:
        pytest.skip("no direct writes on this file system")
    content, writes = content_of(begin + 3 * MiB + 700), Writes(monkeypatch)
    key, fence, mark = await kept(storage, content[:begin])
    assert writes.direct == 0  # what is small is not worth a block
    partial = await storage.open_unfinished(key, fence, mark)
    for _ in range(2):
        await append(partial, content_of(MiB, 2))
        await partial.back_to(mark)
        await partial.write(content[begin : begin + 9000])  # held, so not as blocks lie in memory
        await partial.checkpoint()
        await partial.back_to(mark)
    writes.cached = 0
    await append(partial, content[begin:])
    mark = await partial.checkpoint()
    await partial.detach()
    assert writes.cached < 2 * 4096
    made = await storage.assemble(key, fence + 1, [(key, fence, Mark(mark.offset)), (key, fence, mark)])
    assert writes.cached < 5 * 4096
    monkeypatch.undo()
    assert await complete(storage, key, fence + 1, made) == content * 2


# --- where it lies


async def test_an_unfinished_file_is_writable_until_it_is_published(tmp_path, storage):
    key, fence, mark = await kept(storage, b"hello")
    assert unfinished_files(tmp_path) == {f"{key}.{fence}": b"hello"}
    assert stat.S_IMODE((tmp_path / "partial" / f"{key}.{fence}").stat().st_mode) == 0o600
    await complete(storage, key, fence, mark)
    assert stat.S_IMODE((tmp_path / "files" / key[-2:] / key).stat().st_mode) == 0o440


async def test_an_unfinished_file_stays_when_its_process_ends(tmp_path):
    first, second = local(tmp_path), local(tmp_path)
    await first.prepare()
    key, fence, mark = await kept(first, content_of(2 * MiB))
    await first.close()
    await second.prepare()
    await second.sweep()
    assert await complete(second, key, fence, mark, b"on") == content_of(2 * MiB) + b"on"
    await second.close()


async def test_foreign_files_are_not_listed(tmp_path, storage):
    key, fence, _ = await kept(storage, b"hello")
    for name in [
        "foreign",
        "a" * 36 + ".1",
        key,
        f"{key}.",
        f"{key}.01",
        f"{key}.-1",
        f"{key.upper()}.1",
        f".{key}.1",
        f"{key}.1\n",
    ]:
        (tmp_path / "partial" / name).write_bytes(b"foreign")
    (tmp_path / "partial" / f"{key}.2").mkdir()
    (tmp_path / "partial" / f"{key}.3").symlink_to(f"{key}.{fence}")
    assert await found(storage) == [(key, fence, 5, True)]
    os.mkfifo(tmp_path / "partial" / f"{key}.4")
    for number in (2, 3, 4):
        for mark in (Mark(0), Mark(1)):
            with pytest.raises(NotStored):
                await storage.open_unfinished(key, number, mark)
        with pytest.raises(NotStored):
            await storage.assemble(key, 5, [(key, number, Mark(1))])
    assert (tmp_path / "partial" / f"{key}.{fence}").read_bytes() == b"hello"


async def test_many_unfinished_files_are_listed_in_slices_and_may_go_meanwhile(tmp_path, storage):
    for number in range(1500):
        (tmp_path / "partial" / f"{new_key()}.{number}").touch()
    met = []
    async for slice_ in storage.walk_unfinished(0):
        met += slice_
        for path in (tmp_path / "partial").iterdir():
            path.unlink()
    assert len(met) == 1000
    assert await found(storage) == []


async def test_a_directory_that_is_gone_says_nothing_about_files(tmp_path, storage):
    """Or every unfinished upload would be given up as lost."""
    key, fence, mark = await kept(storage, b"hello")
    partial = await storage.open_unfinished(key, fence, mark)
    await partial.finish()
    (tmp_path / "partial").rename(tmp_path / "elsewhere")
    moved = await storage.open_unfinished(key, fence + 1, Mark(0))  # the directory is held open
    await moved.detach()
    for name in os.listdir(tmp_path / "elsewhere"):
        os.unlink(tmp_path / "elsewhere" / name)
    os.rmdir(tmp_path / "elsewhere")
    assert list(await storage.publish([partial])) == [key]
    with pytest.raises(Unavailable):
        storage.stage(new_key())  # such a store is not to be trusted
    with pytest.raises(Unavailable):
        await found(storage)
    fault, storage._trust.fault = storage._trust.fault, None
    assert fault.errno == errno.ENOENT
    for ask in (storage.open_unfinished(key, fence, mark), storage.assemble(key, 9, [(key, fence, mark)])):
        with pytest.raises(Unavailable):
            await ask
        storage._trust.fault = None


# --- the lock


_HOLDER = """
import asyncio, sys
from pathlib import Path
from app.storage import Mark
from app.storage.local import LocalStorage

async def main():
    storage = LocalStorage(Path(sys.argv[1]), owner=sys.argv[2], min_free=0)
    await storage.prepare()
    partial = await storage.open_unfinished(sys.argv[3], 1, Mark(0))
    await partial.write(b"hello")
    print((await partial.checkpoint()).offset, flush=True)
    await asyncio.sleep(600)

asyncio.run(main())
"""


@contextmanager
def holder_of(root, key: str):
    """A process that has the file open; yields it, once the file has five bytes."""
    arguments = [sys.executable, "-c", _HOLDER, str(root), new_key(), key]
    with subprocess.Popen(arguments, cwd=CHECKOUT, stdout=subprocess.PIPE, text=True) as holder:
        try:
            assert any(line == "5\n" for line in holder.stdout)
            yield holder
        finally:
            holder.kill()


async def test_a_stopped_process_holds_its_unfinished_file_until_it_is_dead(storage, tmp_path):
    key, mark = new_key(), Mark(5)
    with holder_of(tmp_path, key) as holder:
        for send in (signal.SIGSTOP, signal.SIGCONT):
            holder.send_signal(send)
            with pytest.raises(InUse):
                await storage.open_unfinished(key, 1, mark)
        copied = await storage.assemble(key, 2, [(key, 1, mark)])
    assert await complete(storage, key, 1, mark, b" world") == b"hello world"
    await storage.remove([key])
    assert await complete(storage, key, 2, copied) == b"hello"


@pytest.mark.parametrize("offset", [0, 5])
async def test_a_file_that_is_removed_before_it_is_locked_is_not_the_file(storage, tmp_path, monkeypatch, offset):
    key, fence, mark = await kept(storage, b"hello"[:offset])
    real = fcntl.flock

    def removed_first(fd, how):
        monkeypatch.undo()
        os.unlink(tmp_path / "partial" / f"{key}.{fence}")
        real(fd, how)

    monkeypatch.setattr(fcntl, "flock", removed_first)
    if offset:
        with pytest.raises(NotStored):
            await storage.open_unfinished(key, fence, mark)
        assert unfinished_files(tmp_path) == {}
    else:
        assert await complete(storage, key, fence, mark, b"anew") == b"anew"
    assert open_unfinished_files() == []


# --- durability


@pytest.mark.parametrize("size", [5, 2 * MiB + 5])
@pytest.mark.parametrize("durability", ["full", "fast"])
async def test_a_mark_is_given_once_data_and_name_are_flushed(tmp_path, monkeypatch, size, durability):
    storage = local(tmp_path, durability=durability)
    await storage.prepare()
    flushed, real = [], os.fsync
    monkeypatch.setattr(os, "fsync", lambda fd: (flushed.append(os.readlink(f"/proc/self/fd/{fd}")), real(fd)))
    key = new_key()
    partial = await storage.open_unfinished(key, 1, Mark(0))
    data, name = str(tmp_path / "partial" / f"{key}.1"), str(tmp_path / "partial")
    for expected in ([data, name], [data]):
        await append(partial, content_of(size))
        assert flushed == []
        await partial.checkpoint()
        assert flushed == (expected if durability == "full" else [])
        flushed.clear()
    await partial.checkpoint()
    assert flushed == []
    await storage.assemble(key, 2, [(key, 1, Mark(size))])
    assert flushed == ([data[:-1] + "2", name] if durability == "full" else [])
    await storage.close()


@pytest.mark.parametrize("durability", ["full", "fast"])
async def test_a_publication_that_a_crash_cut_short_is_completed(tmp_path, monkeypatch, durability):
    """It ended between the rename and what follows."""
    storage = local(tmp_path, durability=durability)
    await storage.prepare()
    key, fence, _ = await kept(storage, b"hello")
    published = tmp_path / "files" / key[-2:] / key
    (tmp_path / "partial" / f"{key}.{fence}").rename(published)
    flushed, real = [], os.fsync
    monkeypatch.setattr(os, "fsync", lambda fd: (flushed.append(os.readlink(f"/proc/self/fd/{fd}")), real(fd)))
    await storage.make_durable(key)
    assert flushed == ([str(published), str(published.parent)] if durability == "full" else [])
    assert stat.S_IMODE(published.stat().st_mode) == 0o440
    await storage.close()


# --- faults


async def test_a_file_that_cannot_be_made_durable_ends_the_trust(storage, monkeypatch):
    key = await put(storage, b"hello")
    failing = Failing(monkeypatch, os, "fsync")
    with pytest.raises(Unavailable):
        await storage.make_durable(key)
    failing.on = False
    with pytest.raises(Unavailable):
        storage.stage(new_key())
    await storage.test()
    await storage.make_durable(key)


class Failing:
    """A function that raises `error` while this is switched on."""

    def __init__(self, monkeypatch, owner, name, error=EIO, when=lambda *arguments: True):
        self.on, self.met, real = True, 0, getattr(owner, name)

        def call(*arguments, **named):
            if self.on and when(*arguments):
                self.met += 1
                raise OSError(error.errno, error.strerror)
            return real(*arguments, **named)

        monkeypatch.setattr(owner, name, call)


async def append_and_keep(partial, content: bytes) -> None:
    await append(partial, content, MiB)
    await partial.checkpoint()


@pytest.mark.parametrize("size", [5, 3 * MiB])
@pytest.mark.parametrize("call", ["write", "fsync"])
async def test_bytes_without_a_mark_do_not_count_after_an_error(tmp_path, storage, monkeypatch, call, size):
    content = content_of(MiB + 77)
    key, fence, mark = await kept(storage, content)
    partial = await storage.open_unfinished(key, fence, mark)
    failing = Failing(monkeypatch, os, call, when=in_unfinished)
    with pytest.raises(Unavailable):
        await append_and_keep(partial, content_of(size, seed=2))
    assert failing.met == 1
    failing.on = False
    for ask in (partial.write(b"more"), partial.checkpoint(), partial.back_to(mark), partial.finish()):
        with pytest.raises(Unavailable):  # a flush that is repeated lies
            await ask
    for ask in (storage.open_unfinished(key, fence, mark), storage.assemble(key, 2, [(key, fence, mark)])):
        with pytest.raises(Unavailable):
            await ask
    await storage.test()
    with pytest.raises(InUse):
        await storage.open_unfinished(key, fence, mark)
    await partial.detach()
    assert await complete(storage, key, fence, mark, b"on") == content + b"on"


@pytest.mark.parametrize("call", ["write", "fsync"])
@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EDQUOT])
async def test_want_of_space_concerns_one_file_alone(storage, monkeypatch, call, code):
    key, fence, mark = await kept(storage, b"hello")
    partial = await storage.open_unfinished(key, fence, mark)
    failing = Failing(monkeypatch, os, call, OSError(code, "full"), when=in_unfinished)
    await partial.write(b"more")
    with pytest.raises(StorageFull):
        await partial.checkpoint()
    with pytest.raises(StorageFull):
        await storage.assemble(key, 2, [(key, fence, mark)])
    failing.on = False
    await partial.detach()
    assert await found(storage) == [(key, fence, 5, True)]  # what counts for nobody keeps no space
    assert await complete(storage, key, fence, mark) == b"hello"


@pytest.mark.parametrize("others", [0, 3])
@pytest.mark.parametrize("step", ["data", "name", "names"])
async def test_a_publication_that_fails_gives_the_file_back(tmp_path, storage, monkeypatch, step, others):
    content = content_of(MiB)
    key, fence, mark = await kept(storage, content)
    partial = await storage.open_unfinished(key, fence, mark)
    await partial.write(b"more")
    await partial.finish()
    batch = [partial] + [await staged(storage, b"other") for _ in range(others)]
    with monkeypatch.context() as broken:
        if step == "name":
            Failing(broken, syscalls, "rename_new", when=lambda old, new: old == partial.name)
        elif others:
            calls = []
            Failing(broken, syscalls, "syncfs", when=lambda fd: calls.append(fd) or len(calls) == 1 + (step == "names"))
        else:
            Failing(broken, os, "fsync", when=lambda fd: in_unfinished(fd) is (step == "data"))
        refused = await storage.publish(batch)
    assert set(refused) == ({key} if step == "name" else {file.key for file in batch})
    assert unfinished_files(tmp_path) == {partial.name: content + b"more"}
    assert stat.S_IMODE((tmp_path / "partial" / partial.name).stat().st_mode) == 0o600
    assert len(await keys(storage)) == len(batch) - len(refused)
    assert open_unfinished_files() == []
    with pytest.raises(Unavailable):
        storage.stage(new_key())
    await storage.test()
    assert await complete(storage, key, fence, mark, b"on") == content + b"on"


@pytest.mark.parametrize("known", [True, False])
async def test_a_part_that_becomes_shorter_while_it_is_read_leaves_nothing(storage, monkeypatch, known):
    key, fence, mark = await kept(storage, content_of(MiB))
    real = os.preadv
    with monkeypatch.context() as patched:
        patched.setattr(concatenate, "_share", lambda file, source: False)
        patched.setattr(os, "preadv", lambda fd, buffers, offset: real(fd, buffers, offset) // 2)
        with pytest.raises(NotStored):
            await storage.assemble(key, 2, [(key, fence, mark if known else Mark(mark.offset))])
    assert await found(storage) == [(key, fence, MiB, True)]
    assert open_unfinished_files() == []


async def test_a_directory_of_published_files_that_is_gone_ends_the_trust(tmp_path, storage):
    key, fence, mark = await kept(storage, b"hello")
    partial = await storage.open_unfinished(key, fence, mark)
    await partial.finish()
    (tmp_path / "files" / key[-2:]).rmdir()
    assert list(await storage.publish([partial])) == [key]
    assert unfinished_files(tmp_path) == {partial.name: b"hello"}
    with pytest.raises(Unavailable):
        storage.stage(new_key())


async def test_a_preemption_does_not_end_the_trust(storage):
    key, fence, mark = await kept(storage, b"hello")
    partial = await storage.open_unfinished(key, fence, mark)
    await partial.finish()
    await storage.remove_unfinished([(key, fence)])
    other = await staged(storage, b"other")
    assert list(await storage.publish([partial, other])) == [key]
    assert await get(storage, await put(storage, b"trusted")) == b"trusted"
    assert await get(storage, other.key) == b"other"


# --- leaving


async def still_waits(task) -> bool:
    for _ in range(20):
        await asyncio.sleep(0)
    return not task.done()


@pytest.mark.parametrize("step", ["write", "fsync"])
async def test_no_file_is_released_under_a_thread(tmp_path, storage, monkeypatch, step):
    key = new_key()
    partial = await storage.open_unfinished(key, 1, Mark(0))
    with monkeypatch.context() as patched:
        gate = Gate(patched, os, step, when=in_unfinished)
        await partial.write(content_of(MiB + 5))
        checking = asyncio.create_task(partial.checkpoint())
        await gate.reached()
        checking.cancel()
        leaving = asyncio.create_task(partial.detach())
        assert await still_waits(checking)
        assert await still_waits(leaving)
        assert open_unfinished_files() == [str(tmp_path / "partial" / partial.name)]
        gate.open()
        await asyncio.wait([checking, leaving])
    assert checking.cancelled()
    assert open_unfinished_files() == []
    assert unfinished_files(tmp_path) == {partial.name: content_of(MiB + 5)}
    assert (storage.space.held, storage._staging.live) == (0, set())


@pytest.mark.parametrize("step", ["open", "flock"])
async def test_a_cancelled_opening_holds_nothing(tmp_path, storage, monkeypatch, step):
    key, fence, mark = await kept(storage, b"hello")
    with monkeypatch.context() as patched:
        if step == "open":
            gate = Gate(patched, os, "open", when=lambda path, *more: path == f"{key}.{fence}")
        else:
            gate = Gate(patched, fcntl, "flock")
        opening = asyncio.create_task(storage.open_unfinished(key, fence, mark))
        await gate.reached()
        opening.cancel()
        assert await still_waits(opening)
        gate.open()
        await asyncio.wait([opening])
    assert opening.cancelled()
    assert open_unfinished_files() == []
    assert storage._staging.live == set()
    assert await complete(storage, key, fence, mark) == b"hello"


async def test_a_closing_store_waits_for_an_opening_and_releases_its_file(tmp_path, monkeypatch):
    storage = local(tmp_path)
    await storage.prepare()
    key, fence, mark = await kept(storage, b"hello")
    gate = Gate(monkeypatch, fcntl, "flock")
    opening = asyncio.create_task(storage.open_unfinished(key, fence, mark))
    await gate.reached()
    closing = asyncio.create_task(storage.close())
    assert await still_waits(closing)
    gate.open()
    await closing
    partial = await opening
    with pytest.raises(Unavailable):
        await partial.write(b"more")
    assert not any(target.startswith(str(tmp_path)) for target in descriptors().values())


@pytest.mark.parametrize("known", [True, False])
@pytest.mark.parametrize("who", ["caller", "store"])
async def test_an_assembly_stops_when_its_caller_or_the_store_does(tmp_path, monkeypatch, who, known):
    storage = local(tmp_path)
    await storage.prepare()
    content = content_of(5 * MiB)
    key, fence, mark = await kept(storage, content)
    monkeypatch.setattr(concatenate, "_share", lambda file, source: False)
    gate = Gate(monkeypatch, os, "preadv")
    parts = [(key, fence, mark if known else Mark(mark.offset))]
    assembling = asyncio.create_task(storage.assemble(key, fence + 1, parts))
    await gate.reached()
    if who == "caller":
        assembling.cancel()
    closing = asyncio.create_task(storage.close()) if who == "store" else None
    assert await still_waits(assembling)
    gate.open()
    with pytest.raises(asyncio.CancelledError if who == "caller" else Unavailable):
        await assembling
    assert unfinished_files(tmp_path) == {f"{key}.{fence}": content}
    await (closing or storage.close())
    assert not any(target.startswith(str(tmp_path)) for target in descriptors().values())


async def test_a_prefix_that_is_read_again_stops_when_the_store_does(tmp_path, monkeypatch):
    storage = local(tmp_path)
    await storage.prepare()
    key, fence, mark = await kept(storage, content_of(5 * MiB))
    gate = Gate(monkeypatch, os, "preadv")
    opening = asyncio.create_task(storage.open_unfinished(key, fence, Mark(mark.offset)))
    await gate.reached()
    closing = asyncio.create_task(storage.close())
    assert await still_waits(closing)
    gate.open()
    with pytest.raises(Unavailable):
        await opening
    await closing
    assert unfinished_files(tmp_path) == {f"{key}.{fence}": content_of(5 * MiB)}


async def test_no_mix_of_endings_leaks_anything(tmp_path, storage):
    before = len(descriptors())
    contents = {}

    async def one(number: int) -> None:
        size = [0, 100, 200_000, 300_000, MiB, 3 * MiB][number % 6]
        content, key, mark = content_of(size, number), new_key(), Mark(0)
        partial = await storage.open_unfinished(key, 1, mark)
        try:
            await append(partial, content[: size // 2], 250_000)
            mark = await partial.checkpoint()
            await append(partial, content[size // 2 :], 250_000)
            if number % 4 == 0:
                await partial.back_to(mark)
            if number % 4 == 1:
                await partial.finish()
                assert await storage.publish([partial]) == {}
        finally:
            await partial.detach()
        contents[key] = content[: mark.offset], mark

    tasks = [asyncio.create_task(one(number)) for number in range(60)]
    for number, task in enumerate(tasks):
        if number % 5 == 0:
            for _ in range(number % 7):
                await asyncio.sleep(0)
            task.cancel()
    ended = await asyncio.gather(*tasks, return_exceptions=True)
    assert {type(end) for end in ended} <= {type(None), asyncio.CancelledError}
    for key, (content, mark) in contents.items():
        with suppress(NotStored):
            assert await complete(storage, key, 1, mark) == content
    assert len(await keys(storage)) > 30
    assert (storage.space.held, storage.space.reserved, storage.space._writing) == (0, 0, 0)
    assert storage._staging.live == set()
    assert len(descriptors()) == before


# --- other file systems


@pytest.fixture
def xfs(tmp_path):
    image = tmp_path / "image"
    image.touch()
    os.truncate(image, 320 * MiB)
    subprocess.run([tool("mkfs.xfs"), "-q", str(image)], check=True)
    with mounted(tmp_path / "volume", "-o", "loop", source=str(image)) as root:
        yield root


@needs_root
async def test_blocks_are_shared_where_the_file_system_can(xfs, monkeypatch):
    storage = local(xfs / "store")
    await storage.prepare()
    content = content_of(3 * MiB + 5)
    key, fence, _ = await kept(storage, content + b"behind")
    mark = (await kept(storage, content))[2]
    Failing(monkeypatch, os, "preadv")  # nothing is read
    with pytest.raises(NotStored):
        await storage.assemble(new_key(), 1, [(*(await kept(storage, b"short"))[:2], mark)])
    made = await storage.assemble(key, fence + 1, [(key, fence, mark)])
    assert made == mark
    assert await complete(storage, key, fence + 1, made, b"on") == content + b"on"
    await storage.close()


@needs_root
async def test_a_file_system_in_memory_serves_too(tmp_path):
    with tmpfs(tmp_path / "volume", "64m") as root:
        storage = local(root / "store")
        await storage.prepare()
        key, fence, mark = await kept(storage, content_of(3 * MiB + 5))
        made = await storage.assemble(key, fence + 1, [(key, fence, mark)])
        assert await complete(storage, key, fence + 1, made, b"on") == content_of(3 * MiB + 5) + b"on"
        await storage.close()
