"""Bars on a terminal: one for each large file on its way, one for all, and a line for what has ended."""

import os
from collections import Counter
from collections.abc import Iterable
from typing import Final, Self

from rich.console import Console, RenderableType
from rich.progress import (
    BarColumn,
    DownloadColumn,
    Progress,
    ProgressColumn,
    Task,
    TaskID,
    TextColumn,
    TimeRemainingColumn,
)
from rich.table import Column
from rich.text import Text

from app.client.display import plain, readable
from app.client.outcomes import Fate, Outcome
from app.client.sources import SMALL

_MOST_LINES: Final = 20
"""Up to so many files each gets a line when it has arrived; of more only those that failed."""
# In the order of the summary: the word for each fate, and its colour.
_FATES: Final[dict[Fate, tuple[str, str]]] = {
    "sent": ("sent", "green"),
    "fetched": ("fetched", "green"),
    "would_send": ("would send", "cyan"),
    "unchanged": ("unchanged", "dim"),
    "failed": ("failed", "red"),
}


class _TotalLast(Progress):
    """Bars of which the first, the total, stands below the others."""

    def get_renderables(self) -> Iterable[RenderableType]:
        yield self.make_tasks_table([*self.tasks[1:], *self.tasks[:1]])


class _Speed(ProgressColumn):
    """The speed in the same units as the sizes beside it."""

    def render(self, task: Task) -> Text:
        speed = task.finished_speed or task.speed
        return Text("" if speed is None else f"{readable(max(0.0, speed))}/s", "progress.data.speed")


class Bars:
    """A bar for each large file on its way, and one for all. What has ended is said above them."""

    def __init__(self) -> None:
        self._console = console = Console(stderr=True)
        self._bars = _TotalLast(
            TextColumn(
                "{task.description}", table_column=Column(ratio=1, no_wrap=True, overflow="ellipsis"), markup=False
            ),
            BarColumn(bar_width=20),
            DownloadColumn(binary_units=True, table_column=Column(justify="right", no_wrap=True)),
            _Speed(table_column=Column(justify="right", no_wrap=True, min_width=11)),
            TimeRemainingColumn(compact=True, table_column=Column(justify="right", no_wrap=True)),
            console=console,
            expand=True,
            transient=True,
            refresh_per_second=8,
        )
        self._files = 0
        self._total: TaskID
        self._tasks: dict[str, TaskID] = {}
        self._offsets: dict[str, int] = {}
        self._fates: Counter[str] = Counter()
        self._sizes: Counter[str] = Counter()

    def __enter__(self) -> Self:
        self._total = self._bars.add_task("", total=None)
        self._bars.start()
        return self

    def __exit__(self, kind: object, error: object, trace: object, /) -> None:
        self._bars.stop()
        if kind is None or self._fates:
            self._console.print(self._summary(), highlight=False)

    def planned(self, files: int, size: int) -> None:
        self._files += files
        before = self._bars.tasks[0].total or 0
        self._bars.update(self._total, total=before + size, description=self._counted())

    def begun(self, file: str, size: int) -> None:
        if size > SMALL:
            self._tasks[file] = self._bars.add_task(plain(file.rpartition("/")[2]), total=size)

    def moved(self, file: str, offset: int) -> None:
        self._bars.advance(self._total, offset - self._offsets.get(file, 0))
        self._offsets[file] = offset
        if file in self._tasks:
            self._bars.update(self._tasks[file], completed=offset)

    def ended(self, outcome: Outcome) -> None:
        if outcome.fate not in ("sent", "fetched"):  # the total is what goes over the network
            self._bars.advance(self._total, -self._offsets.get(outcome.path, 0))
            total = self._bars.tasks[0].total or 0
            self._bars.update(self._total, total=max(0, total - (outcome.size or 0)))
        self._offsets.pop(outcome.path, None)
        if (task := self._tasks.pop(outcome.path, None)) is not None:
            self._bars.remove_task(task)
        self._fates[outcome.fate] += 1
        self._sizes[outcome.fate] += outcome.size or 0
        self._bars.update(self._total, description=self._counted())
        if self._files <= _MOST_LINES or outcome.fate == "failed":
            self._bars.console.print(self._line(outcome), highlight=False, soft_wrap=True)

    def note(self, text: str) -> None:
        self._bars.console.print(plain(text), highlight=False, markup=False, style="yellow", soft_wrap=True)

    def _counted(self) -> str:
        return f"{self._fates.total():,} of {self._files:,} files"

    @staticmethod
    def _line(outcome: Outcome) -> Text:
        word, style = _FATES[outcome.fate]
        here = f"{os.getcwd()}/"
        line = Text.assemble((f"{word:<10}", style), " ", plain(outcome.path.removeprefix(here)))
        if outcome.code is not None:
            line.append(f": {plain(outcome.detail)}")
        elif outcome.size is not None:
            line.append(f"  {readable(outcome.size)}  {outcome.id or ''}".rstrip(), "dim")
        return line

    def _summary(self) -> Text:
        parts = [
            f"{self._fates[fate]:,} {word}" + (f" ({readable(self._sizes[fate])})" if fate != "failed" else "")
            for fate, (word, _) in _FATES.items()
            if fate in self._fates
        ]
        return Text(", ".join(parts) or "nothing to do")
