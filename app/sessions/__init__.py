"""Sessions and their signed tokens: recognise, start, renew, rotate, end, link, join.

A browser carries a random token, signed together with the time it was issued. The
database keeps only the token's hash; whether a session is live, its row decides. The text
of a cookie is never a key to anything.
"""

import asyncio
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Final, TypeVar

import structlog

from app.db.database import Db
from app.db.queryable import Transaction
from app.errors import AmbiguousSession, UploadError
from app.model import Clock, Session
from app.sessions import records, token_records
from app.sessions.last_seen import LastSeen
from app.sessions.linking import Linking
from app.sessions.opening import Recognised, opened
from app.sessions.records import NewSession
from app.sessions.tokens import Token, Tokens
from app.signing import Signer

log = structlog.stdlib.get_logger("waybill.sessions")
T = TypeVar("T")

KNOWN_SECONDS: Final = 1.0
"""How long one worker may still accept a session that another has ended."""
_KNOWN_AT_MOST: Final = 10_000


@dataclass(slots=True)
class _Known:
    until: float
    finding: "asyncio.Task[Session | None]"
    session: Session | None = None
    """The session that the token opens, once found."""

    def end(self, finding: "asyncio.Task[Session | None]") -> None:
        if not finding.cancelled() and not finding.exception():  # the waiting callers may be gone
            self.session = finding.result()


class Sessions:
    """The sessions of one service. `max_age_us` is how long an idle one lives."""

    def __init__(
        self,
        db: Db,
        signer: Signer,
        *,
        max_age_us: int,
        now_us: Clock,
        new_id: Callable[[], str],
        new_secret: Callable[[], str],
        new_code: Callable[[], str],
    ) -> None:
        self.tokens = Tokens(signer, max_age_us=max_age_us, now_us=now_us, new_secret=new_secret)
        self.linking = Linking(db, self.tokens, change=self._change, now_us=now_us, new_code=new_code)
        self.last_seen = LastSeen(change=self._change, max_age_us=max_age_us, now_us=now_us)
        self._db = db
        self._max_age_us = max_age_us
        self._now_us = now_us
        self._new_id = new_id
        self._known: OrderedDict[str, _Known] = OrderedDict()

    @property
    def max_age_seconds(self) -> int:
        return self._max_age_us // 1_000_000

    async def renew(self, token: Token) -> Token | None:
        """Issue a token anew; None if it opens no session any more, or another may have replaced it."""
        try:
            return (
                self.tokens.renewed(token)
                if await token_records.is_current(self._db, token.hash, self._now_us())
                else None
            )
        except UploadError:
            return None  # the browser gets it with the next answer

    async def recognise(self, groups: Sequence[Sequence[str]]) -> Recognised | None:
        """Find the live session that one of the texts opens, or None. Earlier groups take precedence.

        Raises:
            AmbiguousSession: two tokens of one group open different sessions.
            Unavailable: the database is away.
        """
        carried = [self.tokens.read_all(texts) if texts else [] for texts in groups]
        if sum(map(len, carried)) > 1:  # one query for them all; the remaining one is looked up fully
            hashes = [token.hash for group in carried for token in group]
            live = await token_records.list_sessions(self._db, hashes, self._now_us())
            carried = [[token for token in group if token.hash in live] for group in carried]
            for group in carried:
                if len({live[token.hash] for token in group}) > 1:
                    raise AmbiguousSession
                if group:
                    break
        now_us = self._now_us()
        for at, group in enumerate(carried):
            for token in group:
                session = await self._find(token.hash, now_us)
                if session:
                    self.last_seen.note(session, now_us)
                    return Recognised(session, token, at)
        return None

    async def _find(self, token_hash: str, now_us: int) -> Session | None:
        """Find the session of a token, by one query for all that wait, cached for a moment."""
        now = asyncio.get_running_loop().time()
        known = self._known.get(token_hash)
        if known is not None and known.until > now and known.session is not None:
            if known.session.expires_at > now_us:
                return known.session
            known = None  # another worker may have used it since
        if known is None or known.until <= now:
            known = _Known(now + KNOWN_SECONDS, asyncio.create_task(self._look_up(token_hash)))
            known.finding.add_done_callback(known.end)
            self._known[token_hash] = known
            self._known.move_to_end(token_hash)
            if len(self._known) > _KNOWN_AT_MOST:
                self._known.popitem(last=False)
        try:
            session = await asyncio.shield(known.finding)
        except BaseException:
            self._known.pop(token_hash, None)
            raise
        return session if session and session.expires_at > self._now_us() else None

    async def _look_up(self, token_hash: str) -> Session | None:
        """Find the session of a token in the database; the token that it replaces ends, since this one is used."""
        found = await token_records.find_session(self._db, token_hash, self._now_us())
        if found is None or found.replaces_hash is None:
            return found.session if found else None
        try:
            return await self._change(lambda transaction: token_records.use(transaction, token_hash, self._now_us()))
        except UploadError as error:  # a full disk, for one: the session is recognised nevertheless
            log.warning("replaced token not ended", session_id=found.session.id, reason=str(error))
            return found.session

    async def _change(self, work: Callable[[Transaction], Awaitable[T]]) -> T:
        """Change the sessions that tokens open. The cache is cleared, even when the outcome is unknown.

        Other sessions are just looked up once more.
        """
        try:
            return await self._db.transaction(work)
        finally:
            self._known.clear()

    def begin(self) -> tuple[NewSession, Token]:
        """Make a session and its token; it is recorded along with the first upload."""
        now_us = self._now_us()
        token = self.tokens.new()
        session = Session(
            id=self._new_id(), created_at=now_us, last_seen_at=now_us, expires_at=now_us + self._max_age_us
        )
        return NewSession(session, token.hash), token

    async def save(self, arrival: NewSession) -> None:
        """Record a new session that brings no upload."""

        async def run(transaction: Transaction) -> None:
            await records.insert_sessions(transaction, [arrival])

        await self._db.transaction(run)

    async def rotate(self, token: Token) -> Recognised:
        """Issue a new token for the same session. The old one ends when the new one is used, or in an hour.

        Repeated with the old token, because the answer was lost, it issues another new one; the first that is
        used ends the others.

        Raises:
            NoSession: the token opens none any more.
        """
        new = self.tokens.new()

        async def run(transaction: Transaction) -> Session:
            session = await opened(transaction, token, self._now_us())
            await token_records.insert(transaction, new.hash, session.id, self._now_us(), replaces_hash=token.hash)
            return session

        return Recognised(await self._change(run), new)

    async def end(self, token: Token) -> None:
        """End the session of a token for every browser that shares it; its records stay. Raises NoSession."""

        async def run(transaction: Transaction) -> None:
            session = await opened(transaction, token, self._now_us())
            await token_records.end_session(transaction, session.id, self._now_us())

        await self._change(run)
