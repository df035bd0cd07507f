"""The watches over the database and its schema go on, whatever a look at them meets."""

import asyncio

import pytest
from structlog.testing import capture_logs

from app.db import migrate
from app.db.database import Db
from app.db.schema import SchemaWatch
from app.errors import Unavailable
from tests.support.unreliable import coming


@pytest.fixture
async def db(database_url):
    db = Db(database_url, pool_size=1)
    await db.open()
    yield db
    await db.close()


def looks(*failures):
    """What fails in these ways, one after the other, and an event for the first time that it does not."""
    left, well = list(failures), asyncio.Event()

    async def look():
        if left:
            raise left.pop(0)
        well.set()

    return look, well


async def watched(watch, well):
    """What is logged while a watch goes on until it sees that all is well."""
    with capture_logs() as logged:
        watching = asyncio.create_task(watch)
        came = asyncio.create_task(coming(well))
        await asyncio.wait((watching, came), return_when=asyncio.FIRST_COMPLETED)
        assert not watching.done()
        await came
        watching.cancel()
        await asyncio.wait((watching,))
    return [(line["event"], line["log_level"]) for line in logged]


async def test_the_database_is_watched_on_after_a_mistake(db, monkeypatch):
    monkeypatch.setattr("app.db.database._WATCH_SECONDS", 0)
    ping, well = looks(Unavailable(), RuntimeError("a mistake of ours"))
    monkeypatch.setattr(db, "ping", ping)
    assert await watched(db.watch(), well) == [("database not checked", "error")]


async def test_the_schema_is_watched_on_after_a_mistake(db, monkeypatch):
    monkeypatch.setattr("app.db.schema._WATCH_SECONDS", 0)
    watch = SchemaWatch(db)
    look, well = looks(Unavailable(), RuntimeError("a mistake of ours"))
    monkeypatch.setattr(watch, "look", look)
    assert await watched(watch.run(), well) == [("schema not examined", "error")]


async def test_indexes_are_built_after_a_mistake(db, monkeypatch):
    monkeypatch.setattr(migrate, "_TURN_SECONDS", 0)
    failures, pending = [Unavailable(), RuntimeError("a mistake of ours")], migrate.pending

    async def pending_at_last(db):
        if failures:
            raise failures.pop(0)
        return await pending(db)

    await migrate.migrate(db, now_us=0)
    monkeypatch.setattr(migrate, "pending", pending_at_last)
    with capture_logs() as logged:
        await migrate.keep_building(db, now_us=lambda: 0)
    assert [line["log_level"] for line in logged if line["event"] == "indexes not built"] == ["warning", "error"]
    assert not (await pending(db)).indexes
