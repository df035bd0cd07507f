"""The caller's session: cookie in, session on the scope, cookie out; and the handlers of /api/session."""

from collections.abc import Iterable
from typing import Any, Final

from pydantic import BaseModel, ConfigDict
from pydantic_core import to_json
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import ASGIApp, Receive, Scope, Send

from app.errors import NoSession
from app.model import Session, Status, rfc3339
from app.sessions import Sessions, token_records, totals_records
from app.sessions.opening import Recognised
from app.sessions.tokens import Token
from app.sessions.totals_records import Totals
from app.uploads.ingest import Visitor
from app.web.credentials import Credentials
from app.web.exchange import exchange_of
from app.web.json_body import json_body
from app.web.origins import own_page, refuse_other_sites, require_own_page
from app.web.qr import qr_svg
from app.web.services import Services

PAGE: Final = "/"
_SAFE_METHODS: Final = frozenset({"GET", "HEAD", "OPTIONS"})


class Caller:
    """The caller of a request. `token` is the answer's cookie; "" deletes the cookie."""

    def __init__(self, sessions: Sessions, recognised: Recognised | None, credentials: Credentials) -> None:
        self._sessions = sessions
        self.recognised = recognised
        self.credentials = credentials
        self.token: Token | str | None = None
        self._visitor: Visitor | None = None
        self._first_token: Token | None = None

    def living(self) -> Recognised:
        """The caller's session and the token that opened it; raises NoSession."""
        if self.recognised is None:
            raise NoSession
        return self.recognised

    @property
    def session(self) -> Session:
        """The caller's session; raises NoSession."""
        return self.living().session

    @property
    def is_nobody(self) -> bool:
        """Whether the caller has no session and may be given one.

        Raises:
            NoSession: the caller's bearer token opens none, which is refused instead of replaced.
        """
        if self.recognised is None and self.credentials.bearers:
            raise NoSession
        return self.recognised is None

    def visitor(self) -> Visitor:
        """The caller as the sender of uploads: with its own session, or a new one that is recorded along with them.

        Raises:
            NoSession: see `is_nobody`.
        """
        if self._visitor is None:
            if self.is_nobody:
                arrival, self._first_token = self._sessions.begin()
                self._visitor = Visitor(arrival.session.id, arrival)
            else:
                self._visitor = Visitor(self.session.id)
        return self._visitor

    async def ensure(self) -> Recognised:
        """The caller's session, started now if there is none; raises NoSession: see `is_nobody`."""
        if self.is_nobody:
            arrival, token = self._sessions.begin()
            await self._sessions.save(arrival)
            self.recognised, self.token = Recognised(arrival.session, token), token
        return self.living()

    def cookie_token(self) -> Token | str | None:
        """The cookie's value when the answer is sent; None for a session that was never recorded."""
        if self._first_token is not None and self._visitor is not None and self._visitor.arrival is None:
            return self._first_token
        return self.token

    async def renew(self) -> None:
        """Issue the cookie anew if it is stale, as after a long upload, unless the browser was given another one."""
        if self.token is None and self._sessions.tokens.is_stale(self.living().token):
            self.token = await self._sessions.renew(self.living().token)


class SessionMiddleware:
    """Puts the Caller of every request to the API and the page on the scope, and its cookie on the answer."""

    def __init__(
        self, app: ASGIApp, *, allowed_origins: frozenset[str], always_secure: bool, base_path: str = ""
    ) -> None:
        self._app = app
        self._allowed_origins = allowed_origins
        self._always_secure = always_secure
        self._base_path = base_path

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or not (scope["path"].startswith("/api/") or scope["path"] == PAGE):
            await self._app(scope, receive, send)
            return
        exchange = exchange_of(scope)
        sessions: Sessions = scope["state"]["sessions"]
        shown = Credentials(exchange.headers, sessions)
        # A cross-site form sends no SameSite cookie, yet its answer could replace the browser's own by a new one.
        navigates = exchange.headers.get("sec-fetch-mode") == "navigate"
        if scope["path"] == PAGE and scope["method"] == "POST":
            require_own_page(exchange, scope["scheme"])
        elif (shown.by_cookie or navigates) and scope["method"] not in _SAFE_METHODS:
            refuse_other_sites(exchange, scope["scheme"], self._allowed_origins)
        caller = Caller(sessions, await sessions.recognise(shown.groups), shown)
        scope["caller"] = caller
        secure = self._always_secure or scope["scheme"] == "https"
        if secure and caller.recognised is not None and shown.to_exchange(caller.recognised):
            caller.token = sessions.tokens.renewed(caller.recognised.token)
        others = exchange.more_headers

        def more_headers() -> Iterable[tuple[bytes, bytes]]:
            if (token := caller.cookie_token()) is None:
                return others()
            return *others(), *shown.set_cookie(sessions, token, secure=secure, base_path=self._base_path)

        exchange.more_headers = more_headers
        if caller.recognised is not None:
            exchange.before_answer = caller.renew
        await self._app(scope, receive, send)


def caller_of(request: Request[Any]) -> Caller:
    caller: Caller = request.scope["caller"]
    return caller


async def show(request: Request[Services]) -> Response:
    """GET /api/session: show the caller's session."""
    return await _session_answer(request, caller_of(request).session, None)


async def ensure(request: Request[Services]) -> Response:
    """POST /api/session: ensure that the caller has a session, before several uploads start at once."""
    if caller_of(request).is_nobody:
        request.state["storage"].reserve(0).release()  # no unused sessions are recorded on a full disk
    session, token, _ = await caller_of(request).ensure()
    return await _session_answer(request, session, token)


async def rotate(request: Request[Services]) -> Response:
    """POST /api/session/rotate: a new token; the old one stops working when that is used."""
    caller = caller_of(request)
    rotated = await request.state["sessions"].rotate(caller.living().token)
    caller.token = rotated.token
    return await _session_answer(request, rotated.session, rotated.token)


async def end(request: Request[Services]) -> Response:
    """DELETE /api/session: end the session for all browsers; its records stay in the database."""
    caller = caller_of(request)
    await request.state["sessions"].end(caller.living().token)
    caller.token = ""
    return Response(status_code=204)


class _Shown(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)

    page: str | None = None


async def link(request: Request[Services]) -> Response:
    """POST /api/session/link: a one-time code for a second browser, and for a page its QR code."""
    token = caller_of(request).living().token
    page = (await json_body(request, _Shown, '{"page": "https://nas/uploads/"}', optional=True)).page
    if page is not None:
        page = own_page(exchange_of(request.scope), request.scope["scheme"], page)
    code, expires_at_us = await request.state["sessions"].linking.link(token)
    answer = {"code": code, "expires_at": rfc3339(expires_at_us)}
    if page is not None:
        answer["qr"] = qr_svg(f"{page}#join={code}")
    return Response(to_json(answer), 201, media_type="application/json")


class _Join(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)

    code: str


async def join(request: Request[Services]) -> Response:
    """POST /api/session/join: share the session that the code stands for."""
    sessions = request.state["sessions"]
    code = (await json_body(request, _Join, '{"code": "ABCD-EFGH-JKMN"}')).code
    caller = caller_of(request)
    joined = await sessions.linking.join(caller.credentials.texts, code)
    caller.token = joined.token
    return await _session_answer(request, joined.session, joined.token)


async def _session_answer(request: Request[Services], session: Session, token: Token | None) -> Response:
    """The answer that describes a session, with its token, for a caller without cookies."""
    has = await totals_records.find(request.state["db"], session.id)
    answer = await described(request, session, has)
    if token is not None and caller_of(request).credentials.wants_token:
        answer["token"] = request.state["sessions"].tokens.text_of(token)
    return Response(to_json(answer), media_type="application/json", headers={"Cache-Control": "no-store"})


async def described(request: Request[Services], session: Session, has: Totals) -> dict[str, Any]:
    """The session as JSON, with what it has."""
    return {
        **session.model_dump(mode="json"),
        "uploads": sum(has.of(status).uploads for status in Status),
        "bytes": has.of(Status.COMPLETED).size,
        "devices": await token_records.count_devices(request.state["db"], session.id),
    }
