"""Resumable uploads, which come in several requests: create, append, ask, cancel, concatenate.

A reported offset is durable: bytes written → file flushed → row committed → reported.
A fully received upload is completed as every other upload is (`completion`). Of all requests
for the same upload the newest gets the writer lock (`writer_lock`).
"""

import asyncio
from collections.abc import AsyncIterable, Callable, Container, Iterator, Sequence
from typing import NamedTuple

import structlog

from app.db.database import Db
from app.errors import Forbidden, Gone, UploadError
from app.model import Failure, Resource
from app.resumables import records
from app.resumables.access import admitted, hash_of, stopping
from app.resumables.append import Appended, Appending
from app.resumables.completion_tasks import Completions
from app.resumables.concatenation import Concatenations
from app.resumables.creation import Creations, Description
from app.resumables.expiration import Expiry, SweptResumables
from app.resumables.recovery import Recovery
from app.resumables.transitions import Holding
from app.resumables.whole import WHOLE_BYTES, Interrupted, WholeCreations
from app.resumables.writer import Writer
from app.resumables.writer_lock import Preempted, WriterLocks
from app.sessions import records as session_records
from app.uploads.ingest import Ingest, Visitor

__all__ = ["WHOLE_BYTES", "Appended", "Appending", "Description", "Interrupted", "Parts", "Preempted", "Resumables"]

log = structlog.stdlib.get_logger("waybill.resume")


class Parts(NamedTuple):
    """The parts of `Resumables`, which `main` wires."""

    locks: WriterLocks
    holding: Holding
    writer: Callable[[Resource], Writer]
    completions: Completions
    creations: Creations
    whole: WholeCreations
    concatenations: Concatenations
    recovery: Recovery
    expiry: Expiry


class Resumables:
    """The resumable uploads of one service."""

    def __init__(self, db: Db, ingest: Ingest, parts: Parts) -> None:
        self._db = db
        self._ingest = ingest
        self._parts = parts
        self._closing = False

    async def create(self, visitor: Visitor, description: Description) -> tuple[Resource, str]:
        """Create an upload; see `Creations.create`."""
        self._require_open()
        return await self._parts.creations.create(visitor, description)

    async def create_whole(
        self, visitor: Visitor, description: Description, body: AsyncIterable[bytes]
    ) -> tuple[Resource, str]:
        """Create an upload of all its bytes; see `WholeCreations.create`."""
        self._require_open()
        return await self._parts.whole.create(visitor, description, body)

    async def concatenate(
        self, visitor: Visitor, description: Description, keys: Sequence[str]
    ) -> tuple[Resource, str]:
        """Create an upload from parts; see `Concatenations.concatenate`."""
        self._require_open()
        return await self._parts.concatenations.concatenate(visitor, description, keys)

    async def find(self, key: str, session_id: str | None, *, newest: bool = False) -> Resource:
        """Find the upload of a key; with `newest`, preempt its writer first, and complete it if it is fully received.

        Raises:
            NotFound: there is none, or it belongs to another session than the given one.
            Gone: the upload has ended without being completed.
            InProgress: an even newer request has arrived.
            Unavailable: the database is away, or the upload is just being completed.
        """
        key_hash = hash_of(key)
        if not newest:
            return admitted(session_id, await records.find(self._db, key_hash))
        resource = await self._parts.locks.acquire(key_hash, lambda found: admitted(session_id, found), holds=False)
        if resource.completed or resource.is_part:
            return resource
        if resource.fully_received:
            return await self._parts.completions.of(resource)
        if resource.is_final:
            self._parts.completions.begin(resource)
        return resource

    async def belongs(self, key: str, session_id: str) -> bool:
        """Whether the upload of the key belongs to that session by now.

        The sessions may have been merged since this one was recognised, and uploads move a few at a time.
        """
        found = await records.find(self._db, hash_of(key))
        return found is not None and await session_records.are_one(self._db, session_id, found.session_id)

    def append(self, key: str, session_id: str | None, request: Appended) -> Appending:
        """Append from `request.offset`: enter the result, `write`, then `keep`, `complete` or `discard`.

        `declared` is the length of this request's body, `length` that of the file, if they are
        known. The bytes of a `checked` request count only once they are kept: leaving otherwise discards them.
        `digests` are those of the complete file, beside those declared before.

        Entering it raises:
            NotFound, Gone, InProgress: see `find`.
            Forbidden: the upload is a concatenation.
            OffsetMismatch: the upload is at another offset.
            InconsistentUploadLength: the upload has another length, or more bytes than that.
            TooLarge: `declared` passes the upload's length, or the limit.
            StorageFull: `declared` does not fit above the minimum of free space.
            QuotaExceeded: the session's quota does not hold it.
            RateLimited: the session has too many requests under way.
            Unavailable: the service stops, the database is away, or too many requests are under way.
        """
        self._require_open()

        def appendable(found: Resource | None) -> Resource:
            resource = admitted(session_id, found)
            if resource.is_final:
                raise Forbidden("the upload is made of parts: nothing can be appended to it")
            return resource

        parts = self._parts
        return Appending(self._ingest, parts.locks, parts.completions, parts.writer, hash_of(key), appendable, request)

    def receiving(self, session_ids: Container[str]) -> Iterator[tuple[Resource, int]]:
        """Iterate over the uploads of these sessions to which this process is appending, and how far each is."""
        for landing in self._ingest.landings_of(session_ids):
            if isinstance(landing, Appending) and not landing.resource.is_part:
                yield landing.resource, landing.offset

    async def cancel(self, key: str, session_id: str | None) -> None:
        """Cancel an upload, and preempt its writer. Of a completed upload only the key ends: the file stays.

        Raises: NotFound, Gone, InProgress, Unavailable: see `find`.
        """
        await self._end(key, session_id, Failure(code=Gone.code, detail="the client cancelled the upload"))

    async def fail(self, key: str, session_id: str | None, error: UploadError) -> None:
        """Fail an upload for good because of `error`; otherwise the same as `cancel`."""
        await self._end(key, session_id, Failure(code=error.code, detail=str(error)))

    async def _end(self, key: str, session_id: str | None, failure: Failure) -> None:
        resource = await self._parts.locks.acquire(hash_of(key), lambda found: admitted(session_id, found), holds=False)
        await self._parts.holding.end(resource, "cancelled" if failure.code == Gone.code else "failed", failure)

    async def run(self) -> None:
        """Complete fully received uploads that this process, or one that died, left. Runs until cancelled."""
        await self._parts.recovery.run()

    async def sweep(self) -> SweptResumables:
        """Expire abandoned uploads, complete fully received ones, and forget ended ones."""
        return await self._parts.expiry.sweep()

    async def close(self, grace_seconds: float) -> None:
        """Take nothing new; have all writers commit their offsets and leave. To be called before `Ingest.close`."""
        self._closing = True
        try:
            async with asyncio.timeout(grace_seconds):
                await self._parts.locks.close(stopping())
        except TimeoutError:
            log.warning("appends unfinished at the end of the grace")
        await self._parts.completions.close(grace_seconds)

    def _require_open(self) -> None:
        if self._closing:
            raise stopping()
        self._ingest.check()
