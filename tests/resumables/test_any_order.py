"""Whatever is done to a resumable upload, by whom and whatever fails: what was told stays."""

import asyncio
import hashlib
import tempfile
from contextlib import AsyncExitStack, suppress
from pathlib import Path

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, consumes, initialize, precondition, rule

from app.errors import Gone, UploadError
from app.maintenance.sweep import Sweeper
from app.model import Status
from app.resumables import Appended
from app.storage.memory import MemoryUnfinished
from tests.support.resumables import DAY, Tail, World, Writer
from tests.support.unreliable import Store, until

HOW = ["keep", "complete", "break off", "discard", "too much"]
blocks = st.lists(st.binary(max_size=5), max_size=3)
faults = st.just([]) | st.lists(st.sampled_from([None, "away", "lost"]), max_size=6)
workers = st.integers(0, 1)


class Broken(Exception):
    """The connection to the client."""


class Known:
    """What a client knows of its upload: how many bytes it was told are there, and which they may be."""

    def __init__(self, key: str, length: int | None, upload_id: str, created_at: int) -> None:
        self.key, self.length, self.upload_id, self.created_at = key, length, upload_id, created_at
        self.offset = 0
        self.contents = {b""}
        self.state = "open"
        self.cancelled = False
        self.tail = None
        self.completed_before: set[bytes] = set()
        self.late: set[bytes] = set()
        """Whole files that requests brought after they had lost their lock: one may have been published."""

    def sends(self, data: list[bytes], offset: int) -> None:
        """These bytes may come to stand behind the first `offset` ones."""
        for content in [content for content in self.contents if len(content) >= offset]:
            self.contents.add(content[:offset] + b"".join(data))


@pytest.fixture(autouse=True, scope="module")
def hasty():
    """Nobody is waited for as long as in earnest."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("app.resumables.writer_lock.PATIENCE_SECONDS", 0.02)
        patch.setattr("app.resumables.writer_lock._POLL_SECONDS", 0.002)
        patch.setattr("app.resumables.writer_lock._WATCH_SECONDS", 0.004)
        patch.setattr("app.resumables.completion._POLL_SECONDS", 0.002)
        patch.setattr("app.resumables.writer.CHECKPOINT_BYTES", 4)
        yield


class ResumeMachine(RuleBasedStateMachine):
    uploads = Bundle("uploads")
    writers = Bundle("writers")

    def __init__(self) -> None:
        super().__init__()
        self.runner = asyncio.Runner()
        self.stack = AsyncExitStack()
        self.directory = tempfile.TemporaryDirectory()
        self.known: list[Known] = []
        self.hanging: list[Writer] = []

    @initialize()
    def start(self):
        async def run():
            self.world = World(f"sqlite:///{Path(self.directory.name)}/waybill.db", Store(), self.stack)
            self.workers = [await self.world.worker() for _ in range(2)]
            self.workers[1].resumes._parts.locks._watch = lambda: asyncio.sleep(3600)
            for worker in self.workers:
                worker.resumes._parts.expiry._grace_seconds = 0

        self.runner.run(run())

    # --- what clients do

    @precondition(lambda self: len(self.known) < 2)
    @rule(target=uploads, length=st.none() | st.integers(0, 30))
    def create(self, length):
        key = self.runner.run(self.workers[0].create(length))
        [newest, *_] = reversed(self.runner.run(self.workers[0].history()))
        known = Known(key, length, newest.id, self.world.clock())
        self.known.append(known)
        return known

    @rule(
        upload=uploads,
        by=workers,
        data=blocks,
        how=st.sampled_from(HOW),
        faults=faults,
        off=st.sampled_from([0, 0, 0, -1, 1]),
        declares=st.booleans(),
    )
    def append(self, upload, by, data, how, faults, off, declares):
        offset = max(0, upload.offset + off)
        worker = self.workers[by]
        declared = sum(map(len, data)) if declares else None

        async def run():
            worker.db.fails = list(faults)
            async with worker.resumes.append(
                upload.key, "mine", Appended(offset, declared=declared, checked=how == "discard")
            ) as appending:
                for block in data:
                    await appending.write(block)
                match how:
                    case "keep":
                        await appending.keep()
                    case "complete":
                        await appending.complete()
                    case "discard":
                        await appending.discard()
                    case "too much":
                        await appending.write(bytes(2_000_000))
                    case "break off":
                        raise Broken

        if how != "discard":
            upload.sends(data, offset)
        with suppress(UploadError, Broken):
            self.runner.run(run())
        self.runner.run(self.back(worker))
        self.learn(upload, by)

    @rule(target=writers, upload=uploads, by=workers, data=blocks, checked=st.booleans(), declares=st.booleans())
    def hang(self, upload, by, data, checked, declares):
        """A request that brings some bytes, and then nothing."""
        length = 1000 if upload.length is None else upload.length
        if upload.state != "open" or upload.offset + len(b"".join(data)) > length:
            return None, upload, by

        async def run():
            declared = length - upload.offset if declares else None
            writer = Writer(self.workers[by], upload.key, upload.offset, *data, checked=checked, declared=declared)
            arrived = asyncio.ensure_future(writer.arrived.wait())
            await asyncio.wait((writer.task, arrived), return_when="FIRST_COMPLETED")
            arrived.cancel()
            return writer

        if not checked:
            upload.sends(data, upload.offset)
        writer = self.runner.run(run())
        writer.offset, writer.brought = upload.offset, data
        self.hanging.append(writer)
        return writer, upload, by

    @rule(writer=consumes(writers))
    def kill(self, writer):
        """Its process ends where it stands: it commits nothing any more, and its files are nobody's."""
        writer, upload, by = writer
        if writer is None:
            return

        async def run():
            worker = self.workers[by]
            worker.db.fails = ["away"] * 100
            writer.task.cancel()
            await asyncio.wait((writer.task,))
            await self.back(worker)

        self.runner.run(run())
        self.learn(upload, by)

    @rule(writer=consumes(writers), data=blocks)
    def go_on(self, writer, data):
        """It brings more and ends well, as far as it knows: the second process never looks who wants its uploads."""
        writer, upload, by = writer
        if writer is None or writer.task.done():
            return
        if upload.offset == writer.offset:  # else others have gone on since, and nothing of it may count any more
            upload.sends([*writer.brought, *data], writer.offset)
        if not writer.offset:
            upload.late.add(b"".join([*writer.brought, *data]))
        for block in (*data, None):
            writer.more.put_nowait(block)
        self.runner.run(asyncio.wait((writer.task,)))
        if not writer.task.cancelled() and writer.task.exception() is None:
            told = writer.task.result().offset
            self.learn(upload, by)
            assert upload.state != "open" or upload.offset >= told
        self.learn(upload, by)

    @rule(
        upload=uploads,
        first=blocks,
        data=blocks,
        how=st.sampled_from(HOW),
        faults=faults,
        late=blocks,
        declares=st.booleans(),
    )
    def take_over(self, upload, first, data, how, faults, late, declares):
        """The three of them in a row, which is rare by chance: one hangs, another goes on, the first wakes up."""
        writer = self.hang(upload, 1, first, False, declares)
        self.append(upload, 0, data, how, faults, 0, declares)
        self.go_on(writer, late)

    @rule(upload=uploads, by=workers)
    def ask(self, upload, by):
        self.learn(upload, by)

    @rule(upload=uploads, by=workers, lost=st.booleans())
    def cancel(self, upload, by, lost):
        worker = self.workers[by]
        worker.db.fails = [None, "lost"] if lost else []
        upload.cancelled = True
        with suppress(UploadError):
            self.runner.run(worker.resumes.cancel(upload.key, "mine"))
        self.runner.run(self.back(worker))
        self.learn(upload, by)
        assert lost or upload.state == "gone"  # what was lost may have been said before it came to that

    @rule(upload=uploads)
    def remember(self, upload):
        """The standby has the row as it is now, and nothing that comes later."""
        if upload.state == "open":
            self.learn(upload, 0)
        if upload.state == "open":
            upload.tail = Tail(self.workers[0], upload.key), upload.offset, set(upload.contents)
            self.runner.run(upload.tail[0].__aenter__())

    @rule(upload=uploads)
    def fail_over(self, upload):
        if upload.tail is None or upload.state == "gone":
            return
        tail, offset, contents = upload.tail
        self.runner.run(tail.lose())
        if upload.state == "completed":
            upload.completed_before |= upload.contents
        upload.state, upload.offset, upload.contents, upload.tail = "open", offset, contents, None

    @precondition(lambda self: any(upload.state == "open" for upload in self.known))
    @rule(by=workers, hours=st.sampled_from([0, 1, 24]))
    def sweep(self, by, hours):
        self.world.clock.pass_by(seconds=hours * 3600)
        self.runner.run(self.workers[by].resumes.sweep())
        for upload in self.known:
            self.learn(upload, by)

    # --- what they may then rely on

    async def back(self, worker):
        """Nothing fails any more, and the publisher has seen that."""
        worker.db.fails = []
        await until(lambda: not worker.publisher._in_doubt.away.is_set())

    def learn(self, upload, by):
        """Ask how far the upload came: at least as far as was told before, and with nothing but what was sent."""
        if upload.state == "gone":
            return
        try:
            found = self.runner.run(self.workers[by].resumes.find(upload.key, "mine", newest=True))
        except Gone:
            old = self.world.clock() - upload.created_at >= DAY * 1_000_000
            assert upload.cancelled or (old and upload.state == "open")
            upload.state = "gone"
            return
        assert found.offset >= upload.offset
        if found.completed:
            acknowledged = {each[: upload.offset] for each in upload.contents}
            upload.contents |= {each for each in upload.late if each[: upload.offset] in acknowledged}
        upload.offset = found.offset
        upload.contents = {each[: found.offset] for each in upload.contents if len(each) >= found.offset}
        assert upload.contents or upload.completed_before
        if found.completed:
            upload.state = "completed"
            assert upload.length in {None, found.offset}
            upload.contents = {
                each
                for each in upload.contents | upload.completed_before
                if hashlib.sha256(each).hexdigest() == found.upload.sha256
            }
            assert len(upload.contents) == 1
        else:
            assert (upload.state, found.upload.status) == ("open", Status.UPLOADING)

    def teardown(self):
        async def run():
            for writer in self.hanging:
                writer.task.cancel()
                await asyncio.wait((writer.task,))
            [worker, _] = self.workers
            sweep = worker.resumes.sweep
            await Sweeper(worker.storage, worker.db, resumables=sweep, now_us=worker.clock, grace_seconds=0).once()
            contents = await self.world.storage.contents()
            statuses = {upload.id: upload.status for upload in await worker.history()}
            assert contents.keys() == {key for key, status in statuses.items() if status is Status.COMPLETED}
            for upload in self.known:
                if upload.state == "completed":
                    assert contents[upload.upload_id] in upload.contents
            open_ones = {key for key, status in statuses.items() if status is Status.UPLOADING}
            assert {key for key, _ in self.world.storage.unfinished_files} <= open_ones
            assert not [staged for staged in self.world.storage.staged if isinstance(staged, MemoryUnfinished)]
            assert self.world.storage.space.reserved == 0
            await self.stack.aclose()

        if hasattr(self, "workers"):
            self.runner.run(run())
        self.runner.close()
        self.directory.cleanup()


TestAnyOrder = pytest.mark.slow(ResumeMachine.TestCase)
TestAnyOrder.settings = settings(max_examples=max(1, settings().max_examples // 2), stateful_step_count=30)
