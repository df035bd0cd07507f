"""What was done to the service and what it lost by it, counted by every test that does it much harm.

    def test_something(tally, database_url):
        row = tally("killed at random", "form", database_url)
        row.injected += 1
        ...
        row.is_clean()

With TORTURE=1 the rows of all tests are shown at the end as one table, whichever process ran them; TORTURE_REPORT
names a file that gets it as Markdown.
"""

import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import pytest

TORTURE = bool(os.environ.get("TORTURE"))  # as long and as many as promised, instead of what fits into every run
_PROPERTY = "tally"
_MIB = 1024 * 1024
_KEYS = ("fault", "protocol", "database")
_BAD = ("lost", "wrong", "partial", "files", "slots", "descriptors")
_HEADINGS = {
    "fault": "Fault",
    "protocol": "Protocol",
    "database": "Database",
    "injected": "Faults",
    "acknowledged": "Acknowledged",
    "lost": "Lost",
    "wrong": "Wrong",
    "partial": "Visible partial",
    "files": "Leaked files",
    "slots": "Leaked slots",
    "descriptors": "Leaked descriptors",
    "memory_before": "MiB before",
    "memory_after": "MiB after",
}


@dataclass
class Row:
    """One kind of fault, met by one protocol on one database."""

    fault: str
    protocol: str
    database: str
    injected: int = 0
    acknowledged: int = 0
    """Files, and offsets of unfinished ones, that a client was told are safe."""
    lost: int = 0
    """Those of them that are not there any more."""
    wrong: int = 0
    """Files that are there with other bytes than were sent."""
    partial: int = 0
    """Times that somebody who looked saw less than a whole file."""
    files: int = 0
    slots: int = 0
    descriptors: int = 0
    memory_before: int = 0
    memory_after: int = 0

    def is_clean(self) -> None:
        assert {name: getattr(self, name) for name in _BAD if getattr(self, name)} == {}, self

    def add(self, other: "Row") -> None:
        """The same fault from another test: counts add up, and of memory the larger figures stay."""
        for name in (field.name for field in fields(self) if field.name not in _KEYS):
            both = getattr(self, name), getattr(other, name)
            setattr(self, name, max(both) if name.startswith("memory") else sum(both))


Tally = Callable[[str, str, str], Row]


@pytest.fixture
def tally(request: pytest.FixtureRequest) -> Iterator[Tally]:
    """`tally(fault, protocol, database or its URL)` is the row to count in."""
    rows: list[Row] = []

    def row(fault: str, protocol: str, database: str) -> Row:
        rows.append(Row(fault, protocol, database.partition(":")[0]))
        return rows[-1]

    yield row
    # A report carries these to whoever prints the summary, from another process, too.
    request.node.user_properties += [(_PROPERTY, asdict(each)) for each in rows]


def collected(reports: Iterable[pytest.TestReport]) -> list[Row]:
    """The rows of these tests, those of the same kind added up, in a settled order."""
    rows: dict[tuple[str, ...], Row] = {}
    for report in reports:
        for name, value in report.user_properties if report.when == "teardown" else []:
            if name == _PROPERTY and isinstance(value, Mapping):
                row = Row(**value)
                key = row.fault, row.protocol, row.database
                rows.setdefault(key, Row(*key)).add(row)
    return [rows[key] for key in sorted(rows)]


def table(rows: Iterable[Row]) -> list[str]:
    """The rows as a table in Markdown, and what they come to."""
    rows = list(rows)
    cells = [list(_HEADINGS.values()), *(_cells(row) for row in rows)]
    widths = [max(len(line[at]) for line in cells) for at in range(len(_HEADINGS))]
    rule = [
        "-" * width if name in _KEYS else "-" * (width - 1) + ":" for name, width in zip(_HEADINGS, widths, strict=True)
    ]
    lines = [_line(line, widths) for line in (cells[0], rule, *cells[1:])]

    def total(*names: str) -> str:
        return f"{sum(getattr(row, name) for row in rows for name in names):,}"

    figures = {
        "faults": total("injected"),
        "acknowledged": total("acknowledged"),
        "lost": total("lost"),
        "wrong": total("wrong"),
        "visible partial": total("partial"),
        "leaked": total("files", "slots", "descriptors"),
    }
    return [*lines, "", ", ".join(f"{name} {figure}" for name, figure in figures.items())]


def _cells(row: Row) -> list[str]:
    found = []
    for name in _HEADINGS:
        value: Any = getattr(row, name)
        if name.startswith("memory"):
            found.append(f"{value / _MIB:.0f}" if value else "–")
        else:
            found.append(value if name in _KEYS else f"{value:,}")
    return found


def _line(cells: list[str], widths: list[int]) -> str:
    padded = (
        cell.ljust(width) if name in _KEYS else cell.rjust(width)
        for name, cell, width in zip(_HEADINGS, cells, widths, strict=True)
    )
    return f"| {' | '.join(padded)} |"


def show(terminal: pytest.TerminalReporter) -> None:
    """Print the table, and write it where TORTURE_REPORT says."""
    reports = [report for kind in terminal.stats.values() for report in kind if isinstance(report, pytest.TestReport)]
    rows = collected(reports)
    if not rows or not TORTURE:
        return
    lines = table(rows)
    terminal.section("what was done, and what came of it")
    for line in lines:
        terminal.write_line(line)
    if path := os.environ.get("TORTURE_REPORT"):
        Path(path).write_text("\n".join(lines) + "\n", encoding="utf-8")
