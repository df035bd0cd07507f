"""Access to the database: named queries, transactions, and nothing that can hang or leak.

The library beneath is `databases`, without two of its features. Its transactions lose a connection for
ever when a COMMIT fails or a cancellation meets a BEGIN (see `calls`); and its connections belong to a
task, so that each request would open one (see `pool`).
"""

import asyncio
import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from functools import partial
from typing import Any, Final, TypeVar

import structlog
from databases import Database

from app.background import every
from app.cancellation import run_to_completion
from app.db import queries
from app.db.calls import Calls
from app.db.connections import Connections
from app.db.driver import LOCK_SECONDS, Driver, Row
from app.db.pool import Pool
from app.db.queries import Dialect
from app.db.queryable import NamedQueries, Queryable, SeparateConnection, Transaction, answered
from app.db.urls import understood
from app.errors import StorageFull, Unavailable, Unusable, UploadError

__all__ = ["LOCK_SECONDS", "Db", "Queryable", "Row", "SeparateConnection", "Transaction"]

T = TypeVar("T")

log = structlog.stdlib.get_logger("waybill.db")

_REFUSED: Final = "the database cannot be used now"
_HASTE_SECONDS: Final = 2.0
_WATCH_SECONDS: Final = 2.0

# On DEBUG both log the arguments of every statement.
for _talkative in ("databases", "aiosqlite"):
    logging.getLogger(_talkative).setLevel(logging.WARNING)


class _Queries(NamedQueries):
    """The database, for queries that are asked in another way than usually: `call` calls it so."""

    def __init__(self, driver: Driver, known: Mapping[str, queries.Query], call: Callable[..., Awaitable[Any]]) -> None:
        self._driver, self._queries, self._call = driver, known, call

    async def _ask(self, query: queries.Query, arguments: Mapping[str, Any]) -> list[Row]:
        use = lambda raw: answered(self._driver, self._driver.fetch(raw, query, arguments))  # noqa: E731
        rows: list[Row] = await self._call(use, writes=query.writes)
        return rows


class Db(NamedQueries):
    """One database, used from one event loop.

    Every call ends within `timeout` seconds, and so does the wait for one of `pool_size`
    connections. Queries of `reading` never have more than half of them. When the database
    is away, busy, frozen or lost in the middle, a call raises Unavailable; when its disk is full,
    StorageFull; an error of the statement (a constraint, a mistake) passes through as the
    driver's own exception. A cancelled call runs to completion before the cancellation goes on; it
    has `timeout` seconds for that, also where it was given longer.

    All tables are in `schema`, or where PostgreSQL's search path leads.

    Raises:
        Unusable: the URL names no database that is known here.
    """

    def __init__(self, url: str, *, schema: str | None = None, pool_size: int = 8, timeout: float = 5.0) -> None:
        self._name, url, self._driver = understood(url)
        self.schema = schema
        options = self._driver.options(schema=schema, pool_size=pool_size, timeout=timeout)
        self._database = Database(url, **options)
        self._queries = queries.load(self.dialect)
        self._connections = Connections(self._database, self._driver)
        self._pool = Pool(self._connections, self._driver, size=pool_size, timeout=timeout)
        self._calls = Calls(self._pool, self._driver, timeout=timeout)
        asked = partial(_Queries, self._driver, self._queries)
        places = asyncio.Semaphore(max(1, pool_size // 2))
        self.reading: Queryable = asked(partial(self._guarded, queue=places))
        """For queries that read more rows than they return: a count, a search, a filtered page."""
        self.hasty: Queryable = asked(partial(self._guarded, timeout=min(timeout, _HASTE_SECONDS)))
        """For queries whose failure does no harm: they are given up after two seconds."""
        self.unguarded: Queryable = asked(self._calls.call)
        """For examining the schema, also while it is refused."""
        self.refused: str | None = None
        """The reason why all queries are refused at present, if they are."""
        self.explain: Callable[[], Awaitable[str | None]] | None = None
        """Called when a statement fails by a mistake: returns the reason if the schema is to blame, else None."""

    @property
    def dialect(self) -> Dialect:
        return self._driver.dialect

    async def open(self) -> None:
        """Connect once, to see that the database is there and durable.

        Raises:
            Unusable: the database could lose what it acknowledged, or refuses the user.
            Unavailable: the database cannot be reached now.
        """
        await self._database.connect()
        async with AsyncExitStack() as undo:
            undo.push_async_callback(self.close)
            try:
                await self.check()
            except Exception as error:
                cause = error.__cause__ or error
                reason = str(cause) if isinstance(cause, Unusable) else self._driver.misfit(cause)
                if reason is None:
                    raise
                raise Unusable(f"{self._name}: {reason}") from error
            await self._calls.statement(self._driver.keep_room)
            self._calls.reports_misfits = True
            undo.pop_all()

    async def close(self) -> None:
        """Wait for running calls, end those that take too long, and close every connection.

        Bounded in time. Calls that come later raise Unavailable.
        """
        await self._calls.close()

    def slots(self) -> tuple[int, int]:
        """The number of connections that could be borrowed now, and of all."""
        return self._pool.slots()

    async def ping(self) -> None:
        """Return when the database has answered on a connection of the pool."""
        await self._calls.statement(lambda raw: self._driver.execute(raw, "SELECT 1"))

    async def watch(self) -> None:
        """Check the database every few seconds, until cancelled, and log problems before a request meets them."""

        async def look() -> None:
            with suppress(UploadError):  # the problem is logged
                await self.ping()

        await every(_WATCH_SECONDS, look, failure="database not checked", log=log)

    async def check(self) -> dict[str, str]:
        """Describe the database and its durability.

        Raises:
            Unusable: the database could lose what it has acknowledged.
        """
        return await self._calls.statement(self._driver.inspect)

    async def transaction(
        self,
        work: Callable[[Transaction], Awaitable[T]],
        *,
        timeout: float | None = None,
        lock_timeout: float | None = None,
    ) -> T:
        """Do all of `work` or nothing of it; return its result once the transaction is durable.

        `work` may be called more than once, because a transaction that lost a race is tried again as a
        whole: nothing outside the database may depend on how often. It awaits nothing but the
        transaction, and runs in the task that calls it. A lock that others hold is waited for as long as there is
        time, in several tries between which no connection is borrowed; with `lock_timeout`, in one try of so
        many seconds.

        Raises:
            Locked: the lock was held for longer; nothing was done.
            Unavailable: the outcome is unknown, since the answer to a COMMIT may have been lost.
                Query the state, or make `work` idempotent.
        """

        async def use(raw: Any) -> T:
            await answered(self._driver, self._driver.begin(raw, timeout, lock_timeout))
            transaction = Transaction(self._driver, raw, self._queries)
            try:
                result = await work(transaction)
            finally:
                transaction.ended = True
            if transaction.failure is not None:
                raise transaction.failure
            await answered(self._driver, self._driver.commit(raw))
            return result

        return await self._guarded(use, timeout=timeout, writes=True, waits=lock_timeout is None)

    async def transaction_that_frees(self, work: Callable[[Transaction], Awaitable[T]]) -> T:
        """Do a transaction that lets files be removed, so that a full disk does not prevent it; otherwise as above.

        The transaction may use the ballast, which is filled again afterwards.
        """
        if self._driver.lacks_room:
            await self._calls.statement(self._driver.keep_room)
        while True:
            try:
                return await self.transaction(work)
            except StorageFull:
                if not await run_to_completion(asyncio.to_thread(self._driver.make_room)):
                    raise

    @asynccontextmanager
    async def aside(self) -> AsyncIterator[SeparateConnection]:
        """Open a connection beside the pool's: no transaction, no deadline; a cancellation ends its statement.

        For statements that take long and block nobody. On exit it is closed, which releases what its session holds.
        """
        opened = await self._connections.open()
        try:
            await answered(self._driver, self._driver.lift_limits(opened.raw))
            yield SeparateConnection(self._driver, opened.raw, self._queries)
        finally:
            await self._connections.part(opened)

    async def _ask(self, query: queries.Query, arguments: Mapping[str, Any]) -> list[Row]:
        use = lambda raw: answered(self._driver, self._driver.fetch(raw, query, arguments))  # noqa: E731
        return await self._guarded(use, writes=query.writes)

    async def _guarded(self, use: Callable[[Any], Awaitable[T]], **how: Any) -> T:
        """Call it, unless the schema cannot be used; a statement that fails for that reason raises Unavailable."""
        if self.refused is not None:
            raise Unavailable(_REFUSED)
        try:
            return await self._calls.call(use, **how)
        except Exception as error:
            if isinstance(error, UploadError) or self.explain is None:
                raise
            reason = None
            with suppress(UploadError):
                reason = await self.explain()
            if reason is None:
                raise
            raise Unavailable(_REFUSED) from error
