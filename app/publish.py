"""Group commit: what is finished together becomes durable, named and recorded together.

    stage → write → data durable → rename → names durable → rows committed → 201

While one batch is flushed the next one gathers, and while its rows are committed the next
one is flushed: an idle service adds no delay, a busy one pays for few flushes.
"""

import asyncio
from collections.abc import Awaitable, Callable, Collection, Sequence
from types import TracebackType
from typing import Final, Self

import structlog

from app import claims, records, usage
from app.batches import Incoming, Landing, OutcomeUnknown, Stage, told
from app.db import Db, Unit
from app.errors import KeyInUse, Unavailable, UploadError
from app.metrics import Metrics, Outcome
from app.model import Clock, Status, Upload
from app.records import NewSession
from app.storage import Storage
from app.tasks import to_the_end

log = structlog.stdlib.get_logger("waybill.publish")

MAX_BATCH_FILES: Final = 256
ANSWERED_US: Final = 86_400_000_000
"""So long what landed under an Idempotency-Key is told again."""
_MAX_BATCH_ROWS: Final = 4096
_PATIENCE_SECONDS: Final = 4.0
"""How long recording is tried again when the database is away; then the client is told to come back."""
_HASTE_SECONDS: Final = 1.0
"""The same for those who waited meanwhile: by then it is known to be away."""
_RETRY_SECONDS: Final = 0.1
_OUTCOMES: Final[dict[Status, Outcome]] = {Status.COMPLETED: "completed", Status.FAILED: "failed"}


class PassedOver(Exception):
    """Others hold the keys that some of a batch were to land under; nothing of the batch is recorded."""

    def __init__(self, claim_ids: Collection[str]) -> None:
        super().__init__(f"{len(claim_ids)} claims were passed over")
        self.claim_ids = claim_ids


class Publisher:
    """Publish files and record them, in that order, in shared batches.

    Use as an async context manager: leaving it finishes what was handed over, and takes
    nothing new. `patience_seconds` is how long a request waits for a database that is away.
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
        self._patience_seconds = patience_seconds
        self._haste_seconds = min(patience_seconds, _HASTE_SECONDS)
        self._publishing = Stage(self._publish, most=MAX_BATCH_FILES)
        self._recording = Stage(self._record, most=_MAX_BATCH_ROWS)
        self._in_doubt: list[Landing] = []
        self._away = asyncio.Event()
        self._tasks: list[asyncio.Task[None]] = []

    async def __aenter__(self) -> Self:
        self._tasks = [
            asyncio.create_task(work, name=f"waybill-{name}")
            for name, work in (
                ("publish", self._publishing.run()),
                ("record", self._recording.run()),
                ("settle", self._settle_when_back()),
            )
        ]
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await to_the_end(self._close())

    def check(self) -> None:
        """Raise Unavailable when an upload could not land now: the database is away, or the service stops."""
        self._publishing.check()
        if self._away.is_set():
            raise Unavailable("the database is away")

    async def land(
        self,
        files: Sequence[Incoming],
        arrival: NewSession | None,
        *,
        allowances: Sequence[str] = (),
        claim: str | None = None,
    ) -> list[Upload]:
        """Return the records of `files` once their bytes, names and rows would survive a power cut.

        All of them land or none; with them the `allowances` are given back. With a `claim` on an
        Idempotency-Key they land only while it holds the key. A cancelled caller does not stop
        it: the outcome is then in the history.

        Raises:
            KeyInUse: it does not: another request has passed it over.
            OutcomeUnknown: the database went away in the middle; nothing was lost.
            UploadError: none of them landed. What is staged still is the caller's to abort.
        """
        self.check()
        landing = Landing(
            files, arrival, asyncio.get_running_loop().create_future(), allowances=allowances, claim=claim
        )
        self._publishing.put(landing)
        return await landing.done

    async def record(self, uploads: Sequence[Upload], arrival: NewSession | None) -> None:
        """Record uploads that have no files: those that failed.

        Raises:
            OutcomeUnknown: the database is away; they are recorded when it is back.
            UploadError: they are not recorded.
        """
        landing = Landing((), arrival, asyncio.get_running_loop().create_future(), list(uploads))
        self._recording.put(landing)
        await landing.done

    async def _close(self) -> None:
        publishing, recording, settling = self._tasks
        self._publishing.close()
        await publishing
        self._recording.close()
        await recording
        settling.cancel()
        await asyncio.wait((settling,))
        try:
            await self._settle()  # the last chance
        except Unavailable:
            doubted = [upload_id for landing in self._in_doubt for upload_id in landing.ids]
            log.error("the database stays away; the sweeper will find these files", uploads=doubted)

    # --- first stage: files

    async def _publish(self, batch: list[Landing]) -> None:
        files = [file for landing in batch for file in landing.files]
        self.metrics.batch_files.observe(len(files))
        try:
            refused = await self._storage.publish([file.staged for file in files])
        except Exception as error:
            refused = dict.fromkeys([file.id for file in files], told(error))
        published_at = self._now_us()
        for landing in batch:
            try:
                for file in landing.files:
                    if file.id in refused:
                        raise refused[file.id]
                landing.uploads = [file.completed(published_at) for file in landing.files]
            except Exception as error:
                await self._take_back([upload_id for upload_id in landing.ids if upload_id not in refused])
                landing.refuse(told(error))
            else:
                self._recording.put(landing)

    async def _take_back(self, keys: list[str]) -> None:
        """Remove published files that are known to have no rows: nobody was told of them."""
        if not keys:
            return
        try:
            await self._storage.remove(keys)
        except (OSError, UploadError):
            log.exception("files that did not land could not be removed", keys=keys)

    # --- second stage: rows

    async def _record(self, batch: list[Landing]) -> None:
        try:
            await self._commit(batch)
        except PassedOver as error:
            passed = [landing for landing in batch if landing.claim in error.claim_ids]
            for landing in passed:
                log.warning("an upload was passed over by another with its key", uploads=landing.ids)
                self.metrics.keyed["passed_over"].add()
                await self._take_back(landing.ids)
                landing.refuse(KeyInUse())
            if rest := [landing for landing in batch if landing not in passed]:
                await self._record(rest)
        except Unavailable as error:
            # The files stay: the rows may be there after all.
            log.error("the database is away; the outcome is open", uploads=sum(len(each.uploads) for each in batch))
            self._in_doubt += [landing for landing in batch if not landing.stays]
            self._away.set()
            for landing in batch:
                unknown = OutcomeUnknown()
                unknown.__cause__ = error
                landing.refuse(unknown)
        except Exception as error:
            if len(batch) > 1 and not isinstance(error, UploadError):
                # One bad row must not fail its neighbours: by halves it is soon alone.
                middle = len(batch) // 2
                await self._record(batch[:middle])
                await self._record(batch[middle:])
                return
            log.error("the database refused uploads", uploads=sum(len(each.uploads) for each in batch))
            refusal = told(error)
            for landing in batch:
                await self._take_back(landing.ids)
                landing.refuse(refusal)
        else:
            for landing in batch:
                landing.landed()
                for upload in landing.uploads:
                    self.metrics.ended(upload.protocol, _OUTCOMES[upload.status])

    async def _commit(self, batch: list[Landing]) -> None:
        """One transaction for all rows; repeated while the database is away, which is safe by their ids.

        Raises:
            Unavailable: whether they are recorded is not known.
            PassedOver: they are not, because of some of them.
            Exception: they are not.
        """
        uploads = [upload for landing in batch for upload in landing.uploads]
        clock = asyncio.get_running_loop().time
        deadline = clock() + (self._haste_seconds if self._away.is_set() else self._patience_seconds)
        doubt: Unavailable | None = None
        while True:
            began = self.metrics.stopwatch()
            try:
                await self._db.transaction(self._insert_once(uploads, batch), timeout=deadline - clock())
            except Unavailable as error:
                doubt = error
            except PassedOver:
                raise  # nor has an attempt before been committed: the key would have its answer
            except Exception as error:
                if doubt is None:
                    raise
                raise doubt from error  # the attempt before may have been committed
            else:
                self.metrics.stages["rows_commit"].observe(self.metrics.stopwatch() - began)
                self.metrics.batch_rows.observe(len(uploads))
                return
            if clock() + _RETRY_SECONDS >= deadline:
                raise doubt
            await asyncio.sleep(_RETRY_SECONDS)

    def _insert_once(self, uploads: Sequence[Upload], batch: Sequence[Landing]) -> Callable[[Unit], Awaitable[object]]:
        """Record these uploads, and under the keys of those that have one what landed; raises PassedOver."""
        insert = _insert(uploads, batch)
        keyed = {landing.claim: landing.uploads for landing in batch if landing.claim is not None}
        if not keyed:
            return insert

        async def run(unit: Unit) -> None:
            # The uploads first, as whoever moves a session's does: two that lock in the same order never deadlock.
            await insert(unit)
            if passed := await claims.answer(unit, keyed, self._now_us() + ANSWERED_US):
                raise PassedOver(passed)

        return run

    # --- afterwards: what was in doubt

    async def _settle_when_back(self) -> None:
        """While the database is away, ask until it answers; then settle what was in doubt. Until cancelled."""
        while True:
            await self._away.wait()
            try:
                await self._db.ping()
                self._away.clear()
                await self._settle()
            except Exception as error:
                if not isinstance(error, Unavailable):
                    log.exception("asking whether the database is back failed")
                self._away.set()
                await asyncio.sleep(_RETRY_SECONDS)

    async def _settle(self) -> None:
        """What was in doubt has failed, unless it was recorded after all.

        The failed rows decide it, since an id has one row: an insert that is still under
        way is waited for, and one that came later would find the id taken. So a file may go
        when the row of its id, asked for after that, is not that of a completed upload.
        """
        while self._in_doubt:
            batch = self._in_doubt[:MAX_BATCH_FILES]
            ids = [upload_id for landing in batch for upload_id in landing.ids]
            try:
                failed = _failed(batch)
                statuses = await self._db.transaction(_insert(failed, batch, then_ask_for=ids))
                gone = [upload_id for upload_id in ids if statuses[upload_id] != Status.COMPLETED]
                await self._take_back(gone)
                for upload in failed:
                    completed = statuses.get(upload.id) == Status.COMPLETED
                    self.metrics.ended(upload.protocol, "completed" if completed else "failed")
                log.warning("settled what was in doubt", recorded=len(ids) - len(gone), failed=gone)
            except Unavailable:
                raise
            except Exception:
                log.exception("what was in doubt could not be settled; the sweeper will find the files", uploads=ids)
            del self._in_doubt[: len(batch)]


def _insert(
    uploads: Sequence[Upload], batch: Sequence[Landing], *, then_ask_for: Sequence[str] = ()
) -> Callable[[Unit], Awaitable[dict[str, str]]]:
    """Record these uploads and the new sessions of the batch; the statuses of those asked for."""
    arrivals = [landing.arrival for landing in batch if landing.arrival]
    allowances = [allowance for landing in batch for allowance in landing.allowances]

    async def run(unit: Unit) -> dict[str, str]:
        if allowances:  # in the order in which PostgreSQL locks when some are asked for
            await usage.lock(unit, {upload.session_id for upload in uploads})
        if arrivals:
            await records.insert_sessions(unit, arrivals)
        if uploads:
            await records.insert_uploads(unit, uploads)
        if allowances:
            await usage.give_back(unit, allowances)
        return await records.statuses_of(unit, then_ask_for) if then_ask_for else {}

    return run


def _failed(batch: Sequence[Landing]) -> list[Upload]:
    """The records that say of all uploads of the batch that they failed."""
    unknown = OutcomeUnknown()
    failed: list[Upload] = []
    for landing in batch:
        failed += [file.failed(unknown) for file in landing.files] if landing.files else landing.uploads
    return failed
