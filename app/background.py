"""Background work: the one periodic loop, which goes on whatever a round of it meets."""

import asyncio
import random
from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import NoReturn

from structlog.stdlib import BoundLogger

from app.errors import UploadError

_JITTER = (0.9, 1.1)  # processes that start together do not ask the database together for ever


async def every(
    seconds: float,
    work: Callable[[], Awaitable[object]],
    *,
    failure: str,
    log: BoundLogger,
    count: Callable[[], None] | None = None,
    sooner: asyncio.Event | None = None,
) -> NoReturn:
    """Pause for about so many seconds, do the work, and begin again; setting `sooner` ends the pause.

    Runs until it is cancelled. A failure is handled as by `attempt`.
    """
    sooner = asyncio.Event() if sooner is None else sooner
    while True:
        with suppress(TimeoutError):
            async with asyncio.timeout(seconds * random.uniform(*_JITTER)):  # noqa: S311  # no secret
                await sooner.wait()
        sooner.clear()
        await attempt(work, failure=failure, log=log, count=count)


async def attempt(
    work: Callable[[], Awaitable[object]],
    *,
    failure: str,
    log: BoundLogger,
    count: Callable[[], None] | None = None,
) -> None:
    """Do the work once; log and count a failure, since the next round may succeed.

    The event is `failure`: a warning with the reason where the database or the disk refused, an error with its
    traceback where the mistake is ours.
    """
    try:
        await work()
    except Exception as error:
        if isinstance(error, UploadError):
            log.warning(failure, reason=str(error))
        else:
            log.exception(failure)
        if count is not None:
            count()
