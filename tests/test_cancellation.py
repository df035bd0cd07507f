"""Work that must not be left half-way is waited for, whatever happens to whoever waits."""

import asyncio
import signal
import subprocess
import sys

import pytest

from app.cancellation import run_to_completion, until_terminated


class Work:
    """Work that ends when it is told to."""

    def __init__(self) -> None:
        self.end: asyncio.Future[str] = asyncio.get_running_loop().create_future()
        self.ended = False

    async def run(self) -> str:
        try:
            return await self.end
        finally:
            self.ended = True


async def settle() -> None:
    for _ in range(10):
        await asyncio.sleep(0)


async def test_the_result_of_the_work_is_returned():
    work = Work()
    work.end.set_result("done")
    assert await run_to_completion(work.run()) == "done"


async def test_the_error_of_the_work_is_raised():
    work = Work()
    work.end.set_exception(OSError("broken"))
    with pytest.raises(OSError, match="broken"):
        await run_to_completion(work.run())


@pytest.mark.parametrize("times", [1, 2, 5])
@pytest.mark.parametrize("outcome", ["result", "error"])
async def test_a_cancellation_is_raised_when_the_work_has_ended_and_not_before(times, outcome):
    work = Work()
    waiting = asyncio.create_task(run_to_completion(work.run()))
    await settle()
    for _ in range(times):
        waiting.cancel()
        await settle()
        assert not waiting.done()
        assert not work.ended
    if outcome == "result":
        work.end.set_result("done")
    else:
        work.end.set_exception(OSError("nobody is told: no warning of a forgotten exception either"))
    with pytest.raises(asyncio.CancelledError):
        await waiting
    assert work.ended


async def test_a_deadline_of_the_caller_counts_when_the_work_has_ended():
    work = Work()

    async def late() -> None:
        async with asyncio.timeout(0):
            await run_to_completion(work.run())

    waiting = asyncio.create_task(late())
    await settle()
    assert not waiting.done()
    work.end.set_result("done")
    with pytest.raises(TimeoutError):
        await waiting
    assert work.ended


async def test_several_callers_may_wait_for_the_same_work():
    work = Work()
    running = asyncio.ensure_future(work.run())
    waiting = [asyncio.create_task(run_to_completion(running)) for _ in range(3)]
    await settle()
    waiting[0].cancel()
    await settle()
    work.end.set_result("done")
    await asyncio.wait(waiting)
    assert waiting[0].cancelled()
    assert [task.result() for task in waiting[1:]] == ["done", "done"]


async def test_work_that_is_cancelled_itself_is_cancelled_for_who_waits():
    work = Work()
    running = asyncio.ensure_future(work.run())
    waiting = asyncio.create_task(run_to_completion(running))
    await settle()
    running.cancel()
    await asyncio.wait([waiting])
    assert waiting.cancelled()


async def test_a_cancellation_hastens_work_that_still_runs():
    work, hastened = Work(), []
    waiting = asyncio.create_task(run_to_completion(work.run(), hasten=lambda: hastened.append(work.ended)))
    await settle()
    waiting.cancel()
    await settle()
    assert hastened == [False]
    work.end.set_result("done")
    with pytest.raises(asyncio.CancelledError):
        await waiting
    assert hastened == [False]


STUBBORN = """
import asyncio, os, signal
from app.cancellation import until_terminated

async def work():
    os.kill(os.getpid(), signal.SIGTERM)
    for _ in range(2):  # the first time it is told, it does not listen
        try:
            await asyncio.sleep(3600)
        except asyncio.CancelledError:
            if _:
                raise

asyncio.run(until_terminated(work()))
"""


def test_work_that_does_not_listen_to_its_signal_is_told_again():
    ended = subprocess.run([sys.executable, "-c", STUBBORN], timeout=60, check=False, capture_output=True)
    assert (ended.returncode, ended.stderr) == (0, b"")


async def test_work_until_a_signal_returns_its_result_and_leaves_no_handler():
    assert await until_terminated(asyncio.sleep(0, "done")) == "done"
    assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL


async def test_a_cancellation_without_a_signal_stays_one():
    waiting = asyncio.create_task(until_terminated(asyncio.sleep(3600)))
    await asyncio.sleep(0)
    waiting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiting
