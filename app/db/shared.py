"""Shared transactions: what many callers ask for at the same moment is done in one transaction."""

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from typing import Final, Generic, TypeVar

from app.cancellation import run_to_completion
from app.db.database import Db
from app.db.driver import LOCK_SECONDS
from app.db.queryable import Transaction
from app.errors import Locked, UploadError

A = TypeVar("A")
T = TypeVar("T")

_MOST: Final = 256


class SharedTransactions(Generic[A, T]):
    """Does work for callers. Those that come while one transaction runs share the next; a lone one waits for nobody.

    `work` gets what they ask for and returns an answer for each, in order: a result, or an exception to be raised.
    A transaction of several that fails by one of them, or meets a lock, is taken back, and each is done alone.
    It may be done again after its answer was lost, so `work` must be idempotent.
    """

    def __init__(self, db: Db, work: Callable[[Transaction, Sequence[A]], Awaitable[Sequence[T | Exception]]]) -> None:
        self._db = db
        self._work = work
        self._asked: list[tuple[A, asyncio.Future[T]]] = []
        self._running: asyncio.Task[None] | None = None
        self._alone: set[asyncio.Task[None]] = set()

    async def ask(self, asked: A) -> T:
        """Return the answer once its transaction is durable. A cancelled caller does not stop that.

        Raises: see `Db.transaction`, or an exception that `work` answered.
        """
        answer: asyncio.Future[T] = asyncio.get_running_loop().create_future()
        self._asked.append((asked, answer))
        if self._running is None:
            self._running = asyncio.create_task(self._run(), name="waybill-shared-transactions")
        try:
            return await run_to_completion(answer)
        finally:
            del answer  # it holds the exception, whose traceback holds this frame: a reference cycle

    async def _run(self) -> None:
        try:
            while self._asked:
                group, self._asked = self._asked[:_MOST], self._asked[_MOST:]
                await self._do(group)
        finally:
            self._running = None

    async def _do(self, group: Sequence[tuple[A, "asyncio.Future[T]"]]) -> None:
        async def run(transaction: Transaction) -> Sequence[T | Exception]:
            return await self._work(transaction, [asked for asked, _ in group])

        try:
            answers = await self._db.transaction(run, lock_timeout=None if len(group) == 1 else LOCK_SECONDS)
        except Exception as error:
            for each in group:
                if len(group) > 1 and (isinstance(error, Locked) or not isinstance(error, UploadError)):
                    self._begin_alone(each)
                else:
                    each[1].set_exception(error.copy() if isinstance(error, UploadError) else error)
            return
        for (_, answer), result in zip(group, answers, strict=True):
            if isinstance(result, Exception):
                answer.set_exception(result)
            else:
                answer.set_result(result)

    def _begin_alone(self, each: tuple[A, "asyncio.Future[T]"]) -> None:
        task = asyncio.create_task(self._do([each]), name="waybill-transaction-alone")
        self._alone.add(task)
        task.add_done_callback(self._alone.discard)
