"""A copy of a database is of one moment, and is put into an empty one alone."""

import os

import pytest

from app.db import dump
from app.db.database import Db
from app.db.migrate import migrate
from app.errors import Unusable
from app.uploads import records as upload_records
from tests.contracts.records import upload
from tests.support.postgres import program


@pytest.fixture
async def empty_url(request, database_url, tmp_path, monkeypatch):
    """An empty database of the same kind."""
    if database_url.startswith("sqlite"):
        yield f"sqlite:///{tmp_path}/empty.db"
        return
    monkeypatch.setenv("PATH", f"{program('pg_dump').parent}{os.pathsep}{os.environ['PATH']}")
    server = request.getfixturevalue("postgres")
    url = server.create_database()
    yield url
    server.drop_database(url)


async def test_a_copy_is_of_the_moment_that_its_reader_sees(database_url, empty_url, tmp_path):
    db = Db(database_url)
    await db.open()
    await migrate(db, now_us=0)
    await upload_records.insert_uploads(db, [upload(1)])
    (tmp_path / "copy").mkdir()
    copy = tmp_path / "copy" / dump.filename(db.dialect)
    async with dump.reader(db, database_url) as reader:
        await upload_records.insert_uploads(db, [upload(2)])  # beside it
        await reader.copy(copy)
        assert [row.id for row in await upload_records.list_stored(reader.connection, "", 10)] == [upload(1).id]
    assert await upload_records.count_stored(db) == 2
    await db.close()
    assert copy.stat().st_mode & 0o777 == 0o600
    with pytest.raises(Unusable, match="is there already"):
        await dump.require_empty(database_url, None, copy)
    await dump.put(empty_url, None, copy)
    restored = Db(empty_url)
    await restored.open()
    assert await migrate(restored, now_us=0) == []
    assert [row.id for row in await upload_records.list_stored(restored, "", 10)] == [upload(1).id]
    await upload_records.insert_uploads(restored, [upload(2)])
    assert await upload_records.count_stored(restored) == 2
    await restored.close()
    with pytest.raises(Unusable, match="is there already"):
        await dump.put(empty_url, None, copy)


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        ("postgresql://u:p%40ss@h:5433/d", {"PGHOST": "h", "PGPORT": "5433", "PGUSER": "u", "PGPASSWORD": "p@ss"}),
        ("postgresql:///d?host=/run/postgresql", {"PGHOST": "/run/postgresql"}),
        (
            "postgresql:///d?host=a,b&port=1,2",
            {"PGHOST": "a,b", "PGPORT": "1,2", "PGTARGETSESSIONATTRS": "read-write"},
        ),
        ("postgresql://u@[::1]/d?ssl=require", {"PGHOST": "::1", "PGPORT": "5432", "PGSSLMODE": "require"}),
        ("postgresql://u@h/d?ssl=true", {"PGSSLMODE": "verify-full"}),
        (
            "postgresql://u@a:1,b/d?target_session_attrs=read-write",
            {"PGHOST": "a,b", "PGPORT": "1,5432", "PGTARGETSESSIONATTRS": "read-write"},
        ),
    ],
)
def test_programs_of_postgresql_find_the_database_in_their_environment(url, expected):
    found = dump._environment(url)
    assert found["PGDATABASE"] == "d"
    assert {name: found[name] for name in expected} == expected
