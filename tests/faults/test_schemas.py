"""The schema is not the one that this version was made for: newer, older, or about to change beside readers."""

import signal
import sqlite3
import time
from contextlib import asynccontextmanager, closing

import asyncpg
import pytest

from app.db.queries import migrations
from tests.support.service import HISTORY, PATIENCE, UPLOADS, Service, service

__all__ = ["service"]

pytestmark = pytest.mark.slow

KNOWN = len(migrations("sqlite"))
NEWER = f"0099_rename_digests.needs_{KNOWN + 1:04d}.sql"
INDEX = "uploads_by_session_newest_first"
TUS = {"Tus-Resumable": "1.0.0", "Upload-Length": "3"}
DRAFT = {"Upload-Draft-Interop-Version": "8", "Upload-Complete": "?1"}

LOOK_OFTEN = "from app.db import schema; schema._WATCH_SECONDS = 0.2"  # not heard of by workers
ONE_MORE = """
from app.db import migrate
from app.db.queries import Migration, migrations
one_more = Migration(99, "0099_needed.sql", "ALTER TABLE uploads ADD COLUMN colour TEXT;\\n")
migrate.migrations = lambda dialect: (*migrations(dialect), one_more)
migrate._PAUSE_SECONDS = 0.5
"""


async def change(url, *statements):
    """Do this to the database behind the service's back."""
    if url.startswith("sqlite"):
        with closing(sqlite3.connect(url.removeprefix("sqlite:///"), timeout=PATIENCE)) as connection, connection:
            for statement in statements:
                connection.execute(statement)
        return
    connection = await asyncpg.connect(url)
    async with connection.transaction():
        for statement in statements:
            await connection.execute(statement)
    await connection.close()


async def migrate_to_newer(url):
    """Have the schema that a version has which older ones cannot go on with."""
    await change(
        url,
        "ALTER TABLE uploads RENAME COLUMN sha256 TO digest",
        f"INSERT INTO schema_migrations (number, name, checksum, applied_at_us) VALUES (99, '{NEWER}', 'x', 0)",
    )


async def migrate_back(url):
    await change(
        url, "ALTER TABLE uploads RENAME COLUMN digest TO sha256", "DELETE FROM schema_migrations WHERE number = 99"
    )


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


def statuses(client):
    """What becomes of a request of every kind."""
    return [
        client.put(f"{UPLOADS}/a", content=b"abc"),
        client.post(UPLOADS, files={"file": ("a", b"abc")}),
        client.post(UPLOADS, headers=TUS),
        client.post(UPLOADS, headers=DRAFT, content=b"abc"),
        client.get(HISTORY),
        client.get(f"{HISTORY}/summary"),
        client.get(f"{HISTORY}?format=csv"),
    ]


def all_succeed(client):
    return {answer.status_code for answer in statuses(client)} == {200, 201}


@pytest.mark.parametrize("workers", [1, pytest.param(2, marks=pytest.mark.slow)])
async def test_a_service_whose_schema_becomes_too_new_refuses_all_and_comes_back(database_url, service, workers):
    running = service(database_url=database_url, workers=workers, change=LOOK_OFTEN)
    with running.client() as client:
        assert all_succeed(client)
        await migrate_to_newer(database_url)
        for _ in range(2 * workers):
            answers = statuses(client)
            assert [answer.status_code for answer in answers] == [503] * len(answers)
            assert {answer.json()["code"] for answer in answers} == {"unavailable"}
        ready = client.get("/health/ready")
        assert ready.status_code == 503
        assert "schema" in ready.json()["failing"]  # and, while outcomes are open, the database
        assert NEWER in ready.json()["checks"]["schema"]
        running.wait_for("schema not usable", count=workers)
        await migrate_back(database_url)
        running.wait_for("schema usable again", count=workers)
        deadline = time.monotonic() + PATIENCE
        while client.get("/health/ready").status_code != 200 or not all_succeed(client):  # what was in doubt goes first
            assert time.monotonic() < deadline
    assert "answered without success" not in running.said("error")


async def test_a_schema_that_became_older_is_refused_too(database_url, service):
    """A database was restored from before the last upgrade."""
    running = service(database_url=database_url, change=ONE_MORE)
    with running.client() as client:
        await change(
            database_url,
            "ALTER TABLE uploads RENAME COLUMN sha256 TO digest",
            "DELETE FROM schema_migrations WHERE number = 99",
        )
        assert {answer.status_code for answer in statuses(client)} == {503}
        assert "waybill migrate" in client.get("/health/ready").json()["checks"]["schema"]


async def test_a_service_starts_beside_a_dump_and_gets_its_index_afterwards(postgres, service):
    url = postgres.create_database()
    first = service(database_url=url)
    first.stop()
    await change(
        url,
        f"DROP INDEX {INDEX}",
        f"CREATE INDEX {INDEX} ON uploads (session_id, created_at_us, id)",
        "DELETE FROM schema_migrations WHERE number = 6",
    )
    async with dump(url):
        first.settings["workers"] = 2
        first.start()
        first.wait_for("building indexes")
        with first.client() as client:
            assert all_succeed(client)
            assert client.get("/health/ready").status_code == 200
        assert "built indexes" not in first.said("info")
    first.wait_for("built indexes")
    assert first.stop() == 0


@pytest.mark.slow
async def test_a_start_that_waits_for_a_column_disturbs_nobody_and_can_be_stopped(postgres, service):
    url = postgres.create_database()
    older = service(database_url=url)
    async with dump(url):
        waiting = [Service(older.directory / str(number), change=ONE_MORE, database_url=url) for number in range(2)]
        with closing(waiting[0]), closing(waiting[1]), older.client() as client:
            for newer in waiting:
                newer.launch()
            for newer in waiting:
                newer.wait_for("migration gives way", migration="0099_needed.sql")
            for _ in range(3):
                assert all_succeed(client)
            assert [newer.stop(signal.SIGTERM) for newer in waiting] == [0, 0]
