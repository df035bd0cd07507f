"""Creation of resumable uploads."""

from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace

from app.annotations import NO_ANNOTATIONS, Annotations
from app.db.database import Db
from app.db.queryable import Transaction
from app.db.shared import SharedTransactions
from app.errors import TooLarge
from app.model import UNDECLARED, Clock, Digests, Protocol, Resource, Status, Upload
from app.quotas import records as quota_records
from app.resumables import records
from app.resumables.access import hash_of
from app.resumables.completion_tasks import Completions
from app.sessions import records as session_records
from app.sessions.records import NewSession
from app.storage import Storage
from app.uploads import records as upload_records
from app.uploads import resumable_records
from app.uploads.ingest import Ingest, Visitor


@dataclass(frozen=True, slots=True)
class Description:
    """The declarations of a request about a new upload; the fields are those of `Resource`.

    The complete file must have the `digests`. A part only serves concatenations.
    """

    protocol: Protocol
    filename: str
    content_type: str
    length: int | None = None
    metadata: str | None = None
    concat: str | None = None
    is_part: bool = False
    parts: tuple[str, ...] | None = None
    digests: Digests = UNDECLARED
    annotations: Annotations = NO_ANNOTATIONS


class _KeyTaken(Exception):
    """Another upload has the key; the transaction is rolled back."""


class Creations:
    """Creates resumable uploads.

    `idle_us` is how long an unfinished upload waits for its next bytes, `cap_us` how long it may
    take in all.
    """

    def __init__(
        self,
        storage: Storage,
        db: Db,
        ingest: Ingest,
        completions: Completions,
        *,
        idle_us: int,
        cap_us: int,
        now_us: Clock,
        new_id: Callable[[], str],
        new_key: Callable[[], str],
    ) -> None:
        self._storage = storage
        self._db = db
        self._ingest = ingest
        self._completions = completions
        self._idle_us = idle_us
        self._cap_us = cap_us
        self._now_us = now_us
        self._new_id = new_id
        self._new_key = new_key
        self._inserts = SharedTransactions(db, self._insert_all)

    async def create(self, visitor: Visitor, description: Description) -> tuple[Resource, str]:
        """Create an upload at offset 0; return it and its key. An upload of length 0 is completed at once.

        Raises:
            TooLarge: its length is above the limit.
            StorageFull: there is no space for it.
            QuotaExceeded: the session's quota does not hold it.
            Unavailable: the database is away.
        """
        resource, key = self.begin(visitor, description)
        async with self._granted(resource):
            await self._inserts.ask((resource, visitor.arrival))
        visitor.arrival = None
        if resource.fully_received and not resource.is_part:
            resource = await self._completions.of(resource)
        return resource, key

    def begin(self, visitor: Visitor, description: Description) -> tuple[Resource, str]:
        """Make an upload with a new key, not recorded yet. Raises: see `new`."""
        key = self._new_key()
        return self.new(visitor, key, description), key

    def new(self, visitor: Visitor, key: str, description: Description) -> Resource:
        """Make an upload at offset 0, not recorded yet; raises TooLarge, StorageFull: see `create`."""
        self._require_room(description.length)
        now_us = self._now_us()
        last_expires_at = now_us + self._cap_us
        resource = Resource(
            key_hash=hash_of(key),
            upload_id=self._new_id(),
            session_id=visitor.session_id,
            protocol=description.protocol,
            filename=description.filename,
            content_type=description.content_type,
            created_at=now_us,
            length=description.length,
            offset=0,
            digest_state=None,
            metadata=description.metadata,
            concat=description.concat,
            is_part=description.is_part,
            parts=description.parts,
            digests=description.digests,
            file_fence=0,
            fence=0,
            holder=None,
            holder_seen_at=None,
            expires_at=min(now_us + self._idle_us, last_expires_at),
            last_expires_at=last_expires_at,
            ended_as=None,
            upload=None,
        )
        return resource if resource.is_part else replace(resource, upload=_begun(resource, description.annotations))

    async def _insert_all(
        self, transaction: Transaction, asked: Sequence[tuple[Resource, NewSession | None]]
    ) -> Sequence[None]:
        arrivals = [arrival for _, arrival in asked if arrival is not None]
        if arrivals:
            await session_records.insert_sessions(transaction, arrivals)
        resources = [resource for resource, _ in asked]
        uploads = [resource.upload for resource in resources if resource.upload is not None]
        if uploads:
            await upload_records.insert_uploads(transaction, uploads)
        await resumable_records.insert_these(transaction, resources)
        for resource in resources:
            await self._adopt(transaction, resource)
        return [None] * len(asked)

    async def insert_unless_taken(
        self, visitor: Visitor, resource: Resource, along: Callable[[Transaction, Resource], Awaitable[None]]
    ) -> bool:
        """Record an upload, and do what goes `along` with that; False, with nothing recorded, if its key is taken."""

        async def run(transaction: Transaction) -> None:
            if not await records.insert(transaction, resource, visitor.arrival):
                raise _KeyTaken
            await self._adopt(transaction, resource)
            await along(transaction, resource)

        try:
            async with self._granted(resource):
                await self._db.transaction(run)
        except _KeyTaken:
            return False
        visitor.arrival = None
        return True

    @asynccontextmanager
    async def _granted(self, resource: Resource) -> AsyncIterator[None]:
        """Grant the quota for a new upload, and release it unless the block records that."""
        quotas = self._ingest.quotas
        if quotas is not None:
            await quotas.grant_to(resource, resource.length or 0, is_new=True)
        try:
            yield
        except _KeyTaken:
            raise  # the quota granted under that key is the other upload's
        except BaseException:
            if quotas is not None:
                quotas.release(resource.key_hash, resource.session_id)
            raise

    async def _adopt(self, transaction: Transaction, resource: Resource) -> None:
        if self._ingest.quotas is not None:
            await quota_records.adopt(transaction, resource.key_hash, resource.last_expires_at)

    def _require_room(self, length: int | None) -> None:
        if length is not None and length > self._ingest.limits.file_bytes:
            raise TooLarge(length, self._ingest.limits.file_bytes)
        self._storage.reserve(length or 0).release()


def _begun(resource: Resource, annotations: Annotations) -> Upload:
    """The record of a new upload."""
    return Upload(
        id=resource.upload_id,
        session_id=resource.session_id,
        filename=resource.filename,
        content_type=resource.content_type,
        size=0,
        sha256=None,
        status=Status.UPLOADING,
        protocol=resource.protocol,
        created_at=resource.created_at,
        completed_at=None,
        error=None,
        metadata=dict(annotations.metadata),
        path=annotations.path,
        keep_us=annotations.keep_us,
    )
