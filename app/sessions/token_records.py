"""Statements about tokens and codes, which open sessions, one function each.

Every statement can be repeated after a lost answer, with the same result. A token is *used*
when a request brings it. A token that replaces another opens the session beside that one until
it is used; then the other one ends.
"""

from collections.abc import AsyncIterator, Collection, Sequence
from typing import Final, NamedTuple

from pydantic_core import to_json

from app.db.queryable import LAST_ID, Queryable, Transaction
from app.model import MAX_TIME_US, Session
from app.sessions import records

REPLACED_US: Final = 3_600_000_000
"""How long a replaced token still opens its session if its replacement is never used."""


class Opened(NamedTuple):
    """A live session that a token opens, and the hash of the token that this one replaces, until it is used."""

    session: Session
    replaces_hash: str | None


class UsedCode(NamedTuple):
    """The hash of the token that its user had, and the id of the live session that it led to."""

    token_hash: str
    session_id: str


class TakenCode(NamedTuple):
    """The id of the live session that a code opened, and when its time would have been over."""

    session_id: str
    expires_at_us: int


async def find_session(db: Queryable, token_hash: str, now_us: int) -> Opened | None:
    """The session that a token opens: one that has neither ended nor expired."""
    row = await db.one(
        "find_session_by_token", token_hash=token_hash, now_us=now_us, replaced_until_us=now_us - REPLACED_US
    )
    return Opened(records.session_in(row), row["replaces_hash"]) if row else None


async def is_current(db: Queryable, token_hash: str, now_us: int) -> bool:
    """Whether a token opens a session and has not been replaced by another."""
    row = await db.one("find_session_by_token", token_hash=token_hash, now_us=now_us, replaced_until_us=MAX_TIME_US)
    return row is not None


async def list_sessions(db: Queryable, token_hashes: Sequence[str], now_us: int) -> dict[str, str]:
    """The ids of the live sessions that these tokens open, by their hashes."""
    rows = await db.many(
        "list_sessions_by_tokens",
        token_hashes=to_json(token_hashes).decode(),
        now_us=now_us,
        replaced_until_us=now_us - REPLACED_US,
    )
    return {row["token_hash"]: row["session_id"] for row in rows}


async def use(transaction: Transaction, token_hash: str, now_us: int) -> Session | None:
    """Find the session that a token opens, and lock it and its tokens until the transaction ends.

    From now on the token that this one replaced opens no session.
    """
    opened = await find_session(transaction, token_hash, now_us)
    while opened is not None:
        held_id = opened.session.id
        await transaction.many("lock_session", session_id=held_id)
        # Asked anew: the lock's previous holder may have ended or merged the session, or ended this token.
        opened = await find_session(transaction, token_hash, now_us)
        if opened is not None and opened.session.id == held_id:
            break
    if opened is None:
        return None
    if opened.replaces_hash is not None:
        await transaction.run("use_token", token_hash=token_hash)
        await transaction.run(
            "delete_replaced_tokens", session_id=opened.session.id, replaced_hash=opened.replaces_hash
        )
    return opened.session


async def insert(db: Queryable, token_hash: str, session_id: str, now_us: int, *, replaces_hash: str | None) -> None:
    """Insert a token of a session; if it replaces another, both open the session until it is used."""
    await db.run(
        "insert_token",
        token_hash=token_hash,
        session_id=session_id,
        created_at_us=now_us,
        replaces_hash=replaces_hash,
    )


async def count_devices(db: Queryable, session_id: str) -> int:
    """Count the browsers that share a session; a token and its replacements are one."""
    row = await db.one("count_devices", session_id=session_id)
    return int(row["devices"]) if row else 0


async def end_session(transaction: Transaction, session_id: str, now_us: int) -> None:
    """End a session, and so its tokens; its records stay."""
    await transaction.run("end_session", session_id=session_id, now_us=now_us)
    await transaction.run("delete_tokens_of_session", session_id=session_id)
    await transaction.run("delete_link_codes_of_session", session_id=session_id)


async def insert_code(db: Queryable, code_hash: str, session_id: str, expires_at_us: int) -> None:
    """Insert a code that opens the session once."""
    await db.run("insert_link_code", code_hash=code_hash, session_id=session_id, expires_at_us=expires_at_us)


async def find_code(db: Queryable, code_hash: str, now_us: int) -> str | None:
    """Find the id of the live session that a code opens, without using the code up."""
    row = await db.one("find_link_code", code_hash=code_hash, now_us=now_us)
    return row["session_id"] if row else None


async def take_code(db: Queryable, code_hash: str, now_us: int) -> TakenCode | None:
    """Use a code up; return the session that it opened, None if it was used before."""
    row = await db.one("take_link_code", code_hash=code_hash, now_us=now_us)
    return TakenCode(row["session_id"], row["expires_at_us"]) if row else None


async def remember_code(db: Queryable, code_hash: str, token_hash: str, taken: TakenCode) -> None:
    """Record that the owner of this token used the code, and may repeat that."""
    await db.run("insert_used_link_code", code_hash=code_hash, token_hash=token_hash, **taken._asdict())


async def find_used_code(db: Queryable, code_hash: str, token_hashes: Collection[str], now_us: int) -> UsedCode | None:
    """Find the use of a code by the owner of one of these tokens."""
    row = await db.one("find_used_link_code", code_hash=code_hash, now_us=now_us)
    return UsedCode(row["token_hash"], row["session_id"]) if row and row["token_hash"] in token_hashes else None


async def forget_codes(db: Queryable, now_us: int, page_size: int) -> int:
    """Delete codes, used or not, whose time is over, a page at most; return how many."""
    dead = await db.many("delete_dead_link_codes", now_us=now_us, page_size=page_size)
    used = await db.many("delete_old_used_link_codes", now_us=now_us, page_size=page_size)
    return max(len(dead), len(used))


async def forget_tokens(db: Queryable, page_size: int) -> AsyncIterator[None]:
    """Delete tokens of sessions that have ended, or do not exist, page by page."""
    after_id = ""
    while after_id != LAST_ID:
        row = await db.one("find_token_page", after_id=after_id, page_size=page_size)
        until_id = row["until_id"] if row is not None else LAST_ID
        await db.run("delete_dead_tokens", after_id=after_id, until_id=until_id)
        after_id = until_id
        yield
