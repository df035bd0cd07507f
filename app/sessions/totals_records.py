"""Statements about the totals of each session, by status, which the database's triggers keep.

A transaction that changes an upload or an allowance locks the totals that this changes until it commits. So a count
that is made while the totals are locked, by a statement that began after that, misses nothing and counts nothing twice.
"""

import asyncio
from collections.abc import AsyncIterator, Callable, Iterable
from typing import Final, NamedTuple

import pydantic_core
import structlog

from app.db.database import Db
from app.db.driver import Row
from app.db.queryable import LAST_ID, Queryable, Transaction
from app.model import Amount, Status, StatusTotal

log = structlog.stdlib.get_logger("waybill.totals")

GRANTED: Final = "granted"
_PAGE: Final = 1000
_PAUSE_SECONDS: Final = 0.01
_LOGGED: Final = 1000
"""The number of pages for each line in the log."""


class Totals(NamedTuple):
    """The totals of a session: its uploads by status, and the amount granted to uploads that are under way."""

    by_status: list[StatusTotal]
    granted: Amount

    def of(self, status: str) -> Amount:
        return next((Amount(*total[1:]) for total in self.by_status if total.status == status), Amount(0, 0))

    @property
    def used(self) -> Amount:
        """The amount that counts for a quota."""
        kept = self.of(Status.COMPLETED)
        return Amount(kept.uploads + self.granted.uploads, kept.size + self.granted.size)


class HeldTotals(NamedTuple):
    """The amount that counts for a quota, and its session: the one asked for, or the one that it joined."""

    owner_id: str
    used: Amount


async def find(db: Queryable, session_id: str) -> Totals:
    """Find the totals of a session, at the same cost however many uploads there are."""
    counted, granted = [], Amount(0, 0)
    for row in await db.many("list_session_totals", session_id=session_id):
        if row["status"] == GRANTED:
            granted = _amount(row)
        else:
            counted.append(StatusTotal(row["status"], *_amount(row)))
    return Totals(counted, granted)


async def lock(transaction: Transaction, session_ids: Iterable[str]) -> dict[str, HeldTotals]:
    """Lock the totals of these sessions until the transaction ends; return the amounts that count for a quota."""
    asked = sorted(set(session_ids))
    held: dict[str, HeldTotals] = {}
    for row in await transaction.many("lock_session_totals", session_ids=pydantic_core.to_json(asked).decode()):
        before = held.get(row["asked_id"], HeldTotals(row["session_id"], Amount(0, 0))).used
        more = _amount(row) if row["status"] is not None else Amount(0, 0)
        held[row["asked_id"]] = HeldTotals(
            row["session_id"], Amount(before.uploads + more.uploads, before.size + more.size)
        )
    return held


async def begin(db: Db, on_page: Callable[[], None] = lambda: None) -> None:
    """Count, once, the uploads that are older than the totals; any number of processes may do so at the same time.

    Uploads go on meanwhile: each transaction locks the totals of some sessions, for milliseconds unless one has very
    many uploads. If a process dies, the next one to begin counts the rest.
    """

    async def run(transaction: Transaction) -> bool:
        begun = await transaction.one("lock_totals_begun")
        if begun is None or begun["is_whole"]:
            return False
        until_id = await _end_of_page(transaction, begun["after_id"])
        await _recount(transaction, begun["after_id"], until_id)
        await transaction.run("save_totals_begun", after_id=until_id, is_whole=int(until_id == LAST_ID))
        return until_id != LAST_ID

    found = await db.one("find_totals_begun")
    if found is None or found["is_whole"]:
        return
    pages = 0
    while await db.transaction(run, timeout=60):
        on_page()
        pages += 1
        if pages % _LOGGED == 1:
            log.info("counting session totals", pages=pages)
        await asyncio.sleep(_PAUSE_SECONDS)


async def recount(db: Db) -> AsyncIterator[str]:
    """Compare all totals with the uploads, and correct wrong ones; yield the sessions of these."""
    after_id = ""
    while after_id != LAST_ID:
        until_id = await _end_of_page(db, after_id)
        # Totals and uploads are read as of one moment: any difference is an error.
        wrong = await db.many("list_miscounted_totals", after_id=after_id, until_id=until_id)
        if wrong:

            async def run(transaction: Transaction, after_id: str = after_id, until_id: str = until_id) -> None:
                await _recount(transaction, after_id, until_id)

            await db.transaction(run, timeout=60)
        for row in wrong:
            yield row["session_id"]
        after_id = until_id


async def forget_ended(db: Queryable) -> AsyncIterator[None]:
    """Delete the totals of sessions that do not exist any more, page by page."""
    after_id = ""
    while after_id != LAST_ID:
        until_id = await _end_of_page(db, after_id)
        await db.run("delete_zero_totals", after_id=after_id, until_id=until_id)
        after_id = until_id
        yield


async def _end_of_page(db: Queryable, after_id: str) -> str:
    row = await db.one("find_totals_page", after_id=after_id, page_size=_PAGE)
    return row["until_id"] if row is not None else LAST_ID


async def _recount(transaction: Transaction, after_id: str, until_id: str) -> None:
    held = await transaction.many("reset_session_totals", after_id=after_id, until_id=until_id)
    if held:
        locked = pydantic_core.to_json([dict(row) for row in held]).decode()
        await transaction.run("count_session_totals", after_id=after_id, until_id=until_id, locked=locked)


def _amount(row: Row) -> Amount:
    return Amount(row["uploads"], (row["size_mebibytes"] << 20) + row["size_bytes_beyond"])
