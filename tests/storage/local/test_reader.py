"""Looking over stored files tells what the disk has, and takes nothing from those who read them often."""

import asyncio
import ctypes
import errno
import fcntl
import hashlib
import mmap
import os

import pytest

from app.errors import Unavailable
from app.storage import Replaced, Unreadable, Withheld
from app.storage.local import reader
from tests.contracts.storage import content_of, new_key, put
from tests.support.stores import ROOT, descriptors, local

BLOCK = reader._DIGEST_BYTES


@pytest.fixture
async def storage(tmp_path):
    storage = local(tmp_path)
    await storage.prepare()
    yield storage
    await storage.close()


@pytest.fixture(params=["direct", "refused", "refused late"])
def way(request, monkeypatch):
    """Past the page cache, or through it because the file system refuses that at once, or by its first read."""
    set_flags, read = fcntl.fcntl, os.preadv

    def fcntl_(fd, command, *arguments):
        if request.param == "refused" and command == fcntl.F_SETFL and arguments[0] & os.O_DIRECT:
            raise OSError(errno.EINVAL, "refused")
        return set_flags(fd, command, *arguments)

    def preadv(fd, blocks, offset, *flags):
        if request.param == "refused late" and set_flags(fd, fcntl.F_GETFL) & os.O_DIRECT:
            raise OSError(errno.EINVAL, "refused")
        return read(fd, blocks, offset, *flags)

    monkeypatch.setattr(fcntl, "fcntl", fcntl_)
    monkeypatch.setattr(os, "preadv", preadv)
    return request.param


def cached(path):
    """How much of the file is in the page cache; to try to read it would bring it there."""
    with open(path, "rb", buffering=0) as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY) as pages:
        found = (ctypes.c_ubyte * (-(-len(pages) // mmap.PAGESIZE)))()
        start = ctypes.c_char.from_buffer(pages)
        assert (
            ctypes.CDLL(None).mincore(ctypes.c_void_p(ctypes.addressof(start)), ctypes.c_size_t(len(pages)), found) == 0
        )
        del start
    return sum(page & 1 for page in found) / len(found)


def path_of(tmp_path, key):
    return tmp_path / "files" / key[-2:] / key


@pytest.mark.parametrize("size", [0, 1, 4095, 4096, 4097, BLOCK - 1, BLOCK, BLOCK + 1, 3 * BLOCK + 5000])
async def test_every_byte_is_digested_once(storage, way, size):
    content = content_of(size, size)
    key, paced = await put(storage, content), []

    async def pace(count):
        paced.append(count)

    assert await storage.digest(key, pace) == (size, hashlib.sha256(content).hexdigest())
    assert sum(paced) == size
    assert max(paced) <= BLOCK


@pytest.mark.parametrize("often_read", [True, False])
async def test_reading_leaves_the_page_cache_as_it_was(storage, tmp_path, way, often_read):
    key = await put(storage, content_of(3 * BLOCK + 5000, 1))
    path = path_of(tmp_path, key)
    os.sync()
    with path.open("rb") as file:
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
        if often_read:
            file.read()
    # A kernel may keep the last pages a moment longer, in a list of its own.
    assert round(cached(path), 1) == often_read
    await storage.digest(key)
    assert round(cached(path), 1) == often_read


async def test_a_read_that_the_kernel_cuts_short_is_gone_on_with(storage, monkeypatch):
    content = content_of(BLOCK + 5000, 2)
    key, read, calls = await put(storage, content), os.preadv, []

    def preadv(fd, blocks, offset, *flags):
        calls.append(offset)
        count = read(fd, blocks, offset, *flags)
        return 1000 if len(calls) == 1 else count

    monkeypatch.setattr(os, "preadv", preadv)
    assert await storage.digest(key) == (len(content), hashlib.sha256(content).hexdigest())


async def test_a_file_that_becomes_shorter_meanwhile_ends_there(storage, tmp_path):
    key = await put(storage, content_of(2 * BLOCK, 3))

    async def pace(count):
        os.truncate(path_of(tmp_path, key), BLOCK)

    assert (await storage.digest(key, pace))[0] == BLOCK


@pytest.mark.parametrize("code", [errno.EIO, errno.EUCLEAN, errno.EBADMSG])
async def test_a_file_whose_bytes_the_disk_has_lost_is_unreadable(storage, monkeypatch, code):
    key = await put(storage, b"hello")

    def preadv(*arguments):
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(os, "preadv", preadv)
    with pytest.raises(Unreadable):
        await storage.digest(key)


@pytest.mark.parametrize("code", [errno.EACCES, errno.EPERM])
async def test_a_file_that_may_not_be_read_is_withheld(storage, monkeypatch, code):
    key, open_ = await put(storage, b"hello"), os.open

    def refuse(path, *arguments, **named):
        if path == key:
            raise OSError(code, os.strerror(code))
        return open_(path, *arguments, **named)

    monkeypatch.setattr(os, "open", refuse)
    with pytest.raises(Withheld):
        await storage.digest(key)


@pytest.mark.parametrize("code", [errno.EMFILE, errno.ESTALE, errno.ENOMEM])
async def test_a_store_that_cannot_be_asked_says_nothing_against_the_file(storage, monkeypatch, code):
    key, open_ = await put(storage, b"hello"), os.open

    def refuse(path, *arguments, **named):
        if path == key:
            raise OSError(code, os.strerror(code))
        return open_(path, *arguments, **named)

    monkeypatch.setattr(os, "open", refuse)
    with pytest.raises(Unavailable) as raised:
        await storage.digest(key)
    assert type(raised.value) is Unavailable


@pytest.mark.skipif(not ROOT, reason="needs root, to give a file to somebody else")
async def test_a_file_of_another_owner_is_no_file_of_the_store(storage, tmp_path):
    key = await put(storage, b"hello")
    os.chown(path_of(tmp_path, key), 12345, 12345)
    with pytest.raises(Replaced):
        await storage.digest(key)


async def test_a_cancelled_reading_leaves_nothing_open(storage):
    key, reached = await put(storage, content_of(2 * BLOCK, 4)), asyncio.Event()

    async def pace(count):
        reached.set()
        await asyncio.Event().wait()

    before = descriptors()
    reading = asyncio.create_task(storage.digest(key, pace))
    await reached.wait()
    assert len(descriptors()) == len(before) + 1
    reading.cancel()
    await asyncio.wait((reading,))
    assert reading.cancelled()
    assert descriptors() == before


async def test_a_closing_store_reads_no_more(tmp_path):
    storage = local(tmp_path)
    await storage.prepare()
    key = await put(storage, content_of(2 * BLOCK, 5))

    async def pace(count):
        await storage.close()

    with pytest.raises(Unavailable):
        await storage.digest(key, pace)
    with pytest.raises(Unavailable):
        await storage.digest(new_key())
