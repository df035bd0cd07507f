"""H1: a page of history, filtered and not, in short and long histories; and while uploads go on."""

import json
import sqlite3
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final, NamedTuple

from bench import processes
from bench.client import Session, ask, new_session
from bench.generator import Generator, Wire, get
from bench.machine import KiB
from bench.measuring import Bench
from bench.peer import Peer, Place, Server
from bench.processes import Failed

_HERE: Final = Path(__file__).parent
_HISTORY: Final = "/api/ingestion/history"
_PAGE: Final = 50
_WARM_UP: Final = 200
READERS: Final = 64
PAUSE_MS: Final = 250
"""Each of the readers looks at a page so long before it asks for the next."""
_BEGAN: Final = int(time.time()) - 14 * 86_400
"""The time of the first row, so that all are of the last two weeks: what failed long ago is forgotten."""

PLAIN: Final = "newest page"
SCAN: Final = "substring that none has"
RARE_STATUS: Final = "status that 1 in 1,000 has"
RARE_DIGEST: Final = "digest that 1 in 1,000 has"
SUMMARY: Final = "summary"
_DIGEST: Final = f"f00d{0:060x}"


class Question(NamedTuple):
    """What is asked, and what must be true of each record on the page that comes, or of the summary."""

    query: str
    fits: Callable[[dict[str, Any]], bool] = lambda record: True
    whole_page: bool = True


QUESTIONS: Final = {
    PLAIN: Question(""),
    "a page from the middle": Question("?to=MIDDLE"),
    "status that nearly all have": Question("?status=deleted", lambda record: record["status"] == "deleted"),
    RARE_STATUS: Question("?status=failed", lambda record: record["status"] == "failed", False),
    RARE_DIGEST: Question(f"?sha256={_DIGEST}", lambda record: record["sha256"] == _DIGEST, False),
    "substring that 1 in 500 has": Question("?filename=needle", lambda record: "needle" in record["filename"], False),
    SCAN: Question("?filename=nowhere", lambda record: False, False),
    SUMMARY: Question("/summary", lambda summary: summary["uploads"] > 0, False),
}
DURING_UPLOADS: Final = f"newest page, {READERS} readers during W3"


class Sizes(NamedTuple):
    """How many rows in all, how often a question is asked, and how many uploads run beside the readers."""

    rows: Sequence[int]
    asked: int
    uploads: int


FULL: Final = Sizes((1_000, 100_000, 1_000_000), 100, 8_000)
QUICK: Final = Sizes((1_000, 100_000), 40, 2_000)


@dataclass
class PageTime:
    """One question asked many times over HTTP, of a session with `session_rows` of `rows` rows."""

    database: str
    rows: int
    session_rows: int
    question: str
    repeat: int
    failure: str = ""
    p50_ms: float = 0
    p99_ms: float = 0
    cpu_ms: float = 0
    ready_seconds: float = 0
    uploads_per_second: float = 0
    other_share: float = 0

    def told(self) -> str:
        where = f"{self.database}, {self.session_rows:,} of {self.rows:,} rows, {self.question}"
        return f"{where}: {self.failure or f'p50 {self.p50_ms:.2f} ms, p99 {self.p99_ms:.2f} ms'}"


def history(bench: Bench, peer: Peer, sizes: Sizes, repeats: int) -> Iterator[PageTime]:
    """Ask every question at every size; those who ask during uploads come last, at the largest size."""
    database = "PostgreSQL" if peer.uses_postgresql else "SQLite"
    for rows in sizes.rows:
        try:
            with bench.home() as home:
                with peer.running(home, bench.tools, bench.cores) as server:
                    sessions = [new_session(server.place.port) for _ in range(3)]
                    _seed(server.place, rows, sessions)
                with peer.running(home, bench.tools, bench.cores) as server:
                    yield from _ask_all(bench, server, database, rows, sessions, sizes, repeats)
                    if rows == max(sizes.rows):
                        yield from _during_uploads(bench, peer, server, database, rows, sessions[1], sizes, repeats)
        except (Failed, OSError, sqlite3.Error) as error:
            yield PageTime(database, rows, rows, PLAIN, 0, failure=str(error) or repr(error))


def _seed(place: Place, rows: int, sessions: Sequence[Session]) -> None:
    small, large, whole = (session.id for session in sessions)
    seed: dict[str, int | str] = {"rows": rows, "began": _BEGAN, "small": small, "large": large, "whole": whole}
    if place.database is not None:
        place.database.run_file(_HERE / "seed_postgresql.sql", **seed)
        return
    with closing(sqlite3.connect(place.home / "waybill.db", timeout=60)) as connection, connection:
        statement = (_HERE / "seed_sqlite.sql").read_text()
        connection.execute(statement, seed)


def _ask_all(bench: Bench, server: Server, database: str, rows: int, sessions: Sequence[Session], sizes: Sizes,
             repeats: int) -> Iterator[PageTime]:  # fmt: skip
    port = server.place.port
    asked: list[tuple[Session, int, Mapping[str, Question]]] = []
    for session in sessions:
        _, summary = ask(port, "GET", f"{_HISTORY}?count=true&limit=1", session.field)
        if total := _total(summary):
            asked.append((session, total, QUESTIONS if session != sessions[2] else {SUMMARY: QUESTIONS[SUMMARY]}))
    plain = get(_HISTORY, sessions[0].field)
    bench.generator.run(plain, port, requests=_WARM_UP, connections=1)  # so that the first question is not dearer
    for repeat in range(repeats):
        for session, session_rows, questions in asked:
            for name, question in questions.items():
                seen = PageTime(database, rows, session_rows, name, repeat, ready_seconds=server.ready_seconds)
                path = f"{_HISTORY}{question.query.replace('MIDDLE', _moment(rows // 2))}"
                _check(question, ask(port, "GET", path, session.field)[1])
                _measure(bench.generator, server, get(path, session.field), sizes.asked, seen)
                yield seen


def _check(question: Question, page: bytes) -> None:
    answer = json.loads(page)
    records = answer.get("items", [answer])
    if not all(question.fits(record) for record in records) or (question.whole_page and len(records) != _PAGE):
        raise Failed(f"a page with other records than were asked for by {question.query or 'nothing'}")


def _measure(generator: Generator, server: Server, wire: Wire, asked: int, seen: PageTime) -> None:
    generator.run(wire, server.place.port, requests=3, connections=1)
    busy, used = processes.machine_busy_seconds(), processes.cpu_seconds(*server.pids)
    outcome = generator.run(wire, server.place.port, requests=asked, connections=1)
    used = processes.cpu_seconds(*server.pids) - used
    busy = processes.machine_busy_seconds() - busy
    seen.cpu_ms = used / asked * 1000
    seen.other_share = max(0.0, busy - used - outcome.cpu_seconds) / outcome.seconds
    seen.p50_ms, seen.p99_ms, seen.failure = outcome.p50_ms, outcome.p99_ms, outcome.trouble


def _during_uploads(bench: Bench, peer: Peer, server: Server, database: str, rows: int, session: Session,
                    sizes: Sizes, repeats: int) -> Iterator[PageTime]:  # fmt: skip
    _, summary = ask(server.place.port, "GET", f"{_HISTORY}?count=true&limit=1", session.field)
    for repeat in range(repeats):
        seen = PageTime(database, rows, _total(summary), DURING_UPLOADS, repeat)
        with bench.generator.readers(
            get(_HISTORY, session.field), server.place.port, count=READERS, pause_ms=PAUSE_MS
        ) as let_finish:
            uploads = bench.generator.run(
                peer.wire, server.place.port,
                requests=sizes.uploads, connections=64, size=16 * KiB, first=repeat * sizes.uploads,
            )  # fmt: skip
            pages = let_finish()
        seen.p50_ms, seen.p99_ms = pages.p50_ms, pages.p99_ms
        seen.uploads_per_second = uploads.completed / uploads.seconds
        seen.failure = pages.trouble or uploads.trouble
        yield seen


def _total(page: bytes) -> int:
    return int(json.loads(page)["total"])


def _moment(second: int) -> str:
    """The time of the row that was seeded as number `second`."""
    return datetime.fromtimestamp(_BEGAN + second, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
