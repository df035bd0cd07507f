"""Sessions and their signed tokens: recognise, start, renew, rotate, end, link, join.

A browser carries a random token, signed together with the time it was issued. The
database keeps only the token's hash; whether a session is live, its row decides. The text
of a cookie is never a key to anything.
"""

import asyncio
import hashlib
import re
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Final, NamedTuple, TypeVar

import structlog

from app.db.database import Db
from app.db.queryable import Transaction
from app.errors import AmbiguousSession, Forbidden, NoSession, UploadError
from app.model import Clock, Session
from app.sessions import merge_records, token_records
from app.sessions.merge import SessionMerges
from app.signing import Signer
from app.uploads import records as upload_records
from app.uploads.records import NewSession, Seen

log = structlog.stdlib.get_logger("waybill.sessions")
T = TypeVar("T")

LINK_CODE_SECONDS: Final = 600
SEEN_EVERY_US: Final = 60_000_000
"""The resolution of `last_seen`: a session in steady use costs one row write a minute, shared with others."""
FLUSH_SECONDS: Final = 5.0
_SHARE: Final = 60
"""The resolution and the delay are at most this fraction of a short age, so that a use counts within a thirtieth."""
KNOWN_SECONDS: Final = 1.0
"""How long one worker may still accept a session that another has ended."""
_KNOWN_AT_MOST: Final = 10_000
_MAX_CHANGES: Final = 8
_SHAPE: Final = re.compile(r"[A-Za-z0-9_-]{16,64}\.[0-9]{1,19}\.[A-Za-z0-9_-]{20,128}")


class Token(NamedTuple):
    """A client's token: a secret, and when it was last issued."""

    secret: str
    given_at_us: int

    @property
    def hash(self) -> str:
        return hashlib.sha256(self.secret.encode()).hexdigest()


class Recognised(NamedTuple):
    """A live session and the token that opened it."""

    session: Session
    token: Token
    group: int = 0
    """The index of the token's group among those given to `recognise`."""


@dataclass(slots=True)
class _Known:
    until: float
    finding: "asyncio.Task[Session | None]"
    session: Session | None = None
    """The session that the token opens, once found."""

    def end(self, finding: "asyncio.Task[Session | None]") -> None:
        if not finding.cancelled() and not finding.exception():  # the waiting callers may be gone
            self.session = finding.result()


class _Changed(Exception):
    """Others changed a transaction's sessions before it could lock them; it is rolled back."""


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
        self.moves = SessionMerges(db, now_us=now_us)
        self._db = db
        self._signer = signer
        self._max_age_us = max_age_us
        self._seen_every_us = min(SEEN_EVERY_US, max_age_us // _SHARE)
        self._now_us = now_us
        self._new_id = new_id
        self._new_secret = new_secret
        self._new_code = new_code
        self._known: OrderedDict[str, _Known] = OrderedDict()
        self._seen: dict[str, Seen] = {}
        self._kept_at_us = 0

    @property
    def max_age_seconds(self) -> int:
        return self._max_age_us // 1_000_000

    @property
    def flush_seconds(self) -> float:
        """The interval at which `last_seen` is saved."""
        return min(FLUSH_SECONDS, self._max_age_us / 1_000_000 / _SHARE)

    def text_of(self, token: Token) -> str:
        """The token as a cookie or bearer value."""
        return self._signer.sign(f"{token.secret}.{token.given_at_us // 1_000_000}")

    def _token_in(self, text: str) -> Token | None:
        signed = self._signer.verify(text)
        if signed is None:
            return None
        secret, _, given_at = signed.rpartition(".")
        return Token(secret, int(given_at) * 1_000_000)

    def _tokens_in(self, texts: Sequence[str]) -> list[Token]:
        """The tokens among `texts` that are signed by us, whether or not they open a session."""
        if len(texts) == 1:
            token = self._token_in(texts[0])
            return [token] if token else []
        return [token for text in dict.fromkeys(texts) if (token := self._token_in(text))]

    def is_ours(self, text: str) -> bool:
        """Whether a text has the shape of a token: another service's bearer token is not taken for one."""
        return _SHAPE.fullmatch(text) is not None

    def new_token(self) -> Token:
        return Token(self._new_secret(), self._now_us())

    def renewed(self, token: Token) -> Token:
        """The same token, issued now."""
        return token._replace(given_at_us=self._now_us())

    def is_stale(self, token: Token) -> bool:
        """Whether a token should be issued anew, so that its cookie lives as long as the session."""
        return self._now_us() - token.given_at_us > self._max_age_us // 30

    async def renew(self, token: Token) -> Token | None:
        """Issue a token anew; None if it opens no session any more, or another may have replaced it."""
        try:
            return self.renewed(token) if await token_records.is_current(self._db, token.hash, self._now_us()) else None
        except UploadError:
            return None  # the browser gets it with the next answer

    async def recognise(self, groups: Sequence[Sequence[str]]) -> Recognised | None:
        """Find the live session that one of the texts opens, or None. Earlier groups take precedence.

        Raises:
            AmbiguousSession: two tokens of one group open different sessions.
            Unavailable: the database is away.
        """
        carried = [self._tokens_in(texts) if texts else [] for texts in groups]
        if sum(map(len, carried)) > 1:  # one query for them all; the remaining one is looked up fully
            hashes = [token.hash for group in carried for token in group]
            opened = await token_records.list_sessions(self._db, hashes, self._now_us())
            carried = [[token for token in group if token.hash in opened] for group in carried]
            for group in carried:
                if len({opened[token.hash] for token in group}) > 1:
                    raise AmbiguousSession
                if group:
                    break
        for at, group in enumerate(carried):
            for token in group:
                session = await self._find(token.hash)
                if session:
                    self._saw(session)
                    return Recognised(session, token, at)
        return None

    async def _find(self, token_hash: str) -> Session | None:
        """Find the session of a token, by one query for all that wait, cached for a moment."""
        now = asyncio.get_running_loop().time()
        known = self._known.get(token_hash)
        if known is not None and known.until > now and known.session is not None:
            if known.session.expires_at > self._now_us():
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
        opened = await token_records.find_session(self._db, token_hash, self._now_us())
        if opened is None or opened.replaces_hash is None:
            return opened.session if opened else None
        try:
            return await self._change(lambda transaction: token_records.use(transaction, token_hash, self._now_us()))
        except UploadError as error:  # a full disk, for one: the session is recognised nevertheless
            log.warning("replaced token not ended", session_id=opened.session.id, reason=str(error))
            return opened.session

    def _saw(self, session: Session) -> None:
        now_us = self._now_us()
        if now_us - session.last_seen_at >= self._seen_every_us and session.id not in self._seen:
            self._seen[session.id] = Seen(session.id, now_us, now_us + self._max_age_us)

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
        token = self.new_token()
        session = Session(
            id=self._new_id(), created_at=now_us, last_seen_at=now_us, expires_at=now_us + self._max_age_us
        )
        return NewSession(session, token.hash), token

    async def save(self, arrival: NewSession) -> None:
        """Record a new session that brings no upload."""

        async def run(transaction: Transaction) -> None:
            await upload_records.insert_sessions(transaction, [arrival])

        await self._db.transaction(run)

    async def opened(self, transaction: Transaction, token: Token) -> Session:
        """Find the session that a token opens now, and lock it until the transaction ends; raises NoSession.

        Every change of a session begins so: the recognised one may be a second old, and the token open another since.
        """
        session = await token_records.use(transaction, token.hash, self._now_us())
        if session is None:
            raise NoSession
        return session

    async def rotate(self, token: Token) -> Recognised:
        """Issue a new token for the same session. The old one ends when the new one is used, or in an hour.

        Repeated with the old token, because the answer was lost, it issues another new one; the first that is
        used ends the others.

        Raises:
            NoSession: the token opens none any more.
        """
        new = self.new_token()

        async def run(transaction: Transaction) -> Session:
            session = await self.opened(transaction, token)
            await token_records.insert(transaction, new.hash, session.id, self._now_us(), replaces_hash=token.hash)
            return session

        return Recognised(await self._change(run), new)

    async def end(self, token: Token) -> None:
        """End the session of a token for every browser that shares it; its records stay. Raises NoSession."""

        async def run(transaction: Transaction) -> None:
            session = await self.opened(transaction, token)
            await token_records.end_session(transaction, session.id, self._now_us())

        await self._change(run)

    async def link(self, token: Token) -> tuple[str, int]:
        """Make a one-time code by which a second browser joins; return it and its expiry (microseconds).

        Raises:
            NoSession: the token opens none any more.
        """
        code, expires_at_us = self._new_code(), self._now_us() + LINK_CODE_SECONDS * 1_000_000

        async def run(transaction: Transaction) -> None:
            session = await self.opened(transaction, token)
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
        token, code_hash, carried = self.new_token(), _code_hash(code), self._tokens_in(texts)
        merged: list[str] = []

        async def run(transaction: Transaction) -> Session:
            merged.clear()
            now_us = self._now_us()
            own = await self._own(transaction, carried)
            into_id = await token_records.find_code(transaction, code_hash, now_us)
            taken = None
            if into_id is not None:
                pair = {into_id, own.session.id if own else into_id}
                await upload_records.lock_sessions(transaction, min(pair), max(pair), now_us)
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
            await self.moves.hurry(session_id)
        return Recognised(joined, token)

    async def _until_unchanged(self, work: Callable[[Transaction], Awaitable[T]]) -> T:
        """Change the sessions that tokens open; try again when others have just changed them."""
        for _ in range(_MAX_CHANGES):
            with suppress(_Changed):
                return await self._change(work)
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
        await upload_records.lock_sessions(transaction, used.session_id, used.session_id, self._now_us())
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

    async def keep_seen(self, in_use: Callable[[], Iterable[str]]) -> None:
        """Save, now and then and in one statement, when sessions were last seen. Runs until cancelled.

        Sessions that `in_use` names, which have uploads under way, count as seen all the time.
        """
        while True:
            await asyncio.sleep(self.flush_seconds)
            now_us = self._now_us()
            if now_us - self._kept_at_us >= self._seen_every_us:
                self._kept_at_us = now_us
                for session_id in in_use():
                    self._seen.setdefault(session_id, Seen(session_id, now_us, now_us + self._max_age_us))
            try:
                await self.flush_seen()
            except UploadError as error:
                log.warning("when sessions were last seen is written with the next ones", reason=str(error))
            except Exception:
                log.exception("writing when sessions were last seen failed")

    async def flush_seen(self) -> None:
        if not self._seen:
            return
        seen, self._seen = self._seen, {}

        async def run(transaction: Transaction) -> None:
            await upload_records.touch_sessions(transaction, list(seen.values()))

        try:
            await self._change(run)
        except BaseException:
            self._seen = seen | self._seen
            raise


def _code_hash(code: str) -> str:
    """The hash of a code, without case, spaces and dashes, since people type it."""
    plain = "".join(code.split()).replace("-", "").upper()
    return hashlib.sha256(plain.encode("utf-8", "replace")).hexdigest()
