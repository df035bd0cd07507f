"""One request that appends: what it is told is durable, what it brought counts or not, and who it may be."""

import asyncio
from contextlib import AsyncExitStack

import pytest

from app.errors import (
    DigestMismatch,
    Gone,
    InconsistentUploadLength,
    NotFound,
    OffsetMismatch,
    StorageFull,
    TooLarge,
    Unavailable,
)
from app.model import Digests, Protocol, Session, Status
from app.resumables import Appended, Description
from app.sessions import merge_records, token_records
from app.sessions import records as session_records
from app.sessions.records import NewSession
from app.uploads.ingest import Visitor
from tests.support.resumables import LIMIT, World, sha, worker, world
from tests.support.unreliable import NOW, Store

__all__ = ["worker", "world"]


async def broken(worker, key, offset, block, *, error):
    """A request that brings a block and then breaks off."""
    async with worker.resumes.append(key, "mine", Appended(offset)) as appending:
        await appending.write(block)
        raise error


class TestAppending:
    async def test_an_upload_in_pieces_is_the_file(self, worker):
        key = await worker.create(11)
        assert await worker.statuses() == [(0, "uploading")]
        kept = await worker.append(key, 0, b"hel", b"lo")
        assert (kept.offset, kept.completed, kept.upload.size) == (5, False, 5)
        assert await worker.statuses() == [(5, "uploading")]
        assert await worker.offset(key) == 5
        done = await worker.append(key, 5, b" world")
        assert done.completed
        [upload] = await worker.history()
        assert (upload, upload.status, upload.sha256) == (done.upload, Status.COMPLETED, sha(b"hello world"))
        assert await worker.content(upload.id) == b"hello world"
        assert await worker.unfinished() == []
        found = await worker.resumes.find(key, "mine", newest=True)
        assert (found.offset, found.completed, found.upload) == (11, True, upload)

    async def test_a_lost_answer_to_the_last_request_can_be_had_again(self, worker):
        key = await worker.create(3)
        done = await worker.append(key, 0, b"abc")
        assert await worker.append(key, 3) == done
        async with worker.resumes.append(key, "mine", Appended(3, length=3, declared=0)) as appending:
            assert await appending.complete() == done
        assert await worker.append(key, 3, b"") == done
        with pytest.raises(OffsetMismatch):
            await worker.append(key, 0, b"abc")
        with pytest.raises(TooLarge):
            await worker.append(key, 3, b"more")

    async def test_an_append_at_another_offset_changes_nothing(self, worker):
        key = await worker.create(10)
        await worker.append(key, 0, b"abc")
        for offset in (0, 2, 4, 10, 11):
            with pytest.raises(OffsetMismatch) as refused:
                await worker.append(key, offset, b"xyz")
            assert refused.value.members == {"expected-offset": 3, "provided-offset": offset}
        assert (await worker.append(key, 3, b"defghij")).upload.sha256 == sha(b"abcdefghij")

    async def test_an_upload_of_nothing_is_complete_at_once(self, worker):
        visitor = Visitor("mine")
        resource, key = await worker.resumes.create(visitor, Description(Protocol.TUS, "a", "a/b", length=0))
        assert resource.completed
        assert (await worker.resumes.find(key, None)).upload.sha256 == sha(b"")
        assert await worker.content(resource.upload_id) == b""

    async def test_an_empty_append_changes_nothing(self, worker):
        key = await worker.create(3)
        assert (await worker.append(key, 0)).offset == 0
        assert (await worker.append(key, 0, b"ab")).offset == 2
        assert (await worker.append(key, 2)).offset == 2

    async def test_a_length_may_come_late_and_never_changes(self, worker):
        key = await worker.create()
        assert not (await worker.append(key, 0, b"abc")).completed
        with pytest.raises(InconsistentUploadLength):
            await worker.append(key, 3, b"d", length=2)
        with pytest.raises(TooLarge):
            await worker.append(key, 3, b"d", length=LIMIT + 1)
        assert (await worker.append(key, 3, b"d", length=5)).length == 5
        with pytest.raises(InconsistentUploadLength):
            await worker.append(key, 4, b"e", length=6)
        assert (await worker.append(key, 4, b"e", length=5)).upload.sha256 == sha(b"abcde")

    async def test_a_late_length_alone_completes_what_is_there(self, worker):
        key = await worker.create()
        await worker.append(key, 0, b"abc")
        assert (await worker.append(key, 3, length=3)).completed

    async def test_a_request_that_says_it_is_the_last_completes_the_upload(self, worker):
        key = await worker.create(protocol=Protocol.RESUMABLE)
        await worker.append(key, 0, b"abc")
        async with worker.resumes.append(key, "mine", Appended(3)) as appending:
            await appending.write(b"def")
            done = await appending.complete()
        assert (done.completed, done.length, done.upload.sha256) == (True, 6, sha(b"abcdef"))

    async def test_a_request_that_completes_too_early_is_refused_and_its_bytes_are_kept(self, worker):
        key = await worker.create(7)
        async with worker.resumes.append(key, "mine", Appended(0)) as appending:
            await appending.write(b"abc")
            with pytest.raises(InconsistentUploadLength):
                await appending.complete()
        assert await worker.offset(key) == 3
        assert (await worker.append(key, 3, b"defg")).completed

    async def test_bytes_beyond_the_length_or_the_limit_are_refused(self, worker):
        key = await worker.create(5)
        with pytest.raises(TooLarge):
            await worker.append(key, 0, declared=6)
        with pytest.raises(TooLarge):
            await worker.append(key, 0, b"abcde", b"f")
        assert await worker.offset(key) == 0  # a body that runs past the end may be another file's
        endless = await worker.create()
        with pytest.raises(TooLarge):
            await worker.append(endless, 0, bytes(LIMIT), b"1")
        with pytest.raises(TooLarge):
            await worker.create(LIMIT + 1)

    async def test_an_upload_with_another_digest_fails_for_good(self, worker):
        key = await worker.create(3, digests=Digests(sha(b"abc")))
        with pytest.raises(DigestMismatch):
            await worker.append(key, 0, b"abd")
        with pytest.raises(Gone):
            await worker.resumes.find(key, "mine")
        [upload] = await worker.history()
        assert (upload.status, upload.error.code) == (Status.FAILED, "digest_mismatch")
        assert await worker.unfinished() == []
        assert (await worker.append(await worker.create(3, digests=Digests(sha(b"abc"))), 0, b"abc")).completed

    @pytest.mark.parametrize("kind", [ValueError, asyncio.CancelledError])
    async def test_bytes_that_came_before_a_connection_broke_are_kept(self, worker, kind):
        key = await worker.create(9)
        with pytest.raises(kind):
            await broken(worker, key, 0, b"abc", error=kind())
        assert await worker.offset(key) == 3
        assert await worker.statuses() == [(3, "uploading")]
        assert (await worker.append(key, 3, b"defghi")).upload.sha256 == sha(b"abcdefghi")

    async def test_the_last_byte_completes_even_if_the_connection_breaks_then(self, worker):
        key = await worker.create(3)
        with pytest.raises(ValueError, match="broke"):
            await broken(worker, key, 0, b"abc", error=ValueError("broke"))
        assert await worker.statuses() == [(3, "completed")]

    @pytest.mark.parametrize("how", ["discarded", "broken", "left"])
    async def test_a_request_with_a_checksum_counts_as_a_whole_or_not_at_all(self, worker, how):
        key = await worker.create(6)
        await worker.append(key, 0, b"abc")
        try:
            async with worker.resumes.append(key, "mine", Appended(3, checked=True)) as appending:
                await appending.write(b"xyz")
                if how == "discarded":
                    await appending.discard()
                elif how == "broken":
                    raise ValueError("broken")
        except ValueError:
            assert how == "broken"
        assert await worker.offset(key) == 3
        assert await worker.unfinished() == [(0, 3)]
        assert (await worker.append(key, 3, b"def", checked=True)).upload.sha256 == sha(b"abcdef")

    async def test_arriving_bytes_are_committed_at_checkpoints(self, worker, monkeypatch):
        monkeypatch.setattr("app.resumables.writer.CHECKPOINT_BYTES", 4)
        key = await worker.create(100)
        async with worker.resumes.append(key, "mine", Appended(0)) as appending:
            seen = []
            for block in (b"abc", b"def", b"g"):
                await appending.write(block)
                found = await worker.resumes.find(key, "mine")
                seen.append((appending.offset, appending.durable, found.offset))
        assert seen == [(3, 0, 0), (6, 6, 6), (7, 6, 6)]
        assert await worker.offset(key) == 7

    async def test_a_checkpoint_that_cannot_be_committed_is_made_later(self, worker, monkeypatch):
        monkeypatch.setattr("app.resumables.writer.CHECKPOINT_BYTES", 1)
        key = await worker.create(100)
        async with worker.resumes.append(key, "mine", Appended(0)) as appending:
            worker.db.fails = ["away"]
            await appending.write(b"abc")
            assert appending.durable == 0
            await appending.write(b"def")
            assert appending.durable == 6

    async def test_bytes_that_may_have_been_committed_are_never_cut_off(self, worker, monkeypatch):
        monkeypatch.setattr("app.resumables.writer.CHECKPOINT_BYTES", 1)
        key = await worker.create(5)
        worker.db.fails = [None, "lost"]  # claimed; committed, but nobody is told
        with pytest.raises(TooLarge):
            await worker.append(key, 0, b"abc", b"def")
        assert await worker.offset(key) == 3
        assert (await worker.append(key, 3, b"de")).upload.sha256 == sha(b"abcde")

    async def test_a_last_commit_that_fails_leaves_the_offset_before_it(self, worker):
        key = await worker.create(100)
        await worker.append(key, 0, b"abc")
        worker.db.fails = [None, "away"]  # claimed
        with pytest.raises(Unavailable):
            await worker.append(key, 3, b"def")
        assert await worker.offset(key) == 3
        kept = await worker.append(key, 3, b"xyz")
        assert (kept.offset, await worker.unfinished()) == (6, [(kept.file_fence, 6)])

    async def test_a_full_store_keeps_what_it_had(self, database_url):
        async with AsyncExitStack() as stack:
            worker = await World(database_url, Store(capacity=10), stack).worker()
            key = await worker.create(10)
            with pytest.raises(StorageFull):
                await worker.create(11)
            await worker.append(key, 0, b"abc")
            other = await worker.create()
            await worker.append(other, 0, b"0123456")
            with pytest.raises(StorageFull):
                await worker.append(key, 3, declared=7)
            with pytest.raises(StorageFull):
                await worker.append(key, 3, b"defg")
            assert await worker.offset(key) == 3
            await worker.resumes.cancel(other, "mine")
            assert (await worker.append(key, 3, b"defghij")).completed

    async def test_appends_count_among_the_uploads_at_once(self, world):
        worker = await world.worker(at_once=1)
        key = await worker.create(3)
        async with worker.ingest.request(visitor=Visitor("mine"), protocol=Protocol.RAW):
            with pytest.raises(Unavailable):
                await worker.append(key, 0, b"abc")
        assert (await worker.append(key, 0, b"abc")).completed

    async def test_all_reserved_space_is_released(self, worker):
        key = await worker.create(100)
        await worker.append(key, 0, b"abc", declared=97)
        with pytest.raises(OffsetMismatch):
            await worker.append(key, 0, declared=50)
        assert worker.storage.space.reserved == 0


class TestOwners:
    async def test_the_key_alone_opens_an_upload_but_not_with_another_session(self, worker):
        key = await worker.create(6)
        assert (await worker.append(key, 0, b"abc", session=None)).offset == 3
        with pytest.raises(NotFound) as foreign:
            await worker.append(key, 3, b"def", session="other")
        with pytest.raises(NotFound) as unknown:
            await worker.append("no key", 0, b"def", session=None)
        assert str(foreign.value) == str(unknown.value)
        for ask in (worker.resumes.find, worker.resumes.cancel):
            with pytest.raises(NotFound):
                await ask(key, "other")
        assert await worker.offset(key, None) == 3

    async def test_a_foreign_request_disturbs_nobody(self, worker):
        key = await worker.create(6)
        async with worker.resumes.append(key, "mine", Appended(0)) as appending:
            await appending.write(b"abc")
            with pytest.raises(NotFound):
                await worker.resumes.find(key, "other", newest=True)
            with pytest.raises(NotFound):
                await worker.append(key, 0, session="other")
            await appending.write(b"def")
            assert (await appending.keep()).completed

    async def test_the_key_itself_is_not_in_the_database(self, worker):
        key = await worker.create(6)
        found = await worker.resumes.find(key, None)
        assert key not in repr(found)

    async def test_a_new_session_comes_with_its_first_upload(self, worker):
        session = Session(id="new", created_at=NOW, last_seen_at=NOW, expires_at=NOW + 1000)
        visitor = Visitor("new", NewSession(session, "token"))
        await worker.resumes.create(visitor, Description(Protocol.TUS, "a", "a/b", length=6))
        assert visitor.arrival is None
        assert (await token_records.find_session(worker.db, "token", NOW)).session == session

    async def test_a_session_that_joins_another_takes_its_uploads_along(self, worker):
        for name in ("mine", "theirs"):
            session = NewSession(Session(id=name, created_at=0, last_seen_at=0, expires_at=NOW + 1000), name)
            await worker.db.transaction(lambda unit, session=session: session_records.insert_sessions(unit, [session]))
        key = await worker.create(6)
        async with worker.resumes.append(key, "mine", Appended(0)) as appending:
            await appending.write(b"abc")
            await worker.db.transaction(lambda unit: merge_records.merge(unit, "mine", "theirs", NOW))
        with pytest.raises(NotFound):
            await worker.resumes.find(key, "mine")
        late = await worker.create(6, session="mine")  # by a request that had begun before
        for each in (key, late):
            assert (await worker.append(each, await worker.offset(each, "theirs"), session="theirs")).upload
        assert await worker.statuses("mine") == []
        done = await worker.append(key, 3, b"def", session="theirs")
        assert await worker.statuses("theirs") == [(6, "completed"), (0, "uploading")]
        assert done.session_id == "theirs"
