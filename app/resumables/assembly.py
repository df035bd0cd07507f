"""Assembler: one process at a time makes the file of a concatenation, and reports every few seconds that it works.

The work takes as long as the parts are, and any process may be asked meanwhile, so here the
newest request does not win. A process at work is left alone, however late in the upload's life;
from one that has not been seen for a while the work is taken over (`recovery`), and it commits
nothing any more.
"""

import asyncio
from collections.abc import Coroutine, Sequence
from contextlib import suppress
from dataclasses import replace
from typing import Any, Final

from app.cancellation import run_to_completion
from app.db.database import Db
from app.errors import BadRequest, Gone, QuotaExceeded, StorageFull, TooLarge, Unavailable
from app.model import Clock, Failure, Holder, Resource
from app.quotas import Quotas
from app.resumables import records
from app.resumables.lanes import Lane
from app.resumables.transitions import Holding, mark_of
from app.resumables.writer_lock import Preempted
from app.storage import Mark, NotStored, Storage, Unfinished

MAX_REPEATED_BYTES: Final = 16 * 1024 * 1024
"""How much longer than its parts a concatenation may be that names some of them more than once."""
SHORT_BYTES: Final = 8 * 1024 * 1024
"""A concatenation of no more than this does not wait for longer ones."""
SEEN_SECONDS: Final = 3.0
"""How often a process that assembles parts reports that it is at work."""


def refuse_repetition(parts: Sequence[tuple[str, int]]) -> None:
    """Refuse a concatenation that repeats its parts (key hash and bytes each) for too many bytes; raises BadRequest.

    Otherwise a request of a few kilobytes could fill the disk from one part that was sent once.
    """
    repeated = sum(size for _, size in parts) - sum(dict(parts).values())
    if repeated > MAX_REPEATED_BYTES:
        raise BadRequest(
            f"a concatenation may repeat its parts for {MAX_REPEATED_BYTES} bytes at most, and this does for {repeated}"
        )


class Assembler:
    """Assembles the files of concatenations."""

    def __init__(
        self, storage: Storage, db: Db, holding: Holding, *, quotas: Quotas | None, file_bytes: int, now_us: Clock
    ) -> None:
        self._storage = storage
        self._db = db
        self._holding = holding
        self._quotas = quotas
        self._file_bytes = file_bytes
        self._now_us = now_us
        self._short, self._long = Lane(2), Lane(2)

    async def put_together(
        self, resource: Resource, *, asked: bool, dead: Holder | None
    ) -> tuple[Resource, Unfinished | None]:
        """Assemble an upload's file, and return it open, if all parts are received and no live process does so.

        Otherwise return the present state of the upload, without a file. The holder `dead` is known
        to be so. When no client `asked`, no upload is given up as lost.

        Raises:
            Gone, TooLarge, QuotaExceeded, StorageFull: the upload has failed.
            Preempted: another process has taken it over.
            Unavailable: another try may succeed.
        """
        parts = await self._parts_of(resource)
        if parts is None:
            return resource, None
        lane = self._short if sum(part.offset for part in parts) <= SHORT_BYTES else self._long
        async with lane.place(resource.session_id):
            return await self._make_alone(resource, asked=asked, dead=dead)

    async def _make_alone(
        self, resource: Resource, *, asked: bool, dead: Holder | None
    ) -> tuple[Resource, Unfinished | None]:
        parts = await self._parts_of(resource)  # again: the wait for a slot may have been long
        if parts is None:
            return resource, None
        taken, held = await self._holding.take(resource, dead)
        if not held or taken.fully_received:
            return taken, None
        started = await self._begin(taken, parts)
        try:
            return await self._make(started, [(part.upload_id, part.file_fence, mark_of(part)) for part in parts])
        except NotStored:
            if asked:
                await self._holding.lose(started)
            await self._holding.release(started)
            raise Unavailable("the file of a part is missing") from None

    async def _parts_of(self, resource: Resource) -> list[Resource] | None:
        """The upload's parts, in order, if all are fully received; if one has ended, fail the upload and raise Gone."""
        hashes = resource.parts or ()
        found = await records.list_these(self._db, hashes)
        if any(each not in found or found[each].ended_as is not None for each in hashes):
            await self._holding.fail(
                resource, Failure(code="gone", detail="a part of it has ended before it was complete")
            )
            raise Gone
        parts = [found[each] for each in hashes]
        if all(part.fully_received for part in parts):
            return parts
        # As long as one part grows, the others are needed, and so is the concatenation.
        latest = max(each.expires_at for each in (resource, *parts))
        await records.renew(self._db, [resource.key_hash, *hashes], latest)
        return None

    async def _begin(self, resource: Resource, parts: list[Resource]) -> Resource:
        assert resource.holder is not None
        length = sum(part.offset for part in parts)
        try:
            if length > self._file_bytes:
                raise TooLarge(length, self._file_bytes)
            refuse_repetition([(part.key_hash, part.offset) for part in parts])
            if self._quotas is not None:
                await self._quotas.grant_to(resource, length)
        except (BadRequest, TooLarge, QuotaExceeded) as error:
            await self._holding.fail(resource, Failure(code=error.code, detail=str(error)))
            raise
        started = replace(resource, length=length, expires_at=self._holding.expiry(resource))
        await self._holding.commit(started, resource.holder)
        return started

    async def _make(self, resource: Resource, parts: list[tuple[str, int, Mark]]) -> tuple[Resource, Unfinished]:
        assert resource.holder is not None
        name = resource.upload_id, resource.holder.fence
        try:
            mark, file = await self._seen_at_work(resource, self._holding.made(name, parts))
            whole = replace(
                resource, offset=mark.offset, digest_state=mark.digest_state, file_fence=name[1], holder=None
            )
            await self._holding.commit_open(whole, resource.holder, file)
        except NotStored:
            raise
        except StorageFull as error:
            await self._holding.fail(resource, Failure(code=error.code, detail=str(error)))
            raise
        except Unavailable:
            await self._holding.release(resource)  # its file stays: the commit may have succeeded after all
            raise
        except BaseException:
            await self._holding.release(resource)
            await self._storage.remove_unfinished([name])
            raise
        return whole, file

    async def _seen_at_work(
        self, resource: Resource, work: Coroutine[Any, Any, tuple[Mark, Unfinished]]
    ) -> tuple[Mark, Unfinished]:
        """Do the work, and record every few seconds that it is under way; raises Preempted if the lock is lost.

        A database that is away does not stop the work.
        """
        assert resource.holder is not None
        working = asyncio.create_task(work, name=f"waybill-assemble-{resource.upload_id}")
        try:
            while not (await asyncio.wait((working,), timeout=SEEN_SECONDS))[0]:
                with suppress(Unavailable):
                    if not await records.see(self._db, resource.key_hash, resource.holder, self._now_us()):
                        raise Preempted
            return working.result()
        except BaseException:
            working.cancel()
            await run_to_completion(asyncio.wait((working,)))
            if not working.cancelled() and working.exception() is None:
                await working.result()[1].detach()
            raise
