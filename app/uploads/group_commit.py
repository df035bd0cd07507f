"""Group commit: uploads that are finished together become durable, named and recorded together.

    stage → write → data durable → rename → names durable → rows committed → 201

While one commit group is flushed the next one gathers, and while its rows are committed the
next one is flushed: an idle service adds no delay, a busy one pays for few flushes.
"""

import asyncio
from collections import Counter
from collections.abc import Awaitable, Callable, Collection, Coroutine, Iterator, Mapping, Sequence
from contextlib import suppress
from types import TracebackType
from typing import Any, Final, Self

import structlog

from app.cancellation import run_to_completion
from app.db.database import Db
from app.db.driver import LOCK_SECONDS
from app.db.queryable import Transaction
from app.errors import KeyInUse, Locked, Unavailable, UploadError, root_reason
from app.idempotency import records as key_records
from app.metrics import Metrics, Outcome
from app.model import Clock, Status, Upload
from app.sessions import totals_records
from app.sessions.records import NewSession
from app.storage import Storage
from app.uploads.in_doubt import InDoubt, insert
from app.uploads.landing import Incoming, Landing, Stage, refusal_of

log = structlog.stdlib.get_logger("waybill.publish")

MAX_BATCH_FILES: Final = 256
ANSWERED_US: Final = 86_400_000_000
"""How long a repeated request with an Idempotency-Key is answered by what landed under the key."""
_MAX_BATCH_ROWS: Final = 4096
_PATIENCE_SECONDS: Final = 4.0
"""How long recording is tried again while the database is away; then the client is asked to retry."""
_ROWS_A_SECOND: Final = 2000
"""The time for a form's rows beyond those of one group is extended at this rate: they can take longer than patience."""
_HASTE_SECONDS: Final = 1.0
"""The patience of requests that waited meanwhile: by then the database is known to be away."""
_RETRY_SECONDS: Final = 0.1
_SEARCH_SECONDS: Final = 1.0
"""How long a group may be delayed by the search for its locked sessions."""
_OUTCOMES: Final[dict[Status, Outcome]] = {Status.COMPLETED: "completed", Status.FAILED: "failed"}


class ClaimLost(Exception):
    """Claims of some landings of a group were lost to other requests; nothing of the group is recorded."""

    def __init__(self, claim_ids: Collection[str]) -> None:
        super().__init__(f"{len(claim_ids)} claims were passed over")
        self.claim_ids = claim_ids


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
        self._patience_seconds = patience_seconds
        self._haste_seconds = min(patience_seconds, _HASTE_SECONDS)
        self._publishing = Stage(self._publish, most=MAX_BATCH_FILES)
        self._recording = Stage(self._record_group, most=_MAX_BATCH_ROWS)
        self._waiting_for_locks = Stage(self._record_locked, most=_MAX_BATCH_ROWS)
        self._locked: Counter[str] = Counter()  # the sessions of landings that wait for locks
        self._in_doubt = InDoubt(storage, db, self.metrics)
        self._away = self._in_doubt.away
        self._tasks: list[asyncio.Task[None]] = []
        self._large: set[asyncio.Task[None]] = set()

    async def __aenter__(self) -> Self:
        self._tasks = [
            asyncio.create_task(work, name=f"waybill-{name}")
            for name, work in (
                ("publish", self._publishing.run()),
                ("record", self._recording.run()),
                ("wait-for-locks", self._waiting_for_locks.run()),
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
    ) -> list[Upload]:
        """Return the records of `files` once their bytes, names and rows would survive a power cut.

        All of them land or none; the `allowances` are released along with that. With a `claim` on an
        Idempotency-Key they land only while it holds the key. A cancelled caller does not stop
        this: the outcome is then in the history.

        Raises:
            KeyInUse: the claim was lost to another request.
            OutcomeUnknown: the database went away in the middle, or the session stayed locked; nothing was lost.
            UploadError: none of them landed. The caller aborts those that are still staged.
        """
        self._in_doubt.check()
        landing = Landing(
            files, arrival, asyncio.get_running_loop().create_future(), allowances=allowances, claim=claim
        )
        if len(files) > MAX_BATCH_FILES:
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
        if len(uploads) > MAX_BATCH_FILES:
            self._recording.check()
            self._begin(self._record_alone(landing))
        else:
            self._recording.put(landing)
        await landing.done

    def _begin(self, work: Coroutine[Any, Any, None]) -> None:
        """Begin to work on a request that is too large for any group, beside the groups."""
        task = asyncio.create_task(work, name="waybill-large-form")
        self._large.add(task)
        task.add_done_callback(self._large.discard)

    async def _close(self) -> None:
        *working, settling = self._tasks
        for stage, work in zip((self._publishing, self._recording, self._waiting_for_locks), working, strict=True):
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

    async def _publish(self, batch: list[Landing]) -> None:
        refused = await self._publish_files([file for landing in batch for file in landing.files])
        published_at = self._now_us()
        for landing in batch:
            try:
                for file in landing.files:
                    if file.id in refused:
                        raise refused[file.id]
                landing.uploads = [file.completed(published_at) for file in landing.files]
            except Exception as error:
                await self._take_back([upload_id for upload_id in landing.ids if upload_id not in refused])
                landing.refuse(refusal_of(error))
            else:
                self._recording.put(landing)

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
            await self._take_back(published)
            landing.refuse(refusal_of(error))
        else:
            await self._record_alone(landing)

    async def _take_back(self, keys: list[str]) -> None:
        """Remove published files that are known to have no rows, and so were never acknowledged."""
        if not keys:
            return
        try:
            await self._storage.remove(keys)
        except (OSError, UploadError):
            log.exception("files that did not land could not be removed", keys=keys)

    async def _record_group(self, batch: list[Landing]) -> None:
        """Record the group, except sessions that others have locked: those leave the group."""
        if self._locked:
            for landing in batch:
                if landing.session_id in self._locked:
                    self._set_aside(landing)
            batch = [landing for landing in batch if landing.session_id not in self._locked]
        if batch:
            await self._record(batch)

    async def _record_alone(self, landing: Landing) -> None:
        try:
            await self._record([landing])
        except Exception as error:
            landing.refuse(refusal_of(error))

    async def _record_locked(self, batch: list[Landing]) -> None:
        """Try again, after a moment, to record landings that left their groups; those out of patience are in doubt."""
        await asyncio.sleep(_RETRY_SECONDS)
        now = asyncio.get_running_loop().time()
        late = {landing for landing in batch if landing.patient_until is not None and landing.patient_until <= now}
        if late:
            uploads = [upload.id for landing in late for upload in landing.uploads]
            log.warning("uploads are not recorded: somebody holds their session locked", uploads=uploads)
            self._in_doubt.put(late, locked=True)
        try:
            if rest := [landing for landing in batch if landing not in late]:
                await self._record(rest)
        finally:
            self._locked -= Counter(landing.session_id for landing in batch)

    def _set_aside(self, landing: Landing) -> None:
        """Take a landing out of its group, because it needs a lock that is held; the others go on."""
        if landing.patient_until is None:
            landing.patient_until = asyncio.get_running_loop().time() + self._patience_seconds
        self._locked[landing.session_id] += 1
        self._waiting_for_locks.put_back(landing)

    async def _record(self, batch: list[Landing], search_until: float | None = None) -> None:
        try:
            await self._commit(batch)
        except ClaimLost as error:
            passed = [landing for landing in batch if landing.claim in error.claim_ids]
            for landing in passed:
                log.warning("an upload was passed over by another with its key", uploads=landing.ids)
                self.metrics.keyed["passed_over"].add()
                await self._take_back(landing.ids)
                landing.refuse(KeyInUse())
            if rest := [landing for landing in batch if landing not in passed]:
                await self._record(rest)
        except Locked:
            # A landing whose session is locked must not hold up its group: bisect the group until it is alone.
            now = asyncio.get_running_loop().time()
            search_until = now + _SEARCH_SECONDS if search_until is None else search_until
            sessions = sorted({landing.session_id for landing in batch})
            if len(sessions) == 1 or now >= search_until:
                for landing in batch:
                    self._set_aside(landing)
                return
            some = set(sessions[: len(sessions) // 2])
            await self._record([landing for landing in batch if landing.session_id in some], search_until)
            await self._record([landing for landing in batch if landing.session_id not in some], search_until)
        except Unavailable as error:
            # The files stay: the rows may have been committed after all.
            uploads = sum(len(each.uploads) for each in batch)
            log.error("the outcome of uploads is open", uploads=uploads, reason=root_reason(error))
            self._in_doubt.put(batch, away=True)
        except Exception as error:
            if len(batch) > 1 and not isinstance(error, UploadError):
                # A bad row must not fail its group: bisect the group until it is alone.
                middle = len(batch) // 2
                await self._record(batch[:middle])
                await self._record(batch[middle:])
                return
            log.error("the database refused uploads", uploads=sum(len(each.uploads) for each in batch))
            refusal = refusal_of(error)
            self._in_doubt.put([landing for landing in batch if landing.doubted])
            for landing in batch:
                if not landing.doubted:
                    await self._take_back(landing.ids)
                    landing.refuse(refusal)
        else:
            await self._storage.recorded([upload_id for landing in batch for upload_id in landing.ids])
            for landing in batch:
                landing.landed()
                for upload in landing.uploads:
                    self.metrics.ended(upload.protocol, _OUTCOMES[upload.status])

    async def _commit(self, batch: list[Landing]) -> None:
        """Commit all rows in one transaction; repeated while the database is away, which is safe by their ids.

        Raises:
            Locked: they are not recorded by this, since another transaction holds a lock that one of them needs.
            Unavailable: whether they are recorded is unknown.
            ClaimLost: they are not recorded, because some have lost their claims.
            Exception: they are not recorded by this; `doubted` ones may be by an earlier attempt.
        """
        uploads = [upload for landing in batch for upload in landing.uploads]
        clock = asyncio.get_running_loop().time
        patience = self._haste_seconds if self._away.is_set() else self._patience_seconds
        deadline = clock() + patience + max(0, len(uploads) - _MAX_BATCH_ROWS) / _ROWS_A_SECOND
        while True:
            began = self.metrics.stopwatch()
            try:
                work = self._insert_once(uploads, batch)
                await self._db.transaction(work, timeout=deadline - clock(), lock_timeout=LOCK_SECONDS)
            except Locked:
                raise
            except Unavailable:
                for landing in batch:
                    landing.doubted = True
                if clock() + _RETRY_SECONDS >= deadline:
                    raise
            else:
                self.metrics.stages["rows_commit"].observe(self.metrics.stopwatch() - began)
                self.metrics.batch_rows.observe(len(uploads))
                return
            await asyncio.sleep(_RETRY_SECONDS)

    def _insert_once(
        self, uploads: Sequence[Upload], batch: Sequence[Landing]
    ) -> Callable[[Transaction], Awaitable[object]]:
        """Record these uploads, also under their Idempotency-Keys, if they have any; raises ClaimLost."""
        insert_all = insert(uploads, batch)
        keyed = {landing.claim: landing.uploads for landing in batch if landing.claim is not None}
        if not keyed:
            return insert_all

        async def run(transaction: Transaction) -> None:
            # The uploads first, as in a merge of sessions: transactions that lock in the same order never deadlock.
            await insert_all(transaction)
            if passed := await key_records.answer(transaction, keyed, self._now_us() + ANSWERED_US):
                raise ClaimLost(passed)

        return run


def _slices(files: Sequence[Incoming]) -> Iterator[Sequence[Incoming]]:
    return (files[at : at + MAX_BATCH_FILES] for at in range(0, len(files), MAX_BATCH_FILES))
