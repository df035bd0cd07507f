"""Published files, read again."""

import errno
import hashlib
import os
import stat
from concurrent.futures import Executor
from typing import Final

import structlog

from app.errors import Unavailable
from app.storage import NotStored, is_key, kernel
from app.storage.directories import Directories
from app.storage.staging import FILE_MODE
from app.storage.threads import in_thread
from app.storage.trust import reason
from app.tasks import to_the_end

log = structlog.stdlib.get_logger("waybill.storage")

_READ_AHEAD: Final = 256 * 1024
_DIGEST_BYTES: Final = 1024 * 1024
_FLAGS: Final = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC


class LocalStored:
    """A published file, open for reading. A small one has been read whole and holds no descriptor."""

    def __init__(self, threads: Executor, key: str, fd: int | None, size: int, whole: bytes) -> None:
        self.size = size
        self._threads = threads
        self._key = key
        self._fd = fd
        self._whole = whole

    async def read(self, offset: int, length: int) -> bytes:
        if self._fd is None:
            return self._whole[offset : offset + length]
        try:
            return await to_the_end(in_thread(self._threads, os.pread, self._fd, length, offset))
        except OSError as error:
            log.error("a stored file cannot be read", key=self._key, error=reason(error))
            raise Unavailable from error

    async def close(self) -> None:
        if self._fd is not None:
            fd, self._fd = self._fd, None
            os.close(fd)


def open_stored(key: str, directories: Directories, threads: Executor) -> LocalStored:
    """Open what is stored under the key; raises NotStored, or OSError."""
    fd = _open(key, directories)
    size = os.fstat(fd).st_size
    if size > _READ_AHEAD:
        return LocalStored(threads, key, fd, size, b"")
    try:
        return LocalStored(threads, key, None, size, os.pread(fd, size, 0))
    finally:
        os.close(fd)


def open_at_hand(key: str, directories: Directories, threads: Executor) -> LocalStored | None:
    """The same without a thread, if the kernel has all that is needed in memory; None if not, whatever the reason."""
    if not is_key(key):
        return None
    try:
        fd = kernel.open_cached(key, _FLAGS, dir_fd=directories.shard_fd(key))
    except OSError:
        return None
    try:
        state = os.fstat(fd)
        if stat.S_ISREG(state.st_mode) and state.st_size <= _READ_AHEAD:
            whole = bytearray(state.st_size)
            if os.preadv(fd, [whole], 0, os.RWF_NOWAIT) == len(whole):
                return LocalStored(threads, key, None, len(whole), bytes(whole))
    except OSError:
        pass  # a file system that cannot tell, or a fault that whoever may wait will meet and report
    finally:
        os.close(fd)
    return None


def digest_stored(key: str, directories: Directories) -> tuple[int, str]:
    """Size and SHA-256 of what is stored under the key; raises NotStored, or OSError."""
    with os.fdopen(_open(key, directories), "rb", buffering=0) as file:
        digest = hashlib.sha256()
        size = 0
        while block := file.read(_DIGEST_BYTES):
            digest.update(block)
            size += len(block)
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)  # nobody asked for it to be cached
    return size, digest.hexdigest()


def make_durable(key: str, directories: Directories, durable: bool) -> None:
    """Do what may be missing of a publication that nobody saw the end of; raises NotStored, or OSError."""
    fd = _open(key, directories)
    try:
        os.fchmod(fd, FILE_MODE)
        if durable:
            os.fsync(fd)
            os.fsync(directories.shard_fd(key))
    finally:
        os.close(fd)


def _open(key: str, directories: Directories) -> int:
    """A descriptor of a regular file; a link, a pipe or a directory under the key is not a stored file."""
    if not is_key(key):
        raise NotStored(key)
    try:
        fd = os.open(key, _FLAGS, dir_fd=directories.shard_fd(key))
    except OSError as error:
        if error.errno in {errno.ENOENT, errno.ELOOP, errno.ENXIO}:
            raise NotStored(key) from error
        raise
    if not stat.S_ISREG(os.fstat(fd).st_mode):
        os.close(fd)
        raise NotStored(key)
    return fd
