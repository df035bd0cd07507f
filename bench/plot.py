"""The table as bars: for each work how much was done, and what it cost the server. An SVG made by hand."""

from collections.abc import Iterator
from html import escape
from typing import Final, NamedTuple

from bench.peer import Peer
from bench.peers import BASELINE, PEERS
from bench.report import number
from bench.results import Figure, Results
from bench.work import Work

_NAMES: Final = 250
_BARS: Final = 260
_GAP: Final = 90  # room for the number behind a bar
_LINE: Final = 19
_HEAD: Final = 52
_MARGIN: Final = 20
_WIDTH: Final = _MARGIN * 2 + _NAMES + 2 * (_BARS + _GAP)

_STYLE: Final = """
text { font: 12px system-ui, sans-serif; fill: #24292f; } .work { font-size: 15px; font-weight: 600; }
.unit, .value { fill: #57606a; } .own { fill: #0b7a75; } .other { fill: #a9b4c0; } .range { stroke: #24292f; }
.paper { fill: #ffffff; }
@media (prefers-color-scheme: dark) {
 text { fill: #e6edf3; } .unit, .value { fill: #9aa5b1; } .own { fill: #2bb5ae; } .other { fill: #566270; }
 .range { stroke: #e6edf3; } .paper { fill: #0d1117; }
}
"""

PALETTE: Final = (
    _STYLE
    + """
.title { font-weight: 600; } .grid { stroke: #d0d7de; stroke-width: 0.5; } .line { fill: none; stroke-width: 2; }
.p0 { stroke: #0b7a75; } .p1 { stroke: #c2571a; } .p2 { stroke: #6f5bb5; } .dot { fill: #ffffff; stroke-width: 1.5; }
@media (prefers-color-scheme: dark) { .grid { stroke: #30363d; } .dot { fill: #0d1117; } }
"""
)
"""For lines: the style of the bars, and three colours that differ also in grey."""


class Side(NamedTuple):
    """One column of bars: what is shown, and whether more of it is better."""

    title: str
    name: str


def svg(results: Results) -> str:
    shapes: list[str] = []
    y = _MARGIN
    for work in results.works:
        peers = [peer for peer in PEERS if results.of(work.name, peer.name)]
        if peers:
            shapes += _panel(results, work, peers, y)
            y += _HEAD + _LINE * len(peers) + _MARGIN
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {y}" width="{_WIDTH}" height="{y}">'
        f'<style>{_STYLE}</style><rect class="paper" width="100%" height="100%"/>\n' + "\n".join(shapes) + "\n</svg>\n"
    )


def _sides(work: Work) -> tuple[Side, Side]:
    if work.size * work.files // work.connections >= 8 * 1024 * 1024 and work.size > 1024 * 1024:
        return Side("MiB a second (more is better)", "mib_per_second"), Side(
            "server CPU, seconds a GiB (less is better)", "cpu_seconds_per_gib"
        )
    return Side("requests a second (more is better)", "requests_per_second"), Side(
        "server CPU, ms a request (less is better)", "cpu_ms_per_request"
    )


def _panel(results: Results, work: Work, peers: list[Peer], y: int) -> Iterator[str]:
    yield _text(_MARGIN, y + 14, f"{work.name}: {work.title}", "work")
    for row, peer in enumerate(peers):
        yield _text(_MARGIN, y + _HEAD + row * _LINE + 11, peer.title, "name")
    for place, side in enumerate(_sides(work)):
        x = _MARGIN + _NAMES + place * (_BARS + _GAP)
        yield _text(x, y + 36, side.title, "unit")
        figures = [results.figure(work.name, peer.name, side.name) for peer in peers]
        most = max(found.most for found in figures if found)
        for row, (peer, found) in enumerate(zip(peers, figures, strict=True)):
            if found:
                yield from _bar(x, y + _HEAD + row * _LINE, found, _BARS / most, peer.name.startswith(BASELINE))


def _bar(x: int, y: int, found: Figure, scale: float, own: bool) -> Iterator[str]:
    yield f'<rect class="{"own" if own else "other"}" x="{x}" y="{y}" width="{found.median * scale:.1f}" height="14"/>'
    left, right = x + found.least * scale, x + found.most * scale
    if right - left > 1:
        yield f'<path class="range" d="M{left:.1f} {y + 7}H{right:.1f}M{left:.1f} {y + 4}v6M{right:.1f} {y + 4}v6"/>'
    yield _text(max(right, x + found.median * scale) + 5, y + 11, number(found.median), "value")


def _text(x: float, y: float, text: str, kind: str) -> str:
    return f'<text class="{kind}" x="{x:.1f}" y="{y}">{escape(text)}</text>'
