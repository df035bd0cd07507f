"""Completion: a fully received upload is published and recorded like any other, exactly once.

    row fully received → file published → record completed → row ended

An upload is fully received when its offset is its length; only then may its file be published,
so every process publishes the same bytes. Each step can be repeated by any process, after a
crash too: for the next request that asks, or by the sweep. The process that has the file open
does the work; the others wait for it.
"""

import asyncio
import functools
from collections.abc import Coroutine
from dataclasses import replace
from typing import Any, Final

import structlog

from app.db.database import Db
from app.db.queryable import Transaction
from app.errors import DigestMismatch, Gone, InProgress, Unavailable, UploadError
from app.model import Clock, Failure, Holder, Resource, Status, Upload
from app.resumables import records
from app.resumables.concatenation import Concatenations
from app.resumables.transitions import Holding, verify
from app.storage import InUse, NotStored, Partial, Storage
from app.uploads.group_commit import Publisher
from app.uploads.landing import Incoming

log = structlog.stdlib.get_logger("waybill.completion")

_PATIENCE_SECONDS: Final = 10.0
_POLL_SECONDS: Final = 0.05
_USED: Final = Failure(code="gone", detail="the part has become part of what it was for")


class Completions:
    """Completes uploads, each once at a time in this process."""

    def __init__(
        self,
        storage: Storage,
        db: Db,
        publisher: Publisher,
        holding: Holding,
        concatenations: Concatenations,
        *,
        counts_quotas: bool,
        now_us: Clock,
    ) -> None:
        self._storage = storage
        self._db = db
        self._publisher = publisher
        self._holding = holding
        self._concatenations = concatenations
        self._counts_quotas = counts_quotas
        self._now_us = now_us
        self._running: dict[str, asyncio.Task[Resource]] = {}
        self.owed: set[str] = set()
        """The key hashes of uploads that this process could not complete, for a passing reason; see `recovery`."""

    def begin(self, resource: Resource, *, asked: bool = True, dead: Holder | None = None) -> "asyncio.Task[Resource]":
        """Begin to complete an upload; assemble a concatenation that has all its parts, leave one that waits for some.

        Another process at work on it is left alone, or waited for where that is a matter of seconds,
        except a holder that is known to be `dead`. When no client `asked`, there is no need to wait, and
        no upload is given up as lost: the store may be the wrong one.
        """
        running = self._running.get(resource.key_hash)
        if running is not None:
            return running
        work = self._complete if resource.whole else self._assemble
        return self._start(resource, work(resource, asked=asked, dead=dead))

    def owe(self, resource: Resource) -> None:
        """Have an upload that is, or may be, fully received completed as soon as possible, without a request for it."""
        self.owed.add(resource.key_hash)

    def is_at(self, key_hash: str) -> bool:
        """Whether this process is completing the upload."""
        return key_hash in self._running

    async def of(self, resource: Resource, *, asked: bool = True, dead: Holder | None = None) -> Resource:
        """Complete an upload as `begin` does, and wait for it.

        Raises:
            Unavailable: completion takes longer, and goes on.
            UploadError: it failed, for now or for good.
        """
        task = self.begin(resource, asked=asked, dead=dead)
        await asyncio.wait((task,), timeout=_PATIENCE_SECONDS)
        if not task.done():
            raise Unavailable("the upload is being completed; ask again")
        return task.result()

    async def part_is_whole(self, part: Resource) -> None:
        """Begin to complete the concatenations that waited only for this part, without waiting for them."""
        try:
            for waiting in await records.list_waiting(self._db, part):
                running = self._running.get(waiting.key_hash)
                if running is not None:  # it may have looked before this part was fully received
                    running.add_done_callback(functools.partial(self._begin_after, waiting))
                self.begin(waiting)
        except UploadError as error:
            log.warning("what waits for a part is completed later", upload=part.upload_id, reason=str(error))
            self.owe(part)

    def _begin_after(self, resource: Resource, _: "asyncio.Task[Resource]") -> None:
        self.begin(resource)

    async def last_bytes(self, resource: Resource, held_by: Holder, partial: Partial) -> Resource:
        """Commit the last bytes of the `resource`, and complete it. A cancelled caller does not stop that.

        Raises:
            Preempted: another request holds the writer lock now.
            UploadError: it failed, for now or for good.
        """
        task = self._start(resource, self._commit_and_publish(resource, held_by, partial))
        await asyncio.wait((task,))
        return task.result()

    async def close(self, grace_seconds: float) -> None:
        """Wait for completions that are under way, but no longer than the grace."""
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
            if error is None or (isinstance(error, UploadError) and error.status < 500):
                self._holding.forget(resource)
            else:
                self.owe(resource)

        task.add_done_callback(ended)
        return task

    async def _commit_and_publish(self, resource: Resource, held_by: Holder, partial: Partial) -> Resource:
        await self._holding.commit_open(resource, held_by, partial)
        return await self._publish(resource, partial)

    async def _complete(self, resource: Resource, *, asked: bool, dead: Holder | None = None) -> Resource:
        """Complete a fully received upload from whatever step it was left at."""
        if resource.completed:
            return await self._conclude(resource, resource.upload)
        # Asked first: a published file may still have its old name as well, and must not be written to any more.
        if not await self._storage.missing([resource.upload_id]):
            return await self._record_published(resource)
        try:
            found, partial = await self._file_left(resource, waits=asked)
        except NotStored:
            if await self._storage.missing([resource.upload_id]):
                if not asked:
                    raise Unavailable("the file of an upload is missing") from None
                await self._holding.lose(resource)
            return await self._record_published(resource)  # just now
        return await self._publish(found, partial) if partial else await self._outcome(resource)

    async def _file_left(self, resource: Resource, *, waits: bool) -> tuple[Resource, Partial | None]:
        """Open the file once its writer has left it, or a copy if it never does; None if the writer completed it."""
        clock = asyncio.get_running_loop().time
        deadline = clock() + (_PATIENCE_SECONDS if waits else 0)
        while True:
            try:
                return resource, await self._holding.opened(resource)
            except InUse:
                if not waits:
                    raise InProgress("another process completes the upload") from None
            if clock() >= deadline:
                break
            await asyncio.sleep(_POLL_SECONDS)
            found = await records.find(self._db, resource.key_hash)
            if found is None or found.ended_as is not None or found.completed:
                return resource, None
            resource = found
        taken, held = await self._holding.take(resource, resource.holder)
        if taken.completed:
            return taken, None
        if not held:
            raise InProgress("another process completes the upload")
        log.warning("an upload was not completed by who was at it", upload=taken.upload_id)
        return await self._holding.copied(taken)

    async def _assemble(self, resource: Resource, *, asked: bool, dead: Holder | None) -> Resource:
        """Assemble a concatenation, if all its parts are fully received, and complete it."""
        found, partial = await self._concatenations.put_together(resource, asked=asked, dead=dead)
        if partial is not None:
            return await self._publish(found, partial)
        return await self._complete(found, asked=asked) if found.whole and not found.completed else found

    async def _publish(self, resource: Resource, partial: Partial) -> Resource:
        try:
            await verify(resource.digests, partial)
            await partial.finish()
            [upload] = await self._publisher.land(
                [_incoming(resource, partial)], None, allowances=(resource.key_hash,) if self._counts_quotas else ()
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
        """Return the upload if another process has completed it meanwhile; else raise the error."""
        try:
            found = await records.find(self._db, resource.key_hash)
        except UploadError:
            raise error from None
        if found is None or not found.completed:
            raise error
        return found

    async def published_before(self, resource: Resource) -> Resource | None:
        """Complete an upload whose file is published although, according to the database, bytes are missing.

        After a fail-over that lost the last commits, or with an older database: its client has the
        201 and will not come back.
        """
        if await self._storage.missing([resource.upload_id]):
            return None
        taken, held = await self._holding.take(resource, resource.holder)
        return await self._record_published(taken) if held and not taken.completed else taken

    async def _record_published(self, resource: Resource) -> Resource:
        """Record a file that was published, but whose record, after a crash, is not completed."""
        await self._storage.make_durable(resource.upload_id)
        size, sha256 = await self._storage.digest(resource.upload_id)
        is_longer = not resource.whole and resource.length in {None, size} and size >= resource.offset
        if not (is_longer or size == resource.offset) or sha256 != (resource.digests.sha256 or sha256):
            log.error("a published file is not what was acknowledged", upload=resource.upload_id, size=size)
            await self._holding.lose(resource)
        if not resource.whole:
            assert resource.holder is not None
            held_by, resource = resource.holder, replace(resource, offset=size, length=size, holder=None)
            await self._holding.commit(replace(resource, digest_state=None), held_by)
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

    async def _conclude(self, resource: Resource, upload: Upload | None) -> Resource:
        """End the row of an upload that is published and recorded, which may be late."""

        async def run(transaction: Transaction) -> Resource | None:
            await records.end(transaction, resource, "completed", remembered_until_us=self._holding.remembered_until)
            return await records.find(transaction, resource.key_hash)

        try:
            ended = await self._db.transaction(run)
        except Unavailable as error:
            log.warning("that an upload is completed is noted later", upload=resource.upload_id, reason=str(error))
            self.owe(resource)
            return replace(resource, upload=upload, holder=None)
        if ended is None or ended.completed:
            if self._counts_quotas:
                await self._end_parts(resource)
            return ended or replace(resource, upload=upload, holder=None)
        # The upload was cancelled just now, and its record says so: the file will never be needed.
        await self._storage.remove([resource.upload_id])
        raise Gone

    async def _end_parts(self, resource: Resource) -> None:
        """End the parts that no other concatenation needs: their bytes count towards a quota as long as they exist."""
        try:
            found = await records.list_these(self._db, resource.parts or ())
            for part in found.values():
                if part.ended_as is None and not await records.list_waiting(self._db, part):
                    await self._holding.end(part, "cancelled", _USED)
        except UploadError as error:
            log.warning("parts of an upload stay until they expire", upload=resource.upload_id, reason=str(error))

    async def _outcome(self, resource: Resource) -> Resource:
        found = await records.find(self._db, resource.key_hash)
        if found is None or not found.completed:
            raise Gone
        return found


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
