"""The one list of metrics: their names, which are released, and what they count."""

import itertools
from collections.abc import Iterable
from typing import Final, Literal, NamedTuple

from app.model import Damage, Protocol

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
    "uploads_deleted",
    "partials_removed",
    "keys_forgotten",
)
_SECONDS: Final = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 300, 1800)
_LAG_SECONDS: Final = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5)
_BATCH: Final = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024, 4096)


class Row(NamedTuple):
    """One line of the list: the attribute of `Metrics`, and the family it counts in.

    `values` are the values of its labels, a tuple for each series; with them the attribute is a dictionary
    by the one value, or by the tuple of them.
    """

    attribute: str
    kind: Kind
    name: str
    help: str
    labels: tuple[str, ...] = ()
    values: tuple[tuple[str, ...], ...] = ()
    bounds: tuple[float, ...] = ()


def _each(values: Iterable[str]) -> tuple[tuple[str, ...], ...]:
    return tuple((value,) for value in values)


_PASSES: Final = _each(("done", "stopped", "failed"))
FAMILIES: Final = (
    Row(
        "_ended",
        "counter",
        "waybill_uploads_total",
        "Uploads that ended, as the history has them.",
        ("protocol", "outcome"),
        tuple(itertools.product(Protocol, OUTCOMES)),
    ),
    Row(
        "received",
        "counter",
        "waybill_received_bytes_total",
        "Bytes of files that arrived, kept or not.",
        ("protocol",),
        _each(Protocol),
    ),
    Row(
        "stages",
        "histogram",
        "waybill_stage_seconds",
        "Time in each stage of an upload's way.",
        ("stage",),
        _each(STAGES),
        bounds=_SECONDS,
    ),
    Row("batch_files", "histogram", "waybill_batch_files", "Files that were made durable together.", bounds=_BATCH),
    Row("batch_rows", "histogram", "waybill_batch_rows", "Records that were committed together.", bounds=_BATCH),
    Row("live_uploads", "gauge", "waybill_live_uploads", "Requests that send files now."),
    Row("event_streams", "gauge", "waybill_event_streams", "Streams of events that are open."),
    Row("staged_bytes", "gauge", "waybill_staged_bytes", "Bytes received and not yet published, in memory or not."),
    Row("slots", "gauge", "waybill_database_slots", "Connections to the database that may be open."),
    Row("free_slots", "gauge", "waybill_database_slots_free", "Those of them that nobody uses now."),
    Row("workers", "gauge", "waybill_workers", "Processes that serve."),
    Row(
        "lag",
        "histogram",
        "waybill_event_loop_lag_seconds",
        "How late a timer rings that each worker sets twice a second.",
        bounds=_LAG_SECONDS,
    ),
    Row("sweeps", "counter", "waybill_sweeps_total", "Sweeps, by how they ended.", ("outcome",), _PASSES),
    Row(
        "swept",
        "counter",
        "waybill_swept_total",
        "Files, records, sessions, uploads and keys that sweeps changed, by what they did.",
        ("what",),
        _each(SWEPT),
    ),
    Row("scrubbed_files", "counter", "waybill_scrubbed_files_total", "Stored files that were read again and compared."),
    Row("scrubbed_bytes", "counter", "waybill_scrubbed_bytes_total", "Bytes of them that were read."),
    Row(
        "scrubs",
        "counter",
        "waybill_scrubs_total",
        "Passes over all stored files, by how they ended.",
        ("outcome",),
        _PASSES,
    ),
    Row(
        "damage",
        "counter",
        "waybill_damage_found_total",
        "Stored files that such a pass found damaged, by how.",
        ("damage",),
        _each(Damage),
    ),
    Row("mended", "counter", "waybill_mended_total", "Damaged uploads that such a pass found whole again."),
    Row("damaged_uploads", "gauge", "waybill_damaged_uploads", "Uploads that are lost or damaged now."),
    Row(
        "without_record",
        "gauge",
        "waybill_files_without_record",
        "Files without a record that the last whole pass found.",
    ),
    Row(
        "foreign",
        "gauge",
        "waybill_foreign_names",
        "Names in the store, none of its own, that the last whole pass found.",
    ),
    Row("scrub_progress", "gauge", "waybill_scrub_progress_ratio", "How far the pass under way has come, to 1."),
    Row(
        "scrubbed_at",
        "gauge",
        "waybill_scrub_whole_timestamp_seconds",
        "When the last whole pass ended, since 1970; 0 if none has.",
    ),
    Row(
        "keyed",
        "counter",
        "waybill_keyed_requests_total",
        "Requests with an Idempotency-Key, by what became of them.",
        ("outcome",),
        _each(KEYED),
    ),
    Row(
        "broken_records",
        "counter",
        "waybill_broken_records_total",
        "Records that break the model, each time one was left out.",
    ),
)
