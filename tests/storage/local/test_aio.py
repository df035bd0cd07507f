"""Writes that the kernel does while their thread goes on, as the real kernel does them."""

import ctypes
import errno
import mmap
import os
import resource
import threading
from contextlib import contextmanager

import pytest
from structlog.testing import capture_logs

from app.storage.local import aio
from tests.contracts.storage import MiB, content_of


@pytest.fixture
def block():
    """A block of memory with something in it."""
    with mmap.mmap(-1, MiB) as memory:
        memory.write(content_of(MiB))
        yield memory


@pytest.fixture
def file(tmp_path):
    fd = os.open(tmp_path / "file", os.O_RDWR | os.O_CREAT)
    yield fd
    os.close(fd)


@pytest.fixture(autouse=True)
def elsewhere():
    """No test meets what another has left to this thread."""
    had = vars(aio._own).copy()
    vars(aio._own).clear()
    yield
    vars(aio._own).clear()
    vars(aio._own).update(had)


def begun(fd, memory, offset=0):
    with memoryview(memory) as view:
        pending = aio.begin_write(fd, view, offset)
    if pending is None:
        pytest.skip("this kernel has no asynchronous I/O")
    return pending


def test_bytes_come_to_lie_where_they_should_and_the_position_stays(file, block):
    assert begun(file, block, 4096).wait() == MiB
    assert os.pread(file, 2 * MiB, 4096) == block[:]
    assert os.lseek(file, 0, os.SEEK_CUR) == 0


@contextmanager
def files_end_at(size):
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_an_error_is_raised_by_its_own_wait_and_not_by_the_next_write(file, block):
    with files_end_at(MiB):
        assert begun(file, block, 4096).wait() == MiB - 4096
        with pytest.raises(OSError, match="File too large") as raised:
            begun(file, block, MiB).wait()
    assert raised.value.errno == errno.EFBIG
    assert begun(file, block, MiB).wait() == MiB


def test_a_write_that_cannot_be_begun_is_left_to_the_caller(tmp_path, file, block):
    reading = os.open(tmp_path / "file", os.O_RDONLY)
    with memoryview(block) as view:
        assert aio.begin_write(reading, view, 0) is None
    os.close(reading)
    assert begun(file, block).wait() == MiB


def test_a_failing_wait_leaves_nothing_for_the_next(file, block, monkeypatch):
    """Which is not to be taken for its own end: the one that was not waited for may have ended since."""
    pending = begun(file, block)
    with monkeypatch.context() as broken:
        broken.setattr(aio, "_GETEVENTS", 10**6)
        with pytest.raises(OSError, match="not implemented"):
            pending.wait()
    block[:5] = b"other"
    assert begun(file, block, MiB).wait() == MiB
    assert os.pread(file, 5, MiB) == b"other"


@pytest.mark.parametrize("number", [10**6, None])
def test_a_kernel_without_asynchronous_writes_is_asked_once_by_each_thread(file, block, monkeypatch, number):
    monkeypatch.setattr(aio, "_SETUP", number)
    with memoryview(block) as view, capture_logs() as lines:
        assert [aio.begin_write(file, view, 0) for _ in range(3)] == [None] * 3
    assert [line["reason"] for line in lines] == ["Function not implemented"]


def test_each_thread_has_a_queue_of_its_own_and_releases_it(tmp_path):
    written, queues = [], []

    def work(number):
        fd = os.open(tmp_path / f"file{number}", os.O_RDWR | os.O_CREAT)
        with mmap.mmap(-1, MiB) as memory:
            memory.write(content_of(MiB, number))
            assert begun(fd, memory).wait() == MiB
        written.append(os.pread(fd, 2 * MiB, 0) == content_of(MiB, number))
        os.close(fd)
        queues.append(ctypes.c_ulong(aio._own.context._id.value))
        barrier.wait()

    barrier = threading.Barrier(4)
    threads = [threading.Thread(target=work, args=[number]) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert written == [True] * 4
    assert len({queue.value for queue in queues}) == 4
    for queue in queues:
        with pytest.raises(OSError, match="Invalid argument"):
            aio._call(aio._GETEVENTS, queue, ctypes.c_long(0), ctypes.c_long(0), None, None)
