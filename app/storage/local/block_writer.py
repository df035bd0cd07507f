"""The block writer: large files are written in large aligned blocks, each digested in the thread hop that writes it.

Measured: page-cache writes cost 0.25 to 2.4 CPU seconds a GiB, and the flush has to wait
for them; direct writes of 1 MiB from aligned memory cost 0.05 to 0.1 and leave nothing to
flush. While one block is digested and written, the next one fills; and in a long file the
disk writes a block while the processor digests it.
"""

import asyncio
import fcntl
import hashlib
import io
import mmap
import os
import threading
from concurrent.futures import Executor
from typing import Final, Protocol

from aiofiles.threadpool import wrap

from app.cancellation import run_to_completion
from app.storage.local import aio, syscalls
from app.storage.local.free_space import Reserved, Space

BLOCK_BYTES: Final = 1024 * 1024
ALIGNMENT: Final = 4096
_WRITEBACK_BYTES: Final = 8 * 1024 * 1024
_AHEAD_BYTES: Final = 64 * 1024 * 1024
"""A long file is extended by so much at a time, since ext4 waits for direct writes that extend it; see `cut`."""


class Digest(Protocol):
    def update(self, block: memoryview | bytes | bytearray, /) -> object: ...

    def hexdigest(self) -> str: ...


class BlockPool:
    """A pool of at most `blocks` page-aligned blocks, allocated once and lent."""

    def __init__(self, blocks: int) -> None:
        self._unmade = blocks
        self._free: list[mmap.mmap] = []

    def take(self) -> mmap.mmap | None:
        """Lend a block; None when all are lent."""
        if self._free:
            return self._free.pop()
        if not self._unmade:
            return None
        self._unmade -= 1
        return mmap.mmap(-1, BLOCK_BYTES)

    def give_back(self, block: mmap.mmap) -> None:
        self._free.append(block)


class DigestingFile(io.FileIO):
    """A file whose `write` digests and writes everything it is given, in order, in one call.

    `write` raises ENOSPC rather than use the minimum of free space. `close` waits for a
    `write` in another thread: a descriptor that is closed under a thread may be another
    upload's a moment later.
    """

    def __init__(self, fd: int, *, direct: bool, space: Space, reservation: Reserved | None) -> None:
        self._busy = threading.Lock()
        super().__init__(fd, "wb")
        self._direct = direct
        self._space = space
        self._reservation = reservation
        self.written = 0
        self.length = 0
        self.digest: Digest = hashlib.sha256()

    def write(self, block: "memoryview | bytes | bytearray") -> int:  # type: ignore[override]  # FileIO takes any buffer
        view = memoryview(block)
        with self._busy:
            fd = self.fileno()
            claimed = self._space.begin_write(len(view), self._reservation)
            try:
                self._digest_and_write(fd, view)
            finally:
                self._space.end_write(claimed)
        return len(view)

    def close(self) -> None:
        with self._busy:
            super().close()

    def cut(self) -> None:
        """Truncate the file to its bytes, which ends its extension in advance."""
        if self.length > self.written:
            os.ftruncate(self.fileno(), self.written)
            self.length = self.written

    def _digest_and_write(self, fd: int, view: memoryview) -> None:
        pending = self._begin_write(fd, view)
        try:
            self.digest.update(view)
        finally:
            count = 0 if pending is None else pending.wait()
        if count:
            os.lseek(fd, count, os.SEEK_CUR)
            self._wrote(count)
        self._write_all(fd, view[count:])

    def _begin_write(self, fd: int, view: memoryview) -> aio.PendingWrite | None:
        """Begin to write a block of a long file; None for any other, which is to be written afterwards."""
        if len(view) < BLOCK_BYTES or self.written < BLOCK_BYTES or not self._bypasses():
            return None
        if self.written + len(view) > self.length:
            try:
                os.ftruncate(fd, self.written + _AHEAD_BYTES)
            except OSError:
                return None  # a limit is near, and the write itself will show whether it is met
            self.length = self.written + _AHEAD_BYTES
        return aio.begin_write(fd, view, self.written)

    def _bypasses(self) -> bool:
        """Whether a full block bypasses the page cache now."""
        return self._direct and self.written % ALIGNMENT == 0

    def _write_all(self, fd: int, view: memoryview) -> None:
        while view:
            piece = view
            if self._direct:
                # Only the end of a file is not aligned, and the rest of a write that the
                # kernel cuts short. Those bytes go through the page cache and become durable
                # with the flush that publishes the file.
                aligned = len(view) - len(view) % ALIGNMENT
                if aligned and self.written % ALIGNMENT == 0:
                    piece = view[:aligned]
                else:
                    self.leave_direct()
            count = os.write(fd, piece)
            view = view[count:]
            self._wrote(count)

    def _wrote(self, count: int) -> None:
        if not self._direct and (self.written + count) // _WRITEBACK_BYTES > self.written // _WRITEBACK_BYTES:
            self._keep_dirty_pages_few()
        self.written += count
        self.length = max(self.length, self.written)

    def leave_direct(self) -> None:
        """Write through the page cache from here on; pieces need no alignment then."""
        flags = fcntl.fcntl(self.fileno(), fcntl.F_GETFL)
        fcntl.fcntl(self.fileno(), fcntl.F_SETFL, flags & ~os.O_DIRECT)
        self._direct = False

    def _keep_dirty_pages_few(self) -> None:
        """Start writeback early, lest the flush of another, small file wait for all dirty pages of this one."""
        end = self.written // _WRITEBACK_BYTES * _WRITEBACK_BYTES
        syscalls.start_writeback(self.fileno(), max(0, end - _WRITEBACK_BYTES), 2 * _WRITEBACK_BYTES)
        os.posix_fadvise(self.fileno(), 0, max(0, end - _WRITEBACK_BYTES), os.POSIX_FADV_DONTNEED)


class SmallFile:
    """A file whose bytes are all there before it is made: written by the thread that publishes it.

    It is no `io` object, and so makes fewer system calls, at each of which that thread and the event loop would
    take turns with the interpreter.
    """

    def __init__(self, fd: int, *, space: Space, reservation: Reserved | None) -> None:
        self._fd = fd
        self._space = space
        self._reservation = reservation
        self.written = 0
        self.digest: Digest = hashlib.sha256()

    def write(self, block: "memoryview | bytes | bytearray") -> int:
        """Write all of the block; raises ENOSPC rather than use the minimum of free space."""
        claimed = self._space.begin_write(len(block), self._reservation)
        try:
            self.digest.update(block)
            count = os.write(self._fd, block)
            while count < len(block):
                count += os.write(self._fd, memoryview(block)[count:])
        finally:
            self._space.end_write(claimed)
        self.written += count
        return count

    def fileno(self) -> int:
        return self._fd

    def cut(self) -> None:
        """Do nothing: it is as long as its bytes."""

    def close(self) -> None:
        fd, self._fd = self._fd, -1
        if fd >= 0:
            os.close(fd)


class BlockWriter:
    """A writer of one file from the event loop, block by block, with network and disk in parallel.

    With a block `write` returns as soon as its bytes are copied or handed to a thread; an
    error of a write in the background is raised by the next call. A file longer than a block
    fills a second one meanwhile, if the pool has one. Without a block (the pool is bounded)
    every piece is written as it comes. `settle` ends a file that is abandoned, at any point.
    """

    def __init__(self, file: DigestingFile, pool: BlockPool, block: mmap.mmap | None, executor: Executor) -> None:
        self._file = wrap(file, executor=executor)
        self._pool = pool
        self._blocks = [] if block is None else [block]  # all borrowed blocks
        self._filling = block  # None: the next block is still to be chosen
        # A block is aligned in memory as in the file, where it may begin elsewhere than at the block's start.
        self._begun = self._filled = file.written % ALIGNMENT
        self._behind: asyncio.Task[int] | None = None

    async def write(self, piece: bytes | bytearray | memoryview) -> None:
        if not self._blocks:
            await run_to_completion(self._file.write(piece))
            return
        view = memoryview(piece)
        while view:
            block = self._filling or await self._next_block()
            count = min(len(view), BLOCK_BYTES - self._filled)
            block[self._filled : self._filled + count] = view[:count]
            self._filled += count
            view = view[count:]
            if self._filled == BLOCK_BYTES:
                await self._turn()

    async def flush(self) -> None:
        """Write all buffered bytes; they are in the file and in its digest when this returns."""
        if self._filled > self._begun:
            await self._turn()
        await self._wait_behind()

    async def finish(self) -> None:
        """Write the last bytes."""
        await self.flush()
        self._release()

    async def settle(self) -> None:
        """Wait for the thread, whatever its outcome, and return the blocks."""
        if self._behind is not None:
            await asyncio.wait((self._behind,))
            if not self._behind.cancelled():
                self._behind.exception()  # the file is abandoned, so the error is of no interest
            self._behind = None
        self._release()

    async def _next_block(self) -> mmap.mmap:
        """Choose a block that no thread reads any more."""
        if len(self._blocks) == 1:
            spare = self._pool.take()
            if spare is None:
                await self._wait_behind()
            else:
                self._blocks.append(spare)
        self._blocks.reverse()  # the other one, if there are two: the last one handed over is still being written
        self._filling = self._blocks[0]
        return self._filling

    async def _turn(self) -> None:
        await self._wait_behind()
        assert self._filling is not None
        full = memoryview(self._filling)[self._begun : self._filled]
        self._behind = asyncio.ensure_future(self._file.write(full))
        self._filling = None
        self._begun = self._filled = self._filled % ALIGNMENT

    async def _wait_behind(self) -> None:
        if self._behind is not None:
            behind, self._behind = self._behind, None
            try:
                await asyncio.shield(behind)
            except asyncio.CancelledError:
                self._behind = behind  # a thread still reads the block: `settle` waits for it
                raise

    def _release(self) -> None:
        while self._blocks:
            self._pool.give_back(self._blocks.pop())
        self._filling = None
