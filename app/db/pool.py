"""The pool: a bounded number of connections, each examined before it is lent.

Every call borrows one, whatever its task, and a failure that one connection meets is taken into account for all.
"""

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable
from contextlib import nullcontext, suppress
from typing import Any, Final, TypeVar

from app.db.connections import Connections, OpenConnection
from app.db.driver import Driver
from app.db.queryable import answered
from app.errors import Unavailable, UploadError

T = TypeVar("T")

_FRESH_SECONDS: Final = 1.0
"""How long a connection counts as fit after a check; then it is checked again before it is lent."""
_REFUSED_SECONDS: Final = 1.0
"""After a new connection was refused, no other is opened for this long."""
_LOOK_SHARE: Final = 0.4
"""The share of a call's time that checking an open connection may take: another can be opened in the rest."""
_LAST_CALL_SECONDS: Final = 1.0
"""How long running calls may outlast their time before a stop ends them."""


class Pool:
    """At most `size` connections, each lent to one caller at a time.

    A connection that was found unfit, silent or lost is not lent again. Where others would meet
    the same error, the idle ones are dropped with it: that delays one caller, instead of each in succession.
    """

    def __init__(self, connections: Connections, driver: Driver, *, size: int, timeout: float) -> None:
        self._connections, self._driver = connections, driver
        self._size, self._taken = size, 0
        self._timeout = timeout
        self._slots = asyncio.Semaphore(size)
        self.writers = asyncio.Semaphore(1 if driver.one_writer else size)
        """Where writers queue before they borrow."""
        self._open: set[OpenConnection] = set()
        self._idle: list[OpenConnection] = []  # the one used last is the last
        self._callers = _Callers(self._put_back)
        self._crowded_until = self._read_only_until = 0.0

    def slots(self) -> tuple[int, int]:
        """The number of connections that could be borrowed now, and of all."""
        return self._size - self._taken, self._size

    async def lend(
        self, use: Callable[[Any], Awaitable[T]], *, writes: bool = False, queue: asyncio.Semaphore | None = None
    ) -> T:
        """Lend a connection for one `use`, after waiting in `queue`.

        The connection returns to the pool only when it is as good as new. After a cancellation, which in
        here is the deadline, nothing is known and nothing may be waited for: it is abandoned.

        Raises:
            Unavailable: no connection can be had, or none that is fit.
        """
        # A caller queues before it borrows, so that no connection is held by one that only waits.
        async with queue or nullcontext():
            await self._slots.acquire()
            self._taken += 1
            held, sound = None, False
            try:
                held = await self._borrow(writes)
                try:
                    if writes and self._driver.doubts:
                        await answered(self._driver, self._driver.settle(held.raw))
                    result = await use(held.raw)
                except Exception as error:
                    sound = await self._recovered(held, _root(error))
                    raise
                sound = True
                return result
            except asyncio.CancelledError:
                if held is not None and self._driver.concerns_all(TimeoutError()):
                    await self._drop_idle()
                raise
            finally:
                if held is not None and not sound:
                    gone = await self._drop(held)
                    if gone is None:
                        self._release()
                    else:  # the slot becomes free when the connection has released everything
                        gone.add_done_callback(lambda _: self._release())
                else:
                    if held is not None:
                        self._put_back(held)
                    self._release()

    async def close(self) -> None:
        """Wait for running calls, end those that take too long, and close every connection; in bounded time."""
        with suppress(TimeoutError):
            async with asyncio.timeout(self._timeout + _LAST_CALL_SECONDS):
                for _ in range(self._size):
                    await self._slots.acquire()
        for held in self._open.difference(self._idle):
            await self._drop(held)
        await self._connections.close(self._idle)

    async def _recovered(self, held: OpenConnection, error: Exception) -> bool:
        sound = False
        with suppress(Exception):  # if undoing fails, abandoning the connection undoes it
            sound = await self._driver.recover(held.raw, error)
        if not sound and self._driver.concerns_all(error):
            await self._drop_idle()
        return sound

    async def _borrow(self, writes: bool) -> OpenConnection:
        """Take the most recently used connection that is fit, or open a new one."""
        if self._idle:  # the usual case, which does not wait
            last = self._idle[-1]
            if _now() - last.looked_at < _FRESH_SECONDS and last.writable and self._driver.is_open(last.raw):
                return self._idle.pop()
        while True:
            if (held := await self._used_last()) is None and self._open and _now() < self._crowded_until:
                held = await self._callers.wait(_REFUSED_SECONDS)
            if held is not None:
                if await self._is_of_use(held, writes):
                    return held
                continue
            try:
                return await self._new(writes)
            except Unavailable as error:
                # Where other processes have taken the server's last slots, ours are returned sooner than theirs close.
                if not (self._open and self._driver.is_crowded(error.__cause__)):
                    raise
                self._crowded_until = _now() + _REFUSED_SECONDS

    async def _used_last(self) -> OpenConnection | None:
        """Take the most recently used idle connection that is open; drop those that are dead, or idle for too long."""
        oldest = _now() - self._driver.longest_idle
        while self._idle and self._idle[0].returned_at < oldest:
            await self._drop(self._idle.pop(0))
        while self._idle:
            held = self._idle.pop()
            if self._driver.is_open(held.raw):
                return held
            await self._drop(held)
        return None

    async def _is_of_use(self, held: OpenConnection, writes: bool) -> bool:
        """Check that this open connection is fit for the use; if not, drop it and return False."""
        serves = False
        try:
            if _now() - held.looked_at >= _FRESH_SECONDS:
                async with asyncio.timeout(self._timeout * _LOOK_SHARE):
                    await self._connections.look(held)
            serves = held.writable or not writes
        except (TimeoutError, Unavailable):
            await self._drop_idle()  # they would meet the same error; a new connection will show what is wrong
        finally:
            if not serves:
                await self._drop(held)
        return serves

    async def _new(self, writes: bool) -> OpenConnection:
        """Open a connection that is fit for the use.

        Raises:
            Unavailable: it cannot be opened, or is not fit.
        """
        if writes and _now() < self._read_only_until:
            raise _read_only()
        held = await self._connections.open()
        self._open.add(held)
        if held.writable:
            # Connections that only read may belong to a standby that has fallen behind.
            for other in [each for each in self._idle if not each.writable]:
                self._idle.remove(other)
                await self._drop(other)
        elif writes:
            self._read_only_until = _now() + _REFUSED_SECONDS
            self._put_back(held)
            raise _read_only()
        return held

    def _put_back(self, held: OpenConnection) -> None:
        held.returned_at = _now()
        if not self._callers.wake(held):
            self._idle.append(held)

    def _release(self) -> None:
        self._taken -= 1
        self._slots.release()

    async def _drop(self, held: OpenConnection) -> asyncio.Future[Any] | None:
        """Abandon a connection without waiting; the future is done when it has released everything."""
        self._open.discard(held)
        gone = await self._connections.abandon(held)
        while self._callers.wake(None) and not self._open:
            continue
        return gone

    async def _drop_idle(self) -> None:
        while self._idle:
            await self._drop(self._idle.pop())


class _Callers:
    """Callers that wait for a connection. A connection for one that is cancelled meanwhile is `put_back`."""

    def __init__(self, put_back: Callable[[OpenConnection], None]) -> None:
        self._put_back = put_back
        self._waiting: deque[asyncio.Future[OpenConnection | None]] = deque()

    async def wait(self, seconds: float) -> OpenConnection | None:
        """Wait for the next connection to be returned; None when it is time to try to open one again."""
        freed: asyncio.Future[OpenConnection | None] = asyncio.get_running_loop().create_future()
        self._waiting.append(freed)
        try:
            await asyncio.wait((freed,), timeout=seconds)
        except asyncio.CancelledError:
            if freed.done() and (held := freed.result()) is not None:
                self._put_back(held)
            raise
        finally:
            if not freed.done():
                self._waiting.remove(freed)
        return freed.result() if freed.done() else None

    def wake(self, held: OpenConnection | None) -> bool:
        """Hand a connection, or permission to open one, to the caller that has waited longest; False if none waits."""
        while self._waiting:
            freed = self._waiting.popleft()
            if not freed.done():
                freed.set_result(held)
                return True
        return False


def _now() -> float:
    return asyncio.get_running_loop().time()


def _read_only() -> Unavailable:
    return Unavailable("the database is read-only")


def _root(error: Exception) -> Exception:
    """The database's own error, if `error` is a refusal made of it."""
    return error.__cause__ if isinstance(error, UploadError) and isinstance(error.__cause__, Exception) else error
