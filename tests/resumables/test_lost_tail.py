"""A fail-over that lost the last commits: a number is drawn twice, and still one writer has the upload."""

import asyncio
from contextlib import suppress

import pytest

from app.errors import Unavailable
from app.resumables import Appended, Preempted
from tests.support.resumables import DAY, Tail, Writer, pair, sha, worker, world
from tests.support.unreliable import Gate, coming, until

__all__ = ["pair", "worker", "world"]


class TestFencesDrawnTwice:
    async def test_one_of_two_writers_with_the_same_fence_commits(self, pair, monkeypatch):
        first, second = pair
        monkeypatch.setattr(first.resumes._parts.locks, "_watch", lambda: asyncio.sleep(3600))
        key = await first.create(9)
        await first.append(key, 0, b"abc")
        async with Tail(first, key) as tail, Writer(first, key, 3, b"xyz") as old:
            await tail.lose()
            async with Writer(second, key, 3, b"de") as new:
                old.more.put_nowait(b"zyx")
                old.more.put_nowait(None)
                with pytest.raises(Preempted):
                    await old.task
                new.more.put_nowait(b"fghi")
                new.more.put_nowait(None)
                assert (await new.task).upload.sha256 == sha(b"abcdefghi")
        assert await first.statuses() == [(9, "completed")]

    @pytest.mark.parametrize("wanted", ["question", "append"])
    async def test_the_previous_writer_is_stopped(self, world, worker, wanted):
        other = await world.worker()
        key = await worker.create(9)
        async with Tail(worker, key) as tail, Writer(worker, key, 0, b"xyz") as old:
            await tail.lose()
            if wanted == "question":
                assert await other.offset(key) == 0
            else:
                await other.append(key, 0, b"abc")
            with pytest.raises(Preempted):
                await asyncio.wait_for(old.task, 20)

    @pytest.mark.parametrize("goes_on", ["in part", "to the end"])
    async def test_a_writer_preempted_by_one_with_the_same_fence_ends_nothing(
        self, world, worker, monkeypatch, goes_on
    ):
        """It finds less in the file than it knows of, or no file at all: that is no loss."""
        other = await world.worker()
        monkeypatch.setattr(worker.resumes._parts.locks, "_watch", lambda: asyncio.sleep(3600))
        stopped, real = Gate(), world.storage.open_unfinished

        async def open_unfinished(*arguments, **more):
            if not stopped.reached.is_set():
                await stopped.pass_through()
            return await real(*arguments, **more)

        key = await worker.create(9)
        await worker.append(key, 0, b"abc")
        async with Tail(worker, key) as tail:
            await worker.append(key, 3, b"uvw")
            monkeypatch.setattr(world.storage, "open_unfinished", open_unfinished)
            stopped.close()
            old = asyncio.create_task(worker.append(key, 6, b"xyz"))
            await coming(stopped.reached)
            await tail.lose()
        assert (await other.append(key, 3, b"d" if goes_on == "in part" else b"defghi")).offset in {4, 9}
        stopped.open()
        with pytest.raises((Preempted, Unavailable)):
            await old
        if goes_on == "in part":
            await other.append(key, 4, b"efghi")
        assert await worker.statuses() == [(9, "completed")]
        assert list((await world.storage.contents()).values()) == [b"abcdefghi"]


class TestFiles:
    async def test_a_file_of_a_lost_time_keeps_its_name_and_its_bytes(self, world, worker):
        """Numbers are drawn anew after it: each file is made once, by one who holds the upload."""
        parts = [await worker.create(1, is_part=True) for _ in range(2)]
        await worker.append(parts[0], 0, b"a")
        waiting, key = await worker.concatenate(*parts)
        left = [(waiting.upload_id, number) for number in (1, 2)]
        for name in left:
            world.storage.unfinished_files[name] = bytearray(b"?")
        await worker.append(parts[1], 0, b"b")
        for _ in left:
            await until(lambda: not worker.resumes._parts.completions._running)
            worker.resumes._parts.recovery._tries.clear()
            await worker.resumes._parts.recovery.own()
        assert (await worker.resumes.find(key, "mine")).upload.sha256 == sha(b"ab")
        assert [bytes(world.storage.unfinished_files[name]) for name in left] == [b"?", b"?"]

    async def test_acknowledged_bytes_outlive_a_move_to_another_file_that_was_lost(self, world, worker, monkeypatch):
        monkeypatch.setattr("app.resumables.writer_lock.PATIENCE_SECONDS", 0.05)
        frozen = await world.worker()
        monkeypatch.setattr(frozen.resumes._parts.locks, "_watch", lambda: asyncio.sleep(3600))
        key = await frozen.create(9)
        await frozen.append(key, 0, b"abc")
        async with Writer(frozen, key, 3, b"xyz"), Tail(worker, key) as tail:
            assert (await worker.append(key, 3, b"de")).offset == 5
        await tail.lose()
        assert await worker.offset(key) == 3
        assert (await worker.append(key, 3, b"defghi")).upload.sha256 == sha(b"abcdefghi")


class TestCompletedBefore:
    """Who was told 201 does not come again: the upload is completed without."""

    async def published(self, world, worker, length):
        key = await worker.create(length)
        await worker.append(key, 0, b"abc")
        async with Tail(worker, key) as tail, worker.resumes.append(key, "mine", Appended(3)) as appending:
            await appending.write(b"def")
            assert (await appending.complete()).completed
        await tail.lose()
        assert await worker.statuses() == [(3, "uploading")]
        return key

    @pytest.mark.parametrize("length", [6, None])
    @pytest.mark.parametrize("who", ["sweep", "sweep, late", "append"])
    async def test_an_upload_completed_before_the_tail_was_lost_is_completed_again(self, world, worker, who, length):
        key = await self.published(world, worker, length)
        if who == "append":
            with pytest.raises(Unavailable):
                await worker.append(key, 3, b"def")
        else:
            world.clock.pass_by(seconds=DAY if who == "sweep, late" else 0)
            swept = await worker.resumes.sweep()
            assert (swept.completed, swept.expired) == (1, 0)
        found = await worker.resumes.find(key, "mine", newest=True)
        assert (found.completed, found.offset, found.length, found.upload.sha256) == (True, 6, 6, sha(b"abcdef"))
        assert list((await world.storage.contents()).values()) == [b"abcdef"]

    async def test_an_upload_goes_on_beside_a_published_file_shorter_than_what_was_acknowledged(self, world, worker):
        key = await worker.create(6)
        resource = await worker.append(key, 0, b"abc")
        staged = world.storage.stage(resource.upload_id)
        await staged.write(b"ab")
        await staged.finish()
        await world.storage.publish([staged])
        await worker.resumes.sweep()
        assert await worker.statuses() == [(3, "uploading")]
        await self.completes_with(worker, key, 3, b"def")
        assert list((await world.storage.contents()).values()) == [b"abcdef"]
        assert world.storage._aside[resource.upload_id] == b"ab"

    async def test_an_upload_goes_on_whose_completion_without_bytes_was_lost(self, world, worker):
        key = await worker.create(None)
        async with Tail(worker, key) as tail, worker.resumes.append(key, "mine", Appended(0)) as appending:
            assert (await appending.complete()).completed
        await tail.lose()
        await worker.append(key, 0, b"abc")
        await worker.resumes.sweep()
        assert await worker.statuses() == [(3, "uploading")]
        await self.completes_with(worker, key, 3, b"def")
        assert list((await world.storage.contents()).values()) == [b"abcdef"]

    async def completes_with(self, worker, key, offset, last):
        """Append the last bytes; the upload is completed, if not at once."""
        with suppress(Unavailable):
            async with worker.resumes.append(key, "mine", Appended(offset)) as appending:
                await appending.write(last)
                await appending.complete()
        assert (await worker.resumes.find(key, "mine", newest=True)).completed
