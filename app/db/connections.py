"""Connections to the database: opened, examined, closed in good order or abandoned. Lending them is the pool's.

`databases` ties a connection to the task that asks for it, so they are made by hand here.
"""

import asyncio
from collections.abc import Iterable
from contextlib import suppress
from typing import Any, Final

from databases import Database
from databases.core import Connection

from app.db.driver import Driver
from app.db.queryable import answered
from app.errors import Unavailable, Unusable

_UNFIT_SECONDS: Final = 1.0
"""After a new connection was found unfit, no other is opened for this long."""
_PARTING_SECONDS: Final = 1.0
"""How long a connection may take to close in good order."""


class OpenConnection:
    """One open connection and its state."""

    __slots__ = ("connection", "looked_at", "raw", "returned_at", "writable")

    def __init__(self, connection: Connection) -> None:
        self.connection = connection
        self.raw: Any = connection.raw_connection
        self.looked_at = self.returned_at = _now()
        self.writable = False


class Connections:
    """The connections to one database."""

    def __init__(self, database: Database, driver: Driver) -> None:
        self._database, self._driver = database, driver
        self._abandoned: set[asyncio.Future[Any]] = set()  # those that still hold something
        self._unfit: Unavailable | None = None
        self._unfit_until = 0.0

    async def open(self) -> OpenConnection:
        """Open a connection.

        Raises:
            Unavailable: it cannot be opened, or is not fit.
        """
        if self._unfit is not None and _now() < self._unfit_until:
            raise Unavailable(str(self._unfit)) from self._unfit.__cause__
        connection = Connection(self._database, self._database._backend)
        await answered(self._driver, self._driver.connect(connection))
        opened, fit = OpenConnection(connection), False
        try:
            await self.look(opened)
            fit = True
        except Unavailable as error:
            self._remember(str(error), error.__cause__)
            raise
        finally:
            if not fit:
                await self.abandon(opened)
        return opened

    def _remember(self, text: str, cause: BaseException | None) -> None:
        """Keep the reason why an open connection is not fit, as new errors: raised ones hold their callers' frames."""
        if cause is None or isinstance(cause, Unusable):
            self._unfit, self._unfit_until = Unavailable(text), _now() + _UNFIT_SECONDS
            self._unfit.__cause__ = cause and Unusable(str(cause))

    async def look(self, opened: OpenConnection) -> None:
        """Check that the connection is alive and fit.

        Raises:
            Unavailable: it is not; if it is alive, the cause is an Unusable that says why.
        """
        began = _now()
        try:
            opened.writable = await answered(self._driver, self._driver.look(opened.raw))
        except Unusable as error:
            raise Unavailable("the database is not fit for use") from error
        opened.looked_at = began

    async def abandon(self, opened: OpenConnection) -> asyncio.Future[Any] | None:
        """Abandon a connection without waiting; the future is done when it has released everything."""
        gone = await self._driver.abandon(opened.raw)
        if gone is not None:
            self._abandoned.add(gone)
            gone.add_done_callback(self._abandoned.discard)
        return gone

    async def part(self, opened: OpenConnection) -> None:
        """Close an idle connection in good order."""
        with suppress(Exception):  # a connection that cannot be closed in good order is gone already
            await self._driver.close(opened.raw)

    async def close(self, idle: Iterable[OpenConnection]) -> None:
        """Close these connections in good order, and wait for abandoned ones; in bounded time."""
        ending = [*self._abandoned, *(asyncio.ensure_future(self.part(each)) for each in idle)]
        if ending:
            await asyncio.wait(ending, timeout=_PARTING_SECONDS)
        with suppress(TimeoutError):
            async with asyncio.timeout(_PARTING_SECONDS):
                await self._database.disconnect()


def _now() -> float:
    return asyncio.get_running_loop().time()
