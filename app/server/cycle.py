"""The cycle of one request and its answer: uvicorn's, in fewer steps and copies."""

from collections.abc import Iterable
from typing import Any, Final

from uvicorn.protocols.http.flow_control import HIGH_WATER_LIMIT
from uvicorn.protocols.http.httptools_impl import STATUS_LINE, RequestResponseCycle

_TOGETHER_BYTES: Final = 64 * 1024
_NO_BODY: Final = {204, 304}
_INTERIM_PHRASES: Final = {104: b"Upload Resumption Supported"}
_CONTROLS: Final = bytes({*range(0x20), 0x7F} - set(b"\t"))


class Cycle(RequestResponseCycle):
    """uvicorn's cycle. A body is passed on in the blocks in which it arrived, without a copy.

    All bytes that arrived are passed on, even after the client has left: an upload can go on from there.
    The head of an answer is sent together with the first block of its body.
    """

    def __init__(self, **arguments: Any) -> None:
        super().__init__(**arguments)
        self._blocks: list[bytes] = []
        self._waiting = 0
        self._head = b""

    def take(self, block: bytes) -> None:
        """Take the next block of the body."""
        self._blocks.append(block)
        self._waiting += len(block)
        if self._waiting > HIGH_WATER_LIMIT:
            self.flow.pause_reading()
        self.message_event.set()

    def send_interim(self, status: int, headers: Iterable[tuple[bytes, bytes]]) -> None:
        """Write an interim response (RFC 9110 §15.2), unless the answer has begun or the client does not read."""
        if self.response_started or self.disconnected or self.flow.write_paused or self.transport.is_closing():
            return
        lines = b"".join(b"%b: %b\r\n" % header for header in headers)
        self.transport.write(b"HTTP/1.1 %d %b\r\n%b\r\n" % (status, _INTERIM_PHRASES.get(status, b""), lines))

    def _release_scope(self) -> None:
        """Release the scope, which `send_interim` would keep in a reference cycle."""
        self.scope.pop("extensions", None)

    async def receive(self) -> Any:
        if self.waiting_for_100_continue and not self.transport.is_closing():
            self.transport.write(b"HTTP/1.1 100 Continue\r\n\r\n")
            self.waiting_for_100_continue = False
        if not self.disconnected and not self.response_complete:
            if self.more_body:  # else each check whether the client is still there would read on
                self.flow.resume_reading()
            if not self._blocks:
                await self.message_event.wait()
            self.message_event.clear()
        if self.response_complete or (self.disconnected and not self._blocks):
            return {"type": "http.disconnect"}
        body = self._blocks[0] if len(self._blocks) == 1 else b"".join(self._blocks)
        self._blocks.clear()
        self._waiting = 0
        return {"type": "http.request", "body": body, "more_body": self.more_body}

    async def send(self, message: Any) -> None:
        if self.flow.write_paused and not self.disconnected:
            await self.flow.drain()
        if self.disconnected:
            self._release_scope()
            return
        kind = message["type"]
        if not self.response_started:
            if kind != "http.response.start":
                raise RuntimeError(f"an answer starts with http.response.start, not with {kind}")
            self._start(message["status"], message.get("headers", ()))
        elif self.response_complete or kind != "http.response.body":
            raise RuntimeError(f"{kind} is out of place")
        else:
            self._continue(message.get("body", b""), message.get("more_body", False))

    def _start(self, status: int, headers: Any) -> None:
        self.response_started = True
        self.waiting_for_100_continue = False
        lines = [STATUS_LINE[status]]
        closes = False
        for name, value in (*self.default_headers, *headers):
            lowered = name.lower()
            if lowered == b"content-length":
                self.expected_content_length = int(value)
                self.chunked_encoding = False
            elif lowered == b"connection" and value.lower() == b"close":
                self.keep_alive, closes = False, True
            lines.append(b"%b: %b\r\n" % (name, value))
        if not self.keep_alive and not closes:
            lines.append(b"connection: close\r\n")
        if self.chunked_encoding is None and self.scope["method"] != "HEAD" and status not in _NO_BODY:
            self.chunked_encoding = True
            lines.append(b"transfer-encoding: chunked\r\n")
        head = b"".join(lines)
        controls = len(head) - len(head.translate(None, _CONTROLS))
        if controls != 2 * len(lines) or head.count(b"\r\n") != len(lines):
            raise RuntimeError("a header of the answer holds what would end it")
        self._head = head + b"\r\n"

    def _continue(self, body: bytes, more_body: bool) -> None:
        if self.scope["method"] == "HEAD":
            self.expected_content_length = 0
            body = b""
        elif self.chunked_encoding:
            body = b"%x\r\n%b\r\n" % (len(body), body) if body else b""
            if not more_body:
                body += b"0\r\n\r\n"
        else:
            self.expected_content_length -= len(body)
            if self.expected_content_length < 0:
                raise RuntimeError("an answer is longer than its Content-Length")
        if self._head and len(body) <= _TOGETHER_BYTES:
            body = self._head + body
        elif self._head:
            self.transport.write(self._head)
        self._head = b""
        if body:
            self.transport.write(body)
        if not more_body:
            if self.expected_content_length:
                raise RuntimeError("an answer is shorter than its Content-Length")
            self.response_complete = True
            self._release_scope()
            self.message_event.set()
            if not self.keep_alive:
                self.transport.close()
            self.on_response()
