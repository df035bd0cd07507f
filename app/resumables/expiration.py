"""Expiration of abandoned resumable uploads, and removal of the files that none needs."""

from typing import Final, NamedTuple

import structlog

from app.db.database import Db
from app.db.queryable import Transaction
from app.errors import UploadError
from app.model import Clock, Resource
from app.plausibility import too_many
from app.resumables import records
from app.resumables.recovery import Recovery
from app.resumables.transitions import REMEMBERED_US, Holding
from app.storage import FoundUnfinished, Storage

log = structlog.stdlib.get_logger("waybill.expiry")

GRACE_SECONDS: Final = 3600.0
"""An unfinished file that changed within this time may just have been created."""
_AT_ONCE: Final = 500


class SweptResumables(NamedTuple):
    """The outcome of sweeping resumable uploads."""

    expired: int = 0
    completed: int = 0
    files_removed: int = 0
    forgotten: int = 0


class Expiry:
    """The sweep of resumable uploads of all processes, by one process at a time, see `Storage.alone_at`."""

    def __init__(
        self,
        storage: Storage,
        db: Db,
        recovery: Recovery,
        holding: Holding,
        *,
        now_us: Clock,
        grace_seconds: float = GRACE_SECONDS,
    ) -> None:
        self._storage = storage
        self._db = db
        self._recovery = recovery
        self._holding = holding
        self._now_us = now_us
        self._grace_seconds = grace_seconds

    async def sweep(self) -> SweptResumables:
        """Complete fully received uploads, expire abandoned ones, remove files that none needs."""
        completed = await self._recovery.once()
        expired = await self._expire()
        removed = await self._remove_files()
        forgotten, now_us = 0, self._now_us()
        while page := await records.forget_ended(self._db, now_us, _AT_ONCE):
            forgotten += page
        return SweptResumables(expired, completed, removed, forgotten)

    async def _expire(self) -> int:
        expired = 0
        now_us = self._now_us()
        last: Resource | None = None
        while due := await records.list_due(self._db, now_us, last, _AT_ONCE):
            for resource in due:
                try:
                    expired += await self._end(resource, now_us)
                except UploadError:
                    raise
                except Exception:
                    log.exception("expired upload not ended", upload=resource.upload_id)
            last = due[-1]
        return expired

    async def _end(self, resource: Resource, now_us: int) -> bool:
        """Expire the upload, unless bytes arrived just now."""

        async def run(transaction: Transaction) -> bool:
            return await records.end(
                transaction, resource, "expired", remembered_until_us=now_us + REMEMBERED_US, due_us=now_us
            )

        ended = await self._db.transaction_that_frees(run)
        if ended:
            self._holding.count(resource, "expired")
            await self._storage.end_unfinished(resource.upload_id, resource.file_fence, resource.offset)
        return ended

    async def _remove_files(self) -> int:
        """Set aside files that are left over, of uploads that have ended or moved to another file.

        A file without a row is set aside as well, unless there are so many that the
        database must be the wrong one.
        """
        total = 0
        unneeded: list[tuple[str, int]] = []
        unknown: list[tuple[str, int]] = []
        async for found in self._storage.walk_unfinished(self._grace_seconds):
            total += len(found)
            settled = [file for file in found if file.settled]
            for at in range(0, len(settled), _AT_ONCE):
                known = await records.list_files(self._db, [file.key for file in settled[at : at + _AT_ONCE]])
                for file in settled[at : at + _AT_ONCE]:
                    _judge(file, known.get(file.key), unneeded, unknown)
        if too_many(len(unknown), total):
            log.error("unfinished files left alone: no upload knows them; is this their database?", files=len(unknown))
            unknown = []
        await self._storage.set_unfinished_aside([*unneeded, *unknown])
        return len(unneeded) + len(unknown)


def _judge(
    file: FoundUnfinished, of: records.FileOf | None, unneeded: list[tuple[str, int]], unknown: list[tuple[str, int]]
) -> None:
    name = file.key, file.fence
    if of is None or file.fence > of.newest:  # a fencing token that this database never gave out
        unknown.append(name)
    elif file.fence != of.fence:
        unneeded.append(name)
