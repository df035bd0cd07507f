"""Group commit: uploads that are finished together become durable, named and recorded together.

    stage → write → data durable → rename → names durable → rows committed → 201

While one commit group is flushed the next one gathers, and while its rows are committed the
next one is flushed: an idle service adds no delay, a busy one pays for few flushes.
"""

import asyncio
from collections.abc import Coroutine, Iterator, Mapping, Sequence
from contextlib import suppress
from types import TracebackType
from typing import Any, Final, Self

import structlog

from app.cancellation import run_to_completion
from app.db.database import Db
from app.errors import Locked, Unavailable, UploadError
from app.metrics import Metrics
from app.model import Clock, Resource, Status, Upload
from app.sessions import totals_records
from app.sessions.records import NewSession
from app.storage import Storage
from app.uploads.in_doubt import InDoubt
from app.uploads.landing import Incoming, Landing, Stage, refusal_of
from app.uploads.recording import Recorder, take_back
from app.uploads.resumable_records import Completing

log = structlog.stdlib.get_logger("waybill.publish")

MAX_GROUP_FILES: Final = 256
_PATIENCE_SECONDS: Final = 4.0
"""How long recording is tried again while the database is away; then the client is asked to retry."""


class Publisher:
    """Publishes files and records them, in that order, in commit groups.

    Use as an async context manager: on exit, landings that were handed over are finished, and
    no new ones taken. `patience_seconds` is how long a request waits for a database that is away.
    """

    def __init__(
        self,
        storage: Storage,
        db: Db,
        *,
        now_us: Clock,
        patience_seconds: float = _PATIENCE_SECONDS,
        metrics: Metrics | None = None,
    ) -> None:
        self.metrics = Metrics() if metrics is None else metrics
        self._storage = storage
        self._db = db
        self._now_us = now_us
        self._publishing = Stage(self._publish, most=MAX_GROUP_FILES)
        self._in_doubt = InDoubt(storage, db, self.metrics)
        self._recorder = Recorder(
            storage, db, self._in_doubt, now_us=now_us, patience_seconds=patience_seconds, metrics=self.metrics
        )
        self._tasks: list[asyncio.Task[None]] = []
        self._large: set[asyncio.Task[None]] = set()

    async def __aenter__(self) -> Self:
        self._tasks = [
            asyncio.create_task(work, name=f"waybill-{name}")
            for name, work in (
                ("publish", self._publishing.run()),
                ("record", self._recorder.groups.run()),
                ("wait-for-locks", self._recorder.waiting.run()),
                ("settle", self._in_doubt.run()),
            )
        ]
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await run_to_completion(self._close())

    def check(self) -> None:
        """Raise Unavailable when no upload could land now: the database is away, or the service stops."""
        self._publishing.check()
        self._in_doubt.check()

    def check_session(self, session_id: str) -> None:
        """Raise Locked when no upload of this session could land now, because others have locked it for long."""
        if session_id in self._in_doubt.locked:
            raise Locked

    async def land(
        self,
        files: Sequence[Incoming],
        arrival: NewSession | None,
        *,
        allowances: Sequence[str] = (),
        claim: str | None = None,
        creates: Resource | None = None,
        completes: Completing | None = None,
    ) -> list[Upload]:
        """Return the records of `files` once their bytes, names and rows would survive a power cut.

        All of them land or none; the `allowances` are released along with that. With a `claim` on an
        Idempotency-Key they land only while it holds the key. A resumable upload that this `creates` is
        recorded as completed; one that it `completes` lands only while its writer lock is held. A cancelled
        caller does not stop this: the outcome is then in the history.

        Raises:
            KeyInUse: the claim was lost to another request.
            InProgress: the writer lock was lost to another request; the file stays.
            OutcomeUnknown: the database went away in the middle, or the session stayed locked; nothing was lost.
            UploadError: none of them landed. The caller aborts those that are still staged.
        """
        self._in_doubt.check()
        landing = Landing(
            files,
            arrival,
            asyncio.get_running_loop().create_future(),
            allowances=allowances,
            claim=claim,
            creates=creates,
            completes=completes,
        )
        if len(files) > MAX_GROUP_FILES:
            self._publishing.check()
            self._begin(self._publish_in_slices(landing))
        else:
            self._publishing.put(landing)
        return await landing.done

    async def count_failed(self, session_id: str) -> int:
        """Count the failed uploads in a session's history."""
        found = await totals_records.find(self._db, session_id)
        return found.of(Status.FAILED).uploads

    async def record(self, uploads: Sequence[Upload], arrival: NewSession | None) -> None:
        """Record uploads that have no files: those that failed.

        Raises:
            OutcomeUnknown: the database is away, or the session locked; they are recorded once that is over.
            UploadError: they are not recorded.
        """
        landing = Landing((), arrival, asyncio.get_running_loop().create_future(), list(uploads))
        if len(uploads) > MAX_GROUP_FILES:
            self._recorder.groups.check()
            self._begin(self._recorder.record_alone(landing))
        else:
            self._recorder.groups.put(landing)
        await landing.done

    def _begin(self, work: Coroutine[Any, Any, None]) -> None:
        """Begin to work on a request that is too large for any group, beside the groups."""
        task = asyncio.create_task(work, name="waybill-large-form")
        self._large.add(task)
        task.add_done_callback(self._large.discard)

    async def _close(self) -> None:
        *working, settling = self._tasks
        stages = (self._publishing, self._recorder.groups, self._recorder.waiting)
        for stage, work in zip(stages, working, strict=True):
            stage.close()
            await work
            if self._large:
                await asyncio.wait(self._large)
        settling.cancel()
        await asyncio.wait((settling,))
        if self._in_doubt:
            with suppress(Unavailable):
                await self._in_doubt.settle()  # the last attempt
        if self._in_doubt:
            log.error("these uploads stay in doubt; the sweeper will find the files", uploads=self._in_doubt.ids)

    async def _publish(self, group: list[Landing]) -> None:
        refused = await self._publish_files([file for landing in group for file in landing.files])
        published_at = self._now_us()
        for landing in group:
            try:
                for file in landing.files:
                    if file.id in refused:
                        raise refused[file.id]
                landing.uploads = [file.completed(published_at) for file in landing.files]
            except Exception as error:
                await take_back(self._storage, [upload_id for upload_id in landing.ids if upload_id not in refused])
                landing.refuse(refusal_of(error))
            else:
                self._recorder.groups.put(landing)

    async def _publish_files(self, files: Sequence[Incoming]) -> Mapping[str, UploadError]:
        """Publish files; return the refusals by id. All other files are published."""
        self.metrics.batch_files.observe(len(files))
        try:
            return await self._storage.publish([file.staged for file in files])
        except Exception as error:
            return dict.fromkeys([file.id for file in files], refusal_of(error))

    async def _publish_in_slices(self, landing: Landing) -> None:
        """Publish a form of very many files in slices, between groups, and record it in a transaction of its own."""
        published: list[str] = []
        try:
            for files in _slices(landing.files):
                refused = await self._publish_files(files)
                published += [file.id for file in files if file.id not in refused]
                for refusal in refused.values():
                    raise refusal
            published_at = self._now_us()
            for files in _slices(landing.files):
                landing.uploads += [file.completed(published_at) for file in files]
                await asyncio.sleep(0)
        except Exception as error:
            for file in landing.files:
                await file.staged.abort()
            await take_back(self._storage, published)
            landing.refuse(refusal_of(error))
        else:
            await self._recorder.record_alone(landing)


def _slices(files: Sequence[Incoming]) -> Iterator[Sequence[Incoming]]:
    return (files[at : at + MAX_GROUP_FILES] for at in range(0, len(files), MAX_GROUP_FILES))
