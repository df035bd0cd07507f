"""Metrics: what the service counts and times, and the one list of them.

Counting must cost next to nothing, since every upload counts and scrapes are rare: a counter is a number in
memory that one process changes, and a scrape adds up those of all processes. Labels have few
values, all known beforehand.
"""

import asyncio
import itertools
import time
from bisect import bisect_left
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Final, Literal, NamedTuple

from app.metrics.multiprocess import Cells, OwnSlot, SharedWorkerSlots, WorkerSlot, WorkerSlots
from app.model import Damage, Protocol

__all__ = ["Metrics", "Outcome", "Reading", "SharedWorkerSlots", "WorkerSlots"]

Kind = Literal["counter", "gauge", "histogram"]
Outcome = Literal["completed", "failed", "cancelled", "expired"]
OUTCOMES: Final[tuple[Outcome, ...]] = ("completed", "failed", "cancelled", "expired")
Stage = Literal["receive", "data_flush", "names_flush", "rows_commit"]
Keyed = Literal["first", "replayed", "in_progress", "mismatch", "passed_over"]
KEYED: Final[tuple[Keyed, ...]] = ("first", "replayed", "in_progress", "mismatch", "passed_over")
STAGES: Final[tuple[Stage, ...]] = ("receive", "data_flush", "names_flush", "rows_commit")
SWEPT: Final = (
    "staged_removed",
    "files_set_aside",
    "files_put_back",
    "aside_removed",
    "records_repaired",
    "files_removed",
    "records_lost",
    "sessions_ended",
    "uploads_expired",
    "uploads_completed",
    "partials_removed",
    "keys_forgotten",
)
_SECONDS: Final = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 300, 1800)
_LAG_SECONDS: Final = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5)
_BATCH: Final = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024, 4096)
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

    def __init__(
        self, worker_slots: WorkerSlots | None = None, *, stopwatch: Callable[[], float] = time.perf_counter
    ) -> None:
        self.stopwatch = stopwatch
        self._seats = OwnSlot() if worker_slots is None else worker_slots
        self._cells = self._seats.take()
        self._used = 0
        self._gauges: list[Gauge] = []
        self.families: list[Family] = []

        ended = self._family(
            "waybill_uploads_total", "counter", "Uploads that ended, as the history has them.", ("protocol", "outcome")
        )
        self._ended = {labels: self._counter(ended, *labels) for labels in itertools.product(Protocol, OUTCOMES)}
        received = self._family(
            "waybill_received_bytes_total", "counter", "Bytes of files that arrived, kept or not.", ("protocol",)
        )
        self.received = {protocol: self._counter(received, protocol) for protocol in Protocol}
        stages = self._family(
            "waybill_stage_seconds", "histogram", "Time in each stage of an upload's way.", ("stage",), _SECONDS
        )
        self.stages = {stage: self._histogram(stages, stage) for stage in STAGES}
        self.batch_files = self._histogram(
            self._family("waybill_batch_files", "histogram", "Files that were made durable together.", bounds=_BATCH)
        )
        self.batch_rows = self._histogram(
            self._family("waybill_batch_rows", "histogram", "Records that were committed together.", bounds=_BATCH)
        )
        self.live_uploads = self._gauge("waybill_live_uploads", "Requests that send files now.")
        self.staged_bytes = self._gauge(
            "waybill_staged_bytes", "Bytes received and not yet published, in memory or not."
        )
        self.slots = self._gauge("waybill_database_slots", "Connections to the database that may be open.")
        self.free_slots = self._gauge("waybill_database_slots_free", "Those of them that nobody uses now.")
        self.workers = self._gauge("waybill_workers", "Processes that serve.")
        self.lag = self._histogram(
            self._family(
                "waybill_event_loop_lag_seconds",
                "histogram",
                "How late a timer rings that each worker sets twice a second.",
                bounds=_LAG_SECONDS,
            )
        )
        sweeps = self._family("waybill_sweeps_total", "counter", "Sweeps, by how they ended.", ("outcome",))
        self.sweeps = {outcome: self._counter(sweeps, outcome) for outcome in ("done", "stopped", "failed")}
        swept = self._family(
            "waybill_swept_total",
            "counter",
            "Files, records, sessions, uploads and keys that sweeps changed, by what they did.",
            ("what",),
        )
        self.swept = {what: self._counter(swept, what) for what in SWEPT}
        self.scrubbed_files = self._counter(
            self._family("waybill_scrubbed_files_total", "counter", "Stored files that were read again and compared.")
        )
        self.scrubbed_bytes = self._counter(
            self._family("waybill_scrubbed_bytes_total", "counter", "Bytes of them that were read.")
        )
        scrubs = self._family(
            "waybill_scrubs_total", "counter", "Passes over all stored files, by how they ended.", ("outcome",)
        )
        self.scrubs = {outcome: self._counter(scrubs, outcome) for outcome in ("done", "stopped", "failed")}
        damage = self._family(
            "waybill_damage_found_total", "counter", "Stored files that such a pass found damaged, by how.", ("damage",)
        )
        self.damage = {each: self._counter(damage, each) for each in Damage}
        self.mended = self._counter(
            self._family("waybill_mended_total", "counter", "Damaged uploads that such a pass found whole again.")
        )
        self.damaged_uploads = self._gauge("waybill_damaged_uploads", "Uploads that are lost or damaged now.")
        self.without_record = self._gauge(
            "waybill_files_without_record", "Files without a record that the last whole pass found."
        )
        self.foreign = self._gauge(
            "waybill_foreign_names", "Names in the store, none of its own, that the last whole pass found."
        )
        self.scrub_progress = self._gauge("waybill_scrub_progress_ratio", "How far the pass under way has come, to 1.")
        self.scrubbed_at = self._gauge(
            "waybill_scrub_whole_timestamp_seconds", "When the last whole pass ended, since 1970; 0 if none has."
        )
        keyed = self._family(
            "waybill_keyed_requests_total",
            "counter",
            "Requests with an Idempotency-Key, by what became of them.",
            ("outcome",),
        )
        self.keyed = {outcome: self._counter(keyed, outcome) for outcome in KEYED}
        self.broken_records = self._counter(
            self._family(
                "waybill_broken_records_total", "counter", "Records that break the model, each time one was left out."
            )
        )
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
        while True:
            began = self.stopwatch()
            await asyncio.sleep(_TICK_SECONDS)
            self.lag.observe(max(0.0, self.stopwatch() - began - _TICK_SECONDS))
            self.refresh()

    def read(self) -> list[Reading]:
        """Sum the metrics of all processes. Counts of a process that died remain; its gauges count as nothing."""
        self.refresh()
        worker_slots = list(self._seats.all())
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

    def _family(
        self, name: str, kind: Kind, help: str, labels: tuple[str, ...] = (), bounds: tuple[float, ...] = ()
    ) -> Family:
        family = Family(name, kind, help, labels, bounds)
        self.families.append(family)
        return family

    def _series(self, family: Family, labels: tuple[str, ...]) -> int:
        at = self._used
        self._used += family.cells
        if self._used > len(self._cells):
            raise ValueError(f"{self._used} figures do not fit into a seat: raise SEAT_CELLS")
        family.series.append(Series(labels, at))
        return at

    def _counter(self, family: Family, *labels: str) -> Counter:
        return Counter(self._cells, self._series(family, labels))

    def _histogram(self, family: Family, *labels: str) -> Histogram:
        return Histogram(self._cells, self._series(family, labels), family.bounds)

    def _gauge(self, name: str, help: str) -> Gauge:
        gauge = Gauge(self._cells, self._series(self._family(name, "gauge", help), ()))
        self._gauges.append(gauge)
        return gauge
