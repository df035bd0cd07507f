"""A client that sends by any of the ways in, and what the service has left of it afterwards."""

import base64
import hashlib
import os
import socket
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, Self

import httpx
import psutil

from tests.hostile.wire import Said, answers, rest
from tests.support.sender import TUS
from tests.support.service import HISTORY, PATIENCE, UPLOADS, Service

KIB, MIB = 1024, 1024 * 1024
WAYS = ("form", "raw", "tus")
READY = "/health/ready"
_BOUNDARY = "a-boundary-that-no-content-holds"
FORM = {"Content-Type": f"multipart/form-data; boundary={_BOUNDARY}"}
CHUNK = {"Content-Type": "application/offset+octet-stream"}


def content_of(size: int, seed: int = 0) -> bytes:
    """Bytes that differ from block to block and from seed to seed."""
    return hashlib.shake_128(seed.to_bytes(4, "big")).digest(size)


def form_of(*contents: bytes) -> bytes:
    """A form with these files, named by their numbers."""
    parts = [
        f'--{_BOUNDARY}\r\nContent-Disposition: form-data; name="f"; filename="{number}.bin"\r\n\r\n'.encode()
        + content
        + b"\r\n"
        for number, content in enumerate(contents)
    ]
    return b"".join([*parts, f"--{_BOUNDARY}--\r\n".encode()])


def chunks(body: bytes) -> Iterator[bytes]:
    """The body in pieces: sent so, its length is not told."""
    for at in range(0, len(body), 64 * KIB):
        yield body[at : at + 64 * KIB]


def is_success(answer: httpx.Response) -> bool:
    return answer.status_code in (201, 204)


class Guest:
    """One session at a service. What was acknowledged is remembered and can be looked for."""

    def __init__(self, running: Service) -> None:
        self.running = running
        self.session = running.session()
        self.acknowledged: dict[str, str] = {}
        """Digests by the ids of the records."""

    def client(self) -> httpx.Client:
        return self.running.client(headers=self.session)

    def send(self, way: str, content: bytes, *, declared: bool = True) -> httpx.Response:
        """One upload; the last answer to it. If it is not `declared` its length is not told before its end."""
        with self.client() as client:
            if way == "form":
                answer = client.post(UPLOADS, content=_body(form_of(content), declared), headers=FORM)
            elif way == "raw":
                answer = client.put(f"{UPLOADS}/a.bin", content=_body(content, declared))
            else:
                answer = self._send_tus(client, content, declared)
        if is_success(answer):
            self._remember(way, answer, content)
        return answer

    def _send_tus(self, client: httpx.Client, content: bytes, declared: bool) -> httpx.Response:
        length = {"Upload-Length": str(len(content))} if declared else {"Upload-Defer-Length": "1"}
        name = {"Upload-Metadata": f"filename {base64.b64encode(b'a.bin').decode()}"}
        made = client.post(UPLOADS, headers=TUS | length | name)
        if made.status_code != 201:
            return made
        return self.append(made.headers["location"], content, declared=declared)

    def append(self, url: str, content: bytes, offset: int = 0, *, declared: bool = True) -> httpx.Response:
        """One PATCH, which brings all that is missing."""
        with self.client() as client:
            headers = TUS | CHUNK | {"Upload-Offset": str(offset)}
            return client.patch(url, headers=headers, content=_body(content[offset:], declared))

    def send_form(self, *contents: bytes) -> httpx.Response:
        """A form with several files."""
        with self.client() as client:
            answer = client.post(UPLOADS, content=form_of(*contents), headers=FORM)
        if answer.status_code == 201:
            for item, content in zip(answer.json()["items"], contents, strict=True):
                self.acknowledge(item, content)
        return answer

    def _remember(self, way: str, answer: httpx.Response, content: bytes) -> None:
        if way == "tus":
            assert int(answer.headers["upload-offset"]) == len(content)
            with self.client() as client:
                item = client.get(answer.headers["link"].partition(">")[0][1:]).json()
        else:
            item = answer.json() if way == "raw" else answer.json()["items"][0]
        self.acknowledge(item, content)

    def acknowledge(self, item: dict[str, Any], content: bytes) -> None:
        digest = hashlib.sha256(content).hexdigest()
        assert (item["status"], item["size"], item["sha256"]) == ("completed", len(content), digest)
        self.acknowledged[item["id"]] = digest

    def get(self, path: str) -> httpx.Response:
        with self.client() as client:
            return client.get(path)

    def delete(self, upload_id: str) -> httpx.Response:
        with self.client() as client:
            answer = client.delete(f"/api/ingestion/files/{upload_id}")
        if answer.status_code == 204:
            del self.acknowledged[upload_id]
        return answer

    def history(self) -> list[dict[str, Any]]:
        """All records, the oldest first."""
        items: list[dict[str, Any]] = self.get(f"{HISTORY}?order=oldest&limit=500").json()["items"]
        return items

    def finds_all(self) -> None:
        """What was acknowledged is there, whole, and nothing else is visible: not in the history, not on the disk."""
        completed = {item["id"]: item["sha256"] for item in self.history() if item["status"] == "completed"}
        assert completed == self.acknowledged
        files = {path.name: path for path in (self.running.store / "files").glob("*/*")}
        assert files.keys() == completed.keys()
        with self.client() as client:
            for upload_id, digest in completed.items():
                served = client.get(f"/api/ingestion/files/{upload_id}")
                assert hashlib.sha256(served.content).hexdigest() == digest

    def goes_on(self, *ways: str) -> None:
        """Uploads land again, small and large."""
        for way in ways or WAYS:
            for size in (10, 300 * KIB):
                answer = self.send(way, content_of(size, seed=len(self.acknowledged)))
                assert is_success(answer), answer.text
        self.finds_all()


class Halfway:
    """An upload whose head is sent, and as much of its body as a test wants; end it with a context manager."""

    def __init__(
        self, guest: Guest, size: int, *, start: str = f"PUT {UPLOADS}/a.bin", headers: Mapping[str, str] | None = None
    ) -> None:
        self._guest = guest
        self._connection = socket.create_connection(("127.0.0.1", guest.running.port), PATIENCE)
        fields = {"Host": "x", "Connection": "close", **guest.session, **(headers or {})}
        head = [f"{start} HTTP/1.1", *(f"{name}: {value}" for name, value in fields.items())]
        self._connection.sendall("\r\n".join([*head, f"Content-Length: {size}", "", ""]).encode())
        self._content = content_of(size, size)
        self._sent = 0

    def send(self, count: int) -> None:
        """The next bytes."""
        self._connection.sendall(self._content[self._sent : self._sent + count])
        self._sent += count

    def staged(self) -> Path:
        """The file in which its bytes lie, once all that was sent, but for the last block, is there."""
        found: list[Path] = []

        def there() -> bool:
            found[:] = (self._guest.running.store / "staging").glob("*/*")
            return len(found) == 1 and found[0].stat().st_size >= self._sent // MIB * MIB

        eventually(there)
        return found[0]

    def answer(self) -> Said:
        """The answer to all of it, as the one on this connection."""
        with suppress(BrokenPipeError, ConnectionResetError):  # an early answer
            self.send(len(self._content) - self._sent)
        return self.said()

    def said(self) -> Said:
        """The one answer, to what was sent so far."""
        [said] = answers(rest(self._connection))
        if said.status == 201:
            self._guest.acknowledge(said.json(), self._content)
        return said

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._connection.close()


def _body(content: bytes, declared: bool) -> bytes | Iterator[bytes]:
    return content if declared else chunks(content)


# --- what is left


def figures(running: Service) -> dict[str, float]:
    with running.client() as client:
        lines = client.get("/metrics").text.splitlines()
    return {name: float(value) for name, value in (line.rsplit(" ", 1) for line in lines if not line.startswith("#"))}


def eventually(so: Callable[[], bool], otherwise: Callable[[], object] = lambda: "") -> None:
    """Wait for something in another process of which no event tells."""
    deadline = time.monotonic() + PATIENCE
    while not so():
        assert time.monotonic() < deadline, otherwise()
        time.sleep(0.02)


def open_now(running: Service) -> list[str]:
    """What the service has open, its database aside; connections of clients by that name.

    Nor does `/` count: libuv opens it when descriptors run out, to have one to give up the next time.
    """
    found = []
    for number in os.listdir(f"/proc/{running.pid}/fd"):
        with suppress(FileNotFoundError):  # closed meanwhile
            found.append(os.readlink(f"/proc/{running.pid}/fd/{number}"))
    connections = psutil.Process(running.pid).net_connections("tcp")
    clients = ["client" for each in connections if each.laddr.port == running.port and each.raddr]
    return sorted(
        clients
        + [name for name in found if "waybill.db" not in name and not name.startswith("socket:") and name != "/"]
    )


class Baseline:
    """What a service has when nothing is under way; `is_back` waits for all of that to be so again."""

    def __init__(self, running: Service) -> None:
        self._running = running
        eventually(self._is_quiet)
        self._open = Counter(open_now(running))

    def is_back(self, *, partials: int = 0) -> None:
        """No byte and no file is staged, nobody is under way, every connection is free; so many partial files stay."""
        eventually(self._is_quiet)
        eventually(lambda: not self._opened(), self._opened)
        store = self._running.store
        assert [path for path in (store / "staging").glob("*/*") if path.is_file()] == []
        assert len(list((store / "partial").iterdir())) == partials

    def _opened(self) -> Counter[str]:
        """What is open now and was not, or not so often; a scrub that began meanwhile holds its lock."""
        now = Counter(path for path in open_now(self._running) if not path.endswith("/scrub.lock"))
        return now - self._open

    def _is_quiet(self) -> bool:
        found = figures(self._running)
        nothing = found["waybill_staged_bytes"] == found["waybill_live_uploads"] == 0
        return nothing and found["waybill_database_slots"] == found["waybill_database_slots_free"]
