"""F26. An append is cancelled wherever it waits, once and twice: it is gone on with, and nothing that it held is lost.

The store, the database and uploads in one request are cancelled everywhere in tests/storage/local/test_cancellation.py,
tests/db/test_database.py and tests/properties/test_p03_atomic_files.py.
"""

import asyncio
from contextlib import AsyncExitStack, suppress
from itertools import count

import pytest
from structlog.testing import capture_logs

from tests.support.resumables import World, sha
from tests.support.service import PATIENCE
from tests.support.stores import local

pytestmark = pytest.mark.slow

CONTENT = bytes(range(256)) * 2500
CUT = 300_000


class Cancelled:
    """Awaits `work`, and cancels its own task when that waits for the `at`-th time, and so often in a row."""

    def __init__(self, work, at, times):
        self._work, self._moments, self.waited = work, range(at, at + times), 0

    def __await__(self):
        steps = self._work.__await__()
        sent = error = None
        while True:
            try:
                future = steps.throw(error) if error is not None else steps.send(sent)
            except StopIteration as end:
                return end.value
            sent = error = None
            if self.waited in self._moments:
                asyncio.current_task().cancel()
            self.waited += 1
            try:
                sent = yield future
            except BaseException as raised:
                error = raised


async def cancelled(work, at, times):
    """Let `work` run with that cancellation; whether it came to that."""

    async def run():
        awaited = Cancelled(work, at, times)
        try:
            await awaited
        finally:
            reached.append(awaited.waited > at)

    reached: list[bool] = []
    with suppress(asyncio.CancelledError):
        await asyncio.create_task(run())
    return reached[0]


@pytest.fixture
async def worker(tmp_path, database_url):
    async with AsyncExitStack() as stack:
        storage = local(tmp_path / "store")
        await storage.prepare()
        stack.push_async_callback(storage.close)
        yield await World(database_url, storage, stack).worker()


async def until_nothing_is_held(worker):
    """No promised space, no place among those who send, and no connection but for whoever just looks after things."""
    assert (worker.storage.space.reserved, worker.ingest.metrics.live_uploads.read()) == (0, 0)
    async with asyncio.timeout(PATIENCE):
        while len(set(worker.db.slots())) > 1:  # noqa: ASYNC110  # nobody tells us
            await asyncio.sleep(0.01)


@pytest.mark.parametrize("times", [1, 2])
async def test_an_append_that_is_cancelled_anywhere_can_be_gone_on_with(worker, times):
    """Once it has its turn it has also let go by the time it ends, so that nobody need pass it over."""
    for at in count():
        key = await worker.create(len(CONTENT))
        append = worker.append(key, 0, CONTENT[:CUT], CONTENT[CUT:], declared=len(CONTENT))
        with capture_logs() as logged:
            reached = await cancelled(append, at, times)
            offset = await worker.offset(key)
        passed_over = [line for line in logged if line["event"] == "writer preempted"]
        assert at == 0 or passed_over == []  # at first it asks for its turn, which may be its own unheard
        assert offset in {0, CUT, len(CONTENT)}
        if offset < len(CONTENT):
            await worker.append(key, offset, CONTENT[offset:])
        await until_nothing_is_held(worker)
        if not reached:
            break
    assert at > 3
    uploads = await worker.history()
    assert [(upload.size, upload.sha256) for upload in uploads] == [(len(CONTENT), sha(CONTENT))] * (at + 1)
    assert await worker.unfinished() == []
