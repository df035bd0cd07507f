"""What crashes and walk-aways leave is found, and nothing that somebody could miss is ever destroyed."""

import asyncio
import errno
import os
import shutil
import uuid
from contextlib import asynccontextmanager, suppress

import pytest

from app.errors import StorageFull, Unavailable
from app.history import HistoryQuery
from app.links import records as link_records
from app.links.records import ShareLink
from app.maintenance.sweep import EMPTY_SESSION_US, LINKS_REMEMBERED_US, Sweeper
from app.maintenance.verify import verify
from app.model import Failure, Protocol, Session, Status, Upload
from app.plausibility import too_many
from app.sessions import records as session_records
from app.sessions.records import NewSession
from app.storage.local import LocalStorage
from app.uploads import records as upload_records
from app.uploads.group_commit import Publisher
from app.uploads.landing import Incoming
from tests.support.unreliable import NOW, Store, Time, coming, opened, ticking, until

HOUR = 3600


@pytest.fixture
async def db(database_url):
    db = await opened(database_url)
    yield db
    await db.close()


@pytest.fixture
def store():
    return Store()


@asynccontextmanager
async def local(root, owner=1):
    """The directory `root` as one process has it."""
    storage = LocalStorage(root, owner=key(owner), min_free=0)
    await storage.prepare()
    yield storage
    await storage.close()


def key(number):
    return str(uuid.UUID(int=number))


def sweeper(store, db, grace=0.0):
    return Sweeper(store, db, now_us=lambda: NOW, grace_seconds=grace)


async def put_file(storage, number):
    """A published file of ten bytes; the digest of it."""
    staged = storage.stage(key(number))
    await staged.write(b"0123456789")
    await staged.finish()
    assert await storage.publish([staged]) == {}
    return staged.sha256


def row(number, sha256="0" * 64, status=Status.COMPLETED, session_id="mine"):
    failed = status is Status.FAILED
    return Upload(
        id=key(number),
        session_id=session_id,
        filename="a",
        content_type=None,
        size=10,
        sha256=None if failed else sha256,
        status=status,
        protocol=Protocol.RAW,
        created_at=NOW,
        completed_at=None if failed else NOW,
        error=Failure(code="too_slow", detail="") if failed else None,
    )


async def put(storage, db, *numbers):
    """Uploads that are there, file and row."""
    await upload_records.insert_uploads(db, [row(number, await put_file(storage, number)) for number in numbers])


async def files(storage):
    return sorted([uuid.UUID(file.key).int async for found in storage.walk(0) for file in found])


async def statuses(db, *numbers):
    found = await upload_records.statuses_of(db, [key(number) for number in numbers])
    return [found.get(key(number)) for number in numbers]


class TestLinks:
    async def test_a_link_is_forgotten_a_week_after_its_time(self, store, db):
        hour_us = HOUR * 1_000_000
        times = {1: NOW - LINKS_REMEMBERED_US - 1, 2: NOW - LINKS_REMEMBERED_US + hour_us, 3: None}
        for number, expires_at in times.items():
            link = ShareLink(key(number), key(9), None, 0, expires_at, None, None, 0)
            await link_records.insert(db, link, str(number))
        await sweeper(store, db).once()
        assert {link.id for link in await link_records.list_of(db, key(9))} == {key(2), key(3)}


class TestFiles:
    async def test_a_file_with_a_row_stays_and_one_without_is_set_aside(self, store, db):
        await put(store, db, 1, 2)
        await put_file(store, 3)
        swept = await sweeper(store, db).once()
        assert await files(store) == [1, 2]
        assert (swept.files, swept.files_set_aside, swept.files_removed, swept.stopped) == (3, 1, 0, None)
        swept = await sweeper(store, db).once()
        assert (swept.files, swept.files_set_aside) == (2, 0)

    async def test_a_file_may_get_its_row_within_the_grace(self, store, db):
        """Its batch may be waiting for a database that is away."""
        await put(store, db, 1)
        async with Publisher(store, db, now_us=ticking()) as publisher:
            db.gate.close()
            staged = store.stage(key(2))
            await staged.finish()
            file = Incoming(key(2), "mine", "a", "a/b", Protocol.RAW, NOW, staged)
            landing = asyncio.create_task(publisher.land([file], None))
            await coming(db.gate.reached)
            assert await files(store) == [1, 2]
            await Sweeper(store, Sideways(db), now_us=lambda: NOW).once()
            assert await files(store) == [1, 2]
            db.gate.open()
            await landing
        assert await statuses(db, 2) == ["completed"]

    async def test_a_row_that_came_meanwhile_saves_its_file(self, db):
        class Slow(Store):
            async def walk(self, grace_seconds):
                async for found in super().walk(grace_seconds):
                    yield found
                await upload_records.insert_uploads(db, [row(2)])

        store = Slow()
        await put(store, db, 1)
        await put_file(store, 2)
        swept = await sweeper(store, db).once()
        assert (await files(store), swept.files_set_aside) == ([1, 2], 0)

    async def test_a_deletion_that_a_crash_interrupted_is_finished(self, store, db):
        await put(store, db, 1, 2)
        assert await upload_records.delete_upload(db, "mine", key(1), NOW)
        swept = await sweeper(store, db).once()
        assert (await files(store), swept.files_removed) == ([2], 1)
        assert await statuses(db, 1, 2) == ["deleted", "completed"]

    async def test_an_upload_whose_time_is_over_is_deleted_and_its_record_stays(self, store, db, monkeypatch):
        monkeypatch.setattr("app.maintenance.retention._AT_ONCE", 2)
        hour_us = HOUR * 1_000_000
        kept = [row(n, await put_file(store, n)).model_copy(update={"keep_us": n * hour_us}) for n in range(1, 6)]
        await upload_records.insert_uploads(db, [*kept, row(6, await put_file(store, 6))])
        sweep = Sweeper(store, db, now_us=lambda: NOW + 3 * hour_us, grace_seconds=0)
        swept = await sweep.once()
        assert (swept.uploads_deleted, await files(store)) == (3, [4, 5, 6])
        assert await statuses(db, *range(1, 7)) == ["deleted"] * 3 + ["completed"] * 3
        assert (await sweep.once()).uploads_deleted == 0

    async def test_an_upload_that_is_not_completed_is_not_deleted_by_its_time(self, store, db):
        failed = row(1, status=Status.FAILED).model_copy(update={"keep_us": 1})
        await upload_records.insert_uploads(db, [failed])
        sweep = Sweeper(store, db, now_us=lambda: NOW + HOUR * 1_000_000, grace_seconds=0)
        assert (await sweep.once()).uploads_deleted == 0
        assert await statuses(db, 1) == ["failed"]

    @pytest.mark.parametrize(
        ("status", "was_complete", "becomes"),
        [
            (Status.UPLOADING, False, "kept"), (Status.PROCESSING, False, "kept"), (Status.COMPLETED, True, "kept"),
            (Status.FAILED, True, "kept"), (Status.FAILED, False, "set aside"), (Status.EXPIRED, False, "set aside"),
            (Status.DELETED, True, "removed"),
        ],
    )  # fmt: skip
    async def test_a_file_is_kept_as_long_as_its_row_may_want_it(self, store, db, status, was_complete, becomes):
        """Every status, by whatever way it came about; damage leaves the time of completion where it is."""
        await put(store, db, 1)
        await put_file(store, 2)
        upload = row(2, status=status).model_copy(update={"completed_at": NOW if was_complete else None})
        await upload_records.insert_uploads(db, [upload])
        swept = await sweeper(store, db).once()
        assert await files(store) == ([1, 2] if becomes == "kept" else [1])
        assert (swept.files_set_aside, swept.files_removed) == (becomes == "set aside", becomes == "removed")
        assert swept.stopped is None

    async def test_only_unacknowledged_files_are_removed_after_a_week(self, tmp_path, db, monkeypatch):
        """That is what a dead process had published and not recorded. Another file was known to some database."""
        async with local(tmp_path, 9) as dead:
            await put_file(dead, 2)
        async with local(tmp_path) as storage:
            await put(storage, db, *range(10, 15))
            await put_file(storage, 3)
            for _ in range(2):
                swept = await sweeper(storage, db).once()
            assert (swept.aside_removed, swept.stopped) == (0, None)
            assert sorted(os.listdir(tmp_path / "trash")) == [key(2), key(3)]
            monkeypatch.setattr("app.maintenance.sweep.KEEP_ASIDE_SECONDS", 0)
            for _ in range(2):
                await sweeper(storage, db).once()
            assert (tmp_path / "trash" / key(3)).read_bytes() == b"0123456789"
            assert os.listdir(tmp_path / "trash") == [key(3)]
            assert not list(tmp_path.glob("*.unrecorded")) or await files(storage) == list(range(10, 15))

    async def test_staged_files_of_dead_processes_go_and_those_of_living_ones_stay(self, tmp_path, db):
        root = tmp_path / "store"
        async with local(root, 1) as mine, local(root, 2) as other:
            staged = other.stage(key(7))
            await staged.write(bytes(600_000))
            dead = root / "staging" / key(3)
            dead.mkdir()
            (dead / key(8)).write_bytes(b"half")
            swept = await sweeper(mine, db).once()
            assert swept.staged_removed == 1
            assert not dead.exists()
            await staged.finish()
            assert await other.publish([staged]) == {}
            assert await files(mine) == [7]


class Sideways:
    """The same database by another way: past the gate that keeps the others waiting."""

    def __init__(self, db):
        self._db = db

    def __getattr__(self, name):
        return getattr(self._db, name)

    async def transaction(self, work, **more):
        return await super(type(self._db), self._db).transaction(work, **more)


class TestImplausibleSweeps:
    @pytest.mark.parametrize(
        ("found", "of", "answer"),
        [
            (0, 0, False), (0, 5, False), (1, 1, True), (5, 5, True), (1, 2, False), (2, 3, True), (5, 10, False),
            (6, 10, True), (10, 20, False), (11, 30, True), (11, 11_000, False), (12, 11_000, True),
            (1000, 1_000_000, False), (1001, 1_000_000, True),
        ],
    )  # fmt: skip
    def test_more_than_ten_and_a_thousandth_or_most_files_are_too_many(self, found, of, answer):
        assert too_many(found, of) is answer

    @pytest.mark.parametrize("recorded", [0, 10, 11, 40])
    async def test_a_crash_explains_the_files_in_flight_of_its_process_and_no_more(self, tmp_path, db, recorded):
        """The rows of some that had been recorded are gone with an older database."""
        async with local(tmp_path, 9) as dead:
            for number in range(100, 140):
                await put_file(dead, number)
            await dead.recorded([key(100 + number) for number in range(recorded)])
        async with local(tmp_path) as storage:
            await put(storage, db, *range(1, 31))
            swept = await sweeper(storage, db).once()
            assert (swept.stopped is not None, swept.files_set_aside) == ((True, 0) if recorded > 10 else (False, 40))
            if swept.stopped:
                assert f"{recorded} of 70 files have no record" in swept.stopped

    async def test_a_wrong_database_destroys_nothing_little_by_little(self, tmp_path, db, monkeypatch):
        async with local(tmp_path) as storage:
            await put(storage, db, *range(1, 31))
            for number in range(100, 110):
                await put_file(storage, number)
            assert (await sweeper(storage, db).once()).files_set_aside == 10
            await put_file(storage, 110)
            swept = await sweeper(storage, db).once()
            assert "11 of 41 files have no record" in swept.stopped
            assert (swept.files_set_aside, await files(storage)) == (0, [*range(1, 31), 110])

    async def test_too_many_files_and_too_many_rows_are_left_alone(self, store, db):
        await put(store, db, *range(1, 21))
        for number in range(21, 32):
            await put_file(store, number)
        await store.remove([key(1)])
        swept = await sweeper(store, db).once()
        assert "11 of 30 files have no record" in swept.stopped
        assert (swept.files_set_aside, swept.records_lost) == (0, 0)
        assert await files(store) == list(range(2, 32))
        assert await statuses(db, 1) == ["completed"]
        await store.remove([key(21)])
        assert (await sweeper(store, db).once()).files_set_aside == 10

    async def test_too_many_rows_are_left_alone(self, store, db):
        await put(store, db, *range(1, 21))
        await store.remove([key(number) for number in range(1, 12)])
        swept = await sweeper(store, db).once()
        assert "11 of 20 records have no file" in swept.stopped
        assert set(await statuses(db, *range(1, 21))) == {"completed"}

    async def test_an_empty_database_is_not_that_of_the_files(self, store, db):
        for number in (1, 2):
            await put_file(store, number)
        swept = await sweeper(store, db).once()
        assert (await files(store), swept.stopped is None) == ([1, 2], False)

    async def test_a_directory_that_is_not_mounted_is_not_that_of_the_rows(self, store, db):
        await put(store, db, 1, 2)
        swept = await sweeper(Store(), db).once()
        assert (await statuses(db, 1, 2), swept.stopped is None) == (["completed"] * 2, False)

    async def test_a_restored_database_destroys_nothing(self, tmp_path):
        """Newer files under an older database: nothing is touched; with the right one all is well again."""
        path, backup = tmp_path / "waybill.db", tmp_path / "backup.db"
        async with local(tmp_path / "store") as storage:
            db = await opened(f"sqlite:///{path}")
            await put(storage, db, *range(1, 6))
            await db.close()
            shutil.copy(path, backup)
            db = await opened(f"sqlite:///{path}")
            await put(storage, db, *range(6, 18))
            assert await upload_records.delete_upload(db, "mine", key(1), NOW)
            await storage.remove([key(1)])
            await db.close()
            old = await opened(f"sqlite:///{backup}")
            swept = await sweeper(storage, old).once()
            await old.close()
            assert "12 of 16 files have no record" in swept.stopped
            assert await files(storage) == list(range(2, 18))
            assert not list((tmp_path / "store" / "trash").iterdir())
            db = await opened(f"sqlite:///{path}")
            swept = await sweeper(storage, db).once()
            assert (swept.stopped, swept.files_set_aside, swept.records_lost) == (None, 0, 0)
            assert (await verify(storage, db)).sound
            await db.close()


class TestRows:
    async def test_an_upload_whose_file_is_missing_is_lost(self, store, db):
        await put(store, db, 1, 2)
        await store.remove([key(2)])
        swept = await sweeper(store, db).once()
        assert (swept.records, swept.records_lost, swept.stopped) == (2, 1, None)
        page = await upload_records.list_uploads(db, "mine", HistoryQuery(), after=None, page_size=9)
        assert {uuid.UUID(each.id).int: each.error and each.error.code for each in page.uploads} == {1: None, 2: "lost"}
        assert (await sweeper(store, db).once()).records == 1

    async def test_an_upload_deleted_meanwhile_is_not_lost(self, db):
        class Slow(Store):
            async def missing(self, keys):
                await upload_records.delete_upload(db, "mine", key(2), NOW)
                await self.remove([key(2)])
                return await super().missing(keys)

        store = Slow()
        await put(store, db, 1, 2)
        swept = await sweeper(store, db).once()
        assert (swept.records_lost, swept.stopped) == (0, None)
        assert await statuses(db, 1, 2) == ["completed", "deleted"]

    async def test_rows_of_more_than_one_page_are_all_checked(self, store, db, monkeypatch):
        monkeypatch.setattr("app.maintenance.sweep._AT_ONCE", 3)
        await put(store, db, *range(1, 12))
        for number in range(12, 19):
            await put_file(store, number)
        await store.remove([key(number) for number in (1, 4, 5, 11)])
        swept = await sweeper(store, db).once()
        assert (swept.files, swept.records, swept.files_set_aside, swept.records_lost) == (14, 11, 7, 4)
        assert await files(store) == [2, 3, 6, 7, 8, 9, 10]


class TestSessions:
    async def begin(self, db, session_id, expires_at):
        session = Session(id=session_id, created_at=NOW - 10, last_seen_at=NOW - 10, expires_at=expires_at)
        arrival = NewSession(session, f"token of {session_id}")
        await db.transaction(lambda unit: session_records.insert_sessions(unit, [arrival]))

    async def known(self, db):
        return sorted(session.id for session in await session_records.list_sessions(db, 100))

    async def test_expired_sessions_end_and_their_records_stay(self, store, db):
        await self.begin(db, "live", NOW + 1)
        await self.begin(db, "over", NOW)
        await put(store, db, 1)
        await upload_records.insert_uploads(db, [row(2, session_id="over", status=Status.FAILED)])
        assert (await sweeper(store, db).once()).sessions_ended == 1
        assert (await session_records.find_session(db, "over")).ended_at == NOW
        assert (await session_records.find_session(db, "live")).ended_at is None
        assert await statuses(db, 2) == ["failed"]

    async def test_a_session_that_ended_without_an_upload_is_forgotten_a_day_later(self, store, db):
        clock = Time()
        sweeping = Sweeper(store, db, now_us=clock)
        for session_id in ("empty", "used"):
            await self.begin(db, session_id, NOW)
        await upload_records.insert_uploads(db, [row(2, session_id="used", status=Status.FAILED)])
        await sweeping.once()
        clock.pass_by(seconds=EMPTY_SESSION_US / 1_000_000)
        await sweeping.once()
        assert await self.known(db) == ["empty", "used"]
        clock.pass_by(seconds=1)
        await sweeping.once()
        assert await self.known(db) == ["used"]

    async def test_a_full_database_does_not_keep_files_from_making_room(self, store, db):
        await put(store, db, 1, 2)
        assert await upload_records.delete_upload(db, "mine", key(1), NOW)
        db.fails = ["full"]
        with pytest.raises(StorageFull):
            await sweeper(store, db).once()
        assert await files(store) == [2]


class TestSweepers:
    async def test_only_one_at_a_time_looks_over_a_store(self, tmp_path, db):
        root = tmp_path / "store"
        async with local(root, 1) as mine, local(root, 2) as other:
            await put(mine, db, 1)
            await upload_records.delete_upload(db, "mine", key(1), NOW)
            with other.alone_at("sweep") as alone:
                assert alone
                swept = await sweeper(mine, db).once()
            assert swept.stopped == "another process is sweeping"
            assert await files(mine) == [1]
            swept = await sweeper(mine, db).once()
            assert (swept.stopped, swept.files_removed) == (None, 1)
            assert await files(other) == []

    async def test_several_sweepers_at_once_agree(self, tmp_path, db):
        root = tmp_path / "store"
        async with local(root, 1) as mine, local(root, 2) as other:
            await put(mine, db, *range(1, 6))
            await put_file(other, 6)
            await asyncio.gather(*(sweeper(each, db).once() for each in (mine, other) for _ in range(3)))
            assert 6 not in await files(mine)
            assert await files(other) == [1, 2, 3, 4, 5]
            assert [each.name for each in (root / "trash").iterdir()] == [key(6)]
            assert set(await statuses(db, 1, 2, 3, 4, 5)) == {"completed"}

    async def test_a_failing_sweeper_tries_again(self, db):
        failures = [Unavailable(), OSError(5, "no disk"), StorageFull()]
        swept = asyncio.Event()

        class Flaky(Store):
            async def test(self):
                raise OSError(5, "no disk")

            async def sweep(self):
                if failures:
                    raise failures.pop()
                swept.set()
                return 0

        running = asyncio.create_task(sweeper(Flaky(), db).run(0))
        await coming(swept)
        running.cancel()
        with suppress(asyncio.CancelledError):
            await running

    async def test_a_sweeper_logs_its_results(self, store, db):
        assert (await sweeper(store, db).once()).as_dict() == {
            "staged_removed": 0, "files": 0, "files_set_aside": 0, "files_removed": 0, "files_put_back": 0,
            "aside_removed": 0, "records": 0, "records_lost": 0, "records_repaired": 0,
            "sessions_ended": 0, "uploads_expired": 0, "uploads_completed": 0, "uploads_deleted": 0,
            "partials_removed": 0, "keys_forgotten": 0, "stopped": None,
        }  # fmt: skip


async def test_a_distrusted_store_is_tested_and_trusted_again_by_itself(db, tmp_path, monkeypatch):
    """A fault of the disk closes the store to uploads; nobody may be asking whether it is ready."""

    def fails(fd: int) -> None:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    store = LocalStorage(tmp_path / "store", owner=str(uuid.uuid4()), min_free=0)
    await store.prepare()
    with monkeypatch.context() as broken:
        broken.setattr(os, "fsync", fails)
        staged = store.stage(key(1))
        await staged.finish()
        assert isinstance((await store.publish([staged]))[key(1)], Unavailable)
    with pytest.raises(Unavailable):
        store.stage(key(2))
    sweeping = asyncio.create_task(sweeper(store, db).run(0))

    def trusted():
        with suppress(Unavailable):
            store.stage(key(2))
            return True
        return False

    await until(trusted)
    sweeping.cancel()
    await asyncio.wait((sweeping,))
    await store.close()
