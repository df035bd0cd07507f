"""What is said to the database of quotas: what sessions have, and what is granted to uploads that are under way.

As in `records`: saying something twice, after an answer got lost, leaves what saying it once leaves.
"""

from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import NamedTuple

import pydantic_core

from app.db import Asks, Unit


class Amount(NamedTuple):
    """So many uploads, and so many bytes in them."""

    uploads: int
    size: int


@dataclass(frozen=True, slots=True)
class Allowance:
    """What is granted to one upload, or one request, that is under way; `holder` renews it as long as that lives."""

    id: str
    session_id: str
    holder: str | None
    uploads: int
    size_bytes: int
    expires_at_us: int


async def lock(unit: Unit, session_ids: Iterable[str]) -> dict[str, Amount]:
    """What each of these sessions has, until the transaction ends; those not counted until now are from here on."""
    wanted = sorted(session_ids)
    found = await _lock(unit, wanted)
    if missing := [session_id for session_id in wanted if session_id not in found]:
        for session_id in missing:
            await unit.run("insert_session_usage", session_id=session_id)
        found |= await _lock(unit, missing)
    return found


async def _lock(unit: Unit, session_ids: Sequence[str]) -> dict[str, Amount]:
    rows = await unit.many("lock_session_usage", session_ids=_json(session_ids))
    return {row["session_id"]: Amount(row["uploads"], row["size_bytes"]) for row in rows}


async def find(asks: Asks, session_id: str) -> Amount | None:
    """What a session has, if it is being counted."""
    row = await asks.one("find_session_usage", session_id=session_id)
    return Amount(row["uploads"], row["size_bytes"]) if row else None


async def granted(asks: Asks, ids: Sequence[str]) -> dict[str, Amount]:
    """What is granted to each of these; nothing is said of those that are not there."""
    rows = await asks.many("list_allowances", ids=_json(ids))
    return {row["id"]: Amount(row["uploads"], row["size_bytes"]) for row in rows}


async def grant(unit: Unit, allowances: Sequence[Allowance]) -> None:
    """Each has this much now, whatever it had before."""
    await unit.run("put_allowances", rows=_json([asdict(allowance) for allowance in allowances]))


async def adopt(unit: Unit, allowance_id: str, expires_at_us: int) -> None:
    """It belongs to an upload that comes in several requests, and outlives the process that asked for it."""
    await unit.run("adopt_allowance", id=allowance_id, expires_at_us=expires_at_us)


async def renew(asks: Asks, holder: str, expires_at_us: int) -> None:
    """The holder lives."""
    await asks.run("renew_allowances", holder=holder, expires_at_us=expires_at_us)


async def give_back(asks: Asks, ids: Iterable[str]) -> None:
    """What these were for has been recorded, or will not be."""
    await asks.run("delete_allowances", ids=_json(list(ids)))


async def give_back_all(asks: Asks, holder: str) -> None:
    """The holder receives nothing any more."""
    await asks.run("delete_allowances_of", holder=holder)


async def expire(asks: Asks, now_us: int) -> None:
    """What was granted to processes that are gone is free again."""
    await asks.run("delete_expired_allowances", now_us=now_us)


async def forget_idle(asks: Asks, now_us: int) -> None:
    """Sessions that have ended are not counted any longer."""
    await asks.run("delete_idle_session_usage", now_us=now_us)


async def is_known(asks: Asks) -> bool:
    """Whether anything is being counted."""
    row = await asks.one("has_session_usage")
    return row is not None and row["found"] > 0


async def forget(unit: Unit) -> None:
    """Nothing is counted any more: no quota is set."""
    await unit.run("delete_every_allowance")
    await unit.run("delete_session_usage")


def _json(value: object) -> str:
    return pydantic_core.to_json(value).decode()
