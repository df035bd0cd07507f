"""One request: all of its files land or none, and whatever ends it leaves nothing half-way."""

import asyncio
import hashlib
from contextlib import suppress

import pytest

from app.errors import (
    DigestMismatch,
    Internal,
    NoFile,
    OutcomeUnknown,
    StorageFull,
    TooLarge,
    TooManyFiles,
    TooSlow,
    Unavailable,
)
from app.history import HistoryQuery
from app.model import UNDECLARED, Digests, Protocol, Session, Status
from app.sessions import records as session_records
from app.sessions import token_records
from app.sessions.records import NewSession
from app.storage.local import LocalStorage
from app.storage.memory import MemoryStaged
from app.uploads import records as upload_records
from app.uploads.group_commit import Publisher
from app.uploads.ingest import Ingest, IngestLimits, Visitor
from tests.support.unreliable import NOW, Interrupted, Store, coming, ids, opened, ticking

LIMITS = IngestLimits(file_bytes=1000, files=3, requests_at_once=2)
EMPTY = hashlib.sha256().hexdigest()
BLOCK = 900
LARGE = IngestLimits(file_bytes=10**7, files=3, requests_at_once=2)


@pytest.fixture
async def db(tmp_path):
    db = await opened(f"sqlite:///{tmp_path}/waybill.db")
    yield db
    assert db.slots() == (3, 3)
    await db.close()


@pytest.fixture
async def world(db):
    async with world_of(Store(), db) as world:
        yield world
        world.assert_nothing_is_left_behind()


def world_of(store, db, *, limits=LIMITS, patience=30.0):
    return World(store, db, limits, patience)


class World:
    """An ingest with all that is below it."""

    def __init__(self, store, db, limits, patience):
        self.store, self.db = store, db
        self.publisher = Publisher(store, db, now_us=ticking(), patience_seconds=patience)
        self.ingest = Ingest(store, self.publisher, limits=limits, now_us=ticking(), new_id=ids())

    async def __aenter__(self):
        await self.publisher.__aenter__()
        return self

    async def __aexit__(self, *error):
        await self.publisher.__aexit__(*error)

    def request(self, visitor=None, *, declared=None):
        return self.ingest.request(visitor=visitor or Visitor("mine"), protocol=Protocol.FORM, declared=declared)

    async def send(self, *files, visitor=None, declared=None, digests=UNDECLARED, then=None):
        """One request with files, given as (name, size); what `then` is, is raised before it is published."""
        async with self.request(visitor, declared=declared) as landing:
            for name, size in files:
                await landing.begin_file(name, "text/plain", digests=digests)
                for start in range(0, size, BLOCK):
                    await landing.write(bytes(min(BLOCK, size - start)))
                await landing.end_file()
            if then is not None:
                raise then
            return await landing.publish()

    async def rows(self, session_id="mine"):
        page = await upload_records.list_uploads(
            self.db, session_id, HistoryQuery(order="oldest"), after=None, page_size=500
        )
        return page.uploads

    async def outcome(self, session_id="mine"):
        """Name, size and status or error code of every row; that there is a file for each completed one alone."""
        rows = await self.rows(session_id)
        files = [file.key async for found in self.store.walk(0) for file in found]
        assert sorted(files) == sorted(row.id for row in rows if row.status is Status.COMPLETED)
        return [(row.filename, row.size, row.error.code if row.error else row.status.value) for row in rows]

    def assert_nothing_is_left_behind(self):
        assert not self.store.staged
        assert self.store.space.reserved == 0
        assert self.ingest._idle.is_set()


def newcomer():
    session = Session(id="new", created_at=NOW, last_seen_at=NOW, expires_at=NOW + 10**9)
    return Visitor("new", NewSession(session, "hash of new"))


class TestLanding:
    async def test_all_files_of_a_request_land_together(self, world):
        async with world.request(declared=100) as landing:
            assert not landing.receiving
            await landing.begin_file("a.txt", "text/plain")
            assert landing.receiving
            await landing.write(b"he")
            await landing.write(b"llo")
            await landing.end_file()
            assert not landing.receiving
            await landing.begin_file("b.txt", "text/plain")
            await landing.end_file()
            assert await world.outcome() == []
            uploads = await landing.publish()
        assert uploads == await world.rows()
        assert [(each.filename, each.size, each.sha256) for each in uploads] == [
            ("a.txt", 5, hashlib.sha256(b"hello").hexdigest()),
            ("b.txt", 0, EMPTY),
        ]
        assert {(each.session_id, each.protocol, each.content_type) for each in uploads} == {
            ("mine", Protocol.FORM, "text/plain")
        }
        assert await world.outcome() == [("a.txt", 5, "completed"), ("b.txt", 0, "completed")]

    async def test_leaving_without_publishing_leaves_nothing(self, world):
        async with world.request(declared=100) as landing:
            await landing.begin_file("a", "a/b")
            await landing.write(b"half")
        assert await world.outcome() == []

    async def test_a_request_without_a_file_is_refused_and_not_recorded(self, world):
        with pytest.raises(NoFile):
            await world.send(visitor=newcomer())
        assert await world.outcome("new") == []

    async def test_a_file_that_was_not_ended_is_never_published(self, world):
        async with world.request() as landing:
            await landing.begin_file("a", "a/b")
            await landing.write(b"half")
            with pytest.raises(AssertionError):
                await landing.publish()
        assert await world.outcome() == []


class TestRefusals:
    @pytest.mark.parametrize(
        ("error", "code"),
        [
            (TooSlow(30, 1024), "too_slow"),
            (asyncio.CancelledError(), "unavailable"),
            (KeyError("a fault of ours"), "internal"),
            (GeneratorExit(), "internal"),
        ],
    )
    async def test_files_that_had_begun_fail_with_the_code_of_the_error(self, world, error, code):
        async def send():
            async with world.request(declared=100) as landing:
                await landing.begin_file("whole", "a/b")
                await landing.write(b"whole")
                await landing.end_file()
                await landing.begin_file("half", "a/b")
                await landing.write(b"ha")
                raise error

        with pytest.raises(type(error)):
            await send()
        assert await world.outcome() == [("whole", 5, code), ("half", 2, code)]

    async def test_the_history_holds_the_refusal_that_the_client_got(self, world):
        with pytest.raises(TooLarge) as told:
            await world.send(("large", 1001))
        [row] = await world.rows()
        assert row.error.detail == str(told.value)
        assert told.value.members == {"received": 1001, "limit": 1000}

    async def test_a_file_may_be_as_large_as_the_limit_and_not_a_byte_larger(self, world):
        await world.send(("a", 1000))
        with pytest.raises(TooLarge):
            await world.send(("b", 1001))
        assert await world.outcome() == [("a", 1000, "completed"), ("b", 900, "too_large")]

    async def test_files_are_taken_up_to_the_limit(self, world):
        await world.send(("a", 1), ("b", 2), ("c", 3))
        with pytest.raises(TooManyFiles):
            await world.send(("d", 1), ("e", 2), ("f", 3), ("g", 4))
        assert [code for *_, code in await world.outcome()] == ["completed"] * 3 + ["too_many_files"] * 3

    async def test_a_digest_must_be_that_of_the_bytes(self, world):
        await world.send(("true", 0), digests=Digests(EMPTY))
        with pytest.raises(DigestMismatch) as refusal:
            await world.send(("false", 1), digests=Digests(EMPTY))
        actual = hashlib.sha256(b"\0").hexdigest()
        assert refusal.value.members == {"algorithm": "sha-256", "expected": EMPTY, "actual": actual}
        assert await world.outcome() == [("true", 0, "completed"), ("false", 1, "digest_mismatch")]

    async def test_a_digest_that_differs_undoes_the_request(self, world):
        with pytest.raises(DigestMismatch):
            await world.send(("a", 0), ("b", 1), ("c", 0), digests=Digests(EMPTY))
        assert await world.outcome() == [("a", 0, "digest_mismatch"), ("b", 1, "digest_mismatch")]

    async def test_the_next_file_does_not_inherit_a_digest(self, world):
        async with world.request() as landing:
            await landing.begin_file("a", "a/b", digests=Digests(EMPTY))
            await landing.end_file()
            await landing.begin_file("b", "a/b")
            await landing.write(b"anything")
            await landing.end_file()
            await landing.publish()

    async def test_one_refused_file_undoes_its_whole_request(self, world):
        world.store.refuses = {13: StorageFull()}
        with pytest.raises(StorageFull):
            await world.send(("a", 10), ("b", 13), declared=100)
        assert await world.outcome() == [("a", 10, "storage_full"), ("b", 13, "storage_full")]

    async def test_a_store_that_fails_wholly_leaves_nothing_staged(self, world):
        world.store.fails = OSError(5, "no disk")
        with pytest.raises(Internal):
            await world.send(("a", 10), ("b", 20), declared=100)
        assert await world.outcome() == [("a", 10, "internal"), ("b", 20, "internal")]

    async def test_a_full_store_refuses_in_the_middle(self, db):
        async with world_of(Store(capacity=15), db) as world:
            with pytest.raises(StorageFull):
                await world.send(("a", 10), ("b", 10))
            assert await world.store.free_bytes() == 15
            assert [code for *_, code in await world.outcome()] == ["storage_full"] * 2
            world.assert_nothing_is_left_behind()

    async def test_an_abort_that_fails_hides_no_error_and_spares_no_other_file(self, world, monkeypatch):
        abort, calls = MemoryStaged.abort, []

        async def fails_first(staged):
            calls.append(staged)
            await abort(staged)
            if len(calls) == 1:
                raise OSError(5, "no disk")

        monkeypatch.setattr(MemoryStaged, "abort", fails_first)
        with pytest.raises(TooSlow):
            await world.send(("a", 1), ("b", 2), declared=100, then=TooSlow(30, 1024))
        assert len(calls) == 2
        assert [code for *_, code in await world.outcome()] == ["too_slow"] * 2


class TestAdmission:
    async def test_a_declared_length_that_does_not_fit_is_refused_before_the_body(self, db):
        async with world_of(Store(capacity=100), db) as world:
            async with world.request(declared=60):
                with pytest.raises(StorageFull):
                    await world.send(declared=41)
                async with world.request(declared=40):
                    pass
            async with world.request(declared=100):
                pass
            world.assert_nothing_is_left_behind()

    async def test_uploads_at_once_are_taken_up_to_the_limit(self, world):
        async with world.request(), world.request(declared=10):
            with pytest.raises(Unavailable, match="too many"):
                await world.send(declared=10)
        await world.send(("a", 1))

    async def test_a_request_that_is_never_entered_holds_nothing(self, world):
        for _ in range(10):
            world.request(declared=10)
        await world.send(("a", 1))

    async def test_nothing_is_begun_while_it_could_not_be_recorded(self, db):
        async with world_of(Store(), db, patience=0) as world:
            db.away = True
            with pytest.raises(OutcomeUnknown):
                await world.send(("a", 1))
            with pytest.raises(Unavailable, match="away"):
                await world.request(declared=10).__aenter__()
            db.away = False
            await coming(world.store.removed)
            await world.send(("b", 2))
            assert await world.outcome() == [("a", 1, "unavailable"), ("b", 2, "completed")]
            world.assert_nothing_is_left_behind()


class TestOutages:
    async def test_an_unknown_outcome_is_the_publishers_to_settle(self, db):
        """A record of failure by the request could contradict the completed one that is there already."""
        async with world_of(Store(), db, patience=0) as world:
            db.fails = ["lost"]
            with pytest.raises(OutcomeUnknown):
                await world.send(("a", 1), declared=10)
            world.assert_nothing_is_left_behind()
        assert await world.outcome() == [("a", 1, "completed")]
        assert db.story.count("committed") == 2  # the upload, and what settled it; no record of a failure

    async def test_a_refusal_is_raised_also_when_it_cannot_be_recorded(self, world):
        world.db.fails = ["full"]
        with pytest.raises(TooSlow):
            await world.send(("a", 1), then=TooSlow(30, 1024))
        assert await world.outcome() == []

    async def test_a_refusal_comes_into_the_history_when_the_database_is_back(self, db):
        async with world_of(Store(), db, patience=0) as world:
            db.away = True
            with pytest.raises(TooLarge):
                await world.send(("a", 2000))
            db.away = False
            world.assert_nothing_is_left_behind()
        assert await world.outcome() == [("a", 900, "too_large")]


class TestArrivals:
    async def known(self, world):
        return [session.id for session in await session_records.list_sessions(world.db, 10)]

    async def test_a_new_session_rides_with_its_first_upload(self, world):
        visitor = newcomer()
        await world.send(("a", 1), visitor=visitor)
        assert visitor.arrival is None
        assert await self.known(world) == ["new"]
        assert (await token_records.find_session(world.db, "hash of new", NOW)).session.id == "new"
        assert await world.outcome("new") == [("a", 1, "completed")]

    async def test_a_new_session_rides_with_the_record_of_a_failure(self, world):
        visitor = newcomer()
        with pytest.raises(TooSlow):
            await world.send(("a", 1), visitor=visitor, then=TooSlow(30, 1024))
        assert visitor.arrival is None
        assert await self.known(world) == ["new"]
        assert await world.outcome("new") == [("a", 1, "too_slow")]

    async def test_a_new_session_is_recorded_when_the_store_refuses_the_upload(self, world):
        visitor = newcomer()
        world.store.refuses = {1: StorageFull()}
        with pytest.raises(StorageFull):
            await world.send(("a", 1), visitor=visitor)
        assert visitor.arrival is None
        assert await self.known(world) == ["new"]

    async def test_a_request_that_began_nothing_brings_no_session(self, world):
        visitor = newcomer()
        with pytest.raises(NoFile):
            await world.send(visitor=visitor)
        assert visitor.arrival
        assert await self.known(world) == []

    async def test_a_session_that_is_certainly_not_recorded_is_not_given_to_the_client(self, world):
        visitor = newcomer()
        world.db.fails = ["full", "full"]
        with pytest.raises(StorageFull):
            await world.send(("a", 1), visitor=visitor)
        assert visitor.arrival
        assert await self.known(world) == []

    @pytest.mark.parametrize("failure", ["away", "lost"])
    async def test_a_session_that_may_be_recorded_is_given_to_the_client(self, db, failure):
        visitor = newcomer()
        async with world_of(Store(), db, patience=0) as world:
            db.fails = [failure]
            with pytest.raises(OutcomeUnknown):
                await world.send(("a", 1), visitor=visitor)
            assert visitor.arrival is None
        assert await self.known(world) == ["new"]
        assert len(await world.rows("new")) == 1


class TestClosing:
    async def test_closing_waits_for_uploads_in_flight_and_takes_no_new_one(self, world):
        async with world.request() as landing:
            closing = asyncio.create_task(world.ingest.close(60))
            await asyncio.sleep(0)
            with pytest.raises(Unavailable, match="stopping"):
                await world.request().__aenter__()
            await landing.begin_file("a", "a/b")
            await landing.end_file()
            await landing.publish()
            assert not closing.done()
        await closing
        assert await world.outcome() == [("a", 0, "completed")]

    async def test_closing_waits_no_longer_than_the_grace(self, world):
        async with world.request() as landing:
            await world.ingest.close(0)
            await landing.begin_file("a", "a/b")  # the publisher is still there
            await landing.end_file()
            await landing.publish()

    async def test_closing_without_uploads_in_flight_does_not_wait(self, world):
        await world.ingest.close(10**9)

    async def test_an_upload_that_outlives_the_service_is_refused_and_hangs_nowhere(self, db):
        async with world_of(Store(), db) as world:
            landing = await world.request(declared=10).__aenter__()
            await landing.begin_file("a", "a/b")
            await landing.end_file()
            await world.ingest.close(0)
        with pytest.raises(Unavailable, match="stopping") as told:
            await landing.publish()
        await landing.__aexit__(type(told.value), told.value, None)
        world.assert_nothing_is_left_behind()
        assert await world.outcome() == []


class TestCancellation:
    """Whatever is awaited when it strikes: all or nothing, everything is given back, and the rows say which."""

    async def cancel_everywhere(self, world, sizes, late, then_after):
        """Send again and again, each time cancelled one wait later, until no wait is left to cancel at.

        Gives all the endings there were.
        """
        endings, sending, first = [], None, 0
        while sending is None or sending.waits >= first:
            first += 1
            visitor = Visitor(f"session {first}")
            files = [(str(size), size) for size in sizes]
            strikes = {first} if then_after is None else {first, first + then_after}
            sending = Interrupted(world.send(*files, visitor=visitor, declared=sum(sizes)), strikes, late=late)
            with suppress(asyncio.CancelledError):
                await asyncio.create_task(whole(sending))
            assert world.ingest._idle.is_set()
            await world.send(("last", 1), visitor=Visitor("other"))  # it comes later, so all before it has landed
            rows = await world.rows(visitor.session_id)
            endings.append([row.error.code if row.error else row.status.value for row in rows])
        return endings[:-1]  # the last one was not cancelled

    async def no_file_without_a_row(self, world):
        files = [file.key async for found in world.store.walk(0) for file in found]
        assert set((await upload_records.statuses_of(world.db, files)).values()) == {"completed"}

    @pytest.mark.parametrize("late", [False, True], ids=["early", "late"])
    @pytest.mark.parametrize("then_after", [None, 1, 2])
    async def test_a_cancelled_upload_leaves_nothing_in_memory(self, db, late, then_after):
        async with world_of(Store(), db, limits=LARGE) as world:
            endings = await self.cancel_everywhere(world, [10, 20], late, then_after)
            world.assert_nothing_is_left_behind()
            await self.no_file_without_a_row(world)
        assert endings
        assert all(ending == ["completed"] * 2 for ending in endings)  # memory waits for nothing but the publisher

    @pytest.mark.parametrize("late", [False, True], ids=["early", "late"])
    @pytest.mark.parametrize("then_after", [None, 1, 2])
    async def test_a_cancelled_upload_leaves_nothing_on_disk(self, db, tmp_path, monkeypatch, late, then_after):
        monkeypatch.setattr("tests.uploads.test_ingest.BLOCK", 300_000)
        store = LocalStorage(tmp_path / "store", owner=ids()(), min_free=0)
        await store.prepare()
        async with world_of(store, db, limits=LARGE) as world:
            endings = await self.cancel_everywhere(world, [10, 700_000, 2_500_000], late, then_after)
            assert (store.space.reserved, store.space.held) == (0, 0)
            assert list(tmp_path.glob("store/staging/*/*")) == []
            await self.no_file_without_a_row(world)
        await store.close()
        assert ["completed"] * 3 in endings
        assert ["unavailable"] * 3 in endings
        assert all(len(set(ending)) == 1 for ending in endings)  # all files of a request share its fate


async def whole(work):
    return await work
