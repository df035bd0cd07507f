"""Access to the database: named queries, transactions, and nothing that can hang or leak.

The library beneath is `databases`, without two of its features. Its transactions lose a connection for
ever when a COMMIT fails or a cancellation meets a BEGIN; and its connections belong to a task, so
that each request would open one. Here a few connections are held open and every call borrows one,
in a task of its own that no cancellation reaches and that ends by its own deadline.
"""

import asyncio
import logging
import random
import re
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from functools import partial
from typing import Any, Final, TypeVar

import structlog
from databases import Database, DatabaseURL

from app.background import every
from app.cancellation import run_to_completion
from app.config import postgresql_url
from app.db import queries
from app.db.driver import LOCK_SECONDS, Driver, Row
from app.db.pool import Pool
from app.db.queries import Dialect
from app.db.queryable import NamedQueries, Queryable, SeparateConnection, Transaction, answered
from app.errors import Locked, StorageFull, Unavailable, Unusable, UploadError, root_reason

__all__ = ["LOCK_SECONDS", "Db", "Queryable", "Row", "SeparateConnection", "Transaction"]

T = TypeVar("T")

log = structlog.stdlib.get_logger("waybill.db")

_PAUSE: Final = (0.002, 0.05)  # seconds, from and to, before a transaction that lost a race is tried again
_LOCK_PAUSE: Final = (0.05, 0.15)  # the same when a lock was held
_REFUSED: Final = "the database cannot be used now"
_HASTE_SECONDS: Final = 2.0
_WATCH_SECONDS: Final = 2.0
_REPEAT_SECONDS: Final = 60.0
"""For this long the same trouble with the database is not logged again."""

# On DEBUG both log the arguments of every statement.
for _talkative in ("databases", "aiosqlite"):
    logging.getLogger(_talkative).setLevel(logging.WARNING)


class _Reading(NamedQueries):
    """The database, for slow queries: they take at most half of the connections, and otherwise wait for one another."""

    def __init__(self, db: "Db", places: asyncio.Semaphore) -> None:
        self._queries, self._db, self._places = db._queries, db, places

    async def _ask(self, query: queries.Query, arguments: Mapping[str, Any]) -> list[Row]:
        fetch = lambda raw: self._db._driver.fetch(raw, query, arguments)  # noqa: E731
        return await self._db._guarded(lambda: self._db._once(fetch, queue=self._places))


class _Hasty(NamedQueries):
    """The database, for queries that are given up after a short time."""

    def __init__(self, db: "Db") -> None:
        self._queries, self._db = db._queries, db

    async def _ask(self, query: queries.Query, arguments: Mapping[str, Any]) -> list[Row]:
        fetch = lambda raw: self._db._driver.fetch(raw, query, arguments)  # noqa: E731
        timeout = min(self._db._timeout, _HASTE_SECONDS)
        return await self._db._guarded(lambda: self._db._once(fetch, writes=query.writes, timeout=timeout))


class _Unguarded(NamedQueries):
    """The database, for examining its schema while all other queries are refused."""

    def __init__(self, db: "Db") -> None:
        self._queries, self._db = db._queries, db

    async def _ask(self, query: queries.Query, arguments: Mapping[str, Any]) -> list[Row]:
        return await self._db._once(lambda raw: self._db._driver.fetch(raw, query, arguments))


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
        self._name, told, self._driver = _understood(url)
        self.schema = schema
        options = self._driver.options(schema=schema, pool_size=pool_size, timeout=timeout)
        self._database = Database(told, **options)
        self._queries = queries.load(self.dialect)
        self._pool = Pool(self._database, self._driver, size=pool_size, timeout=timeout)
        self._timeout = timeout
        self.reading: Queryable = _Reading(self, asyncio.Semaphore(max(1, pool_size // 2)))
        """For queries that read more rows than they return: a count, a search, a filtered page."""
        self.hasty: Queryable = _Hasty(self)
        """For queries whose failure does no harm: they are given up after two seconds."""
        self.unguarded: Queryable = _Unguarded(self)
        """For examining the schema, also while it is refused."""
        self.refused: str | None = None
        """The reason why all queries are refused at present, if they are."""
        self.explain: Callable[[], Awaitable[str | None]] | None = None
        """Called when a statement fails by a mistake: returns the reason if the schema is to blame, else None."""
        self._is_open = self._closing = False
        self._trouble: dict[bool, str] = {}  # False: of readers, True: of writers
        self._logged: dict[str, float] = {}  # when a kind of trouble was logged last

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
            await self._once(self._driver.keep_room)
            self._is_open = True
            undo.pop_all()

    async def close(self) -> None:
        """Wait for running calls, end those that take too long, and close every connection.

        Bounded in time. Calls that come later raise Unavailable.
        """
        if not self._closing:
            self._closing = True
            await run_to_completion(self._pool.close())

    def slots(self) -> tuple[int, int]:
        """The number of connections that could be borrowed now, and of all."""
        return self._pool.slots()

    async def ping(self) -> None:
        """Return when the database has answered on a connection of the pool."""
        await self._once(lambda raw: self._driver.execute(raw, "SELECT 1"))

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
        return await self._once(self._driver.inspect)

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

        return await self._guarded(lambda: self._call(use, timeout=timeout, writes=True, waits=lock_timeout is None))

    async def transaction_that_frees(self, work: Callable[[Transaction], Awaitable[T]]) -> T:
        """Do a transaction that lets files be removed, so that a full disk does not prevent it; otherwise as above.

        The transaction may use the ballast, which is filled again afterwards.
        """
        if self._driver.lacks_room:
            await self._once(self._driver.keep_room)
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
        held = await self._pool.fresh()
        try:
            await answered(self._driver, self._driver.lift_limits(held.raw))
            yield SeparateConnection(self._driver, held.raw, self._queries)
        finally:
            await self._pool.part(held)

    async def _ask(self, query: queries.Query, arguments: Mapping[str, Any]) -> list[Row]:
        fetch = lambda raw: self._driver.fetch(raw, query, arguments)  # noqa: E731
        return await self._guarded(lambda: self._once(fetch, writes=query.writes))

    async def _guarded(self, ask: Callable[[], Awaitable[T]]) -> T:
        """Ask, unless the schema cannot be used; a statement that fails for that reason raises Unavailable."""
        if self.refused is not None:
            raise Unavailable(_REFUSED)
        try:
            return await ask()
        except Exception as error:
            if isinstance(error, UploadError) or self.explain is None:
                raise
            reason = None
            with suppress(UploadError):
                reason = await self.explain()
            if reason is None:
                raise
            raise Unavailable(_REFUSED) from error

    async def _once(
        self,
        ask: Callable[[Any], Awaitable[T]],
        *,
        timeout: float | None = None,
        writes: bool = False,
        queue: asyncio.Semaphore | None = None,
    ) -> T:
        """Run one statement as a transaction of its own."""
        use = lambda raw: answered(self._driver, ask(raw))  # noqa: E731
        return await self._call(use, timeout=timeout, writes=writes, queue=queue)

    async def _call(
        self,
        use: Callable[[Any], Awaitable[T]],
        *,
        timeout: float | None = None,
        writes: bool = False,
        queue: asyncio.Semaphore | None = None,
        waits: bool = True,
    ) -> T:
        """Call `use` with a connection, in a task of its own, until it succeeds, fails for good or runs out of time."""
        if self._closing:
            raise Unavailable("the service is stopping")
        limit = asyncio.timeout(self._timeout if timeout is None else timeout)
        attempts = self._attempts(use, limit, writes, queue, waits)
        try:
            result = await run_to_completion(attempts, hasten=partial(self._hasten, limit))
        except Locked:
            raise
        except Unavailable as error:
            if self._is_open or self._driver.misfit(error.__cause__) is None:  # `open` reports a misfit in full
                self._log_trouble(root_reason(error), writes)
            raise
        finally:
            del limit, attempts  # they hold the error, whose traceback holds this frame
        if self._trouble and (trouble := self._trouble.pop(writes, None)):
            log.info("database usable again", after=trouble, writes=writes)
        return result

    def _hasten(self, limit: asyncio.Timeout) -> None:
        """Bring the deadline nearer: nobody waits for the result any more, and a stop waits for the call to end."""
        latest = asyncio.get_running_loop().time() + self._timeout
        if not limit.expired() and (when := limit.when()) is not None and when > latest:
            limit.reschedule(latest)

    def _log_trouble(self, why: str, writes: bool) -> None:
        now, kind = asyncio.get_running_loop().time(), why.partition(":")[0]
        if now - self._logged.get(kind, -_REPEAT_SECONDS) >= _REPEAT_SECONDS:
            self._logged[kind], self._trouble[writes] = now, why
            log.error("database not usable", reason=why, writes=writes)

    async def _attempts(
        self,
        use: Callable[[Any], Awaitable[T]],
        limit: asyncio.Timeout,
        writes: bool,
        queue: asyncio.Semaphore | None,
        waits: bool,
    ) -> T:
        if writes:
            queue = self._pool.writers
        locked, met = False, "it does not answer in time"
        try:
            async with limit:
                while True:
                    try:
                        return await self._pool.lend(use, writes=writes, queue=queue)
                    except Locked:
                        if not waits:
                            raise
                        locked = True
                    except Unavailable as error:
                        if not self._driver.is_conflict(error.__cause__):
                            raise
                        locked, met = False, root_reason(error)
                    pause = _LOCK_PAUSE if locked else _PAUSE
                    await asyncio.sleep(random.uniform(*pause))  # noqa: S311  # jitter, not a secret
        except TimeoutError as error:
            if limit.expired():
                if locked:
                    raise Locked from error
                raise Unavailable("the database does not answer in time") from TimeoutError(met)
            raise
        finally:
            del limit  # it holds the task, which holds its error, whose traceback holds this frame


def _understood(url: str) -> tuple[str, str, Driver]:
    """Take a URL apart: the URL without its password, the URL for `databases`, and the driver.

    The other driver is not imported: that would take memory and time.

    Raises:
        Unusable: the URL names no database that is known here, or sets options that would be ignored.
    """
    name = re.sub(r"(?<=//)([^/?]*?):[^/?]*@", r"\1:********@", url)
    try:
        match url.partition(":")[0]:
            case "sqlite":
                from app.db.sqlite import SqliteDriver

                if DatabaseURL(url).database in {"", ":memory:"}:
                    raise Unusable(f"{name}: the URL names no database")
                if DatabaseURL(url).options:
                    raise Unusable(f"{name}: the URL has options, which would be ignored")
                return name, url, SqliteDriver()
            case "postgresql" | "postgres":
                from app.db.postgresql import PostgresqlDriver

                return name, "postgresql://", PostgresqlDriver(postgresql_url.parse(url))
    except ValueError as error:
        raise Unusable(f"the database's URL {error}") from None
    raise Unusable("the database's URL must begin with sqlite:/// or postgresql://")
