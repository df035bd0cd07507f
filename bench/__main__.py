"""The command: choose works and peers, do everything interleaved, write table, plot and raw figures."""

import os
import shlex
import signal
import sqlite3
import sys
import tempfile
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Final, TypeVar

import click

from bench import growth as growing
from bench import history, plot, report, work
from bench.downloads import download
from bench.generator import Generator
from bench.install import Missing
from bench.machine import GiB, cores, describe, volume
from bench.measuring import Bench, ceiling, digest_alone
from bench.peer import Peer
from bench.peers import BASELINE, PEERS
from bench.processes import Failed
from bench.results import Results
from bench.uploads import upload
from bench.work import Measurement, Work

_HISTORY: Final = "H1"
_CEILINGS: Final = ("W1", "W3")
_LARGE: Final = "W1"
_VOLUME: Final = 6 * GiB
T = TypeVar("T")


def _cache() -> Path:
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "waybill-bench"


@click.command(help="Do the same work against Waybill and its peers, and write one table. See bench/README.md.")
@click.option("--quick", is_flag=True, help="Smaller counts; the whole in ten minutes.")
@click.option("--only", metavar="WORK,…", default="", help="Only these works: W1 to W5, D1, H1.")
@click.option("--peers", metavar="PEER,…", default="", help="Only these, and Waybill, to which all is compared.")
@click.option("--growth", is_flag=True, help="Instead: how cost grows with sizes, clients and counts.")
@click.option("--repeats", type=click.IntRange(1), help="How often everything is done. [default: 5; 2 if quick]")
@click.option("--out", type=click.Path(path_type=Path), default=Path("bench/results"), show_default=True,
              help="Directory for table.md, plot.svg and results.json.")  # fmt: skip
@click.option("--data", type=click.Path(path_type=Path), help="Directory for the data. [default: in the cache]")
@click.option("--cache", type=click.Path(path_type=Path), default=_cache, help="Directory for what is installed.")
def main(
    quick: bool, only: str, peers: str, growth: bool, repeats: int | None, out: Path, data: Path | None, cache: Path
) -> None:
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))  # so that everything is taken down
    repeats = repeats or (2 if quick or growth else 5)
    if growth:
        only, peers = "", peers or ",".join(growing.PEERS)
    works = (
        list(growing.WORKS)
        if growth
        else [each for each in (work.QUICK if quick else work.FULL) if not only or _asked(each.name, only)]
    )
    with_history = not growth and (not only or _asked(_HISTORY, only))
    if only and (unknown := set(only.split(",")) - {each.name.split()[0] for each in work.FULL} - {_HISTORY}):
        raise click.BadParameter(f"{', '.join(sorted(unknown))}: there are W1 to W5, D1 and H1", param_hint="--only")
    chosen = _chosen(peers)
    skipped: dict[str, str] = {}
    tools = cache.resolve() / "tools"
    tools.mkdir(parents=True, exist_ok=True)
    taking_part = [
        peer for peer in chosen if _takes_part(peer, works, with_history) and _is_there(peer, tools, skipped)
    ]
    out.mkdir(parents=True, exist_ok=True)
    given = cores()
    place = (data or cache).resolve()
    with volume(place, _VOLUME) as lying, tempfile.TemporaryDirectory(prefix="waybill-bench-") as scratch:
        bench = Bench(lying.path, tools, given, Generator(tools, Path(scratch), given.load))
        results = Results(
            command=shlex.join(["python", "-m", "bench", *sys.argv[1:]]),
            began=datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
            quick=quick,
            repeats=repeats,
            machine=describe(lying, given),
            works=works,
            versions={peer.name: peer.version(tools) for peer in taking_part},
            skipped=skipped,
        )
        try:
            _measure_all(bench, results, taking_part)
            if with_history:
                sizes = history.QUICK if quick else history.FULL
                for peer in taking_part:
                    if "history" in peer.does:
                        for page in history.history(bench, peer, sizes, repeats):
                            results.pages.append(page)
                            _say(f"H1  {page.told()}")
        finally:  # what was seen until an interruption is worth keeping
            results.save(out / "results.json")
            (out / "table.md").write_text(report.markdown(results))
            titles = {peer.name: peer.title for peer in taking_part}
            (out / report.PLOT).write_text(growing.svg(results, titles) if growth else plot.svg(results))
    click.echo((out / "table.md").read_text())
    _say(f"written: {out}/table.md, {out}/{report.PLOT}, {out}/results.json")


def _measure_all(bench: Bench, results: Results, peers: Sequence[Peer]) -> None:
    """Every server once, then every server again: what drifts over time meets all of them."""
    for each in results.works:
        if each.name in _CEILINGS:
            results.ceilings.append(ceiling(bench, each))
        doing = [peer for peer in peers if peer.takes_part(each)]
        for repeat in range(results.repeats):
            if each.name == _LARGE:
                results.measurements.append(digest_alone(bench, each, repeat))
            for peer in _rotated(doing, repeat):
                seen = _measure(bench, each, peer, repeat)
                results.measurements.append(seen)
                _say(f"{each.name} {repeat + 1}/{results.repeats}  {peer.title}: {_told(seen)}")


def _measure(bench: Bench, each: Work, peer: Peer, repeat: int) -> Measurement:
    """A server that fails is a result too."""
    seen = Measurement(each.name, peer.name, repeat)
    try:
        (upload if each.kind == "upload" else download)(bench, each, peer, seen)
    except (Failed, OSError, sqlite3.Error) as error:
        seen.failure = str(error) or repr(error)
    return seen


def _rotated(peers: Sequence[T], by: int) -> Iterator[T]:
    """Each one comes first in its turn, so that no place in the order is anyone's for good."""
    start = by % len(peers) if peers else 0
    return iter([*peers[start:], *peers[:start]])


def _told(seen: Measurement) -> str:
    if seen.failure:
        return f"FAILED, {seen.failure}"
    return (
        f"{seen.mib_per_second:,.0f} MiB/s, {seen.requests_per_second:,.0f} requests/s, "
        f"{seen.cpu_seconds_per_gib:.2f} CPU s/GiB, {seen.cpu_ms_per_request:.3f} CPU ms/request"
    )


def _takes_part(peer: Peer, works: Sequence[Work], with_history: bool) -> bool:
    return any(peer.takes_part(each) for each in works) or (with_history and "history" in peer.does)


def _asked(name: str, only: str) -> bool:
    return name.split()[0] in only.split(",")


def _chosen(names: str) -> list[Peer]:
    known = [peer.name for peer in PEERS]
    wanted = names.split(",") if names else known
    if unknown := set(wanted) - set(known):
        raise click.BadParameter(f"{', '.join(sorted(unknown))}: there are {', '.join(known)}", param_hint="--peers")
    return [peer for peer in PEERS if peer.name in {*wanted, BASELINE}]


def _is_there(peer: Peer, tools: Path, skipped: dict[str, str]) -> bool:
    """Install what the peer needs; if that cannot be, the run goes on without it and says so."""
    try:
        peer.version(tools)
    except (Missing, Failed) as error:
        skipped[peer.name] = str(error)
        _say(f"{peer.title} is left out: {error}")
        return False
    return True


def _say(line: str) -> None:
    click.echo(line, err=True)


if __name__ == "__main__":
    main()
