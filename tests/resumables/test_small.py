"""A small upload that one request brings lands in one transaction; what happens between its file and its rows."""

import asyncio

import pytest

from app.errors import DigestMismatch, InProgress, OutcomeUnknown, Unavailable
from app.model import Digests, Protocol
from app.resumables import Description, Interrupted
from app.uploads.ingest import Visitor
from tests.support.resumables import sha, worker, world
from tests.support.unreliable import coming, until

__all__ = ["worker", "world"]


async def body(*blocks, error=None):
    for block in blocks:
        yield block
    if error is not None:
        raise error


async def create_whole(worker, content, *, length=None, error=None, **more):
    description = Description(Protocol.TUS, "a.bin", "a/b", length=len(content) if length is None else length, **more)
    return await worker.resumes.create_whole(Visitor("mine"), description, body(content, error=error))


async def completed_in_the_end(worker, key):
    """The upload once this process has completed it without being asked."""

    async def recovered():
        worker.resumes._parts.recovery._tries.clear()
        await worker.resumes._parts.recovery.own()
        return (await worker.resumes.find(key, "mine")).completed

    await until(recovered)
    return await worker.resumes.find(key, "mine")


class TestCreationsWithAllBytes:
    async def test_a_creation_with_all_its_bytes_is_completed(self, worker):
        resource, key = await create_whole(worker, b"abc")
        assert worker.db.transactions == 1
        found = await worker.resumes.find(key, "mine", newest=True)
        assert found == await worker.resumes.find(key, None)
        assert (found.offset, found.length, found.ended_as, found.upload) == (3, 3, "completed", resource.upload)
        assert found.upload.sha256 == sha(b"abc")
        assert await worker.content(found.upload_id) == b"abc"
        assert await worker.unfinished() == []

    async def test_a_creation_whose_commit_is_not_answered_is_recorded_once(self, worker):
        worker.db.fails = ["lost"]
        _, key = await create_whole(worker, b"abc")
        assert (await worker.resumes.find(key, "mine")).completed
        assert await worker.statuses() == [(3, "completed")]

    @pytest.mark.parametrize("how", ["away", "lost"])
    async def test_a_creation_whose_outcome_is_unknown_is_settled_by_the_history(self, worker, how):
        worker.db.fails = [how] * 10
        with pytest.raises(OutcomeUnknown):
            await create_whole(worker, b"abc")
        worker.db.fails = []
        status = "completed" if how == "lost" else "failed"

        async def is_settled():
            return await worker.statuses() == [(3, status)]

        await until(is_settled)
        row = await worker.db.one("count_stored")
        assert row["uploads"] == (how == "lost")

    async def test_a_creation_that_breaks_off_leaves_its_blocks_alone(self, worker):
        with pytest.raises(Interrupted) as interrupted:
            await create_whole(worker, b"abc", length=9, error=ConnectionError("gone"))
        assert interrupted.value.blocks == [b"abc"]
        assert isinstance(interrupted.value.reason, ConnectionError)
        assert await worker.history() == []
        assert not worker.storage.staged

    async def test_a_creation_that_is_cancelled_while_it_lands_is_no_other_upload(self, world, worker):
        world.storage.gate.close()
        creating = asyncio.create_task(create_whole(worker, b"abc"))
        await coming(world.storage.gate.reached)
        creating.cancel()
        with pytest.raises(asyncio.CancelledError):
            await creating
        world.storage.gate.open()

        async def is_recorded():
            return await worker.statuses() == [(3, "completed")]

        await until(is_recorded)

    async def test_a_creation_with_another_digest_does_not_land(self, worker):
        with pytest.raises(Interrupted) as interrupted:
            await create_whole(worker, b"abc", digests=Digests(sha(b"abd")))
        assert isinstance(interrupted.value.reason, DigestMismatch)
        assert await worker.history() == []


class TestAppendsOfAllBytes:
    @pytest.mark.parametrize("digests", [Digests(sha(b"abd"), None), Digests(None, "00" * 64)])
    async def test_an_append_of_all_bytes_with_another_digest_fails_for_good(self, worker, digests):
        key = await worker.create(3, digests=digests)
        with pytest.raises(DigestMismatch):
            await worker.append(key, 0, b"abc", declared=3)
        assert [upload.error.code for upload in await worker.history()] == ["digest_mismatch"]
        assert not worker.storage.staged

    @pytest.mark.parametrize("how", ["away", "lost"])
    async def test_an_append_whose_outcome_is_unknown_is_completed_by_its_process(self, worker, how):
        key = await worker.create(3)
        worker.db.fails = [None, *[how] * 10]
        with pytest.raises(OutcomeUnknown):
            await worker.append(key, 0, b"abc", declared=3)
        worker.db.fails = []
        found = await completed_in_the_end(worker, key)
        assert (found.offset, found.upload.sha256) == (3, sha(b"abc"))
        assert await worker.statuses() == [(3, "completed")]

    async def test_an_append_whose_commit_is_not_answered_is_recorded_once(self, worker):
        key = await worker.create(3)
        worker.db.fails = [None, "lost"]
        assert (await worker.append(key, 0, b"abc", declared=3)).completed
        assert await worker.statuses() == [(3, "completed")]

    async def test_an_append_that_slows_down_is_checkpointed(self, worker, monkeypatch):
        monkeypatch.setattr("app.resumables.writer.CHECKPOINT_BYTES", 2)
        key = await worker.create(5)
        assert (await worker.append(key, 0, b"abc", b"de", declared=5)).completed
        [upload] = await worker.history()
        assert await worker.content(upload.id) == b"abcde"

    @pytest.mark.parametrize("second", [b"abc", b"xyz"], ids=["the same bytes", "other bytes"])
    async def test_a_writer_preempted_after_publication_records_nothing(self, world, second):
        """The newer request's bytes count, although the older one's are published."""
        older, newer = await world.worker(), await world.worker()
        key = await older.create(3)
        world.storage.gate.close()
        late = asyncio.create_task(older.append(key, 0, b"abc", declared=3))
        await coming(world.storage.gate.reached)
        older.db.gate.close()
        world.storage.gate.open()
        await coming(older.db.gate.reached)
        try:
            with pytest.raises(Unavailable):
                await newer.append(key, 0, second, declared=3)
        finally:
            older.db.gate.open()
        with pytest.raises(InProgress):
            await late
        found = await completed_in_the_end(newer, key)
        assert found.upload.sha256 == sha(second)
        assert await newer.content(found.upload_id) == second
        assert await newer.statuses() == [(3, "completed")]

    async def test_a_writer_whose_upload_is_cancelled_before_publication_leaves_no_file(self, world):
        older, newer = await world.worker(), await world.worker()
        key = await older.create(3)
        world.storage.gate.close()
        late = asyncio.create_task(older.append(key, 0, b"abc", declared=3))
        await coming(world.storage.gate.reached)
        await newer.resumes.cancel(key, "mine")
        world.storage.gate.open()
        with pytest.raises(InProgress):
            await late
        assert await world.storage.contents() == {}
        assert await newer.statuses() == [(0, "failed")]

    @pytest.mark.parametrize("again", [b"abc", b"xyz"], ids=["the same bytes", "other bytes"])
    async def test_a_crash_between_file_and_rows_leaves_an_upload_that_goes_on(self, world, worker, again):
        key = await worker.create(3)
        resource = await worker.resumes.find(key, "mine")
        staged = world.storage.stage(resource.upload_id)
        await staged.write(b"abc")
        await staged.finish()
        await world.storage.publish([staged])
        with pytest.raises(Unavailable):
            await worker.append(key, 0, again, declared=3)
        found = await completed_in_the_end(worker, key)
        assert await worker.content(found.upload_id) == again
        assert found.upload.sha256 == sha(again)
