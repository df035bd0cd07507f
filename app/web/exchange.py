"""The exchange of one request and its answer: their id, their log line, and a clean end.

The outermost middleware. Here every refusal becomes its problem document, any other exception a 500, and
an answer that comes before the end of the body ends the connection such that the client can read it.
"""

import asyncio
from collections.abc import Awaitable, Callable, Iterable, Mapping
from types import MappingProxyType
from typing import Any, Final

import structlog
from starlette.exceptions import HTTPException
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from app.errors import Internal, UploadError
from app.protocols import tus
from app.protocols.headers import request_id
from app.web.base_path import unmount
from app.web.problems import problem, refusal_of
from app.web.request import RequestHeaders

log = structlog.stdlib.get_logger("waybill.web")

NOSNIFF: Final = (b"x-content-type-options", b"nosniff")
"""A header of every answer: no browser shall guess another type than Content-Type."""
_LINGER_BYTES: Final = 4 * 1024 * 1024
_LINGER_SECONDS: Final = 2.0
_KEYS: Final = ("/api/ingestion/uploads/", "/d/")
"""The paths behind which a key stands, which gives access to something."""
_SHOWN_OF_KEY: Final = 6
ShowRefusal = Callable[[Scope, UploadError], Awaitable[Response]]


class Exchange:
    """A request while it is answered; `notes` go into its log line.

    When the answer starts, `before_answer` is awaited once, if there is one; then `more_headers` returns further
    headers of it. Both are called whatever made the answer: also a 500 that replaced another.
    """

    def __init__(self, scope: Scope, receive: Receive, send: Send, new_id: Callable[[], str]) -> None:
        headers = self.headers = RequestHeaders(scope["headers"])
        self.id = request_id(headers.get("x-request-id")) or new_id()
        self.notes: dict[str, Any] = {}
        self.before_answer: Callable[[], Awaitable[None]] | None = None
        self.more_headers: Callable[[], Iterable[tuple[bytes, bytes]]] = tuple
        self.status = 0
        self.received = 0
        self._receive = receive
        self._send = send
        length = headers.get("content-length")
        self._body_ended = "transfer-encoding" not in headers and (length is None or length.strip("0") == "")
        self._may_hold_back = "expect" in headers
        self._unread = False

    async def receive(self) -> Message:
        message = await self._receive()
        self._may_hold_back = False
        if message["type"] == "http.request":
            self.received += len(message.get("body", b""))
            self._body_ended = not message.get("more_body", False)
        else:
            self._body_ended = True
        return message

    async def send(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            prepare, self.before_answer = self.before_answer, None
            if prepare is not None:
                await prepare()
            self.status = message["status"]
            self._unread = not self._body_ended
            headers = [
                *message.get("headers", ()),
                *self.more_headers(),
                (b"x-request-id", self.id.encode("ascii")),
                NOSNIFF,
            ]
            if self._unread:
                headers.append((b"connection", b"close"))
            message = {"type": "http.response.start", "status": self.status, "headers": headers}
        elif self._unread and not message.get("more_body", False):
            await self._send({**message, "more_body": True})
            await self._linger()
            message = {"type": "http.response.body", "body": b"", "more_body": False}
        await self._send(message)

    async def refuse(self, refusal: UploadError, scope: Scope, show: "ShowRefusal | None") -> None:
        """Answer with the refusal's problem document, or as `show` shows it."""
        self.notes["code"] = refusal.code
        if "tus-resumable" in self.headers:  # tus requires it on every answer
            refusal.headers.setdefault("Tus-Resumable", tus.VERSION)
        answer = problem(refusal, self.id) if show is None else await show(scope, refusal)
        await answer(scope, self.receive, self.send)

    def end(self) -> None:
        """Release the server's callables, which hold the scope, which holds this: a reference cycle."""
        del self._receive, self._send

    async def _linger(self) -> None:
        """Keep the connection for a moment after an early answer, and read on, up to `_LINGER_BYTES`.

        Closing at once would reset the connection under a client that still sends, and it
        would never see the answer. One that sends faster than it reads, as proxies do, fills its
        buffers then, and still has the rest of the moment to read.
        """
        if self._may_hold_back:
            return  # the client waits for 100 Continue; reading would request the body that was just refused
        limit = self.received + _LINGER_BYTES
        try:
            async with asyncio.timeout(_LINGER_SECONDS):
                while not self._body_ended and self.received < limit:
                    await self.receive()
                if not self._body_ended:
                    await asyncio.sleep(_LINGER_SECONDS)
        except TimeoutError:
            log.debug("the client went on sending after its answer", request_id=self.id)


class ExchangeMiddleware:
    """Gives every request its Exchange, as `scope["exchange"]`."""

    def __init__(
        self,
        app: ASGIApp,
        *,
        new_id: Callable[[], str],
        stopwatch: Callable[[], float],
        base_path: str = "",
        pages: Mapping[str, ShowRefusal] = MappingProxyType({}),
    ) -> None:
        """`pages` are the paths that show their refusals to people, and how."""
        self._app = app
        self._base_path = base_path
        self._pages = pages
        self._new_id = new_id
        self._stopwatch = stopwatch
        self._log = log.bind()  # once: `log` would look for its configuration at every line

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        exchange = scope["exchange"] = Exchange(scope, receive, send, self._new_id)
        began = self._stopwatch()
        path = _shown_path(scope)
        is_ours = False
        try:
            if self._base_path:
                unmount(scope, self._base_path)
            is_ours = True
            await self._app(scope, exchange.receive, exchange.send)
        except (UploadError, HTTPException) as error:
            if exchange.status:
                _log_failure(exchange, scope, path)
                raise  # the answer has begun and cannot be changed: the server closes the connection
            # Not bound to a name: the error, its traceback and this frame would be a reference cycle, which keeps the
            # request and its body's last block alive.
            await exchange.refuse(refusal_of(error, scope), scope, self._pages.get(scope["path"]) if is_ours else None)
        except Exception:
            _log_failure(exchange, scope, path)
            if exchange.status:
                raise
            await exchange.refuse(Internal(), scope, self._pages.get(scope["path"]))
        finally:
            self._log.info(
                "answered",
                request_id=exchange.id,
                method=scope["method"],
                path=path,
                status=exchange.status,
                received=exchange.received,
                ms=round((self._stopwatch() - began) * 1000, 1),
                **exchange.notes,
            )
            exchange.end()


def _log_failure(exchange: Exchange, scope: Scope, path: str) -> None:
    log.exception("a request failed", request_id=exchange.id, method=scope["method"], path=path)


def _shown_path(scope: Scope) -> str:
    """The path as it was sent, in ASCII: decoded it could move a terminal's cursor or begin a line.

    The key of a resumable upload or of a link, which gives access to it, is cut to its beginning, also where a
    client or a proxy has put a prefix before our own path; shorter, if that was escaped.
    """
    path: str = scope["raw_path"].decode("ascii", "backslashreplace")
    for before in _KEYS if scope["method"] != "PUT" else ():
        begin = scope["path"].find(before)
        if begin >= 0:
            return f"{path[: begin + len(before) + _SHOWN_OF_KEY]}..."
    return path


def exchange_of(scope: Scope) -> Exchange:
    exchange: Exchange = scope["exchange"]
    return exchange
