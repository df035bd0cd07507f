"""Of all requests that want the same upload the newest has its turn, whoever does not let go."""

import asyncio

import pytest

from app.errors import OffsetMismatch, Unavailable
from app.resumables import Preempted
from tests.support.resumables import Writer, pair, sha, worker, world
from tests.support.unreliable import Gate, coming, until

__all__ = ["pair", "worker", "world"]


class TestPreemption:
    async def test_a_question_preempts_the_writer_and_returns_its_offset(self, pair):
        first, second = pair
        key = await first.create(9)
        async with Writer(first, key, 0, b"abc", b"def") as writer:
            assert await second.offset(key) == 6
            with pytest.raises(Preempted):
                await writer.task
            assert not writer.task.cancelled()
        assert (await second.append(key, 6, b"ghi")).upload.sha256 == sha(b"abcdefghi")

    async def test_a_writer_in_the_same_process_is_preempted_at_once(self, worker, monkeypatch):
        monkeypatch.setattr(worker.resumes._parts.locks, "_watch", lambda: asyncio.sleep(3600))
        key = await worker.create(9)
        async with Writer(worker, key, 0, b"abc"):
            assert await worker.offset(key) == 3

    async def test_a_writer_that_waits_for_the_end_of_its_body_is_preempted_too(self, pair, monkeypatch):
        monkeypatch.setattr("app.resumables.writer.CHECKPOINT_BYTES", 1)
        first, second = pair
        key = await first.create(9)
        async with Writer(first, key, 0, b"abcdef", b"ghi") as writer:
            assert (
                await second.resumes.find(key, "mine")
            ).offset == 6  # the last ones are committed with the completion
            found = await second.resumes.find(key, "mine", newest=True)
            assert (found.completed, found.upload.sha256) == (True, sha(b"abcdefghi"))
            with pytest.raises(Preempted):
                await writer.task

    async def test_an_append_preempts_the_writer_before_it(self, pair):
        first, second = pair
        key = await first.create(9)
        async with Writer(first, key, 0, b"abc") as writer:
            with pytest.raises(OffsetMismatch):
                await second.append(key, 0, b"abc")
            with pytest.raises(Preempted):
                await writer.task
        async with Writer(second, key, 3, b"def"):
            assert (await first.append(key, await first.offset(key), b"ghi")).upload.sha256 == sha(b"abcdefghi")

    async def test_a_cancellation_preempts_the_writer(self, pair):
        first, second = pair
        key = await first.create(9)
        async with Writer(first, key, 0, b"abc") as writer:
            await second.resumes.cancel(key, "mine")
            with pytest.raises(Preempted):
                await writer.task
        assert await first.statuses() == [(3, "failed")]
        assert await first.unfinished() == []

    async def test_a_preempted_request_with_a_checksum_counts_nothing(self, pair):
        first, second = pair
        key = await first.create(9)
        async with Writer(first, key, 0, b"abc", checked=True):
            assert await second.offset(key) == 0
        assert (await second.append(key, 0, b"abcdefghi")).upload.sha256 == sha(b"abcdefghi")

    async def test_one_of_many_simultaneous_appends_goes_on(self, pair):
        key = await pair[0].create(100)
        asked = [pair[n % 2].append(key, 0, bytes([n])) for n in range(12)]
        outcomes = await asyncio.gather(*asked, return_exceptions=True)
        kept = [outcome for outcome in outcomes if not isinstance(outcome, Exception)]
        assert {type(outcome).__name__ for outcome in outcomes} <= {
            "Resource", "InProgress", "Preempted", "OffsetMismatch", "Unavailable"
        }  # fmt: skip
        assert await pair[0].offset(key) == len(kept) <= 1

    async def test_a_writer_preempted_in_a_write_finishes_the_write_first(self, worker, monkeypatch):
        key = await worker.create(9)
        writing, go_on = asyncio.Event(), asyncio.Event()
        async with Writer(worker, key, 0, b"abc") as writer:
            [partial] = worker.storage.staged
            write = partial.write

            async def slow(block):
                writing.set()
                await go_on.wait()
                await write(block)

            monkeypatch.setattr(partial, "write", slow)
            writer.more.put_nowait(b"def")
            await coming(writing)
            question = asyncio.create_task(worker.offset(key))
            await until(lambda: worker.resumes._parts.locks._live[sha(key.encode())].reason is not None)
            go_on.set()
            assert await question == 6
            with pytest.raises(Preempted):
                await writer.task

    async def test_a_real_cancellation_is_not_mistaken_for_a_preemption(self, worker):
        key = await worker.create(9)
        async with Writer(worker, key, 0, b"abc") as writer:
            writer.task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await writer.task
            assert writer.task.cancelled()
        assert await worker.offset(key) == 3


class TestFrozenWriters:
    """A process that holds an upload, was stopped, and goes on later as if nothing had happened."""

    @pytest.fixture
    async def frozen(self, world, monkeypatch):
        monkeypatch.setattr("app.resumables.writer_lock.PATIENCE_SECONDS", 0.1)
        worker = await world.worker()
        monkeypatch.setattr(worker.resumes._parts.locks, "_watch", lambda: asyncio.sleep(3600))
        return worker

    async def test_a_question_is_answered_from_what_is_committed(self, frozen, worker):
        key = await frozen.create(9)
        await frozen.append(key, 0, b"abc")
        async with Writer(frozen, key, 3, b"xyz") as writer:
            assert await worker.offset(key) == 3
            writer.more.put_nowait(None)
            with pytest.raises(Preempted):
                await writer.task
        assert await worker.offset(key) == 3

    @pytest.mark.parametrize("asked_first", [True, False])
    async def test_an_append_after_a_preemption_goes_on_in_a_copy(self, frozen, worker, asked_first):
        key = await frozen.create(9)
        await frozen.append(key, 0, b"abc")
        async with Writer(frozen, key, 3, b"xyz") as writer:
            if asked_first:
                assert await worker.offset(key) == 3
            kept = await worker.append(key, 3, b"de")
            assert kept.file_fence > 0
            writer.more.put_nowait(b"zyx")
            writer.more.put_nowait(None)
            with pytest.raises(Preempted):
                await writer.task
        assert (kept.file_fence, 5) in await worker.unfinished()
        done = await worker.append(key, 5, b"fghi")
        assert await worker.content(done.upload_id) == b"abcdefghi"
        assert done.upload.sha256 == sha(b"abcdefghi")
        worker.resumes._parts.expiry._grace_seconds = 0
        await worker.resumes.sweep()
        assert await worker.unfinished() == []

    async def test_a_writer_frozen_before_opening_the_file_cuts_off_no_acknowledged_bytes(
        self, world, frozen, worker, monkeypatch
    ):
        stopped, real = Gate(), world.storage.open_unfinished

        async def open_unfinished(*arguments, **more):
            if not stopped.reached.is_set():
                await stopped.pass_through()
            return await real(*arguments, **more)

        key = await frozen.create(9)
        await frozen.append(key, 0, b"abc")
        monkeypatch.setattr(world.storage, "open_unfinished", open_unfinished)
        stopped.close()
        old = asyncio.create_task(frozen.append(key, 3, b"xyz"))
        await coming(stopped.reached)
        assert (await worker.append(key, 3, b"def")).offset == 6
        stopped.open()
        with pytest.raises(Preempted):
            await old
        assert (await worker.append(key, 6, b"ghi")).upload.sha256 == sha(b"abcdefghi")

    async def test_a_move_to_a_copy_may_be_committed_without_an_acknowledgement(self, frozen, worker):
        key = await frozen.create(9)
        await frozen.append(key, 0, b"abc")
        async with Writer(frozen, key, 3, b"xyz"):
            worker.db.fails = [None, None, "lost"]  # claimed, passed on, moved
            with pytest.raises(Unavailable):
                await worker.append(key, 3, b"def")
            assert (await worker.append(key, 3, b"defghi")).upload.sha256 == sha(b"abcdefghi")

    async def test_a_completion_by_a_preempted_writer_does_not_count(self, frozen, worker):
        key = await frozen.create(6)
        async with Writer(frozen, key, 0, b"xyzxy") as writer:
            assert (await worker.append(key, 0, b"abc")).offset == 3
            writer.more.put_nowait(b"z")
            writer.more.put_nowait(None)
            with pytest.raises(Preempted):
                await writer.task
        assert await worker.statuses() == [(3, "uploading")]
        assert (await worker.append(key, 3, b"def")).upload.sha256 == sha(b"abcdef")

    async def test_an_upload_cancelled_while_its_writer_is_frozen_is_gone(self, frozen, worker):
        key = await frozen.create(6)
        async with Writer(frozen, key, 0, b"abc") as writer:
            await worker.resumes.cancel(key, "mine")
            writer.more.put_nowait(b"def")
            writer.more.put_nowait(None)
            with pytest.raises(Preempted):
                await writer.task
        assert await worker.statuses() == [(0, "failed")]
        assert await worker.storage.contents() == {}
        assert await worker.unfinished() == []
