"""The local store, a directory: files are staged, flushed, renamed, and read again.

Everything lies on one file system (`layout.py`), so that a rename publishes.
"""

import asyncio
import errno
import mmap
import os
from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path
from typing import Final, Literal, TypeVar, cast

import structlog

from app.cancellation import run_to_completion
from app.errors import StorageFull, Unavailable, Unusable, UploadError
from app.metrics import Metrics
from app.storage import Aside, Found, FoundPartial, Mark, Pace, Reservation, Staged, Work, digest_state
from app.storage.local import syscalls, trash
from app.storage.local.block_writer import ALIGNMENT, DigestingFile
from app.storage.local.concatenate import assemble
from app.storage.local.free_space import Reserved, Space
from app.storage.local.io_errors import FULL, Trust, reason
from app.storage.local.layout import SHARDS, Directories
from app.storage.local.publish import BatchPublisher
from app.storage.local.reader import Inspection, LocalStored, make_durable, open_at_hand, open_stored
from app.storage.local.staged import LocalStaged, Staging
from app.storage.local.threads import in_thread
from app.storage.local.unfinished import LocalPartial
from app.storage.local.unrecorded import UnderWay, forget_left, left_under_way

log = structlog.stdlib.get_logger("waybill.storage")
T = TypeVar("T")

_SLICE: Final = 1000


class LocalStorage:
    """The local directory as a storage backend.

    `min_free` bytes of its file system are never used. With `durability="fast"` nothing is
    flushed: files are still complete or absent after a crash of the service, and unfinished files
    keep their bytes up to the mark, but not so after a power cut. `owner`, a key, names this process's
    staging directory and is locked for life, so that no other process sweeps it.
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
        # One thread: an error that syncfs reports must reach the commit group that it is about.
        self._publishing = ThreadPoolExecutor(1, "waybill-publish")
        # One thread of its own: tests of a disk that hangs wait for each other, and hold up no upload.
        self._testing = ThreadPoolExecutor(1, "waybill-test")
        # One thread of its own: noting that files are recorded never waits for the writing of blocks.
        self._listing = ThreadPoolExecutor(1, "waybill-list")
        # A few threads of their own: copying takes long, and the writing of blocks must not wait for it.
        self._copying = ThreadPoolExecutor(4, "waybill-copy")
        durable = durability == "full"
        self._staging = Staging(self._directories, self.space, self._trust, self._threads, durable=durable)
        self._under_way = UnderWay(self._directories)
        self._publisher = BatchPublisher(self._staging, self._under_way, self._metrics)
        self._closed = False

    async def prepare(self) -> None:
        await run_to_completion(in_thread(self._testing, self._prepare))

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
        """Whether large files may bypass the page cache; some file systems refuse only the write itself."""
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
        """Open a staged file for the store's own tests, removed on exit."""
        self._staging.unlink(name)
        try:
            with closing(self._staging.create(name, None, direct=direct)) as file:
                yield file
        finally:
            self._staging.unlink(name)

    async def close(self) -> None:
        self._closed = True
        self._staging.closing.set()
        await run_to_completion(self._close())

    async def _close(self) -> None:
        for staged in list(self._staging.live):
            await staged.abort()

        def run() -> None:
            for threads in (self._threads, self._publishing, self._testing, self._listing, self._copying):
                threads.shutdown()
            self._under_way.close()
            self._directories.close()  # last, since a descriptor may be in use

        await asyncio.to_thread(run)

    def reserve(self, size: int) -> Reservation:
        self._require()
        try:
            return self.space.reserve(size)
        except OSError as error:
            raise _unanswered("reserve", error) from error

    async def free_bytes(self) -> int | None:
        with self._asked("free_bytes"):
            return self.space.free_bytes()

    def has_memory(self, size: int) -> bool:
        return self.space.has_memory(size)

    def staged_bytes(self) -> int:
        return sum(staged.size for staged in self._staging.live)

    async def test(self) -> None:
        with self._asked("test"):
            await run_to_completion(in_thread(self._testing, self._test))

    def _test(self) -> None:
        fault = self._trust.fault
        try:
            if fault is not None:
                # The kernel may have yet to report an error of the old fault: here, and not to the next commit group.
                syscalls.syncfs(self._directories.root_fd)
            self._try_out()
        except OSError as error:
            if error.errno in FULL:
                raise StorageFull from error
            raise Unavailable(f"the store failed its test: {reason(error)}") from error
        self._trust.restore(fault)

    def _try_out(self) -> None:
        """Try out, without a trace, all operations that uploads rely on."""
        name = self._directories.owner  # no other process tests with the same name
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
            os.fsync(shard_fd)  # else a power cut could restore it, as a file without a record

    def stage(self, key: str, reservation: Reservation | None = None, *, has_record: bool = False) -> LocalStaged:
        assert reservation is None or isinstance(reservation, Reserved)
        self._require()
        return self._staging.stage(key, reservation, has_record=has_record)

    async def publish(self, batch: Sequence[Staged]) -> Mapping[str, UploadError]:
        files = cast("Sequence[LocalStaged]", batch)  # made by `stage`
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
            refused.update(await run_to_completion(publishing))
        return refused

    async def _publish_and_forget(self, batch: Sequence[LocalStaged]) -> Mapping[str, UploadError]:
        refused = await in_thread(self._publishing, self._publisher.publish, batch)
        for staged in batch:
            staged.forget()
        return refused

    async def recorded(self, keys: Collection[str]) -> None:
        if not self._closed and self._under_way.holds(keys):
            await run_to_completion(in_thread(self._listing, self._under_way.end, keys))

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
        at_hand = digest_state.resumed(mark.digest_state, mark.offset) is not None
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
        await self._ask(trash.remove_partials, self._directories, names)

    async def set_partials_aside(self, names: Sequence[tuple[str, int]]) -> None:
        await self._ask(trash.set_partials_aside, self._directories, names)

    async def end_partial(self, key: str, fence: int, offset: int) -> None:
        await self._ask(trash.end_partial, self._directories, (key, fence), offset)

    async def partials(self, grace_seconds: float) -> AsyncIterator[list[FoundPartial]]:
        before = await self._ask(self._directories.now) - grace_seconds
        names = await self._ask(self._directories.partials)
        for at in range(0, len(names), _SLICE):
            yield await self._ask(self._directories.found_partials, names[at : at + _SLICE], before)

    async def open(self, key: str) -> LocalStored:
        with self._asked("open"):
            at_hand = open_at_hand(key, self._directories, self._threads)
        return at_hand if at_hand is not None else await self._ask(open_stored, key, self._directories, self._threads)

    async def digest(self, key: str, pace: Pace | None = None) -> tuple[int, str]:
        inspection = Inspection(key, self._directories)
        try:
            while not inspection.ended:
                with self._asked("digest"):
                    count = await run_to_completion(in_thread(self._copying, inspection.step))
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
        await self._ask(trash.remove, self._directories, keys)
        await self.recorded(keys)

    async def set_aside(self, keys: Sequence[str]) -> None:
        await self._ask(trash.set_aside, self._directories, keys)
        await self.recorded(keys)

    async def put_back(self, keys: Sequence[str]) -> Mapping[str, int]:
        return await self._ask(_put_back, self._directories, keys)

    async def aside(self) -> Sequence[Aside]:
        return await self._ask(trash.list_aside, self._directories, await self._left())

    async def remove_aside(self, files: Sequence[Aside]) -> int:
        return await self._ask(trash.remove_aside, self._directories, files)

    async def _left(self) -> set[str]:
        return await self._ask(left_under_way, self._directories)

    async def walk(self, grace_seconds: float) -> AsyncIterator[list[Found]]:
        before = await self._ask(self._directories.now) - grace_seconds
        left = await self._left()
        for shard in SHARDS:
            yield await self._ask(self._directories.found_in, shard, before, left)

    async def missing(self, keys: Sequence[str]) -> list[str]:
        return await self._ask(trash.missing, self._directories, keys)

    async def strays(self) -> list[str]:
        return await self._ask(self._directories.strays)

    async def sweep(self) -> int:
        return await self._ask(self._directories.remove_stale)

    async def forget_left(self, after_seconds: float) -> None:
        await self._ask(forget_left, self._directories, after_seconds)

    @contextmanager
    def alone_at(self, work: Work) -> Iterator[bool]:
        with ExitStack() as stack:
            with self._asked("alone_at"):
                alone = stack.enter_context(self._directories.alone_at(work))
            yield alone

    async def _ask(self, work: Callable[..., T], *arguments: object) -> T:
        with self._asked(work.__name__):
            return await run_to_completion(in_thread(self._threads, work, *arguments))

    @contextmanager
    def _asked(self, what: str) -> Iterator[None]:
        """Raise Unavailable for an I/O error in the block, and when the store is closed."""
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


def _put_back(directories: Directories, keys: Sequence[str]) -> dict[str, int]:
    sizes = {key: trash.put_back(directories, key) for key in keys}
    return {key: size for key, size in sizes.items() if size is not None}
