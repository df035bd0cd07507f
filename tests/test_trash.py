"""What was set aside comes back with the database that knows it, and nothing that was acknowledged is destroyed."""

import asyncio
import hashlib
import uuid
from contextlib import asynccontextmanager

import pytest

from app import records
from app.batches import Incoming
from app.model import Protocol, Status
from app.publish import Publisher
from app.storage.local import LocalStorage
from app.sweep import Sweeper
from app.verify import verify
from tests.unreliable import NOW, opened, ticking


def key(number):
    return str(uuid.UUID(int=number))


def content_of(number):
    return f"{number}".encode() * 10


@asynccontextmanager
async def store(root, owner=1):
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
    statuses = await records.statuses_of(db, [key(number) for number in numbers])
    digests = [hashlib.sha256(content_of(number)).hexdigest() for number in numbers]
    stored = [await storage.digest(key(number)) for number in numbers if statuses.get(key(number)) == Status.COMPLETED]
    return sum(found == digest for (_, found), digest in zip(stored, digests, strict=True))


@pytest.fixture(autouse=True)
def in_a_hurry(monkeypatch):
    monkeypatch.setattr("app.sweep._PAUSE_SECONDS", 0)


class TestAnOlderDatabase:
    """A dump was restored, or a standby promoted that lagged behind; then the right database is back."""

    @pytest.mark.parametrize("count", [8, 500])
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
                monkeypatch.setattr("app.sweep.KEEP_ASIDE_SECONDS", keep)
                await sweep(storage, db, times=3)
            async with database(database_url) as db:
                swept = await sweep(storage, db)
                assert (swept.stopped, swept.records_lost) == (None, 0)
                assert await served(storage, db, [*old, *new]) == 20 + count
                assert (await verify(storage, db)).sound

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
                await records.fail_uploads(db, [key(number) for number in range(21, 29)], "lost", "missing")
                swept = await sweep(storage, db)
                assert (swept.files_put_back, swept.records_repaired) == (8, 8)
                assert await served(storage, db, range(1, 29)) == 28
