"""Somebody on a raw socket who says whatever bytes he likes, and what becomes of it."""

import hashlib
import json
import socket
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from itertools import count
from typing import Any

import pytest

from tests.support.service import HISTORY, PATIENCE, UPLOADS, Service

CRLF = b"\r\n"
BOUNDARY = b"B"
FORM = b"multipart/form-data; boundary=" + BOUNDARY
_numbers = count(1)


@dataclass(frozen=True)
class Said:
    """One response. A header that came twice has both values, in their order."""

    status: int
    headers: dict[str, list[str]]
    body: bytes

    def __getitem__(self, name: str) -> str:
        [value] = self.headers[name]
        return value

    def json(self) -> Any:
        return json.loads(self.body)

    @property
    def code(self) -> str | None:
        """The problem's code, if it is a refusal; it is then all that a refusal must be."""
        if self.status < 400:
            return None
        assert self["content-type"] == "application/problem+json"
        problem = self.json()
        assert problem["status"] == self.status
        assert problem["request_id"] == self["x-request-id"]
        assert problem["type"].endswith(f":{problem['code']}") or problem["type"].startswith("https://iana.org/")
        return str(problem["code"])


def answers(received: bytes, *, to: str = "GET") -> list[Said]:
    """The responses in what was received: whole ones, and nothing else."""
    found = []
    while received:
        head, end, rest = received.partition(b"\r\n\r\n")
        assert end, f"half a head: {received[:200]!r}"
        start, *lines = head.decode("latin-1").split("\r\n")
        headers: dict[str, list[str]] = {}
        for line in lines:
            name, _, value = line.partition(":")
            headers.setdefault(name.lower(), []).append(value.strip())
        status = int(start.split()[1])
        bodiless = to == "HEAD" or status < 200 or status in (204, 304)
        length = 0 if bodiless else int(headers["content-length"][0])
        assert len(rest) >= length, f"half a body: {received[:200]!r}"
        found.append(Said(status, headers, rest[:length]))
        received = rest[length:]
    return found


class Visitor:
    """One client with a session of its own. `said_to` is a conversation; `kept` is what it left behind."""

    def __init__(self, running: Service) -> None:
        self.running = running
        self.before = kept_by(running)
        self._named = f"hostile-{next(_numbers)}"
        self._asked = 0
        self.session = {"Cookie": ""}
        self.session = {"Cookie": self.asked("POST /api/session", "Content-Length: 0")["set-cookie"].split(";")[0]}

    def head(self, start: str | bytes, *lines: str | bytes, close: bool = True, host: bool = True) -> bytes:
        """The head of a request with this session, these lines as they stand, and a name in the log."""
        self._asked += 1
        first = start.encode() if isinstance(start, str) else start
        fixed = [b"Host: x"] if host else []
        fixed += [f"Cookie: {self.session['Cookie']}".encode(), b"X-Request-Id: " + self.name.encode()]
        fixed += [b"Connection: close"] if close else []
        said = [line.encode() if isinstance(line, str) else line for line in lines]
        return CRLF.join([first + b" HTTP/1.1", *fixed, *said, b"", b""])

    @property
    def name(self) -> str:
        """The name of the last request, in its answer and in the log."""
        return f"{self._named}-{self._asked:03}"

    def put(self, *lines: str | bytes, name: str | bytes = "a.bin", close: bool = True) -> bytes:
        """The head of a PUT."""
        raw = name.encode() if isinstance(name, str) else name
        return self.head(f"PUT {UPLOADS}/".encode() + raw, *lines, close=close)

    def post(self, body: bytes, kind: bytes = FORM, *lines: str | bytes) -> bytes:
        """A whole POST."""
        return self.head(f"POST {UPLOADS}", b"Content-Type: " + kind, f"Content-Length: {len(body)}", *lines) + body

    def connect(self) -> socket.socket:
        return socket.create_connection(("127.0.0.1", self.running.port), timeout=PATIENCE)

    def said_to(self, *pieces: bytes, hang_up: bool = False, to: str = "GET") -> list[Said]:
        """Every response until the service ends the connection.

        Each piece is sent as it is, and is read by itself if the network will have it so. With
        `hang_up` the client ends its side after them and nothing is answered.
        """
        with self.connect() as connection:
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            with suppress(ConnectionResetError, BrokenPipeError):
                for piece in pieces:
                    connection.sendall(piece)
                if hang_up:
                    connection.shutdown(socket.SHUT_WR)
            return answers(rest(connection), to=to)

    def asked(self, start: str | bytes, *lines: str | bytes) -> Said:
        """The one answer to a request without a body."""
        method = (start if isinstance(start, str) else start.decode("latin-1")).split()[0]
        [said] = self.said_to(self.head(start, *lines), to=method)
        return said

    def history(self) -> list[tuple[str, str | None]]:
        """The status and the error code of all that this session sent, the oldest first."""
        said = self.asked(f"GET {HISTORY}?order=oldest&limit=500")
        assert said.status == 200
        return [(item["status"], item["error"] and item["error"]["code"]) for item in said.json()["items"]]

    def ended(self) -> dict[str, Any]:
        """The last request's line in the log, once it has ended."""
        return self.running.wait_for("answered", request_id=self.name)

    def left_nothing(self, *failed: str) -> None:
        """No byte in the store that was not there before, and no record but those of what failed so."""
        assert self.history() == [("failed", code) for code in failed]
        self.kept_nothing()

    def kept_nothing(self) -> None:
        assert kept_by(self.running) == self.before

    def left(self, *contents: bytes) -> None:
        """These files, whole, and nothing else."""
        new = kept_by(self.running) - self.before
        assert {(path.split("/")[0], digest) for path, digest in new} == {
            ("files", hashlib.sha256(content).hexdigest()) for content in contents
        }
        assert len(new) == len(contents)
        assert self.history() == [("completed", None)] * len(contents)


def kept_by(running: Service) -> set[tuple[str, str]]:
    """Every file of the store, under whatever name, and its digest."""
    return {
        (str(path.relative_to(running.store)), hashlib.sha256(path.read_bytes()).hexdigest())
        for place in ("files", "staging", "partial", "trash")
        for path in (running.store / place).rglob("*")
        if path.is_file() and path.name not in ("lock", "owner")
    }


def rest(connection: socket.socket) -> bytes:
    """All that still comes, up to the end of the connection."""
    received = bytearray()
    with suppress(ConnectionResetError):
        while block := connection.recv(65536):
            received += block
    return bytes(received)


def part(headers: bytes, content: bytes = b"hello") -> bytes:
    return b"--" + BOUNDARY + CRLF + headers + CRLF + CRLF + content + CRLF


def named(filename: bytes) -> bytes:
    """The header of a part that is a file of this name, the bytes as they stand."""
    return b'Content-Disposition: form-data; name="f"; filename="' + filename + b'"'


END = b"--" + BOUNDARY + b"--" + CRLF


def one_by_one(body: bytes) -> Iterable[bytes]:
    return (body[at : at + 1] for at in range(len(body)))


def cases(table: Mapping[str, Any]) -> list[Any]:
    """The rows of a table as parameters, each under its name."""
    return [pytest.param(*(row if isinstance(row, tuple) else (row,)), id=name) for name, row in table.items()]
