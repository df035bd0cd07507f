"""Readers of published files: for downloads, and for verification."""

import errno
import fcntl
import hashlib
import mmap
import os
import stat
from concurrent.futures import Executor
from typing import Final

import structlog

from app.cancellation import run_to_completion
from app.errors import Unavailable
from app.storage import NotStored, Replaced, Unreadable, Withheld, is_key
from app.storage.local import syscalls
from app.storage.local.block_writer import ALIGNMENT
from app.storage.local.io_errors import reason
from app.storage.local.layout import Directories, require
from app.storage.local.staged import FILE_MODE
from app.storage.local.threads import in_thread
from app.storage.local.trash import put_back

log = structlog.stdlib.get_logger("waybill.storage")

_READ_AHEAD: Final = 256 * 1024
_DIGEST_BYTES: Final = 1024 * 1024
_OF_THIS_FILE: Final = {errno.EIO, errno.EBADMSG, errno.EUCLEAN, errno.ENODATA}
"""The kernel's errors for one file with broken blocks or checksums. They can also mean a broken disk."""
_OF_OUR_RIGHTS: Final = {errno.EACCES, errno.EPERM}
_FLAGS: Final = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC


class LocalStored:
    """A published file, open for reading. A small one has been read completely and holds no descriptor."""

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
            return await run_to_completion(in_thread(self._threads, os.pread, self._fd, length, offset))
        except OSError as error:
            log.error("a stored file cannot be read", key=self._key, error=reason(error))
            raise Unavailable from error

    async def close(self) -> None:
        if self._fd is not None:
            fd, self._fd = self._fd, None
            os.close(fd)


def open_stored(key: str, directories: Directories, threads: Executor) -> LocalStored:
    """Open the published file of a key; raises NotStored, or OSError."""
    fd = _open(key, directories)
    size = os.fstat(fd).st_size
    if size > _READ_AHEAD:
        return LocalStored(threads, key, fd, size, b"")
    try:
        return LocalStored(threads, key, None, size, os.pread(fd, size, 0))
    finally:
        os.close(fd)


def open_at_hand(key: str, directories: Directories, threads: Executor) -> LocalStored | None:
    """Open a published file without a thread, if the kernel has it cached; None if not, whatever the reason."""
    if not is_key(key):
        return None
    try:
        fd = syscalls.open_cached(key, _FLAGS, dir_fd=directories.shard_fd(key))
    except OSError:
        return None
    try:
        state = os.fstat(fd)
        if stat.S_ISREG(state.st_mode) and state.st_size <= _READ_AHEAD:
            whole = bytearray(state.st_size)
            if os.preadv(fd, [whole], 0, os.RWF_NOWAIT) == len(whole):
                return LocalStored(threads, key, None, len(whole), bytes(whole))
    except OSError:
        pass  # the file system does not support this, or a fault that the ordinary way will meet and report
    finally:
        os.close(fd)
    return None


class Inspection:
    """The digesting of a published file from the disk's bytes, not the page cache's.

    Where the file system supports it, the page cache is bypassed. Elsewhere pages that were cached
    stay so, and others are dropped again: reading all files must not push out those that
    clients read.
    """

    def __init__(self, key: str, directories: Directories) -> None:
        self.size = 0
        self.ended = False
        self._key = key
        self._directories = directories
        self._fd = -1
        self._direct = False
        self._length = 0
        self._digest = hashlib.sha256()

    def step(self) -> int:
        """Read and digest the next bytes; return how many. Raises NotStored, Unreadable, Withheld, or OSError."""
        try:
            if self._fd < 0:
                self._begin()
            count = self._next() if self.size < self._length else 0
        except OSError as error:
            if error.errno not in _OF_THIS_FILE | _OF_OUR_RIGHTS:
                raise
            log.error("a stored file cannot be read", key=self._key, error=reason(error))
            raise (Unreadable if error.errno in _OF_THIS_FILE else Withheld) from error
        self.size += count
        self.ended = count == 0 or self.size >= self._length  # the file may have become shorter meanwhile
        return count

    @property
    def sha256(self) -> str:
        return self._digest.hexdigest()

    def close(self) -> None:
        """Close the file. No thread may be in `step` any more."""
        if self._fd >= 0:
            fd, self._fd = self._fd, -1
            os.close(fd)

    def _begin(self) -> None:
        self._fd = _open(self._key, self._directories)
        state = os.fstat(self._fd)
        owners = {0, os.geteuid(), os.fstat(self._directories.shard_fd(self._key)).st_uid}
        if state.st_uid not in owners:
            raise Replaced(self._key)  # its owner can change it, whatever it contains now
        self._length = state.st_size
        self._block = mmap.mmap(-1, min(_DIGEST_BYTES, _aligned(max(1, self._length))))
        flags = fcntl.fcntl(self._fd, fcntl.F_GETFL)
        try:
            # Nor shall the time of the last access, which nobody needs, be written for every file.
            fcntl.fcntl(self._fd, fcntl.F_SETFL, flags | os.O_DIRECT | os.O_NOATIME)
            self._direct = True
        except OSError:
            self._go_through_the_cache(flags)

    def _go_through_the_cache(self, flags: int) -> None:
        fcntl.fcntl(self._fd, fcntl.F_SETFL, flags & ~os.O_DIRECT)
        os.posix_fadvise(self._fd, 0, 0, os.POSIX_FADV_RANDOM)  # read-ahead pages would look as if others had read them
        self._direct = False

    def _next(self) -> int:
        rest = self._length - self.size
        with memoryview(self._block) as block:
            count = self._read_direct(block[: _aligned(rest)]) if self._direct else 0
            if not self._direct:
                count = self._read_cached(block[:rest])
            self._digest.update(block[:count])
        return count

    def _read_direct(self, block: memoryview) -> int:
        try:
            return os.preadv(self._fd, [block], self.size)
        except OSError as error:
            if error.errno != errno.EINVAL:
                raise
        # Some file systems refuse only the read itself; all refuse an unaligned one, which follows a short read.
        self._go_through_the_cache(fcntl.fcntl(self._fd, fcntl.F_GETFL))
        return 0

    def _read_cached(self, block: memoryview) -> int:
        try:
            if os.preadv(self._fd, [block], self.size, os.RWF_NOWAIT) == len(block):
                return len(block)
            not_cached = True
        except BlockingIOError:
            not_cached = True
        except OSError:
            not_cached = False  # the file system cannot tell: the kernel recognises pages that are read only once
        count = os.preadv(self._fd, [block], self.size)
        if not_cached:
            os.posix_fadvise(self._fd, self.size, count, os.POSIX_FADV_DONTNEED)
        return count


def _aligned(count: int) -> int:
    return -(-count // ALIGNMENT) * ALIGNMENT


def make_durable(key: str, directories: Directories, durable: bool) -> None:
    """Complete a publication that may have been interrupted; raises NotStored, or OSError."""
    fd = _open(key, directories)
    try:
        os.fchmod(fd, FILE_MODE)
        if durable:
            os.fsync(fd)
            os.fsync(directories.shard_fd(key))
    finally:
        os.close(fd)


def _open(key: str, directories: Directories) -> int:
    """Open a regular file, and return its descriptor; a link, a pipe or a directory under the key is no stored file."""
    if not is_key(key):
        raise NotStored(key)
    try:
        fd = os.open(key, _FLAGS, dir_fd=directories.shard_fd(key))
    except OSError as error:
        if error.errno in {errno.ELOOP, errno.ENXIO}:
            raise Replaced(key) from error
        if error.errno != errno.ENOENT:
            raise
        require(directories.shard_fd(key))
        if put_back(directories, key) is not None:
            return _open(key, directories)
        raise NotStored(key) from error
    if not stat.S_ISREG(os.fstat(fd).st_mode):
        os.close(fd)
        raise Replaced(key)
    return fd
