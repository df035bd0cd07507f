"""Statements about sessions that join others: their records move, slice by slice.

A merge is one short transaction: the session ends, and names the one it joined; from then on nothing new is recorded
for it, since every insert looks there, and waits for a merge that is under way. Afterwards its records move, a few
at a time, so that no other transaction has to wait, however many they are. A row of `merges` says that some are left.
"""

from typing import Final, NamedTuple

from app.db.queryable import Queryable, Transaction
from app.history import Position

FIRST_SLICE: Final = 200
"""The number of records of each kind that move with the merge itself."""
TOP: Final = Position(2**63 - 1, "\U0010ffff")


class Slice(NamedTuple):
    """The number of records moved, and the upload behind which to go on; `TOP` again when none is left."""

    moved: int
    before: Position


async def merge(transaction: Transaction, from_id: str, into_id: str, now_us: int, most: int = FIRST_SLICE) -> bool:
    """Merge one live session into another, with its newest records; False if they are not two live ones."""
    live = await transaction.many("lock_live_sessions", first_id=from_id, second_id=into_id, now_us=now_us)
    if len(live) != 2:
        return False
    await transaction.run("end_merged_session", session_id=from_id, into_id=into_id, now_us=now_us)
    await transaction.run("forget_session_usage", from_id=from_id, into_id=into_id)
    await move(transaction, from_id, TOP, now_us=now_us, most=most)
    await transaction.run("move_tokens", from_id=from_id, into_id=into_id)
    await transaction.run("move_link_codes", from_id=from_id, into_id=into_id)
    return True


async def move(transaction: Transaction, session_id: str, before: Position, *, now_us: int, most: int) -> Slice:
    """Move at most `most` records of each kind of a session that joined another; records in use move later.

    Sessions that joined this one are redirected before its records move: afterwards no insert can end up here.
    """
    found = await transaction.one("lock_merge", session_id=session_id)
    if found is None:
        return Slice(0, TOP)
    pair = {"from_id": session_id, "into_id": found["merged_into_id"]}
    repointed = len(await transaction.many("repoint_merged_sessions", **pair, page_size=most))
    if repointed == most:
        return Slice(repointed, before)
    await transaction.run("lock_merging_totals", **pair)
    moved = repointed + len(await transaction.many("move_resumables", **pair, page_size=most))
    uploads = await transaction.many(
        "move_uploads", **pair, before_us=before.created_at_us, before_id=before.id, page_size=most
    )
    moved += len(uploads)
    moved += len(await transaction.many("move_allowances", **pair, page_size=most))
    moved += len(await transaction.many("move_idempotency_keys", **pair, now_us=now_us, page_size=most))
    if len(uploads) < most:
        return Slice(moved, TOP)
    return Slice(moved, min(Position(row["created_at_us"], row["id"]) for row in uploads))


async def has_left(db: Queryable, session_id: str, now_us: int) -> bool:
    """Whether any records are left of a session that joined another one."""
    row = await db.one("find_merge_left", session_id=session_id, now_us=now_us)
    return row is not None and bool(row["is_left"])


async def list_pending(db: Queryable, whole_before_us: int, page_size: int) -> dict[str, bool]:
    """List pending merges by session, and whether nothing was left when last checked, before `whole_before_us`."""
    rows = await db.many("list_merges", whole_before_us=whole_before_us, page_size=page_size)
    return {row["session_id"]: row["whole_at_us"] is not None for row in rows}


async def mark_whole(db: Queryable, session_id: str, now_us: int) -> None:
    """Record that nothing is left of a session, which is checked once more, for records about to be committed."""
    await db.run("mark_merge_whole", session_id=session_id, whole_at_us=now_us)


async def forget(db: Queryable, session_id: str) -> None:
    """Delete a merge of which nothing has been left for some time."""
    await db.run("delete_merge", session_id=session_id)
