"""Property 13. A row that breaks the model is left out, counted and logged; it is never sent and never a 500."""

import asyncio

import pytest
from hypothesis import given
from hypothesis import strategies as st
from structlog.testing import capture_logs

from app.db.database import Db
from app.db.migrate import migrate
from app.db.queryable import json_parameter
from app.history import HistoryQuery
from app.sessions import totals_records
from app.uploads import records as upload_records
from tests.contracts.records import everything, upload

# Each breaks a row that is in order otherwise.
BREAKS = st.sampled_from(
    [
        {"status": "done"}, {"status": "COMPLETED"}, {"status": ""}, {"protocol": "ftp"}, {"protocol": ""},
        {"size_bytes": -1}, {"size_bytes": -(2**63)},
        {"sha256": None}, {"sha256": ""}, {"sha256": "A" * 64}, {"sha256": "a" * 63}, {"sha256": "g" * 64},
        {"sha256": "a" * 64 + "\n"},
        {"created_at_us": -1}, {"created_at_us": 2**62}, {"created_at_us": -(2**63)}, {"created_at_us": 2**63 - 2},
        {"completed_at_us": None}, {"completed_at_us": 0}, {"completed_at_us": 2**63 - 1},
        {"status": "failed"}, {"error_code": "lost"}, {"error_code": "lost", "error_detail": "on a completed one"},
        {"status": "failed", "error_code": "lost"}, {"status": "failed", "error_code": "", "error_detail": ""},
        {"filename": ""}, {"filename": "."}, {"filename": ".."}, {"filename": "a/b"}, {"filename": "a\\b"},
        {"filename": "a\nb"}, {"filename": "\x7f"}, {"filename": "é" * 128},
        {"content_type": "x" * 256},
        {"metadata": "x"}, {"metadata": "[]"}, {"metadata": '{"a b":"c"}'}, {"metadata": '{"a":1}'}, {"metadata": ""},
        {"path": "a"}, {"path": "a//b"}, {"path": "a/.."}, {"path": "a/b\nc"}, {"keep_us": 0}, {"keep_us": -1},
        {"id": "x"}, {"id": "A" * 36}, {"id": ""},
    ]
)  # fmt: skip


@pytest.fixture
def runner():
    with asyncio.Runner() as runner:
        yield runner


@pytest.fixture
def db(runner, database_url):
    db = Db(database_url, pool_size=1)
    runner.run(db.open())
    runner.run(migrate(db, now_us=0))
    yield db
    runner.run(db.close())


async def uncheck(db: Db) -> None:
    """Let the database take any row, as if somebody had taken its checks away."""
    statement = {
        "sqlite": "PRAGMA ignore_check_constraints = ON",
        "postgresql": "DO $$ DECLARE name TEXT; BEGIN FOR name IN SELECT conname FROM pg_constraint "
        "WHERE conrelid = 'uploads'::regclass AND contype = 'c' "
        "LOOP EXECUTE 'ALTER TABLE uploads DROP CONSTRAINT ' || name; END LOOP; END $$",
    }
    await db.transaction(lambda unit: unit.execute(statement[db.dialect]))


async def start_again(db: Db, rows) -> None:
    async def work(unit):
        await unit.execute("DELETE FROM uploads")
        await unit.run("insert_uploads", rows=json_parameter(rows))

    await db.transaction(work)


def test_a_broken_row_is_left_out_counted_and_logged(runner, db):
    runner.run(uncheck(db))

    @given(
        breaks=st.lists(st.none() | BREAKS, min_size=1, max_size=8),
        order=st.sampled_from(["newest", "oldest", "oldest", "size", "-size"]),
        page_size=st.integers(1, 5),
    )
    def left_out(breaks, order, page_size):
        rows, good, broken = [], [], []
        for number, change in enumerate(breaks):
            row = upload(number).as_row()
            if change is None:
                good.append(upload(number))
            else:
                # An id of its own still, so that none of several broken ones takes another's place.
                row |= {**change, "id": change["id"] + f"{number}"} if "id" in change else change
                broken.append(row["id"])
            rows.append(row)
        runner.run(start_again(db, rows))

        found, skipped, logged, after = [], 0, [], None
        for _ in range(len(rows) + 1):
            with capture_logs() as logs:
                page = runner.run(
                    upload_records.list_uploads(db, "mine", HistoryQuery(order=order), after=after, page_size=page_size)
                )
            found, skipped, after = found + page.uploads, skipped + page.skipped, page.end
            logged += logs
            if after is None:
                break
        assert after is None
        assert found == (good if order in {"oldest", "size"} else good[::-1])
        assert skipped == len(broken)
        assert sorted(entry["upload_id"] for entry in logged) == sorted(broken)
        assert all(entry.keys() == {"event", "log_level", "upload_id"} for entry in logged)

        for row in rows:
            expected = next((each for each in good if each.id == row["id"]), None)
            assert runner.run(upload_records.list_these(db, [row["id"]])) == (
                {} if expected is None else {row["id"]: expected}
            )
        assert runner.run(upload_records.count_uploads(db, "mine", HistoryQuery())) == len(rows)
        has = runner.run(totals_records.find(db, "mine"))
        assert sum(total.uploads for total in has.by_status) == len(rows)

    left_out()


@pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)
def test_text_that_is_none_breaks_its_own_row_alone(runner, db):
    """Only SQLite keeps bytes that are no UTF-8 as text."""
    runner.run(upload_records.insert_uploads(db, [upload(1), upload(2), upload(3)]))
    spoil = "UPDATE uploads SET filename = CAST(x'61ff62' AS TEXT) WHERE size_bytes = 2"
    runner.run(db.transaction(lambda unit: unit.execute(spoil)))
    page = runner.run(upload_records.list_uploads(db, "mine", HistoryQuery(), after=None, page_size=9))
    assert (page.uploads, page.skipped) == ([upload(3), upload(1)], 1)
    assert runner.run(upload_records.list_these(db, [upload(2).id])) == {}
    assert runner.run(everything(db)) == [upload(3), upload(1)]
