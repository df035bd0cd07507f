"""What is finished together lands together: files first, then rows, and nothing in between is ever lost."""

import asyncio
import os
import sqlite3
from dataclasses import replace
from itertools import groupby

import asyncpg
import pytest

from app.errors import Internal, Locked, OutcomeUnknown, StorageFull, Unavailable
from app.history import HistoryQuery
from app.model import Failure, Protocol, Session, Status, Upload
from app.sessions import records as session_records
from app.sessions.records import NewSession
from app.storage.local import LocalStorage, syscalls
from app.uploads import records as upload_records
from app.uploads.group_commit import MAX_GROUP_FILES, Publisher
from app.uploads.landing import Incoming
from tests.support.unreliable import NOW, Database, Store, Time, coming, ids, opened, until


@pytest.fixture
def story():
    return []


@pytest.fixture
def store(story):
    return Store(story=story)


@pytest.fixture
async def db(database_url, story):
    db = await opened(database_url, story)
    yield db
    assert db.slots() == (3, 3)
    await db.close()


@pytest.fixture
def world(store, db):
    return World(store, db)


class World:
    """A publisher, and files to give to it. The content of a file of size n is n bytes."""

    def __init__(self, store: Store, db: Database) -> None:
        self.store, self.db = store, db
        self.clock = Time()
        self.new_id = ids()

    def publisher(self, patience: float = 30) -> Publisher:
        return Publisher(self.store, self.db, now_us=self.clock, patience_seconds=patience)

    async def files(self, *sizes: int, filename: str = "a.bin") -> list[Incoming]:
        return [await self.file(size, filename) for size in sizes]

    async def file(self, size: int, filename: str = "a.bin") -> Incoming:
        upload_id = self.new_id()
        staged = self.store.stage(upload_id)
        await staged.write(bytes(size))
        await staged.finish()
        return Incoming(upload_id, "mine", filename, "a/b", Protocol.RAW, self.clock(), staged)

    async def rows(self) -> list[Upload]:
        page = await upload_records.list_uploads(
            self.db, "mine", HistoryQuery(order="oldest"), after=None, page_size=500
        )
        assert page.skipped == 0
        return page.uploads

    async def statuses(self) -> list[tuple[int, str]]:
        """Sizes and statuses of all rows; that a file is there exactly when its row is a completed one."""
        rows = await self.rows()
        assert {row.id for row in rows if row.status is Status.COMPLETED} == (await self.store.contents()).keys()
        return sorted((row.size, row.status.value) for row in rows)


def sizes(uploads):
    return [upload.size for upload in uploads]


async def begun(*landings):
    """Tasks that have handed their files over."""
    tasks = [asyncio.ensure_future(landing) for landing in landings]
    await asyncio.sleep(0)
    return tasks


class TestOrder:
    async def test_files_are_published_before_rows_are_committed_before_the_acknowledgement(self, world, story):
        async with world.publisher() as publisher:
            uploads = await publisher.land(await world.files(1, 2), None)
            story.append("told")
        assert story == ["published", "committed", "told"]
        assert uploads == await world.rows()
        assert await world.statuses() == [(1, "completed"), (2, "completed")]

    @pytest.mark.parametrize("sizes", [[10], [10] * 5, [700_000], [0, 10, 700_000, 3_000_000]])
    async def test_data_on_disk_is_durable_before_its_name_and_names_before_their_rows(
        self, db, tmp_path, monkeypatch, story, sizes
    ):
        storage = LocalStorage(tmp_path / "store", owner=ids()(), min_free=0)
        await storage.prepare()
        world = World(storage, db)

        def noting(call, meaning):
            def noted(*arguments, **options):
                result = call(*arguments, **options)
                story.append(meaning)
                return result

            return noted

        monkeypatch.setattr(os, "write", noting(os.write, "written"))
        monkeypatch.setattr(os, "fsync", noting(os.fsync, "flushed"))
        monkeypatch.setattr(syscalls, "syncfs", noting(syscalls.syncfs, "flushed"))
        monkeypatch.setattr(syscalls, "rename_new", noting(syscalls.rename_new, "renamed"))
        async with world.publisher() as publisher:
            await publisher.land(await world.files(*sizes), None)
            story.append("told")
        monkeypatch.undo()
        order = [event for event, _ in groupby(story)]
        assert order == ["written", "flushed", "renamed", "flushed", "committed", "told"]
        await storage.close()

    async def test_the_time_of_completion_is_that_of_publishing_and_never_before_the_beginning(self, world):
        async with world.publisher() as publisher:
            files = await world.files(1)
            world.clock.pass_by(seconds=5)
            [later] = await publisher.land(files, None)
            files = await world.files(2)
            world.clock.pass_by(seconds=-60)  # somebody set the clock back
            [earlier] = await publisher.land(files, None)
        assert later.completed_at == later.created_at + 5_000_000
        assert earlier.completed_at == earlier.created_at

    async def test_uploads_that_come_during_a_flush_are_the_next_commit_group(self, world):
        world.store.gate.close()
        async with world.publisher() as publisher:
            first = await begun(publisher.land(await world.files(1), None))
            await coming(world.store.gate.reached)
            others = await begun(*[publisher.land(await world.files(n, n), None) for n in (2, 3, 4)])
            world.store.gate.open()
            await asyncio.gather(*first, *others)
        assert world.store.batches == [1, 6]

    async def test_the_next_files_are_flushed_while_rows_are_committed(self, world, story):
        async with world.publisher() as publisher:
            world.db.gate.close()
            first = await begun(publisher.land(await world.files(1), None))
            await coming(world.db.gate.reached)
            [second] = await begun(publisher.land(await world.files(2), None))
            await until(lambda: story == ["published", "published"])
            assert not second.done()
            world.db.gate.open()
            await asyncio.gather(*first, second)
        assert story[2:] == ["committed", "committed"]

    async def test_a_commit_group_is_bounded_and_keeps_a_request_together(self, world):
        world.store.gate.close()
        async with world.publisher() as publisher:
            tasks = await begun(publisher.land(await world.files(0), None))
            await coming(world.store.gate.reached)
            for number in range(3):
                tasks += await begun(publisher.land(await world.files(*[number] * 100), None))
            world.store.gate.open()
            landed = await asyncio.gather(*tasks)
        assert world.store.batches == [1, 300]
        assert [len(uploads) for uploads in landed] == [1, 100, 100, 100]
        assert MAX_GROUP_FILES < 300 < MAX_GROUP_FILES + 100

    async def test_the_rest_waits_for_the_next_commit_group(self, world):
        world.store.gate.close()
        async with world.publisher() as publisher:
            tasks = await begun(publisher.land(await world.files(0), None))
            await coming(world.store.gate.reached)
            tasks += await begun(*[publisher.land(await world.files(1), None) for _ in range(MAX_GROUP_FILES + 5)])
            world.store.gate.open()
            await asyncio.gather(*tasks)
        assert world.store.batches == [1, MAX_GROUP_FILES, 5]


class TestFormsOfManyFiles:
    """More files than a batch holds: in slices, with others in between, and still all of them or none."""

    MANY = 2 * MAX_GROUP_FILES + 88

    async def test_other_uploads_wait_for_a_slice_and_not_for_the_form(self, world, monkeypatch):
        asked = []
        publish = world.store.publish

        async def noted(batch):
            asked.append(len(batch))
            return await publish(batch)

        monkeypatch.setattr(world.store, "publish", noted)
        world.store.gate.close()
        async with world.publisher() as publisher:
            many = await begun(publisher.land(await world.files(*[1] * self.MANY), None))
            await coming(world.store.gate.reached)
            one = await begun(publisher.land(await world.files(2), None))
            try:
                await until(lambda: asked == [MAX_GROUP_FILES, 1])
            finally:
                world.store.gate.open()
            [uploads, _] = await asyncio.gather(*many, *one)
        assert sorted(asked) == [1, 88, MAX_GROUP_FILES, MAX_GROUP_FILES]
        assert len(uploads) == self.MANY
        assert len(await world.store.contents()) == self.MANY + 1

    async def test_a_refused_file_undoes_all_slices_of_its_form(self, world):
        world.store.refuses = {13: StorageFull()}
        sizes = [1] * (self.MANY - 90) + [13] + [1] * 89
        async with world.publisher() as publisher:
            [gone] = await begun(publisher.land(await world.files(*sizes), None))
            gone.cancel()  # nobody is there to abort what is staged still
            refused = publisher.land(await world.files(*sizes), None)
            with pytest.raises(StorageFull):
                await refused
        assert await world.statuses() == []
        assert not world.store.staged

    async def test_a_refused_row_undoes_all_files_of_its_form(self, world):
        await TestRefusedRows.forbid(world.db, "bad")
        files = await world.files(*[1] * 1200)
        async with world.publisher() as publisher:
            with pytest.raises(Internal):
                await publisher.land([*files, await world.file(1, "bad")], None)
        assert await world.statuses() == []

    async def test_a_failed_form_is_recorded_beside_others(self, world):
        files = await world.files(*[1] * self.MANY)
        world.db.gate.close()
        async with world.publisher() as publisher:
            [many] = await begun(publisher.record([file.failed(StorageFull()) for file in files], None))
            await coming(world.db.gate.reached)
            world.db.gate.open()
            await many
            await publisher.land(await world.files(2), None)
        assert (await upload_records.count_uploads(world.db, "mine", HistoryQuery())) == self.MANY + 1


class TestRefusedFiles:
    async def test_a_refused_file_undoes_its_request_and_no_other(self, world):
        world.store.refuses = {13: StorageFull()}
        world.store.gate.close()
        async with world.publisher() as publisher:
            first = await begun(publisher.land(await world.files(1), None))
            await coming(world.store.gate.reached)
            others = await begun(
                publisher.land(await world.files(2, 13, 3), None),
                publisher.land(await world.files(4, 5), None),
            )
            world.store.gate.open()
            [bad, good] = await asyncio.gather(*others, return_exceptions=True)
            await asyncio.gather(*first)
        assert isinstance(bad, StorageFull)
        assert sizes(good) == [4, 5]
        assert await world.statuses() == [(1, "completed"), (4, "completed"), (5, "completed")]
        assert not world.store.staged

    async def test_a_refused_file_is_not_removed_in_passing(self, world):
        """A key that was taken already is refused; the file that has it is not ours to take back."""
        async with world.publisher() as publisher:
            [first] = await publisher.land(await world.files(1), None)
            twin = world.store.stage(first.id)
            world.store.refuses = {0: Unavailable()}
            again = Incoming(first.id, "mine", "a", "a/b", Protocol.RAW, NOW, twin)
            with pytest.raises(Unavailable):
                await publisher.land([again], None)
        assert await world.statuses() == [(1, "completed")]

    @pytest.mark.parametrize(("failure", "told"), [(Unavailable(), Unavailable), (OSError(5, "no disk"), Internal)])
    async def test_a_store_that_fails_wholly_fails_its_commit_group_and_no_later_one(self, world, failure, told):
        world.store.fails = failure
        async with world.publisher() as publisher:
            for result in await asyncio.gather(
                *[publisher.land(await world.files(n), None) for n in (1, 2)], return_exceptions=True
            ):
                assert type(result) is told
            world.store.fails = None
            await publisher.land(await world.files(3), None)
        assert await world.statuses() == [(3, "completed")]

    async def test_files_that_cannot_be_taken_back_are_only_left(self, world, monkeypatch):
        world.store.refuses = {13: StorageFull()}

        async def remove(keys):
            raise OSError(5, "no disk")

        monkeypatch.setattr(world.store, "remove", remove)
        async with world.publisher() as publisher:
            with pytest.raises(StorageFull):
                await publisher.land(await world.files(1, 13), None)
            await publisher.land(await world.files(2), None)
        assert sizes(await world.rows()) == [2]


class TestRefusedRows:
    @staticmethod
    async def forbid(db, filename):
        """Have the database refuse a row that the model accepts."""
        statement = {
            "sqlite": "CREATE TRIGGER forbidden BEFORE INSERT ON uploads "
            f"WHEN NEW.filename = '{filename}' BEGIN SELECT RAISE(ABORT, 'forbidden'); END",
            "postgresql": f"ALTER TABLE uploads ADD CONSTRAINT forbidden CHECK (filename <> '{filename}')",
        }[db.dialect]
        await db.transaction(lambda unit: unit.execute(statement))

    async def test_a_bad_row_fails_alone(self, world):
        await self.forbid(world.db, "bad")
        world.store.gate.close()
        async with world.publisher() as publisher:
            tasks = await begun(publisher.land(await world.files(0), arrival("session 0")))
            await coming(world.store.gate.reached)
            for n in range(1, 9):
                files = await world.files(n, filename="bad" if n == 6 else "good")
                tasks += await begun(publisher.land(files, arrival(f"session {n}")))
            world.store.gate.open()
            results = await asyncio.gather(*tasks, return_exceptions=True)
        assert [n for n, result in enumerate(results) if not isinstance(result, list)] == [6]
        assert type(results[6]) is Internal
        assert results[6].__cause__ is not None
        assert await world.statuses() == [(n, "completed") for n in (0, 1, 2, 3, 4, 5, 7, 8)]
        known = {session.id for session in await session_records.list_sessions(world.db, 100)}
        assert known == {f"session {n}" for n in (0, 1, 2, 3, 4, 5, 7, 8)}

    async def test_all_files_of_a_request_with_a_bad_row_go(self, world):
        await self.forbid(world.db, "bad")
        async with world.publisher() as publisher:
            files = [await world.file(1), await world.file(2, "bad"), await world.file(3)]
            with pytest.raises(Internal):
                await publisher.land(files, None)
        assert await world.statuses() == []

    async def test_a_record_that_breaks_the_model_fails_alone(self, world):
        async with world.publisher() as publisher:
            good, bad = await asyncio.gather(
                publisher.land(await world.files(1), None),
                publisher.land(await world.files(2, filename="a/b"), None),
                return_exceptions=True,
            )
            assert sizes(good) == [1]
            assert type(bad) is Internal
            await publisher.land(await world.files(3), None)
        assert await world.statuses() == [(1, "completed"), (3, "completed")]

    async def test_a_full_database_takes_the_files_back(self, world):
        world.db.fails = ["full"]
        async with world.publisher() as publisher:
            with pytest.raises(StorageFull):
                await publisher.land(await world.files(1, 2), arrival("new"))
            await publisher.land(await world.files(3), None)
        assert await world.statuses() == [(3, "completed")]
        assert await session_records.list_sessions(world.db, 10) == []

    async def test_a_full_database_is_not_asked_for_each_request_alone(self, world):
        world.db.fails = ["full"] * 100
        async with world.publisher() as publisher:
            results = await asyncio.gather(
                *[publisher.land(await world.files(n), None) for n in range(20)], return_exceptions=True
            )
        assert {type(result) for result in results} == {StorageFull}
        assert world.db.transactions <= len(world.store.batches)


class TestOutage:
    async def test_a_short_outage_is_not_noticed(self, world):
        world.db.fails = ["away", "away"]
        async with world.publisher() as publisher:
            await publisher.land(await world.files(1), None)
        assert await world.statuses() == [(1, "completed")]
        assert world.db.transactions == 3
        # All attempts together have the time that one has.
        assert 30 > world.db.timeouts[0] > world.db.timeouts[1] > world.db.timeouts[2] > 0

    async def test_a_lost_answer_is_not_noticed_and_records_nothing_twice(self, world):
        world.db.fails = ["lost", "lost"]
        async with world.publisher() as publisher:
            [upload] = await publisher.land(await world.files(1), arrival("new"))
        assert await world.rows() == [upload]
        assert await world.statuses() == [(1, "completed")]
        assert [session.id for session in await session_records.list_sessions(world.db, 10)] == ["new"]

    async def test_a_long_outage_leaves_the_outcome_open_and_the_files_there(self, world, story):
        world.db.away = True
        async with world.publisher(patience=0) as publisher:
            with pytest.raises(OutcomeUnknown):
                await publisher.land(await world.files(1, 2), None)
            assert len(await world.store.contents()) == 2
            with pytest.raises(Unavailable, match="away"):
                publisher.check()
            with pytest.raises(Unavailable, match="away"):
                await publisher.land(await world.files(3), None)
        # Still away at the end: nobody can say what became of them, so nobody removes them.
        assert len(await world.store.contents()) == 2
        assert story == ["published"]

    async def test_an_upload_not_recorded_in_an_outage_has_failed_and_goes(self, world):
        world.db.away = True
        async with world.publisher(patience=0) as publisher:
            with pytest.raises(OutcomeUnknown):
                await publisher.land(await world.files(1, 2), arrival("new"))
            world.db.away = False
            await coming(world.store.removed)
            publisher.check()
            assert await world.statuses() == [(1, "failed"), (2, "failed")]
            await publisher.land(await world.files(1, 2), None)  # as the client was told, it tries again
        assert await world.statuses() == [(1, "completed"), (1, "failed"), (2, "completed"), (2, "failed")]
        assert {row.error.code for row in await world.rows() if row.error} == {"unavailable"}
        assert [session.id for session in await session_records.list_sessions(world.db, 10)] == ["new"]

    async def test_an_upload_recorded_in_spite_of_an_outage_is_completed_and_stays(self, world):
        world.db.fails = ["lost"]
        async with world.publisher(patience=0) as publisher:
            with pytest.raises(OutcomeUnknown):
                await publisher.land(await world.files(1, 2), None)
        assert await world.statuses() == [(1, "completed"), (2, "completed")]

    @pytest.mark.parametrize(("ends_with", "status"), [("COMMIT", "completed"), ("ROLLBACK", "failed")])
    async def test_an_insert_still_in_flight_decides_the_outcome(self, world, database_url, ends_with, status):
        """The connection is lost, and the database goes on with what it was told before."""
        async with world.publisher(patience=0) as publisher:
            world.db.away = True
            [file] = await world.files(7)
            with pytest.raises(OutcomeUnknown):
                await publisher.land([file], None)
            insert = SqliteInsert if database_url.startswith("sqlite") else PostgresqlInsert
            other = await insert.of(database_url, file.completed(NOW))
            world.db.away = False
            world.db.gate.close()
            await coming(world.db.gate.reached)
            world.db.gate.open()
            await other.is_waited_for()
            await other.end(ends_with)
        assert await world.statuses() == [(7, status)]

    async def test_an_upload_deleted_while_in_doubt_stays_deleted(self, world):
        world.db.fails = ["lost"]
        async with world.publisher(patience=0) as publisher:
            files = await world.files(1)
            world.db.away = True  # after this one transaction
            with pytest.raises(OutcomeUnknown):
                await publisher.land(files, None)
            assert await upload_records.delete_upload(world.db, "mine", files[0].id, NOW)
            world.db.away = False
        assert await world.statuses() == [(1, "deleted")]

    async def test_an_attempt_in_doubt_is_not_certain_again_through_a_later_refusal(self, world):
        world.db.fails = ["lost", "full"]
        async with world.publisher() as publisher:
            with pytest.raises(OutcomeUnknown):
                await publisher.land(await world.files(1), None)
        assert await world.statuses() == [(1, "completed")]

    async def test_an_upload_in_the_middle_of_an_outage_waits_no_longer_than_the_first(self, world):
        world.db.away = True
        async with world.publisher(patience=0.3) as publisher:
            first = await begun(publisher.land(await world.files(1), None))
            await until(lambda: world.db.transactions > 0)
            late = await begun(*[publisher.land(await world.files(n), None) for n in range(2, 300)])
            results = await asyncio.gather(*first, *late, return_exceptions=True)
            assert {type(result) for result in results} == {OutcomeUnknown}
            assert world.db.transactions < 20  # together, not one after another
            world.db.away = False
        assert await world.statuses() == [(n, "failed") for n in range(1, 300)]

    async def test_a_failure_is_recorded_when_the_outage_is_over(self, world):
        world.db.away = True
        async with world.publisher(patience=0) as publisher:
            [file] = await world.files(1)
            await file.staged.abort()
            with pytest.raises(OutcomeUnknown):
                await publisher.record([file.failed(StorageFull())], arrival("new"))
            world.db.away = False
        [row] = await world.rows()
        assert row.error == Failure(code="storage_full", detail=str(StorageFull()))
        assert [session.id for session in await session_records.list_sessions(world.db, 10)] == ["new"]

    async def test_an_upload_in_doubt_that_cannot_be_settled_ends_nothing(self, world, monkeypatch):
        world.db.away = True
        async with world.publisher(patience=0) as publisher:
            with pytest.raises(OutcomeUnknown):
                await publisher.land(await world.files(1), None)
            with monkeypatch.context() as broken:
                broken.setattr(Incoming, "failed", lambda self, error: 1 / 0)
                world.db.away = False
                await until(lambda: not publisher._in_doubt)
            await publisher.land(await world.files(2), None)
        assert sizes(await world.rows()) == [2]
        assert len(await world.store.contents()) == 2

    async def test_an_odd_answer_to_the_probe_of_the_database_ends_nothing(self, world, monkeypatch):
        world.db.away = True
        answers = iter([ValueError("odd")])
        ping = Database.ping

        async def odd(db):
            for error in answers:
                raise error
            await ping(db)

        monkeypatch.setattr(Database, "ping", odd)
        async with world.publisher(patience=0) as publisher:
            with pytest.raises(OutcomeUnknown):
                await publisher.land(await world.files(1), None)
            world.db.away = False
            await coming(world.store.removed)
        assert await world.statuses() == [(1, "failed")]


class TestLockedSessions:
    """Somebody holds the row of one session: a join that takes its time, an operator's transaction."""

    @pytest.fixture
    async def held(self, db, database_url):
        """The row of the session "held", locked by another connection until `released` is set."""
        async with asyncio.TaskGroup() as holders:
            released = asyncio.Event()
            locked = asyncio.Event()

            async def hold():
                raw = await asyncpg.connect(database_url)
                async with raw.transaction():
                    await raw.execute("SELECT 1 FROM sessions WHERE id = 'held' FOR UPDATE")
                    locked.set()
                    await released.wait()
                await raw.close()

            async def save(unit):
                await session_records.insert_sessions(unit, [arrival("held")])

            await db.transaction(save)
            holders.create_task(hold())
            await locked.wait()
            yield released
            released.set()

    async def land(self, world, publisher, *sessions):
        """Land a file for each session, all handed over together."""
        files = [
            replace(file, session_id=session)
            for file, session in zip(await world.files(*[1] * len(sessions)), sessions, strict=True)
        ]
        return await begun(*[publisher.land([file], None) for file in files])

    @pytest.mark.parametrize("database_url", ["postgresql"], indirect=True)
    async def test_a_locked_session_leaves_the_group_and_lands_when_it_is_free(self, world, held):
        async with world.publisher() as publisher:
            first, *others = await self.land(world, publisher, "held", *map(str, range(9)))
            await asyncio.gather(*others)
            transactions = world.db.transactions
            second, *others = await self.land(world, publisher, "held", *map(str, range(9)))
            await asyncio.gather(*others)
            assert world.db.transactions <= transactions + 2  # the group did not meet it again
            assert not first.done()
            assert not second.done()
            publisher.check()
            held.set()
            await asyncio.gather(first, second)

    @pytest.mark.parametrize("database_url", ["postgresql"], indirect=True)
    async def test_a_session_that_stays_locked_is_refused_alone_and_settled_when_it_is_free(self, world, held):
        async with world.publisher(patience=0.2) as publisher:
            gone, *others = await self.land(world, publisher, "held", "another", "a third")
            await asyncio.gather(*others)
            with pytest.raises(OutcomeUnknown):
                await gone
            publisher.check_session("another")
            with pytest.raises(Locked):
                publisher.check_session("held")
            assert len(await world.store.contents()) == 3
            held.set()
            await coming(world.store.removed)
            await until(lambda: not publisher._in_doubt)
            publisher.check_session("held")
            [again] = await self.land(world, publisher, "held")
            await again
        page = await upload_records.list_uploads(world.db, "held", HistoryQuery(), after=None, page_size=9)
        assert [upload.status for upload in page.uploads] == ["completed", "failed"]

    @pytest.mark.parametrize("database_url", ["postgresql"], indirect=True)
    async def test_an_upload_in_doubt_of_a_locked_session_keeps_no_other_in_doubt(self, world, held):
        world.db.away = True
        async with world.publisher(patience=0) as publisher:
            for landing in await self.land(world, publisher, "another", "held", "a third"):
                with pytest.raises(OutcomeUnknown):
                    await landing
            world.db.away = False
            await until(lambda: len(publisher._in_doubt) == 1)
            publisher.check()
            with pytest.raises(Locked):
                publisher.check_session("held")
            held.set()
            await until(lambda: not publisher._in_doubt)

    @pytest.mark.parametrize("database_url", ["postgresql"], indirect=True)
    @pytest.mark.slow
    async def test_a_table_that_is_locked_refuses_in_bounded_time_and_is_no_outage_afterwards(
        self, world, database_url
    ):
        raw = await asyncpg.connect(database_url)
        async with world.publisher(patience=0.2) as publisher:
            async with raw.transaction():
                await raw.execute("LOCK TABLE uploads IN SHARE MODE")
                landings = await self.land(world, publisher, *map(str, range(40)))
                async with asyncio.timeout(20):
                    results = await asyncio.gather(*landings, return_exceptions=True)
            assert {type(result) for result in results} == {OutcomeUnknown}
            await until(lambda: not publisher._in_doubt)
            await asyncio.gather(*await self.land(world, publisher, *map(str, range(40))))
        await raw.close()

    async def test_an_answer_to_a_question_alone_does_not_bring_the_database_back(self, world, monkeypatch):
        """Readers are answered while somebody holds SQLite's only writer, and on a standby."""
        world.db.away = True
        async with world.publisher(patience=0) as publisher:
            with pytest.raises(OutcomeUnknown):
                await publisher.land(await world.files(1), None)
            asked = asyncio.Event()
            back = []

            async def ping(db):
                asked.set()

            monkeypatch.setattr(Database, "ping", ping)
            monkeypatch.setattr(publisher._in_doubt.away, "clear", lambda: back.append("back"))
            await coming(asked)
            tried = world.db.transactions
            await until(lambda: world.db.transactions >= tried + 3)
            assert back == []
            world.db.away = False
            await coming(world.store.removed)
            await until(lambda: back == ["back"])


class SqliteInsert:
    """Another connection that has inserted an upload and not said yet how its transaction ends."""

    def __init__(self, raw):
        self._raw = raw

    @classmethod
    async def of(cls, url, upload):
        row = upload.as_row()
        raw = sqlite3.connect(url.removeprefix("sqlite:///"), isolation_level=None)
        raw.execute("BEGIN IMMEDIATE")
        raw.execute(f"INSERT INTO uploads ({', '.join(row)}) VALUES ({', '.join('?' * len(row))})", [*row.values()])
        return cls(raw)

    async def is_waited_for(self):
        await asyncio.sleep(0)  # nobody can write meanwhile, and nothing tells who would like to

    async def end(self, how):
        self._raw.execute(how)
        self._raw.close()


class PostgresqlInsert(SqliteInsert):
    @classmethod
    async def of(cls, url, upload):
        row = upload.as_row()
        raw = await asyncpg.connect(url)
        await raw.execute("BEGIN")
        places = ", ".join(f"${number}" for number in range(1, len(row) + 1))
        await raw.execute(f"INSERT INTO uploads ({', '.join(row)}) VALUES ({places})", *row.values())
        return cls(raw)

    async def is_waited_for(self):
        own = "SELECT count(*) FROM pg_locks WHERE NOT granted AND pg_backend_pid() = ANY (pg_blocking_pids(pid))"

        async def waited_for():
            return await self._raw.fetchval(own) > 0

        await until(waited_for)

    async def end(self, how):
        await self._raw.execute(how)
        await self._raw.close()


def arrival(session_id: str) -> NewSession:
    session = Session(id=session_id, created_at=NOW, last_seen_at=NOW, expires_at=NOW + 10**9)
    return NewSession(session, f"hash of {session_id}")


class TestCallersThatLeave:
    @pytest.mark.parametrize("stage", ["store", "db"])
    async def test_a_cancelled_caller_stops_nothing(self, world, stage):
        gate = {"store": world.store.gate, "db": world.db.gate}[stage]
        async with world.publisher() as publisher:
            gate.close()
            [gone, stays] = await begun(
                publisher.land(await world.files(1), None), publisher.land(await world.files(2), None)
            )
            await coming(gate.reached)
            gone.cancel()
            await asyncio.sleep(0)
            gate.open()
            await stays
            assert gone.cancelled()
        assert await world.statuses() == [(1, "completed"), (2, "completed")]

    async def test_a_cancelled_caller_whose_commit_group_fails_disturbs_nobody(self, world):
        world.store.refuses = {1: StorageFull()}
        world.store.gate.close()
        async with world.publisher() as publisher:
            [gone, stays] = await begun(
                publisher.land(await world.files(1), None), publisher.land(await world.files(2), None)
            )
            await coming(world.store.gate.reached)
            gone.cancel()
            await asyncio.sleep(0)
            world.store.gate.open()
            await stays
        assert await world.statuses() == [(2, "completed")]


class TestClosing:
    async def test_closing_finishes_uploads_that_were_handed_over(self, world):
        world.store.gate.close()
        async with world.publisher() as publisher:
            tasks = await begun(*[publisher.land(await world.files(n), None) for n in (1, 2)])
            await coming(world.store.gate.reached)
            tasks += await begun(*[publisher.land(await world.files(n), None) for n in (3, 4)])
            asyncio.get_running_loop().call_soon(world.store.gate.open)
        assert [sizes(task.result()) for task in tasks] == [[1], [2], [3], [4]]
        assert await world.statuses() == [(n, "completed") for n in (1, 2, 3, 4)]

    async def test_closing_refuses_new_uploads_at_once(self, world):
        async with world.publisher() as publisher:
            pass
        [file] = await world.files(1)
        for refused in (
            publisher.land([file], None),
            publisher.record([file.failed(StorageFull())], None),
        ):
            with pytest.raises(Unavailable, match="stopping"):
                await refused
        with pytest.raises(Unavailable, match="stopping"):
            publisher.check()
        assert await world.statuses() == []

    async def test_a_cancelled_closing_still_finishes_both_stages(self, world):
        world.store.gate.close()
        inside, leave = asyncio.Event(), asyncio.Event()

        async def serve():
            async with world.publisher() as publisher:
                self.landing = asyncio.ensure_future(publisher.land(await world.files(1), None))
                inside.set()
                await leave.wait()

        serving = asyncio.create_task(serve())
        await coming(inside)
        await coming(world.store.gate.reached)
        leave.set()
        await asyncio.sleep(0)
        for _ in range(2):
            serving.cancel()
            await asyncio.sleep(0)
        world.store.gate.open()
        with pytest.raises(asyncio.CancelledError):
            await serving
        assert sizes(self.landing.result()) == [1]
        assert await world.statuses() == [(1, "completed")]
        assert not [task for task in asyncio.all_tasks() if task.get_name().startswith("waybill-")]

    async def test_a_database_that_stays_away_does_not_delay_closing(self, world):
        async with world.publisher(patience=0) as publisher:
            world.db.away = True
            with pytest.raises(OutcomeUnknown):
                await publisher.land(await world.files(1), None)
        assert not [task for task in asyncio.all_tasks() if task.get_name().startswith("waybill-")]


async def test_a_fault_of_ours_fails_its_commit_group_and_no_later_one(world):
    readings = iter([1 / 2])

    def clock():
        for _ in readings:
            raise ValueError("a fault")
        return NOW

    publisher = Publisher(world.store, world.db, now_us=clock)
    async with publisher:
        with pytest.raises(Internal) as told:
            await publisher.land(await world.files(1), None)
        assert isinstance(told.value.__cause__, ValueError)
        await publisher.land(await world.files(2), None)
    assert sizes(await world.rows()) == [2]
