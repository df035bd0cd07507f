"""A store and a database that do what a test says: wait, refuse, fail, go away, lose an answer.

Both are the real ones underneath, and both write what was done into one story, so that a
test can read the order.
"""

import asyncio
import uuid
from collections.abc import Awaitable, Callable, Generator, Iterator, Mapping, Sequence
from itertools import count
from typing import Any, TypeVar

from app.db.database import Db
from app.db.migrate import migrate
from app.db.queryable import Transaction
from app.errors import StorageFull, Unavailable, UploadError
from app.maintenance.sweep import Sweeper, Swept
from app.model import Clock
from app.storage.memory import MemoryStaged, MemoryStorage

T = TypeVar("T")
NOW = 1_800_000_000_000_000


class Gate:
    """Open until `close`; who comes to a closed one waits. `reached` tells that somebody has."""

    def __init__(self) -> None:
        self.reached = asyncio.Event()
        self._opened = asyncio.Event()
        self._opened.set()

    def close(self) -> None:
        self.reached.clear()
        self._opened.clear()

    def open(self) -> None:
        self._opened.set()

    async def pass_through(self) -> None:
        self.reached.set()
        await self._opened.wait()


class Store(MemoryStorage):
    """`refuses` names the sizes of files it refuses when they are published, and with what."""

    def __init__(self, capacity: int = 2**63, story: list[str] | None = None) -> None:
        super().__init__(capacity)
        self.story = [] if story is None else story
        self.gate = Gate()
        self.batches: list[int] = []
        self.refuses: dict[int, UploadError] = {}
        self.fails: Exception | None = None
        self.removed = asyncio.Event()

    async def publish(self, batch: Sequence[MemoryStaged]) -> Mapping[str, UploadError]:
        await self.gate.pass_through()
        self.batches.append(len(batch))
        if self.fails is not None:
            raise self.fails
        refused = {staged.key: self.refuses[staged.size] for staged in batch if staged.size in self.refuses}
        for staged in batch:
            if staged.key in refused:
                await staged.abort()
        refused.update(await super().publish([staged for staged in batch if staged.key not in refused]))
        self.story.append("published")
        return refused

    async def remove(self, keys: Sequence[str]) -> None:
        await super().remove(keys)
        self.story.append("removed")
        self.removed.set()

    async def set_aside(self, keys: Sequence[str]) -> None:
        await super().set_aside(keys)
        self.story.append("set aside")
        self.removed.set()

    async def contents(self) -> dict[str, bytes]:
        """Everything that is visible, by key."""
        found = [file.key async for files in self.walk(0) for file in files]
        return {key: await (await self.open(key)).read(0, 2**40) for key in found}


class Database(Db):
    """`fails` says of the next transactions how each fails, None being not at all.

    "away" fails before anything is done, "lost" after all is done, "full" for want of space.
    """

    def __init__(self, url: str, story: list[str] | None = None, **options: Any) -> None:
        super().__init__(url, **options)
        self.story = [] if story is None else story
        self.gate = Gate()
        self.away = False
        self.fails: list[str | None] = []
        self.transactions = 0
        self.timeouts: list[float | None] = []

    async def transaction(
        self,
        work: Callable[[Transaction], Awaitable[T]],
        *,
        timeout: float | None = None,
        lock_timeout: float | None = None,
    ) -> T:
        await self.gate.pass_through()
        self.transactions += 1
        self.timeouts.append(timeout)
        failure = self.fails.pop(0) if self.fails else None
        if failure == "full":
            raise StorageFull
        if failure == "away" or (self.away and failure is None):
            raise Unavailable("away, as the test says")
        result = await super().transaction(
            work, lock_timeout=lock_timeout
        )  # a slow machine is no failure, however short the time it is given
        self.story.append("committed")
        if failure == "lost":
            raise Unavailable("the answer is lost, as the test says")
        return result

    async def ping(self) -> None:
        if self.away:
            raise Unavailable("away, as the test says")
        await super().ping()


async def opened(url: str, story: list[str] | None = None) -> Database:
    """The database at `url`, with its tables; its story begins after that."""
    db = Database(url, story, pool_size=3, timeout=20)
    await db.open()
    await migrate(db, now_us=0)
    db.story.clear()
    db.timeouts.clear()
    db.transactions = 0
    return db


def ids() -> Callable[[], str]:
    """Ids that count from one."""
    numbers = count(1)
    return lambda: str(uuid.UUID(int=next(numbers)))


class Time:
    """A clock that stands still until it is moved."""

    def __init__(self, now_us: int = NOW) -> None:
        self.now_us = now_us

    def __call__(self) -> int:
        return self.now_us

    def pass_by(self, *, seconds: float) -> None:
        self.now_us += round(seconds * 1_000_000)


def ticking(start_us: int = NOW) -> Clock:
    """A clock that moves by a microsecond whenever it is read."""
    times: Iterator[int] = count(start_us)
    return lambda: next(times)


class Interrupted:
    """Await `work`, and cancel the task that does when it waits for the n-th time, for each n of `at`.

    Early: as soon as it waits. Late: when what it waits for is there, but it has not gone on.
    `waits` counts.
    """

    def __init__(self, work: Awaitable[T], at: set[int], *, late: bool) -> None:
        self.waits = 0
        self._work = work
        self._at = at
        self._late = late

    def __await__(self) -> Generator[Any, Any, Any]:
        task = asyncio.current_task()
        assert task is not None
        steps = self._work.__await__()
        result: Any = None
        error: BaseException | None = None
        while True:
            try:
                future = steps.throw(error) if error is not None else steps.send(result)
            except StopIteration as end:
                return end.value
            self.waits += 1
            if self.waits in self._at:
                if self._late and future is not None:
                    future.add_done_callback(lambda _: task.cancel())
                else:
                    asyncio.get_running_loop().call_soon(task.cancel)
            error = None
            try:
                result = yield future
            except BaseException as thrown:
                error = thrown


async def coming(event: asyncio.Event) -> None:
    """Wait for an event that must come."""
    async with asyncio.timeout(60):
        await event.wait()


async def until(so: Callable[[], bool | Awaitable[bool]]) -> None:
    """Let the others run until something is so that no event tells of."""
    async with asyncio.timeout(60):
        for turn in count():
            answer = so()
            if answer if isinstance(answer, bool) else await answer:
                return
            # After a while for a moment: who only asks keeps the interpreter from the threads that work.
            await asyncio.sleep(0 if turn < 100 else 0.001)


async def sweep_alone(sweeper: Sweeper) -> Swept:
    """What a sweep did, once nobody else sweeps: a service does at its start."""
    done = await sweeper.once()

    async def alone() -> bool:
        nonlocal done
        if done.stopped == "another process is sweeping":
            done = await sweeper.once()
        return done.stopped != "another process is sweeping"

    await until(alone)
    return done
