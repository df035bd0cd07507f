"""What is whole is completed once, whoever crashes, leaves or comes again."""

import asyncio

import pytest

from app.errors import Gone, OutcomeUnknown, StorageFull, TooLarge, Unavailable
from app.maintenance.sweep import Sweeper
from app.maintenance.verify import verify
from app.model import Status
from app.resumables import records as resumable_records
from tests.support.resumables import DAY, HOUR, sha, worker, world
from tests.support.unreliable import Gate, coming, ticking, until

__all__ = ["worker", "world"]


async def nothing(keys):
    """Remove nothing: the process dies just before it would."""


class TestCompleting:
    async def test_files_are_published_before_rows_are_committed_before_the_acknowledgement(self, world, worker):
        key = await worker.create(3)
        worker.db.story.clear()
        world.storage.story = worker.db.story
        await worker.append(key, 0, b"abc")
        assert worker.db.story == ["committed", "committed", "published", "committed", "committed"]
        # claimed; the last byte; the file; its record; its row's end

    @pytest.mark.parametrize("who", ["question", "append", "sweep", "another process", "after a restart"])
    async def test_a_crash_between_file_and_record_is_repaired_by_the_next_request(self, world, worker, who):
        key = await worker.create(3)
        world.storage.gate.close()
        appending = asyncio.create_task(worker.append(key, 0, b"abc"))
        await coming(world.storage.gate.reached)
        worker.db.away = True
        world.storage.gate.open()
        with pytest.raises(OutcomeUnknown):
            await appending
        assert list((await world.storage.contents()).values()) == [b"abc"]
        if who == "after a restart":
            await worker.resumes.close(5)
        worker.db.away = False
        await until(lambda: not worker.publisher._in_doubt.away.is_set())
        assert await worker.statuses() == [(3, "uploading")]
        assert (await verify(world.storage, worker.db)).sound
        world.clock.pass_by(seconds=HOUR)
        match who:
            case "question":
                assert (await worker.resumes.find(key, "mine", newest=True)).completed
            case "append":
                assert (await worker.append(key, 3)).completed
            case "sweep":
                assert (await worker.resumes.sweep()).completed == 1
            case _:
                other = await world.worker()
                assert (await other.resumes.find(key, "mine", newest=True)).completed
        [upload] = await worker.history()
        assert (upload.status, upload.sha256) == (Status.COMPLETED, sha(b"abc"))
        assert list((await world.storage.contents()).values()) == [b"abc"]

    @pytest.mark.parametrize("ended", ["cancelled", "failed", "cancelled, and then the process died"])
    async def test_a_file_that_a_crash_left_goes_with_its_upload(self, world, worker, ended):
        """Its row says for good that nothing of it is kept, and nobody ever asks for it again."""
        key = await worker.create(3)
        worker.db.fails = [None, None, *["away"] * 20]  # claimed, committed
        with pytest.raises(OutcomeUnknown):
            await worker.append(key, 0, b"abc")
        worker.db.fails = []
        assert list((await world.storage.contents()).values()) == [b"abc"]
        match ended:
            case "cancelled":
                await worker.resumes.cancel(key, "mine")
            case "failed":
                await worker.resumes.fail(key, "mine", TooLarge(4, 3))
            case _:
                with pytest.MonkeyPatch.context() as dying:
                    dying.setattr(world.storage, "remove", nothing)
                    await worker.resumes.cancel(key, "mine")
                await Sweeper(world.storage, worker.db, now_us=world.clock, grace_seconds=0).once()
        assert await worker.statuses() == [(3, "failed")]
        assert await world.storage.contents() == {}

    async def test_a_crash_before_the_file_is_published_is_repaired(self, world, worker):
        key = await worker.create(3)
        world.storage.fails = OSError("crash")
        with pytest.raises(Exception, match="request id"):
            await worker.append(key, 0, b"abc")
        world.storage.fails = None
        assert await worker.statuses() == [(3, "uploading")]
        done = await (await world.worker()).resumes.find(key, "mine", newest=True)
        assert (done.completed, done.upload.sha256) == (True, sha(b"abc"))

    async def test_an_upload_that_a_full_database_refuses_to_record_is_kept(self, world, worker):
        key = await worker.create(3)
        worker.db.fails = [None, None, "full"]  # claimed, committed
        with pytest.raises(StorageFull):
            await worker.append(key, 0, b"abc")
        assert (await worker.resumes.find(key, "mine", newest=True)).completed

    async def test_an_upload_in_doubt_is_not_settled_as_failed(self, world, worker):
        """Others are: they have nobody who could complete them."""
        key = await worker.create(3)
        worker.db.fails = [None, None, *["away"] * 50]
        with pytest.raises(OutcomeUnknown):
            await worker.append(key, 0, b"abc")
        worker.db.fails = []
        await until(lambda: not worker.publisher._in_doubt.away.is_set())
        assert await worker.statuses() == [(3, "uploading")]
        assert (await worker.append(key, 3)).completed

    async def test_two_processes_that_complete_at_once_complete_once(self, world, worker):
        other = await world.worker()
        key = await worker.create(3)
        world.storage.fails = OSError("crash")
        with pytest.raises(Exception, match="request id"):
            await worker.append(key, 0, b"abc")
        world.storage.fails = None
        found = await asyncio.gather(
            *(each.resumes.find(key, "mine", newest=True) for each in (worker, other, worker, other)),
            return_exceptions=True,
        )
        assert {getattr(each, "completed", type(each)) for each in found} == {True}
        assert await worker.statuses() == [(3, "completed")]

    async def test_a_question_during_completion_waits_for_it(self, world, worker):
        other = await world.worker()
        key = await worker.create(3)
        world.storage.gate.close()
        appending = asyncio.create_task(worker.append(key, 0, b"abc"))
        await coming(world.storage.gate.reached)
        questions = [asyncio.create_task(each.resumes.find(key, "mine", newest=True)) for each in (worker, other)]
        await asyncio.sleep(0)
        world.storage.gate.open()
        assert {(await each).completed for each in (appending, *questions)} == {True}

    async def test_an_upload_cancelled_while_it_is_published_leaves_nothing(self, world, worker):
        other = await world.worker()
        key = await worker.create(3)
        world.storage.gate.close()
        appending = asyncio.create_task(worker.append(key, 0, b"abc"))
        await coming(world.storage.gate.reached)
        await other.resumes.cancel(key, "mine")
        world.storage.gate.open()
        with pytest.raises((Gone, Unavailable)):
            await appending
        assert await worker.statuses() == [(3, "failed")]
        assert await world.storage.contents() == {}
        assert await worker.unfinished() == []

    async def test_an_upload_cancelled_while_it_is_recorded_leaves_nothing(self, world, worker):
        other = await world.worker()
        key = await worker.create(3)
        world.storage.gate.close()
        appending = asyncio.create_task(worker.append(key, 0, b"abc"))
        await coming(world.storage.gate.reached)
        worker.db.gate.close()
        world.storage.gate.open()
        await coming(worker.db.gate.reached)
        assert list((await world.storage.contents()).values()) == [b"abc"]
        await other.resumes.cancel(key, "mine")
        worker.db.gate.open()
        with pytest.raises(Gone):
            await appending
        assert await worker.statuses() == [(3, "failed")]
        assert await world.storage.contents() == {}

    async def test_a_caller_who_leaves_does_not_stop_the_completion(self, world, worker):
        key = await worker.create(3)
        world.storage.gate.close()
        appending = asyncio.create_task(worker.append(key, 0, b"abc"))
        await coming(world.storage.gate.reached)
        appending.cancel()
        await asyncio.sleep(0)
        world.storage.gate.open()
        with pytest.raises(asyncio.CancelledError):
            await appending
        assert await worker.statuses() == [(3, "completed")]

    async def test_acknowledged_bytes_that_are_missing_are_reported(self, world, worker):
        short, absent = await worker.create(9), await worker.create(9)
        for key in (short, absent):
            await worker.append(key, 0, b"abc")
        cut, gone = sorted(world.storage.unfinished_files)
        del world.storage.unfinished_files[cut][2:]
        del world.storage.unfinished_files[gone]
        for key in (short, absent):
            with pytest.raises(Gone):
                await worker.append(key, 3, b"def")
            with pytest.raises(Gone):
                await worker.resumes.find(key, "mine", newest=True)
        assert [upload.error.code for upload in await worker.history()] == ["lost", "lost"]

    async def test_bytes_beyond_what_was_acknowledged_are_cut_off(self, world, worker):
        key = await worker.create(6)
        await worker.append(key, 0, b"abc")
        [file] = world.storage.unfinished_files.values()
        file += b"xyz"
        assert (await worker.append(key, 3, b"def")).upload.sha256 == sha(b"abcdef")


class TestConcatenating:
    @pytest.fixture
    def assembling(self, world, monkeypatch):
        """A gate for the first who puts parts together."""
        gate, real = Gate(), world.storage.assemble

        async def assemble(*arguments):
            if not gate.reached.is_set():
                await gate.pass_through()
            return await real(*arguments)

        monkeypatch.setattr(world.storage, "assemble", assemble)
        return gate

    async def waiting(self, worker):
        """The key of an upload, and that of the part whose only byte it waits for."""
        parts = [await worker.create(1, is_part=True) for _ in range(2)]
        await worker.append(parts[0], 0, b"a")
        return (await worker.concatenate(*parts))[1], parts[1]

    async def test_another_process_leaves_a_concatenation_to_the_one_at_work(self, world, worker, assembling):
        other = await world.worker()
        key, part = await self.waiting(worker)
        assembling.close()
        await worker.append(part, 0, b"b")
        await coming(assembling.reached)
        for _ in range(2):
            found = await other.resumes.find(key, "mine", newest=True)
            assert not (await other.resumes._parts.completions.of(found)).completed
        assembling.open()
        assert (await worker.resumes._parts.completions.of(await worker.resumes.find(key, "mine"))).completed
        assert await worker.statuses() == [(2, "completed")]

    @pytest.mark.parametrize("days", [0, 6.5])
    async def test_a_process_at_work_is_not_preempted_however_old_the_upload(
        self, world, worker, assembling, monkeypatch, days
    ):
        monkeypatch.setattr("app.resumables.writer_lock.PATIENCE_SECONDS", 0.05)
        other = await world.worker()
        key, part = await self.waiting(worker)
        world.clock.pass_by(seconds=days * DAY)
        assembling.close()
        await worker.append(part, 0, b"b")
        await coming(assembling.reached)
        found = await other.resumes.find(key, "mine", newest=True)
        assert not (await other.resumes._parts.completions.of(found)).completed
        assembling.open()
        assert (await worker.resumes._parts.completions.of(await worker.resumes.find(key, "mine"))).completed

    @pytest.mark.parametrize("seen_at_work", [True, False])
    async def test_only_a_process_that_is_not_seen_at_work_is_preempted(
        self, world, worker, assembling, monkeypatch, seen_at_work
    ):
        monkeypatch.setattr("app.resumables.assembly.SEEN_SECONDS", 0.01 if seen_at_work else 3600)
        monkeypatch.setattr("app.resumables.recovery.LEFT_SECONDS", 0.5)
        world.clock = worker.clock = ticking(world.clock())
        worker.resumes._parts.completions._completion._assembler._now_us = worker.clock
        other = await world.worker()
        key, part = await self.waiting(worker)
        assembling.close()
        await worker.append(part, 0, b"b")
        await coming(assembling.reached)

        async def looked_for(seconds):
            clock = asyncio.get_running_loop().time
            end = clock() + seconds
            while clock() < end and not (await other.resumes.find(key, "mine")).completed:
                await other.resumes._parts.recovery.others()
                await asyncio.sleep(0.02)
            return (await other.resumes.find(key, "mine")).completed

        assert await looked_for(1.5 if seen_at_work else 60) is not seen_at_work
        assembling.open()
        if seen_at_work:
            assert (await worker.resumes._parts.completions.of(await worker.resumes.find(key, "mine"))).completed
        assert await worker.statuses() == [(2, "completed")]

    async def test_a_part_completed_during_a_search_is_not_overlooked(self, worker, monkeypatch):
        key, part = await self.waiting(worker)
        looking, real = Gate(), resumable_records.list_these

        async def list_these(db, *arguments):
            found = await real(db, *arguments)
            if db is worker.db:  # not in the transaction that acquires a writer lock
                await looking.pass_through()
            return found

        monkeypatch.setattr("app.resumables.completion.records.list_these", list_these)
        looking.close()
        await worker.resumes.find(key, "mine", newest=True)
        await coming(looking.reached)
        await worker.append(part, 0, b"b")
        looking.open()

        async def completed():
            return (await worker.resumes.find(key, "mine")).completed

        await until(completed)
