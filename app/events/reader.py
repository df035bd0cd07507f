"""Reading changes and writing them as events, with the records as they are when they are sent."""

import asyncio
from collections.abc import Callable, Sequence
from typing import Final

from app.db.database import Db
from app.events import records
from app.events.positions import START, ChangePosition, Positions
from app.events.records import Change
from app.events.streams import Stream
from app.model import Upload
from app.protocols.event_stream import event
from app.uploads import records as upload_records

_PAGE_SIZE: Final = 250
"""The changes that are read at once: between two pages listeners take what they were given."""
_WINDOW: Final = 20_000
"""The changes that one query looks through for a listener that comes back: some hundredths of a second."""
_RECORDS_AT_ONCE: Final = 500


class EventReader:
    """A reader of events from the database. `encode` writes a record as JSON."""

    def __init__(self, db: Db, positions: Positions, encode: Callable[[Upload], bytes]) -> None:
        self._db = db.reading
        self._positions = positions
        self._encode = encode
        self._one_at_a_time = asyncio.Semaphore(1)

    async def find_newest(self) -> ChangePosition:
        """Find the position of the newest change."""
        newest = await records.find_newest(self._db)
        return _position(newest) if newest else START

    async def find(self, text: str) -> ChangePosition | None:
        """Find the position that a client kept; None if it is unknown, or too old."""
        position = self._positions.read(text)
        found = None if position is None else await records.find(self._db, position.id)
        return position if found is not None and _position(found) == position else None

    async def list_after(self, position: ChangePosition) -> list[Change] | None:
        """List a page of changes behind a position, over all sessions; None if that is known no more."""
        changes = await records.list_from(self._db, position.id, _PAGE_SIZE)
        if position == START:
            return changes
        return changes[1:] if changes and _position(changes[0]) == position else None

    async def read_missed(self, stream: Stream, newest: ChangePosition) -> tuple[list[Change], int]:
        """Read a window of the changes that a listener missed, and the id up to which they were looked through."""
        until = min(stream.looked_through + _WINDOW, newest.id)
        async with self._one_at_a_time:  # listeners that come back all at once leave the database to others
            changes = await records.list_of_session(
                self._db, stream.session_id, stream.looked_through, until, _PAGE_SIZE
            )
        return changes, changes[-1].id if len(changes) == _PAGE_SIZE else until

    async def write(self, changes: Sequence[Change]) -> list[tuple[bytes, str, ChangePosition]]:
        """Write changes as events, each with its session and position. One whose record cannot be read has none."""
        ids = list(dict.fromkeys(change.upload_id for change in changes if change.upload_id is not None))
        documents: dict[str, bytes] = {}
        for at in range(0, len(ids), _RECORDS_AT_ONCE):
            found = await upload_records.list_these(self._db, ids[at : at + _RECORDS_AT_ONCE])
            documents |= {upload_id: self._encode(upload) for upload_id, upload in found.items()}
        written = []
        for change in changes:
            position = _position(change)
            if change.upload_id is None:
                written.append((self.reset(position), change.session_id, position))
            elif (document := documents.get(change.upload_id)) is not None:
                block = event(f"upload.{change.kind}", document, self.mark(position))
                written.append((block, change.session_id, position))
        return written

    def reset(self, position: ChangePosition) -> bytes:
        """Write the event that tells a listener to read the history again."""
        return event("reset", b"{}", self.mark(position))

    def mark(self, position: ChangePosition) -> str:
        """Write a position as a client keeps it."""
        return self._positions.written(position)


def _position(change: Change) -> ChangePosition:
    return ChangePosition(change.id, change.at)
