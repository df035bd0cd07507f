"""Appending: one request is admitted to an upload, acquires its writer lock, and writes within its limits."""

import asyncio
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from types import TracebackType
from typing import Self

from app.cancellation import run_to_completion
from app.errors import BadRequest, InconsistentUploadLength, OffsetMismatch, TooLarge
from app.model import UNDECLARED, Digests, Resource
from app.quotas import STEP_BYTES
from app.resumables.completion_tasks import Completions
from app.resumables.whole import WHOLE_BYTES
from app.resumables.writer import Writer
from app.resumables.writer_lock import Admitted, WriterLocks
from app.storage import Reservation
from app.uploads.ingest import Ingest


@dataclass(frozen=True, slots=True)
class Appended:
    """The declarations of a request about the bytes that it appends; see `Resumables.append`."""

    offset: int
    declared: int | None = None
    length: int | None = None
    checked: bool = False
    digests: Digests = UNDECLARED


class Appending:
    """A request that appends. Enter it, `write`, then `keep`, `complete` or `discard`; leave it.

    A newer request, and the service's shutdown, cancel the task inside; leaving then raises
    Preempted or Unavailable, and the bytes that had arrived are kept. `writer` acquires the lock of an upload.
    """

    def __init__(
        self,
        ingest: Ingest,
        locks: WriterLocks,
        completions: Completions,
        writer: Callable[[Resource], Writer],
        key_hash: str,
        admitted: Admitted,
        request: Appended,
    ) -> None:
        self._ingest = ingest
        self._acquire = partial(locks.acquire, key_hash, admitted, holds=True)
        self._completions = completions
        self._register = writer
        self._request = request
        self._length = request.length
        self._checked = request.checked
        self._most = request.offset
        self._granted = 0
        self._found: Resource | None = None
        self._writer: Writer | None = None
        """The holder of the lock; None before it is acquired, and for a completed upload, to which nothing is added."""
        self._reservation: Reservation | None = None
        self._entered = ingest.metrics.stopwatch()

    @property
    def resource(self) -> Resource:
        """The upload as last committed."""
        found = self._found if self._writer is None else self._writer.resource
        assert found is not None
        return found

    @property
    def offset(self) -> int:
        """How many bytes of the file have arrived."""
        return self._request.offset if self._writer is None else self._writer.offset

    @property
    def durable(self) -> int:
        """How many bytes of the file would survive a crash."""
        return self._request.offset if self._writer is None else self._writer.resource.offset

    async def __aenter__(self) -> Self:
        self._reservation = self._ingest.admit(self, self._request.declared)
        try:
            await self._attach(self._reservation)
        except BaseException:
            await run_to_completion(self._leave(keep=False))
            raise
        return self

    async def _attach(self, reservation: Reservation) -> None:
        resource = await self._acquire()
        if resource.fully_received and not resource.is_part and not resource.completed:
            resource = await self._completions.of(resource)
        self._found = resource
        if not resource.completed:  # else nothing is appended; a client that lost the answer gets it again
            self._writer = self._register(resource)
        self._ingest.count(self, resource.session_id)
        self._check(resource)
        if self._writer is not None:
            await self._require_quota(self._request.offset + (self._request.declared or 0))
            await self._writer.open(reservation, self._request.digests, brings_all=self._brings_all(resource))

    def _brings_all(self, resource: Resource) -> bool:
        """Whether the request brings a small upload from its first byte to its last."""
        is_small = 0 < (self._length or 0) <= WHOLE_BYTES
        return is_small and self._length == self._request.declared and not resource.is_part

    def _check(self, resource: Resource) -> None:
        request = self._request
        if request.offset != resource.offset:
            raise OffsetMismatch(resource.offset, request.offset)
        if not request.digests.agrees_with(resource.digests):
            raise BadRequest("this request and one before it declare different digests of the whole file")
        if resource.length is not None and self._length not in {None, resource.length}:
            raise InconsistentUploadLength(resource.length, self._length or 0)
        most = self._ingest.limits.file_bytes
        length = resource.length if self._length is None else self._length
        if length is not None:
            if length > most:
                raise TooLarge(length, most)
            if length < request.offset:
                raise InconsistentUploadLength(request.offset, length)
            most = length
        self._length, self._most = length, most
        if request.declared is not None and request.offset + request.declared > most:
            raise TooLarge(request.offset + request.declared, most)

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
        writer = self._writer
        self._ingest.metrics.received[self.resource.protocol].add(len(block))
        end = self.offset + len(block)
        if end > self._most:
            self._checked = True  # a body that runs past the end may be another file's: none of it counts
            raise TooLarge(end, self._most)
        if writer is None:
            return  # the upload is completed, and the body empty
        with writer.lock.undisturbed():
            await self._require_quota(end, more=STEP_BYTES)
            # The last byte is committed on completion: until then others may have to wait for us.
            await writer.write(block, checkpoints=not self._checked and end < self._most)
        if writer.lock.reason is not None:
            raise writer.lock.reason

    async def keep(self) -> Resource:
        """Make all bytes that arrived durable and commit them; after the last byte, complete the upload.

        Raises:
            Preempted: this request has lost the writer lock: only its `durable` bytes count.
            DigestMismatch: the complete file does not have the declared digest; the upload has failed.
            StorageFull, Unavailable: the bytes could not be kept, or the upload not completed now. Ask for the offset.
        """
        if self._writer is not None:
            metrics = self._ingest.metrics
            metrics.stages["receive"].observe(metrics.stopwatch() - self._entered)
            with self._writer.lock.undisturbed():
                await run_to_completion(self._writer.keep(self._length))
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
        if self._writer is not None:
            self._writer.lock.shut()
            await run_to_completion(self._leave(keep=False))

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        cancelled: BaseException | None = error
        if self._writer is not None:
            self._writer.lock.shut()
        try:
            await run_to_completion(self._leave(keep=not self._checked))
        except asyncio.CancelledError as late:
            cancelled = late
        refusal = self._writer.lock.stopped(cancelled) if self._writer is not None else None
        if refusal is not None:
            raise refusal from None
        if cancelled is not error and cancelled is not None:
            raise cancelled

    async def _leave(self, *, keep: bool) -> None:
        """Release everything. With `keep`, commit the bytes as far as possible."""
        try:
            if self._writer is not None:
                await self._writer.leave(keep=keep)
        finally:
            if self._reservation is not None:
                self._reservation.release()
            self._ingest.dismiss(self)
