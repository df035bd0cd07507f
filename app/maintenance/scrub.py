"""The scrub: all stored files are slowly read again, so that damage is found before the file is downloaded."""

import asyncio
from collections.abc import Mapping
from typing import Final

import structlog

from app.background import every
from app.db.database import Db
from app.db.queryable import Transaction
from app.maintenance import records
from app.maintenance.records import Scrub
from app.maintenance.sweep import without_file
from app.maintenance.verify import DOUBTFUL, examine, look_again, still_completed, unowned
from app.metrics import Metrics
from app.model import Clock, Damage
from app.plausibility import tolerable, too_many
from app.storage import Storage
from app.uploads import records as upload_records
from app.uploads.records import StoredRecord

log = structlog.stdlib.get_logger("waybill.scrub")

LOOK_SECONDS: Final = 60.0
"""The scrub begins this long after the start, and this often checks whether it is its process's task and is due."""
PASS_SECONDS: Final = 86_400
"""The least time from one pass to the next: even a small store need not be read more often."""
AGAIN_SECONDS: Final = 3600
"""After a stopped pass, the next one begins this much later; by then the right directory may be mounted."""
FILE_COST: Final = 256 * 1024
"""The cost of a file beside its bytes, in bytes: for seeking and processing, whatever its length."""
_AT_ONCE: Final = 500
_JUDGE_SECONDS: Final = 60.0
_NAMES: Final = 20


class Scrubber:
    """Goes over all stored files, again and again, at `rate` bytes a second.

    One process of all that use the store scrubs. Its progress is in the database, so a
    restart goes on there. Damaged uploads are marked, and from then on answer 410; none of
    their bytes is touched. Records of files that are intact again are repaired.
    """

    def __init__(self, storage: Storage, db: Db, *, rate: int, now_us: Clock, metrics: Metrics | None = None) -> None:
        self._metrics = Metrics() if metrics is None else metrics
        self._storage = storage
        self._db = db
        self._pace = _Pace(rate)
        self._now_us = now_us

    async def run(self) -> None:
        """Scrub until cancelled; a pass that fails is tried again."""
        await every(
            LOOK_SECONDS, self._go_on, failure="scrub interrupted", log=log, count=self._metrics.scrubs["failed"].add
        )

    async def _go_on(self) -> None:
        """Scrub as long as no other process does: the first one keeps the task, since its metrics show the progress."""
        with self._storage.alone_at("scrub") as alone:
            while alone:
                await self.once()
                await asyncio.sleep(LOOK_SECONDS)

    async def once(self) -> Scrub:
        """Continue the pass under way, or begin one if it is due; return its outcome, or that of the one before."""
        scrub = await records.find_scrub(self._db)
        await self._show(scrub)
        now_us = self._now_us()
        if scrub is None or _is_due(scrub, now_us):
            scrub = Scrub(now_us, whole_at_us=None if scrub is None else scrub.whole_at_us)
        elif scrub.ended_at_us is not None:
            return scrub
        scrub = await self._pass(scrub)
        await records.save_scrub(self._db, scrub)
        await self._show(scrub)
        return scrub

    async def _pass(self, scrub: Scrub) -> Scrub:
        """Run a pass to completion, from its saved progress."""
        count = await upload_records.count_stored(self._db)
        self._metrics.scrub_progress.read = lambda: min(1.0, scrub.files / max(1, count))
        async for _, damage in look_again(self._storage, self._db, self._read):
            if damage is None:
                self._metrics.mended.add()
        while rows := await upload_records.list_stored(self._db, scrub.after_id, _AT_ONCE):
            looked_at, damaged = await self._examine(rows, scrub.files)
            scrub = scrub._replace(after_id=looked_at[-1].id, files=scrub.files + len(looked_at))
            damaged = {upload_id: damaged[upload_id] for upload_id in await still_completed(self._db, damaged)}
            if damaged:
                scrub = scrub._replace(found=scrub.found + len(damaged))
                stopped = await self._too_much(scrub, doubtful(damaged))
                marked = {} if stopped is not None else certain(damaged)
                await self._mark(marked)
                self._report(damaged, marked)
                if stopped is not None:
                    log.error("scrub stopped", reason=stopped)
                    self._metrics.scrubs["stopped"].add()
                    return scrub._replace(ended_at_us=self._now_us(), stopped=stopped)
            await records.save_scrub(self._db, scrub)
            await self._show(scrub)
        await self._report_unknown()
        now_us = self._now_us()
        log.info("scrubbed", files=scrub.files, damaged=scrub.found)
        self._metrics.scrubs["done"].add()
        return scrub._replace(ended_at_us=now_us, whole_at_us=now_us)

    async def _examine(self, rows: list[StoredRecord], before: int) -> tuple[list[StoredRecord], dict[str, Damage]]:
        """Read as many of the rows as a minute allows; return them and the damaged ones. `before` were read earlier.

        They are judged together, so that none is marked when many are damaged for one reason. While
        most of the files read so far may have such a reason, more are read, until there are too many
        or the others are in the majority. A file that could not be read is read again after the others.
        """
        clock = asyncio.get_running_loop().time
        looked_at: list[StoredRecord] = []
        damaged = {}
        until = clock() + _JUDGE_SECONDS
        for row in rows:
            damage = await examine(self._storage, row, self._read)
            if damage is not None:
                damaged[row.id] = damage
            looked_at.append(row)
            self._metrics.scrubbed_files.add()
            await self._pace(FILE_COST)
            found, of = doubtful(damaged), before + len(looked_at)
            if clock() > until and (found > tolerable(of) or not too_many(found, of)):
                break
        for row in looked_at:
            if damaged.get(row.id) is Damage.UNREADABLE and await examine(self._storage, row, self._read) is None:
                del damaged[row.id]
        return looked_at, damaged

    async def _read(self, count: int) -> None:
        self._metrics.scrubbed_bytes.add(count)
        await self._pace(count)

    async def _too_much(self, scrub: Scrub, doubtful: int) -> str | None:
        """The reason to doubt the findings, if there is one: the wrong directory, database or user may be in use."""
        count, missing = 0, 0
        async for looked_at, these in without_file(self._storage, self._db):
            count += looked_at
            missing += len(these)
        if too_many(missing, count):
            return f"{missing} of {count} records have no file; is this their directory?"
        if too_many(doubtful, scrub.files):
            return f"{doubtful} of the {scrub.files} files that were looked at cannot be had; are they ours to read?"
        if scrub.found > tolerable(scrub.files):
            return f"{scrub.found} of the {scrub.files} files that were looked at are damaged; waybill verify names all"
        return None

    def _report(self, damaged: Mapping[str, Damage], marked: Mapping[str, Damage]) -> None:
        for upload_id, damage in damaged.items():
            log.error("stored file damaged", upload=upload_id, damage=damage.value, marked=upload_id in marked)
            self._metrics.damage[damage].add()

    async def _mark(self, damaged: Mapping[str, Damage]) -> None:
        if not damaged:
            return

        async def run(transaction: Transaction) -> None:
            for kind in set(damaged.values()):
                these = [upload_id for upload_id, damage in damaged.items() if damage is kind]
                await upload_records.fail_uploads(transaction, these, kind.failure.code, kind.failure.detail)

        await self._db.transaction(run)

    async def _report_unknown(self) -> None:
        """Report unknown files in the store, which have no record; only the sweep moves anything."""
        count = 0
        some: list[str] = []
        async for keys in unowned(self._storage, self._db):
            count += len(keys)
            some += keys[: _NAMES - len(some)]
            await self._pace(FILE_COST)
        foreign = await self._storage.strays()
        if count:
            log.warning("files without record", files=count, among_them=some)
        if foreign:
            log.warning("foreign names in the store", names=len(foreign), among_them=foreign[:_NAMES])
        self._metrics.without_record.read = lambda: count
        self._metrics.foreign.read = lambda: len(foreign)

    async def _show(self, scrub: Scrub | None) -> None:
        damaged = await upload_records.count_damaged(self._db)
        self._metrics.damaged_uploads.read = lambda: damaged
        if scrub is None:
            return
        self._metrics.scrubbed_at.read = lambda: (scrub.whole_at_us or 0) / 1_000_000


def doubtful(damaged: Mapping[str, Damage]) -> int:
    """Count the files whose damage a wrong directory or user would explain as well."""
    return sum(damage in DOUBTFUL for damage in damaged.values())


def certain(damaged: Mapping[str, Damage]) -> dict[str, Damage]:
    """The files whose damage is certain: more than that this process may not read them."""
    return {upload_id: damage for upload_id, damage in damaged.items() if damage is not Damage.WITHHELD}


class _Pace:
    """A limit of `rate` bytes a second; unused time is not made up for."""

    def __init__(self, rate: int) -> None:
        self._rate = rate
        self._free_at = 0.0

    async def __call__(self, count: int) -> None:
        now = asyncio.get_running_loop().time()
        self._free_at = max(now, self._free_at) + count / self._rate
        await asyncio.sleep(self._free_at - now)


def _is_due(scrub: Scrub, now_us: int) -> bool:
    if scrub.ended_at_us is None:
        return False
    if scrub.stopped is not None:
        since_us, seconds = scrub.ended_at_us, AGAIN_SECONDS
    else:
        since_us, seconds = scrub.began_at_us, PASS_SECONDS
    return not since_us <= now_us < since_us + seconds * 1_000_000  # also when the clock was set back
