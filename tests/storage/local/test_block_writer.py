"""Large files: in aligned blocks past the page cache where that is possible, and right in any case."""

import errno
import fcntl
import hashlib
import os

import pytest

from app.errors import Unavailable
from app.storage import digest_state
from app.storage.local import aio, block_writer, syscalls
from app.storage.local.block_writer import BLOCK_BYTES, BlockPool, DigestingFile
from app.storage.local.free_space import Space
from app.storage.local.staged import POOLED_BLOCKS
from app.storage.local.unfinished import UnfinishedFile
from tests.contracts.storage import MiB, content_of, fill, get, new_key, put
from tests.support.stores import files_in, local, write_at_once


@pytest.fixture
async def storage(tmp_path):
    storage = local(tmp_path)
    await storage.prepare()
    yield storage
    await storage.close()


@pytest.fixture
def direct_storage(storage):
    if not storage._staging.direct:
        pytest.skip("the file system of the tests takes no direct writes")
    return storage


@pytest.fixture
def opened(tmp_path):
    """Opens files of which every write is noted: whether it was direct, and how long."""
    fd = os.open(tmp_path, os.O_RDONLY)
    space = Space(0)
    space.watch(fd)

    def open_file(*, direct, kind=DigestingFile):
        if kind is UnfinishedFile:
            return UnfinishedFile(os.open(tmp_path / "file", os.O_CREAT | os.O_RDWR), space=space, reservation=None)
        flags = os.O_CREAT | os.O_WRONLY | (os.O_DIRECT if direct else 0)
        return DigestingFile(os.open(tmp_path / "file", flags), direct=direct, space=space, reservation=None)

    yield open_file
    os.close(fd)


@pytest.fixture
def writes(monkeypatch):
    real, noted = os.write, []

    def write(fd, view):
        noted.append((bool(fcntl.fcntl(fd, fcntl.F_GETFL) & os.O_DIRECT), len(view)))
        return real(fd, view)

    def begin_write(fd, view, offset):
        noted.append((bool(fcntl.fcntl(fd, fcntl.F_GETFL) & os.O_DIRECT), len(view)))
        return real_begin(fd, view, offset)

    real_begin = aio.begin_write
    monkeypatch.setattr(os, "write", write)
    monkeypatch.setattr(aio, "begin_write", begin_write)
    return noted


def aligned(content: bytes) -> memoryview:
    block = block_writer.mmap.mmap(-1, max(1, len(content)))
    block.write(content)
    return memoryview(block)[: len(content)]


def test_the_pool_lends_blocks_until_it_is_empty():
    pool = BlockPool(2)
    lent = [pool.take() for _ in range(3)]
    assert lent[2] is None
    assert len({id(block) for block in lent[:2]}) == 2
    pool.give_back(lent[0])
    assert pool.take() is lent[0]
    assert pool.take() is None


@pytest.mark.parametrize("tail", [0, 1, 511, 512, 4095])
def test_only_an_unaligned_tail_passes_through_the_page_cache(tmp_path, opened, writes, tail):
    content = content_of(2 * BLOCK_BYTES + tail)
    with opened(direct=True) as file:
        for at in range(0, len(content), BLOCK_BYTES):
            file.write(aligned(content[at : at + BLOCK_BYTES]))
        assert file.written == len(content)
        assert file.digest.digest() == hashlib.sha256(content).digest()
        file.cut()
    assert (tmp_path / "file").read_bytes() == content
    assert writes[:2] == [(True, BLOCK_BYTES)] * 2
    assert writes[2:] == ([(False, tail)] if tail else [])


@pytest.mark.parametrize("direct", [True, False])
@pytest.mark.parametrize("share", [0.5, 0.37, 0.001])
def test_a_write_that_the_kernel_cuts_short_is_gone_on_with(tmp_path, opened, monkeypatch, direct, share):
    real = os.write

    def short(fd, view):
        direct_now = fcntl.fcntl(fd, fcntl.F_GETFL) & os.O_DIRECT
        if direct_now and (len(view) % 4096 or os.lseek(fd, 0, os.SEEK_CUR) % 4096):
            raise OSError(errno.EINVAL, "not aligned, as a disk with large sectors says")
        return real(fd, view[: max(512, int(len(view) * share) // 512 * 512)])

    monkeypatch.setattr(os, "write", short)
    content = content_of(200_000)
    with opened(direct=direct) as file:
        file.write(aligned(content))
        file.write(aligned(content[:5000]))
        assert file.digest.digest() == hashlib.sha256(content + content[:5000]).digest()
    assert (tmp_path / "file").read_bytes() == content + content[:5000]


class Pending:
    """A write that the kernel ends as a test says, and of which it tells whether that was waited for."""

    def __init__(self, count=0, error=None):
        self.count, self.error, self.waited = count, error, False

    def wait(self):
        self.waited = True
        if self.error is not None:
            raise self.error
        return self.count


@pytest.mark.parametrize("count", [0, 4096, 512, BLOCK_BYTES - 4096, BLOCK_BYTES])
def test_a_block_that_the_kernel_wrote_in_part_is_completed(tmp_path, opened, monkeypatch, count):
    real, content = aio.begin_write, content_of(3 * BLOCK_BYTES + 5)

    def cut_short(fd, view, offset):
        pending = Pending(real(fd, view[:count], offset).wait() if count else 0)
        begun.append(pending)
        return pending

    begun: list[Pending] = []
    monkeypatch.setattr(aio, "begin_write", cut_short)
    with opened(direct=True) as file:
        for at in range(0, len(content), BLOCK_BYTES):
            file.write(aligned(content[at : at + BLOCK_BYTES]))
        assert file.digest.digest() == hashlib.sha256(content).digest()
        file.cut()
    assert (tmp_path / "file").read_bytes() == content
    assert [pending.waited for pending in begun] == [True] * (1 if count == 512 else 2)  # no longer aligned


def test_memory_is_not_released_while_the_kernel_reads_it(opened, monkeypatch):
    """Whatever happens meanwhile: in the next moment it may hold another upload's bytes."""

    class Broken:
        def update(self, block):
            raise MemoryError

    with opened(direct=True) as file:
        file.write(aligned(content_of(BLOCK_BYTES)))
        pending = Pending(BLOCK_BYTES)
        monkeypatch.setattr(aio, "begin_write", lambda fd, view, offset: pending)
        file.digest = Broken()
        with pytest.raises(MemoryError):
            file.write(aligned(content_of(BLOCK_BYTES)))
    assert pending.waited


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EIO])
def test_an_error_of_a_block_that_the_kernel_wrote_by_itself_is_raised(opened, monkeypatch, number):
    with opened(direct=True) as file:
        file.write(aligned(content_of(BLOCK_BYTES)))
        pending = Pending(error=OSError(number, "no"))
        monkeypatch.setattr(aio, "begin_write", lambda fd, view, offset: pending)
        with pytest.raises(OSError, match="no"):
            file.write(aligned(content_of(BLOCK_BYTES)))
        assert file.written == BLOCK_BYTES


def test_a_file_that_may_not_get_that_long_is_written_as_it_comes(tmp_path, opened, monkeypatch):
    monkeypatch.setattr(block_writer, "_AHEAD_BYTES", 2**62)
    content = content_of(3 * BLOCK_BYTES)
    with opened(direct=True) as file:
        for at in range(0, len(content), BLOCK_BYTES):
            file.write(aligned(content[at : at + BLOCK_BYTES]))
        assert file.length == len(content)
    assert (tmp_path / "file").read_bytes() == content


def test_a_closed_file_takes_nothing_more(opened):
    file = opened(direct=False)
    file.close()
    with pytest.raises(ValueError, match="closed"):
        file.write(b"late")


async def test_direct_writes_are_taken_where_the_file_system_has_them(direct_storage, writes):
    await put(direct_storage, content_of(3 * MiB + 5))
    assert writes == [(True, MiB)] * 3 + [(False, 5)]


@pytest.mark.parametrize("at", ["open", "write"])
async def test_a_file_system_that_refuses_direct_writes_gets_others(tmp_path, monkeypatch, at):
    real_open, real_write = os.open, os.write

    def no_direct_open(path, flags, mode=0o777, *, dir_fd=None):
        if flags & os.O_DIRECT:
            os.close(real_open(path, flags & ~os.O_DIRECT, mode, dir_fd=dir_fd))  # some leave the file behind
            raise OSError(errno.EINVAL, "Invalid argument")
        return real_open(path, flags, mode, dir_fd=dir_fd)

    def no_direct_write(fd, view):
        if fcntl.fcntl(fd, fcntl.F_GETFL) & os.O_DIRECT:
            raise OSError(errno.EINVAL, "Invalid argument")
        return real_write(fd, view)

    if at == "open":
        monkeypatch.setattr(os, "open", no_direct_open)
    else:
        monkeypatch.setattr(os, "write", no_direct_write)
    storage = local(tmp_path)
    await storage.prepare()
    assert files_in(tmp_path) == []
    content = content_of(20 * MiB + 5)
    assert await get(storage, await put(storage, content)) == content
    await storage.close()


async def test_an_empty_pool_changes_only_the_way(direct_storage, monkeypatch, writes):
    storage = direct_storage
    write_at_once(monkeypatch)
    files = []
    for seed in range(POOLED_BLOCKS + 3):
        file = storage.stage(new_key())
        await file.write(content_of(300_000, seed))
        files.append(file)
    for seed, file in enumerate(files):
        await file.write(content_of(2 * MiB, 1000 + seed))
        await file.finish()
    assert await storage.publish(files) == {}
    for seed, file in enumerate(files):
        assert await get(storage, file.key) == content_of(300_000, seed) + content_of(2 * MiB, 1000 + seed)
    assert {direct for direct, size in writes if size == MiB} == {True}
    assert [size for direct, size in writes if size == 2 * MiB] == [2 * MiB] * 3
    writes.clear()
    await put(storage, content_of(2 * MiB))
    assert writes == [(True, MiB)] * 2  # the blocks are back


async def test_a_file_borrows_a_second_block_only_when_it_needs_one(direct_storage):
    pool = direct_storage._staging._pool
    long, short = direct_storage.stage(new_key()), direct_storage.stage(new_key())
    await short.write(content_of(MiB))
    await long.write(content_of(3 * MiB))
    blocks = [pool.take() for _ in range(POOLED_BLOCKS)]
    assert blocks.count(None) == 1 + 2
    for block in filter(None, blocks):
        pool.give_back(block)
    for file in (long, short):
        await file.finish()
    await direct_storage.publish([long, short])
    assert await get(direct_storage, long.key) == content_of(3 * MiB)
    assert await get(direct_storage, short.key) == content_of(MiB)


async def test_no_block_is_lost_however_uploads_end(storage, monkeypatch):
    def full(*arguments):
        raise OSError(errno.EIO, "Input/output error")

    for round_ in range(POOLED_BLOCKS):
        file = storage.stage(new_key())
        content = content_of(1000 * (round_ + 1) + 300_000)
        if round_ % 4 == 3:
            with monkeypatch.context() as broken:
                broken.setattr(os, "write", full)
                with pytest.raises(Unavailable):
                    await fill(file, content, 200_000)
                await file.abort()
            await storage.test()
            continue
        await fill(file, content, 200_000)
        if round_ % 4 == 2:
            await file.abort()
        else:
            assert await storage.publish([file]) == {}
    assert None not in [storage._staging._pool.take() for _ in range(POOLED_BLOCKS)]


async def test_dirty_pages_never_pile_up(tmp_path, storage, monkeypatch):
    """Without it a flush for somebody's small file would wait for all of the large one."""
    storage._staging.direct = False
    asked = []
    monkeypatch.setattr(syscalls, "start_writeback", lambda fd, offset, length: asked.append((offset, offset + length)))
    await put(storage, content_of(40 * MiB))
    assert len(asked) == 5
    covered = 0
    for start, stop in asked:
        assert start <= covered
        covered = max(covered, stop)
    assert covered >= 40 * MiB


def test_a_block_that_begins_between_the_alignments_is_not_left_to_the_kernel(tmp_path, opened):
    """The one before it went past the page cache, but this one cannot."""
    with opened(direct=True, kind=UnfinishedFile) as file:
        content = content_of(3 * BLOCK_BYTES)
        file.enter_direct()
        file.write(aligned(content[:BLOCK_BYTES]))
        file.write(aligned(content[BLOCK_BYTES : 2 * BLOCK_BYTES]))
        file.go_to(BLOCK_BYTES + 100, digest_state.begun())
        file.write(aligned(b"-" * 100 + content[BLOCK_BYTES + 100 : 2 * BLOCK_BYTES + 100])[100:])
        file.cut()
    assert (tmp_path / "file").read_bytes() == content[: 2 * BLOCK_BYTES + 100]
