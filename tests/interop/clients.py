"""What real clients send, how one of them is run, and what must have come of it."""

import asyncio
import hashlib
import json
import queue
import random
import subprocess
import threading
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest

from app.resumables import WHOLE_BYTES
from tests.support.service import HISTORY, PATIENCE, Service
from tests.support.tools import tool

HERE = Path(__file__).parent
MIB = 1024 * 1024


# --- what is sent


@dataclass(frozen=True)
class Piece:
    """A file to send: a part of a larger one, so that all have contents of their own and none is made anew."""

    name: str
    path: Path
    start: int
    size: int

    @property
    def content(self) -> bytes:
        with self.path.open("rb") as file:
            file.seek(self.start)
            content = file.read(self.size)
        assert len(content) == self.size
        return content

    @property
    def sha256(self) -> str:
        return hashlib.sha256(self.content).hexdigest()


class Source:
    """Random bytes in a file, handed out in pieces."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._chance = random.Random(0)
        self._count = 0

    def piece(self, name: str, size: int) -> Piece:
        self._count += 1
        piece = Piece(name, self.path, self._count * 4099, size)
        missing = piece.start + size - (self.path.stat().st_size if self.path.exists() else 0)
        if missing > 0:
            with self.path.open("ab") as file:
                while missing > 0:
                    missing -= file.write(self._chance.randbytes(min(missing, 16 * MIB)))
        return piece


@pytest.fixture(scope="session")
def source(tmp_path_factory: pytest.TempPathFactory) -> Source:
    return Source(tmp_path_factory.mktemp("source") / "source.bin")


# --- tus-js-client


def node_modules() -> Path:
    """Where the clients in JavaScript are; the test is skipped where there are none."""
    tool("node")
    if not (HERE / "node_modules" / "tus-js-client").exists():
        pytest.skip("no tus-js-client (Debian: apt-get install npm; then: npm ci --prefix tests/interop)")
    return HERE / "node_modules"


@dataclass(frozen=True)
class Job:
    """One upload of tus-js-client; tus_client.mjs says what the fields mean."""

    piece: Piece
    options: Mapping[str, Any]
    stream: bool = False
    pause_at: int | None = None
    hang_up_at: int | None = None
    terminate: bool = False

    def as_json(self) -> dict[str, Any]:
        piece = self.piece
        told = {"id": piece.name, "path": str(piece.path), "start": piece.start, "size": piece.size}
        told |= {"stream": self.stream, "terminate": self.terminate, "options": self.options}
        found = {"pauseAt": self.pause_at, "hangUpAt": self.hang_up_at}
        return told | {name: value for name, value in found.items() if value is not None}


class TusJs:
    """tus-js-client in a process of its own, which ends with its uploads; use it as a context manager."""

    def __init__(self, jobs: Iterable[Job], *, together: int = 4) -> None:
        node_modules()
        self.news: queue.Queue[dict[str, Any] | None] = queue.Queue()
        self._process = subprocess.Popen(
            [tool("node"), HERE / "tus_client.mjs"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        self._reader = threading.Thread(target=self._read)
        self._reader.start()
        self._say({"uploads": [job.as_json() for job in jobs], "together": together})

    def __enter__(self) -> "TusJs":
        return self

    def __exit__(self, *_: object) -> None:
        self._process.kill()
        self._process.wait()
        self._reader.join()
        for pipe in (self._process.stdin, self._process.stdout):
            assert pipe is not None
            pipe.close()

    def _read(self) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            self.news.put(json.loads(line))
        self.news.put(None)

    def _say(self, told: Mapping[str, Any]) -> None:
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(told) + "\n")
        self._process.stdin.flush()

    def wait_for(self, event: str) -> dict[str, Any]:
        while (news := self.news.get(timeout=PATIENCE)) is not None:
            assert news["event"] != "failed", news
            if news["event"] == event:
                return news
        raise AssertionError(f"it ended without {event!r}")

    def go(self, piece: Piece) -> None:
        self._say({"go": piece.name})

    def ends(self) -> dict[str, dict[str, Any]]:
        """Every upload's last event, by its name, once all have ended."""
        found = {}
        while (news := self.news.get(timeout=PATIENCE)) is not None:
            found[news["id"]] = news
        assert self._process.wait(PATIENCE) == 0
        return found


def all_done(jobs: Iterable[Job], *, together: int = 4) -> dict[str, dict[str, Any]]:
    """Let tus-js-client do these, each of them to its good end."""
    jobs = list(jobs)
    with TusJs(jobs, together=together) as client:
        ends = client.ends()
    assert {name: end for name, end in ends.items() if end["event"] != "done"} == {}
    assert ends.keys() == {job.piece.name for job in jobs}
    return ends


# --- what came of it


def everything(client: httpx.Client) -> list[dict[str, Any]]:
    """All records of the session, over all pages."""
    items, page = [], client.get(HISTORY, params={"limit": 500})
    while True:
        assert page.status_code == 200
        items += page.json()["items"]
        if "next" not in page.links:
            return items
        page = client.get(page.links["next"]["url"])


def have_landed(client: httpx.Client, pieces: Iterable[Piece], protocol: str) -> list[dict[str, Any]]:
    """Every piece is in the session's history once, and its bytes are what was sent. Returns their records."""
    listed = [item for item in everything(client) if item["status"] == "completed"]
    landed = []
    for piece in pieces:
        [record] = [item for item in listed if item["filename"] == piece.name]
        assert record["size"] == piece.size
        # A small file that a draft sends in one request lands as an ordinary upload.
        as_raw = protocol == "resumable" and piece.size <= WHOLE_BYTES
        assert record["protocol"] in {protocol, *(["raw"] if as_raw else [])}
        assert record["sha256"] == piece.sha256
        received = hashlib.sha256()
        with client.stream("GET", record["links"]["content"]) as answer:
            assert answer.status_code == 200
            for block in answer.iter_raw():
                received.update(block)
        assert received.hexdigest() == piece.sha256
        landed.append(record)
    return landed


class Growth:
    """Bytes of unfinished uploads that were not there when this was made."""

    def __init__(self, running: Service) -> None:
        self._directory = running.store / "partial"
        self._others = set(self._directory.rglob("*.*"))

    def __call__(self) -> int:
        return sum(file.stat().st_size for file in set(self._directory.rglob("*.*")) - self._others)


async def in_threads(deeds: Iterable[Any], *, together: int) -> None:
    """Run these functions, that many at once, and raise what the first of them raised."""
    left = iter(deeds)

    async def lane() -> None:
        for deed in left:
            await asyncio.to_thread(deed)

    async with asyncio.TaskGroup() as group:
        for _ in range(together):
            group.create_task(lane())
