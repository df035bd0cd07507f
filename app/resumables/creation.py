"""Creation of resumable uploads: empty ones, and those that are put together from parts."""

from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Final

import pydantic_core
import structlog

from app.db.database import Db
from app.db.queryable import Transaction
from app.errors import BadRequest, Gone, InProgress, NotFound, RateLimited, TooLarge, Unavailable
from app.model import UNDECLARED, Clock, Digests, Protocol, Resource, Status, Upload
from app.quotas import records as quota_records
from app.resumables import records
from app.resumables.access import admitted, hash_of
from app.resumables.completion import Completions
from app.resumables.concatenation import MAX_OF_PART, MAX_WAITING_OF_SESSION, refuse_repetition
from app.sessions import records as session_records
from app.storage import Storage
from app.uploads.ingest import Ingest, Visitor

log = structlog.stdlib.get_logger("waybill.resume")

MAX_PARTS: Final = 1000
_REPEATED_US: Final = 86_400_000_000
"""How long a repeated request for the same concatenation gets the same upload."""


class _KeyTaken(Exception):
    """Another upload has the key; the transaction is rolled back."""


class Creations:
    """Creates resumable uploads. `require_open` refuses while the service stops or records nothing.

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
        require_open: Callable[[], None],
        idle_us: int,
        cap_us: int,
        now_us: Clock,
        new_id: Callable[[], str],
        new_key: Callable[[], str],
        derive_key: Callable[[str], str],
    ) -> None:
        self._storage = storage
        self._db = db
        self._ingest = ingest
        self._completions = completions
        self._require_open = require_open
        self._idle_us = idle_us
        self._cap_us = cap_us
        self._now_us = now_us
        self._new_id = new_id
        self._new_key = new_key
        self._derive_key = derive_key

    async def create(
        self,
        visitor: Visitor,
        *,
        protocol: Protocol,
        filename: str,
        content_type: str,
        length: int | None = None,
        metadata: str | None = None,
        concat: str | None = None,
        is_part: bool = False,
        digests: Digests = UNDECLARED,
    ) -> tuple[Resource, str]:
        """Create an upload at offset 0; return it and its key. An upload of length 0 is completed at once.

        The complete file must have the `digests`. A part only serves `concatenate`.

        Raises:
            TooLarge: `length` is above the limit.
            StorageFull: there is no space for it.
            QuotaExceeded: the session's quota does not hold it.
            Unavailable: the service stops, or the database is away.
        """
        self._require_open()
        self._require_room(length)
        key = self._new_key()
        resource = self._new(
            visitor,
            key,
            protocol,
            filename,
            content_type,
            length=length,
            metadata=metadata,
            concat=concat,
            is_part=is_part,
            digests=digests,
        )
        await self._insert(visitor, resource)
        if length == 0 and not is_part:
            resource = await self._completions.of(resource)
        return resource, key

    async def concatenate(
        self,
        visitor: Visitor,
        *,
        keys: Sequence[str],
        filename: str,
        content_type: str,
        metadata: str | None = None,
        concat: str,
        digests: Digests = UNDECLARED,
    ) -> tuple[Resource, str]:
        """Create an upload from parts, in this order; return it and its key. It completes once all parts are received.

        If they are, completion is waited for a while; then the record says that it is being processed.
        The same request within a day, sent again because the answer was lost, gets the same
        upload; one that has failed or was cancelled is created anew.

        Raises:
            NotFound: a part does not exist for this visitor.
            BadRequest: a key is not that of a part, or there are too many or none.
            TooLarge: together the parts are above the limit.
            QuotaExceeded: the session's quota does not hold it.
            Unavailable: the service stops, or the database is away.
        """
        self._require_open()
        if not 1 <= len(keys) <= MAX_PARTS:
            raise BadRequest(f"an upload is made of 1 to {MAX_PARTS} parts, not of {len(keys)}")
        hashes = tuple(hash_of(key) for key in keys)
        session_id = None if visitor.arrival else visitor.session_id
        what = pydantic_core.to_json([session_id, metadata, hashes, digests]).decode()
        while True:
            key, before = await self._concatenated_before(what, session_id)
            if before is None:
                length = await self._length_of(hashes, session_id)
                self._require_room(length)
                before = self._new(
                    visitor,
                    key,
                    Protocol.TUS,
                    filename,
                    content_type,
                    length=length,
                    metadata=metadata,
                    concat=concat,
                    parts=hashes,
                    digests=digests,
                )
                if not await self._insert(visitor, before):
                    continue  # the same request arrived twice at this moment
            await self._assembled(before)
            return admitted(None, await records.find(self._db, before.key_hash)), key

    async def _concatenated_before(self, what: str, session_id: str | None) -> tuple[str, Resource | None]:
        """The key of a concatenation of `what`, and the existing upload of that key, if it can be the answer."""
        number = 0
        while True:
            key = self._derive_key(f"{number} {what}")
            found = await records.find(self._db, hash_of(key))
            if found is None:
                return key, None
            with suppress(NotFound, Gone):
                if self._now_us() - found.created_at < _REPEATED_US:
                    return key, admitted(session_id, found)
            number += 1

    async def _length_of(self, hashes: Sequence[str], session_id: str | None) -> int | None:
        """The bytes of these parts together; None as long as the length of one is unknown.

        Raises:
            NotFound, Gone, BadRequest: see `concatenate`.
        """
        found = await records.list_these(self._db, hashes)
        for other_id in {part.session_id for part in found.values()} - {session_id}:
            if session_id is not None and not await session_records.are_one(self._db, session_id, other_id):
                raise NotFound
        parts = [admitted(None, found.get(each)) for each in hashes]
        if not all(part.is_part for part in parts):
            raise BadRequest("one of the uploads to be put together was not begun as a part")
        lengths = [part.length for part in parts if part.length is not None]
        refuse_repetition([(part.key_hash, part.length or part.offset) for part in parts])
        return sum(lengths) if len(lengths) == len(parts) else None

    async def _assembled(self, resource: Resource) -> None:
        try:
            await self._completions.of(resource)
        except (Unavailable, InProgress) as error:
            log.info("an upload is put together later", upload=resource.upload_id, reason=str(error))

    def _new(
        self,
        visitor: Visitor,
        key: str,
        protocol: Protocol,
        filename: str,
        content_type: str,
        *,
        length: int | None,
        metadata: str | None,
        concat: str | None,
        is_part: bool = False,
        parts: tuple[str, ...] | None = None,
        digests: Digests = UNDECLARED,
    ) -> Resource:
        upload_id, now_us = self._new_id(), self._now_us()
        upload = Upload(
            id=upload_id,
            session_id=visitor.session_id,
            filename=filename,
            content_type=content_type,
            size=0,
            sha256=None,
            status=Status.UPLOADING,
            protocol=protocol,
            created_at=now_us,
            completed_at=None,
            error=None,
        )
        last_expires_at = now_us + self._cap_us
        return Resource(
            key_hash=hash_of(key),
            upload_id=upload_id,
            session_id=visitor.session_id,
            protocol=protocol,
            filename=filename,
            content_type=content_type,
            created_at=now_us,
            length=length,
            offset=0,
            digest_state=None,
            metadata=metadata,
            concat=concat,
            is_part=is_part,
            parts=parts,
            digests=digests,
            file_fence=0,
            fence=0,
            holder=None,
            holder_seen_at=None,
            expires_at=min(now_us + self._idle_us, last_expires_at),
            last_expires_at=last_expires_at,
            ended_as=None,
            upload=None if is_part else upload,
        )

    async def _insert(self, visitor: Visitor, resource: Resource) -> bool:
        """Record an upload; False, with nothing recorded, if another one has its key."""
        quotas = self._ingest.quotas
        if quotas is not None:
            await quotas.grant_to(resource, resource.length or 0, is_new=True)

        async def run(transaction: Transaction) -> None:
            if not await records.insert(transaction, resource, visitor.arrival):
                raise _KeyTaken
            if quotas is not None:
                await quota_records.adopt(transaction, resource.key_hash, resource.last_expires_at)
            if resource.parts is not None:
                await records.renew(transaction, resource.parts, resource.expires_at)
                await self._refuse_many(transaction, resource, resource.parts)

        try:
            await self._db.transaction(run)
        except _KeyTaken:
            return False  # the quota granted under that key is the other upload's
        except BaseException:
            if quotas is not None:
                quotas.release(resource.key_hash, resource.session_id)
            raise
        visitor.arrival = None
        return True

    async def _refuse_many(self, transaction: Transaction, resource: Resource, parts: Sequence[str]) -> None:
        """Refuse a concatenation if its session, or one of its parts, has too many; raises RateLimited, BadRequest."""
        if await records.count_waiting(transaction, resource.session_id) > MAX_WAITING_OF_SESSION:
            raise RateLimited(MAX_WAITING_OF_SESSION)
        if await records.count_concatenations(transaction, parts) > MAX_OF_PART:
            raise BadRequest(f"a part can be in {MAX_OF_PART} concatenations, and one of these is in as many already")

    def _require_room(self, length: int | None) -> None:
        if length is not None and length > self._ingest.limits.file_bytes:
            raise TooLarge(length, self._ingest.limits.file_bytes)
        self._storage.reserve(length or 0).release()
