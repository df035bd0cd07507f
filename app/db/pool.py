"""The connection pool: a few connections that are held open, each known to be fit for use when it is lent.

`databases` ties a connection to the task that asks for it, so that each request would open one. Here every
call borrows one, and a failure that one connection meets is taken into account for all.
"""

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable
from contextlib import nullcontext, suppress
from typing import Any, Final, TypeVar

from databases import Database
from databases.core import Connection

from app.db.driver import Driver
from app.db.queryable import answered
from app.errors import Unavailable, Unusable, UploadError

T = TypeVar("T")

_FRESH_SECONDS: Final = 1.0
"""How long a connection counts as fit after a check; then it is checked again before it is lent."""
_REFUSED_SECONDS: Final = 1.0
"""After a new connection was refused, no other is opened for this long."""
_LOOK_SHARE: Final = 0.4
"""The share of a call's time that checking an open connection may take: another can be opened in the rest."""
_PARTING_SECONDS: Final = 1.0
"""How long a connection may take to close in good order."""


class _Held:
    """One open connection and its state."""

    __slots__ = ("connection", "looked_at", "raw", "returned_at", "writable")

    def __init__(self, connection: Connection) -> None:
        self.connection = connection
        self.raw: Any = connection.raw_connection
        self.looked_at = self.returned_at = _now()
        self.writable = False


class Pool:
    """At most `size` connections, each lent to one caller at a time.

    A connection that was found unfit, silent or lost is not lent again. Where others would meet
    the same error, the idle ones are dropped with it: that delays one caller, instead of each in succession.
    """

    def __init__(self, database: Database, driver: Driver, *, size: int, timeout: float) -> None:
        self._database, self._driver = database, driver
        self._size, self._taken = size, 0
        self._timeout = timeout
        self._slots = asyncio.Semaphore(size)
        self.writers = asyncio.Semaphore(1 if driver.one_writer else size)
        """Where writers queue before they borrow."""
        self._open: set[_Held] = set()
        self._idle: list[_Held] = []  # the one used last is the last
        self._parting: set[asyncio.Future[Any]] = set()  # abandoned connections that still hold something
        self._waiting: deque[asyncio.Future[_Held | None]] = deque()  # callers that wait for a connection
        self._crowded_until = self._read_only_until = self._unfit_until = 0.0
        self._unfit: Unavailable | None = None

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
            async with asyncio.timeout(self._timeout + _PARTING_SECONDS):
                for _ in range(self._size):
                    await self._slots.acquire()
        for held in self._open.difference(self._idle):
            await self._drop(held)
        ending = [*self._parting, *(asyncio.ensure_future(self.part(held)) for held in self._idle)]
        if ending:
            await asyncio.wait(ending, timeout=_PARTING_SECONDS)
        with suppress(TimeoutError):
            async with asyncio.timeout(_PARTING_SECONDS):
                await self._database.disconnect()

    async def _recovered(self, held: _Held, error: Exception) -> bool:
        sound = False
        with suppress(Exception):  # if undoing fails, abandoning the connection undoes it
            sound = await self._driver.recover(held.raw, error)
        if not sound and self._driver.concerns_all(error):
            await self._drop_idle()
        return sound

    async def _borrow(self, writes: bool) -> _Held:
        """Take the most recently used connection that is fit, or open a new one."""
        if self._idle:  # the usual case, which does not wait
            last = self._idle[-1]
            if _now() - last.looked_at < _FRESH_SECONDS and last.writable and self._driver.is_open(last.raw):
                return self._idle.pop()
        while True:
            if (held := await self._used_last()) is None and self._open and _now() < self._crowded_until:
                held = await self._next_returned()
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

    async def _used_last(self) -> _Held | None:
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

    async def _next_returned(self) -> _Held | None:
        """Wait for the next connection to be returned; None when it is time to try to open one again."""
        freed: asyncio.Future[_Held | None] = asyncio.get_running_loop().create_future()
        self._waiting.append(freed)
        try:
            await asyncio.wait((freed,), timeout=_REFUSED_SECONDS)
        except asyncio.CancelledError:
            if freed.done() and (held := freed.result()) is not None:
                self._put_back(held)
            raise
        finally:
            if not freed.done():
                self._waiting.remove(freed)
        return freed.result() if freed.done() else None

    async def _is_of_use(self, held: _Held, writes: bool) -> bool:
        """Check that this open connection is fit for the use; if not, drop it and return False."""
        serves = False
        try:
            if _now() - held.looked_at >= _FRESH_SECONDS:
                async with asyncio.timeout(self._timeout * _LOOK_SHARE):
                    await self._look(held)
            serves = held.writable or not writes
        except (TimeoutError, Unavailable):
            await self._drop_idle()  # they would meet the same error; a new connection will show what is wrong
        finally:
            if not serves:
                await self._drop(held)
        return serves

    async def _new(self, writes: bool) -> _Held:
        """Open a connection that is fit for the use.

        Raises:
            Unavailable: it cannot be opened, or is not fit.
        """
        if self._unfit is not None and _now() < self._unfit_until:
            raise Unavailable(str(self._unfit)) from self._unfit.__cause__
        if writes and _now() < self._read_only_until:
            raise _read_only()
        held = await self.fresh()
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

    async def fresh(self) -> _Held:
        """Open a connection beside those of the pool.

        Raises:
            Unavailable: it cannot be opened, or is not fit.
        """
        # Made by hand: database.connection() would tie it to the task that asks for it.
        connection = Connection(self._database, self._database._backend)
        await answered(self._driver, self._driver.connect(connection))
        held, fit = _Held(connection), False
        try:
            await self._look(held)
            fit = True
        except Unavailable as error:
            self._remember(str(error), error.__cause__)
            raise
        finally:
            if not fit:
                await self._drop(held)
        return held

    def _remember(self, text: str, cause: BaseException | None) -> None:
        """Keep the reason why an open connection is not fit, as new errors: raised ones hold their callers' frames."""
        if cause is None or isinstance(cause, Unusable):
            self._unfit, self._unfit_until = Unavailable(text), _now() + _REFUSED_SECONDS
            self._unfit.__cause__ = cause and Unusable(str(cause))

    async def _look(self, held: _Held) -> None:
        """Check that the connection is alive and fit.

        Raises:
            Unavailable: it is not; if it is alive, the cause is an Unusable that says why.
        """
        began = _now()
        try:
            held.writable = await answered(self._driver, self._driver.look(held.raw))
        except Unusable as error:
            raise Unavailable("the database is not fit for use") from error
        held.looked_at = began

    def _put_back(self, held: _Held) -> None:
        held.returned_at = _now()
        if not self._wake(held):
            self._idle.append(held)

    def _release(self) -> None:
        self._taken -= 1
        self._slots.release()

    def _wake(self, held: _Held | None) -> bool:
        """Hand a connection, or permission to open one, to the caller that has waited longest; False if none waits."""
        while self._waiting:
            freed = self._waiting.popleft()
            if not freed.done():
                freed.set_result(held)
                return True
        return False

    async def _drop(self, held: _Held) -> asyncio.Future[Any] | None:
        """Abandon a connection without waiting; the future is done when it has released everything."""
        self._open.discard(held)
        gone = await self._driver.abandon(held.raw)
        if gone is not None:
            self._parting.add(gone)
            gone.add_done_callback(self._parting.discard)
        while self._wake(None) and not self._open:
            continue
        return gone

    async def _drop_idle(self) -> None:
        while self._idle:
            await self._drop(self._idle.pop())

    async def part(self, held: _Held) -> None:
        """Close an idle connection in good order."""
        with suppress(Exception):  # a connection that cannot be closed in good order is gone already
            await self._driver.close(held.raw)


def _now() -> float:
    return asyncio.get_running_loop().time()


def _read_only() -> Unavailable:
    return Unavailable("the database is read-only")


def _root(error: Exception) -> Exception:
    """The database's own error, if `error` is a refusal made of it."""
    return error.__cause__ if isinstance(error, UploadError) and isinstance(error.__cause__, Exception) else error
