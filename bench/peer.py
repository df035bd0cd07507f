"""A server that is measured: how it is had, started and spoken to, and what it promises."""

import os
import sqlite3
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, Literal, NamedTuple

from bench import postgres, processes
from bench.generator import Wire
from bench.install import Need
from bench.machine import Cores
from bench.work import Work

NO: Final = "no"
_PATIENCE: Final = 30.0

Kind = Literal["upload", "download", "history"]


@dataclass(frozen=True)
class Place:
    """Where one server lives for one measurement: `home` is empty before, and on the data's file system."""

    home: Path
    port: int
    tools: Path
    database: postgres.Database | None = None

    @property
    def files(self) -> Path:
        """Where uploaded files end up."""
        return self.home / "files"


class Server(NamedTuple):
    """A running server; `pids` are the first processes of all that belongs to it, its own before a database's.

    It accepted connections `ready_seconds` after its start.
    """

    place: Place
    pids: tuple[int, ...]
    ready_seconds: float


Rows = Callable[[Place], Sequence[str | None]]
"""What the peer has recorded: the digest in each row, or None in each if it keeps none."""


@dataclass(frozen=True, kw_only=True)
class Peer:
    """One column of the comparison.

    `durable`, `digest` and `row` say what holds when the upload is answered. Where rows come
    later, what they cost belongs to the uploads all the same and is waited for. It takes part in
    `works` only, if some are named. Where files are not files on the disk, `reads_back` asks for one.
    `is_ready` says whether it takes uploads yet; without it, an open port does.
    """

    name: str
    title: str
    command: Callable[[Place], list[str]]
    wire: Wire
    needs: Sequence[Need] = ()
    environment: Callable[[Place], Mapping[str, str]] = field(default=lambda place: {})
    durable: str = NO
    digest: str = NO
    row: str = NO
    rows: Rows | None = None
    rows_come_later: bool = False
    sidecar: str | None = None
    cores: int = 1
    uses_postgresql: bool = False
    does: frozenset[Kind] = frozenset({"upload"})
    works: frozenset[str] = frozenset()
    reads_back: Wire | None = None
    is_ready: Callable[[Place], bool] = field(default=lambda place: True)

    def version(self, tools: Path) -> str:
        found = [need.version(tools) for need in self.needs]
        return "; ".join([*found, *([postgres.version()] if self.uses_postgresql else [])])

    def takes_part(self, work: Work) -> bool:
        wanted = not work.among or self.name in work.among
        return wanted and work.kind in self.does and (not self.works or work.name in self.works)

    @contextmanager
    def running(self, home: Path, tools: Path, given: Cores) -> Iterator[Server]:
        """The server on its cores, in `home`, where it finds what was laid there or what it left there before."""
        cores = given.for_server(self.cores)
        for directory in (home, home / "files", home / "tmp"):
            directory.mkdir(exist_ok=True)
        with ExitStack() as stack:
            database = stack.enter_context(postgres.running(home, cores)) if self.uses_postgresql else None
            place = Place(home, processes.free_port(), tools, database)
            pid, ready_seconds = stack.enter_context(
                processes.running(
                    self.command(place),
                    cores,
                    port=place.port,
                    log=home / "server.log",
                    # Spooled bodies belong on the measured disk too.
                    environment={"TMPDIR": str(home / "tmp"), **self.environment(place)},
                    directory=home,
                )
            )
            self._await_ready(place)
            yield Server(place, (pid, *([database.pid] if database else [])), ready_seconds)

    def _await_ready(self, place: Place) -> None:
        deadline = time.monotonic() + _PATIENCE
        while not self.is_ready(place):
            if time.monotonic() > deadline:
                raise processes.Failed(f"it took no upload within {_PATIENCE:.0f} s")
            time.sleep(0.1)

    def stored(self, place: Place) -> Iterator[Path]:
        """Every uploaded file; what the peer keeps beside it for itself is left out."""
        for directory, below, names in os.walk(place.files):
            below[:] = [name for name in below if not name.startswith(".")]
            for name in names:
                if self.sidecar is None or not name.endswith(self.sidecar):
                    yield Path(directory, name)


def column(database: Path, question: str) -> list[str | None]:
    """The first column of what an SQLite database answers."""
    with closing(sqlite3.connect(database)) as connection:
        return [value for (value,) in connection.execute(question)]
