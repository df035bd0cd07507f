"""Appending: one request acquires the writer lock, stages bytes, commits checkpoints, and releases the lock."""

import asyncio
from dataclasses import replace
from types import TracebackType
from typing import Final, Self

import structlog

from app.cancellation import run_to_completion
from app.errors import (
    BadRequest,
    DigestMismatch,
    InconsistentUploadLength,
    OffsetMismatch,
    TooLarge,
    Unavailable,
    UploadError,
)
from app.model import Digests, Failure, Resource
from app.quotas import STEP_BYTES
from app.resumables.completion import Completions
from app.resumables.transitions import Holding, verify
from app.resumables.writer_lock import Admitted, WriterLock, WriterLocks
from app.storage import InUse, Mark, NotStored, Partial, Reservation
from app.uploads.ingest import Ingest

log = structlog.stdlib.get_logger("waybill.appending")

CHECKPOINT_BYTES: Final = 64 * 1024 * 1024
CHECKPOINT_SECONDS: Final = 5.0
"""A crash loses no more than this of a request; a flush is cheap, since the blocks are on the disk already."""


class Appending:
    """A request that appends. Enter it, `write`, then `keep`, `complete` or `discard`; leave it.

    A newer request, and the service's shutdown, cancel the task inside; leaving then raises
    Preempted or Unavailable, and the bytes that had arrived are kept. `offset` counts the bytes
    that have arrived, `durable` those that would survive a crash.
    """

    resource: Resource

    def __init__(
        self,
        ingest: Ingest,
        writer_locks: WriterLocks,
        completions: Completions,
        holding: Holding,
        key_hash: str,
        admitted: Admitted,
        *,
        offset: int,
        declared: int | None,
        length: int | None,
        checked: bool,
        digests: Digests,
    ) -> None:
        self.offset = offset
        self.durable = offset
        self._ingest = ingest
        self._writer_locks = writer_locks
        self._completions = completions
        self._holding = holding
        self._key_hash = key_hash
        self._admitted = admitted
        self._declared = declared
        self._length = length
        self._checked = checked
        self._digests = digests
        self._most = offset
        self._granted = 0
        self._reservation: Reservation | None = None
        self._turn: WriterLock | None = None
        self._partial: Partial | None = None
        self._began: Mark | None = None
        self._checkpointed_at = 0.0
        self._entered = ingest.metrics.stopwatch()

    async def __aenter__(self) -> Self:
        self._reservation = self._ingest.admit(self, self._declared)
        try:
            await self._attach()
        except BaseException:
            await run_to_completion(self._leave(keep=False))
            raise
        return self

    async def _attach(self) -> None:
        resource = await self._writer_locks.claim(self._key_hash, self._admitted, holds=True)
        if resource.whole and not resource.is_part and not resource.completed:
            resource = await self._completions.of(resource)
        self.resource = resource
        if not resource.completed:  # else nothing is appended; a client that lost the answer gets it again
            self._turn = self._writer_locks.begin(resource)
        self._ingest.count(self, resource.session_id)
        self._check(resource)
        if self._turn is None:
            return
        await self._require_quota(self.offset + (self._declared or 0))
        self.resource, self._partial = await self._open(resource)
        self.resource = replace(self.resource, digests=self.resource.digests.joined_with(self._digests))
        if self._turn.reason is not None:
            raise self._turn.reason
        self._began = Mark(self.resource.offset, self.resource.digest_state)
        self._checkpointed_at = asyncio.get_running_loop().time()
        self._turn.open()

    async def _open(self, resource: Resource) -> tuple[Resource, Partial]:
        """Open the file of the upload, whose lock we hold; or a copy of it if another may still write there.

        Raises:
            Gone: acknowledged bytes are missing; the upload has failed.
            Preempted: we do not hold the lock any more.
            Unavailable: the file was published, which the database, older than the files, did not know.
        """
        try:
            return resource, await self._holding.opened(resource, self._reservation)
        except InUse:
            log.warning("a file is in use still, its upload goes on in a copy", upload=resource.upload_id)
        except NotStored:
            if await self._completions.published_before(resource) is None:
                await self._holding.lose(resource)
            raise Unavailable("the upload is complete; ask for its offset", retry_after=1) from None
        return await self._holding.copied(resource)

    def _check(self, resource: Resource) -> None:
        if self.offset != resource.offset:
            raise OffsetMismatch(resource.offset, self.offset)
        if not self._digests.agrees_with(resource.digests):
            raise BadRequest("this request and one before it declare different digests of the whole file")
        if resource.length is not None and self._length not in {None, resource.length}:
            raise InconsistentUploadLength(resource.length, self._length or 0)
        most = self._ingest.limits.file_bytes
        length = resource.length if self._length is None else self._length
        if length is not None:
            if length > most:
                raise TooLarge(length, most)
            if length < self.offset:
                raise InconsistentUploadLength(self.offset, length)
            most = length
        self._length, self._most = length, most
        if self._declared is not None and self.offset + self._declared > most:
            raise TooLarge(self.offset + self._declared, most)

    async def _require_quota(self, size: int, *, more: int = 0) -> None:
        quotas = self._ingest.quotas
        if quotas is not None and size > self._granted:
            self._granted = await quotas.grant_to(self.resource, max(size, self._length or 0), more=more)

    async def write(self, block: bytes | memoryview) -> None:
        """Take the next bytes.

        Raises:
            TooLarge: they pass the upload's length, or the limit.
            QuotaExceeded: they pass the session's quota.
            StorageFull, Unavailable: they cannot be stored.
        """
        self._ingest.metrics.received[self.resource.protocol].add(len(block))
        if self.offset + len(block) > self._most:
            self._checked = True  # a body that runs past the end may be another file's: none of it counts
            raise TooLarge(self.offset + len(block), self._most)
        if self._turn is None or self._partial is None:
            return  # the upload is completed, and the body empty
        with self._turn.undisturbed():
            await self._require_quota(self.offset + len(block), more=STEP_BYTES)
            await self._partial.write(block)
            self.offset += len(block)
            # The last byte is committed on completion: until then others may have to wait for us.
            if not self._checked and self.offset < self._most and self._is_due():
                await self._checkpoint(self._partial)
        if self._turn.reason is not None:
            raise self._turn.reason

    def _is_due(self) -> bool:
        late = asyncio.get_running_loop().time() - self._checkpointed_at >= CHECKPOINT_SECONDS
        return late or self.offset - self.durable >= CHECKPOINT_BYTES

    async def _checkpoint(self, partial: Partial) -> None:
        resource = self._at(await partial.checkpoint())
        assert resource.holder is not None
        try:
            await self._holding.commit(resource, resource.holder)
        except Unavailable as error:
            log.warning("how far an upload came is noted later", upload=resource.upload_id, reason=str(error))
            self._began = None  # the commit may have succeeded after all: nothing may be cut off any more
        else:
            self.resource, self.durable = resource, resource.offset
            self._began = Mark(resource.offset, resource.digest_state)
        self._checkpointed_at = asyncio.get_running_loop().time()

    async def keep(self) -> Resource:
        """Make all bytes that arrived durable and commit them; after the last byte, complete the upload.

        Raises:
            Preempted: this request has lost the writer lock: only its `durable` bytes count.
            DigestMismatch: the complete file does not have the declared digest; the upload has failed.
            StorageFull, Unavailable: the bytes could not be kept, or the upload not completed now. Ask for the offset.
        """
        if self._turn is not None:
            metrics = self._ingest.metrics
            metrics.stages["receive"].observe(metrics.stopwatch() - self._entered)
            with self._turn.undisturbed():
                await run_to_completion(self._keep(self._length))
        return self.resource

    async def complete(self) -> Resource:
        """Keep the bytes and declare them the last: the upload has its present length, and is completed.

        Raises:
            InconsistentUploadLength: another length was declared; the bytes are kept.
        """
        if self._length not in {None, self.offset}:
            kept = await self.keep()
            raise InconsistentUploadLength(self._length or 0, kept.offset)
        self._length = self.offset
        return await self.keep()

    async def discard(self) -> None:
        """Discard all bytes of this request."""
        if self._turn is not None:
            self._turn.shut()
            await run_to_completion(self._leave(keep=False))

    async def _keep(self, length: int | None) -> None:
        """Commit the bytes and release the upload, in this order; or hand it over to be completed."""
        assert self._turn is not None
        assert self._partial is not None
        mark = await self._partial.checkpoint()
        resource = replace(self._at(mark), holder=None, length=length)
        partial, self._partial = self._partial, None
        held_by = self.resource.holder
        assert held_by is not None
        if resource.whole and not resource.is_part:
            self.resource = await self._completions.last_bytes(resource, held_by, partial)
            self.durable = self.resource.offset
            self._writer_locks.leave(self._turn)
            return
        if resource.is_part and resource.whole:
            await self._verify(resource.digests, partial)
        await partial.detach()  # first: the next holder of the lock opens the file
        try:
            await self._holding.commit(resource, held_by)
        except Unavailable:
            if resource.whole:  # the commit may have succeeded after all, so the client may not come back
                self._completions.owe(resource)
            raise
        self.resource, self.durable = resource, resource.offset
        self._writer_locks.leave(self._turn)
        if resource.is_part and resource.whole:
            await self._completions.part_is_whole(resource)

    async def _verify(self, digests: Digests, partial: Partial) -> None:
        """Compare a fully received part with its declared digests; a part that differs has failed for good."""
        try:
            await verify(digests, partial)
        except BaseException as error:
            await partial.detach()
            if isinstance(error, DigestMismatch):
                await self._holding.fail(self.resource, Failure(code=error.code, detail=str(error)))
            raise

    def _at(self, mark: Mark) -> Resource:
        """The upload as it is once all bytes up to the mark count."""
        upload = self.resource.upload
        return replace(
            self.resource,
            offset=mark.offset,
            digest_state=mark.digest_state,
            expires_at=self._holding.expiry(self.resource),
            upload=None if upload is None else upload.model_copy(update={"size": mark.offset}),
        )

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        cancelled: BaseException | None = error
        if self._turn is not None:
            self._turn.shut()
        try:
            await run_to_completion(self._leave(keep=not self._checked))
        except asyncio.CancelledError as late:
            cancelled = late
        refusal = self._turn.stopped(cancelled) if self._turn is not None else None
        if refusal is not None:
            raise refusal from None
        if cancelled is not error and cancelled is not None:
            raise cancelled

    async def _leave(self, *, keep: bool) -> None:
        """Release everything. With `keep`, commit the bytes as far as possible."""
        try:
            if self._partial is not None:
                await self._settle(self._partial, keep=keep)
        finally:
            if self._turn is not None:
                await self._holding.release(self.resource)
                self.resource = replace(self.resource, holder=None)
                self._writer_locks.leave(self._turn)
            if self._reservation is not None:
                self._reservation.release()
            self._ingest.dismiss(self)

    async def _settle(self, partial: Partial, *, keep: bool) -> None:
        try:
            if keep:
                await self._keep(self.resource.length)
            elif self._began is not None and self.offset != self._began.offset:
                await partial.back_to(self._began)
        except UploadError as error:
            log.warning("what came last of an upload is not kept", upload=self.resource.upload_id, reason=str(error))
        finally:
            self._partial = None
            await partial.detach()
