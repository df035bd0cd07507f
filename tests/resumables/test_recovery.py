"""What is fully received is completed soon, though nobody asks for it, and however many others wait."""

import asyncio

import pytest

from app.errors import Gone, Unavailable
from app.model import Damage
from app.uploads import records as upload_records
from tests.support.resumables import DAY, HOUR, sha, worker, world
from tests.support.unreliable import Gate, coming, until

__all__ = ["worker", "world"]


@pytest.fixture(autouse=True)
def hasty(monkeypatch):
    monkeypatch.setattr("app.resumables.recovery.ROUND_SECONDS", 0.01)
    monkeypatch.setattr("app.resumables.recovery.LEFT_SECONDS", 0.05)
    monkeypatch.setattr("app.resumables.recovery._MOST_SECONDS", 0.05)


async def completed_by_itself(worker, key):
    """Wait for it as its client does not: without a question that would complete it."""
    recovering = asyncio.create_task(worker.resumes.run())

    async def completed():
        return (await worker.resumes.find(key, None)).completed

    try:
        await until(completed)
    finally:
        recovering.cancel()
        await asyncio.wait((recovering,))


async def parts(worker, *contents):
    keys = [await worker.create(len(content), is_part=True) for content in contents]
    for key, content in zip(keys, contents, strict=True):
        await worker.append(key, 0, content)
    return keys


class TestOutages:
    """The database goes away at any step, and comes back."""

    @pytest.mark.parametrize("how", ["away", "lost"])
    @pytest.mark.parametrize("step", range(1, 6))
    async def test_a_concatenation_that_was_answered_201_is_completed(self, worker, step, how):
        keys = await parts(worker, b"abc", b"def")
        worker.db.fails = [*[None] * step, how, *["away"] * 20]
        made, key = await worker.concatenate(*keys)
        worker.db.fails = []
        await completed_by_itself(worker, key)
        assert await worker.statuses() == [(6, "completed")]
        assert await worker.content(made.upload_id) == b"abcdef"

    @pytest.mark.parametrize("how", ["away", "lost"])
    @pytest.mark.parametrize("step", range(2, 5))
    async def test_an_upload_whose_last_commit_is_unknown_is_completed(self, worker, step, how):
        key = await worker.create(3)
        worker.db.fails = [*[None] * (step - 1), how, *["away"] * 20]
        try:
            await worker.append(key, 0, b"abc")
        except Unavailable:
            noted = (step, how) != (2, "away")
        else:
            noted = True
        worker.db.fails = []
        if noted:
            await completed_by_itself(worker, key)
        assert await worker.statuses() == [(3, "completed") if noted else (0, "uploading")]

    async def test_an_empty_upload_is_completed(self, worker):
        worker.db.fails = [None, *["away"] * 20]
        with pytest.raises(Unavailable):
            await worker.create(0)
        worker.db.fails = []
        recovering = asyncio.create_task(worker.resumes.run())

        async def completed():
            return await worker.statuses() == [(0, "completed")]

        await until(completed)
        recovering.cancel()
        await asyncio.wait((recovering,))

    async def test_a_concatenation_is_completed_though_the_commit_of_its_part_was_not_answered(self, worker):
        [a] = await parts(worker, b"abc")
        b = await worker.create(3, is_part=True)
        _, key = await worker.concatenate(a, b)
        worker.db.fails = [None, "lost"]
        with pytest.raises(Unavailable):
            await worker.append(b, 0, b"def")
        worker.db.fails = []
        await completed_by_itself(worker, key)


class TestDeaths:
    @pytest.mark.parametrize("dies", ["before it is put together", "at it", "before it is published"])
    async def test_uploads_of_a_dead_process_are_completed_by_another(self, world, worker, monkeypatch, dies):
        async def nothing(resource, *_, **__):
            return (resource, None) if dies == "at it" else resource

        keys = await parts(worker, b"abc", b"def")
        completions = worker.resumes._parts.completions
        match dies:
            case "before it is put together":
                monkeypatch.setattr(completions, "of", nothing)
            case "at it":
                monkeypatch.setattr(completions._completion._assembler, "_make", nothing)
            case _:
                monkeypatch.setattr(completions._completion, "_publish", nothing)
        _, key = await worker.concatenate(*keys)
        for staged in list(world.storage.staged):
            await staged.abort()  # its process has ended, and its locks with it
        await completed_by_itself(await world.worker(), key)
        assert await worker.statuses() == [(6, "completed")]

    async def test_one_process_of_all_recovers_uploads_of_the_others(self, world, worker):
        with world.storage.alone_at("complete") as alone:
            assert alone
            recovering = asyncio.create_task(worker.resumes.run())
            looked = Gate()
            worker.resumes._parts.recovery.others = looked.pass_through
            await asyncio.sleep(0.1)
            assert not looked.reached.is_set()
        await coming(looked.reached)
        recovering.cancel()
        await asyncio.wait((recovering,))


class TestManyUploads:
    """Nothing is passed by because others come first: every page is moved on from."""

    @pytest.fixture(autouse=True)
    def small(self, monkeypatch):
        for name in (
            "app.resumables.recovery._AT_ONCE",
            "app.resumables.recovery._WAITING_AT_ONCE",
            "app.resumables.expiration._AT_ONCE",
        ):
            monkeypatch.setattr(name, 3)

    async def waiting(self, worker, number):
        growing = await worker.create(3, is_part=True)
        return [await worker.concatenate(*[growing] * times) for times in range(1, number + 1)]

    @pytest.mark.parametrize("by", ["sweep", "itself"])
    @pytest.mark.slow
    async def test_uploads_that_wait_or_fail_do_not_keep_others_from_completion(self, world, worker, by):
        await self.waiting(worker, 8)
        world.clock.pass_by(seconds=60)
        keys = [await worker.create(3) for _ in range(8)]
        for key in keys:
            worker.db.fails = [None, None, *["away"] * 20]
            with pytest.raises(Unavailable):
                await worker.append(key, 0, b"abc")
            worker.db.fails = []
            await until(lambda: not worker.publisher._in_doubt.away.is_set())
        for upload in (await worker.history())[8:12]:
            await world.storage.remove([upload.id])
        other = await world.worker()
        world.clock.pass_by(seconds=HOUR)
        if by == "sweep":
            assert (await other.resumes.sweep()).completed == 4
        else:
            for key in keys[4:]:
                await completed_by_itself(other, key)

    async def test_waiting_concatenations_do_not_delay_those_whose_parts_are_there(self, world, worker, monkeypatch):
        async def nothing(resource, **_):
            return resource

        keys = await parts(worker, b"abc")
        await self.waiting(worker, 8)
        monkeypatch.setattr(worker.resumes._parts.completions, "of", nothing)
        ready = [(await worker.concatenate(*keys * times))[1] for times in range(1, 6)]
        other = await world.worker()
        for key in ready:
            await completed_by_itself(other, key)

    async def test_an_upload_that_cannot_be_ended_does_not_keep_others_from_expiring(self, world, worker, monkeypatch):
        for _ in range(8):
            await worker.create(3)
        end, failing = worker.resumes._parts.expiry._end, {upload.id for upload in (await worker.history())[:4]}

        async def ends(resource, now_us):
            if resource.upload_id in failing:
                raise ValueError("as the test says")
            return await end(resource, now_us)

        monkeypatch.setattr(worker.resumes._parts.expiry, "_end", ends)
        world.clock.pass_by(seconds=DAY)
        assert (await worker.resumes.sweep()).expired == 4

    async def test_an_upload_that_keeps_failing_is_tried_less_often(self, world, worker, monkeypatch):
        monkeypatch.setattr("app.resumables.recovery._MOST_SECONDS", 60)
        monkeypatch.setattr("app.resumables.recovery.ROUND_SECONDS", 1)
        key = await worker.create(3)
        world.storage.fails = OSError("disk")
        with pytest.raises(Exception, match="request id"):
            await worker.append(key, 0, b"abc")
        world.storage.batches.clear()
        for _ in range(50):
            await worker.resumes._parts.recovery.own()
        assert len(world.storage.batches) == 1


class TestLost:
    """An upload was completed, which its row does not say, and its file is found to be missing."""

    @pytest.mark.parametrize("noted", [True, False])
    async def test_a_lost_upload_is_gone_until_its_file_is_back(self, worker, noted):
        key = await worker.create(3)
        worker.db.fails = [] if noted else [None, None, None, "away"]  # claimed, committed, recorded
        done = await worker.append(key, 0, b"abc")
        assert done.completed
        missing = Damage.MISSING.failure
        await upload_records.fail_uploads(worker.db, [done.upload_id], missing.code, missing.detail)
        for asks in (
            worker.resumes.find(key, "mine", newest=True),
            worker.append(key, 3),
            worker.resumes.cancel(key, "mine"),
        ):
            with pytest.raises(Gone, match=missing.detail):
                await asks
        await worker.resumes.sweep()
        assert (await worker.resumes._db.one("find_resumable", key_hash=sha(key.encode())))["ended_as"] == "completed"
        assert await worker.statuses() == [(3, "failed")]
        assert await worker.content(done.upload_id) == b"abc"  # whoever put it back finds it again
        assert await upload_records.repair_uploads(worker.db, [done.upload_id])
        assert (await worker.append(key, 3)).completed


class TestMissing:
    @pytest.mark.parametrize("of", ["upload", "part"])
    async def test_an_upload_that_nobody_asks_for_is_not_given_up_for_lost(self, world, worker, monkeypatch, of):
        """The store may be the wrong one: with the right one it is completed."""

        async def nothing(resource, *_, **__):
            return resource

        with monkeypatch.context() as dying:
            dying.setattr(worker.resumes._parts.completions, "of", nothing)
            dying.setattr(worker.resumes._parts.completions._completion, "_publish", nothing)
            keys = await parts(worker, b"abc")
            if of == "part":
                key = (await worker.concatenate(*keys))[1]
            else:
                key = await worker.create(3)
                await worker.append(key, 0, b"abc")
        for staged in list(world.storage.staged):
            await staged.abort()
        kept = dict(world.storage.unfinished_files)
        world.storage.unfinished_files.clear()
        other = await world.worker()
        recovering = asyncio.create_task(other.resumes.run())
        await until(lambda: any(tries > 1 for tries, _ in other.resumes._parts.recovery._tries.values()))
        assert (await other.resumes.find(key, "mine")).ended_as is None
        world.storage.unfinished_files.update(kept)
        recovering.cancel()
        await asyncio.wait((recovering,))
        await completed_by_itself(other, key)

    async def test_an_upload_that_stays_lost_expires_in_the_end(self, world, worker, monkeypatch):
        key = await worker.create(3)
        world.storage.fails = OSError("disk")
        with pytest.raises(Exception, match="request id"):
            await worker.append(key, 0, b"abc")
        world.storage.unfinished_files.clear()
        for days, expired in ((7, 0), (2, 1)):
            world.clock.pass_by(seconds=days * DAY)
            assert (await worker.resumes.sweep()).expired == expired
        assert await worker.statuses() == [(3, "expired")]
