"""What processes count is added up, whoever of them has died; what they have now is what the living have."""

import asyncio
import multiprocessing
from contextlib import contextmanager

import pytest

from app.metrics import Metrics, SharedWorkerSlots
from app.model import Protocol

CONTEXT = multiprocessing.get_context("spawn")
PATIENCE = 60


def value(metrics, name, *labels):
    """The cells under a name and label values."""
    [reading] = [reading for reading in metrics.read() if reading.family.name == name]
    [cells] = [cells for found, cells in reading.values if found == labels]
    return cells


def work(worker_slots, pipe):
    """One worker: it counts one upload, has three live ones, says so, and waits until it is killed."""
    metrics = Metrics(worker_slots)
    metrics.live_uploads.read = lambda: 3
    metrics.ended(Protocol.RAW, "completed")
    metrics.stages["receive"].observe(0.2)
    metrics.refresh()
    pipe.send("counted")
    pipe.recv()


@contextmanager
def worker(worker_slots):
    """A worker that has counted; killed at the end, as no process would wish."""
    ours, theirs = CONTEXT.Pipe()
    process = CONTEXT.Process(target=work, args=(worker_slots, theirs))
    process.start()
    try:
        assert ours.poll(PATIENCE)
        assert ours.recv() == "counted"
        yield
    finally:
        process.kill()
        process.join(PATIENCE)
        process.close()
        ours.close()
        theirs.close()


def test_counters_of_all_processes_are_added_and_gauges_of_the_dead_are_gone():
    worker_slots = SharedWorkerSlots()
    own = Metrics(worker_slots)
    own.ended(Protocol.RAW, "completed")
    own.live_uploads.read = lambda: 1
    uploads = ("waybill_uploads_total", "raw", "completed")
    with worker(worker_slots):
        with worker(worker_slots):
            assert value(own, *uploads) == [3]
            assert value(own, "waybill_live_uploads") == [7]
            assert value(own, "waybill_workers") == [3]
        assert value(own, *uploads) == [3]
        assert value(own, "waybill_live_uploads") == [4]
        assert value(own, "waybill_workers") == [2]
    assert value(own, *uploads) == [3]
    assert value(own, "waybill_live_uploads") == [1]


def test_a_replacement_of_a_dead_process_goes_on_counting_in_its_slot():
    worker_slots = SharedWorkerSlots()
    own = Metrics(worker_slots)
    for number in range(1, 4):
        with worker(worker_slots):
            assert value(own, "waybill_uploads_total", "raw", "completed") == [number]
            assert sum(value(own, "waybill_stage_seconds", "receive")[:-1]) == number
            assert value(own, "waybill_workers") == [2]
            assert len(list(worker_slots.all())) == 2
    assert value(own, "waybill_stage_seconds", "receive")[-1] == pytest.approx(0.6)


def test_reading_metrics_costs_no_worker_its_slot():
    worker_slots = SharedWorkerSlots()
    own = Metrics(worker_slots)
    with worker(worker_slots):
        own.read()
        with worker(worker_slots):  # had the first lost its seat, this one would sit on it
            assert value(own, "waybill_workers") == [3]
            assert len(list(worker_slots.all())) == 3


def test_a_value_on_a_bound_lies_below_it_and_one_above_all_is_counted():
    metrics = Metrics()
    for size in (1, 2, 3, 5000):
        metrics.batch_rows.observe(size)
    *counts, total = value(metrics, "waybill_batch_rows")
    assert counts[:3] == [1, 1, 1]
    assert counts[-1] == 1
    assert total == 5006


async def test_the_lag_of_the_event_loop_is_how_late_its_timer_rings(monkeypatch):
    moments = iter([0.0, 0.75, 1.0, 1.5])
    metrics = Metrics(stopwatch=lambda: next(moments))

    async def sleep(seconds):
        assert seconds == 0.5
        if metrics.lag._cells[metrics.lag._sum]:
            raise asyncio.CancelledError

    monkeypatch.setattr("app.metrics.asyncio.sleep", sleep)
    with pytest.raises(asyncio.CancelledError):
        await metrics.watch()
    *counts, total = value(metrics, "waybill_event_loop_lag_seconds")
    assert (sum(counts), total) == (1, 0.25)
