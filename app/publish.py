"""Group commit: what is finished together becomes durable, named and recorded together.

    stage → write → data durable → rename → names durable → rows committed → 201

While one batch is flushed the next one gathers, and while its rows are committed the next
one is flushed: an idle service adds no delay, a busy one pays for few flushes.
"""

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass, field
from types import TracebackType
from typing import Final, Self

import structlog

from app import records
from app.db import Db, Unit
from app.errors import Unavailable, UploadError
from app.model import Clock, Failure, Protocol, Status, Upload
from app.records import NewSession
from app.storage import Staged, Storage
from app.tasks import to_the_end

log = structlog.stdlib.get_logger("waybill.publish")

MAX_BATCH_FILES: Final = 256
_RECORDING_SECONDS: Final = 4.0
"""How long recording is tried again while the database is away; then the client is told to come back."""
_RETRY_SECONDS: Final = 0.1


class OutcomeUnknown(Unavailable):
    """The files are durable; whether their rows are could not be learnt. The upload may show up later."""


@dataclass(slots=True)
class Incoming:
    """One file of a request on its way in."""

    id: str
    session_id: str
    filename: str
    content_type: str
    protocol: Protocol
    created_at: int
    staged: Staged

    def completed(self, at: int) -> Upload:
        return self._upload(Status.COMPLETED, sha256=self.staged.sha256, completed_at=max(at, self.created_at))

    def failed(self, error: UploadError) -> Upload:
        return self._upload(Status.FAILED, error=Failure(code=error.code, detail=str(error)))

    def _upload(
        self,
        status: Status,
        *,
        sha256: str | None = None,
        completed_at: int | None = None,
        error: Failure | None = None,
    ) -> Upload:
        return Upload(
            id=self.id,
            session_id=self.session_id,
            filename=self.filename,
            content_type=self.content_type,
            size=self.staged.size,
            sha256=sha256,
            status=status,
            protocol=self.protocol,
            created_at=self.created_at,
            completed_at=completed_at,
            error=error,
        )


@dataclass(slots=True, eq=False)
class _Landing:
    """The files of one request: published and recorded together or not at all."""

    files: Sequence[Incoming]
    arrival: NewSession | None
    done: "asyncio.Future[list[Upload]]"
    uploads: list[Upload] = field(default_factory=list)

    def settle(self, error: Exception | None = None) -> None:
        if self.done.done():
            return  # its request was cancelled; the files stay what they are
        if error is None:
            self.done.set_result(self.uploads)
        else:
            self.done.set_exception(error)


class Publisher:
    """Publish files and record them, in that order, in shared batches.

    Use as an async context manager: leaving it finishes what was handed over.
    """

    def __init__(self, storage: Storage, db: Db, *, now_us: Clock) -> None:
        self._storage = storage
        self._db = db
        self._now_us = now_us
        self._to_publish: list[_Landing] = []
        self._to_record: list[_Landing] = []
        self._publish_soon = asyncio.Event()
        self._record_soon = asyncio.Event()
        self._closing = False
        self._publishing: asyncio.Task[None] | None = None
        self._recording: asyncio.Task[None] | None = None

    async def __aenter__(self) -> Self:
        self._publishing = asyncio.create_task(self._publish_all(), name="waybill-publish")
        self._recording = asyncio.create_task(self._record_all(), name="waybill-record")
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._closing = True
        for task, soon in ((self._publishing, self._publish_soon), (self._recording, self._record_soon)):
            soon.set()
            if task is not None:
                await to_the_end(task)

    async def land(self, files: Sequence[Incoming], arrival: NewSession | None) -> list[Upload]:
        """Return the records of `files` once their bytes, names and rows would survive a power cut.

        All of them land or none. A cancelled caller does not stop it: the outcome is then
        in the history.

        Raises:
            UploadError: none of them landed, and nothing is left of them.
            OutcomeUnknown: the database went away in the middle; nothing was lost.
        """
        landing = _Landing(files, arrival, asyncio.get_running_loop().create_future())
        self._to_publish.append(landing)
        self._publish_soon.set()
        return await landing.done

    async def record(self, uploads: Sequence[Upload], arrival: NewSession | None) -> None:
        """Record uploads that have no files: those that failed."""
        landing = _Landing((), arrival, asyncio.get_running_loop().create_future(), list(uploads))
        self._to_record.append(landing)
        self._record_soon.set()
        await landing.done

    # --- first stage: files

    async def _publish_all(self) -> None:
        while True:
            await self._publish_soon.wait()
            self._publish_soon.clear()
            while self._to_publish:
                await self._publish(_take(self._to_publish))
            if self._closing:
                return

    async def _publish(self, batch: list[_Landing]) -> None:
        try:
            refused = await self._storage.publish([file.staged for landing in batch for file in landing.files])
        except Exception as error:
            log.exception("publishing a batch failed", files=sum(len(landing.files) for landing in batch))
            for landing in batch:
                landing.settle(error)
            return
        published_at = self._now_us()
        for landing in batch:
            reasons = [refused[file.id] for file in landing.files if file.id in refused]
            if reasons:
                await self._take_back([file.id for file in landing.files if file.id not in refused])
                landing.settle(reasons[0])
            else:
                landing.uploads = [file.completed(published_at) for file in landing.files]
                self._to_record.append(landing)
        self._record_soon.set()

    async def _take_back(self, keys: list[str]) -> None:
        """Remove published files that will never have rows: nobody was told of them."""
        if not keys:
            return
        try:
            await self._storage.remove(keys)
        except (OSError, UploadError):
            log.exception("files without rows are left for the sweeper", keys=keys)

    # --- second stage: rows

    async def _record_all(self) -> None:
        while True:
            await self._record_soon.wait()
            self._record_soon.clear()
            while self._to_record:
                await self._record(_take(self._to_record))
            if self._closing:
                return

    async def _record(self, batch: list[_Landing]) -> None:
        try:
            await self._commit(batch)
        except Unavailable as error:
            # If recording fails the files stay: the rows may be there after all. Only the
            # sweeper, which can ask the database, will know.
            unknown = OutcomeUnknown()
            unknown.__cause__ = error
            log.error("recording failed; the files stay", uploads=sum(len(landing.uploads) for landing in batch))
            for landing in batch:
                landing.settle(unknown)
        except Exception as error:
            if len(batch) > 1:  # find the bad row instead of failing its neighbours
                for landing in batch:
                    await self._record([landing])
                return
            log.exception("a row was refused by the database")
            await self._take_back([file.id for file in batch[0].files])
            batch[0].settle(error)
        else:
            for landing in batch:
                landing.settle()

    async def _commit(self, batch: list[_Landing]) -> None:
        """One transaction for all rows; repeated while the database is away, which is safe by their ids."""

        async def insert(unit: Unit) -> None:
            if arrivals:
                await records.insert_sessions(unit, arrivals)
            if uploads:
                await records.insert_uploads(unit, uploads)

        arrivals = [landing.arrival for landing in batch if landing.arrival]
        uploads = [upload for landing in batch for upload in landing.uploads]
        deadline = asyncio.get_running_loop().time() + _RECORDING_SECONDS
        while True:
            try:
                await self._db.transaction(insert, timeout=_RECORDING_SECONDS)
            except Unavailable:
                if asyncio.get_running_loop().time() + _RETRY_SECONDS > deadline:
                    raise
                await asyncio.sleep(_RETRY_SECONDS)
            else:
                return


def _take(waiting: list[_Landing]) -> list[_Landing]:
    """The next batch: whole landings, in order, until it holds enough files."""
    files = 0
    for count, landing in enumerate(waiting):
        files += max(1, len(landing.files))
        if files >= MAX_BATCH_FILES:
            batch = waiting[: count + 1]
            del waiting[: count + 1]
            return batch
    batch = waiting[:]
    waiting.clear()
    return batch
