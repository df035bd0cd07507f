"""Lanes: long work is admitted a few at a time, session by session, so that no session with much work delays others."""

import asyncio
from collections import OrderedDict, deque
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager


class Lane:
    """A lane admits `places` callers at once, at most one of a session; the sessions that wait take turns."""

    def __init__(self, places: int) -> None:
        self._free = places
        self._inside: set[str] = set()
        self._waiting: OrderedDict[str, deque[asyncio.Future[None]]] = OrderedDict()

    @asynccontextmanager
    async def place(self, session_id: str) -> AsyncIterator[None]:
        """Wait for a slot and hold it inside the block."""
        await self._enter(session_id)
        try:
            yield
        finally:
            self._leave(session_id)

    async def _enter(self, session_id: str) -> None:
        if self._free and session_id not in self._inside:  # then no caller of the session waits either
            self._take(session_id)
            return
        turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.setdefault(session_id, deque()).append(turn)
        try:
            await turn
        except asyncio.CancelledError:
            if turn.done() and not turn.cancelled():
                self._leave(session_id)  # it was admitted just now
            else:
                self._forget(session_id, turn)
            raise

    def _take(self, session_id: str) -> None:
        self._free -= 1
        self._inside.add(session_id)

    def _leave(self, session_id: str) -> None:
        self._free += 1
        self._inside.discard(session_id)
        while self._free:
            following = next((each for each in self._waiting if each not in self._inside), None)
            if following is None:
                return
            turn = self._waiting[following][0]
            self._forget(following, turn)
            self._take(following)
            turn.set_result(None)

    def _forget(self, session_id: str, turn: "asyncio.Future[None]") -> None:
        """Remove a waiting caller; the others of its session are queued behind the other sessions."""
        waiting = self._waiting[session_id]
        waiting.remove(turn)
        if waiting:
            self._waiting.move_to_end(session_id)
        else:
            del self._waiting[session_id]
