"""Completion: a fully received upload is published and recorded like any other, exactly once.

    row fully received → file published → record completed → row ended

An upload is fully received when its offset is its length; only then may its file be published,
so every process publishes the same bytes (a small upload is published earlier, see `small`).
Each step can be repeated by any process, after a crash too: for the next request that asks, or
by the sweep. The process that has the file open does the work; the others wait for it.
"""

import asyncio
from dataclasses import replace
from typing import Final

import structlog

from app.annotations import NO_ANNOTATIONS
from app.db.database import Db
from app.db.queryable import Transaction
from app.errors import DigestMismatch, Gone, InProgress, Unavailable, UploadError
from app.model import Clock, Failure, Holder, Resource, Status, Upload
from app.resumables import records
from app.resumables.assembly import Assembler
from app.resumables.transitions import Holding, begins_as_acknowledged, verify
from app.storage import InUse, NotStored, Staged, Storage, Unfinished
from app.uploads.group_commit import Publisher
from app.uploads.landing import Incoming

log = structlog.stdlib.get_logger("waybill.completion")

PATIENCE_SECONDS: Final = 10.0
_POLL_SECONDS: Final = 0.05
_USED: Final = Failure(code="gone", detail="the part has become part of what it was for")


class Completion:
    """The steps of completion. The caller sees to it that this process does them once at a time for an upload."""

    def __init__(
        self,
        storage: Storage,
        db: Db,
        publisher: Publisher,
        holding: Holding,
        assembler: Assembler,
        *,
        counts_quotas: bool,
        now_us: Clock,
    ) -> None:
        self._storage = storage
        self._db = db
        self._publisher = publisher
        self._holding = holding
        self._assembler = assembler
        self._counts_quotas = counts_quotas
        self._now_us = now_us
        self.owed: set[str] = set()
        """The key hashes of uploads that this process could not complete, for a passing reason; see `recovery`."""

    async def commit_and_publish(self, resource: Resource, held_by: Holder, file: Unfinished) -> Resource:
        """Commit the last bytes of the `resource`, and complete it.

        Raises:
            Preempted: another request holds the writer lock now.
            UploadError: it failed, for now or for good.
        """
        await self._holding.commit_open(resource, held_by, file)
        return await self._publish(resource, file)

    async def complete(self, resource: Resource, *, asked: bool, dead: Holder | None = None) -> Resource:
        """Complete a fully received upload from whatever step it was left at."""
        if resource.completed:
            return await self._conclude(resource, resource.upload)
        # Asked first: a published file may still have its old name as well, and must not be written to any more.
        if not await self._storage.missing([resource.upload_id]):
            return await self._record_published(resource)
        try:
            found, file = await self._file_left(resource, waits=asked)
        except NotStored:
            if await self._storage.missing([resource.upload_id]):
                if not asked:
                    raise Unavailable("the file of an upload is missing") from None
                await self._holding.lose(resource)
            return await self._record_published(resource)  # just now
        return await self._publish(found, file) if file else await self._outcome(resource)

    async def _file_left(self, resource: Resource, *, waits: bool) -> tuple[Resource, Unfinished | None]:
        """Open the file once its writer has left it, or a copy if it never does; None if the writer completed it."""
        clock = asyncio.get_running_loop().time
        deadline = clock() + (PATIENCE_SECONDS if waits else 0)
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
        log.warning("completion taken over from another process", upload=taken.upload_id)
        return await self._holding.copied(taken)

    async def assemble(self, resource: Resource, *, asked: bool, dead: Holder | None) -> Resource:
        """Assemble a concatenation, if all its parts are fully received, and complete it."""
        found, file = await self._assembler.put_together(resource, asked=asked, dead=dead)
        if file is not None:
            return await self._publish(found, file)
        return await self.complete(found, asked=asked) if found.fully_received and not found.completed else found

    async def _publish(self, resource: Resource, file: Unfinished) -> Resource:
        try:
            await verify(resource.digests, file)
            await file.finish()
            [upload] = await self._publisher.land(
                [incoming(resource, file)], None, allowances=(resource.key_hash,) if self._counts_quotas else ()
            )
        except DigestMismatch as error:
            await file.detach()
            await self._holding.fail(resource, Failure(code=error.code, detail=str(error)))
            raise
        except UploadError as error:
            await file.detach()
            return await self.completed_by_another(resource, error)
        finally:
            await file.detach()
        return await self._conclude(resource, upload)

    async def completed_by_another(self, resource: Resource, error: UploadError) -> Resource:
        """Return the upload if another process has completed it meanwhile; else raise the error.

        If it was cancelled meanwhile, no record will ever name the file that we may have published.
        """
        try:
            found = await records.find(self._db, resource.key_hash)
            if found is not None and found.ended_as in {"cancelled", "failed"} and not found.completed:
                await self._storage.set_aside([resource.upload_id])
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
        if await self._storage.missing([resource.upload_id]) or not await begins_as_acknowledged(
            self._storage, resource
        ):
            return None
        taken, held = await self._holding.take(resource, resource.holder)
        return await self._record_published(taken) if held and not taken.completed else taken

    async def _record_published(self, resource: Resource) -> Resource:
        """Record a file that was published, but whose record, after a crash, is not completed."""
        await self._storage.make_durable(resource.upload_id)
        size, sha256 = await self._storage.digest(resource.upload_id)
        if resource.fully_received and not (
            size == resource.offset and await begins_as_acknowledged(self._storage, resource)
        ):
            return await self._publish_instead(resource)
        is_longer = not resource.fully_received and resource.length in {None, size} and size >= resource.offset
        if not (is_longer or size == resource.offset) or sha256 != (resource.digests.sha256 or sha256):
            log.error("published file differs from acknowledged bytes", upload=resource.upload_id, size=size)
            await self._holding.lose(resource)
        if not resource.fully_received:
            assert resource.holder is not None
            held_by, resource = resource.holder, replace(resource, offset=size, length=size, holder=None)
            await self._holding.commit(replace(resource, digest_state=None), held_by)
        upload = _completed(resource, size, sha256, self._now_us())
        await self._publisher.record([upload], None)
        return await self._conclude(resource, upload)

    async def _publish_instead(self, resource: Resource) -> Resource:
        """Publish the acknowledged bytes, and set aside those that a preempted writer published."""
        log.warning("published file of a preempted writer set aside", upload=resource.upload_id)
        try:
            file = await self._holding.opened(resource)
        except NotStored:
            await self._holding.lose(resource)
        except InUse:
            raise InProgress("another process completes the upload") from None
        await self._storage.set_aside([resource.upload_id])
        return await self._publish(resource, file)

    async def _conclude(self, resource: Resource, upload: Upload | None) -> Resource:
        """End the row of an upload that is published and recorded, which may be late."""

        async def run(transaction: Transaction) -> Resource | None:
            await records.end(transaction, resource, "completed", remembered_until_us=self._holding.remembered_until)
            return await records.find(transaction, resource.key_hash)

        try:
            ended = await self._db.transaction(run)
        except Unavailable as error:
            log.warning("completion not recorded", upload=resource.upload_id, reason=str(error))
            self.owed.add(resource.key_hash)
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
            log.warning("parts of a completed upload not ended", upload=resource.upload_id, reason=str(error))

    async def _outcome(self, resource: Resource) -> Resource:
        found = await records.find(self._db, resource.key_hash)
        if found is None or not found.completed:
            raise Gone
        return found


def _completed(resource: Resource, size: int, sha256: str, at: int) -> Upload:
    """The record of an upload whose file was published by another process, or before a crash."""
    assert resource.upload is not None
    return resource.upload.model_copy(
        update={
            "size": size,
            "sha256": sha256,
            "status": Status.COMPLETED,
            "completed_at": max(at, resource.created_at),
        }
    )


def incoming(resource: Resource, file: Staged) -> Incoming:
    return Incoming(
        id=resource.upload_id,
        session_id=resource.session_id,
        filename=resource.filename,
        content_type=resource.content_type,
        protocol=resource.protocol,
        created_at=resource.created_at,
        staged=file,
        annotations=NO_ANNOTATIONS if resource.upload is None else resource.upload.annotations,
        stays=True,
    )
