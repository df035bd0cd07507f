"""Everything that was seen in one run, and the three numbers drawn from it: median, spread, ratio."""

import json
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from statistics import median
from typing import NamedTuple

from bench.history import PageTime
from bench.work import Measurement, Work


class Figure(NamedTuple):
    """What several repeats gave. `spread` is half the range by the median, None for a single one."""

    median: float
    least: float
    most: float
    spread: float | None


def figure(values: Sequence[float]) -> Figure | None:
    if not values:
        return None
    middle, least, most = median(values), min(values), max(values)
    return Figure(middle, least, most, (most - least) / 2 / middle if len(values) > 1 and middle else None)


@dataclass
class Results:
    """One run. `ceilings` is what the load generator does against a server that does nothing."""

    command: str
    began: str
    quick: bool
    repeats: int
    machine: dict[str, str]
    works: Sequence[Work]
    versions: dict[str, str] = field(default_factory=dict)
    skipped: dict[str, str] = field(default_factory=dict)
    ceilings: list[Measurement] = field(default_factory=list)
    measurements: list[Measurement] = field(default_factory=list)
    pages: list[PageTime] = field(default_factory=list)

    def of(self, work: str, peer: str) -> list[Measurement]:
        """The measurements that count."""
        return [seen for seen in self.measurements if (seen.work, seen.peer) == (work, peer) and not seen.failure]

    def figure(self, work: str, peer: str, name: str) -> Figure | None:
        return figure([getattr(seen, name) for seen in self.of(work, peer)])

    def ratio(self, name: str, one: tuple[str, str], *others: tuple[str, str]) -> float | None:
        """How many times the sum of the `others` figure `one` is: the median over repeats of neighbours in time."""
        values, *parts = ({seen.repeat: getattr(seen, name) for seen in self.of(*place)} for place in (one, *others))
        ratios = [
            value / sum(part[repeat] for part in parts)
            for repeat, value in values.items()
            if all(part.get(repeat) for part in parts)
        ]
        return median(ratios) if ratios else None

    def failures(self) -> Iterable[str]:
        for seen in self.measurements:
            if seen.failure:
                yield f"{seen.work}, {seen.peer}, repeat {seen.repeat + 1}: {seen.failure}"
        for page in self.pages:
            if page.failure:
                yield f"H1, {page.database}, {page.rows:,} rows, {page.question}: {page.failure}"

    def page(self, database: str, rows: int, session_rows: int, question: str, name: str) -> Figure | None:
        wanted = (database, rows, session_rows, question)
        return figure(
            [
                getattr(page, name)
                for page in self.pages
                if (page.database, page.rows, page.session_rows, page.question) == wanted and not page.failure
            ]
        )

    def save(self, path: Path) -> None:
        path.write_text(json.dumps(asdict(self), indent=1))
