"""The periodic loop: it goes on after every failure, says what failed, and stops when it is cancelled."""

import asyncio
from collections import Counter
from contextlib import suppress

import pytest
import structlog
from structlog.testing import capture_logs

from app.background import attempt, every
from app.errors import Unavailable
from tests.support.unreliable import coming

log = structlog.stdlib.get_logger("test")


class Round:
    """Work that fails in these ways, one after the other, and then no more."""

    def __init__(self, *failures: BaseException) -> None:
        self.failures, self.done = list(failures), asyncio.Event()

    async def work(self) -> None:
        if self.failures:
            raise self.failures.pop(0)
        self.done.set()


async def ended(task: asyncio.Task) -> None:
    task.cancel()
    with suppress(asyncio.CancelledError):
        await task


async def test_a_loop_goes_on_after_every_failure_and_says_what_failed():
    rounds, counts = Round(Unavailable("away"), KeyError("a mistake"), TimeoutError()), Counter()
    with capture_logs() as logged:
        loop = asyncio.create_task(
            every(0, rounds.work, failure="nothing done", log=log, count=lambda: counts.update(["failed"]))
        )
        await coming(rounds.done)
        await ended(loop)
    assert [(line["event"], line["log_level"]) for line in logged] == [
        ("nothing done", "warning"),
        ("nothing done", "error"),
        ("nothing done", "error"),
    ]
    assert logged[0]["reason"] == "away"
    assert logged[1]["exc_info"]
    assert counts == {"failed": 3}


async def test_a_loop_begins_with_a_pause_which_its_event_ends():
    rounds, sooner = Round(), asyncio.Event()
    loop = asyncio.create_task(every(3600, rounds.work, failure="", log=log, sooner=sooner))
    for _ in range(3):
        await asyncio.sleep(0)
        assert not rounds.done.is_set()
        sooner.set()
        await coming(rounds.done)
        rounds.done.clear()
        assert not sooner.is_set()
    await ended(loop)


async def test_work_that_is_wanted_again_meanwhile_is_done_again():
    sooner, times, twice = asyncio.Event(), Counter(), asyncio.Event()

    async def work():
        times["done"] += 1
        if times["done"] == 1:
            sooner.set()
        else:
            twice.set()

    sooner.set()
    loop = asyncio.create_task(every(3600, work, failure="", log=log, sooner=sooner))
    await coming(twice)
    await ended(loop)


async def test_a_cancellation_ends_a_loop_at_work_and_is_no_failure():
    began = asyncio.Event()

    async def work():
        began.set()
        await asyncio.Event().wait()

    with capture_logs() as logged:
        loop = asyncio.create_task(every(0, work, failure="nothing done", log=log))
        await coming(began)
        loop.cancel()
        with pytest.raises(asyncio.CancelledError):
            await loop
    assert logged == []


async def test_loops_of_one_interval_pause_for_different_times(monkeypatch):
    pauses, timeout = [], asyncio.timeout

    def shortened(seconds):
        pauses.append(seconds)
        return timeout(0)

    rounds = Round(*[Unavailable() for _ in range(20)])
    monkeypatch.setattr("app.background.asyncio.timeout", shortened)
    loop = asyncio.create_task(every(10, rounds.work, failure="nothing done", log=log))
    await rounds.done.wait()
    await ended(loop)
    assert all(9 <= pause <= 11 for pause in pauses)
    assert len(set(pauses)) > 1


async def test_an_attempt_that_succeeds_counts_and_logs_nothing():
    with capture_logs() as logged:
        await attempt(Round().work, failure="nothing done", log=log, count=lambda: pytest.fail("counted"))
    assert logged == []
