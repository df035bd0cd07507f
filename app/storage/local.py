"""A local directory as the store: files are staged, flushed, renamed, and read again.

Everything lies on one file system (`directories.py`), so that a rename publishes.
"""

import asyncio
import errno
import mmap
import os
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path
from typing import Final, Literal, TypeVar, cast

import structlog

from app.errors import StorageFull, Unavailable, Unusable, UploadError
from app.metrics import Metrics
from app.storage import Found, FoundPartial, Mark, Pace, Reservation, Staged, Work, kernel, running_digest
from app.storage.assembly import assemble
from app.storage.blocks import ALIGNMENT, DigestingFile
from app.storage.directories import SHARDS, Directories, partial_name
from app.storage.partial import LocalPartial
from app.storage.space import Reserved, Space
from app.storage.staging import LocalStaged, Staging
from app.storage.stored import Inspection, LocalStored, make_durable, open_at_hand, open_stored
from app.storage.threads import in_thread
from app.storage.trust import FULL, Trust, reason
from app.tasks import to_the_end

log = structlog.stdlib.get_logger("waybill.storage")
T = TypeVar("T")

FLUSH_EACH: Final = 2
"""Up to so many files of a batch are flushed one by one; above, one flush of the file system is cheaper."""
_SLICE: Final = 1000


class LocalStorage:
    """The local directory.

    `min_free` bytes of its file system are never used. With `durability="fast"` nothing is
    flushed: files are still whole or absent after a crash of the service, and partial files
    keep what has a mark, but not so after a power cut. `owner`, a key, names this process's
    staging directory and is held by a lock for life, so that nobody sweeps it.
    """

    def __init__(
        self,
        root: Path,
        *,
        owner: str,
        min_free: int,
        durability: Literal["full", "fast"] = "full",
        metrics: Metrics | None = None,
    ) -> None:
        self._metrics = Metrics() if metrics is None else metrics
        self.space = Space(min_free)
        self._directories = Directories(root, owner)
        self._trust = Trust()
        self._threads = ThreadPoolExecutor(8, "waybill-files")
        # One thread: an error that syncfs tells must reach the batch that it is about.
        self._publishing = ThreadPoolExecutor(1, "waybill-publish")
        # One thread, and its own: tests of a disk that hangs wait for each other and for nobody's upload.
        self._testing = ThreadPoolExecutor(1, "waybill-test")
        # Few, and their own: copying takes long, and nobody's blocks wait for it.
        self._copying = ThreadPoolExecutor(2, "waybill-copy")
        durable = durability == "full"
        self._staging = Staging(self._directories, self.space, self._trust, self._threads, durable=durable)
        self._closed = False

    async def prepare(self) -> None:
        await to_the_end(in_thread(self._testing, self._prepare))

    def _prepare(self) -> None:
        opened = False
        try:
            opened = self._directories.open()
            self.space.watch(self._directories.root_fd)
            self._staging.direct = self._takes_direct_writes()
            self._test()
        except StorageFull:
            log.warning("no space is left above the floor; uploads are refused until there is")
        except (OSError, Unavailable) as error:
            if opened:
                self._directories.close()
            what = reason(error) if isinstance(error, OSError) else error
            raise Unusable(f"{self._directories.root} cannot be used: {what}") from error

    def _takes_direct_writes(self) -> bool:
        """Whether large files may go past the page cache; some file systems refuse only the write itself."""
        try:
            with self._scratch("direct", direct=True) as file, mmap.mmap(-1, ALIGNMENT) as block:
                os.write(file.fileno(), block)
        except OSError as error:
            if error.errno not in {errno.EINVAL, errno.EOPNOTSUPP, *FULL}:
                raise
            log.info("large files go through the page cache", reason=reason(error))
            return False
        return True

    @contextmanager
    def _scratch(self, name: str, *, direct: bool = False) -> Iterator[DigestingFile]:
        """A staged file of the store's own, removed in the end."""
        self._staging.unlink(name)
        try:
            with closing(self._staging.create(name, None, direct=direct)) as file:
                yield file
        finally:
            self._staging.unlink(name)

    async def close(self) -> None:
        self._closed = True
        self._staging.closing.set()
        await to_the_end(self._close())

    async def _close(self) -> None:
        for staged in list(self._staging.live):
            await staged.abort()

        def run() -> None:
            for threads in (self._threads, self._publishing, self._testing, self._copying):
                threads.shutdown()
            self._directories.close()  # and not before: a descriptor may be in use

        await asyncio.to_thread(run)

    # --- space and trust

    def reserve(self, size: int) -> Reservation:
        self._require()
        try:
            return self.space.reserve(size)
        except OSError as error:
            raise _unanswered("reserve", error) from error

    async def free_bytes(self) -> int | None:
        with self._asked("free_bytes"):
            return self.space.free_bytes()

    def staged_bytes(self) -> int:
        return sum(staged.size for staged in self._staging.live)

    async def test(self) -> None:
        with self._asked("test"):
            await to_the_end(in_thread(self._testing, self._test))

    def _test(self) -> None:
        fault = self._trust.fault
        try:
            if fault is not None:
                # What the kernel has yet to tell about the old fault is told here, not to the next batch.
                kernel.syncfs(self._directories.root_fd)
            self._try_out()
        except OSError as error:
            if error.errno in FULL:
                raise StorageFull from error
            raise Unavailable(f"the store failed its test: {reason(error)}") from error
        self._trust.restore(fault)

    def _try_out(self) -> None:
        """Do once what every upload relies on; nothing of it stays."""
        name = self._directories.owner  # no other process tests with the same
        shard_fd = self._directories.shard_fd(name)
        with self._scratch(name) as file:
            file.write(b"waybill")
            os.fsync(file.fileno())
            self._directories.remove(name)
            try:
                self._directories.publish(name)
                os.fsync(shard_fd)
            finally:
                self._directories.remove(name)
            os.fsync(shard_fd)  # or a power cut brings it back, as a file without a record

    # --- staging and publishing

    def stage(self, key: str, reservation: Reservation | None = None) -> LocalStaged:
        assert reservation is None or isinstance(reservation, Reserved)
        self._require()
        return self._staging.stage(key, reservation)

    async def publish(self, batch: Sequence[Staged]) -> Mapping[str, UploadError]:
        files = cast("Sequence[LocalStaged]", batch)  # by `stage`
        whole = [staged for staged in files if staged.finished and not staged.ended]
        refused: dict[str, UploadError] = {}
        if len(whole) < len(files):
            for staged in set(files).difference(whole):
                refused[staged.key] = Unavailable()
                await staged.abort()
        if whole:
            publishing = asyncio.ensure_future(self._publish_and_forget(whole))
            for staged in whole:
                staged.end_with(publishing)
            refused.update(await to_the_end(publishing))
        return refused

    async def _publish_and_forget(self, batch: Sequence[LocalStaged]) -> Mapping[str, UploadError]:
        refused = await in_thread(self._publishing, self._publish, batch)
        for staged in batch:
            staged.forget()
        return refused

    def _publish(self, batch: Sequence[LocalStaged]) -> dict[str, UploadError]:
        """Stage → data durable → rename → names durable. The order may never change.

        A rename before the data is durable can come back from a power cut as an empty
        file under its final name. A flush that fails is final for every file it covered:
        the kernel forgets the error and the next flush would lie, so it is never repeated.
        """
        refused: dict[str, UploadError] = {}
        written = self._each(batch, LocalStaged.to_disk, refused)
        if written and self._staging.durable:
            written = self._together(written, self._flush_data, refused)
        renamed = self._each(written, self._rename, refused)
        if renamed and self._staging.durable:
            renamed = self._together(renamed, self._flush_names, refused)
        self._each(renamed, LocalStaged.close, refused)
        return refused

    def _each(
        self, batch: Sequence[LocalStaged], step: Callable[[LocalStaged], None], refused: dict[str, UploadError]
    ) -> list[LocalStaged]:
        """Do one step for each file; those that fail are refused and removed."""
        passed = []
        for staged in batch:
            try:
                step(staged)
            except Exception as error:
                self._refuse(staged, error, refused)
            else:
                passed.append(staged)
        return passed

    def _together(
        self,
        batch: list[LocalStaged],
        step: Callable[[Sequence[LocalStaged]], None],
        refused: dict[str, UploadError],
    ) -> list[LocalStaged]:
        """Do one step for all of them; if it fails all are refused and removed."""
        try:
            step(batch)
        except Exception as error:
            for staged in batch:
                self._refuse(staged, error, refused)
            return []
        return batch

    def _refuse(self, staged: LocalStaged, error: Exception, refused: dict[str, UploadError]) -> None:
        refused[staged.key] = self._trust.refusal(error, staged.key, staged.size)
        if staged.named:  # under a name that it did not get, another file may lie
            try:
                staged.lose_name()
            except OSError as problem:
                log.error("a refused file keeps its name", key=staged.key, error=reason(problem))
        staged.discard()

    def _flush_data(self, batch: Sequence[LocalStaged]) -> None:
        began = self._metrics.stopwatch()
        if len(batch) > FLUSH_EACH:
            kernel.syncfs(self._directories.root_fd)
            for staged in batch:
                staged.written_back()
        else:
            for staged in batch:
                staged.flush()
        self._metrics.stages["data_flush"].observe(self._metrics.stopwatch() - began)

    def _rename(self, staged: LocalStaged) -> None:
        staged.take_name()

    def _flush_names(self, batch: Sequence[LocalStaged]) -> None:
        began = self._metrics.stopwatch()
        if len(batch) > FLUSH_EACH:
            kernel.syncfs(self._directories.root_fd)
        else:
            for shard_fd in {self._directories.shard_fd(staged.key) for staged in batch}:
                os.fsync(shard_fd)
        self._metrics.stages["names_flush"].observe(self._metrics.stopwatch() - began)

    # --- partial files

    async def partial(
        self,
        key: str,
        fence: int,
        mark: Mark,
        reservation: Reservation | None = None,
        *,
        confirm: Callable[[], Awaitable[None]] | None = None,
    ) -> LocalPartial:
        assert reservation is None or isinstance(reservation, Reserved)
        self._trust.require()
        partial = LocalPartial(self._staging, key, fence, reservation)
        at_hand = running_digest.resumed(mark.digest_state, mark.offset) is not None
        with self._asked("partial"):
            self._staging.live.add(partial)
            try:
                await partial.open(mark, self._threads if at_hand else self._copying, confirm)
            except BaseException:
                await partial.detach()
                raise
        return partial

    async def assemble(
        self, key: str, fence: int, parts: Sequence[tuple[str, int, Mark]], reservation: Reservation | None = None
    ) -> Mark:
        assert reservation is None or isinstance(reservation, Reserved)
        self._trust.require()
        with self._asked("assemble"):
            try:
                return await assemble(self._staging, self._copying, (key, fence), parts, reservation)
            except OSError as error:
                raise self._trust.refusal(error, key, sum(mark.offset for _, _, mark in parts)) from error

    async def remove_partials(self, names: Sequence[tuple[str, int]]) -> None:
        await self._ask(_for_each, self._directories.remove_partial, [partial_name(*name) for name in names])

    async def partials(self, grace_seconds: float) -> AsyncIterator[list[FoundPartial]]:
        before = await self._ask(self._directories.now) - grace_seconds
        names = await self._ask(self._directories.partials)
        for at in range(0, len(names), _SLICE):
            yield await self._ask(self._directories.found_partials, names[at : at + _SLICE], before)

    # --- published files

    async def open(self, key: str) -> LocalStored:
        with self._asked("open"):
            at_hand = open_at_hand(key, self._directories, self._threads)
        return at_hand if at_hand is not None else await self._ask(open_stored, key, self._directories, self._threads)

    async def digest(self, key: str, pace: Pace | None = None) -> tuple[int, str]:
        inspection = Inspection(key, self._directories)
        try:
            while not inspection.ended:
                with self._asked("digest"):
                    count = await to_the_end(in_thread(self._copying, inspection.step))
                if pace is not None:
                    await pace(count)
        finally:
            inspection.close()
        return inspection.size, inspection.sha256

    async def make_durable(self, key: str) -> None:
        try:
            await self._ask(make_durable, key, self._directories, self._staging.durable)
        except Unavailable as error:
            if isinstance(error.__cause__, OSError):
                raise self._trust.refusal(error.__cause__, key, 0) from error
            raise

    async def remove(self, keys: Sequence[str]) -> None:
        await self._ask(_for_each, self._directories.remove, keys)

    async def set_aside(self, keys: Sequence[str]) -> None:
        await self._ask(_for_each, self._directories.set_aside, keys)

    async def walk(self, grace_seconds: float) -> AsyncIterator[list[Found]]:
        before = await self._ask(self._directories.now) - grace_seconds
        crashes = await self._ask(self._directories.crashes)
        for shard in SHARDS:
            yield await self._ask(self._directories.found_in, shard, before, crashes)

    async def missing(self, keys: Sequence[str]) -> list[str]:
        return await self._ask(self._directories.missing, keys)

    async def strays(self) -> list[str]:
        return await self._ask(self._directories.strays)

    async def sweep(self, keep_aside_seconds: float) -> int:
        stale = await self._ask(self._directories.remove_stale, keep_aside_seconds)
        return stale + await self._ask(self._directories.empty_trash, keep_aside_seconds)

    @contextmanager
    def alone_at(self, work: Work) -> Iterator[bool]:
        with ExitStack() as stack:
            with self._asked("alone_at"):
                alone = stack.enter_context(self._directories.alone_at(work))
            yield alone

    async def _ask(self, work: Callable[..., T], *arguments: object) -> T:
        with self._asked(work.__name__):
            return await to_the_end(in_thread(self._threads, work, *arguments))

    @contextmanager
    def _asked(self, what: str) -> Iterator[None]:
        """Raise Unavailable for an I/O error, and when the store is closed."""
        self._require()
        try:
            yield
        except OSError as error:
            raise _unanswered(what, error) from error

    def _require(self) -> None:
        if self._closed:
            raise Unavailable


def _unanswered(what: str, error: OSError) -> Unavailable:
    log.error("the store could not be asked", what=what, error=reason(error))
    return Unavailable()


def _for_each(step: Callable[[str], None], keys: Sequence[str]) -> None:
    for key in keys:
        step(key)
