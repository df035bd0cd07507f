"""Staged files: held in memory while they are small, then written in blocks to a staged name."""

import asyncio
import hashlib
import os
import threading
from collections.abc import Sequence
from concurrent.futures import Executor
from contextlib import suppress
from typing import Any, Final

import structlog

from app.cancellation import run_to_completion
from app.errors import Unavailable
from app.storage import is_key
from app.storage.local import syscalls
from app.storage.local.block_writer import BlockPool, BlockWriter, Digest, DigestingFile, SmallFile
from app.storage.local.free_space import Reserved, Space
from app.storage.local.io_errors import Trust, reason
from app.storage.local.layout import Directories
from app.storage.local.threads import in_thread

log = structlog.stdlib.get_logger("waybill.storage")

HELD_BYTES: Final = 256 * 1024
"""A file up to this size stays in memory until its commit group is published, which saves a thread hop."""
POOLED_BLOCKS: Final = 32
_SMALL_BLOCK: Final = 4096
FILE_MODE: Final = 0o440


class Staging:
    """The resources that staged files share: directories, blocks, threads. `live` are those that have not ended.

    `closing` is set when the store is about to close: long work stops then.
    """

    def __init__(
        self, directories: Directories, space: Space, trust: Trust, threads: Executor, *, durable: bool
    ) -> None:
        self.directories = directories
        self.durable = durable
        self.closing = threading.Event()
        self.space = space
        self.trust = trust
        self.threads = threads
        self.direct = False
        self.live: set[LocalStaged] = set()
        self._pool = BlockPool(POOLED_BLOCKS)

    def stage(self, key: str, reservation: Reserved | None, *, has_record: bool = False) -> "LocalStaged":
        if not is_key(key):
            raise ValueError("a key is a UUID in canonical text")
        self.trust.require()
        staged = LocalStaged(self, key, reservation, has_record=has_record)
        self.live.add(staged)
        return staged

    def create(self, name: str, reservation: Reserved | None, *, direct: bool) -> DigestingFile:
        fd = self._created(name, os.O_DIRECT if direct else 0)
        return DigestingFile(fd, direct=direct, space=self.space, reservation=reservation)

    def create_small(self, name: str, reservation: Reserved | None) -> SmallFile:
        return SmallFile(self._created(name, 0), space=self.space, reservation=reservation)

    def _created(self, name: str, more: int) -> int:
        flags = os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_NOFOLLOW | os.O_CLOEXEC | more
        return os.open(name, flags, FILE_MODE, dir_fd=self.directories.own_fd)

    def writer(self, file: DigestingFile) -> BlockWriter:
        block = self._pool.take()
        if block is None:
            file.leave_direct()
        return BlockWriter(file, self._pool, block, self.threads)

    def unlink(self, name: str) -> None:
        with suppress(FileNotFoundError):
            os.unlink(name, dir_fd=self.directories.own_fd)


class Held:
    """Bytes in memory, in the blocks in which they arrived; small ones are joined, so that they stay few."""

    def __init__(self) -> None:
        self.blocks: list[bytes | bytearray | memoryview] = []
        self.size = 0

    def add(self, block: bytes | memoryview) -> None:
        self.size += len(block)
        if len(block) >= _SMALL_BLOCK:
            self.blocks.append(block)
        elif self.blocks and isinstance(self.blocks[-1], bytearray):
            self.blocks[-1] += block
        else:
            self.blocks.append(bytearray(block))

    def digest(self) -> Digest:
        digest = hashlib.sha256()
        for block in self.blocks:
            digest.update(block)
        return digest


class LocalStaged:
    """A staged file. `finished` is true once all its bytes are in it, `named` from its rename on."""

    def __init__(self, staging: Staging, key: str, reservation: Reserved | None, *, has_record: bool = False) -> None:
        self.key = key
        self.has_record = has_record
        self.size = 0
        self.finished = False
        self.named = False
        self._staging = staging
        self._reservation = reservation
        self._held = Held()
        self._file: DigestingFile | SmallFile | None = None
        self._writer: BlockWriter | None = None
        self._writing = asyncio.Lock()
        self._sha256: str | None = None
        self._ending: asyncio.Future[Any] | None = None

    async def write(self, block: bytes | memoryview) -> None:
        self._require()
        self.size += len(block)
        held = self._held.size + len(block)
        if self._writer is None and held <= HELD_BYTES and self._staging.space.hold(len(block)):
            self._held.add(block)
            return
        async with self._writing:
            try:
                if self._writer is None:
                    await self._spill()
                assert self._writer is not None
                await self._writer.write(block)
            except OSError as error:
                raise self._staging.trust.refusal(error, self.key, self.size) from error

    async def _spill(self) -> None:
        """Move the bytes from memory to a file; they stay accounted as memory until they are written."""
        await run_to_completion(in_thread(self._staging.threads, self._create, self._staging.direct))
        assert isinstance(self._file, DigestingFile)
        self._writer = self._staging.writer(self._file)
        for block in self._held.blocks:
            await self._writer.write(block)
        self._release_memory()

    def _create(self, direct: bool) -> DigestingFile:
        # Assigned in the thread that creates it: a caller that is cancelled meanwhile still finds it.
        self._file = self._staging.create(self.key, self._reservation, direct=direct)
        return self._file

    async def finish(self) -> None:
        self._require()
        if self._writer is not None:
            async with self._writing:
                try:
                    await self._writer.finish()
                except OSError as error:
                    raise self._staging.trust.refusal(error, self.key, self.size) from error
        if self._file is not None and self._file.written != self.size:
            raise Unavailable  # an earlier error was ignored: bytes are missing
        self.finished = True

    def _require(self) -> None:
        if self.finished or self.ended:
            raise Unavailable  # aborted by another caller: the store is closing

    @property
    def sha256(self) -> str:
        if self._sha256 is None:
            digest = self._held.digest() if self._file is None else self._file.digest
            self._sha256 = digest.hexdigest()
        return self._sha256

    def held(self) -> Sequence[bytes | memoryview] | None:
        if self._file is not None or self.ended:
            return None
        return [bytes(block) if isinstance(block, bytearray) else block for block in self._held.blocks]

    async def abort(self) -> None:
        if self._ending is None:
            self._ending = asyncio.ensure_future(self._abort())
        if not self._ending.done():
            await run_to_completion(asyncio.wait((self._ending,)))
        if not self._ending.cancelled():  # at the end of the event loop; the thread goes on
            self._ending.result()

    async def _abort(self) -> None:
        async with self._writing:
            try:
                if self._writer is not None:
                    await self._writer.settle()
                if self._file is not None:
                    await in_thread(self._staging.threads, self.discard)
            finally:
                self.forget()

    @property
    def ended(self) -> bool:
        """Whether the file is, or is being, published or aborted."""
        return self._ending is not None

    def end_with(self, publishing: "asyncio.Future[Any]") -> None:
        """Register that the file is being published: an abort from here on only waits for that."""
        self._ending = publishing

    def forget(self) -> None:
        """Release memory; the file itself is published or gone."""
        self._release_memory()
        self._staging.live.discard(self)

    def _release_memory(self) -> None:
        self._staging.space.release_memory(self._held.size)
        self._held = Held()

    # Called in the thread that publishes:

    def to_disk(self) -> None:
        """Write all bytes to the file of this staged name."""
        if self._file is None:
            self._file = file = self._staging.create_small(self.key, self._reservation)
            for block in self._held.blocks:
                file.write(block)
            self._sha256 = file.digest.hexdigest()
        else:
            self._file.cut()

    def take_name(self) -> None:
        """Rename the file to its key, among the published files."""
        self._staging.directories.publish(self.key)
        self.named = True

    def lose_name(self) -> None:
        """Undo `take_name`: remove the file's final name."""
        self._staging.directories.remove(self.key)

    def flush(self) -> None:
        os.fsync(self._descriptor())

    def written_back(self) -> None:
        syscalls.written_back(self._descriptor())

    def close(self) -> None:
        if self._file is not None:
            self._file.close()

    def discard(self) -> None:
        """Remove the staged file, as far as the store still allows it; else the sweep does."""
        if self._file is None:
            return
        try:
            try:
                self._staging.unlink(self.key)
            finally:
                self._file.close()
        except OSError as error:
            log.error("a staged file could not be removed", key=self.key, error=reason(error))

    def _descriptor(self) -> int:
        assert self._file is not None
        return self._file.fileno()
