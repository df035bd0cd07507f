"""The load: load.c, compiled at first use and run on a core of its own."""

import json
import os
import subprocess
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final, NamedTuple

from bench import bodies
from bench.install import compiled
from bench.processes import Failed, last_line, start, stop

_HERE: Final = Path(__file__).parent
_DEADLINE_SECONDS: Final = 120
_BOUNDARY: Final = b"----BenchFormBoundary5b9e8a2f41c7d0Ae"  # as long as a browser's


@dataclass(frozen=True)
class Wire:
    """How one request is put: `head`, the file's bytes if there are any, `tail`.

    In a head %n is the file's number, %p a path, %c the cookie of the connection, %l the
    Location that the answer to `create`, a request sent first, has given. %s is the size
    of the file and %t that of the whole body; both are filled in here.
    """

    head: bytes
    tail: bytes = b""
    create: bytes = b""
    expect: int = 201

    def with_field(self, field: bytes) -> "Wire":
        """With one more header field in every request."""

        def add(text: bytes) -> bytes:
            line, end, rest = text.partition(b"\r\n")
            return line + end + field + end + rest

        return replace(self, head=add(self.head), create=add(self.create) if self.create else b"")

    def sized(self, size: int) -> "Wire":
        """With the lengths filled in for files of `size` bytes."""
        before = self.head.replace(b"%c", b"").partition(b"\r\n\r\n")[2].replace(b"%n", b"00000000")
        total = b"%d" % (len(before) + size + len(self.tail))

        def fill(text: bytes) -> bytes:
            return text.replace(b"%s", b"%d" % size).replace(b"%t", total)

        return replace(self, head=fill(self.head), create=fill(self.create))


def form(path: str, *, field: str = "file", before: str = "") -> Wire:
    """A form with one file, as a browser sends it; `before` is the text of parts that stand before it."""
    parts = before.replace("\n", "\r\n").encode() + (
        b"--%b\r\n" % _BOUNDARY
        + b'Content-Disposition: form-data; name="%b"; filename="%%n.bin"\r\n' % field.encode()
        + b"Content-Type: application/octet-stream\r\n\r\n"
    )
    return Wire(
        head=_head("POST", path, b"Content-Type: multipart/form-data; boundary=" + _BOUNDARY, b"Content-Length: %t")
        + parts,
        tail=b"\r\n--%b--\r\n" % _BOUNDARY,
    )


def form_field(name: str, value: str) -> str:
    """A plain field, for `before`."""
    return f'--{_BOUNDARY.decode()}\nContent-Disposition: form-data; name="{name}"\n\n{value}\n'


def put(path: str) -> Wire:
    """A PUT whose body is the file."""
    return Wire(head=_head("PUT", path, b"Content-Length: %t"))


def tus(path: str) -> Wire:
    """Creation with upload: tus 1.0.0 in one request."""
    return Wire(
        head=_head(
            "POST",
            path,
            b"Tus-Resumable: 1.0.0",
            b"Upload-Length: %s",
            b"Upload-Metadata: filename dXBsb2FkLmJpbg==",
            b"Content-Type: application/offset+octet-stream",
            b"Content-Length: %t",
        )
    )


def tus_in_two(path: str) -> Wire:
    """Creation, then all bytes in one PATCH: tus 1.0.0 as its clients mostly speak it."""
    return Wire(
        create=_head(
            "POST",
            path,
            b"Tus-Resumable: 1.0.0",
            b"Upload-Length: %s",
            b"Upload-Metadata: filename dXBsb2FkLmJpbg==",
            b"Content-Length: 0",
        ),
        head=_head(
            "PATCH",
            "%l",
            b"Tus-Resumable: 1.0.0",
            b"Upload-Offset: 0",
            b"Content-Type: application/offset+octet-stream",
            b"Content-Length: %t",
        ),
        expect=204,
    )


def draft(path: str) -> Wire:
    """All in one request as draft-ietf-httpbis-resumable-upload has it, from a client that hears the 104."""
    return Wire(
        head=_head(
            "PUT",
            path,
            b"Upload-Complete: ?1",
            b"Upload-Draft-Interop-Version: 6",
            b"Content-Type: application/octet-stream",
            b"Content-Length: %t",
        )
    )


def get(path: str, *fields: bytes) -> Wire:
    return Wire(head=_head("GET", path, *fields), expect=200)


def _head(method: str, path: str, *fields: bytes) -> bytes:
    lines = [f"{method} {path} HTTP/1.1".encode(), b"Host: 127.0.0.1", b"Accept: */*", *fields]
    return b"\r\n".join(lines) + b"\r\n%c\r\n"


class Outcome(NamedTuple):
    """What the load saw. Times of requests are from the first byte sent to the last byte of the answer."""

    completed: int
    failed: int
    unfinished: int
    seconds: float
    cpu_seconds: float
    p50_ms: float
    p90_ms: float
    p99_ms: float
    max_ms: float
    bytes_out: int
    bytes_in: int
    connects: int
    first_failure: str

    @property
    def trouble(self) -> str:
        """What went wrong, for people; empty when nothing did."""
        if self.failed or self.unfinished:
            first = f"; first: {self.first_failure}" if self.first_failure else ""
            return f"{self.failed} failed, {self.unfinished} unfinished of {self.asked}{first}"
        return ""

    @property
    def asked(self) -> int:
        return self.completed + self.failed + self.unfinished


Ending = Callable[[], Outcome]
"""Lets a load that runs beside another one come to its end, and tells what it saw."""


class Generator:
    """Makes load on `cores`. `scratch` is a directory for the texts that are sent."""

    def __init__(self, tools: Path, scratch: Path, cores: frozenset[int]) -> None:
        self._program = compiled(_HERE / "load.c", tools)
        self.sink = compiled(_HERE / "sink.c", tools)
        self._scratch = scratch
        self._cores = cores
        self._pool = scratch / "pool"
        self._pool.write_bytes(bodies.pool())

    def spread_over(self, cores: frozenset[int]) -> "Generator":
        """The same on other cores."""
        other = object.__new__(Generator)
        other.__dict__.update(self.__dict__, _cores=cores)
        return other

    def run(
        self,
        wire: Wire,
        port: int,
        *,
        requests: int,
        connections: int,
        size: int = 0,
        first: int = 0,
        paths: Sequence[str] = (),
        compare: bool = False,
    ) -> Outcome:
        """Send `requests` requests and wait for the answers.

        A request carries file `first`, `first` + 1 and so on, of `size` bytes. With `compare` the
        answers must be those files.
        """
        process = self._start(
            "run", wire, port, requests=requests, connections=connections, size=size, first=first, paths=paths,
            extra=["compare=1"] if compare else [],
        )  # fmt: skip
        return self._outcome(process, "run")

    @contextmanager
    def slow_clients(self, wire: Wire, port: int, *, count: int, size: int, first: int) -> Iterator[Ending]:
        """Inside the block `count` clients have sent half of a file each, and wait until the ending is called."""
        process = self._start(
            "slow", wire, port, requests=count, connections=count, size=size, first=first, extra=["slow=1"]
        )
        try:
            if _line(process) != "holding":
                raise Failed(f"slow clients could not be set up: {last_line(self._scratch / 'slow.log')}")
            yield lambda: self._outcome(process, "slow")
        finally:
            stop(process)

    @contextmanager
    def readers(self, wire: Wire, port: int, *, count: int, pause_ms: int) -> Iterator[Ending]:
        """Inside the block `count` clients ask again and again, each pausing between. Call the ending to stop them."""
        process = self._start(
            "readers", wire, port, requests=100_000, connections=count, extra=["until_eof=1", f"pause_ms={pause_ms}"]
        )
        try:
            yield lambda: self._outcome(process, "readers")
        finally:
            stop(process)

    def _start(
        self,
        name: str,
        wire: Wire,
        port: int,
        *,
        requests: int,
        connections: int,
        size: int = 0,
        first: int = 0,
        paths: Sequence[str] = (),
        extra: Sequence[str] = (),
    ) -> "subprocess.Popen[bytes]":
        sized = wire.sized(size)
        texts = {"head": sized.head, "tail": sized.tail}
        if sized.create:
            texts["create"] = sized.create
        if paths:
            texts["paths"] = "\n".join(paths).encode()
        for kind, text in texts.items():
            (self._scratch / f"{name}.{kind}").write_bytes(text)
        return start(
            [
                str(self._program), f"port={port}", f"requests={requests}", f"connections={connections}",
                f"size={size}", f"first={first}", f"expect={wire.expect}", f"deadline_s={_DEADLINE_SECONDS}",
                f"pool={self._pool}", *(f"{kind}={self._scratch}/{name}.{kind}" for kind in texts), *extra,
            ],
            self._cores,
            log=self._scratch / f"{name}.log",
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )  # fmt: skip

    def _outcome(self, process: "subprocess.Popen[bytes]", name: str) -> Outcome:
        said, _ = process.communicate(timeout=_DEADLINE_SECONDS + 10)  # closes its input, which ends one that waits
        if process.returncode:
            raise Failed(f"the load generator failed: {last_line(self._scratch / f'{name}.log')}")
        seen: dict[str, Any] = json.loads(said.splitlines()[-1])
        return Outcome(**seen)


def _line(process: "subprocess.Popen[bytes]") -> str:
    assert process.stdout is not None
    text = b""
    while not text.endswith(b"\n"):
        byte = os.read(process.stdout.fileno(), 1)
        if not byte:
            break
        text += byte
    return text.decode().strip()
