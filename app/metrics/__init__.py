"""Metrics: what the service counts and times; `families` has the list of them.

Counting must cost next to nothing, since every upload counts and scrapes are rare: a counter is a number in
memory that one process changes, and a scrape adds up those of all processes. Labels have few
values, all known beforehand.
"""

import asyncio
import time
from bisect import bisect_left
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Final, NamedTuple

import structlog

from app.background import every
from app.metrics.families import FAMILIES, Keyed, Kind, Outcome, Stage
from app.metrics.multiprocess import Cells, OwnSlot, SharedWorkerSlots, WorkerSlot, WorkerSlots
from app.model import Damage, Protocol

__all__ = ["Metrics", "Outcome", "Reading", "SharedWorkerSlots", "WorkerSlots"]

log = structlog.stdlib.get_logger("waybill.metrics")

_TICK_SECONDS: Final = 0.5


class Counter:
    """A counter: how often something happened, or how much of it. One thread of a process changes it."""

    __slots__ = ("_at", "_cells")

    def __init__(self, cells: Cells, at: int) -> None:
        self._cells, self._at = cells, at

    def add(self, amount: float = 1) -> None:
        self._cells[self._at] += amount


class Histogram:
    """A histogram of durations or sizes: a count for each range up to a bound, one for larger values, and the sum."""

    __slots__ = ("_at", "_bounds", "_cells", "_sum")

    def __init__(self, cells: Cells, at: int, bounds: Sequence[float]) -> None:
        self._cells, self._at, self._bounds = cells, at, bounds
        self._sum = at + len(bounds) + 1

    def observe(self, value: float) -> None:
        self._cells[self._at + bisect_left(self._bounds, value)] += 1
        self._cells[self._sum] += value


class Gauge:
    """A gauge: how much there is now, as `read` returns it, summed over all processes; 0 until first refreshed."""

    __slots__ = ("_at", "_cells", "read")

    def __init__(self, cells: Cells, at: int) -> None:
        self._cells, self._at = cells, at
        self.read: Callable[[], float] = lambda: 0.0
        cells[at] = 0.0  # the process that had this slot before is gone, and so is what it held

    def refresh(self) -> None:
        self._cells[self._at] = self.read()


class Series(NamedTuple):
    """The cells of one combination of label values, from `at` on."""

    labels: tuple[str, ...]
    at: int


@dataclass(frozen=True, slots=True)
class Family:
    """One metric's name, help and labels, with its series."""

    name: str
    kind: Kind
    help: str
    labels: tuple[str, ...] = ()
    bounds: tuple[float, ...] = ()
    series: list[Series] = field(default_factory=list)

    @property
    def cells(self) -> int:
        """The number of cells of each series."""
        return len(self.bounds) + 2 if self.kind == "histogram" else 1


class Reading(NamedTuple):
    """A family summed over all processes: for each combination of label values, the sums of its cells."""

    family: Family
    values: list[tuple[tuple[str, ...], list[float]]]


class Metrics:
    """The metrics of one process. `stopwatch` returns seconds."""

    _ended: dict[tuple[str, ...], Counter]
    received: dict[Protocol, Counter]
    stages: dict[Stage, Histogram]
    batch_files: Histogram
    batch_rows: Histogram
    live_uploads: Gauge
    event_streams: Gauge
    staged_bytes: Gauge
    slots: Gauge
    free_slots: Gauge
    workers: Gauge
    lag: Histogram
    sweeps: dict[str, Counter]
    swept: dict[str, Counter]
    scrubbed_files: Counter
    scrubbed_bytes: Counter
    scrubs: dict[str, Counter]
    damage: dict[Damage, Counter]
    mended: Counter
    damaged_uploads: Gauge
    without_record: Gauge
    foreign: Gauge
    scrub_progress: Gauge
    scrubbed_at: Gauge
    keyed: dict[Keyed, Counter]
    broken_records: Counter

    def __init__(
        self, worker_slots: WorkerSlots | None = None, *, stopwatch: Callable[[], float] = time.perf_counter
    ) -> None:
        self.stopwatch = stopwatch
        self._worker_slots = OwnSlot() if worker_slots is None else worker_slots
        self._cells = self._worker_slots.take()
        self._used = 0
        self._gauges: list[Gauge] = []
        self.families: list[Family] = []
        for row in FAMILIES:
            family = Family(row.name, row.kind, row.help, row.labels, row.bounds)
            self.families.append(family)
            if row.values:
                made = {each if len(each) > 1 else each[0]: self._metric(family, each) for each in row.values}
                setattr(self, row.attribute, made)
            else:
                setattr(self, row.attribute, self._metric(family, ()))
        self.workers.read = lambda: 1.0
        self.refresh()

    def ended(self, protocol: Protocol, outcome: Outcome) -> None:
        """Count an upload that has ended."""
        self._ended[protocol, outcome].add()

    def refresh(self) -> None:
        """Read all gauges of this process anew."""
        for gauge in self._gauges:
            gauge.refresh()

    async def watch(self) -> None:
        """Measure the event loop's lag, and refresh the gauges for whichever worker is scraped. Until cancelled."""
        await every(0.0, self._tick, failure="metrics not measured", log=log)

    async def _tick(self) -> None:
        began = self.stopwatch()
        await asyncio.sleep(_TICK_SECONDS)
        self.lag.observe(max(0.0, self.stopwatch() - began - _TICK_SECONDS))
        self.refresh()

    def read(self) -> list[Reading]:
        """Sum the metrics of all processes. Counts of a process that died remain; its gauges count as nothing."""
        self.refresh()
        worker_slots = list(self._worker_slots.all())
        living = [worker_slot for worker_slot in worker_slots if worker_slot.taken]
        return [self._sum(family, living if family.kind == "gauge" else worker_slots) for family in self.families]

    def _sum(self, family: Family, worker_slots: Sequence[WorkerSlot]) -> Reading:
        width = family.cells
        return Reading(
            family,
            [
                (
                    series.labels,
                    [
                        sum(worker_slot.cells[at] for worker_slot in worker_slots)
                        for at in range(series.at, series.at + width)
                    ],
                )
                for series in family.series
            ],
        )

    def _metric(self, family: Family, labels: tuple[str, ...]) -> Counter | Histogram | Gauge:
        """Make the metric of one series, in the next cells that are free."""
        at = self._used
        self._used += family.cells
        if self._used > len(self._cells):
            raise ValueError(f"{self._used} cells do not fit into a worker slot: raise SLOT_CELLS")
        family.series.append(Series(labels, at))
        if family.kind == "counter":
            return Counter(self._cells, at)
        if family.kind == "histogram":
            return Histogram(self._cells, at, family.bounds)
        gauge = Gauge(self._cells, at)
        self._gauges.append(gauge)
        return gauge
