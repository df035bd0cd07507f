"""A migration holds nobody up, whoever reads the tables meanwhile and for however long: a dump, for instance."""

import asyncio
from contextlib import asynccontextmanager

import asyncpg
import pytest
import structlog

from app.db import migrate
from app.db.database import Db
from app.db.queries import Migration, migrations
from app.errors import Unavailable
from app.history import HistoryQuery
from app.uploads import records as upload_records
from tests.contracts.records import upload

INDEX = "uploads_by_session_newest_first"
ONLY_INDEXES = "0006_index_filenames.sql"
NEEDED = Migration(
    len(migrations("postgresql")) + 1, "0099_needed.sql", "ALTER TABLE uploads ADD COLUMN colour TEXT;\n"
)


@asynccontextmanager
async def opened(url, **options):
    db = Db(url, **options)
    await db.open()
    try:
        yield db
    finally:
        await db.close()


@pytest.fixture
async def url(postgres):
    """A database as it was before the migration that only builds indexes."""
    url = postgres.create_database()
    async with opened(url) as db:
        await migrate.migrate(db, now_us=0)
        await upload_records.insert_uploads(db, [upload(1)])
    postgres.execute(f"DROP INDEX {INDEX}", url=url)
    postgres.execute(f"CREATE INDEX {INDEX} ON uploads (session_id, created_at_us, id)", url=url)
    postgres.execute("DELETE FROM schema_migrations WHERE number = 6", url=url)
    yield url
    postgres.drop_database(url)


@pytest.fixture
async def needed(monkeypatch):
    """One more migration, which needs a table for itself for a moment."""
    monkeypatch.setattr(migrate, "_PAUSE_SECONDS", 0.4)
    monkeypatch.setattr(migrate, "migrations", lambda dialect: (*migrations(dialect), NEEDED))


@asynccontextmanager
async def dump(url):
    """Somebody who reads `uploads` until the block is left, and holds its lock as pg_dump does."""
    connection = await asyncpg.connect(url)
    transaction = connection.transaction(isolation="repeatable_read")
    await transaction.start()
    await connection.execute("SELECT count(*) FROM uploads")
    try:
        yield
    finally:
        await transaction.rollback()
        await connection.close()


async def until(url, condition):
    """Return when this is true in the database."""
    connection = await asyncpg.connect(url)
    async with asyncio.timeout(60):
        while not await connection.fetchval(f"SELECT {condition} FROM pg_sleep(0.01)"):
            continue
    await connection.close()


async def index_columns(url):
    connection = await asyncpg.connect(url)
    rows = await connection.fetch(
        "SELECT indexrelid::regclass::text AS name, indnatts AS columns FROM pg_index "
        "WHERE indrelid = 'uploads'::regclass AND indisvalid AND NOT indisunique AND indpred IS NULL"
    )
    await connection.close()
    return {row["name"]: row["columns"] for row in rows}


WAITS = "EXISTS (SELECT FROM pg_locks WHERE relation = 'uploads'::regclass AND NOT granted)"
NOBODY_WAITS_FOR_A_LOCK = "NOT EXISTS (SELECT FROM pg_locks WHERE locktype = 'advisory' AND NOT granted)"
BUILDS = "EXISTS (SELECT FROM pg_stat_progress_create_index WHERE phase LIKE 'waiting for %')"


async def use(db, number):
    await upload_records.insert_uploads(db, [upload(number)])
    await upload_records.list_uploads(db, upload(number).session_id, HistoryQuery(), after=None, page_size=10)


async def test_a_migration_that_needs_a_table_gives_way_to_its_readers(url, needed):
    async with opened(url) as db, opened(url) as others:
        async with dump(url):
            with structlog.testing.capture_logs() as logs:
                migrating = asyncio.create_task(migrate.migrate(db, now_us=0, indexes=False))
                await until(url, WAITS)
                await use(others, 2)  # behind the migration, which lets everybody pass within a second
                await until(url, f"NOT {WAITS}")
            assert [log["migration"] for log in logs if log["event"] == "migration gives way"] == [NEEDED.name]
            await use(others, 3)
            assert not migrating.done()
        assert await migrating == [NEEDED.name]


async def test_indexes_are_built_while_others_read_and_write(url):
    async with opened(url) as db, opened(url, timeout=1.0) as others:
        async with dump(url):
            building = asyncio.create_task(migrate.migrate(db, now_us=0))
            await until(url, BUILDS)
            await use(others, 2)
            assert (await migrate.pending(db)).names == [ONLY_INDEXES]
            assert await index_columns(url) == {INDEX: 3}  # history has an index all the time
        assert await building == [ONLY_INDEXES]
        assert (await migrate.pending(db)).names == []
        assert await index_columns(url) == {INDEX: 4}


async def test_a_build_that_was_broken_off_begins_again(url, postgres):
    async with opened(url) as db:
        async with dump(url):
            building = asyncio.create_task(migrate.migrate(db, now_us=0))
            await until(url, BUILDS)
            postgres.execute(
                "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE query LIKE 'CREATE INDEX CONC%'"
            )
            with pytest.raises(Unavailable):
                await building
            await until(
                url, f"EXISTS (SELECT FROM pg_index WHERE NOT indisvalid AND indexrelid = '{INDEX}_draft'::regclass)"
            )
        assert await migrate.migrate(db, now_us=0) == [ONLY_INDEXES]
        assert await index_columns(url) == {INDEX: 4}


async def test_a_build_that_nobody_waits_for_any_more_ends_on_the_server(url):
    async with opened(url) as db, dump(url):
        building = asyncio.create_task(migrate.migrate(db, now_us=0))
        await until(url, BUILDS)
        building.cancel()
        await asyncio.wait([building])
        await until(url, f"NOT {BUILDS}")


async def test_processes_that_build_an_index_at_once_build_it_once_and_do_not_wait(url):
    """One that waited for the lock in a transaction would be waited for by the one that has it."""
    databases = [Db(url) for _ in range(3)]
    await asyncio.gather(*(db.open() for db in databases))
    async with dump(url):
        with structlog.testing.capture_logs() as logs:
            building = [asyncio.create_task(migrate.migrate(db, now_us=0)) for db in databases]
            await until(url, BUILDS)
            while [log["event"] for log in logs].count("indexes wait for another process") < 2:
                await until(url, NOBODY_WAITS_FOR_A_LOCK)
    built = await asyncio.gather(*building)
    assert [name for names in built for name in names] == [ONLY_INDEXES]
    await asyncio.gather(*(db.close() for db in databases))


async def test_a_needed_migration_and_the_building_of_an_index_do_not_deadlock(url, needed):
    async with opened(url) as db, opened(url) as other:
        async with dump(url):
            building = asyncio.create_task(migrate.build_indexes(db, now_us=0))
            await until(url, BUILDS)
            migrating = asyncio.create_task(migrate.migrate(other, now_us=0, indexes=False))
            await until(url, WAITS)
        assert await migrating == [NEEDED.name]
        await asyncio.wait([building])
        await migrate.migrate(db, now_us=0)
        assert (await migrate.pending(db)).names == []
