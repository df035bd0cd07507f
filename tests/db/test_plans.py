"""A page of history reads its rows in the order of the index, whatever else a session and a table hold."""

import re
import sqlite3

import asyncpg
import pytest

from app.db.database import Db
from app.db.migrate import migrate
from app.db.queries import load
from app.history import HistoryQuery, Position
from app.uploads import records as upload_records
from tests.contracts.records import NOW, upload

INDEX = "uploads_by_session_newest_first"
PAGE = {"session_id": "session 1", "page_size": 51, "statuses": None, **upload_records._filters(HistoryQuery())}
MIDDLE = Position(NOW + 700, "")
ARGUMENTS = [
    ("list_uploads", {**PAGE, **upload_records._newest_first(HistoryQuery(), None)}),
    ("list_uploads", {**PAGE, **upload_records._newest_first(HistoryQuery(from_us=NOW), MIDDLE)}),
    ("list_uploads_oldest", {**PAGE, **upload_records._oldest_first(HistoryQuery(), None)}),
    ("list_uploads_oldest", {**PAGE, **upload_records._oldest_first(HistoryQuery(to_us=NOW + 900), MIDDLE)}),
]
NAMED = {**PAGE, "pattern": HistoryQuery(filename="9").filename_pattern}
NAMED_ARGUMENTS = [
    ("list_named_uploads", {**NAMED, **upload_records._newest_first(HistoryQuery(), None)}),
    ("list_named_uploads", {**NAMED, **upload_records._newest_first(HistoryQuery(from_us=NOW), MIDDLE)}),
    ("list_named_uploads_oldest", {**NAMED, **upload_records._oldest_first(HistoryQuery(), None)}),
    ("list_named_uploads_oldest", {**NAMED, **upload_records._oldest_first(HistoryQuery(to_us=NOW + 900), MIDDLE)}),
]

NEWEST = upload_records._newest_first(HistoryQuery(from_us=NOW), MIDDLE)
OLDEST = upload_records._oldest_first(HistoryQuery(to_us=NOW + 900), MIDDLE)
OF_DIGEST = {**PAGE, "sha256": upload(10_007).sha256, "pattern": None}
OF_STATUS = {**PAGE, "status": "failed"}
RARE_ARGUMENTS = [
    ("list_uploads_of_digest", {**OF_DIGEST, **NEWEST}, "uploads_by_session_and_digest"),
    ("list_uploads_of_digest_oldest", {**OF_DIGEST, **OLDEST}, "uploads_by_session_and_digest"),
    ("list_uploads_of_status", {**OF_STATUS, **NEWEST}, "uploads_not_completed_by_status"),
    ("list_uploads_of_status_oldest", {**OF_STATUS, **OLDEST}, "uploads_not_completed_by_status"),
]


async def fill(url: str) -> None:
    """Three sessions of a thousand uploads, and many of a few."""
    db = Db(url)
    await db.open()
    await migrate(db, now_us=0)
    for owner in range(3):
        numbers = range(owner * 10_000, owner * 10_000 + 1000)
        await upload_records.insert_uploads(
            db, [upload(n, f"session {owner}", created_at=NOW + n - owner * 10_000) for n in numbers]
        )
    await upload_records.insert_uploads(db, [upload(n + 90_000, f"small session {n // 3}") for n in range(900)])
    await db.close()


async def test_sqlite_reads_a_page_in_the_order_of_the_index(tmp_path):
    await fill(f"sqlite:///{tmp_path}/waybill.db")
    connection = sqlite3.connect(tmp_path / "waybill.db")
    for name, arguments in ARGUMENTS + NAMED_ARGUMENTS:
        plan = [row[3] for row in connection.execute(f"EXPLAIN QUERY PLAN {load('sqlite')[name].statement}", arguments)]
        assert len(plan) == 1
        assert plan[0].startswith(f"SEARCH uploads USING INDEX {INDEX} (session_id=? AND ")
        assert "(created_at_us,id)" in plan[0]
    connection.close()


async def test_sqlite_finds_rare_uploads_by_their_index(tmp_path):
    await fill(f"sqlite:///{tmp_path}/waybill.db")
    connection = sqlite3.connect(tmp_path / "waybill.db")
    for name, arguments, index in RARE_ARGUMENTS:
        steps = connection.execute(f"EXPLAIN QUERY PLAN {load('sqlite')[name].statement}", arguments)
        plan, *others = [row[3] for row in steps]
        if "digest" in name:
            assert plan == f"SEARCH uploads USING INDEX {index} (session_id=? AND <expr>=?)"
            assert others == ["USE TEMP B-TREE FOR ORDER BY"]  # of the few that have it
        else:
            assert plan.startswith(f"SEARCH uploads USING INDEX {index} (session_id=? AND status=? AND ")
            assert "(created_at_us,id)" in plan
            assert not others
    connection.close()


async def test_damaged_uploads_are_found_without_scanning_the_others(tmp_path):
    await fill(f"sqlite:///{tmp_path}/waybill.db")
    connection = sqlite3.connect(tmp_path / "waybill.db")
    for name, arguments in (("list_damaged", {"after_id": "", "page_size": 500}), ("count_damaged", {})):
        plan = [row[3] for row in connection.execute(f"EXPLAIN QUERY PLAN {load('sqlite')[name].statement}", arguments)]
        assert len(plan) == 1
        assert "INDEX uploads_damaged_by_id" in plan[0]
    connection.close()


async def test_postgresql_finds_damaged_uploads_by_their_index(connection):
    for statement, values in ((load("postgresql")["list_damaged"].statement, ["", 500]),
                              (load("postgresql")["count_damaged"].statement, [])):  # fmt: skip
        plan = "\n".join(row[0] for row in await connection.fetch(f"EXPLAIN {statement}", *values))
        assert "uploads_damaged_by_id" in plan


LEFT_ARGUMENTS = [
    ("list_left_resumables", {"after_key": "", "page_size": 500}, "resumables_to_complete"),
    ("list_ready_resumables", {"after_key": "", "page_size": 20}, "resumables_waiting_for_parts"),
    ("list_made_of_parts", {"after_key": "", "until_us": NOW, "page_size": 20}, "resumables_waiting_for_parts"),
]


async def test_uploads_to_complete_are_found_without_scanning_the_others(connection, tmp_path):
    """It is asked every other second."""
    await connection.execute("SET enable_seqscan = off")  # of so few rows it would otherwise read all
    await fill(f"sqlite:///{tmp_path}/waybill.db")
    sqlite = sqlite3.connect(tmp_path / "waybill.db")
    for name, arguments, index in LEFT_ARGUMENTS:
        query = load("postgresql")[name]
        plan = await connection.fetch(f"EXPLAIN {query.statement}", *(arguments[param] for param in query.order))
        assert f"{index} on resumables" in "\n".join(row[0] for row in plan)
        plan = sqlite.execute(f"EXPLAIN QUERY PLAN {load('sqlite')[name].statement}", arguments)
        assert f"SEARCH resumables USING INDEX {index} (key_hash>?)" in [row[3] for row in plan]
    sqlite.close()


async def test_everything_stored_is_read_page_by_page_in_the_order_of_the_ids(connection, tmp_path):
    after = {"after_id": upload(500).id, "page_size": 500}
    query = load("postgresql")["list_stored"]
    await connection.execute("SET enable_seqscan = off")  # of so few rows it would otherwise read all
    plan = await connection.fetch(f"EXPLAIN {query.statement}", *(after[param] for param in query.order))
    text = "\n".join(row[0] for row in plan)
    assert "Sort" not in text
    assert "uploads_have_one_id_each" in text
    await fill(f"sqlite:///{tmp_path}/waybill.db")
    sqlite = sqlite3.connect(tmp_path / "waybill.db")
    [plan] = sqlite.execute(f"EXPLAIN QUERY PLAN {load('sqlite')['list_stored'].statement}", after)
    assert plan[3].startswith("SEARCH uploads USING INDEX sqlite_autoindex_uploads_1 (id>?)")
    sqlite.close()


@pytest.fixture
async def connection(postgres):
    url = postgres.create_database()
    await fill(url)
    connection = await asyncpg.connect(url)
    await connection.execute("ANALYZE")
    yield connection
    await connection.close()
    postgres.drop_database(url)


async def test_postgresql_reads_a_page_in_the_order_of_the_index(connection):
    async for text in postgresql_plans(connection, ARGUMENTS):
        assert f"using {INDEX}" in text
        assert "Index Only" not in text
        assert "ROW(created_at_us, id)" in text.partition("Filter:")[0]


async def test_postgresql_looks_for_names_in_the_index_before_it_fetches_a_row(connection):
    await connection.execute("VACUUM uploads")  # or the index does not know which rows are there for all to see
    async for text in postgresql_plans(connection, NAMED_ARGUMENTS):
        names, _, row = text.partition("uploads_have_one_id_each")
        assert re.search(f"Index Only Scan (Backward )?using {INDEX}", names)
        assert "ROW(created_at_us, id)" in names.partition("Filter:")[0]
        assert "filename_folded ~~" in names
        assert "filename_folded" not in row


async def test_postgresql_finds_rare_uploads_by_their_index(connection):
    for number, (name, arguments, index) in enumerate(RARE_ARGUMENTS):
        for text in await both_plans(connection, f"rare_{number}", name, arguments):
            assert index in text
            found = text.partition("Index Cond:")[2].partition("Filter:")[0]
            assert ("substr(sha256, 1, 16) = " if "digest" in name else "status = ") in found
            assert "Seq Scan" not in text


async def postgresql_plans(connection, questions):
    """How PostgreSQL goes about each of them, for these values and for whatever values come: without sorting."""
    for number, (name, arguments) in enumerate(questions):
        for text in await both_plans(connection, f"generic_{number}", name, arguments):
            assert "Sort" not in text
            assert "Bitmap" not in text
            yield text


async def both_plans(connection, prepared, name, arguments):
    query = load("postgresql")[name]
    values = [arguments[param] for param in query.order]
    plans = [await connection.fetch(f"EXPLAIN {query.statement}", *values)]
    # asyncpg prepares: after some calls PostgreSQL may plan once for whatever values come.
    await connection.execute("SET plan_cache_mode = force_generic_plan")
    await connection.execute(f"PREPARE {prepared} AS {query.statement}")
    plans.append(await connection.fetch(f"EXPLAIN EXECUTE {prepared}({', '.join(map(literal, values))})"))
    await connection.execute("RESET plan_cache_mode")
    return ["\n".join(row[0] for row in plan) for plan in plans]


def literal(value: str | int | None) -> str:
    return "NULL" if value is None else f"'{value}'"


# Housekeeping: every statement that a sweep makes, what it is about, and by which index it comes there.
PAGE_OF_IDS = {"after_id": "", "until_id": "z"}
SWEEPING = [
    ("expire_sessions", {"now_us": NOW, "page_size": 5}, "sessions_live_by_expiry"),
    ("find_token_page", {"after_id": "", "page_size": 5}, "session_tokens_by_session"),
    ("delete_dead_tokens", PAGE_OF_IDS, "session_tokens_by_session"),
    ("delete_dead_link_codes", {"now_us": NOW, "page_size": 5}, "link_codes_by_expiry"),
    ("delete_old_used_link_codes", {"now_us": NOW, "page_size": 5}, "used_link_codes_by_expiry"),
    ("find_session_page", {"after_id": "", "page_size": 5}, "sessions_have_one_id_each"),
    ("delete_empty_sessions", {**PAGE_OF_IDS, "ended_before_us": NOW}, "sessions_have_one_id_each"),
    ("find_totals_page", {"after_id": "", "page_size": 5}, "session_totals_have_one_row_each_status"),
    ("delete_zero_totals", PAGE_OF_IDS, "session_totals_have_one_row_each_status"),
    ("list_miscounted_totals", PAGE_OF_IDS, "uploads_by_session_newest_first"),
    ("delete_expired_allowances", {"now_us": NOW, "page_size": 5}, "allowances_by_expiry"),
    ("renew_allowances", {"holder": "one", "expires_at_us": NOW}, "allowances_held"),
    ("delete_ended_resumables", {"now_us": NOW, "page_size": 5}, "resumables_by_expiry"),
    ("delete_old_idempotency_keys", {"until_us": NOW, "page_size": 5}, "idempotency_keys_by_expiry"),
    ("list_uploads_to_delete", {"now_us": NOW, "page_size": 5}, "uploads_completed_by_expiry"),
    ("delete_old_share_links", {"expired_before_us": NOW, "page_size": 5}, "share_links_by_expiry"),
    ("list_sessions", {"limit": 5}, "sessions_by_last_seen"),
    ("list_session_totals", {"session_id": "session 1"}, "session_totals_have_one_row_each_status"),
    ("find_upload_span", {"session_id": "session 1"}, INDEX),
    ("move_uploads", {"from_id": "a", "into_id": "b", "before_us": NOW, "before_id": "", "page_size": 5}, INDEX),
]  # fmt: skip
PRIMARY = {
    "sessions_have_one_id_each": "sqlite_autoindex_sessions_1",
    "session_totals_have_one_row_each_status": "PRIMARY KEY",
}


async def test_sqlite_sweeps_page_by_page_along_an_index(tmp_path):
    await fill(f"sqlite:///{tmp_path}/waybill.db")
    connection = sqlite3.connect(tmp_path / "waybill.db")
    for name, arguments, index in SWEEPING:
        steps = connection.execute(f"EXPLAIN QUERY PLAN {load('sqlite')[name].statement}", arguments)
        plan = [row[3] for row in steps]
        assert any(PRIMARY.get(index, index) in step for step in plan), (name, plan)
        # Nothing is looked at as a whole but what an inner step has found.
        tables = ("uploads", "sessions", "session_tokens", "link_codes", "session_totals", "allowances", "resumables")
        assert not [step for step in plan if re.match(f"SCAN ({'|'.join(tables)})$", step)], (name, plan)
    connection.close()


async def test_postgresql_sweeps_page_by_page_along_an_index(connection):
    await connection.execute(
        "INSERT INTO sessions SELECT 's' || i, i, i, i, CASE WHEN i > 1900 THEN NULL ELSE i END "
        "FROM generate_series(1, 2000) AS i"
    )
    await connection.execute("ANALYZE sessions")
    await connection.execute("SET enable_seqscan = off")  # of so few rows it would otherwise read all
    await connection.execute("SET enable_bitmapscan = off")
    for name, arguments, index in SWEEPING:
        query = load("postgresql")[name]
        plan = await connection.fetch(f"EXPLAIN {query.statement}", *(arguments[param] for param in query.order))
        text = "\n".join(row[0] for row in plan)
        assert index in text, (name, text)
        assert "Seq Scan" not in text, (name, text)
