"""Calls on the database: each has a connection and a deadline, and is tried again where it lost a race.

A call runs in a task of its own that no cancellation reaches and that ends by its own deadline.
"""

import asyncio
import random
from collections.abc import Awaitable, Callable
from functools import partial
from typing import Any, Final, TypeVar

import structlog

from app.cancellation import run_to_completion
from app.db.driver import Driver
from app.db.pool import Pool
from app.db.queryable import answered
from app.errors import Locked, Unavailable, root_reason

T = TypeVar("T")

log = structlog.stdlib.get_logger("waybill.db")

_PAUSE: Final = (0.002, 0.05)  # seconds, from and to, before a transaction that lost a race is tried again
_LOCK_PAUSE: Final = (0.05, 0.15)  # the same when a lock was held
_REPEAT_SECONDS: Final = 60.0
"""For this long the same trouble with the database is not logged again."""


class Calls:
    """The calls of one process, of which each ends within `timeout` seconds unless it is given another time.

    A cancelled call runs to completion before the cancellation goes on; it has `timeout` seconds for that.
    """

    def __init__(self, pool: Pool, driver: Driver, *, timeout: float) -> None:
        self._pool, self._driver = pool, driver
        self._timeout = timeout
        self.reports_misfits = False
        """Whether a database that can never be used is logged here; whoever opens it raises that in full."""
        self._closing = False
        self._trouble: dict[bool, str] = {}  # False: of readers, True: of writers
        self._logged: dict[str, float] = {}  # when a kind of trouble was logged last

    async def close(self) -> None:
        """Wait for running calls, end those that take too long, and close every connection; refuse later calls."""
        if not self._closing:
            self._closing = True
            await run_to_completion(self._pool.close())

    async def statement(self, ask: Callable[[Any], Awaitable[T]]) -> T:
        """Run one statement as a transaction of its own."""
        return await self.call(lambda raw: answered(self._driver, ask(raw)))

    async def call(
        self,
        use: Callable[[Any], Awaitable[T]],
        *,
        timeout: float | None = None,
        writes: bool = False,
        queue: asyncio.Semaphore | None = None,
        waits: bool = True,
    ) -> T:
        """Call `use` with a connection until it succeeds, fails for good or runs out of time.

        A call that does not write waits in `queue` for its connection. Without `waits` a lock that is held is
        a failure.
        """
        if self._closing:
            raise Unavailable("the service is stopping")
        limit = asyncio.timeout(self._timeout if timeout is None else timeout)
        attempts = self._attempts(use, limit, writes, queue, waits)
        try:
            result = await run_to_completion(attempts, hasten=partial(self._hasten, limit))
        except Locked:
            raise
        except Unavailable as error:
            if self.reports_misfits or self._driver.misfit(error.__cause__) is None:
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
