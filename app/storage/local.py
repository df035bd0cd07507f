"""A local directory as the store: files are staged, flushed, renamed, and read again.

Everything lies on one file system (`directories.py`), so that a rename publishes.
"""

import errno
import hashlib
import os
import stat
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, suppress
from pathlib import Path
from typing import Final, Literal, TypeVar, cast

import structlog
from aiofiles.os import wrap

from app.errors import StorageFull, TooLarge, Unavailable, Unusable, UploadError
from app.storage import Found, NotStored, Reservation, Staged, is_key, kernel
from app.storage.blocks import BlockPool, BlockWriter, DigestingFile
from app.storage.directories import SHARDS, Directories
from app.storage.space import Reserved, Space
from app.tasks import to_the_end

log = structlog.stdlib.get_logger("waybill.storage")
T = TypeVar("T")

HELD_BYTES: Final = 256 * 1024
"""A file up to this size stays in memory until its batch is published: a thread hop costs more than it."""
POOLED_BLOCKS: Final = 32
FLUSH_EACH: Final = 2
"""Up to so many files of a batch are flushed one by one; above, one flush of the file system is cheaper."""

_FINAL_MODE: Final = 0o440
_READ_AHEAD: Final = 256 * 1024
_DIGEST_BYTES: Final = 1024 * 1024


class LocalStaged:
    """One staged file: held in memory while it is small, then written in blocks."""

    def __init__(self, storage: "LocalStorage", key: str, reservation: Reserved | None) -> None:
        self.key = key
        self.size = 0
        self._storage = storage
        self._reservation = reservation
        self._held: list[bytes] = []
        self._held_bytes = 0
        self._file: DigestingFile | None = None
        self._writer: BlockWriter | None = None
        self._sha256: str | None = None
        self._ended = False

    async def write(self, block: bytes) -> None:
        self.size += len(block)
        if self._writer is None:
            if self.size <= HELD_BYTES and self._storage.space.hold(len(block)):
                self._held.append(block)
                self._held_bytes += len(block)
                return
            await self._spill()
            assert self._writer is not None
        try:
            await self._writer.write(block)
        except OSError as error:
            raise self._storage.refusal(error, self.size) from error
        if self._reservation:
            self._reservation.used(len(block))

    async def finish(self) -> None:
        if self._writer is not None:
            try:
                await self._writer.finish()
            except OSError as error:
                raise self._storage.refusal(error, self.size) from error

    @property
    def sha256(self) -> str:
        if self._sha256 is None:
            if self._file is not None:
                digest = self._file.digest
            else:
                digest = hashlib.sha256()
                for block in self._held:
                    digest.update(block)
            self._sha256 = digest.hexdigest()
        return self._sha256

    async def abort(self) -> None:
        if not self._ended:
            self._ended = True
            await to_the_end(self._abort())

    async def _abort(self) -> None:
        if self._writer is not None:
            await self._writer.settle()
        if self._file is not None:
            await self._storage.in_thread(self.discard)
        self.forget()

    async def _spill(self) -> None:
        """Move from memory to a file; what is held stays accounted for until it is written."""
        try:
            await to_the_end(self._storage.in_thread(self._create))
            assert self._file is not None
            self._writer = self._storage.writer(self._file)
            held, self._held = self._held, []
            for block in held:
                await self._writer.write(block)
        except OSError as error:
            raise self._storage.refusal(error, self.size) from error
        self._release_held()

    def _create(self) -> None:
        # Assigned in the thread that creates: a caller that was cancelled meanwhile still finds it.
        self._file = self._storage.create(self.key)

    # What follows runs in the batch's thread.

    def to_disk(self) -> None:
        """Have every byte in a file of this staged name."""
        if self._file is None:
            fd = self._storage.create_fd(self.key, direct=False)
            self._file = DigestingFile(fd, direct=False, before_write=self._storage.space.keep_floor)
            self._file.write(self._held[0] if len(self._held) == 1 else b"".join(self._held))
            self._sha256 = self._file.digest.hexdigest()

    def flush(self) -> None:
        assert self._file is not None
        os.fsync(self._file.fileno())

    def close(self) -> None:
        if self._file is not None:
            self._file.close()

    def discard(self) -> None:
        """Remove the staged file, if there is one."""
        if self._file is not None:
            self._storage.unlink_staged(self.key)
            try:
                self._file.close()
            except OSError as error:
                log.warning("closing a discarded file failed", key=self.key, error=os.strerror(error.errno or 0))

    # And this on the event loop again.

    def forget(self) -> None:
        """Give back memory and space; the file itself is published or gone."""
        self._ended = True
        self._held = []
        self._release_held()

    def _release_held(self) -> None:
        self._storage.space.let_go(self._held_bytes)
        if self._reservation:
            self._reservation.used(self._held_bytes)
        self._held_bytes = 0


class LocalStored:
    """A published file, open for reading. A small one has been read whole and holds no descriptor."""

    def __init__(self, storage: "LocalStorage", fd: int | None, size: int, start: bytes) -> None:
        self.size = size
        self._storage = storage
        self._fd = fd
        self._start = start

    async def read(self, offset: int, length: int) -> bytes:
        if offset + length <= len(self._start) or self._fd is None:
            return self._start[offset : offset + length]
        return await to_the_end(self._storage.in_thread(os.pread, self._fd, length, offset))

    async def close(self) -> None:
        if self._fd is not None:
            fd, self._fd = self._fd, None
            os.close(fd)


class LocalStorage:
    """The local directory.

    `min_free` bytes of its file system are never used. With `durability="fast"` nothing is
    flushed: files are still whole or absent after a crash of the service, not after a
    power cut. `owner` names this process's staging directory and is held by a lock for
    life, so that nobody sweeps it.
    """

    def __init__(self, root: Path, *, owner: str, min_free: int, durability: Literal["full", "fast"] = "full") -> None:
        self._directories = Directories(root, owner)
        self._durable = durability == "full"
        self._direct = False
        self._fault: str | None = None
        self.space = Space(min_free)
        self._pool = BlockPool(POOLED_BLOCKS)
        self._threads = ThreadPoolExecutor(8, "waybill-files")
        self._publishing = ThreadPoolExecutor(2, "waybill-publish")

    async def prepare(self) -> None:
        await to_the_end(self.in_thread(self._prepare))

    def _prepare(self) -> None:
        try:
            self._directories.open()
            self.space.watch(self._directories.root_fd)
            self._direct = self._takes_direct_writes()
            self._test()
        except UploadError as error:
            self._directories.close()
            raise Unusable(f"{self._directories.root} cannot be used: {error}") from error
        except OSError as error:
            self._directories.close()
            path = error.filename or self._directories.root
            raise Unusable(f"{path} cannot be used: {error.strerror}") from error

    def _takes_direct_writes(self) -> bool:
        flags = os.O_CREAT | os.O_WRONLY | os.O_DIRECT | os.O_CLOEXEC
        try:
            fd = os.open("direct", flags, 0o600, dir_fd=self._directories.own_fd)
        except OSError as error:
            if error.errno != errno.EINVAL:
                raise
            log.info("the file system takes no direct writes; large files go through the page cache")
            return False
        finally:
            _unlink("direct", self._directories.own_fd)
        os.close(fd)
        return True

    async def close(self) -> None:
        await to_the_end(self.in_thread(self._directories.close))
        self._threads.shutdown()
        self._publishing.shutdown()

    # --- space and trust

    def reserve(self, size: int) -> Reservation:
        return self.space.reserve(size)

    async def free_bytes(self) -> int | None:
        return self.space.recent()

    def refusal(self, error: OSError, size: int) -> UploadError:
        """What an I/O error means for the upload that met it; it may end the trust in the store."""
        if error.errno in {errno.ENOSPC, errno.EDQUOT}:
            return StorageFull()
        if error.errno == errno.EFBIG:
            return TooLarge(size, size - 1)
        if error.errno in {errno.EMFILE, errno.ENFILE}:
            log.error("out of file descriptors")
            return Unavailable()
        self._fault = os.strerror(error.errno or errno.EIO)
        log.error("the store failed; no upload is taken until a test passes", error=self._fault)
        return Unavailable()

    async def test(self) -> None:
        await to_the_end(self._in(self._publishing, self._test))

    def _test(self) -> None:
        name = self._directories.owner  # no other process tests with the same
        try:
            _unlink(name, self._directories.own_fd)
            fd = self.create_fd(name, direct=False)
            try:
                self.space.keep_floor(1)
                os.write(fd, b"waybill")
                os.fsync(fd)
            finally:
                os.close(fd)
            shard_fd = self._directories.shard_fd(name)
            _unlink(name, shard_fd)
            kernel.rename_new(name, name, old_dir_fd=self._directories.own_fd, new_dir_fd=shard_fd)
            os.fsync(shard_fd)
            _unlink(name, shard_fd)
        except OSError as error:
            if error.errno in {errno.ENOSPC, errno.EDQUOT}:
                raise StorageFull from error
            raise Unavailable(f"the store failed its test: {error.strerror}") from error
        if self._fault is not None:
            log.info("the store passed its test and is trusted again")
            self._fault = None

    # --- staging

    def stage(self, key: str, reservation: Reservation | None = None) -> LocalStaged:
        if not is_key(key):
            raise ValueError("a key is a UUID in canonical text")
        if self._fault is not None:
            raise Unavailable
        assert reservation is None or isinstance(reservation, Reserved)
        return LocalStaged(self, key, reservation)

    def create(self, key: str) -> DigestingFile:
        fd = self.create_fd(key, direct=self._direct)
        return DigestingFile(fd, direct=self._direct, before_write=self.space.keep_floor)

    def create_fd(self, key: str, *, direct: bool) -> int:
        flags = os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_NOFOLLOW | os.O_CLOEXEC | (os.O_DIRECT if direct else 0)
        return os.open(key, flags, _FINAL_MODE, dir_fd=self._directories.own_fd)

    def writer(self, file: DigestingFile) -> BlockWriter:
        pair = self._pool.take_pair() if self._direct else None
        if pair is None and self._direct:
            file.leave_direct()
        return BlockWriter(file, self._pool, pair, self._threads)

    def unlink_staged(self, key: str) -> None:
        _unlink(key, self._directories.own_fd)

    # --- publishing

    async def publish(self, batch: Sequence[Staged]) -> Mapping[str, UploadError]:
        own = cast("Sequence[LocalStaged]", batch)  # nobody publishes here what was staged elsewhere
        try:
            return await to_the_end(self._in(self._publishing, self._publish, own))
        finally:
            for staged in own:
                staged.forget()

    def _publish(self, batch: Sequence[LocalStaged]) -> dict[str, UploadError]:
        """Stage → data durable → rename → names durable. The order may never change.

        A rename before the data is durable can come back from a power cut as an empty
        file under its final name. A flush that fails is final for every file it covered:
        the kernel forgets the error and the next flush would lie, so it is never repeated.
        """
        refused: dict[str, UploadError] = {}
        written = self._attempt(batch, LocalStaged.to_disk, refused)
        if written and self._durable:
            written = self._flush(written, refused, self._flush_data)
        renamed = self._attempt(written, self._rename, refused)
        if renamed and self._durable:
            renamed = self._flush(renamed, refused, self._flush_names)
        self._attempt(renamed, LocalStaged.close, refused)
        return refused

    def _attempt(
        self, batch: Sequence[LocalStaged], step: Callable[[LocalStaged], None], refused: dict[str, UploadError]
    ) -> list[LocalStaged]:
        """Do one step for each file; those that fail are refused and removed."""
        passed = []
        for staged in batch:
            try:
                step(staged)
            except OSError as error:
                refused[staged.key] = self.refusal(error, staged.size)
                self._drop(staged)
            else:
                passed.append(staged)
        return passed

    def _flush(
        self,
        batch: list[LocalStaged],
        refused: dict[str, UploadError],
        flush: Callable[[Sequence[LocalStaged]], None],
    ) -> list[LocalStaged]:
        try:
            flush(batch)
        except OSError as error:
            for staged in batch:
                refused[staged.key] = self.refusal(error, staged.size)
                self._drop(staged)
            return []
        return batch

    def _flush_data(self, batch: Sequence[LocalStaged]) -> None:
        if len(batch) > FLUSH_EACH:
            kernel.syncfs(self._directories.root_fd)
        else:
            for staged in batch:
                staged.flush()

    def _flush_names(self, batch: Sequence[LocalStaged]) -> None:
        if len(batch) > FLUSH_EACH:
            kernel.syncfs(self._directories.root_fd)
        else:
            for shard_fd in {self._directories.shard_fd(staged.key) for staged in batch}:
                os.fsync(shard_fd)

    def _rename(self, staged: LocalStaged) -> None:
        key = staged.key
        kernel.rename_new(key, key, old_dir_fd=self._directories.own_fd, new_dir_fd=self._directories.shard_fd(key))

    def _drop(self, staged: LocalStaged) -> None:
        """Remove a refused file from wherever it got to, as far as the store still lets us."""
        try:
            staged.discard()
            _unlink(staged.key, self._directories.shard_fd(staged.key))
        except OSError as error:
            log.error("a refused file could not be removed", key=staged.key, error=error.strerror)

    # --- published files

    async def open(self, key: str) -> LocalStored:
        return await to_the_end(self.in_thread(self._open, key))

    def _open(self, key: str) -> LocalStored:
        fd = self._open_fd(key)
        try:
            size = os.fstat(fd).st_size
            if size > _READ_AHEAD:
                kept, fd = fd, -1
                return LocalStored(self, kept, size, b"")
            return LocalStored(self, None, size, os.pread(fd, size, 0))
        finally:
            if fd >= 0:
                os.close(fd)

    def _open_fd(self, key: str) -> int:
        """Open what is stored under the key; a link, a pipe or a directory there is not a stored file."""
        if not is_key(key):
            raise NotStored(key)
        flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
        try:
            fd = os.open(key, flags, dir_fd=self._directories.shard_fd(key))
        except OSError as error:
            if error.errno in {errno.ENOENT, errno.ELOOP, errno.ENXIO}:
                raise NotStored(key) from error
            raise Unavailable from error
        if not stat.S_ISREG(os.fstat(fd).st_mode):
            os.close(fd)
            raise NotStored(key)
        return fd

    async def digest(self, key: str) -> tuple[int, str]:
        return await to_the_end(self.in_thread(self._digest, key))

    def _digest(self, key: str) -> tuple[int, str]:
        with os.fdopen(self._open_fd(key), "rb", buffering=0) as file:
            digest = hashlib.sha256()
            size = 0
            while block := file.read(_DIGEST_BYTES):
                digest.update(block)
                size += len(block)
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)  # nobody asked for it to be cached
        return size, digest.hexdigest()

    async def remove(self, keys: Sequence[str]) -> None:
        def run() -> None:
            for key in keys:
                _unlink(key, self._directories.shard_fd(key))

        await to_the_end(self.in_thread(run))

    async def set_aside(self, keys: Sequence[str]) -> None:
        def run() -> None:
            for key in keys:
                self._directories.set_aside(key)

        await to_the_end(self.in_thread(run))

    async def walk(self, grace_seconds: float) -> AsyncIterator[list[Found]]:
        before = await self.in_thread(self._directories.now) - grace_seconds
        for shard in SHARDS:
            yield await self.in_thread(self._directories.found_in, shard, before)

    async def missing(self, keys: Sequence[str]) -> list[str]:
        return await self.in_thread(self._directories.missing, keys)

    async def strays(self) -> list[str]:
        return await self.in_thread(self._directories.strays)

    async def sweep(self, keep_aside_seconds: float) -> int:
        def run() -> int:
            return self._directories.remove_stale() + self._directories.empty_trash(keep_aside_seconds)

        return await to_the_end(self.in_thread(run))

    def sole_sweeper(self) -> AbstractContextManager[bool]:
        return self._directories.sole_sweeper()

    # --- threads

    async def in_thread(self, work: Callable[..., T], *arguments: object) -> T:
        return await self._in(self._threads, work, *arguments)

    async def _in(self, threads: ThreadPoolExecutor, work: Callable[..., T], *arguments: object) -> T:
        result: T = await wrap(work)(*arguments, executor=threads)
        return result


def _unlink(name: str, directory: int) -> None:
    with suppress(FileNotFoundError):
        os.unlink(name, dir_fd=directory)
