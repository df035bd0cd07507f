"""The service as its users run it: `waybill serve` in a process of its own, on a real socket.

    def test_something(service):
        running = service(database_url=url, workers=2)
        assert running.curl(...)

What it logs is read as it comes, so a test waits for an event and never for a time.
"""

import asyncio
import json
import os
import re
import signal
import subprocess
import sys
import threading
from collections.abc import AsyncIterable, Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack, closing, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httpx
import psutil
import pytest

from tests.support.seed import Grown, Seed

PATIENCE = 60.0  # seconds; a bound for a machine under load, not a measure
UPLOADS = "/api/ingestion/uploads"
HISTORY = "/api/ingestion/history"
ROOT = Path(__file__).parents[2]
COMMAND = [sys.executable, "-m", "app"]


def environment(directory: Path, **settings: object) -> dict[str, str]:
    """An environment in which these settings stand, by their lower-case names, and no others."""
    place = {} if "listen" in settings else {"port": 0}
    given = {"min_free_space": 0, "log_format": "json", **place, **settings}
    ours = {f"WAYBILL_{name.upper()}": str(value) for name, value in given.items()}
    # The code beside these tests is run, whatever is installed.
    return {"PATH": os.environ.get("PATH", os.defpath), "HOME": str(directory), "PYTHONPATH": str(ROOT), **ours}


def changed(change: str, *arguments: str) -> list[str]:
    """The command, run in a process in which `change` was run before."""
    if not change:
        return [*COMMAND, *arguments]
    return [sys.executable, "-c", f"{change}\nfrom app.cli import main\nmain({list(arguments)!r})"]


class Service:
    """`waybill serve` in `directory`. Every method returns when the deed is done; no process outlives `close`.

    `change` is Python that runs in its process first, to shorten a time that would be waited for. One that is started
    over and over grows from a `seed`.
    """

    def __init__(self, directory: Path, *, change: str = "", seed: Seed | None = None, **settings: object) -> None:
        self.directory = directory
        self.change = change
        self.seed = seed
        self.store = Path(str(settings.get("storage_dir", directory / "waybill-data")))
        self.settings = settings
        self.lines: list[str] = []
        self.events: list[dict[str, Any]] = []
        self.url = ""
        self._process: subprocess.Popen[bytes] | Grown | None = None
        self._children: list[psutil.Process] = []
        self._news = threading.Condition()
        self._reader = threading.Thread()
        self._said_all = False

    # --- its life

    def start(self) -> "Service":
        """Start it, or start it again where it was, and return when it takes requests."""
        self.launch()
        workers = int(str(self.settings.get("workers", 1)))
        running = self.wait_for("Uvicorn running on")
        self.url = running["event"].split()[3]
        self.wait_for("Application startup complete.", count=workers)
        if workers > 1:
            self.look_for_workers()
        while True:  # workers say that they are complete a moment before they listen
            with suppress(httpx.ConnectError):
                assert httpx.get(f"{self.url}/health/live").status_code == 200
                return self

    def launch(self) -> None:
        """Start it and do not wait."""
        assert self._process is None
        self.directory.mkdir(parents=True, exist_ok=True)
        self.lines, self.events, self._said_all, self._children = [], [], False, []
        variables = environment(self.directory, **self.settings)
        if self.seed is None:
            self._process = subprocess.Popen(
                changed(self.change, "serve"),
                cwd=self.directory,
                env=variables,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.PIPE,
            )
        else:
            self._process = self.seed.grow(self.directory, variables)
        self._reader = threading.Thread(target=self._read, args=[self._process], daemon=True)
        self._reader.start()

    def _read(self, process: "subprocess.Popen[bytes] | Grown") -> None:
        assert process.stderr is not None
        for line in process.stderr:
            text = line.decode(errors="replace")
            with self._news:
                self.lines.append(text)
                self.events.append(_event(text))
                self._news.notify_all()
        with self._news:
            self._said_all = True
            self._news.notify_all()

    @property
    def pid(self) -> int:
        assert self._process is not None
        return self._process.pid

    @property
    def pids(self) -> list[int]:
        """The processes that serve: the one, or the workers."""
        return [child.pid for child in self._workers()] or [self.pid]

    def look_for_workers(self) -> None:
        """Learn anew which processes serve: one may have been replaced."""
        children = psutil.Process(self.pid).children()
        self._children = [child for child in children if child.status() != psutil.STATUS_ZOMBIE]

    def _workers(self) -> list[psutil.Process]:
        # Beside the workers a parent has a process that tracks what they share.
        return [child for child in self._children if "resource_tracker" not in " ".join(child.cmdline())]

    def send(self, number: signal.Signals) -> None:
        assert self._process is not None
        self._process.send_signal(number)

    def stop(self, number: signal.Signals = signal.SIGTERM) -> int:
        """Ask it to end, as an operator does; the exit status."""
        self.send(number)
        return self.wait()

    @property
    def ended(self) -> bool:
        """Whether it has ended, and nobody has asked it to by these methods."""
        return self._process is not None and self._process.poll() is not None

    def wait(self) -> int:
        """The exit status, once it has ended and all that it said is read."""
        assert self._process is not None
        status = self._process.wait(PATIENCE)
        self._reader.join(PATIENCE)
        assert self._process.stderr is not None
        self._process.stderr.close()
        self._process = None
        return status

    def kill(self) -> None:
        """End every process of it where it stands."""
        for child in self._children:
            with suppress(psutil.NoSuchProcess):
                child.kill()
        self.send(signal.SIGKILL)
        self.wait()
        psutil.wait_procs(self._children, PATIENCE)

    def close(self) -> None:
        if self._process is not None:
            with suppress(psutil.NoSuchProcess):
                self._children += psutil.Process(self.pid).children(recursive=True)
            self.kill()

    def memory(self) -> int:
        """Bytes of memory that its processes have now."""
        return sum(psutil.Process(pid).memory_info().rss for pid in self.pids)

    def open_files(self) -> list[Path]:
        return [Path(file.path) for pid in self.pids for file in psutil.Process(pid).open_files()]

    # --- what it says

    def wait_for(self, event: str, *, count: int = 1, **fields: object) -> dict[str, Any]:
        """The `count`-th event since the start that begins so and has these fields, once it has happened."""
        found: list[dict[str, Any]] = []

        def meant(one: dict[str, Any]) -> bool:
            return str(one["event"]).startswith(event) and one.items() >= fields.items()

        def happened() -> bool:
            found[:] = filter(meant, self.events)
            return len(found) >= count or self._said_all

        with self._news:
            assert self._news.wait_for(happened, PATIENCE), f"no {event!r} among {self.events}"
        assert len(found) >= count, f"it ended without {event!r}: {self.events}"
        return found[count - 1]

    def said(self, level: str) -> list[str]:
        return [str(event["event"]) for event in self.events if event.get("level") == level]

    # --- being asked

    @property
    def port(self) -> int:
        port = urlsplit(self.url).port
        assert port is not None
        return port

    def client(self, **options: Any) -> httpx.Client:
        """A client that keeps cookies; use it as a context manager."""
        return httpx.Client(base_url=self.url, timeout=PATIENCE, trust_env=False, **options)

    def metric(self, family: str) -> float:
        """What /metrics says of a family, over all its labels."""
        text = httpx.get(f"{self.url}/metrics", trust_env=False).text
        lines = [line for line in text.splitlines() if line.startswith((f"{family} ", f"{family}{{"))]
        return sum(float(line.rpartition(" ")[2]) for line in lines)

    def session(self) -> dict[str, str]:
        """The headers of a new session."""
        with self.client() as client:
            answer = client.post("/api/session")
            assert answer.status_code == 200
            return {"Cookie": f"waybill_session={answer.cookies['waybill_session']}"}


def _event(line: str) -> dict[str, Any]:
    """A line of either format as an event; of a text, without its fields."""
    if line.startswith("{"):
        found: dict[str, Any] = json.loads(line)
        return found
    match = re.match(r"\S+Z (\w+) +(.*)", line)
    return {"level": match[1], "event": match[2]} if match else {"level": "none", "event": line.rstrip("\n")}


@pytest.fixture
def seed(tmp_path: Path) -> Iterator[Seed]:
    with closing(Seed(environment(tmp_path))) as seed:
        yield seed


@pytest.fixture
def service(tmp_path: Path) -> Iterator[Callable[..., Service]]:
    """`service(**settings)` runs one, in a directory of its own."""
    with ExitStack() as started:

        def run(**settings: Any) -> Service:
            made = Service(tmp_path / f"service-{len(list(tmp_path.glob('service-*')))}", **settings)
            return started.enter_context(closing(made)).start()

        yield run


# --- many clients at once, each a socket


@dataclass(frozen=True)
class Answer:
    status: int
    headers: Mapping[str, str]
    body: bytes

    def json(self) -> Any:
        return json.loads(self.body)


class Cut(Exception):
    """The connection ended before the answer did."""


async def ask(
    port: int,
    method: str,
    path: str,
    headers: Mapping[str, str] | None = None,
    body: bytes | Iterable[bytes] | AsyncIterable[bytes] = b"",
    *,
    length: int | None = None,
) -> Answer:
    """One request on a connection of its own. Raises Cut, whoever hung up and when."""
    length = len(body) if isinstance(body, bytes) else length
    head = {"Host": f"127.0.0.1:{port}", "Connection": "close", "Content-Length": str(length), **(headers or {})}
    lines = "".join(f"{name}: {value}\r\n" for name, value in head.items())
    writer = None
    try:
        async with asyncio.timeout(PATIENCE):
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            writer.write(f"{method} {path} HTTP/1.1\r\n{lines}\r\n".encode())
            async for piece in _pieces(body):
                writer.write(piece)
                await writer.drain()
            start, *fields = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")
            found = {name.lower(): value.strip() for name, _, value in (field.partition(":") for field in fields)}
            follows = method != "HEAD" and "content-length" in found
            rest = await reader.readexactly(int(found["content-length"])) if follows else b""
    except (OSError, asyncio.IncompleteReadError) as error:
        raise Cut(f"{method} {path}: {error!r}") from error
    finally:
        if writer is not None:
            writer.close()
    return Answer(int(start.split()[1]), found, rest)


async def _pieces(body: bytes | Iterable[bytes] | AsyncIterable[bytes]) -> AsyncIterable[bytes]:
    if isinstance(body, bytes):
        yield body
    elif isinstance(body, AsyncIterable):
        async for piece in body:
            yield piece
    else:
        for piece in body:
            yield piece
