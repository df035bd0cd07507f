"""Statements about uploads, one function each.

Functions of one statement take a `Queryable`: the database, or a transaction in it. Functions of
several statements that belong together take a `Transaction`. Every statement can be repeated after a
lost answer, with the same result.
"""

from collections.abc import Collection, Iterable, Iterator, Sequence
from operator import attrgetter, itemgetter
from typing import Any, Final, NamedTuple

import pydantic
import structlog

from app.db.driver import Row
from app.db.queryable import LAST_ID, Queryable, json_parameter
from app.history import HistoryQuery, Order, Page, Place, Position
from app.model import Protocol, Status, Upload

_log = structlog.get_logger(__name__)

DELETED_AGAIN_US: Final = 86_400_000_000
"""How long a deletion can be repeated with success."""
# Beyond everything that a column can hold, so that a query without filters on times and sizes still
# finds a row with an impossible one, and counts it as broken.
_LEAST: Final = -(2**63)
_MOST: Final = 2**63 - 1
_ROWS_AT_ONCE: Final = 1000
"""Rows in one statement: none takes long, nor blocks the event loop."""
_IN_SEVERAL_REQUESTS: Final = {Protocol.TUS, Protocol.RESUMABLE}


class _Lists(NamedTuple):
    """The queries for a page in one order: of any uploads, and of those that an index finds."""

    any: str
    named: str
    of_digest: str
    of_status: str


_LISTS: Final = {
    "newest": _Lists("list_uploads", "list_named_uploads", "list_uploads_of_digest", "list_uploads_of_status"),
    "oldest": _Lists(
        "list_uploads_oldest",
        "list_named_uploads_oldest",
        "list_uploads_of_digest_oldest",
        "list_uploads_of_status_oldest",
    ),
}


_SEARCHES: Final[dict[Order, tuple[str, str]]] = {
    "newest": ("search_uploads_descending", "time"),
    "oldest": ("search_uploads", "time"),
    "name": ("search_uploads", "name"),
    "-name": ("search_uploads_descending", "name"),
    "size": ("search_uploads", "size"),
    "-size": ("search_uploads_descending", "size"),
}
"""The query of a search in each order, and what it sorts by."""


class StoredRecord(NamedTuple):
    """The size and digest that a completed upload's file must have."""

    id: str
    size: int
    sha256: str


async def insert_uploads(db: Queryable, uploads: Sequence[Upload]) -> None:
    """Record uploads; existing records stay as they are, unless their uploads are still being received.

    Many take several statements, and so need a transaction. An upload whose session has joined another one meanwhile
    is recorded for that one.
    """
    # In order of sessions, in which PostgreSQL locks them: transactions that lock in the same order never deadlock.
    uploads = sorted(uploads, key=attrgetter("session_id"))
    slices = [uploads[at : at + _ROWS_AT_ONCE] for at in range(0, len(uploads), _ROWS_AT_ONCE)]
    batches = [json_parameter([upload.as_row() for upload in some]) for some in slices]
    if len({upload.protocol in _IN_SEVERAL_REQUESTS for upload in uploads}) > 1:
        # Some have a record, others do not: their totals would be locked in two rounds.
        for rows in batches:
            await db.many("lock_uploads", rows=rows)
    for rows in batches:
        await db.run("insert_uploads", rows=rows)


async def try_recording(db: Queryable) -> None:
    """Return if an upload could be recorded now: the table is not locked, and the database takes writes."""
    await db.run("try_recording")


async def list_uploads(
    db: Queryable, session_id: str, query: HistoryQuery, *, after: Position | Place | None, page_size: int
) -> Page:
    """List a page of a session's uploads, from behind `after` or from the start.

    `after` is the end of a page of the same query.
    """
    if query.is_search:
        assert not isinstance(after, Position)
        return await _search(db, session_id, query, after, page_size)
    assert not isinstance(after, Place)
    rows = await _matching(db, session_id, query, after, page_size + 1)
    more, rows = len(rows) > page_size, rows[:page_size]
    uploads = list(_readable(rows))
    # The end is that of the rows: a broken one is left out, but must not end the listing early.
    end = Position(rows[-1]["created_at_us"], rows[-1]["id"]) if more else None
    return Page(uploads, end, skipped=len(rows) - len(uploads))


async def count_uploads(db: Queryable, session_id: str, query: HistoryQuery) -> int:
    """Count the rows of `list_uploads` over all pages, broken ones included."""
    if query.is_search:
        row = await db.one("count_found_uploads", session_id=session_id, **_searched(query))
        return int(row["uploads"]) if row else 0
    row = await db.one(
        "count_uploads",
        session_id=session_id,
        from_us=_or(query.from_us, _LEAST),
        until_us=_until(query),
        pattern=query.filename_pattern,
        sha256=query.sha256,
        statuses=_statuses(query),
        **_filters(query),
    )
    return int(row["uploads"]) if row else 0


async def list_these(db: Queryable, upload_ids: Collection[str]) -> dict[str, Upload]:
    """Find these uploads, as far as they are recorded, by their ids, over all sessions. Broken rows are left out."""
    rows = await db.many("list_uploads_by_id", ids=json_parameter(list(upload_ids)))
    return {upload.id: upload for upload in _readable(rows)}


async def find_span(db: Queryable, session_id: str) -> tuple[int, int] | None:
    """Find the creation times of a session's first and last upload; None if it has none."""
    row = await db.one("find_upload_span", session_id=session_id)
    return (row["first_us"], row["last_us"]) if row and row["first_us"] is not None else None


async def delete_upload(db: Queryable, session_id: str, upload_id: str, now_us: int) -> bool:
    """Record the deletion of one upload, as `delete_session_uploads` does; False if the session has no such upload."""
    return bool(await delete_session_uploads(db, session_id, [upload_id], now_us))


async def delete_session_uploads(db: Queryable, session_id: str, ids: Sequence[str], now_us: int) -> set[str]:
    """Record the deletion of a session's completed uploads, damaged or not; return the ids of those deleted.

    An upload that was deleted within `DELETED_AGAIN_US` is among them as well: its client may have lost the answer.
    """
    rows = await db.many(
        "delete_session_uploads",
        session_id=session_id,
        ids=json_parameter(list(ids)),
        now_us=now_us,
        deleted_since_us=now_us - DELETED_AGAIN_US,
    )
    return {row["id"] for row in rows}


async def statuses_of(db: Queryable, ids: Sequence[str]) -> dict[str, str]:
    """Find the status of each of these uploads, over all sessions; unknown ones are left out."""
    return {row["id"]: row["status"] for row in await db.many("list_statuses", ids=json_parameter(ids))}


async def list_stored(db: Queryable, after_id: str, page_size: int) -> list[StoredRecord]:
    """List the uploads that storage must hold, over all sessions, by id from behind `after_id`; begin with ''."""
    rows = await db.many("list_stored", after_id=after_id, page_size=page_size)
    return [StoredRecord(row["id"], row["size_bytes"], row["sha256"]) for row in rows]


async def list_to_delete(db: Queryable, now_us: int, page_size: int) -> list[str]:
    """List the ids of completed uploads whose time is over, over all sessions: a page at most, the longest first."""
    return [row["id"] for row in await db.many("list_uploads_to_delete", now_us=now_us, page_size=page_size)]


async def list_damaged(db: Queryable, after_id: str, page_size: int) -> list[StoredRecord]:
    """List the uploads that storage should hold but that were found damaged, in the same manner."""
    rows = await db.many("list_damaged", after_id=after_id, page_size=page_size)
    return [StoredRecord(row["id"], row["size_bytes"], row["sha256"]) for row in rows]


async def count_damaged(db: Queryable) -> int:
    """Count the uploads that storage should hold but that were found damaged, over all sessions."""
    row = await db.one("count_damaged")
    return int(row["uploads"]) if row else 0


async def count_stored(db: Queryable) -> int:
    """Count the uploads that storage must hold, over all sessions."""
    row = await db.one("count_stored")
    return int(row["uploads"]) if row else 0


async def delete_uploads(db: Queryable, ids: Sequence[str], now_us: int) -> list[str]:
    """Record the deletion of completed uploads' bytes; return the ids of those that were completed until now."""
    return [row["id"] for row in await db.many("delete_uploads", ids=json_parameter(ids), now_us=now_us)]


async def fail_uploads(db: Queryable, ids: Sequence[str], code: str, detail: str) -> list[str]:
    """Record that completed uploads are lost or damaged; return the ids of those that were completed until now."""
    return [row["id"] for row in await db.many("fail_uploads", ids=json_parameter(ids), code=code, detail=detail)]


async def repair_uploads(db: Queryable, ids: Sequence[str]) -> list[str]:
    """Record that damaged uploads are intact after all; return the ids of those that were damaged until now."""
    return [row["id"] for row in await db.many("repair_uploads", ids=json_parameter(ids))]


async def forget_failed(db: Queryable, created_before_us: int, page_size: int) -> int:
    """Delete old records of failed or expired uploads that were never completed, a page at most; return how many."""
    return len(await db.many("delete_failed_uploads", created_before_us=created_before_us, page_size=page_size))


async def _matching(
    db: Queryable, session_id: str, query: HistoryQuery, after: Position | None, page_size: int
) -> Sequence[Row]:
    """List the rows of a page by the index that is likely to hold the fewest others."""
    bounds = _newest_first(query, after) if query.order == "newest" else _oldest_first(query, after)
    wanted = {"session_id": session_id, "page_size": page_size, **bounds, **_filters(query)}
    lists, pattern, statuses = _LISTS[query.order], query.filename_pattern, _statuses(query)
    if query.sha256 is not None:
        return await db.many(lists.of_digest, sha256=query.sha256, pattern=pattern, statuses=statuses, **wanted)
    if pattern is not None:
        return await db.many(lists.named, pattern=pattern, statuses=statuses, **wanted)
    if not query.statuses or Status.COMPLETED in query.statuses:
        return await db.many(lists.any, statuses=statuses, **wanted)
    found: dict[str, Row] = {}
    # In the order of an upload's life: one that changes meanwhile is found twice, but not missed.
    for status in (each for each in Status if each in query.statuses):
        rows = await db.many(lists.of_status, status=status.value, **wanted)
        found |= {row["id"]: row for row in rows}
    return sorted(found.values(), key=itemgetter("created_at_us", "id"), reverse=query.order == "newest")[:page_size]


async def _search(db: Queryable, session_id: str, query: HistoryQuery, after: Place | None, page_size: int) -> Page:
    search, by = _SEARCHES[query.order]
    rows = await db.many(
        search,
        session_id=session_id,
        by=by,
        after_key=after.key if after else None,
        after_id=after.id if after else "",
        page_size=page_size + 1,
        **_searched(query),
    )
    more, rows = len(rows) > page_size, rows[:page_size]
    uploads = list(_readable(rows))
    return Page(uploads, Place(rows[-1]["sort_key"], rows[-1]["id"]) if more else None, len(rows) - len(uploads))


def _searched(query: HistoryQuery) -> dict[str, Any]:
    return {
        "from_us": _or(query.from_us, _LEAST),
        "until_us": _until(query),
        "sha256": query.sha256,
        "statuses": _statuses(query),
        "pattern": query.filename_pattern,
        "path_pattern": query.path_pattern,
        "ids": _list(query.ids),
        "content_types": _list(query.content_type_patterns),
        "metadata": _list(query.metadata_texts),
        **_filters(query),
    }


def _list(values: Sequence[str]) -> str | None:
    return json_parameter(list(values)) if values else None


def _newest_first(query: HistoryQuery, after: Position | None) -> dict[str, Any]:
    before = Position(_MOST, LAST_ID) if query.to_us is None else Position(query.to_us, "")
    if after is not None:
        before = min(before, after)
    return {"before_us": before.created_at_us, "before_id": before.id, "from_us": _or(query.from_us, _LEAST)}


def _oldest_first(query: HistoryQuery, after: Position | None) -> dict[str, Any]:
    start = Position(_or(query.from_us, _LEAST), "")
    if after is not None:
        start = max(start, after)
    return {"after_us": start.created_at_us, "after_id": start.id, "until_us": _until(query)}


def _until(query: HistoryQuery) -> int:
    return _MOST if query.to_us is None else query.to_us - 1


def _filters(query: HistoryQuery) -> dict[str, Any]:
    return {
        "min_size": _or(query.min_size, _LEAST),
        "max_size": _or(query.max_size, _MOST),
        "protocol": query.protocol.value if query.protocol else None,
    }


def _statuses(query: HistoryQuery) -> str | None:
    return json_parameter([status.value for status in query.statuses]) if query.statuses else None


def _or(asked: int | None, otherwise: int) -> int:
    return otherwise if asked is None else asked


def _readable(rows: Iterable[Row]) -> Iterator[Upload]:
    """Make the uploads of rows. A row that breaks the model is left out, and logged by its id."""
    for row in rows:
        try:
            yield Upload.from_row(row)
        except pydantic.ValidationError:
            _log.warning("upload_record_broken", upload_id=row["id"])
