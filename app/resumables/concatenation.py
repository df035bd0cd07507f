"""Concatenation: a new upload is put together from parts, and the same request, repeated, gets the same upload."""

from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import replace
from typing import Final

import pydantic_core
import structlog

from app.db.database import Db
from app.db.queryable import Transaction
from app.errors import BadRequest, Gone, InProgress, NotFound, RateLimited, Unavailable
from app.model import Clock, Resource
from app.resumables import records
from app.resumables.access import admitted, hash_of
from app.resumables.assembly import refuse_repetition
from app.resumables.completion_tasks import Completions
from app.resumables.creation import Creations, Description
from app.sessions import records as session_records
from app.uploads.ingest import Visitor

log = structlog.stdlib.get_logger("waybill.resume")

MAX_PARTS: Final = 1000
MAX_WAITING_OF_SESSION: Final = 100
"""How many concatenations of one session may wait for their parts, or be at work."""
MAX_OF_PART: Final = 16
"""How many concatenations may name one part, which each of them copies."""
_REPEATED_US: Final = 86_400_000_000
"""How long a repeated request for the same concatenation gets the same upload."""


class Concatenations:
    """Creates uploads from parts. `derive_key` makes the same key of the same text."""

    def __init__(
        self,
        db: Db,
        creations: Creations,
        completions: Completions,
        *,
        now_us: Clock,
        derive_key: Callable[[str], str],
    ) -> None:
        self._db = db
        self._creations = creations
        self._completions = completions
        self._now_us = now_us
        self._derive_key = derive_key

    async def concatenate(
        self, visitor: Visitor, description: Description, keys: Sequence[str]
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
            Unavailable: the database is away.
        """
        if not 1 <= len(keys) <= MAX_PARTS:
            raise BadRequest(f"an upload is made of 1 to {MAX_PARTS} parts, not of {len(keys)}")
        hashes = tuple(hash_of(key) for key in keys)
        session_id = None if visitor.arrival else visitor.session_id
        what = pydantic_core.to_json([session_id, description.metadata, hashes, description.digests]).decode()
        while True:
            key, before = await self._concatenated_before(what, session_id)
            if before is None:
                length = await self._length_of(hashes, session_id)
                before = self._creations.new(visitor, key, replace(description, length=length, parts=hashes))
                if not await self._creations.insert_unless_taken(visitor, before, _refuse_many):
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
            log.info("concatenation postponed", upload=resource.upload_id, reason=str(error))


async def _refuse_many(transaction: Transaction, resource: Resource) -> None:
    """Refuse a concatenation if its session, or one of its parts, has too many; raises RateLimited, BadRequest."""
    parts = resource.parts or ()
    await records.renew(transaction, parts, resource.expires_at)
    if await records.count_waiting(transaction, resource.session_id) > MAX_WAITING_OF_SESSION:
        raise RateLimited(MAX_WAITING_OF_SESSION)
    if await records.count_concatenations(transaction, parts) > MAX_OF_PART:
        raise BadRequest(f"a part can be in {MAX_OF_PART} concatenations, and one of these is in as many already")
