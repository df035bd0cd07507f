"""What Waybill is meant to reach beside its peers, each line checked against one run."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final, NamedTuple

from bench import history
from bench.peers import BASELINE
from bench.results import Figure, Results

_RATE: Final = "requests_per_second"
_SPEED: Final = "mib_per_second"


@dataclass(frozen=True)
class Aim:
    """A figure of `peer` at `work`, by itself or as a ratio to one of `beside`, that is to lie in a range."""

    work: str
    name: str
    text: str
    at_least: float | None = None
    at_most: float | None = None
    peer: str = BASELINE
    beside: tuple[str, str] | None = None


class Verdict(NamedTuple):
    work: str
    text: str
    wanted: str
    value: float
    holds: bool


def _speed(work: str, text: str, at_least: float, peer: str) -> Aim:
    return Aim(work, _RATE, text, at_least=at_least, beside=(work, peer))


AIMS: Final = (
    *(
        aim
        for work in ("W1", "W2")
        for aim in (
            _speed(work, "speed beside nginx, stock", 1.8, "nginx"),
            _speed(work, "speed beside aiohttp, streamed", 1.0, "aiohttp"),
            _speed(work, "speed beside nginx with a 1 MiB buffer", 0.8, "nginx-1m"),
            Aim(work, "cpu_seconds_per_gib", "server CPU, s/GiB", at_most=1.2),
            Aim(work, "peak_rss_mib", "peak RSS, MiB", at_most=120),
        )
    ),
    Aim("W3", _RATE, "uploads a second", at_least=4000),
    Aim("W3", "cpu_ms_per_request", "server CPU, ms each", at_most=0.25),
    _speed("W3", "rate beside aiohttp", 1.0, "aiohttp"),
    _speed("W3", "rate beside @tus/server", 5.0, "tus-node"),
    _speed("W3", "rate beside copyparty", 2.0, "copyparty"),
    _speed("W4", "rate beside nginx, stock", 1.3, "nginx"),
    Aim("W5", _RATE, "rate beside its own W3", at_least=0.95, beside=("W3", BASELINE)),
    Aim("W5", "p99_ms", "p99 beside its own W3's", at_most=2.0, beside=("W3", BASELINE)),
    Aim("W5", "peak_rss_mib", "peak RSS with the slow clients, MiB", at_most=150),
    Aim("W3", _RATE, "two workers beside one", at_least=1.7, peer="waybill-2", beside=("W3", BASELINE)),
    *(
        Aim(work, _RATE, "DURABILITY=fast beside full", at_most=1.3, peer="waybill-fast", beside=(work, BASELINE))
        for work in ("W1", "W2", "W3", "W4")
    ),
    *(
        Aim(work, _RATE, "PostgreSQL beside SQLite", at_least=0.8, peer="waybill-pg", beside=(work, BASELINE))
        for work in ("W1", "W2", "W3", "W4", "W5")
    ),
    *(
        _speed(work, "downloads beside Starlette's FileResponse", 2.0, "starlette-files")
        for work in ("D1 large", "D1 small")
    ),
)


def verdicts(results: Results) -> Iterator[Verdict]:
    """Every aim for which the run has figures."""
    for aim in AIMS:
        if aim.beside is not None:
            value = results.ratio(aim.name, (aim.work, aim.peer), aim.beside)
        else:
            value = _median(results.figure(aim.work, aim.peer, aim.name))
        if value is not None:
            yield _judge(aim.work, aim.text, value, aim.at_least, aim.at_most)
    for database in dict.fromkeys(page.database for page in results.pages):
        yield from _of_history(results, database)


def _of_history(results: Results, database: str) -> Iterator[Verdict]:
    shapes = {(page.rows, page.session_rows) for page in results.pages if page.database == database}
    smallest, largest = min(shapes), max(shapes)
    few = _median(results.page(database, *smallest, history.PLAIN, "cpu_ms"))
    many = _median(results.page(database, *largest, history.PLAIN, "cpu_ms"))
    if few and many and smallest != largest:
        text = f"{database}: CPU of a page of {largest[1]:,} among {largest[0]:,} rows beside one of {smallest[1]:,}"
        yield _judge("H1", text, many / few, None, 1.5)
    reading = _median(results.page(database, *largest, history.DURING_UPLOADS, "p99_ms"))
    if reading is not None:
        yield _judge("H1", f"{database}: p99 of a page, {history.READERS} readers during W3, ms", reading, None, 5)
    scanning = _median(results.page(database, *largest, history.SCAN, "p50_ms"))
    if scanning is not None and largest[1] > smallest[1]:
        yield _judge("H1", f"{database}: {history.SCAN}, of {largest[1]:,} rows, ms", scanning, None, 50)


def _judge(work: str, text: str, value: float, at_least: float | None, at_most: float | None) -> Verdict:
    if at_least is not None:
        return Verdict(work, text, f"≥ {at_least:g}", value, value >= at_least)
    assert at_most is not None
    return Verdict(work, text, f"≤ {at_most:g}", value, value <= at_most)


def _median(found: Figure | None) -> float | None:
    return found.median if found else None
