"""What is whole becomes an upload like any other: published, recorded, and once only.

    row whole → file published → record completed → row ended

A row is whole when its offset is its length; only then may its file be published, so
whoever publishes it publishes the same bytes. Each step can be repeated by anybody, after a
crash too: by the next request that asks, or by the sweep. Who has the file open is at it;
the others wait for that.
"""

import asyncio
import functools
from collections.abc import Coroutine
from dataclasses import replace
from typing import Any, Final

import structlog

from app import resources
from app.batches import Incoming
from app.db import Db, Unit
from app.errors import DigestMismatch, Gone, QuotaExceeded, StorageFull, TooLarge, Unavailable, UploadError
from app.holding import Holding, mark_of
from app.model import Clock, Failure, Resource, Status, Upload
from app.publish import Publisher
from app.quota import Quotas
from app.storage import InUse, Mark, NotStored, Partial, Reservation, Storage
from app.turns import Turns

log = structlog.stdlib.get_logger("waybill.completion")

_PATIENCE_SECONDS: Final = 10.0
_POLL_SECONDS: Final = 0.05
_ASSEMBLY_US: Final = 60_000_000
_ASSEMBLED_A_SECOND: Final = 20 * 1024 * 1024


class Completions:
    """Complete uploads, each once at a time in this process."""

    def __init__(
        self,
        storage: Storage,
        db: Db,
        publisher: Publisher,
        turns: Turns,
        holding: Holding,
        *,
        quotas: Quotas | None,
        file_bytes: int,
        idle_us: int,
        now_us: Clock,
    ) -> None:
        self._storage = storage
        self._db = db
        self._publisher = publisher
        self._turns = turns
        self._holding = holding
        self._quotas = quotas
        self._file_bytes = file_bytes
        self._idle_us = idle_us
        self._now_us = now_us
        self._running: dict[str, asyncio.Task[Resource]] = {}

    def begin(self, resource: Resource) -> "asyncio.Task[Resource]":
        """Complete what is whole; put together what has all its parts, and leave alone what waits for some."""
        running = self._running.get(resource.key_hash)
        if running is not None:
            return running
        return self._start(resource, self._complete(resource) if resource.whole else self._assemble(resource))

    async def of(self, resource: Resource) -> Resource:
        """The same, awaited.

        Raises:
            Unavailable: it takes its time; it goes on.
            UploadError: it failed, for now or for good.
        """
        task = self.begin(resource)
        await asyncio.wait((task,), timeout=_PATIENCE_SECONDS)
        if not task.done():
            raise Unavailable("the upload is being completed; ask again")
        return task.result()

    async def part_is_whole(self, part: Resource) -> None:
        """Complete what waited for this part only; that is not waited for."""
        try:
            for waiting in await resources.list_waiting(self._db, part):
                running = self._running.get(waiting.key_hash)
                if running is not None:  # it may have looked before this part was whole
                    running.add_done_callback(functools.partial(self._begin_after, waiting))
                self.begin(waiting)
        except UploadError as error:
            log.warning("what waits for a part is completed later", upload=part.upload_id, reason=str(error))

    def _begin_after(self, resource: Resource, _: "asyncio.Task[Resource]") -> None:
        self.begin(resource)

    async def last_bytes(self, resource: Resource, held_by: int, partial: Partial) -> Resource:
        """Commit the `resource` that has just become whole, and complete it. A cancelled caller does not stop that.

        Raises:
            Superseded: somebody else holds it now.
            UploadError: it failed, for now or for good.
        """
        task = self._start(resource, self._commit_and_publish(resource, held_by, partial))
        await asyncio.wait((task,))
        return task.result()

    async def close(self, grace_seconds: float) -> None:
        """Wait for what is under way, but no longer than the grace."""
        clock = asyncio.get_running_loop().time
        deadline = clock() + grace_seconds
        while self._running and clock() < deadline:
            await asyncio.wait(self._running.values(), timeout=deadline - clock())
        if late := list(self._running.values()):
            log.warning("uploads are still being completed at the end of the grace", uploads=len(late))
            for task in late:
                task.cancel()
            await asyncio.wait(late)

    def _start(self, resource: Resource, work: Coroutine[Any, Any, Resource]) -> "asyncio.Task[Resource]":
        task = asyncio.create_task(work, name=f"waybill-complete-{resource.upload_id}")
        self._running[resource.key_hash] = task

        def ended(task: "asyncio.Task[Resource]") -> None:
            if self._running.get(resource.key_hash) is task:
                del self._running[resource.key_hash]
            error = None if task.cancelled() else task.exception()
            if error is not None and not isinstance(error, UploadError):
                log.error("an upload could not be completed", upload=resource.upload_id, exc_info=error)

        task.add_done_callback(ended)
        return task

    # --- publishing

    async def _commit_and_publish(self, resource: Resource, held_by: int, partial: Partial) -> Resource:
        await self._holding.commit_open(resource, held_by, partial)
        return await self._publish(resource, partial)

    async def _complete(self, resource: Resource) -> Resource:
        """Complete a whole one that somebody left, wherever that was."""
        # Asked first: what is published may lie under its old name as well, and is not to be written to any more.
        if not await self._storage.missing([resource.upload_id]):
            return await self._record_published(resource)
        try:
            partial = await self._file_left(resource)
        except NotStored:
            if await self._storage.missing([resource.upload_id]):
                await self._holding.lose(resource)
            return await self._record_published(resource)  # in this very moment
        return await self._publish(resource, partial) if partial else await self._outcome(resource)

    async def _file_left(self, resource: Resource) -> Partial | None:
        """The file, once nobody is at it any more, or a copy if that never happens; None when the other was done."""
        clock = asyncio.get_running_loop().time
        deadline = clock() + _PATIENCE_SECONDS
        while clock() < deadline:
            try:
                return await self._storage.partial(resource.upload_id, resource.file_fence, mark_of(resource))
            except InUse:
                await asyncio.sleep(_POLL_SECONDS)
            found = await resources.find(self._db, resource.key_hash)
            if found is None or found.ended_as is not None or found.completed:
                return None
            resource = found

        async def take(unit: Unit) -> Resource:
            claimed = await resources.claim(unit, resource.key_hash, holds=False)
            if claimed is not None:
                await resources.pass_on(unit, resource.key_hash, claimed[0], holds=True)
            return _there(await resources.find(unit, resource.key_hash))

        taken = await self._db.transaction(take)
        if taken.completed:
            return None
        log.warning("an upload was not completed by who was at it", upload=taken.upload_id)
        _, partial = await self._holding.copied(taken)
        return partial

    async def _publish(self, resource: Resource, partial: Partial) -> Resource:
        try:
            await partial.finish()
            if resource.expected_sha256 is not None and partial.sha256 != resource.expected_sha256:
                raise DigestMismatch(resource.expected_sha256, partial.sha256)
            [upload] = await self._publisher.land(
                [_incoming(resource, partial)], None, allowances=() if self._quotas is None else _granted(resource)
            )
        except DigestMismatch as error:
            await partial.detach()
            await self._holding.fail(resource, Failure(code=error.code, detail=str(error)))
            raise
        except UploadError as error:
            await partial.detach()
            return await self._completed_by_another(resource, error)
        finally:
            await partial.detach()
        return await self._conclude(resource, upload)

    async def _completed_by_another(self, resource: Resource, error: UploadError) -> Resource:
        """What somebody else has completed meanwhile; else the error is raised."""
        try:
            found = await resources.find(self._db, resource.key_hash)
        except UploadError:
            raise error from None
        if found is None or not found.completed:
            raise error
        return found

    async def _record_published(self, resource: Resource) -> Resource:
        """Record a file that has its key but, after a crash, no record that says so."""
        await self._storage.make_durable(resource.upload_id)
        size, sha256 = await self._storage.digest(resource.upload_id)
        if size != resource.offset or sha256 != (resource.expected_sha256 or sha256):
            log.error("a published file is not what was acknowledged", upload=resource.upload_id, size=size)
            await self._holding.lose(resource)
        assert resource.upload is not None
        upload = resource.upload.model_copy(
            update={
                "size": size,
                "sha256": sha256,
                "status": Status.COMPLETED,
                "completed_at": max(self._now_us(), resource.created_at),
            }
        )
        await self._publisher.record([upload], None)
        return await self._conclude(resource, upload)

    async def _conclude(self, resource: Resource, upload: Upload) -> Resource:
        """It is published and recorded; now its row says so too, which may be late."""

        async def run(unit: Unit) -> Resource | None:
            await resources.end(unit, resource, "completed", remembered_until_us=self._holding.remembered_until)
            return await resources.find(unit, resource.key_hash)

        try:
            ended = await self._db.transaction(run)
        except Unavailable as error:
            log.warning("that an upload is completed is noted later", upload=resource.upload_id, reason=str(error))
            return replace(resource, upload=upload, holder=None)
        if ended is None or ended.completed:
            return ended or replace(resource, upload=upload, holder=None)
        # It was cancelled at this very moment, and its record says so: nobody will ever ask for the file.
        await self._storage.remove([resource.upload_id])
        raise Gone

    async def _outcome(self, resource: Resource) -> Resource:
        found = await resources.find(self._db, resource.key_hash)
        if found is None or not found.completed:
            raise Gone
        return found

    # --- putting parts together

    async def _assemble(self, resource: Resource) -> Resource:
        """Make the file of one that is made of parts, if all of them are whole."""
        hashes = resource.parts or ()
        found = await resources.list_these(self._db, hashes)
        if any(each not in found or found[each].ended_as is not None for each in hashes):
            await self._holding.fail(
                resource, Failure(code="gone", detail="a part of it has ended before it was complete")
            )
            raise Gone
        parts = [found[each] for each in hashes]
        if not all(part.whole for part in parts):
            # As long as one of them grows, the others are needed, and so is what they are for.
            latest = max(each.expires_at for each in (resource, *parts))
            await resources.renew(self._db, [resource.key_hash, *hashes], latest)
            return resource
        length = sum(part.offset for part in parts)
        if resource.holder is not None and self._now_us() < self._is_done_by(resource, length):
            return resource
        claimed = await self._turns.claim(resource.key_hash, _there, holds=True)
        if claimed.completed or claimed.whole:
            return claimed if claimed.completed else await self._complete(claimed)
        try:
            if length > self._file_bytes:
                raise TooLarge(length, self._file_bytes)
            if self._quotas is not None:
                await self._quotas.grant_to(claimed, length)
        except (TooLarge, QuotaExceeded) as error:
            await self._holding.fail(resource, Failure(code=error.code, detail=str(error)))
            raise
        started = replace(claimed, length=length, expires_at=self._holding.expiry(claimed))
        await self._holding.commit(started, claimed.fence)
        return await self._put_together(started, [(part.upload_id, part.file_fence, mark_of(part)) for part in parts])

    def _is_done_by(self, resource: Resource, length: int) -> int:
        """Until when whoever holds it, in another process, is left to put it together: it was begun at `expiry`."""
        return resource.expires_at - self._idle_us + _ASSEMBLY_US + length * 1_000_000 // _ASSEMBLED_A_SECOND

    async def _put_together(self, resource: Resource, parts: list[tuple[str, int, Mark]]) -> Resource:
        name = resource.upload_id, resource.fence
        try:
            mark = await self._storage.assemble(*name, parts)
            partial = await self._storage.partial(*name, mark)
            whole = replace(
                resource, offset=mark.offset, digest_state=mark.digest_state, file_fence=name[1], holder=None
            )
            await self._holding.commit_open(whole, resource.fence, partial)
        except NotStored:
            await self._holding.lose(resource)
        except StorageFull as error:
            await self._holding.fail(resource, Failure(code=error.code, detail=str(error)))
            raise
        except Unavailable:
            await self._holding.release(resource)  # its file stays: that it is whole may be noted after all
            raise
        except BaseException:
            await self._holding.release(resource)
            await self._storage.remove_partials([name])
            raise
        return await self._publish(whole, partial)

    # --- for who goes on with it

    async def opened(self, resource: Resource, reservation: Reservation | None) -> tuple[Resource, Partial]:
        """The file of an upload that the caller holds, for appending; a copy of it if another may still write there.

        Raises:
            Gone: bytes that had been acknowledged are not there; it has failed.
            Superseded: the caller does not hold it any more.
            Unavailable: it was complete, which the database, older than the files, had yet to learn.
        """
        try:
            place = resource.upload_id, resource.file_fence, mark_of(resource)
            return resource, await self._storage.partial(*place, reservation)
        except InUse:
            log.warning("a file is in use still, its upload goes on in a copy", upload=resource.upload_id)
        except NotStored:
            if resource.length is None or await self._storage.missing([resource.upload_id]):
                await self._holding.lose(resource)
            assert resource.holder is not None
            whole = replace(resource, offset=resource.length, digest_state=None)
            await self._holding.commit(whole, resource.holder)
            await self._record_published(whole)
            raise Unavailable("the upload is complete; ask for its offset", retry_after=1) from None
        return await self._holding.copied(resource)


def _incoming(resource: Resource, partial: Partial) -> Incoming:
    return Incoming(
        id=resource.upload_id,
        session_id=resource.session_id,
        filename=resource.filename,
        content_type=resource.content_type,
        protocol=resource.protocol,
        created_at=resource.created_at,
        staged=partial,
        stays=True,
    )


def _granted(resource: Resource) -> tuple[str, ...]:
    """What of the session's quota was granted for it: it, or its parts, count as an upload from now on."""
    return (resource.key_hash, *(resource.parts or ()))


def _there(resource: Resource | None) -> Resource:
    """Of an upload that is being completed: whatever became of it."""
    if resource is None or resource.ended_as not in {None, "completed"}:
        raise Gone
    return resource
