"""One connection, with the checks that uvicorn's parser lacks and a server on the Internet needs.

Bounds on time and size of a request's head, and on everything else that is not body; an
ambiguous request is refused, in the service's own words.
"""

import asyncio
import re
import sys
from typing import Any, Final
from urllib.parse import unquote

import httptools
import structlog
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from app.errors import BadRequest, Unavailable, UploadError
from app.ids import new_id
from app.server.cycle import Cycle
from app.web.exchange import NOSNIFF
from app.web.problems import problem
from app.web.resumables import INTERIM

log = structlog.stdlib.get_logger("waybill.server")

_VERSIONS: Final = {"1.0", "1.1"}
_HOST: Final = re.compile(
    rb"(?:\[[0-9A-Za-z:._~!$&'()*+,;=-]++\]|(?:[0-9A-Za-z._~!$&'()*+;=-]|%[0-9A-Fa-f]{2})*+)(?::[0-9]{0,5})?"
)
"""A host as in RFC 3986 §3.2.2, without the comma, which would make it a list to other readers."""


class _Refused(Exception):
    """A refusal of what the parser accepts; the text is for the client. Raised in a callback, it stops the parser."""


class _Body:
    """A parser's callbacks for the body of one message; further bytes are ignored."""

    def __init__(self, connection: "Connection") -> None:
        self._connection: Connection | None = connection

    def on_body(self, body: bytes) -> None:
        if self._connection is not None:
            self._connection.on_body(body)

    def on_message_complete(self) -> None:
        connection, self._connection = self._connection, None
        if connection is not None:
            connection.on_message_complete()


class Connection(HttpToolsProtocol):
    """uvicorn's connection, bounded.

    A head that is incomplete after `HEAD_SECONDS`, or a client that reads nothing of its answer
    for `STALLED_SECONDS`, ends the connection. `HEAD_FIELDS` and `HEAD_BYTES` bound a head, the latter
    also the bytes beside a body: trailers, and chunk extensions beyond `BESIDE_BODY` times the body.
    The rest of a body of known length bypasses the parser when it is more than `STRAIGHT_BYTES`.
    All else is parsed in pieces of `PIECE_BYTES`, and none while the requests of the piece before wait.
    When the service stops, a request that arrives within `LAST_REQUEST_SECONDS` is answered, with Connection: close.
    """

    HEAD_SECONDS = 10.0
    HEAD_BYTES = 64 * 1024
    HEAD_FIELDS = 256
    BESIDE_BODY = 16
    STALLED_SECONDS = 300.0
    STRAIGHT_BYTES = 64 * 1024
    PIECE_BYTES = 20 * 1024
    MOST = sys.maxsize  # lowered where descriptors are few: see keep_descriptors_for_files
    LAST_REQUEST_SECONDS = 1
    cycle: Cycle

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._in_head = True
        self._within = False
        self._stops = False
        self._body_bytes = 0
        self._other_bytes = 0
        self._length: int | None = None
        self._is_chunked = False
        self._straight = 0
        self._refusal: str | None = None
        self._refuses_next = False
        self._held = b""
        self._answering: Cycle | None = None
        self._stalled: asyncio.TimerHandle | None = None
        self._behind_upgrade = False
        self._client_is_done = False
        self._late: asyncio.TimerHandle | None = self.loop.call_later(self.HEAD_SECONDS, self.transport.close)
        most: int = self.config.most_connections  # type: ignore[attr-defined]  # it is ours
        if len(self.connections) > min(most, self.MOST):
            self._answer_at_once(b"503 Service Unavailable", Unavailable("too many connections are open"), new_id())

    def connection_lost(self, exc: Exception | None) -> None:
        for timer in (self._late, self._stalled):
            if timer is not None:
                timer.cancel()
        super().connection_lost(exc)
        if self._answering is not None and not self._answering.response_complete:
            self._answering.disconnected = True  # uvicorn notifies only the last request, which may still wait
            self._answering.message_event.set()

    def eof_received(self) -> bool:  # type: ignore[override]  # asyncio asks for it
        """Keep the connection open for the answers when the client has closed its sending side by a FIN.

        Within a body, or without a request to answer, the FIN is a hang-up, and ends the connection.
        """
        waits = self.cycle is not None and not self.cycle.response_complete
        self._client_is_done = self._in_head and waits
        if self._client_is_done and not self.pipeline and not self.cycle.response_started:
            self.cycle.keep_alive = False
        return self._client_is_done

    def data_received(self, data: bytes) -> None:
        if self._held:
            data, self._held = self._held + data, b""
        while data and not self._refuses_next and not self.transport.is_closing():
            if self.pipeline:  # a waiting request takes a hundred times its bytes
                self._held = data
                self.flow.pause_reading()
                return
            if self._straight:
                data = self._take_straight(data)
            else:
                self._parse(data[: self.PIECE_BYTES])
                data = data[self.PIECE_BYTES :]
        if self._client_is_done and not self._in_head:
            self.transport.close()  # the bytes that were held back end within a body

    def _parse(self, data: bytes) -> None:
        self._within = True
        body_bytes = self._body_bytes
        self._unset_keepalive_if_required()
        try:
            self.parser.feed_data(data)
        except httptools.HttpParserError:
            self.send_400_response("")
        except httptools.HttpParserUpgrade as stopped:
            if self._behind_upgrade:
                self._go_on_without_upgrade(data[stopped.args[0] :])
        if self.transport.is_closing():
            return
        if self._within:  # all of them belong to one message
            if self._length is not None and self._length - self._body_bytes > self.STRAIGHT_BYTES:
                self._straight = self._length - self._body_bytes
            self._other_bytes += len(data) - (self._body_bytes - body_bytes)
            if self._other_bytes > self.HEAD_BYTES + self.BESIDE_BODY * self._body_bytes:
                self._refusal = f"more than {self.HEAD_BYTES} bytes of the request are neither file nor field"
                self.send_400_response("")
                return
        if self._in_head and self._late is None and (self.cycle is None or self.cycle.response_complete):
            self._late = self.loop.call_later(self.HEAD_SECONDS, self.transport.close)

    def _go_on_without_upgrade(self, rest: bytes) -> None:
        """Read the body of a request that offers an upgrade: the parser would take it for the other protocol's bytes.

        RFC 9110 §7.8 lets a server ignore the offer. A second parser is fed such a body, and nothing else.
        """
        self._behind_upgrade = False
        self.parser = httptools.HttpRequestParser(_Body(self))
        length = b"Transfer-Encoding: chunked" if self._length is None else b"Content-Length: %d" % self._length
        self.parser.feed_data(b"POST / HTTP/1.1\r\n%b\r\n\r\n" % length)
        self._parse(rest)

    def _take_straight(self, data: bytes) -> bytes:
        """Pass on the rest of a long body directly, since the parser would copy it; return the bytes behind it."""
        count = min(len(data), self._straight)
        self._straight -= count
        if not self.cycle.response_complete:
            self.cycle.take(data[:count])
        if not self._straight:
            self.parser = httptools.HttpRequestParser(self)  # the old one still waits for the bytes that bypassed it
            self.parser.set_dangerous_leniencies(lenient_data_after_close=True)
            self.on_message_complete()
        return data[count:]

    # Callbacks of the parser, to which any exception of theirs means a malformed request.

    def on_message_begin(self) -> None:
        super().on_message_begin()
        self._in_head, self._within = True, False
        self._body_bytes = self._other_bytes = 0

    def on_header(self, name: bytes, value: bytes) -> None:
        if self._in_head:  # behind the body come trailers, which are ignored
            super().on_header(name, value)

    def on_headers_complete(self) -> None:
        self._in_head = self._within = False
        self._other_bytes = 0
        if self._late is not None:
            self._late.cancel()
            self._late = None
        try:
            self._check_head()
        except _Refused as refused:
            self._refusal = str(refused)
            raise
        self._begin()

    def _begin(self) -> None:
        """Hand the request to the application, or queue it behind those that were sent before it."""
        upgrades = self.parser.should_upgrade()
        has_body = bool(self._length) or self._is_chunked
        self._behind_upgrade = upgrades and has_body and self.parser.get_method() != b"CONNECT"
        version = self.parser.get_http_version()
        url = httptools.parse_url(self.url)
        path = url.path.decode("ascii")
        self.scope["method"] = self.parser.get_method().decode("ascii")
        self.scope["http_version"] = version
        self.scope["path"] = unquote(path) if "%" in path else path
        self.scope["raw_path"] = url.path
        self.scope["query_string"] = url.query or b""
        before = self.cycle
        self.cycle = Cycle(
            scope=self.scope,
            transport=self.transport,
            flow=self.flow,
            logger=self.logger,
            access_logger=self.access_logger,
            access_log=False,
            default_headers=self.server_state.default_headers,
            message_event=asyncio.Event(),
            expect_100_continue=self.expect_100_continue,
            # At an upgrade the parser stops and takes no second request: the client must not send one.
            keep_alive=version != "1.0" and self.parser.should_keep_alive() and not upgrades and not self._stops,
            on_response=self.on_response_complete,
        )
        if version == "1.1":  # an older client would take an interim response for the answer
            self.scope["extensions"] = {INTERIM: self.cycle.send_interim}  # type: ignore[dict-item]  # any object does
        if before is None or before.response_complete:
            self._start_asgi_task(self.cycle, self.app)
        else:
            self.flow.pause_reading()
            self.pipeline.appendleft((self.cycle, self.app))

    def _start_asgi_task(self, cycle: Cycle, app: Any) -> None:  # type: ignore[override]
        self._answering = cycle
        super()._start_asgi_task(cycle, app)

    def _check_head(self) -> None:
        version = self.parser.get_http_version()
        if version not in _VERSIONS:
            raise _Refused("only HTTP/1.0 and HTTP/1.1 are spoken here")
        if len(self.url) + sum(len(name) + len(value) for name, value in self.headers) > self.HEAD_BYTES:
            raise _Refused(f"the head of the request has more than {self.HEAD_BYTES} bytes")
        if len(self.headers) > self.HEAD_FIELDS:
            raise _Refused(f"the request has more than {self.HEAD_FIELDS} header fields")
        hosts = transfers = 0
        self._length, self._is_chunked = None, False
        for name, value in self.headers:
            if name == b"host":
                hosts += 1
                if _HOST.fullmatch(value) is None:
                    raise _Refused("the request's Host is no name of a host")
            elif name == b"content-length":
                self._length = int(value)  # a single number: the parser ensures that
            elif name == b"transfer-encoding":
                transfers += 1
                if version == "1.0" or transfers > 1 or value.strip().lower() != b"chunked":
                    raise _Refused("the only Transfer-Encoding taken is chunked, once, with HTTP/1.1")
                self._is_chunked = True
        if hosts > 1 or (not hosts and version == "1.1"):
            raise _Refused("the request needs exactly one Host")

    def on_body(self, body: bytes) -> None:
        self._body_bytes += len(body)
        if not self.cycle.response_complete:
            self.cycle.take(body)

    def on_message_complete(self) -> None:
        if self._behind_upgrade:
            return  # the parser's end of message; the body is still to come
        self._within = False
        super().on_message_complete()
        self._in_head = True

    # uvicorn tells the client that it closes the connection, but does not.

    def send_400_response(self, msg: str) -> None:
        if self._answers_others():
            self._refuses_next = True
            return
        if self.cycle is not None and self.cycle.response_started and not self.cycle.response_complete:
            self.transport.abort()  # a second status line within an answer could be taken for a part of it
            return
        request_id = new_id()
        log.info("refused before it was a request", request_id=request_id, reason=self._refusal)
        refusal = BadRequest(self._refusal or "this is not well-formed HTTP")
        self._answer_at_once(b"400 Bad Request", refusal, request_id)

    def _answer_at_once(self, status: bytes, refusal: UploadError, request_id: str) -> None:
        """Refuse a request that the application never sees, and hang up."""
        answer = problem(refusal, request_id)
        headers = [
            *answer.raw_headers,
            (b"x-request-id", request_id.encode("ascii")),
            NOSNIFF,
            (b"connection", b"close"),
        ]
        head = b"".join(b"%b: %b\r\n" % header for header in [*self.server_state.default_headers, *headers])
        self.transport.write(b"HTTP/1.1 %b\r\n%b\r\n%b" % (status, head, bytes(answer.body)))
        self.transport.close()

    def _answers_others(self) -> bool:
        """Whether complete requests before it have yet to be answered, for whose answer a refusal would be taken."""
        if self.cycle is None or self.cycle.response_complete:
            return False
        if self.cycle.more_body and self.pipeline:
            self.pipeline.popleft()  # it was to be the next, and the malformed bytes are its own body
            return True
        return not self.cycle.more_body

    def on_response_complete(self) -> None:
        if self._refuses_next and not self.pipeline and not self.transport.is_closing():
            self.send_400_response("")
            return
        super().on_response_complete()
        if self._client_is_done and self.cycle.response_complete and not self._held:
            self.transport.close()
        elif self._held and self.pipeline:
            self.flow.pause_reading()
        elif self._held:
            self.loop.call_soon(self.data_received, b"")

    # Shutdown.

    def shutdown(self) -> None:
        """Answer pending requests. An idle connection is closed a little later, since a request may be on its way.

        Closed at once, it would be reset, and a client that has just connected, or was promised
        that the connection stays open, would get no answer to its request.
        """
        self._stops = True
        self.timeout_keep_alive = self.LAST_REQUEST_SECONDS
        if self.cycle is None or self.cycle.response_complete:
            self._unset_keepalive_if_required()
            self.timeout_keep_alive_task = self.loop.call_later(
                self.LAST_REQUEST_SECONDS, self.timeout_keep_alive_handler
            )
        elif not self.cycle.response_started:
            self.cycle.keep_alive = False

    # Flow control for a client that does not read.

    def pause_writing(self) -> None:
        super().pause_writing()
        self._stalled = self.loop.call_later(self.STALLED_SECONDS, self.transport.abort)

    def resume_writing(self) -> None:
        super().resume_writing()
        if self._stalled is not None:
            self._stalled.cancel()
            self._stalled = None
