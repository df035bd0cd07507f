"""What a failure of the database amounts to: an outage, a full disk, or a mistake that must show itself."""

import sqlite3
import subprocess
import sys
from pathlib import Path

import asyncpg
import pytest

from app.config.postgresql_url import parse
from app.db.postgresql import PostgresqlDriver
from app.db.sqlite import SqliteDriver
from app.errors import Locked, StorageFull, Unavailable

POSTGRESQL = PostgresqlDriver(parse("postgresql://a/b"))


def sqlite_error(code: int) -> sqlite3.Error:
    error = sqlite3.OperationalError("as SQLite says it")
    error.sqlite_errorcode = code
    return error


def postgresql_error(sqlstate: str) -> asyncpg.PostgresError:
    return asyncpg.PostgresError.new({"C": sqlstate, "M": "as the server says it"})


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (sqlite_error(sqlite3.SQLITE_BUSY), Unavailable),
        (sqlite_error(sqlite3.SQLITE_BUSY_SNAPSHOT), Unavailable),
        (sqlite_error(sqlite3.SQLITE_LOCKED), Unavailable),
        (sqlite_error(sqlite3.SQLITE_IOERR_FSYNC), Unavailable),
        (sqlite_error(sqlite3.SQLITE_CANTOPEN), Unavailable),
        (sqlite_error(sqlite3.SQLITE_READONLY), Unavailable),
        (sqlite_error(sqlite3.SQLITE_INTERRUPT), Unavailable),
        (sqlite_error(sqlite3.SQLITE_FULL), StorageFull),
        (sqlite_error(sqlite3.SQLITE_CONSTRAINT_CHECK), None),
        (sqlite_error(sqlite3.SQLITE_ERROR), None),
        (sqlite_error(sqlite3.SQLITE_CORRUPT), Unavailable),
        (sqlite_error(sqlite3.SQLITE_NOTADB), Unavailable),
        (sqlite3.ProgrammingError("ours"), None),
        (ValueError("no active connection"), Unavailable),
        (ValueError("ours"), None),
        (TypeError("ours"), None),
    ],
    ids=repr,
)
def test_failures_of_sqlite_are_classified(error, expected):
    assert type(SqliteDriver().refusal(error)) is (expected or type(None))


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        *((postgresql_error(code), Unavailable) for code in ("08006", "26000", "40001", "40P01", "53200", "53300")),
        (postgresql_error("55P03"), Locked),
        *((postgresql_error(code), Unavailable) for code in ("57014", "57P01", "57P03", "58030", "25006", "25P03")),
        *((postgresql_error(code), Unavailable) for code in ("28P01", "3D000")),
        (postgresql_error("53100"), StorageFull),
        *((postgresql_error(code), None) for code in ("23505", "23514", "22P02", "42601", "42P01", "42501", "XX001")),
        (asyncpg.InvalidCachedStatementError("a plan is out of date"), Unavailable),
        (asyncpg.InternalClientError("cannot switch to state 15; another operation (2) is in progress"), Unavailable),
        (asyncpg.InterfaceError("cannot perform operation: another operation is in progress"), None),
        (ConnectionRefusedError(), Unavailable),
        (TimeoutError(), Unavailable),
        (TypeError("ours"), None),
    ],
    ids=repr,
)
def test_failures_of_postgresql_are_classified(error, expected):
    assert type(POSTGRESQL.refusal(error)) is (expected or type(None))


async def test_lost_connections_of_postgresql_are_recognised(postgres):
    """asyncpg has no class for them."""
    gone = []
    connection = await asyncpg.connect(postgres.url("postgres"))
    connection.terminate()
    pool = await asyncpg.create_pool(postgres.url("postgres"), min_size=0)
    borrowed = await pool.acquire()
    borrowed.terminate()
    await pool.close()
    for ask in (connection.fetch, borrowed.fetch, borrowed.execute, pool.fetch):
        with pytest.raises(asyncpg.InterfaceError) as caught:
            await ask("SELECT 1")
        gone.append(POSTGRESQL.refusal(caught.value))
    assert [type(refusal) for refusal in gone] == [Unavailable] * 4
    assert not POSTGRESQL.is_open(connection)
    assert not POSTGRESQL.is_open(borrowed)


@pytest.mark.parametrize(("url", "not_needed"), [("sqlite:///a.db", "asyncpg"), ("postgresql://a/b", "aiosqlite")])
def test_the_other_databases_driver_is_not_loaded(url, not_needed):
    """It would take memory, and time to start."""
    code = (
        f"import sys, app.main, app.db.database; app.db.database.Db({url!r}); sys.exit({not_needed!r} in sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=Path(__file__).parents[2])
