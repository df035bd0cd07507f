"""Linking: a one-time code lets a second browser join a session, and the records of its own move there."""

import hashlib
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from typing import Any, Final, TypeVar

from app.db.database import Db
from app.db.queryable import Transaction
from app.errors import Forbidden
from app.model import Clock, Session
from app.sessions import merge_records, records, token_records
from app.sessions.merge import SessionMerges
from app.sessions.opening import Recognised, opened
from app.sessions.tokens import Token, Tokens

T = TypeVar("T")
Work = Callable[[Transaction], Awaitable[Any]]

LINK_CODE_SECONDS: Final = 600
_MAX_CHANGES: Final = 8


class _Changed(Exception):
    """Others changed a transaction's sessions before it could lock them; it is rolled back."""


class Linking:
    """Links sessions. `change` runs a transaction that changes what tokens open."""

    def __init__(
        self,
        db: Db,
        tokens: Tokens,
        *,
        change: Callable[[Work], Awaitable[Any]],
        now_us: Clock,
        new_code: Callable[[], str],
    ) -> None:
        self.merges = SessionMerges(db, now_us=now_us)
        self._db = db
        self._tokens = tokens
        self._change = change
        self._now_us = now_us
        self._new_code = new_code

    async def link(self, token: Token) -> tuple[str, int]:
        """Make a one-time code by which a second browser joins; return it and its expiry (microseconds).

        Raises:
            NoSession: the token opens none any more.
        """
        code, expires_at_us = self._new_code(), self._now_us() + LINK_CODE_SECONDS * 1_000_000

        async def run(transaction: Transaction) -> None:
            session = await opened(transaction, token, self._now_us())
            await token_records.insert_code(transaction, _code_hash(code), session.id, expires_at_us)

        await self._db.transaction(run)
        return code, expires_at_us

    async def join(self, texts: Sequence[str], code: str) -> Recognised:
        """Share the session that the code stands for; the records of the caller's own session move into it.

        `texts` are the caller's tokens. A caller with the same tokens, who lost the answer, can repeat this with the
        same code, for as long as that would have been valid.

        Raises:
            Forbidden: the code is unknown, used, or too old.
        """
        token, code_hash, carried = self._tokens.new(), _code_hash(code), self._tokens.read_all(texts)
        merged: list[str] = []

        async def run(transaction: Transaction) -> Session:
            merged.clear()
            now_us = self._now_us()
            own = await self._own(transaction, carried)
            into_id = await token_records.find_code(transaction, code_hash, now_us)
            taken = None
            if into_id is not None:
                pair = {into_id, own.session.id if own else into_id}
                await records.lock_sessions(transaction, min(pair), max(pair), now_us)
                taken = await token_records.take_code(transaction, code_hash, now_us)
                # Asked anew: while this waited for locks, the two may have ended or joined others. These are locked in
                # another transaction: locks that are taken out of order must not be waited for.
                own = await self._own(transaction, carried)
                if taken is None or not pair.issuperset({taken.session_id, own.session.id if own else into_id}):
                    raise _Changed
            if taken is None:
                return await self._join_again(transaction, code_hash, carried, token)
            if own is not None:
                await token_records.use(transaction, own.token.hash, now_us)
            if (
                own is not None
                and own.session.id != taken.session_id
                and await merge_records.merge(transaction, own.session.id, taken.session_id, now_us)
            ):
                merged.append(own.session.id)
            old = own.token.hash if own else carried[0].hash if carried else None
            if old is not None:
                await token_records.remember_code(transaction, code_hash, old, taken)
            return await self._let_in(transaction, token, taken.session_id, old)

        joined = await self._until_unchanged(run)
        for session_id in merged:
            await self.merges.hurry(session_id)
        return Recognised(joined, token)

    async def _until_unchanged(self, work: Callable[[Transaction], Awaitable[T]]) -> T:
        """Change the sessions that tokens open; try again when others have just changed them."""
        for _ in range(_MAX_CHANGES):
            with suppress(_Changed):
                changed: T = await self._change(work)
                return changed
        raise Forbidden("one of the two sessions has changed at this very moment; try again")

    async def _own(self, transaction: Transaction, carried: Sequence[Token]) -> Recognised | None:
        """Find the caller's own session: that of the first of its tokens that opens one."""
        for token in carried:
            if opened := await token_records.find_session(transaction, token.hash, self._now_us()):
                return Recognised(opened.session, token)
        return None

    async def _join_again(
        self, transaction: Transaction, code_hash: str, carried: Sequence[Token], token: Token
    ) -> Session:
        used = await token_records.find_used_code(
            transaction, code_hash, {each.hash for each in carried}, self._now_us()
        )
        if used is None:
            raise Forbidden("the code is unknown, was used before, or is older than ten minutes")
        await records.lock_sessions(transaction, used.session_id, used.session_id, self._now_us())
        return await self._let_in(transaction, token, used.session_id, used.token_hash)

    async def _let_in(self, transaction: Transaction, token: Token, into_id: str, old_hash: str | None) -> Session:
        """Issue a token of a session that is locked, in the place of the caller's old one."""
        now_us = self._now_us()
        await token_records.insert(transaction, token.hash, into_id, now_us, replaces_hash=old_hash)
        joined = await token_records.find_session(transaction, token.hash, now_us)
        before = await token_records.find_session(transaction, old_hash, now_us) if old_hash else None
        if joined is None or joined.session.id != into_id or (before is not None and before.session.id != into_id):
            raise Forbidden("one of the two sessions has changed at this very moment; try again")
        return joined.session


def _code_hash(code: str) -> str:
    """The hash of a code, without case, spaces and dashes, since people type it."""
    plain = "".join(code.split()).replace("-", "").upper()
    return hashlib.sha256(plain.encode("utf-8", "replace")).hexdigest()
