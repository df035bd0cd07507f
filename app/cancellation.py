"""Cancellation: running work to completion although the caller is cancelled, or until the process is told to end."""

import asyncio
import signal
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any, Final, TypeVar

T = TypeVar("T")
_AGAIN_SECONDS: Final = 1.0


async def run_to_completion(work: Awaitable[T], *, hasten: Callable[[], None] | None = None) -> T:
    """Run `work` to completion, whatever happens to the caller meanwhile.

    A cancellation is remembered and raised once `work` has ended: a thread that still uses
    a file, or a transaction that is about to commit, is never abandoned. The caller of a
    cancelled call does not learn the outcome. `work` needs its own bound in time;
    `hasten` is called at a cancellation while it runs, to bring that bound nearer.
    """
    outcome: asyncio.Future[T] = asyncio.get_running_loop().create_future()
    running = asyncio.ensure_future(_report(work, outcome))
    try:
        return await outcome
    except asyncio.CancelledError as error:
        cancelled = error
    except BaseException:
        # A reference cycle (future → error → traceback → frame) would keep alive whatever the caller holds.
        del outcome, running, work
        raise
    if hasten is not None and not running.done():
        hasten()
    while not running.done():
        try:
            await asyncio.wait((running,))
        except asyncio.CancelledError as error:
            cancelled = error
    try:
        raise cancelled
    finally:
        del cancelled  # for the same reason


async def _report(work: Awaitable[T], outcome: "asyncio.Future[T]") -> None:
    """Await the work and report its `outcome`, one iteration of the event loop before the task's own callbacks."""
    try:
        result = await work
        if not outcome.done():
            outcome.set_result(result)
    except asyncio.CancelledError:
        outcome.cancel()
    except BaseException as error:
        if not outcome.done():
            outcome.set_exception(error)
    finally:
        del work, outcome  # for the same reason: the work may be a future, which holds the error


async def until_terminated(work: Coroutine[Any, Any, T]) -> T:
    """Do the work and return its result; a SIGTERM ends it, and raises SystemExit with status 0.

    What the handler of a signal raises may be lost: it can interrupt code whose exceptions Python ignores.
    """
    loop, task = asyncio.get_running_loop(), asyncio.ensure_future(work)
    asked: list[asyncio.TimerHandle] = []

    def stop() -> None:
        task.cancel()
        asked.append(loop.call_later(_AGAIN_SECONDS, stop))  # if it was caught on its way

    loop.add_signal_handler(signal.SIGTERM, stop)
    try:
        return await task
    except asyncio.CancelledError:
        if asked:
            raise SystemExit(0) from None
        raise
    finally:
        loop.remove_signal_handler(signal.SIGTERM)
        for timer in asked:
            timer.cancel()
