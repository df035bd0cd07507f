"""The parts that the doors of the local store share: directories, threads, and the answer to an I/O error."""

from collections.abc import Callable, Collection, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Literal, TypeVar

import structlog

from app.cancellation import run_to_completion
from app.errors import Unavailable
from app.metrics import Metrics
from app.storage.local.free_space import Space
from app.storage.local.io_errors import Trust, reason
from app.storage.local.layout import Directories
from app.storage.local.publish import GroupPublisher
from app.storage.local.staged import Staging
from app.storage.local.threads import in_thread
from app.storage.local.unrecorded import UnderWay

log = structlog.stdlib.get_logger("waybill.storage")
T = TypeVar("T")


class LocalParts:
    """Parts of a local store, see `LocalStorage` for the arguments."""

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
        self._publisher = GroupPublisher(self._staging, self._under_way, self._metrics)
        self._closed = False

    async def recorded(self, keys: Collection[str]) -> None:
        if not self._closed and self._under_way.holds(keys):
            await run_to_completion(in_thread(self._listing, self._under_way.end, keys))

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
