"""Statements about allowances: the quota granted to uploads that are under way. For the rest see `totals_records`.

Every statement can be repeated after a lost answer, with the same result.
"""

from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass

from app.db.queryable import Queryable, Transaction, json_parameter
from app.model import Amount


@dataclass(frozen=True, slots=True)
class Allowance:
    """The grant to one upload, or one request, that is under way; the process `holder` renews it while it lives."""

    id: str
    session_id: str
    holder: str | None
    uploads: int
    size_bytes: int
    expires_at_us: int


async def granted(db: Queryable, ids: Sequence[str]) -> dict[str, Amount]:
    """Find the amounts that are granted under these ids; absent ones are left out."""
    rows = await db.many("list_allowances", ids=json_parameter(ids))
    return {row["id"]: Amount(row["uploads"], row["size_bytes"]) for row in rows}


async def grant(transaction: Transaction, allowances: Sequence[Allowance]) -> None:
    """Set each allowance to this much, whatever it was before."""
    await transaction.run("put_allowances", rows=json_parameter([asdict(allowance) for allowance in allowances]))


async def adopt(transaction: Transaction, allowance_id: str, expires_at_us: int) -> None:
    """Hand an allowance over to a resumable upload, so that it outlives the process that requested it."""
    await transaction.run("adopt_allowance", id=allowance_id, expires_at_us=expires_at_us)


async def renew(db: Queryable, holder: str, expires_at_us: int) -> None:
    """Renew all allowances of a holder."""
    await db.run("renew_allowances", holder=holder, expires_at_us=expires_at_us)


async def release(db: Queryable, ids: Iterable[str]) -> None:
    """Release these allowances: their uploads have been recorded, or will not be."""
    await db.run("delete_allowances", ids=json_parameter(list(ids)))


async def release_all(db: Queryable, holder: str) -> None:
    """Release all allowances of a holder, which receives nothing any more."""
    await db.run("delete_allowances_of", holder=holder)


async def expire(db: Queryable, now_us: int, page_size: int) -> int:
    """Release expired allowances, whose processes are gone, a page at most; return how many."""
    return len(await db.many("delete_expired_allowances", now_us=now_us, page_size=page_size))
