"""Waiting for work that must not be left half-way."""

import asyncio
from collections.abc import Awaitable
from typing import TypeVar

T = TypeVar("T")


async def to_the_end(work: Awaitable[T]) -> T:
    """Await `work` to its end, whatever happens to the caller meanwhile.

    A cancellation is remembered and raised once `work` has ended: a thread that still uses
    a file, or a transaction that is about to commit, is never abandoned. The caller of a
    cancelled call does not learn the outcome. `work` needs its own bound in time.
    """
    running = asyncio.ensure_future(work)
    try:
        return await asyncio.shield(running)
    except asyncio.CancelledError as error:
        if running.cancelled():
            raise
        cancelled = error
    except BaseException:
        del running  # it holds the error, whose traceback holds this: a circle, and all that the caller has in hand
        raise
    while not running.done():
        try:
            await asyncio.wait((running,))
        except asyncio.CancelledError as error:
            cancelled = error
    if not running.cancelled():
        running.exception()  # fetched, so that asyncio does not report it as forgotten
    try:
        raise cancelled
    finally:
        del cancelled  # for the same reason
