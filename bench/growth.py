"""How cost grows: with the size of a file, with how many are sent at once, and with how many were sent before."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from html import escape
from typing import Final

from bench.machine import GiB, KiB, MiB
from bench.plot import PALETTE
from bench.results import Results
from bench.work import Work, in_words

_SIZES: Final = (KiB, 16 * KiB, 64 * KiB, 256 * KiB, MiB, 8 * MiB, 64 * MiB, 512 * MiB)
_CLIENTS: Final = (1, 4, 16, 64, 256, 1000)
_COUNTS: Final = (500, 2_000, 8_000, 32_000)
PEERS: Final = ("waybill", "aiohttp", "nginx")

BY_SIZE: Final = tuple(
    Work(f"size {in_words(size)}", "upload", max(2, min(2_000, GiB // size)), size, 16) for size in _SIZES
)
BY_CLIENTS: Final = tuple(
    Work(f"clients {clients}", "upload", 2_000, 16 * KiB, clients) for clients in _CLIENTS
)  # fmt: skip
BY_COUNT: Final = tuple(Work(f"count {count}", "upload", count, 16 * KiB, 64) for count in _COUNTS)
WORKS: Final = (*BY_SIZE, *BY_CLIENTS, *BY_COUNT)

_WIDTH: Final = 420
_HEIGHT: Final = 260
_LEFT: Final = 62
_TOP: Final = 44
_FOOT: Final = 46
_KEY_WIDTH: Final = 230


@dataclass(frozen=True)
class Panel:
    """One figure over what grows; both axes are logarithmic."""

    title: str
    across: str
    works: Sequence[Work]
    name: str
    grows: str

    def x(self, work: Work) -> float:
        return float(getattr(work, self.grows))


PANELS: Final = (
    Panel("server CPU, ms a file", "size of a file, bytes", BY_SIZE, "cpu_ms_per_request", "size"),
    Panel("server CPU, seconds a GiB", "size of a file, bytes", BY_SIZE, "cpu_seconds_per_gib", "size"),
    Panel("server CPU, ms a file of 16 KiB", "clients at once", BY_CLIENTS, "cpu_ms_per_request", "connections"),
    Panel("files of 16 KiB a second", "clients at once", BY_CLIENTS, "requests_per_second", "connections"),
    Panel("server CPU, ms a file of 16 KiB", "files in one run", BY_COUNT, "cpu_ms_per_request", "files"),
    Panel("peak RSS, MiB", "clients at once", BY_CLIENTS, "peak_rss_mib", "connections"),
)


def svg(results: Results, titles: dict[str, str]) -> str:
    """The panels in two columns; `titles` names the peers that took part."""
    shapes: list[str] = []
    for number, panel in enumerate(PANELS):
        shapes += _panel(results, panel, (number % 2) * _WIDTH, (number // 2) * _HEIGHT, list(titles))
    for number, title in enumerate(titles.values()):
        y = _TOP + number * 22
        shapes.append(f'<path class="line p{number}" d="M{2 * _WIDTH} {y}h24"/>')
        shapes.append(f'<text x="{2 * _WIDTH + 32}" y="{y + 4}">{escape(title)}</text>')
    width, height = 2 * _WIDTH + _KEY_WIDTH, math.ceil(len(PANELS) / 2) * _HEIGHT
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}" height="{height}">'
        f'<style>{PALETTE}</style><rect class="paper" width="100%" height="100%"/>\n' + "\n".join(shapes) + "\n</svg>\n"
    )


def _panel(results: Results, panel: Panel, left: int, top: int, peers: Sequence[str]) -> Iterator[str]:
    lines = {
        peer: [
            (panel.x(work), figure.median)
            for work in panel.works
            if (figure := results.figure(work.name, peer, panel.name)) and figure.median > 0
        ]
        for peer in peers
    }
    points = [point for line in lines.values() for point in line]
    if not points:
        return
    across = _Axis([x for x, _ in points], left + _LEFT, left + _WIDTH - 24)
    up = _Axis([y for _, y in points], top + _HEIGHT - _FOOT, top + _TOP)
    yield f'<text class="title" x="{left + _LEFT}" y="{top + 24}">{escape(panel.title)}</text>'
    yield f'<text class="unit" x="{left + _LEFT}" y="{top + _HEIGHT - 8}">{escape(panel.across)}</text>'
    for value in across.marks():
        x = across.at(value)
        yield f'<path class="grid" d="M{x:.1f} {up.first}V{up.last}"/>'
        yield f'<text class="unit" text-anchor="middle" x="{x:.1f}" y="{up.first + 15}">{_short(value)}</text>'
    for value in up.marks():
        y = up.at(value)
        yield f'<path class="grid" d="M{across.first} {y:.1f}H{across.last}"/>'
        yield f'<text class="unit" text-anchor="end" x="{across.first - 6}" y="{y + 4:.1f}">{_short(value)}</text>'
    for number, peer in enumerate(peers):
        drawn = [(across.at(x), up.at(y)) for x, y in lines[peer]]
        if drawn:
            yield f'<path class="line p{number}" d="M{"L".join(f"{x:.1f} {y:.1f}" for x, y in drawn)}"/>'
            for x, y in drawn:
                yield f'<circle class="dot p{number}" cx="{x:.1f}" cy="{y:.1f}" r="2.5"/>'


class _Axis:
    """Values on a logarithmic scale between two places."""

    def __init__(self, values: Sequence[float], first: float, last: float) -> None:
        self.first, self.last = first, last
        self._low, self._high = math.floor(math.log10(min(values))), math.ceil(math.log10(max(values)))
        self._high = max(self._high, self._low + 1)

    def at(self, value: float) -> float:
        share = (math.log10(value) - self._low) / (self._high - self._low)
        return self.first + share * (self.last - self.first)

    def marks(self) -> Iterator[float]:
        return (10.0**power for power in range(self._low, self._high + 1))


def _short(value: float) -> str:
    for unit, name in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if value >= unit:
            return f"{value / unit:g}{name}"
    return f"{value:g}"
