"""The table: what each server did at each work, beside what Waybill did in the same run."""

from collections.abc import Iterator, Sequence
from itertools import groupby
from statistics import median
from typing import Final, NamedTuple

from bench.aims import verdicts
from bench.history import DURING_UPLOADS, PLAIN
from bench.measuring import DIGEST_ALONE
from bench.peer import Peer
from bench.peers import BASELINE, PEERS
from bench.results import Figure, Results

PLOT: Final = "plot.svg"
_BUSY: Final = 0.5


class Column(NamedTuple):
    title: str
    name: str


COLUMNS: Final = (
    Column("MiB/s", "mib_per_second"),
    Column("MiB/s flushed", "mib_per_second_flushed"),
    Column("requests/s", "requests_per_second"),
    Column("**server CPU s/GiB**", "cpu_seconds_per_gib"),
    Column("**server CPU ms/request**", "cpu_ms_per_request"),
    Column("p50 ms", "p50_ms"),
    Column("p99 ms", "p99_ms"),
    Column("peak RSS MiB", "peak_rss_mib"),
)


def markdown(results: Results) -> str:
    sections = [_opening(results), _main(results), _history(results), _noise(results), _failures(results),
                _versions(results), _aims(results)]  # fmt: skip
    return "\n\n".join("\n".join(lines) for lines in sections if lines) + "\n"


def _opening(results: Results) -> list[str]:
    size = "in its quick form, with smaller counts: good for a look, not for a claim" if results.quick else "in full"
    return [
        "# Waybill and its peers",
        "",
        f"`{results.command}`, begun {results.began}, each done {results.repeats} times, {size}.",
        "",
        *(f"* {name}: {words}" for name, words in results.machine.items()),
        *_warning(results),
        "",
        f"![The table as bars]({PLOT})",
    ]


def _warning(results: Results) -> list[str]:
    """Said when the machine was busy with other things. Waybill leaves little to the kernel, so it shows that best."""
    shares = [seen.other_share for seen in results.measurements if seen.peer == BASELINE and seen.seconds]
    shares += [page.other_share for page in results.pages if page.cpu_ms]
    if not shares or median(shares) < _BUSY:
        return []
    return [
        f"* **The machine was busy with other things**, {median(shares):.1f} of a core at most times: what is measured",
        "  in seconds is worth little here, CPU still something. Run it again when the machine is quiet.",
    ]


def _main(results: Results) -> list[str]:
    lines = [
        "## Uploads and downloads",
        "",
        "Each figure is the median of the repeats, ± half their range; × is the ratio to Waybill's figure in the same",
        "repeat. CPU is that of all processes of the server, PostgreSQL included, and is the figure to trust.",
        "MiB/s flushed counts the time until all is on the disk, as if nobody had been answered before.",
        "Durable, digest and row say what is done when an upload is answered (“later”: soon afterwards).",
        "",
        *(f"* **{work.name}**: {work.title}" for work in results.works),
        "",
        _row("work", "server", *(column.title for column in COLUMNS), "durable", "digest", "row"),
        _row("---", "---", *("---:" for _ in COLUMNS), "---", "---", "---"),
    ]
    for work in results.works:
        for peer in _seen(results, work.name):
            figures = [_cell(results, work.name, peer, column.name) for column in COLUMNS]
            promises = (peer.durable, peer.digest, peer.row) if work.kind == "upload" else ("", "", "")
            lines.append(_row(work.name, _named(peer), *figures, *promises))
    return lines if results.measurements else []


def _seen(results: Results, work: str) -> Iterator[Peer]:
    done = {seen.peer for seen in results.measurements if seen.work == work}
    return (peer for peer in PEERS if peer.name in done)


def _named(peer: Peer) -> str:
    return f"**{peer.title}**" if peer.name.startswith(BASELINE) else peer.title


def _cell(results: Results, work: str, peer: Peer, name: str) -> str:
    found = results.figure(work, peer.name, name)
    if found is None:
        return "failed"
    text = _with_spread(found)
    if peer.name != BASELINE and (ratio := results.ratio(name, (work, peer.name), (work, BASELINE))) is not None:
        text += f" ×{number(ratio)}"
    return text


def _with_spread(found: Figure) -> str:
    return number(found.median) + (f" ±{found.spread:.0%}" if found.spread is not None else "")


def number(value: float) -> str:
    """Three digits that say something."""
    if value >= 100:
        return f"{value:,.0f}"
    if value >= 10:
        return f"{value:.1f}"
    return f"{value:.2f}" if value >= 0.1 or not value else f"{value:.3f}"


def _history(results: Results) -> list[str]:
    if not results.pages:
        return []
    lines = [
        "## H1: a page of history",
        "",
        "Over HTTP, 50 records a page, one client but for the last line of each database. × is the ratio to the newest",
        "page at the smallest size. The summary is that of all uploads of a session.",
        "",
        _row("database", "rows", "of the session", "question", "p50 ms", "p99 ms", "server CPU ms", "ready after s"),
        _row("---", "---:", "---:", "---", "---:", "---:", "---:", "---:"),
    ]
    shapes = {(page.database, page.rows, page.session_rows, page.question): None for page in results.pages}
    for database, group in groupby(shapes, key=lambda shape: shape[0]):
        base: float | None = None
        for _, rows, session_rows, question in group:
            p50, p99, cpu, ready, uploads = (
                results.page(database, rows, session_rows, question, name)
                for name in ("p50_ms", "p99_ms", "cpu_ms", "ready_seconds", "uploads_per_second")
            )
            if not (p50 and p99 and cpu and ready and uploads):
                lines.append(_row(database, f"{rows:,}", f"{session_rows:,}", question, "failed", "", "", ""))
                continue
            if question == PLAIN and base is None:
                base = p50.median
            if question == DURING_UPLOADS:
                question = f"{question}, itself at {number(uploads.median)}/s"
                tail = ["", ""]
            else:
                tail = [_with_spread(cpu), f"{ready.median:.2f}"]
            ratio = f" ×{number(p50.median / base)}" if base else ""
            shown = (_with_spread(p50) + ratio, _with_spread(p99))
            lines.append(_row(database, f"{rows:,}", f"{session_rows:,}", question, *shown, *tail))
    return lines


def _aims(results: Results) -> list[str]:
    found = list(verdicts(results))
    if not found:
        return []
    return [
        "## What Waybill is meant to reach",
        "",
        _row("work", "figure", "wanted", "here", "holds"),
        _row("---", "---", "---", "---:", "---"),
        *(_row(v.work, v.text, v.wanted, number(v.value), "yes" if v.holds else "**no**") for v in found),
    ]


def _noise(results: Results) -> list[str]:
    if not results.measurements:
        return []
    lines = [
        "## Noise, and what else was at work",
        "",
        "The load generator against a server that throws everything away does:",
        "",
        *(
            f"* {seen.work}: {number(seen.mib_per_second)} MiB/s, {number(seen.requests_per_second)} requests/s"
            for seen in results.ceilings
        ),
        *_digest_alone(results),
        "",
        "Share: how much of its core the load used; far below 1 it was not the limit. Other: CPU that neither server",
        "nor load used until all was on the disk, as a share of one core: the kernel writing back what the server left",
        "in the page cache, and whatever else ran on the machine.",
        "",
        _row("work", "server", "load's share", "other", "spread of CPU"),
        _row("---", "---", "---:", "---:", "---:"),
    ]
    spreads = []
    for work in results.works:
        for peer in _seen(results, work.name):
            done = results.of(work.name, peer.name)
            cpu = results.figure(work.name, peer.name, "server_cpu")
            if not done or cpu is None:
                continue
            if cpu.spread is not None:
                spreads.append(cpu.spread)
            share = f"{max(seen.load_share for seen in done):.2f}"
            other = f"{median(seen.other_share for seen in done):.2f}"
            spread = f"±{cpu.spread:.0%}" if cpu.spread is not None else ""
            lines.append(_row(work.name, peer.title, share, other, spread))
    if spreads:
        lines += ["", f"Spread of server CPU: {median(spreads):.0%} in the middle, {max(spreads):.0%} at worst."]
    return lines


def _digest_alone(results: Results) -> list[str]:
    found = results.figure("W1", DIGEST_ALONE, "cpu_seconds_per_gib")
    return [f"* SHA-256 alone, by the same hashlib: {_with_spread(found)} CPU s/GiB"] if found else []


def _failures(results: Results) -> list[str]:
    lines = [*(f"{name}: left out, {why}" for name, why in results.skipped.items()), *results.failures()]
    return ["## What failed", "", *(f"* {line}" for line in lines)] if lines else []


def _versions(results: Results) -> list[str]:
    named: dict[str, list[str]] = {}
    for name, version in results.versions.items():
        named.setdefault(version, []).append(name)
    return ["## Versions", "", *(f"* {', '.join(names)}: {version}" for version, names in named.items())]


def _row(*cells: str | Sequence[str]) -> str:
    return "| " + " | ".join(str(cell).replace("|", "\\|") for cell in cells) + " |"
