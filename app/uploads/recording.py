"""Recording: the second half of the group commit, which puts the rows of published files into the database.

A group is one transaction. What keeps some of its landings from being recorded (a lost claim, a locked session, a
row that the database refuses) is found by halving the group, and does not keep the others.
"""

import asyncio
from collections import Counter
from collections.abc import Awaitable, Callable, Collection, Sequence
from typing import Final

import structlog

from app.db.database import Db
from app.db.driver import LOCK_SECONDS
from app.db.queryable import Transaction
from app.errors import InProgress, KeyInUse, Locked, Unavailable, UploadError, root_reason
from app.idempotency import records as key_records
from app.metrics import Metrics, Outcome
from app.model import Clock, Status, Upload
from app.storage import Storage
from app.uploads import resumable_records
from app.uploads.in_doubt import InDoubt, insert
from app.uploads.landing import Landing, Stage, refusal_of

log = structlog.stdlib.get_logger("waybill.publish")

ANSWERED_US: Final = 86_400_000_000
"""How long a repeated request with an Idempotency-Key is answered by what landed under the key."""
MAX_GROUP_ROWS: Final = 4096
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
        super().__init__(f"{len(claim_ids)} claims were lost")
        self.claim_ids = claim_ids


class LocksLost(Exception):
    """The writer locks of some resumable uploads of a group were lost; nothing of the group is recorded."""

    def __init__(self, key_hashes: Collection[str]) -> None:
        super().__init__(f"{len(key_hashes)} writer locks were lost")
        self.key_hashes = key_hashes


class Recorder:
    """Records landings whose files are published, in commit groups. `patience_seconds` as in `Publisher`.

    Landings are put into `groups`, or recorded alone; those that others hold locks against wait in `waiting`.
    """

    def __init__(
        self,
        storage: Storage,
        db: Db,
        in_doubt: InDoubt,
        *,
        now_us: Clock,
        patience_seconds: float,
        metrics: Metrics,
    ) -> None:
        self.groups = Stage(self._record_group, most=MAX_GROUP_ROWS)
        self.waiting = Stage(self._record_locked, most=MAX_GROUP_ROWS)
        self._storage = storage
        self._db = db
        self._in_doubt = in_doubt
        self._now_us = now_us
        self._patience_seconds = patience_seconds
        self._haste_seconds = min(patience_seconds, _HASTE_SECONDS)
        self._metrics = metrics
        self._locked: Counter[str] = Counter()  # the sessions of landings that wait for locks

    async def record_alone(self, landing: Landing) -> None:
        """Record a landing that is too large for any group."""
        try:
            await self._record([landing])
        except Exception as error:
            landing.refuse(refusal_of(error))

    async def _record_group(self, group: list[Landing]) -> None:
        """Record the group, except sessions that others have locked: those leave the group."""
        if self._locked:
            for landing in group:
                if landing.session_id in self._locked:
                    self._set_aside(landing)
            group = [landing for landing in group if landing.session_id not in self._locked]
        if group:
            await self._record(group)

    async def _record_locked(self, group: list[Landing]) -> None:
        """Try again, after a moment, to record landings that left their groups; those out of patience are in doubt."""
        await asyncio.sleep(_RETRY_SECONDS)
        now = asyncio.get_running_loop().time()
        late = {landing for landing in group if landing.patient_until is not None and landing.patient_until <= now}
        if late:
            uploads = [upload.id for landing in late for upload in landing.uploads]
            log.warning("uploads are not recorded: somebody holds their session locked", uploads=uploads)
            self._in_doubt.put(late, locked=True)
        try:
            if rest := [landing for landing in group if landing not in late]:
                await self._record(rest)
        finally:
            self._locked -= Counter(landing.session_id for landing in group)

    def _set_aside(self, landing: Landing) -> None:
        """Take a landing out of its group, because it needs a lock that is held; the others go on."""
        if landing.patient_until is None:
            landing.patient_until = asyncio.get_running_loop().time() + self._patience_seconds
        self._locked[landing.session_id] += 1
        self.waiting.put_back(landing)

    async def _record(self, group: list[Landing], search_until: float | None = None) -> None:
        try:
            await self._commit(group)
        except ClaimLost as error:
            await self._without_keys(group, error.claim_ids)
        except LocksLost as error:
            await self._without_locks(group, error.key_hashes)
        except Locked:
            await self._bisect_sessions(group, search_until)
        except Unavailable as error:
            # The files stay: the rows may have been committed after all.
            uploads = sum(len(each.uploads) for each in group)
            log.error("the outcome of uploads is open", uploads=uploads, reason=root_reason(error))
            self._in_doubt.put(group, away=True)
        except Exception as error:
            await self._bisect_rows(group, error)
        else:
            await self._storage.recorded([upload_id for landing in group for upload_id in landing.ids])
            for landing in group:
                landing.landed()
                for upload in landing.uploads:
                    self._metrics.ended(upload.protocol, _OUTCOMES[upload.status])

    async def _without_keys(self, group: list[Landing], lost: Collection[str]) -> None:
        """Refuse the landings whose claims on their Idempotency-Keys were lost; record the others."""
        passed = [landing for landing in group if landing.claim in lost]
        for landing in passed:
            log.warning("key claim lost", uploads=landing.ids)
            self._metrics.keyed["passed_over"].add()
            await take_back(self._storage, landing.ids)
            landing.refuse(KeyInUse())
        if rest := [landing for landing in group if landing not in passed]:
            await self._record(rest)

    async def _without_locks(self, group: list[Landing], lost: Collection[str]) -> None:
        """Refuse the landings whose writer locks were lost; record the others."""
        rest = []
        for landing in group:
            if landing.completes is not None and landing.completes.resource.key_hash in lost:
                landing.refuse(InProgress())  # its file stays: the next one to complete the upload decides
            else:
                rest.append(landing)
        if rest:
            await self._record(rest)

    async def _bisect_sessions(self, group: list[Landing], search_until: float | None) -> None:
        """Record a group in halves until a landing whose session is locked is alone, and holds up no other."""
        now = asyncio.get_running_loop().time()
        search_until = now + _SEARCH_SECONDS if search_until is None else search_until
        sessions = sorted({landing.session_id for landing in group})
        if len(sessions) == 1 or now >= search_until:
            for landing in group:
                self._set_aside(landing)
            return
        some = set(sessions[: len(sessions) // 2])
        await self._record([landing for landing in group if landing.session_id in some], search_until)
        await self._record([landing for landing in group if landing.session_id not in some], search_until)

    async def _bisect_rows(self, group: list[Landing], error: Exception) -> None:
        """Record a group in halves until a bad row is alone, and fails no other; then refuse it."""
        if len(group) > 1 and not isinstance(error, UploadError):
            middle = len(group) // 2
            await self._record(group[:middle])
            await self._record(group[middle:])
            return
        log.error("the database refused uploads", uploads=sum(len(each.uploads) for each in group))
        refusal = refusal_of(error)
        self._in_doubt.put([landing for landing in group if landing.doubted])
        for landing in group:
            if not landing.doubted:
                await take_back(self._storage, landing.ids)
                landing.refuse(refusal)

    async def _commit(self, group: list[Landing]) -> None:
        """Commit all rows in one transaction; repeated while the database is away, which is safe by their ids.

        Raises:
            Locked: they are not recorded by this, since another transaction holds a lock that one of them needs.
            Unavailable: whether they are recorded is unknown.
            ClaimLost, LocksLost: they are not recorded, because some have lost their claims or writer locks.
            Exception: they are not recorded by this; `doubted` ones may be by an earlier attempt.
        """
        uploads = [upload for landing in group for upload in landing.uploads]
        clock = asyncio.get_running_loop().time
        patience = self._haste_seconds if self._in_doubt.away.is_set() else self._patience_seconds
        deadline = clock() + patience + max(0, len(uploads) - MAX_GROUP_ROWS) / _ROWS_A_SECOND
        while True:
            began = self._metrics.stopwatch()
            try:
                work = self._insert_once(uploads, group)
                await self._db.transaction(work, timeout=deadline - clock(), lock_timeout=LOCK_SECONDS)
            except Locked:
                raise
            except Unavailable:
                for landing in group:
                    landing.doubted = True
                if clock() + _RETRY_SECONDS >= deadline:
                    raise
            else:
                self._metrics.stages["rows_commit"].observe(self._metrics.stopwatch() - began)
                self._metrics.batch_rows.observe(len(uploads))
                return
            await asyncio.sleep(_RETRY_SECONDS)

    def _insert_once(
        self, uploads: Sequence[Upload], group: Sequence[Landing]
    ) -> Callable[[Transaction], Awaitable[object]]:
        """Record these uploads, under their Idempotency-Keys, and as resumable ones; raises ClaimLost, LocksLost."""
        insert_all = insert(uploads, group)
        keyed = {landing.claim: landing.uploads for landing in group if landing.claim is not None}
        created = [landing.creates for landing in group if landing.creates is not None]
        completing = [landing.completes for landing in group if landing.completes is not None]
        if not (keyed or created or completing):
            return insert_all

        async def run(transaction: Transaction) -> None:
            # Their own rows before the records, as in `resumables.records.commit`.
            if completing and (lost := await resumable_records.complete(transaction, completing)):
                raise LocksLost(lost)
            # The uploads first, as in a merge of sessions: transactions that lock in the same order never deadlock.
            await insert_all(transaction)
            if created:
                await resumable_records.insert_these(transaction, created)
            if keyed and (passed := await key_records.answer(transaction, keyed, self._now_us() + ANSWERED_US)):
                raise ClaimLost(passed)

        return run


async def take_back(storage: Storage, keys: list[str]) -> None:
    """Remove published files that are known to have no rows, and so were never acknowledged."""
    if not keys:
        return
    try:
        await storage.remove(keys)
    except (OSError, UploadError):
        log.exception("files that did not land could not be removed", keys=keys)
