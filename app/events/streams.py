"""Streams: what a listener has yet to be sent."""

import asyncio
from typing import Final

from app.events.positions import ChangePosition

_PENDING_BYTES: Final = 1024 * 1024
"""The most that waits for a listener that reads slowly. Beyond it, what it misses is read again for it."""


class Stream:
    """One listener of a session's events. `behind` means that it has to read changes by itself, up to the newest."""

    def __init__(self, session_id: str, token_hash: str, position: ChangePosition) -> None:
        self.session_id = session_id
        self.token_hash = token_hash
        self.position = position
        """The change up to which everything has been sent."""
        self.looked_through = position.id
        """The id up to which, while `behind`, changes have been looked through."""
        self.behind = True
        self.ended = False
        self.wake = asyncio.Event()
        self._pending: list[bytes] = []
        self._pending_bytes = 0
        self._pending_until = position

    def add(self, block: bytes, position: ChangePosition | None = None) -> None:
        """Add an event to be sent, and its position if it is a change; a change that is behind `position` is not."""
        if self.behind or (position is not None and position.id <= self._pending_until.id):
            return
        self._pending.append(block)
        self._pending_bytes += len(block)
        if position is not None:
            self._pending_until = position
        if self._pending_bytes > _PENDING_BYTES:
            self.fall_behind()
        else:
            self.wake.set()

    def take(self) -> bytes:
        """Take all that is to be sent now; b"" if nothing is."""
        block = b"".join(self._pending)
        self._pending.clear()
        self._pending_bytes = 0
        self.position = self._pending_until
        return block

    def fall_behind(self) -> None:
        """Drop what waits: from `position` on the listener reads by itself."""
        self._pending.clear()
        self._pending_bytes = 0
        self._pending_until = self.position
        self.looked_through = self.position.id
        self.behind = True
        self.wake.set()

    def catch_up(self, position: ChangePosition) -> None:
        """Go on with what is new, after everything up to `position` has been sent."""
        self.position = self._pending_until = max(position, self.position)
        self.behind = False

    def reset(self, position: ChangePosition, block: bytes) -> None:
        """Drop what waits, and go on behind `position` with this block, which tells the listener to begin again."""
        self.fall_behind()
        self.position = self._pending_until = position
        self.behind = False
        self.add(block)

    def end(self) -> None:
        """End the stream; what was pending is still sent."""
        self.ended = True
        self.wake.set()
