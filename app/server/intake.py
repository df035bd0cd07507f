"""The intake of a connection: its bytes, parsed into requests within bounds, as a server on the Internet needs.

Time and size of a head are bounded, and so is everything else that is not body. A long body bypasses the parser.
"""

import asyncio
from abc import ABC, abstractmethod

import httptools
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from app.server.cycle import Cycle
from app.server.heads import HeadRefused, framing


class _Body:
    """A parser's callbacks for the body of one message; further bytes are ignored."""

    def __init__(self, connection: "Intake") -> None:
        self._connection: Intake | None = connection

    def on_body(self, body: bytes) -> None:
        if self._connection is not None:
            self._connection.on_body(body)

    def on_message_complete(self) -> None:
        connection, self._connection = self._connection, None
        if connection is not None:
            connection.on_message_complete()


class Intake(HttpToolsProtocol, ABC):
    """uvicorn's parsing, bounded. A subclass answers: each complete head is handed to its `begin`.

    A head that is incomplete after `HEAD_SECONDS` ends the connection. `HEAD_FIELDS` and `HEAD_BYTES` bound
    a head, the latter also the bytes beside a body: trailers, and chunk extensions beyond `BESIDE_BODY` times
    the body. The rest of a body of known length bypasses the parser when it is more than `STRAIGHT_BYTES`.
    All else is parsed in pieces of `PIECE_BYTES`, and none while the requests of the piece before wait.
    """

    HEAD_SECONDS = 10.0
    HEAD_BYTES = 64 * 1024
    HEAD_FIELDS = 256
    BESIDE_BODY = 16
    STRAIGHT_BYTES = 64 * 1024
    PIECE_BYTES = 20 * 1024
    cycle: Cycle

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        # Of the message that is being parsed.
        self._in_head = True  # until its head is complete; also between two messages
        self._length: int | None = None  # of its body, as the head declares it
        self._is_chunked = False  # whether its body is framed by chunks
        self._body_bytes = 0  # received so far that are body
        self._other_bytes = 0  # received so far that are neither body nor, of a complete head, fields
        self._straight_bytes = 0  # of its body that have yet to come and bypass the parser
        self._upgrade_body = False  # whether the parser stopped at an offer to upgrade, before the body
        # Of the bytes.
        self._is_one_message = False  # whether the piece in the parser has belonged to one message so far
        self._held_bytes = b""  # received behind requests that wait for their answers, and not parsed yet
        self._head_timer: asyncio.TimerHandle | None = self._start_head_timer()  # runs while a head is awaited
        # Of the end.
        self._refusal: str | None = None  # the reason why the message is refused, for the client
        self._refuses_next = False  # once the answers before it are sent; nothing more is parsed
        self._client_is_done = False  # whether the client has closed its sending side and waits for answers

    @abstractmethod
    def begin(self) -> None:
        """Begin to answer the request whose head is complete."""

    def _start_head_timer(self) -> asyncio.TimerHandle:
        return self.loop.call_later(self.HEAD_SECONDS, self.transport.close)

    def data_received(self, data: bytes) -> None:
        if self._held_bytes:
            data, self._held_bytes = self._held_bytes + data, b""
        while data and not self._refuses_next and not self.transport.is_closing():
            if self.pipeline:  # a waiting request takes a hundred times its bytes
                self._held_bytes = data
                self.flow.pause_reading()
                return
            if self._straight_bytes:
                data = self._take_straight(data)
            else:
                self._parse(data[: self.PIECE_BYTES])
                data = data[self.PIECE_BYTES :]
        if self._client_is_done and not self._in_head:
            self.transport.close()  # the bytes that were held back end within a body

    def _parse(self, data: bytes) -> None:
        self._is_one_message = True
        body_bytes = self._body_bytes
        self._unset_keepalive_if_required()
        try:
            self.parser.feed_data(data)
        except httptools.HttpParserError:
            self.send_400_response("")
        except httptools.HttpParserUpgrade as stopped:
            if self._upgrade_body:
                self._go_on_without_upgrade(data[stopped.args[0] :])
        if self.transport.is_closing():
            return
        if self._is_one_message:  # all of them belong to one message
            if self._length is not None and self._length - self._body_bytes > self.STRAIGHT_BYTES:
                self._straight_bytes = self._length - self._body_bytes
            self._other_bytes += len(data) - (self._body_bytes - body_bytes)
            if self._other_bytes > self.HEAD_BYTES + self.BESIDE_BODY * self._body_bytes:
                self._refusal = f"more than {self.HEAD_BYTES} bytes of the request are neither file nor field"
                self.send_400_response("")
                return
        if self._in_head and self._head_timer is None and (self.cycle is None or self.cycle.response_complete):
            self._head_timer = self._start_head_timer()

    def _go_on_without_upgrade(self, rest: bytes) -> None:
        """Read the body of a request that offers an upgrade: the parser would take it for the other protocol's bytes.

        RFC 9110 §7.8 lets a server ignore the offer. A second parser is fed such a body, and nothing else.
        """
        self._upgrade_body = False
        self.parser = httptools.HttpRequestParser(_Body(self))
        length = b"Transfer-Encoding: chunked" if self._length is None else b"Content-Length: %d" % self._length
        self.parser.feed_data(b"POST / HTTP/1.1\r\n%b\r\n\r\n" % length)
        self._parse(rest)

    def _take_straight(self, data: bytes) -> bytes:
        """Pass on the rest of a long body directly, since the parser would copy it; return the bytes behind it."""
        count = min(len(data), self._straight_bytes)
        self._straight_bytes -= count
        if not self.cycle.response_complete:
            self.cycle.take(data[:count])
        if not self._straight_bytes:
            self.parser = httptools.HttpRequestParser(self)  # the old one still waits for the bytes that bypassed it
            self.parser.set_dangerous_leniencies(lenient_data_after_close=True)
            self.on_message_complete()
        return data[count:]

    # Callbacks of the parser, to which any exception of theirs means a malformed request.

    def on_message_begin(self) -> None:
        super().on_message_begin()
        self._in_head, self._is_one_message = True, False
        self._body_bytes = self._other_bytes = 0

    def on_header(self, name: bytes, value: bytes) -> None:
        if self._in_head:  # behind the body come trailers, which are ignored
            super().on_header(name, value)

    def on_headers_complete(self) -> None:
        self._in_head = self._is_one_message = False
        self._other_bytes = 0
        if self._head_timer is not None:
            self._head_timer.cancel()
            self._head_timer = None
        try:
            self._length, self._is_chunked = framing(
                self.parser.get_http_version(),
                self.url,
                self.headers,
                most_bytes=self.HEAD_BYTES,
                most_fields=self.HEAD_FIELDS,
            )
        except HeadRefused as refused:
            self._refusal = str(refused)
            raise
        self.begin()

    def on_body(self, body: bytes) -> None:
        self._body_bytes += len(body)
        if not self.cycle.response_complete:
            self.cycle.take(body)

    def on_message_complete(self) -> None:
        if self._upgrade_body:
            return  # the parser's end of message; the body is still to come
        self._is_one_message = False
        super().on_message_complete()
        self._in_head = True
