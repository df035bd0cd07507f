"""What was set aside comes back with the database that knows it, and nothing that was acknowledged is destroyed."""

import asyncio
import hashlib
import uuid
from contextlib import AsyncExitStack, asynccontextmanager

import pytest

from app.maintenance.sweep import Sweeper
from app.maintenance.verify import verify
from app.model import Protocol, Status
from app.storage.local import LocalStorage
from app.storage.memory import MemoryStorage
from app.uploads import records as upload_records
from app.uploads.group_commit import Publisher
from app.uploads.landing import Incoming
from tests.support.resumables import DAY, World
from tests.support.unreliable import NOW, Time, ids, opened, ticking


def key(number):
    return str(uuid.UUID(int=number))


def content_of(number):
    return f"{number}".encode() * 10


@asynccontextmanager
async def store(root, owner=1001):
    """The directory `root` as one process has it."""
    storage = LocalStorage(root, owner=key(owner), min_free=0, durability="fast")
    await storage.prepare()
    try:
        yield storage
    finally:
        await storage.close()


@asynccontextmanager
async def database(url):
    db = await opened(url)
    try:
        yield db
    finally:
        await db.close()


async def upload(storage, db, numbers):
    """Uploads that are acknowledged, as many as fit at the same time."""

    async def land(publisher, number):
        staged = storage.stage(key(number))
        await staged.write(content_of(number))
        await staged.finish()
        await publisher.land([Incoming(key(number), "mine", "a", "a/b", Protocol.RAW, NOW, staged)], None)

    async with Publisher(storage, db, now_us=ticking()) as publisher:
        await asyncio.gather(*(land(publisher, number) for number in numbers))


async def sweep(storage, db, times=1):
    for _ in range(times):
        swept = await Sweeper(storage, db, now_us=lambda: NOW, grace_seconds=0.0).once()
    return swept


async def served(storage, db, numbers):
    """How many of the uploads are completed and have their bytes."""
    statuses = await upload_records.statuses_of(db, [key(number) for number in numbers])
    digests = [hashlib.sha256(content_of(number)).hexdigest() for number in numbers]
    stored = [await storage.digest(key(number)) for number in numbers if statuses.get(key(number)) == Status.COMPLETED]
    return sum(found == digest for (_, found), digest in zip(stored, digests, strict=True))


@pytest.fixture(autouse=True)
def in_a_hurry(monkeypatch):
    monkeypatch.setattr("app.maintenance.sweep._PAUSE_SECONDS", 0)


class TestAnOlderDatabase:
    """A dump was restored, or a standby promoted that lagged behind; then the right database is back."""

    @pytest.mark.parametrize("count", [8, pytest.param(500, marks=pytest.mark.slow)])
    @pytest.mark.parametrize("keep", [7 * 86_400, 0], ids=["within the week", "after it"])
    async def test_every_byte_is_served_again(self, tmp_path, database_url, snapshot, monkeypatch, count, keep):
        old, new = range(1, 21), range(21, 21 + count)
        async with store(tmp_path / "store") as storage:
            async with database(database_url) as db:
                await upload(storage, db, old)
            copy = snapshot()
            async with database(database_url) as db:
                await upload(storage, db, new)
            async with database(copy) as db:
                swept = await sweep(storage, db)
                assert (swept.stopped is None) == (count <= 10)
                monkeypatch.setattr("app.maintenance.sweep.KEEP_ASIDE_SECONDS", keep)
                await sweep(storage, db, times=3)
            async with database(database_url) as db:
                swept = await sweep(storage, db)
                assert (swept.stopped, swept.records_lost) == (None, 0)
                assert await served(storage, db, [*old, *new]) == 20 + count
                assert (await verify(storage, db)).sound

    async def test_a_crash_explains_nothing_that_was_acknowledged(self, tmp_path, database_url, snapshot):
        async with database(database_url) as db, store(tmp_path / "store") as storage:
            await upload(storage, db, range(1, 21))
        copy = snapshot()
        async with database(database_url) as db, store(tmp_path / "store", owner=1002) as dead:
            await upload(dead, db, range(21, 41))
        async with database(copy) as db, store(tmp_path / "store") as storage:
            assert (await sweep(storage, db)).stopped == "20 of 40 files have no record; is this their database?"
            assert await storage.aside() == []

    async def test_a_record_that_was_taken_for_lost_is_repaired(self, tmp_path, database_url, snapshot):
        """As a service did which did not look in the trash."""
        async with store(tmp_path / "store") as storage:
            async with database(database_url) as db:
                await upload(storage, db, range(1, 21))
            copy = snapshot()
            async with database(database_url) as db:
                await upload(storage, db, range(21, 29))
            async with database(copy) as db:
                assert (await sweep(storage, db)).files_set_aside == 8
            async with database(database_url) as db:
                await upload_records.fail_uploads(db, [key(number) for number in range(21, 29)], "lost", "missing")
                swept = await sweep(storage, db)
                assert (swept.files_put_back, swept.records_repaired) == (8, 8)
                assert await served(storage, db, range(1, 29)) == 28

    @pytest.mark.parametrize("kind", ["memory", "local"])
    async def test_an_unfinished_upload_goes_on_where_it_was(self, tmp_path, database_url, snapshot, kind):
        """The older database knows less of one, which expires there, and nothing of the other."""
        storage = MemoryStorage() if kind == "memory" else LocalStorage(tmp_path / "store", owner=key(1001), min_free=0)
        await storage.prepare()
        clock, new_id = Time(), ids()

        @asynccontextmanager
        async def worker(url):
            async with AsyncExitStack() as stack:
                world = World(url, storage, stack)
                world.clock, world.new_id = clock, new_id
                working = await world.worker()
                working.resumes._parts.expiry._grace_seconds = 0
                yield working

        async with worker(database_url) as right:
            known = await right.create(9)
            await right.append(known, 0, b"abc")
        copy = snapshot()
        clock.pass_by(seconds=DAY / 2)
        async with worker(database_url) as right:
            await right.append(known, 3, b"def")
            unknown = await right.create(6)
            await right.append(unknown, 0, b"123")
        clock.pass_by(seconds=DAY / 2)
        async with worker(copy) as stale:
            for _ in range(2):  # it is in use
                await stale.append(await stale.create(9), 0, b"x")
            await stale.resumes.sweep()
            assert await stale.statuses() == [(3, "expired"), (1, "uploading"), (1, "uploading")]
            assert await stale.unfinished() == [(0, 1), (0, 1)]
            await sweep(storage, stale.db)
        async with worker(database_url) as right:
            first, second = await right.append(known, 6, b"ghi"), await right.append(unknown, 3, b"456")
            assert [await right.content(each.upload_id) for each in (first, second)] == [b"abcdefghi", b"123456"]
            assert await storage.aside() == []
        await storage.close()
