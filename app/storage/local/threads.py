"""Calls from the event loop into a thread."""

from collections.abc import Callable
from concurrent.futures import Executor
from typing import TypeVar

from aiofiles.os import wrap

T = TypeVar("T")


async def in_thread(threads: Executor, work: Callable[..., T], *arguments: object) -> T:
    """Call `work` in one of `threads`. A caller that is cancelled does not stop it: see `run_to_completion`."""
    result: T = await _called(work, *arguments, executor=threads)
    return result


def _call(work: Callable[..., T], *arguments: object) -> T:
    return work(*arguments)


_called = wrap(_call)  # once: it takes longer than handing a call to a thread
