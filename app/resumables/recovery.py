"""Recovery: fully received uploads that were not completed are completed soon, without a request for them.

Each process tries its own failed completions again, once the database is back. Those of processes
that died are looked for by one process of all. Each round covers all fully received uploads,
and the next page of those that wait for parts, so none is delayed for long, however many
others wait.
"""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Final, NamedTuple

import structlog

from app.db.database import Db
from app.errors import InProgress, UploadError
from app.model import Clock, Holder, Resource
from app.resumables import records
from app.resumables.completion import Completion
from app.resumables.completion_tasks import Completions
from app.storage import Storage

log = structlog.stdlib.get_logger("waybill.recovery")

ROUND_SECONDS: Final = 2.0
LEFT_SECONDS: Final = 20.0
"""A holder that has shown no sign of life for this long, to a process that watched all the time, is dead."""
_UNSEEN_SECONDS: Final = 60.0
_UNSEEN_A_SECOND: Final = 20 * 1024 * 1024
"""Older versions of this service show no sign of life: they are given a minute, and a second for this many bytes."""
_SWEPT_US: Final = 600_000_000
"""The same for the sweep, which looks only once and compares the clocks of two machines."""
_AT_ONCE: Final = 500
_WAITING_AT_ONCE: Final = 20
_MOST_SECONDS: Final = 60.0


class SignOfLife(NamedTuple):
    """The values of a row that change while its holder is at work."""

    holder: Holder | None
    holder_seen_at: int | None
    offset: int
    completed: bool


class Recovery:
    """Completes uploads that were left. `run` does so every other second, `once` at once, for the sweep."""

    def __init__(
        self,
        storage: Storage,
        db: Db,
        completions: Completions,
        completion: Completion,
        *,
        idle_us: int,
        now_us: Clock,
    ) -> None:
        self._storage = storage
        self._db = db
        self._completions = completions
        self._completion = completion
        self._idle_us = idle_us
        self._now_us = now_us
        self._runs = False
        self._seen: dict[str, tuple[SignOfLife, float]] = {}
        self._looked_at = 0.0
        self._after_key = ""
        self._tries: dict[str, tuple[int, float]] = {}

    async def run(self) -> None:
        """Complete uploads that are left, until cancelled. The first process to run this also takes those of others."""
        self._runs = True
        while True:
            try:
                with self._storage.alone_at("complete") as alone:
                    while True:
                        await self._attempt(self.own)
                        if alone:
                            await self._attempt(self.others)
                        await asyncio.sleep(ROUND_SECONDS)
                        if not alone:
                            break
            except UploadError as error:
                log.warning("lock of the recovery not asked for", reason=str(error))
                await asyncio.sleep(ROUND_SECONDS)

    async def _attempt(self, work: Callable[[], Awaitable[object]]) -> None:
        try:
            await work()
        except UploadError as error:
            log.debug("recovery postponed", reason=str(error))
        except Exception:
            log.exception("recovery failed")

    async def own(self) -> None:
        """Try again to complete the uploads that this process could not."""
        for key_hash in list(self._completions.owed):
            if not self._may_try(key_hash):
                continue
            found = await records.find(self._db, key_hash)
            self._completions.owed.discard(key_hash)
            if found is None or found.ended_as is not None:
                self._tries.pop(key_hash, None)
            elif found.is_part and found.fully_received:
                await self._completions.part_is_whole(found)
            elif found.fully_received or found.is_final:
                await self._complete(found)
            elif found.holder is None:  # its file may have been published by a landing whose outcome is unknown
                await self._completed_before(key_hash)

    async def others(self) -> None:
        """Complete uploads whose holders show no sign of life, and a page of concatenations that have their parts."""
        now = asyncio.get_running_loop().time()
        if now - self._looked_at > 3 * ROUND_SECONDS:
            self._seen.clear()  # signs of life during the gap are unknown
        self._looked_at = now
        known, self._seen = self._seen, {}
        async for resource in self._left():
            seen = SignOfLife(resource.holder, resource.holder_seen_at, resource.offset, resource.completed)
            before, since = known.get(resource.key_hash, (seen, now))
            self._seen[resource.key_hash] = seen, since if before == seen else now
            if before == seen and now - since >= _patience(resource):
                await self._complete(resource, resource.holder)
        ready = await records.list_ready(self._db, self._after_key, _WAITING_AT_ONCE)
        self._after_key = ready[-1][0] if len(ready) == _WAITING_AT_ONCE else ""
        for key_hash in [key_hash for key_hash, is_ready in ready if is_ready]:
            found = await records.find(self._db, key_hash)
            if found is not None and found.ended_as is None:
                await self._complete(found)
        self._looked_at = asyncio.get_running_loop().time()
        still = self._seen.keys() | self._completions.owed
        self._tries = {key: tried for key, tried in self._tries.items() if key in still or tried[1] > now}

    async def once(self) -> int:
        """Complete uploads that are left, as far as one look shows; return how many. Renew waiting concatenations."""
        completed = 0
        now_us = self._now_us()
        async for resource in self._left():
            at_work = resource.holder is not None and now_us - (resource.holder_seen_at or now_us) < _SWEPT_US
            if not self._runs and (
                resource.fully_received or not at_work
            ):  # else `run`, which looks longer, does that anyway
                completed += await self._complete(resource, resource.holder)
        after_key = ""
        until_us = now_us + self._idle_us // 2  # others need not be renewed yet
        while page := await records.list_made_of_parts(self._db, after_key, until_us, _WAITING_AT_ONCE):
            for resource in page:
                if resource.holder is None and not resource.fully_received:
                    completed += await self._complete(resource)
            after_key = page[-1].key_hash
        return completed + await self._published()

    async def _published(self) -> int:
        """Complete published uploads that wait for bytes according to the database, which is older than the files."""
        completed, until_us = 0, self._now_us() + self._idle_us  # later ones have ended
        last: records.Waiting | None = None
        while page := await records.list_unfinished(self._db, until_us, last, _AT_ONCE):
            missing = set(await self._storage.missing([each.upload_id for each in page]))
            for each in page:
                if each.upload_id not in missing:
                    completed += await self._completed_before(each.key_hash)
            last = page[-1]
        return completed

    async def _completed_before(self, key_hash: str) -> bool:
        found = await records.find(self._db, key_hash)
        if found is None or found.ended_as is not None:
            return False
        try:
            done = await self._completion.published_before(found)
        except UploadError as error:
            log.warning("published upload not recorded", upload=found.upload_id, reason=str(error))
            return False
        return done is not None and done.completed

    async def _left(self) -> AsyncIterator[Resource]:
        """Iterate over uploads that are fully received, or being assembled, except those that this process works on."""
        after_key = ""
        while page := await records.list_left(self._db, after_key, _AT_ONCE):
            for resource in page:
                if not self._completions.is_at(resource.key_hash):
                    yield resource
            after_key = page[-1].key_hash

    async def _complete(self, resource: Resource, dead: Holder | None = None) -> bool:
        if not self._may_try(resource.key_hash):
            return False
        tries, _ = self._tries.get(resource.key_hash, (0, 0.0))
        wait = min(ROUND_SECONDS * 2**tries, _MOST_SECONDS)
        self._tries[resource.key_hash] = tries + 1, asyncio.get_running_loop().time() + wait
        try:
            completed = (
                await self._completions.of(resource, asked=False, dead=dead)
            ).completed and not resource.completed
        except InProgress:
            return False
        except Exception as error:
            log.warning("left upload not completed", upload=resource.upload_id, reason=str(error))
            return False
        self._tries.pop(resource.key_hash, None)
        if completed:
            log.info("left upload completed", upload=resource.upload_id)
        return completed

    def _may_try(self, key_hash: str) -> bool:
        """Whether to try this upload now: a failed one is tried again, but less and less often."""
        return asyncio.get_running_loop().time() >= self._tries.get(key_hash, (0, 0.0))[1]


def _patience(resource: Resource) -> float:
    if resource.holder is None or resource.holder.id is not None:
        return LEFT_SECONDS
    return _UNSEEN_SECONDS + (resource.length or 0) / _UNSEEN_A_SECOND
