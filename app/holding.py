"""An upload's file and row, in the hands of whoever holds it: commit, let go, move, end.

Whatever is committed counts only as long as the row names the holder; see `turns`.
"""

from dataclasses import replace
from typing import Final, Literal, NoReturn

import structlog

from app import resources
from app.db import Db, Unit
from app.errors import Gone, Unavailable, UploadError
from app.metrics import Metrics, Outcome
from app.model import Clock, Failure, Resource
from app.storage import Mark, NotStored, Partial, Storage
from app.turns import Superseded

log = structlog.stdlib.get_logger("waybill.holding")

REMEMBERED_US: Final = 7 * 86_400_000_000
"""So long an upload that has ended is remembered, for clients that missed the answer."""
_LOST: Final = Failure(code="lost", detail="bytes that had been acknowledged are missing")


class Holding:
    """What a holder can do; `idle_us` is how long an upload waits for its next bytes."""

    def __init__(self, storage: Storage, db: Db, metrics: Metrics, *, idle_us: int, now_us: Clock) -> None:
        self._storage = storage
        self._db = db
        self._metrics = metrics
        self._idle_us = idle_us
        self._now_us = now_us

    async def copied(self, resource: Resource) -> tuple[Resource, Partial]:
        """Move to a file of our own. The old one goes before anything is acknowledged of the new one."""
        assert resource.holder is not None
        old, new = (resource.upload_id, resource.file_fence), (resource.upload_id, resource.fence)
        try:
            mark = await self._storage.assemble(*new, [(*old, mark_of(resource))])
            moved = replace(resource, file_fence=resource.fence, digest_state=mark.digest_state)
            partial = await self._storage.partial(*new, mark)
            await self.commit_open(moved, resource.holder, partial)
        except NotStored:
            await self.lose(resource)
        except Unavailable:
            raise  # the copy stays: that it is the upload's file may be noted after all
        except BaseException:
            await self._storage.remove_partials([new])
            raise
        await self._storage.remove_partials([old])
        return moved, partial

    async def commit_open(self, resource: Resource, held_by: int, partial: Partial) -> None:
        try:
            await self.commit(resource, held_by)
        except BaseException:
            await partial.detach()
            raise

    async def commit(self, resource: Resource, held_by: int) -> None:
        """Offset, digest, length, file, holder and expiry are as `resource` says; raises Superseded if not held."""

        async def run(unit: Unit) -> bool:
            return await resources.commit(unit, resource, held_by)

        if not await self._db.transaction(run):
            raise Superseded

    async def release(self, resource: Resource) -> None:
        """Its holder lets go, having committed what there was. When that cannot be said it is passed over later."""
        if resource.holder is not None:
            try:
                await resources.release(self._db, resource.key_hash, resource.holder)
            except UploadError as error:
                log.warning("that an upload is free again was not noted", upload=resource.upload_id, reason=str(error))

    async def fail(self, resource: Resource, failure: Failure) -> None:
        """It will never be complete; its bytes go."""
        await self.end(resource, "failed", failure)

    async def end(self, resource: Resource, ended_as: Literal["failed", "cancelled"], failure: Failure) -> None:
        """Nobody can append to it or ask for it any more. If it was not complete its bytes go."""

        async def run(unit: Unit) -> bool:
            return await resources.end(
                unit, resource, ended_as, remembered_until_us=self.remembered_until, error=failure
            )

        if await self._db.transaction_that_frees(run):
            self.count(resource, ended_as)
            await self._storage.remove_partials([(resource.upload_id, resource.file_fence)])

    async def lose(self, resource: Resource) -> NoReturn:
        """Bytes that were acknowledged are not there: nobody is told another offset, the upload has failed."""
        log.error("an unfinished upload is lost: its file is missing or too short", upload=resource.upload_id)
        await self.fail(resource, _LOST)
        raise Gone

    def count(self, resource: Resource, outcome: Outcome) -> None:
        """It has ended so, and not complete. A part is no upload, and one that was complete was counted then."""
        if not resource.is_part and not resource.completed:
            self._metrics.ended(resource.protocol, outcome)

    @property
    def remembered_until(self) -> int:
        return self._now_us() + REMEMBERED_US

    def expiry(self, resource: Resource) -> int:
        """When it expires if nothing comes from now on."""
        return min(self._now_us() + self._idle_us, resource.last_expires_at)


def mark_of(resource: Resource) -> Mark:
    """Where its bytes end, as its row has it, and their digest up to there."""
    return Mark(resource.offset, resource.digest_state)
