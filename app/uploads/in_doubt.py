"""Uploads in doubt: published, but perhaps not recorded; settled once the database can be asked."""

import asyncio
from collections.abc import Awaitable, Callable, Collection, Sequence
from typing import Final

import structlog

from app.db.database import Db
from app.db.driver import LOCK_SECONDS
from app.db.queryable import Transaction
from app.errors import Locked, OutcomeUnknown, Unavailable, UploadError
from app.metrics import Metrics
from app.model import Status, Upload
from app.quotas import records as quota_records
from app.sessions import records as session_records
from app.storage import Storage
from app.uploads import records
from app.uploads.landing import Landing

log = structlog.stdlib.get_logger("waybill.publish")

_AT_ONCE: Final = 256
_RETRY_SECONDS: Final = 0.1


class InDoubt:
    """Landings in doubt. Meanwhile new ones are refused: all while the database is `away`, else of locked sessions.

    The files of failed ones are set aside, not removed: the database that is back may be another than the one that
    went away, and that one, which may have recorded them, may come back as well.
    """

    def __init__(self, storage: Storage, db: Db, metrics: Metrics) -> None:
        self.away = asyncio.Event()
        self._storage = storage
        self._db = db
        self._metrics = metrics
        self._landings: list[Landing] = []
        self.locked: set[str] = set()
        """The sessions whose uploads cannot be recorded, since others hold locks on them."""
        self._work = asyncio.Event()

    def __len__(self) -> int:
        return len(self._landings)

    @property
    def ids(self) -> list[str]:
        return [upload_id for landing in self._landings for upload_id in landing.ids]

    def check(self) -> None:
        """Raise Unavailable while the database is away."""
        if self.away.is_set():
            raise Unavailable("the database is away")

    def put(self, landings: Collection[Landing], *, away: bool = False, locked: bool = False) -> None:
        """Take landings in, and refuse their requests: the history will show the outcome.

        The database is `away`, or their sessions are locked. A landing that stays can be landed again, which
        settles it.
        """
        if not landings:
            return
        if away and not self.away.is_set():
            log.error("the database is away")
            self.away.set()
        ours = [landing for landing in landings if not landing.stays]
        self._landings += ours
        if locked:
            self.locked |= {landing.session_id for landing in ours}
        for landing in landings:
            landing.refuse(OutcomeUnknown())
        self._work.set()

    async def run(self) -> None:
        """Settle as soon as the database answers. Runs until cancelled."""
        while True:
            await self._work.wait()
            try:
                await self._db.ping()
                await self.settle()
                if not self._landings:
                    self._work.clear()
            except Unavailable:
                pass  # the next round asks again
            except Exception:
                log.exception("asking whether the database is back failed")
            await asyncio.sleep(_RETRY_SECONDS)

    async def settle(self) -> None:
        """Settle all landings that can be settled now: bisect them until a locked one is alone, which stays in doubt.

        The database is back when a transaction that writes succeeds: a good ping is not enough where others
        hold the only writer.

        Raises:
            Unavailable: the database is still away.
        """
        waiting = self._landings.copy()
        groups = [waiting[at : at + _AT_ONCE] for at in range(0, len(waiting), _AT_ONCE)] or [[]]
        locked: set[str] = set()
        while groups:
            group = groups.pop()
            try:
                await self._settle(group)
            except Locked:
                middle = len(group) // 2
                if middle:
                    groups += [group[middle:], group[:middle]]
                else:
                    locked |= {landing.session_id for landing in group}
                group = []
            except Unavailable:
                raise
            except Exception:
                ids = [upload_id for landing in group for upload_id in landing.ids]
                log.exception("what was in doubt could not be settled; the sweeper will find the files", uploads=ids)
            if self.away.is_set():
                log.warning("the database is back")
                self.away.clear()
            settled = set(group)
            self._landings = [landing for landing in self._landings if landing not in settled]
        self.locked = locked

    async def _settle(self, group: Sequence[Landing]) -> None:
        """Record the landings as failed, unless they were recorded as completed after all.

        Inserting failed rows decides, since an id has one row: an insert that is still under way
        is waited for, and a later one would find the id taken. So a file may go when the row of
        its id, read after that, is not that of a completed upload.
        """
        ids = [upload_id for landing in group for upload_id in landing.ids]
        failed = _failed(group)
        statuses = await self._db.transaction(insert(failed, group, then_ask_for=ids), lock_timeout=LOCK_SECONDS)
        gone = [upload_id for upload_id in ids if statuses[upload_id] != Status.COMPLETED]
        try:
            await self._storage.recorded([upload_id for upload_id in ids if upload_id not in gone])
            await self._storage.set_aside(gone)
        except UploadError as error:
            log.warning("files that did not land are left to the sweeper", uploads=gone, reason=str(error))
        for upload in failed:
            completed = statuses.get(upload.id) == Status.COMPLETED
            self._metrics.ended(upload.protocol, "completed" if completed else "failed")
        if group:
            log.warning("settled what was in doubt", recorded=len(ids) - len(gone), failed=gone)


def insert(
    uploads: Sequence[Upload], group: Sequence[Landing], *, then_ask_for: Sequence[str] = ()
) -> Callable[[Transaction], Awaitable[dict[str, str]]]:
    """Record these uploads and the new sessions of the group; return the statuses of those asked for."""
    arrivals = [landing.arrival for landing in group if landing.arrival]
    allowances = [allowance for landing in group for allowance in landing.allowances]

    async def run(transaction: Transaction) -> dict[str, str]:
        if arrivals:
            await session_records.insert_sessions(transaction, arrivals)
        if uploads:
            await records.insert_uploads(transaction, uploads)
        if allowances:
            await quota_records.release(transaction, allowances)
        return await records.statuses_of(transaction, then_ask_for) if then_ask_for else {}

    return run


def _failed(group: Sequence[Landing]) -> list[Upload]:
    """The failed records of all uploads of the group."""
    unknown = OutcomeUnknown()
    failed: list[Upload] = []
    for landing in group:
        failed += [file.failed(unknown) for file in landing.files] if landing.files else landing.uploads
    return failed
