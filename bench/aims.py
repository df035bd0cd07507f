"""What Waybill is meant to reach beside its peers, each line checked against one run."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final, NamedTuple

from bench import history
from bench.measuring import DIGEST_ALONE
from bench.own import BASELINE
from bench.results import Figure, Results

_RATE: Final = "requests_per_second"
_EACH: Final = "cpu_ms_per_request"


@dataclass(frozen=True)
class Aim:
    """A figure of `peer` at `work`, by itself or as a ratio to the sum of those `beside`, that is to lie in a range."""

    work: str
    name: str
    text: str
    at_least: float | None = None
    at_most: float | None = None
    peer: str = BASELINE
    beside: tuple[tuple[str, str], ...] = ()


class Verdict(NamedTuple):
    work: str
    text: str
    wanted: str
    value: float
    holds: bool


def _faster(work: str, text: str, at_least: float, other: str, *, peer: str = BASELINE) -> Aim:
    return Aim(work, _RATE, text, at_least=at_least, peer=peer, beside=((work, other),))


def _cheaper(work: str, text: str, at_most: float, other: str, *, peer: str = BASELINE, name: str = _EACH) -> Aim:
    return Aim(work, name, text, at_most=at_most, peer=peer, beside=((work, other),))


_LARGE: Final = tuple(
    aim
    for work in ("W1", "W2")
    for aim in (
        _faster(work, "speed beside nginx, stock", 1.8, "nginx"),
        _faster(work, "speed beside aiohttp, streamed", 1.0, "aiohttp"),
        _faster(work, "speed beside nginx with a 1 MiB buffer", 0.8, "nginx-1m"),
        Aim(work, "cpu_seconds_per_gib", "server CPU, s/GiB", at_most=1.2),
        Aim(work, "peak_rss_mib", "peak RSS, MiB", at_most=120),
    )
)

_SUM: Final = (("W1", DIGEST_ALONE), ("W1", "nginx-1m"))
_BESIDE_THE_SUM: Final = tuple(
    Aim("W1", "cpu_seconds_per_gib", f"{what}: CPU beside SHA-256 alone + nginx with a 1 MiB buffer",
        at_most=most, peer=peer, beside=_SUM)
    for peer, what, most in (("waybill-raw", "raw PUT", 1.05), (BASELINE, "form", 1.2))
)  # fmt: skip

_SMALL: Final = (
    Aim("W3", _RATE, "uploads a second", at_least=4000),
    Aim("W3", _EACH, "server CPU, ms each", at_most=0.25),
    _faster("W3", "form: rate beside aiohttp without promises", 0.8, "aiohttp"),
    _faster("W3", "raw PUT: rate beside aiohttp without promises", 0.4, "aiohttp-raw", peer="waybill-raw"),
    _faster("W3", "rate beside copyparty", 2.0, "copyparty"),
    _faster("W4", "rate beside nginx, stock", 1.3, "nginx"),
    _faster("W4", "form: rate beside aiohttp without promises", 0.9, "aiohttp"),
    _faster("W4", "raw PUT: rate beside aiohttp without promises", 0.65, "aiohttp-raw", peer="waybill-raw"),
)

_SAME_PROMISES: Final = (
    _faster("W3", "form: rate beside a careful aiohttp", 2.0, "aiohttp-careful"),
    _faster("W3", "raw PUT: rate beside a careful Starlette", 2.0, "starlette-careful", peer="waybill-raw"),
    _faster("W3", "raw PUT: rate beside SeaweedFS with fsync", 4.0, "seaweedfs-fsync", peer="waybill-raw"),
)

_RESUMABLE: Final = (
    _faster("W3", "tus, creation with upload: rate beside @tus/server", 2.0, "tus-node", peer="waybill-tus"),
    _cheaper("W3", "tus, creation with upload: CPU beside its own raw PUT", 1.5, "waybill-raw", peer="waybill-tus"),
    _cheaper("W3", "tus, POST and PATCH: CPU beside @tus/server", 1 / 1.5, "tus-node-patch", peer="waybill-tus-patch"),
    _faster("W3", "tus, POST and PATCH: rate beside @tus/server", 1.3, "tus-node-patch", peer="waybill-tus-patch"),
    _cheaper("W3", "draft in one request: CPU beside its own raw PUT", 2.0, "waybill-raw", peer="waybill-draft"),
    _faster("W4", "tus, creation with upload: rate beside @tus/server", 1.5, "tus-node", peer="waybill-tus"),
    _faster("W4", "tus, POST and PATCH: rate beside @tus/server", 1.5, "tus-node-patch", peer="waybill-tus-patch"),
)

_SLOW_CLIENTS: Final = (
    Aim("W5", _RATE, "rate beside its own W3", at_least=0.95, beside=(("W3", BASELINE),)),
    Aim("W5", "p99_ms", "p99 beside its own W3's", at_most=2.0, beside=(("W3", BASELINE),)),
    Aim("W5", "peak_rss_mib", "peak RSS with the slow clients, MiB", at_most=150),
)

_OWN_VARIANTS: Final = (
    _faster("W3", "two workers beside one", 1.7, BASELINE, peer="waybill-2"),
    *(
        _cheaper(work, "DURABILITY=fast beside full", 1.3, BASELINE, peer="waybill-fast", name=_RATE)
        for work in ("W1", "W2", "W3", "W4")
    ),
    *(
        _faster(work, "PostgreSQL beside SQLite", 0.8, BASELINE, peer="waybill-pg")
        for work in ("W1", "W2", "W3", "W4", "W5")
    ),
)

_DOWNLOADS: Final = tuple(
    _faster(work, "downloads beside Starlette's FileResponse", 2.0, "starlette-files")
    for work in ("D1 large", "D1 small")
)

AIMS: Final = (
    *_LARGE,
    *_BESIDE_THE_SUM,
    *_SMALL,
    *_SAME_PROMISES,
    *_RESUMABLE,
    *_SLOW_CLIENTS,
    *_OWN_VARIANTS,
    *_DOWNLOADS,
)


def verdicts(results: Results) -> Iterator[Verdict]:
    """Every aim for which the run has figures."""
    for aim in AIMS:
        if aim.beside:
            value = results.ratio(aim.name, (aim.work, aim.peer), *aim.beside)
        else:
            value = _median(results.figure(aim.work, aim.peer, aim.name))
        if value is not None:
            yield _judge(aim.work, aim.text, value, aim.at_least, aim.at_most)
    for database in dict.fromkeys(page.database for page in results.pages):
        yield from _of_history(results, database)


def _of_history(results: Results, database: str) -> Iterator[Verdict]:
    of_database = [page for page in results.pages if page.database == database]
    shapes = {(page.rows, page.session_rows) for page in of_database if page.question == history.PLAIN}
    smallest, largest = min(shapes), max(shapes)
    few = _median(results.page(database, *smallest, history.PLAIN, "cpu_ms"))
    many = _median(results.page(database, *largest, history.PLAIN, "cpu_ms"))
    if few and many and smallest != largest:
        text = f"{database}: CPU of a page of {largest[1]:,} among {largest[0]:,} rows beside one of {smallest[1]:,}"
        yield _judge("H1", text, many / few, None, 1.5)
    reading = _median(results.page(database, *largest, history.DURING_UPLOADS, "p99_ms"))
    if reading is not None:
        yield _judge("H1", f"{database}: p99 of a page, {history.READERS} readers during W3, ms", reading, None, 5)
    summed_up = max((page.rows, page.session_rows) for page in of_database)
    for question, shape, at_most in (
        (history.SCAN, largest, 50),
        (history.RARE_STATUS, largest, 3),
        (history.RARE_DIGEST, largest, 3),
        (history.SUMMARY, summed_up, 5),
    ):
        asked = _median(results.page(database, *shape, question, "p50_ms"))
        if asked is not None and shape[1] > smallest[1]:
            yield _judge("H1", f"{database}: {question}, of {shape[1]:,} rows, ms", asked, None, at_most)


def _judge(work: str, text: str, value: float, at_least: float | None, at_most: float | None) -> Verdict:
    if at_least is not None:
        return Verdict(work, text, f"≥ {at_least:g}", value, value >= at_least)
    assert at_most is not None
    return Verdict(work, text, f"≤ {round(at_most, 2):g}", value, value <= at_most)


def _median(found: Figure | None) -> float | None:
    return found.median if found else None
