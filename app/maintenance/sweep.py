"""The sweep: cleans up staged files, files without rows, rows without files, and old sessions that are left over."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Final

import structlog

from app.background import attempt, every
from app.db.database import Db
from app.db.queryable import Transaction
from app.events import records as change_records
from app.idempotency import records as key_records
from app.links import records as link_records
from app.maintenance import retention, trash
from app.metrics import Metrics
from app.model import Clock, Damage, Status
from app.plausibility import too_many
from app.resumables.expiration import SweptResumables
from app.sessions import records as session_records
from app.sessions import token_records, totals_records
from app.sessions.merge import SessionMerges
from app.storage import Storage
from app.uploads import records as upload_records

log = structlog.stdlib.get_logger("waybill.sweep")

GRACE_SECONDS: Final = 3600.0
"""A file younger than this may still get its row: its commit group may be under way, or waiting for the database."""
KEEP_ASIDE_SECONDS: Final = 7 * 86_400.0
RETAIN_FAILED_SECONDS: Final = 90 * 86_400.0
EMPTY_SESSION_US: Final = 86_400_000_000
"""A session that never uploaded ends a day after its last use, and is deleted a day later."""
KEY_GRACE_US: Final = 3_600_000_000
"""How long an expired claim is kept: its request may just be slow, and keep the key if no other wanted it."""
CHANGES_RETAINED_US: Final = 86_400_000_000
"""How long a change is kept for listeners that come back."""
LINKS_REMEMBERED_US: Final = 7 * 86_400_000_000
"""How long a link whose time is over is answered by 410, and not as an unknown one."""
_AT_ONCE: Final = 500
_PAGE_SECONDS: Final = 60.0
"""The time limit of a page, longer than a request's: nobody waits for it, and it must end even on a slow disk."""
_PAUSE_SECONDS: Final = 0.01  # between slices: a full walk is never in a hurry


async def without_file(storage: Storage, db: Db) -> AsyncIterator[tuple[int, list[str]]]:
    """Find completed uploads that have no file, in slices, each with the number of uploads that were checked.

    Files that were set aside are put back by this.
    """
    after_id = ""
    while stored := await upload_records.list_stored(db, after_id, _AT_ONCE):
        yield len(stored), await storage.missing([row.id for row in stored])
        after_id = stored[-1].id
        await asyncio.sleep(_PAUSE_SECONDS)


@dataclass(slots=True)
class Swept:
    """The findings and actions of one sweep. `stopped` says why it left files or rows alone."""

    staged_removed: int = 0
    files: int = 0
    files_set_aside: int = 0
    files_removed: int = 0
    files_put_back: int = 0
    aside_removed: int = 0
    records: int = 0
    records_lost: int = 0
    records_repaired: int = 0
    sessions_ended: int = 0
    uploads_expired: int = 0
    uploads_completed: int = 0
    uploads_deleted: int = 0
    partials_removed: int = 0
    keys_forgotten: int = 0
    stopped: str | None = None

    def as_dict(self) -> dict[str, int | str | None]:
        return asdict(self)


class Sweeper:
    """Sweeps once, or at intervals.

    `grace_seconds` is for files that may still get their row. `resumables` sweeps resumable uploads,
    which live for `idle_seconds` without bytes. `retain_failed_seconds` is how long records of
    uploads that never were completed stay.
    """

    def __init__(
        self,
        storage: Storage,
        db: Db,
        *,
        resumables: Callable[[], Awaitable[SweptResumables]] | None = None,
        now_us: Clock,
        grace_seconds: float = GRACE_SECONDS,
        idle_seconds: float = 0.0,
        retain_failed_seconds: float = RETAIN_FAILED_SECONDS,
        metrics: Metrics | None = None,
    ) -> None:
        self._metrics = Metrics() if metrics is None else metrics
        self._storage = storage
        self._db = db
        self._resumables = resumables
        self._moves = SessionMerges(db, now_us=now_us)
        self._now_us = now_us
        self._grace_seconds = grace_seconds
        self._idle_seconds = idle_seconds
        self._retain_failed_us = int(retain_failed_seconds * 1_000_000)

    async def run(self, interval_seconds: float) -> None:
        """Sweep at the start and then at every interval, until cancelled. A sweep that fails is tried at the next.

        The store is tested each time but the first, when it has just been: after a fault it is
        trusted again when it passes, even if nobody calls the readiness check.
        """

        async def again() -> None:
            await attempt(self._storage.test, failure="store test failed", log=log)
            await self.once()

        failure, count = "sweep interrupted", self._metrics.sweeps["failed"].add
        await attempt(self.once, failure=failure, log=log, count=count)
        await every(interval_seconds, again, failure=failure, log=log, count=count)

    async def once(self) -> Swept:
        """Sweep staging, keys, files, rows and sessions, unless another process is sweeping."""
        swept = Swept()
        with self._storage.alone_at("sweep") as alone:
            if alone:
                # Steps that free space come first: on a full disk the database takes no change.
                swept.staged_removed = await self._storage.sweep()
                if self._resumables is not None:
                    done = await self._resumables()
                    swept.uploads_expired, swept.uploads_completed = done.expired, done.completed
                    swept.partials_removed = done.files_removed
                swept.keys_forgotten = await self._sweep_keys()
                await self._sweep_changes()
                aside = await self._look_over_trash(swept)
                await self._sweep_files(swept, aside.unknown)
                swept.uploads_deleted = await retention.delete_expired(self._storage, self._db, self._now_us())
                if swept.stopped is None:
                    swept.aside_removed = await self._storage.remove_aside(aside.unneeded)
                    await self._storage.forget_left(KEEP_ASIDE_SECONDS)
                    await self._sweep_rows(swept)
                swept.sessions_ended = await self._sweep_sessions()
            else:
                swept.stopped = "another process is sweeping"
        log.info("swept", **swept.as_dict())
        self._count(swept)
        return swept

    def _count(self, swept: Swept) -> None:
        self._metrics.sweeps["done" if swept.stopped is None else "stopped"].add()
        for what, counter in self._metrics.swept.items():
            counter.add(getattr(swept, what))

    async def _sweep_changes(self) -> None:
        """Delete changes that no listener who comes back may ask for any more."""
        before_us = self._now_us() - CHANGES_RETAINED_US
        while found := await change_records.forget(self._db, before_us, _AT_ONCE):
            log.debug("changes forgotten", changes=found)
            await asyncio.sleep(_PAUSE_SECONDS)

    async def _sweep_keys(self) -> int:
        """Delete expired Idempotency-Keys."""
        forgotten, until_us = 0, self._now_us() - KEY_GRACE_US
        while found := await key_records.forget(self._db, until_us, _AT_ONCE):
            forgotten += found
            await asyncio.sleep(_PAUSE_SECONDS)
        return forgotten

    async def _sweep_sessions(self) -> int:
        """End expired sessions; delete tokens, codes, totals, empty sessions and failed uploads, in pages."""
        now_us = self._now_us()
        await self._moves.finish()
        ended = await self._pages(lambda transaction: session_records.expire_sessions(transaction, now_us, _AT_ONCE))
        await self._pages(lambda transaction: token_records.forget_codes(transaction, now_us, _AT_ONCE))
        async for _ in token_records.forget_tokens(self._db, _AT_ONCE):
            await asyncio.sleep(_PAUSE_SECONDS)
        async for unused in session_records.end_unused_sessions(self._db, now_us - EMPTY_SESSION_US, now_us, _AT_ONCE):
            ended += unused
            await asyncio.sleep(_PAUSE_SECONDS)
        async for _ in session_records.forget_empty_sessions(self._db, now_us - EMPTY_SESSION_US, _AT_ONCE):
            await asyncio.sleep(_PAUSE_SECONDS)
        before_us = now_us - self._retain_failed_us
        forgotten_us = now_us - LINKS_REMEMBERED_US
        await self._pages(lambda transaction: link_records.forget_expired(transaction, forgotten_us, _AT_ONCE))
        await self._pages(lambda transaction: upload_records.forget_failed(transaction, before_us, _AT_ONCE))
        async for _ in totals_records.forget_ended(self._db):
            await asyncio.sleep(_PAUSE_SECONDS)
        return ended

    async def _pages(self, work: Callable[[Transaction], Awaitable[int]]) -> int:
        """Run `work` page by page, each in a transaction of its own, until a page is not full; return the sum."""
        done = 0
        while page := await self._db.transaction(work, timeout=_PAGE_SECONDS):
            done += page
            if page < _AT_ONCE:
                break
            await asyncio.sleep(_PAUSE_SECONDS)
        return done

    async def _look_over_trash(self, swept: Swept) -> trash.LookedOver:
        """Put back files that had been set aside and are named by a record."""
        found = await trash.look_over(
            self._storage,
            self._db,
            keep_seconds=KEEP_ASIDE_SECONDS,
            keep_unfinished_seconds=max(KEEP_ASIDE_SECONDS, self._idle_seconds),
        )
        swept.files_put_back, swept.records_repaired = found.put_back, found.repaired
        return found

    async def _sweep_files(self, swept: Swept, unknown_aside: int) -> None:
        """Finish deletions that a crash interrupted; set aside files without a row, or whose row promises no bytes.

        Files that were set aside lately count with those found now: a wrong database must not
        empty the store little by little.
        """
        unknown: list[str] = []
        explained = 0
        async for found in self._storage.walk(self._grace_seconds):
            swept.files += len(found)
            settled = {file.key: file.left for file in found if file.settled}
            for keys in _slices(list(settled)):
                statuses = await upload_records.statuses_of(self._db, keys)
                without = [key for key in keys if key not in statuses]
                unknown += without
                explained += sum(settled[key] for key in without)
                deleted = [key for key in keys if statuses.get(key) == Status.DELETED]
                await self._storage.remove(deleted)
                swept.files_removed += len(deleted)
                refused = await self._never_completed(statuses)
                await self._storage.set_aside(refused)
                swept.files_set_aside += len(refused)
                await asyncio.sleep(_PAUSE_SECONDS)
        contradicting, of = len(unknown) - explained + unknown_aside, swept.files + unknown_aside
        if too_many(contradicting, of):
            swept.stopped = f"{contradicting} of {of} files have no record; is this their database?"
            log.error("sweep of files stopped", reason=swept.stopped)
            return
        # Asked again: walking the store has taken its time.
        known = await upload_records.statuses_of(self._db, unknown)
        unknown = [key for key in unknown if key not in known]
        await self._storage.set_aside(unknown)
        swept.files_set_aside += len(unknown)

    async def _never_completed(self, statuses: Mapping[str, str]) -> list[str]:
        """The uploads among these that ended without ever being completed: their files are not kept.

        A process that died, or a disk that failed, may have left such a file. An upload that was
        completed and found damaged keeps its file: it may be intact again.
        """
        ended = [key for key, status in statuses.items() if status in {Status.FAILED, Status.EXPIRED}]
        if not ended:
            return []
        found = await upload_records.list_these(self._db, ended)
        return [key for key in ended if key in found and found[key].completed_at is None]

    async def _sweep_rows(self, swept: Swept) -> None:
        """Record that completed uploads whose file is missing are lost."""
        lost: list[str] = []
        async for looked_at, these in without_file(self._storage, self._db):
            swept.records += looked_at
            lost += these
        if too_many(len(lost), swept.records):
            swept.stopped = f"{len(lost)} of {swept.records} records have no file; is this their directory?"
            log.error("sweep of records stopped", reason=swept.stopped)
            return
        missing = Damage.MISSING.failure
        for ids in _slices(lost):

            async def run(transaction: Transaction, ids: Sequence[str] = ids) -> list[str]:
                return await upload_records.fail_uploads(transaction, ids, missing.code, missing.detail)

            failed = await self._db.transaction(run)  # without those that were deleted meanwhile
            if failed:
                log.error("uploads lost", uploads=failed)
            swept.records_lost += len(failed)


def _slices(keys: list[str]) -> list[list[str]]:
    return [keys[at : at + _AT_ONCE] for at in range(0, len(keys), _AT_ONCE)]
