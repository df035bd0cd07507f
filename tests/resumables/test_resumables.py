"""Uploads that come in several requests: put together, cancelled, expired, forgotten."""

from contextlib import AsyncExitStack

import pytest

from app.errors import BadRequest, Forbidden, Gone, NotFound, TooLarge, Unavailable
from app.maintenance.sweep import Sweeper
from app.model import Protocol, Session, Status
from app.resumables import Description, Preempted
from app.sessions.records import NewSession
from app.uploads import records as upload_records
from app.uploads.ingest import Visitor
from tests.support.resumables import DAY, HOUR, LIMIT, World, Writer, pair, sha, worker, world
from tests.support.unreliable import NOW, Store, until

__all__ = ["pair", "worker", "world"]


class TestConcatenation:
    async def parts(self, worker, *contents, session="mine"):
        keys = [await worker.create(len(content), is_part=True, session=session) for content in contents]
        for key, content in zip(keys, contents, strict=True):
            await worker.append(key, 0, content, session=session)
        return keys

    async def test_parts_are_concatenated_in_order_and_as_often_as_they_are_named(self, worker):
        a, b = await self.parts(worker, b"abc", b"de")
        assert await worker.statuses() == []
        whole, key = await worker.concatenate(b, a, b)
        assert (whole.completed, whole.offset, whole.length) == (True, 7, 7)
        assert whole.upload.sha256 == sha(b"deabcde")
        assert await worker.content(whole.upload_id) == b"deabcde"
        assert await worker.statuses() == [(7, "completed")]
        again, _ = await worker.concatenate(a)
        assert again.upload.sha256 == sha(b"abc")
        found = await worker.resumes.find(key, "mine", newest=True)
        assert (found.concat, found.completed, found.is_final) == ("final;…", True, True)

    async def test_a_concatenation_of_unfinished_parts_is_completed_with_them(self, pair):
        first, second = pair
        a, b = await first.create(3, is_part=True), await first.create(is_part=True)
        waiting, key = await first.concatenate(a, b)
        assert (waiting.completed, waiting.length) == (False, None)
        await second.append(a, 0, b"abc")
        await second.append(b, 0, b"d")
        assert not (await first.resumes.find(key, "mine", newest=True)).completed
        await second.append(b, 1, b"e", length=2)

        async def completed():
            return (await first.resumes.find(key, "mine")).completed

        await until(completed)
        assert (await first.resumes.find(key, "mine")).upload.sha256 == sha(b"abcde")

    async def test_a_known_length_is_shown_before_the_parts_are_there(self, worker):
        a, b = await worker.create(3, is_part=True), await worker.create(4, is_part=True)
        waiting, _ = await worker.concatenate(a, b)
        assert (waiting.length, waiting.offset) == (7, 0)

    async def test_nothing_can_be_appended_to_a_concatenation(self, worker):
        [a] = await self.parts(worker, b"abc")
        unfinished = await worker.create(3, is_part=True)
        for key in ((await worker.concatenate(a))[1], (await worker.concatenate(a, unfinished))[1]):
            with pytest.raises(Forbidden):
                await worker.append(key, 0, b"x")

    async def test_absent_parts_and_uploads_that_are_no_parts_are_refused(self, worker):
        [a] = await self.parts(worker, b"abc")
        [theirs] = await self.parts(worker, b"abc", session="theirs")
        ordinary = await worker.create(3)
        for keys, refusal in (
            ([a, "nothing"], NotFound),
            ([a, theirs], NotFound),
            ([a, ordinary], BadRequest),
            ([], BadRequest),
            ([a] * 1001, BadRequest),
        ):
            with pytest.raises(refusal):
                await worker.concatenate(*keys)
        big = [await worker.create(LIMIT // 2 + 1, is_part=True) for _ in range(2)]
        with pytest.raises(TooLarge):
            await worker.concatenate(*big)

    async def test_a_client_without_cookies_may_concatenate_its_parts(self, worker):
        [a] = await self.parts(worker, b"abc", session="first answer")
        [b] = await self.parts(worker, b"def", session="second answer")
        session = Session(id="third", created_at=NOW, last_seen_at=NOW, expires_at=NOW + 1000)
        whole, _ = await worker.resumes.concatenate(
            Visitor("third", NewSession(session, "token")),
            Description(Protocol.TUS, "a", "a/b", concat="final"),
            [a, b],
        )
        assert whole.upload.sha256 == sha(b"abcdef")

    async def test_a_concatenation_may_be_empty(self, worker):
        a = await worker.create(0, is_part=True)
        whole, _ = await worker.concatenate(a, a)
        assert (whole.completed, whole.upload.sha256) == (True, sha(b""))

    async def test_a_concatenation_fails_when_a_part_ends_unfinished(self, worker):
        [a] = await self.parts(worker, b"abc")
        b = await worker.create(3, is_part=True)
        _, key = await worker.concatenate(a, b)
        await worker.resumes.cancel(b, "mine")
        task = worker.resumes._parts.completions.begin(await worker.resumes.find(key, "mine"))
        with pytest.raises(Gone):
            await task
        with pytest.raises(Gone):
            await worker.resumes.find(key, "mine")
        assert [upload.error.code for upload in await worker.history()] == ["gone"]

    async def test_parts_live_as_long_as_a_concatenation_waits_for_them(self, world, worker):
        [a] = await self.parts(worker, b"abc")
        world.clock.pass_by(seconds=DAY - 1)
        b = await worker.create(3, is_part=True)
        _, key = await worker.concatenate(a, b)
        world.clock.pass_by(seconds=HOUR)
        assert (await worker.resumes.sweep()).expired == 0
        await worker.append(b, 0, b"def")
        assert (await worker.resumes._parts.completions.of(await worker.resumes.find(key, "mine"))).completed

    async def test_a_crash_during_a_concatenation_is_repaired_by_the_sweep(self, world, worker, monkeypatch):
        async def dies(resource, _):
            return resource, None

        [a, b] = await self.parts(worker, b"abc", b"def")
        monkeypatch.setattr(worker.resumes._parts.completions._completion._assembler, "_make", dies)
        await worker.concatenate(a, b)
        assert await worker.statuses() == [(0, "processing")]
        other = await world.worker()
        world.clock.pass_by(seconds=HOUR)
        assert (await other.resumes.sweep()).completed == 1
        assert await worker.statuses() == [(6, "completed")]

    async def test_a_full_store_refuses_a_concatenation_and_keeps_the_parts(self, database_url):
        async with AsyncExitStack() as stack:
            worker = await World(database_url, Store(capacity=14), stack).worker()
            [a] = await self.parts(worker, b"abcdefgh")
            b = await worker.create(is_part=True)
            await worker.append(b, 0, b"x")
            _, key = await worker.concatenate(a, b)
            await worker.append(b, 1, length=1)
            await until(lambda: not worker.resumes._parts.completions._running)
            with pytest.raises(Gone):
                await worker.resumes.find(key, "mine")
            assert [upload.error.code for upload in await worker.history()] == ["storage_full"]
            assert await worker.offset(a) == 8


class TestEnding:
    async def test_a_cancelled_upload_is_gone_and_history_says_so(self, worker):
        key = await worker.create(9)
        await worker.append(key, 0, b"abc")
        await worker.resumes.cancel(key, "mine")
        for again in (
            worker.resumes.cancel(key, "mine"),
            worker.resumes.find(key, "mine", newest=True),
            worker.append(key, 3, b"def"),
        ):
            with pytest.raises(Gone):
                await again
        [upload] = await worker.history()
        assert (upload.status, upload.size, upload.error.code) == (Status.FAILED, 3, "gone")
        assert await worker.unfinished() == []

    async def test_cancelling_a_completed_upload_removes_its_key_alone(self, worker):
        key = await worker.create(3)
        done = await worker.append(key, 0, b"abc")
        await worker.resumes.cancel(key, "mine")
        with pytest.raises(Gone):
            await worker.resumes.find(key, "mine")
        assert await worker.statuses() == [(3, "completed")]
        assert await worker.content(done.upload_id) == b"abc"

    async def test_an_upload_whose_file_was_deleted_is_gone(self, worker):
        key = await worker.create(3)
        done = await worker.append(key, 0, b"abc")
        assert await upload_records.delete_upload(worker.db, "mine", done.upload_id, NOW)
        with pytest.raises(Gone):
            await worker.resumes.find(key, "mine", newest=True)

    async def test_an_upload_can_be_failed_for_good(self, worker):
        key = await worker.create(3)
        await worker.append(key, 0, b"ab")
        await worker.resumes.fail(key, "mine", TooLarge(4, 3))
        with pytest.raises(Gone):
            await worker.resumes.find(key, "mine")
        assert [upload.error.code for upload in await worker.history()] == ["too_large"]

    async def test_an_upload_expires_when_nothing_comes_for_long(self, world, worker):
        old, new = await worker.create(9), await worker.create(9)
        part = await worker.create(9, is_part=True)
        for key in (old, new, part):
            await worker.append(key, 0, b"abc")
        world.clock.pass_by(seconds=DAY - 1)
        await worker.append(new, 3, b"def")
        assert (await worker.resumes.sweep()).expired == 0
        world.clock.pass_by(seconds=1)
        assert (await worker.resumes.sweep()).expired == 2
        for key in (old, part):
            with pytest.raises(Gone):
                await worker.resumes.find(key, "mine")
        assert await worker.statuses() == [(3, "expired"), (6, "uploading")]
        assert len(await worker.unfinished()) == 1
        assert (await worker.append(new, 6, b"ghi")).completed

    async def test_no_upload_outlives_its_deadline(self, world, worker):
        key = await worker.create(100)
        for offset in range(7):
            assert (await worker.append(key, offset, b"x")).expires_at <= NOW + 7 * DAY * 1_000_000
            world.clock.pass_by(seconds=DAY)
        assert (await worker.resumes.sweep()).expired == 1

    async def test_a_concatenation_and_its_parts_do_not_expire_while_a_part_grows(self, world, worker):
        whole, growing = await worker.create(3, is_part=True), await worker.create(3, is_part=True)
        await worker.append(whole, 0, b"abc")
        _, key = await worker.concatenate(whole, growing)
        for offset, letter in enumerate((b"d", b"e")):
            world.clock.pass_by(seconds=DAY - HOUR)
            await worker.append(growing, offset, letter)
            assert (await worker.resumes.sweep()).expired == 0
        world.clock.pass_by(seconds=DAY)
        assert (await worker.resumes.sweep()).expired == 3
        with pytest.raises(Gone):
            await worker.resumes.find(key, "mine")

    async def test_a_waiting_concatenation_is_renewed_however_short_the_idle_time(self, world, worker):
        for each in (worker.resumes._parts.creations, worker.resumes._parts.holding, worker.resumes._parts.recovery):
            each._idle_us = 300_000_000
        whole, growing = await worker.create(3, is_part=True), await worker.create(3, is_part=True)
        await worker.append(whole, 0, b"abc")
        await worker.concatenate(whole, growing)
        for offset, letter in enumerate((b"d", b"e")):
            world.clock.pass_by(seconds=240)
            await worker.append(growing, offset, letter)
            assert (await worker.resumes.sweep()).expired == 0

    async def test_expired_and_completed_uploads_are_remembered_for_a_while(self, world, worker):
        old, done = await worker.create(9), await worker.create(3)
        completed = await worker.append(done, 0, b"abc")
        world.clock.pass_by(seconds=DAY)
        await worker.resumes.sweep()
        assert await worker.append(done, 3) == completed
        world.clock.pass_by(seconds=6 * DAY)
        assert (await worker.resumes.sweep()).forgotten == 1
        with pytest.raises(NotFound):
            await worker.resumes.find(done, "mine")
        with pytest.raises(Gone):
            await worker.resumes.find(old, "mine")
        assert await worker.content(completed.upload_id) == b"abc"

    async def test_a_writer_whose_upload_expires_is_ended(self, world, worker):
        key = await worker.create(9)
        async with Writer(worker, key, 0, b"abc") as writer:
            world.clock.pass_by(seconds=DAY)
            await worker.resumes.sweep()
            with pytest.raises(Preempted):
                await writer.task
        assert await worker.statuses() == [(0, "expired")]

    async def test_leftover_files_are_removed_but_not_those_of_another_database(self, world, worker):
        world.storage.unfinished_files[world.new_id(), 0] = bytearray(b"?")
        worker.resumes._parts.expiry._grace_seconds = 0
        assert (await worker.resumes.sweep()).files_removed == 0
        key = await worker.create(9)
        kept = await worker.append(key, 0, b"abc")
        world.storage.unfinished_files[kept.upload_id, 1] = bytearray(b"old")
        world.storage.unfinished_files[kept.upload_id, 77] = bytearray(b"never made by us")
        worker.resumes._parts.expiry._grace_seconds = 1
        assert (await worker.resumes.sweep()).files_removed == 0
        worker.resumes._parts.expiry._grace_seconds = 0
        assert (await worker.resumes.sweep()).files_removed == 3
        assert await worker.unfinished() == [(0, 3)]

    async def test_files_that_are_newer_than_the_database_are_left_alone(self, world, worker):
        """As after a backup of the database was restored."""
        worker.resumes._parts.expiry._grace_seconds = 0
        kept = await worker.append(await worker.create(9), 0, b"abc")
        content = world.storage.unfinished_files.pop((kept.upload_id, 0))
        world.storage.unfinished_files[kept.upload_id, 7] = content
        assert (await worker.resumes.sweep()).files_removed == 0

    async def test_the_sweeper_sweeps_resumable_uploads_too(self, world, worker):
        await worker.create(9)
        world.clock.pass_by(seconds=DAY)
        sweeper = Sweeper(world.storage, worker.db, resumables=worker.resumes.sweep, now_us=world.clock)
        assert (await sweeper.once()).uploads_expired == 1

    async def test_writers_commit_their_offset_when_the_service_ends(self, world):
        worker = await world.worker()
        key = await worker.create(9)
        async with Writer(worker, key, 0, b"abc") as writer:
            await worker.resumes.close(5)
            with pytest.raises(Unavailable, match="stopping"):
                await writer.task
        for refused in (worker.append(key, 3, b"def"), worker.create(3)):
            with pytest.raises(Unavailable):
                await refused
        next_one = await world.worker()
        assert await next_one.offset(key) == 3
        assert (await next_one.append(key, 3, b"defghi")).upload.sha256 == sha(b"abcdefghi")
