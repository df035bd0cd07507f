"""What is said to the database of quotas: what is granted to uploads that are under way. What sessions have: `totals`.

As in `records`: saying something twice, after an answer got lost, leaves what saying it once leaves.
"""

from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass

import pydantic_core

from app.db.queryable import Queryable, Transaction
from app.model import Amount


@dataclass(frozen=True, slots=True)
class Allowance:
    """What is granted to one upload, or one request, that is under way; `holder` renews it as long as that lives."""

    id: str
    session_id: str
    holder: str | None
    uploads: int
    size_bytes: int
    expires_at_us: int


async def granted(db: Queryable, ids: Sequence[str]) -> dict[str, Amount]:
    """What is granted to each of these; nothing is said of those that are not there."""
    rows = await db.many("list_allowances", ids=_json(ids))
    return {row["id"]: Amount(row["uploads"], row["size_bytes"]) for row in rows}


async def grant(transaction: Transaction, allowances: Sequence[Allowance]) -> None:
    """Each has this much now, whatever it had before."""
    await transaction.run("put_allowances", rows=_json([asdict(allowance) for allowance in allowances]))


async def adopt(transaction: Transaction, allowance_id: str, expires_at_us: int) -> None:
    """It belongs to an upload that comes in several requests, and outlives the process that asked for it."""
    await transaction.run("adopt_allowance", id=allowance_id, expires_at_us=expires_at_us)


async def renew(db: Queryable, holder: str, expires_at_us: int) -> None:
    """The holder lives."""
    await db.run("renew_allowances", holder=holder, expires_at_us=expires_at_us)


async def give_back(db: Queryable, ids: Iterable[str]) -> None:
    """What these were for has been recorded, or will not be."""
    await db.run("delete_allowances", ids=_json(list(ids)))


async def give_back_all(db: Queryable, holder: str) -> None:
    """The holder receives nothing any more."""
    await db.run("delete_allowances_of", holder=holder)


async def expire(db: Queryable, now_us: int, page_size: int) -> int:
    """Some of what was granted to processes that are gone is free again; how many of them."""
    return len(await db.many("delete_expired_allowances", now_us=now_us, page_size=page_size))


def _json(value: object) -> str:
    return pydantic_core.to_json(value).decode()
