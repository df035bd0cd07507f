"""Unfinished files, of resumable uploads. They are kept apart from staged files, and any process may continue one.

A process that has one open locks it until it ends: so a locked file may still be written to, by
a process that is slow or suspended, and an unlocked one is not.
"""

import errno
import fcntl
import hashlib
import mmap
import os
import stat
from collections.abc import Awaitable, Callable, Iterator
from concurrent.futures import Executor
from contextlib import contextmanager, suppress
from typing import Final

import structlog

from app.cancellation import run_to_completion
from app.errors import Unavailable, UploadError
from app.storage import InUse, Mark, NotStored, digest_state
from app.storage.digest_state import RunningDigest
from app.storage.local import syscalls
from app.storage.local.block_writer import ALIGNMENT, BLOCK_BYTES, DigestingFile
from app.storage.local.free_space import Reserved, Space
from app.storage.local.io_errors import reason
from app.storage.local.layout import Directories, require, unfinished_name
from app.storage.local.staged import FILE_MODE, LocalStaged, Staging
from app.storage.local.threads import in_thread
from app.storage.local.trash import put_unfinished_back

log = structlog.stdlib.get_logger("waybill.storage")

_UNFINISHED_MODE: Final = 0o600


class UnfinishedFile(DigestingFile):
    """A file that can be continued from any offset, in full blocks that bypass the page cache.

    Its descriptor begins at the file's start; `go_to` sets the offset.
    """

    digest: RunningDigest

    def __init__(self, fd: int, *, space: Space, reservation: Reserved | None) -> None:
        super().__init__(fd, direct=False, space=space, reservation=reservation)
        self._bypassing = False
        self.digest = digest_state.begun()

    def go_to(self, offset: int, digest: RunningDigest) -> None:
        """Truncate the file at the offset, and continue there."""
        os.ftruncate(self.fileno(), offset)
        os.lseek(self.fileno(), offset, os.SEEK_SET)
        self.written = self.length = offset
        self.digest = digest

    def write_undigested(self, view: memoryview) -> None:
        """Write bytes whose digest is known, which `go_to` sets."""
        claimed = self._space.begin_write(len(view), self._reservation)
        try:
            self._write_all(self.fileno(), view)
        finally:
            self._space.end_write(claimed)

    def enter_direct(self) -> None:
        """Bypass the page cache from here on. Buffers must have the same offset modulo the alignment as in the file."""
        self._direct = True

    def leave_direct(self) -> None:
        self._direct = False
        self._bypass(False)

    def _bypasses(self) -> bool:
        bypasses = super()._bypasses()
        if bypasses:
            self._bypass(True)
        return bypasses

    def _write_all(self, fd: int, view: memoryview) -> None:
        while view:
            piece, bypass = view, False
            if self._direct:
                to_boundary = -self.written % ALIGNMENT
                bypass = not to_boundary and len(view) >= ALIGNMENT
                piece = view[: len(view) - len(view) % ALIGNMENT] if bypass else view[: to_boundary or len(view)]
            self._bypass(bypass)
            count = os.write(fd, piece)
            view = view[count:]
            self._wrote(count)

    def _bypass(self, bypass: bool) -> None:
        if bypass is not self._bypassing:
            bypass_cache(self.fileno(), bypass)
            self._bypassing = bypass


def bypass_cache(fd: int, bypass: bool) -> None:
    """Switch bypassing the page cache on or off."""
    flags = fcntl.fcntl(fd, fcntl.F_GETFL)
    fcntl.fcntl(fd, fcntl.F_SETFL, flags | os.O_DIRECT if bypass else flags & ~os.O_DIRECT)


def open_unfinished_file(directories: Directories, name: str, flags: int) -> int:
    """Open an unfinished file and return its descriptor; raises NotStored, or OSError."""
    try:
        flags |= os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
        fd = os.open(name, flags, _UNFINISHED_MODE, dir_fd=directories.unfinished_fd)
    except OSError as error:
        if error.errno not in {errno.ENOENT, errno.ELOOP, errno.EISDIR}:
            raise
        require(directories.unfinished_fd)
        if error.errno == errno.ENOENT and put_unfinished_back(directories, name):
            return open_unfinished_file(directories, name, flags)
        raise NotStored(name) from error
    if not stat.S_ISREG(os.fstat(fd).st_mode):
        os.close(fd)
        raise NotStored(name)
    return fd


def _open_locked(directories: Directories, name: str, flags: int) -> int:
    """Open an unfinished file as `open_unfinished_file` does, and lock it; raises InUse."""
    while True:
        fd = open_unfinished_file(directories, name, flags)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if os.fstat(fd).st_nlink:
                return fd
        except BlockingIOError:
            os.close(fd)
            raise InUse(name) from None
        except BaseException:
            os.close(fd)
            raise
        os.close(fd)  # another process removed the file before it was locked


def _names(name: str, directory: int, file: UnfinishedFile) -> bool:
    """Whether the name, in a directory given by its descriptor, is the file's."""
    with suppress(FileNotFoundError):
        return os.path.samestat(os.stat(name, dir_fd=directory, follow_symlinks=False), os.fstat(file.fileno()))
    return False


def read_through(
    fd: int, length: int, take: Callable[[memoryview], object], *, stopped: Callable[[], bool], at: int = 0
) -> None:
    """Feed `take` the first `length` bytes of a file, in blocks that are aligned for writing at offset `at`.

    Raises NotStored when the file is shorter, and Unavailable once `stopped` returns True.
    """
    block = memoryview(mmap.mmap(-1, BLOCK_BYTES))
    done = 0
    while done < length:
        if stopped():
            raise Unavailable
        begin = (at + done) % ALIGNMENT
        count = min(BLOCK_BYTES - begin, length - done)
        # Read up to a boundary: a direct read cannot be shorter.
        if os.preadv(fd, [block[begin : begin + count + -count % ALIGNMENT]], done) < count:
            raise NotStored
        take(block[begin : begin + count])
        done += count


class LocalUnfinished(LocalStaged):
    """An open unfinished file. Like staged files it is held while small, written in blocks, and published."""

    def __init__(self, staging: Staging, key: str, fence: int, reservation: Reserved | None) -> None:
        super().__init__(staging, key, reservation, has_record=True)
        self.name = unfinished_name(key, fence)
        self._mark = Mark(0)
        self._broken = False

    async def write(self, block: bytes | memoryview) -> None:
        try:
            await super().write(block)
        except UploadError:
            self._broken = True
            raise

    async def checkpoint(self) -> Mark:
        self._require()
        if self.size > self._mark.offset:
            await run_to_completion(self._checkpoint())
        return self._mark

    async def _checkpoint(self) -> None:
        async with self._writing:
            with self._failing():
                if self._writer is not None:
                    await self._writer.flush()
                await in_thread(self._staging.threads, self._keep)
            self._release_memory()
            self.size = self._mark.offset  # a cancelled write may have counted more

    async def digest(self, algorithm: str) -> str:
        self._require()
        async with self._writing:
            with self._failing():
                return await run_to_completion(in_thread(self._staging.threads, self._digest, algorithm))

    async def back_to(self, mark: Mark) -> None:
        self._require()
        await run_to_completion(self._back_to(mark))

    async def _back_to(self, mark: Mark) -> None:
        async with self._writing:
            with self._failing():
                if self._writer is not None:
                    await self._writer.settle()
                    self._writer = None
                self._release_memory()
                await in_thread(self._staging.threads, self._go_to, mark)
            self.size = mark.offset

    async def finish(self) -> None:
        self._require()
        if self._held.size:
            async with self._writing:
                with self._failing():
                    await run_to_completion(in_thread(self._staging.threads, self._write_held))
                self._release_memory()
        await super().finish()

    async def detach(self) -> None:
        await self.abort()

    def _require(self) -> None:
        super()._require()
        if self._broken:
            raise Unavailable

    @contextmanager
    def _failing(self) -> Iterator[None]:
        """Mark the file as broken after an error: bytes behind the last mark are lost, even if a new flush succeeds."""
        try:
            yield
        except BaseException as error:
            self._broken = True
            if isinstance(error, OSError):
                raise self._staging.trust.refusal(error, self.key, self.size) from error
            raise

    async def open(self, mark: Mark, threads: Executor, confirm: Callable[[], Awaitable[None]] | None) -> None:
        """Open the file at the mark; create it if that is at 0. Raises NotStored, InUse, or what `write` raises."""
        async with self._writing:
            with self._failing():
                if not await run_to_completion(in_thread(threads, self._open_at, mark, confirm is None)):
                    assert confirm is not None
                    await confirm()
                    await run_to_completion(in_thread(threads, self._go_to, mark))
            self.size = mark.offset

    # Called in threads:

    def _open_at(self, mark: Mark, cuts: bool) -> bool:
        """Open and lock the file, and go to the mark; False if that would cut off bytes, which `cuts` must allow."""
        fd = _open_locked(self._staging.directories, self.name, os.O_RDWR | (0 if mark.offset else os.O_CREAT))
        # Assigned here: a caller that is cancelled meanwhile still finds it.
        self._file = UnfinishedFile(fd, space=self._staging.space, reservation=self._reservation)
        state = os.fstat(fd)
        if state.st_size < mark.offset or (state.st_nlink > 1 and self._is_published()):
            raise NotStored(self.name)
        if state.st_size > mark.offset and not cuts:
            return False
        self._go_to(mark)
        return True

    def _is_published(self) -> bool:
        """Whether the file has its key as well, after a crash where a rename is a link and an unlink."""
        return _names(self.key, self._staging.directories.shard_fd(self.key), self._opened())

    def _go_to(self, mark: Mark) -> None:
        file = self._opened()
        file.leave_direct()
        digest = digest_state.resumed(mark.digest_state, mark.offset)
        if digest is None:
            digest = digest_state.begun()
            read_through(file.fileno(), mark.offset, digest.update, stopped=self._staging.closing.is_set)
        file.go_to(mark.offset, digest)
        self._mark = Mark(mark.offset, digest.state())

    def _create(self, direct: bool) -> UnfinishedFile:
        file = self._opened()
        if direct:
            file.enter_direct()
        return file

    def _keep(self) -> None:
        self._write_held()
        file = self._opened()
        file.cut()
        if self._staging.durable:
            os.fsync(file.fileno())
            if self._mark.offset == 0:
                os.fsync(self._staging.directories.unfinished_fd)
        self._mark = Mark(file.written, file.digest.state())

    def _digest(self, algorithm: str) -> str:
        file = self._opened()
        if algorithm == "sha256" and file.written == self._mark.offset:
            return file.digest.hexdigest()
        digest = hashlib.new(algorithm)
        read_through(file.fileno(), self._mark.offset, digest.update, stopped=self._staging.closing.is_set)
        return digest.hexdigest()

    def _write_held(self) -> None:
        if self._held.size:
            for block in self._held.blocks:
                self._opened().write(block)

    def take_name(self) -> None:
        directories = self._staging.directories
        shard_fd = directories.shard_fd(self.key)
        try:
            if not self._is_named():
                raise FileNotFoundError(self.name)  # another file has taken the name
            syscalls.rename_new(self.name, self.key, old_dir_fd=directories.unfinished_fd, new_dir_fd=shard_fd)
        except FileNotFoundError as error:
            require(directories.unfinished_fd)
            require(shard_fd)
            raise Unavailable from error  # removed: another process goes on with the upload
        self.named = True
        os.fchmod(self._opened().fileno(), FILE_MODE)

    def lose_name(self) -> None:
        directories = self._staging.directories
        shard_fd = directories.shard_fd(self.key)
        os.chmod(self.key, _UNFINISHED_MODE, dir_fd=shard_fd)  # by its name, since its descriptor may be closed
        syscalls.rename_new(self.key, self.name, old_dir_fd=shard_fd, new_dir_fd=directories.unfinished_fd)

    def discard(self) -> None:
        """Close the file, which releases the lock; the file stays, up to its last mark.

        Bytes behind the mark do not count, and would keep a full disk full.
        """
        try:
            try:
                if self._file is not None and not self.finished and self._opened().length > self._mark.offset:
                    self._cut_off()
            finally:
                self.close()
        except OSError as error:
            log.error("unfinished file not released", key=self.key, error=reason(error))

    def _cut_off(self) -> None:
        if self._mark.offset:
            os.ftruncate(self._opened().fileno(), self._mark.offset)
        elif self._is_named():
            # btrfs over its quota refuses to truncate a file, but not to remove it; the next writer creates it anew.
            self._staging.directories.remove_unfinished_file(self.name)

    def _is_named(self) -> bool:
        """Whether the file still has its name, which another may have if this one was removed."""
        return _names(self.name, self._staging.directories.unfinished_fd, self._opened())

    def _opened(self) -> UnfinishedFile:
        assert isinstance(self._file, UnfinishedFile)
        return self._file
