"""Property 11. Both dialects have the same tables, columns and constraints; migrating twice changes nothing."""

import asyncio
import re
import sqlite3
import uuid

import asyncpg
import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.db.database import Db
from app.db.migrate import migrate
from app.db.queryable import json_parameter

TYPES = {"BIGINT": "INTEGER", "bigint": "INTEGER", "integer": "INTEGER", "text": "TEXT"}


@pytest.fixture
def files(tmp_path):
    return f"sqlite:///{tmp_path}/waybill.db"


@pytest.fixture
def server(postgres):
    url = postgres.create_database()
    yield url
    postgres.drop_database(url)


async def migrated(url: str) -> Db:
    db = Db(url)
    await db.open()
    await migrate(db, now_us=0)
    return db


async def test_both_dialects_have_the_same_schema_however_often_they_migrate(files, server):
    schemas = []
    for _ in range(2):
        for url in (files, server):
            await (await migrated(url)).close()
        schemas += [sqlite_schema(files), await postgresql_schema(server)]
    assert schemas[0] == schemas[1] == schemas[2] == schemas[3]
    tables, constraints, indexes, triggers = schemas[0]
    assert set(tables) == {
        "allowances", "changes", "concatenation_parts", "idempotency_keys", "link_codes", "merges", "resumables",
        "schema_migrations", "scrubs", "share_links",
        "session_tokens", "session_totals", "session_totals_begun", "session_usage", "sessions", "uploads",
        "used_link_codes",
    }  # fmt: skip
    assert len(constraints) > len(tables)
    assert indexes
    assert triggers


def sqlite_schema(url):
    """Tables with their columns; constraints by name; indexes with what they say; triggers with their tables."""
    connection = sqlite3.connect(url.removeprefix("sqlite:///"))
    statements = dict(connection.execute("SELECT name, sql FROM sqlite_schema WHERE type = 'table'"))
    tables = {
        table: [
            (name, TYPES.get(kind, kind), bool(required))
            for _, name, kind, required, *_ in connection.execute(f"PRAGMA table_info ({table})")
        ]
        for table in statements
        if table != "sqlite_sequence"  # of what AUTOINCREMENT has given out
    }
    constraints = {name for text in statements.values() for name in re.findall(r"CONSTRAINT (\w+)", text)}
    indexes = connection.execute("SELECT name, sql FROM sqlite_schema WHERE type = 'index' AND sql IS NOT NULL")
    found = {name: plain(sql) for name, sql in indexes}
    triggers = set(connection.execute("SELECT name, tbl_name FROM sqlite_schema WHERE type = 'trigger'"))
    connection.close()
    return tables, constraints, found, triggers


async def postgresql_schema(url):
    connection = await asyncpg.connect(url)
    tables = {}
    for table, name, kind, optional in await connection.fetch(
        "SELECT table_name, column_name, data_type, is_nullable FROM information_schema.columns "
        "WHERE table_schema = 'public' ORDER BY table_name, ordinal_position"
    ):
        tables.setdefault(table, []).append((name, TYPES[kind], optional == "NO"))
    constraints = {
        name
        for (name,) in await connection.fetch(
            "SELECT conname FROM pg_constraint "
            "WHERE connamespace = 'public'::regnamespace AND contype NOT IN ('n', 't')"
        )
    }
    indexes = {
        name: plain(sql)
        for name, sql in await connection.fetch(
            "SELECT indexname, indexdef FROM pg_indexes WHERE schemaname = 'public'"
        )
        if name not in constraints
    }
    triggers = {
        tuple(row)
        for row in await connection.fetch(
            "SELECT DISTINCT trigger_name, event_object_table FROM information_schema.triggers"
        )
    }
    await connection.close()
    return tables, constraints, indexes, triggers


def plain(sql):
    """An index's statement without what only one of the databases writes into it, or has a use for."""
    sql = re.sub(r"\s+", " ", re.sub(r"USING btree |public\.", "", sql))
    columns, _, condition = sql.partition(" WHERE ")
    columns = columns.replace("(((", "((").replace(")))", "))")  # PostgreSQL wraps an expression once more
    return columns, re.sub(r"[()]|::text", "", condition)


SQL_TEXT = st.sampled_from(["", "x", "a" * 36, "a" * 64, str(uuid.UUID(int=1)), "é" * 64])
SQL_INTEGER = st.sampled_from([-1, 0, 1, 253402300799999999, 253402300800000000, -(2**63), 2**63 - 1])
ROWS = st.fixed_dictionaries(
    {
        "id": st.uuids().map(str) | SQL_TEXT,
        "session_id": SQL_TEXT | st.none(),
        "filename": SQL_TEXT,
        "filename_folded": SQL_TEXT | st.none(),
        "content_type": SQL_TEXT | st.none(),
        "size_bytes": SQL_INTEGER | st.none(),
        "sha256": SQL_TEXT | st.none(),
        "status": st.sampled_from(["completed", "failed", "deleted", "uploading", "COMPLETED", "done", ""]) | st.none(),
        "protocol": st.sampled_from(["form", "raw", "tus", "resumable", "ftp"]),
        "error_code": SQL_TEXT | st.none(),
        "error_detail": SQL_TEXT | st.none(),
        "created_at_us": SQL_INTEGER | st.none(),
        "completed_at_us": SQL_INTEGER | st.none(),
        "metadata": SQL_TEXT | st.none(),
        "path": SQL_TEXT | st.none(),
        "path_folded": SQL_TEXT | st.none(),
        "keep_us": SQL_INTEGER | st.none(),
    }
)


def test_both_dialects_take_and_refuse_the_same_rows(files, server):
    with asyncio.Runner() as runner:
        databases = [runner.run(migrated(url)) for url in (files, server)]

        async def taken(db, row):
            try:
                await db.run("insert_uploads", rows=json_parameter([row]))
            except (sqlite3.IntegrityError, asyncpg.IntegrityConstraintViolationError):
                return False
            return True

        @given(ROWS)
        def same(row):
            verdicts = [runner.run(taken(db, row)) for db in databases]
            assert verdicts[0] == verdicts[1]

        try:
            same()
        finally:
            for db in databases:
                runner.run(db.close())
