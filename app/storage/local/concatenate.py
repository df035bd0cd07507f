"""Concatenation of unfinished files: parts that were sent in parallel, or one file whose writer may still go on."""

import asyncio
import errno
import fcntl
import os
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import Executor
from contextlib import closing
from typing import Final

from app.cancellation import run_to_completion
from app.storage import InUse, Mark, NotStored, digest_state
from app.storage.local.block_writer import ALIGNMENT
from app.storage.local.free_space import Reserved
from app.storage.local.layout import unfinished_name
from app.storage.local.staged import Staging
from app.storage.local.threads import in_thread
from app.storage.local.unfinished import UnfinishedFile, bypass_cache, open_unfinished_file, read_through

_FICLONE: Final = 0x40049409
_CANNOT_SHARE: Final = {errno.EOPNOTSUPP, errno.ENOTTY, errno.ENOSYS, errno.EXDEV, errno.EINVAL, errno.EPERM}


async def assemble(
    staging: Staging,
    threads: Executor,
    name: tuple[str, int],
    parts: Sequence[tuple[str, int, Mark]],
    reservation: Reserved | None,
) -> Mark:
    """Assemble a file as `Storage.assemble` does, but raise OSErrors as they are."""
    left = threading.Event()
    assembly = Assembly(staging, unfinished_name(*name), reservation, lambda: left.is_set() or staging.closing.is_set())
    sources = [(unfinished_name(key, fence), mark) for key, fence, mark in parts]
    running = asyncio.ensure_future(in_thread(threads, assembly.run, sources))
    try:
        return await asyncio.shield(running)
    except asyncio.CancelledError:
        left.set()
        await run_to_completion(asyncio.wait((running,)))
        if not running.cancelled():
            running.exception()  # retrieved, so that asyncio does not report it
        raise


class Assembly:
    """The assembly in its thread, which takes as long as the parts are."""

    def __init__(self, staging: Staging, name: str, reservation: Reserved | None, stopped: Callable[[], bool]) -> None:
        self._staging = staging
        self._name = name
        self._reservation = reservation
        self._stopped = stopped

    def run(self, sources: Sequence[tuple[str, Mark]]) -> Mark:
        directories = self._staging.directories
        flags = os.O_RDWR | os.O_CREAT | os.O_EXCL
        try:
            fd = open_unfinished_file(directories, self._name, flags)
        except FileExistsError:
            raise InUse(self._name) from None
        with closing(UnfinishedFile(fd, space=self._staging.space, reservation=self._reservation)) as file:
            try:
                for name, mark in sources:
                    if mark.offset:
                        self._append(file, name, mark)
                file.cut()
                if self._staging.durable:
                    os.fsync(file.fileno())
                    os.fsync(directories.unfinished_fd)
            except BaseException:
                directories.remove_unfinished_file(self._name)
                raise
            return Mark(file.written, file.digest.state())

    def _append(self, file: UnfinishedFile, name: str, mark: Mark) -> None:
        """Append a part. The first one need not be digested when its digest is known."""
        source = open_unfinished_file(self._staging.directories, name, os.O_RDONLY)
        try:
            if os.fstat(source).st_size < mark.offset:
                raise NotStored(name)
            digest = digest_state.resumed(mark.digest_state, mark.offset) if file.written == 0 else None
            if digest is None:
                self._copy(file, source, mark.offset, file.write)
            else:
                if not _share(file, source):
                    self._copy(file, source, mark.offset, file.write_undigested)
                file.go_to(mark.offset, digest)
        finally:
            os.close(source)

    def _copy(self, file: UnfinishedFile, source: int, length: int, write: Callable[[memoryview], object]) -> None:
        if self._staging.direct:
            file.enter_direct()
            if file.written % ALIGNMENT == 0:  # else the memory cannot be aligned for both files
                bypass_cache(source, True)
        read_through(source, length, write, stopped=self._stopped, at=file.written)
        os.posix_fadvise(source, 0, length, os.POSIX_FADV_DONTNEED)  # this pass must not fill the cache


def _share(file: UnfinishedFile, source: int) -> bool:
    """Have two files share their blocks; False where the file system cannot.

    Not by copy_file_range, which would then copy through the page cache: that costs twice
    as much as reading, digesting and writing the bytes directly.
    """
    try:
        fcntl.ioctl(file.fileno(), _FICLONE, source)
    except OSError as error:
        if error.errno not in _CANNOT_SHARE:
            raise
        return False
    return True
