"""Statements about changes of uploads, one function each. The database's triggers write them."""

from collections.abc import Collection, Sequence
from typing import NamedTuple

from app.db.driver import Row
from app.db.queryable import Queryable, json_parameter


class Change(NamedTuple):
    """A change of an upload: it was created, or has another status, which is the `kind`.

    Of kind `joined`, without an upload: another session's uploads came to this session. Of kind `begun`: the first
    row, of no session.
    """

    id: int
    upload_id: str | None
    session_id: str
    kind: str
    at: int


class Offset(NamedTuple):
    """How many bytes of an unfinished upload are durable, of how many, if that is known."""

    upload_id: str
    session_id: str
    offset: int
    length: int | None


async def list_from(db: Queryable, from_id: int, page_size: int) -> list[Change]:
    """List changes over all sessions in the order of their commits: a page, beginning with `from_id`."""
    return _changes(await db.many("list_changes", from_id=from_id, page_size=page_size))


async def list_of_session(db: Queryable, session_id: str, after_id: int, until_id: int, page_size: int) -> list[Change]:
    """List the changes of a session in the same manner, from behind `after_id` up to `until_id`.

    All changes between the two are looked at, so they must not lie far apart.
    """
    rows = await db.many(
        "list_session_changes", session_id=session_id, after_id=after_id, until_id=until_id, page_size=page_size
    )
    return _changes(rows)


async def find(db: Queryable, change_id: int) -> Change | None:
    """Find a change, if it is still kept."""
    return next(iter(_changes(await db.many("find_change", id=change_id))), None)


async def find_newest(db: Queryable) -> Change | None:
    """Find the newest change; None if there was never any."""
    return next(iter(_changes(await db.many("find_newest_change"))), None)


async def list_offsets(db: Queryable, session_ids: Collection[str], page_size: int) -> list[Offset]:
    """List how far the unfinished uploads of these sessions are: a page at most, of those used last."""
    rows = await db.many("list_offsets", session_ids=json_parameter(sorted(session_ids)), page_size=page_size)
    return [Offset(row["upload_id"], row["session_id"], row["offset_bytes"], row["length_bytes"]) for row in rows]


async def forget(db: Queryable, before_us: int, page_size: int) -> int:
    """Delete the oldest changes that were made before then, a page at most, never the newest; return how many."""
    return len(await db.many("delete_old_changes", before_us=before_us, page_size=page_size))


def _changes(rows: Sequence[Row]) -> list[Change]:
    return [Change(row["id"], row["upload_id"], row["session_id"], row["kind"], row["at_us"]) for row in rows]
