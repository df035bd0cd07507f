"""F34. Migrations: each file once, by whoever comes first, whole or not at all, and beside whoever uses the tables."""

import asyncio
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from app.db import migrate
from app.db.database import Db
from app.db.migrate import pending
from app.db.queries import Migration, migrations
from app.errors import Unusable

ROOT = Path(__file__).parents[2]
NAMES = [migration.name for migration in migrations("sqlite")]

# One process that opens the database, migrates it and says what it applied; told to, it dies at its
# n-th statement without a word.
PROCESS = """
import asyncio, os, signal, sys
from app.db.database import Db
from app.db.queryable import Transaction
from app.db.migrate import migrate

async def main(url, fatal):
    execute, count = Transaction.execute, 0
    async def counted(unit, statement):
        nonlocal count
        count += 1
        await execute(unit, statement)
        if count == fatal:
            os.kill(os.getpid(), signal.SIGKILL)
    Transaction.execute = counted
    db = Db(url)
    await db.open()
    print(*await migrate(db, now_us=0))
    await db.close()

asyncio.run(main(sys.argv[1], int(sys.argv[2])))
"""


@pytest.fixture
async def db(database_url):
    db = Db(database_url)
    await db.open()
    yield db
    await db.close()


def process(url: str, fatal: int = 0) -> "subprocess.Popen[str]":
    command = [sys.executable, "-c", PROCESS, url, str(fatal)]
    return subprocess.Popen(
        command, cwd=ROOT, text=True, stdout=subprocess.PIPE, env={**os.environ, "PYTHONPATH": str(ROOT)}
    )


async def test_a_new_database_gets_everything_once(db):
    assert (await pending(db)).names == NAMES
    assert await migrate.migrate(db, now_us=1) == NAMES
    assert (await pending(db)).names == []
    assert await migrate.migrate(db, now_us=2) == []
    assert [row["name"] for row in await db.many("list_migrations")] == NAMES


async def test_migrations_that_run_at_once_apply_each_file_once(database_url):
    databases = [Db(database_url) for _ in range(4)]
    await asyncio.gather(*(db.open() for db in databases))
    applied = await asyncio.gather(*(migrate.migrate(db, now_us=0) for db in databases))
    assert sorted(name for names in applied for name in names) == NAMES
    await asyncio.gather(*(db.close() for db in databases))


@pytest.mark.slow
async def test_processes_that_start_at_once_apply_each_file_once(database_url):
    processes = [process(database_url) for _ in range(4)]
    outputs = [started.communicate(timeout=60)[0] for started in processes]
    assert [started.returncode for started in processes] == [0] * 4
    assert sorted(name for output in outputs for name in output.split()) == NAMES


@pytest.mark.parametrize("fatal", [1, 4, len(migrations("sqlite")[0].statements)])
async def test_a_process_that_dies_half_way_leaves_nothing_behind(database_url, fatal):
    dead = process(database_url, fatal)
    dead.communicate(timeout=60)
    assert dead.returncode == -signal.SIGKILL
    db = Db(database_url)
    await db.open()
    assert (await pending(db)).names == NAMES
    assert await migrate.migrate(db, now_us=0) == NAMES
    await db.close()


async def test_a_file_that_was_edited_after_it_was_applied_is_refused(db, monkeypatch):
    await migrate.migrate(db, now_us=0)
    first, *rest = migrations(db.dialect)
    edited = (first._replace(text=first.text + "\n-- better"), *rest)
    monkeypatch.setattr(migrate, "migrations", lambda dialect: edited)
    for ask in (pending(db), migrate.migrate(db, now_us=0)):
        with pytest.raises(Unusable, match=first.name):
            await ask


async def test_a_migration_that_fails_leaves_those_before_it(db, monkeypatch):
    number = len(NAMES) + 1
    bad = Migration(number, f"{number:04d}_bad.sql", "CREATE TABLE good (id TEXT);\n\nCREATE TABLE good (id TEXT);\n")
    await migrate.migrate(db, now_us=0)
    monkeypatch.setattr(migrate, "migrations", lambda dialect: (*migrations(dialect), bad))
    for _ in range(2):
        with pytest.raises(Unusable, match=f"{bad.name} cannot be applied: .*good"):
            await migrate.migrate(db, now_us=0)
        assert (await pending(db)).names == [bad.name]


async def test_a_database_that_is_ahead_of_the_code_is_no_obstacle(db, monkeypatch):
    number = len(NAMES) + 1
    newer = Migration(number, f"{number:04d}_newer.sql", "ALTER TABLE uploads ADD COLUMN colour TEXT;\n")
    with monkeypatch.context() as later:
        later.setattr(migrate, "migrations", lambda dialect: (*migrations(dialect), newer))
        assert await migrate.migrate(db, now_us=0) == [*NAMES, newer.name]
    assert (await pending(db)).names == []
    assert await migrate.migrate(db, now_us=0) == []


async def record(db, name):
    """Record a migration as newer code does."""
    await db.run("insert_migration", number=int(name[:4]), name=name, checksum="of newer code", applied_at_us=0)


async def test_a_schema_that_needs_newer_code_is_refused(db):
    await migrate.migrate(db, now_us=0)
    await record(db, f"0098_newer.needs_{len(NAMES):04d}.sql")
    assert (await pending(db)).names == []
    await record(db, f"0099_newest.needs_{len(NAMES) + 1:04d}.sql")
    for ask in (pending(db), migrate.migrate(db, now_us=0)):
        with pytest.raises(Unusable, match=r"the schema is of a newer version, .* it has had 0099_newest"):
            await ask


async def test_tables_that_another_process_makes_meanwhile_are_not_taken_for_foreign(db, database_url, monkeypatch):
    other, looked = Db(database_url), migrate.examine
    await other.open()

    async def examine(*arguments):
        """Look after the other has migrated, with what was known before."""
        monkeypatch.setattr(migrate, "examine", looked)
        await migrate.migrate(other, now_us=0)
        await looked(*arguments)

    monkeypatch.setattr(migrate, "examine", examine)
    assert (await pending(db)).names == []
    await other.close()
