"""Work that takes long, let in a few at a time and session by session: nobody waits behind one who asks for much."""

import asyncio
from collections import OrderedDict, deque
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager


class Lane:
    """So many at once, at most one of a session; those who wait are let in by turns of their sessions."""

    def __init__(self, places: int) -> None:
        self._free = places
        self._inside: set[str] = set()
        self._waiting: OrderedDict[str, deque[asyncio.Future[None]]] = OrderedDict()

    @asynccontextmanager
    async def place(self, session_id: str) -> AsyncIterator[None]:
        """Wait for a place and have it inside the block."""
        await self._enter(session_id)
        try:
            yield
        finally:
            self._leave(session_id)

    async def _enter(self, session_id: str) -> None:
        if self._free and session_id not in self._inside:  # then nobody of the session waits either
            self._take(session_id)
            return
        turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.setdefault(session_id, deque()).append(turn)
        try:
            await turn
        except asyncio.CancelledError:
            if turn.done() and not turn.cancelled():
                self._leave(session_id)  # it was let in at this very moment
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
        """Take one out of those who wait; the others of its session come behind the other sessions."""
        waiting = self._waiting[session_id]
        waiting.remove(turn)
        if waiting:
            self._waiting.move_to_end(session_id)
        else:
            del self._waiting[session_id]
