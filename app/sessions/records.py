"""Statements about sessions, one function each. Every one can be repeated after a lost answer, with the same result."""

from collections.abc import AsyncIterator, Iterable, Sequence
from typing import Any, NamedTuple

from app.db.driver import Row
from app.db.queryable import LAST_ID, Queryable, Transaction, json_parameter
from app.model import Session, Timestamp


class NewSession(NamedTuple):
    """A session and the hash of the first token that opens it."""

    session: Session
    token_hash: str

    def seen(self, now_us: int) -> "NewSession":
        """The same session, seen now: its first upload may have taken longer than the session's maximum age."""
        session = self.session
        age_us = session.expires_at - session.last_seen_at
        if (now_us - session.last_seen_at) * 30 < age_us:
            return self
        return self._replace(session=session.model_copy(update={"last_seen_at": now_us, "expires_at": now_us + age_us}))


class Seen(NamedTuple):
    """The use of a live session, which extends its life until `expires_at_us`."""

    id: str
    last_seen_us: int
    expires_at_us: int


class SessionRecord(Session):
    """A session as an operator sees it, live or not."""

    ended_at: Timestamp | None
    merged_into: str | None


async def insert_sessions(transaction: Transaction, arrivals: Sequence[NewSession]) -> None:
    """Record new sessions with their first tokens; existing records stay as they are."""
    await transaction.run(
        "insert_sessions",
        rows=json_parameter(
            [
                {
                    "id": session.id,
                    "created_at_us": session.created_at,
                    "last_seen_us": session.last_seen_at,
                    "expires_at_us": session.expires_at,
                }
                for session, _ in arrivals
            ]
        ),
    )
    await transaction.run(
        "insert_tokens",
        rows=json_parameter(
            [
                {"token_hash": token_hash, "session_id": session.id, "created_at_us": session.created_at}
                for session, token_hash in arrivals
            ]
        ),
    )


async def find_session(db: Queryable, session_id: str) -> SessionRecord | None:
    """Find a session, live or not, for an operator."""
    row = await db.one("find_session", session_id=session_id)
    return _session_record(row) if row else None


async def are_one(db: Queryable, session_id: str, other_id: str) -> bool:
    """Whether two sessions have been merged: one joined the other, or both the same third one."""
    found = [await find_session(db, each) or each for each in (session_id, other_id)]
    here, there = [each if isinstance(each, str) else each.merged_into or each.id for each in found]
    return here == there


async def list_sessions(db: Queryable, limit: int) -> list[SessionRecord]:
    """List the most recently seen sessions, live or not, for an operator."""
    return [_session_record(row) for row in await db.many("list_sessions", limit=limit)]


async def touch_sessions(db: Queryable, seen: Iterable[Seen]) -> None:
    """Record that live sessions, or those that they joined, were seen; a time never goes back."""
    latest: dict[str, Seen] = {}
    for each in seen:
        known = latest.get(each.id, each)
        latest[each.id] = Seen(
            each.id, max(known.last_seen_us, each.last_seen_us), max(known.expires_at_us, each.expires_at_us)
        )
    # By id, so that two statements rarely lock the same rows in opposite order.
    await db.run("touch_sessions", rows=json_parameter([latest[each]._asdict() for each in sorted(latest)]))


async def lock_sessions(transaction: Transaction, first_id: str, second_id: str, now_us: int) -> None:
    """Lock two sessions, if they are live, so that they neither end nor join another until the transaction ends."""
    await transaction.many("lock_live_sessions", first_id=first_id, second_id=second_id, now_us=now_us)


async def expire_sessions(transaction: Transaction, now_us: int, page_size: int) -> int:
    """End expired sessions, a page at most; return how many. Their records stay."""
    return len(await transaction.many("expire_sessions", now_us=now_us, page_size=page_size))


async def end_unused_sessions(db: Queryable, seen_before_us: int, now_us: int, page_size: int) -> AsyncIterator[int]:
    """End live sessions that were not seen since `seen_before_us` and never uploaded, page by page; yield how many."""
    async for after_id, until_id in _session_pages(db, page_size):
        ended = await db.many(
            "end_unused_sessions", after_id=after_id, until_id=until_id, seen_before_us=seen_before_us, now_us=now_us
        )
        yield len(ended)


async def forget_empty_sessions(db: Queryable, ended_before_us: int, page_size: int) -> AsyncIterator[int]:
    """Delete sessions, ended before `ended_before_us`, that no upload needs, page by page; yield how many."""
    async for after_id, until_id in _session_pages(db, page_size):
        gone = await db.many(
            "delete_empty_sessions", after_id=after_id, until_id=until_id, ended_before_us=ended_before_us
        )
        yield len(gone)


async def _session_pages(db: Queryable, page_size: int) -> AsyncIterator[tuple[str, str]]:
    """Iterate over all sessions by id, in ranges of `page_size`: behind the first id, up to the second."""
    after_id = ""
    while after_id != LAST_ID:
        row = await db.one("find_session_page", after_id=after_id, page_size=page_size)
        until_id = row["until_id"] if row is not None else LAST_ID
        yield after_id, until_id
        after_id = until_id


def session_in(row: Row) -> Session:
    """Make the session of a row."""
    return Session(**_session_fields(row))


def _session_fields(row: Row) -> dict[str, Any]:
    return {
        "id": row["id"],
        "created_at": row["created_at_us"],
        "last_seen_at": row["last_seen_us"],
        "expires_at": row["expires_at_us"],
    }


def _session_record(row: Row) -> SessionRecord:
    return SessionRecord(**_session_fields(row), ended_at=row["ended_at_us"], merged_into=row["merged_into_id"])
