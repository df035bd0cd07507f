"""Merges of sessions: the records of a session that joined another move there, by any process that is running.

    merged, in one short transaction → its records follow, slice by slice → nothing is left → checked once more

A slice takes a fiftieth of a second and is followed by as long a pause, in which others write. Pending merges are in
the database, so a crash only delays them.
"""

import asyncio
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Final

import structlog

from app.background import every
from app.db.database import Db
from app.db.queryable import Transaction
from app.errors import UploadError
from app.history import Position
from app.model import Clock
from app.sessions import merge_records
from app.sessions.merge_records import FIRST_SLICE, TOP, Slice

log = structlog.stdlib.get_logger("waybill.moves")

_LEAST: Final = 20
_MOST: Final = 1000
_SLICE_SECONDS: Final = 0.02
_PAUSE_SECONDS: Final = 0.02
"""The shortest pause; a writer of another process that waits for SQLite tries again every few milliseconds."""
_LOOK_SECONDS: Final = 5.0
_HURRY_SECONDS: Final = 1.0
_SURE_US: Final = 60_000_000
"""Longer than any transaction: a record that was about to be committed when nothing was left is there by then."""
_AT_ONCE: Final = 100


class SessionMerges:
    """The pending merges of one database, as one process carries them out. `run` it as long as it is used."""

    def __init__(self, db: Db, *, now_us: Clock) -> None:
        self._db = db
        self._now_us = now_us
        self._size = FIRST_SLICE
        self._before: dict[str, Position] = {}
        self._soon = asyncio.Event()

    async def hurry(self, session_id: str) -> None:
        """Move the records of a session that has just joined another one; after a second, go on in the background."""
        clock = asyncio.get_running_loop().time
        deadline = clock() + _HURRY_SECONDS
        try:
            while clock() < deadline:
                if await self._step(session_id) is None:
                    return
                await asyncio.sleep(_PAUSE_SECONDS)
        except UploadError as error:
            log.warning("session merge delayed", session=session_id, reason=str(error))
        self._soon.set()

    async def run(self, alone_at_it: Callable[[], AbstractContextManager[bool]]) -> None:
        """Carry out pending merges of all processes, unless another one does. Runs until cancelled."""

        async def finish() -> None:
            with alone_at_it() as alone:
                if alone:
                    await self.finish()

        self._soon.set()
        await every(_LOOK_SECONDS, finish, failure="session merges delayed", log=log, sooner=self._soon)

    async def finish(self) -> None:
        """Move all that is left, a slice of each session in turn; records that others are changing are moved later."""
        goes_on = True
        while goes_on:
            goes_on = False
            for session_id, was_whole in (
                await merge_records.list_pending(self._db, self._now_us() - _SURE_US, _AT_ONCE)
            ).items():
                if was_whole and not await merge_records.has_left(self._db, session_id, self._now_us()):
                    await merge_records.forget(self._db, session_id)
                    goes_on = True
                else:
                    goes_on |= bool(await self._step(session_id))
                await asyncio.sleep(_PAUSE_SECONDS)

    async def _step(self, session_id: str) -> int | None:
        """Move a slice; return how many records moved, None when nothing is left."""
        clock, took, size = asyncio.get_running_loop().time, 0.0, self._size

        async def run(transaction: Transaction) -> Slice:
            nonlocal took
            began, before = clock(), self._before.get(session_id, TOP)
            moved = await merge_records.move(transaction, session_id, before, now_us=self._now_us(), most=size)
            took = clock() - began
            return moved

        moved, before = await self._db.transaction(run)
        if moved >= size:  # the time of a full slice determines the size of the next one
            self._size = max(_LEAST, min(_MOST, round(size * min(2.0, _SLICE_SECONDS / max(took, 0.001)))))
        if before != TOP:
            self._before[session_id] = before
            await asyncio.sleep(took)
            return moved
        self._before.pop(session_id, None)
        if await merge_records.has_left(self._db, session_id, self._now_us()):
            return moved
        await merge_records.mark_whole(self._db, session_id, self._now_us())
        log.info("session merged", session=session_id)
        return None
