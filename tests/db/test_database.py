"""The door to the database: it keeps what it acknowledged, loses no connection, and never hangs."""

import asyncio
import random
import sqlite3
from contextlib import suppress

import asyncpg
import pytest

from app.db.database import Db
from app.db.migrate import migrate
from app.errors import NotFound, StorageFull, Unavailable, Unusable
from app.history import HistoryQuery
from app.sessions import records as session_records
from app.uploads import records as upload_records
from tests.contracts.records import everything, session, upload
from tests.support.unreliable import until

CHILDREN = (
    "CREATE TABLE parents (id INTEGER PRIMARY KEY)",
    "CREATE TABLE children (parent INTEGER REFERENCES parents (id) DEFERRABLE INITIALLY DEFERRED)",
)
CONSTRAINT_ERRORS = (sqlite3.IntegrityError, asyncpg.IntegrityConstraintViolationError)
STATEMENT_ERRORS = (sqlite3.OperationalError, asyncpg.UndefinedTableError)


@pytest.fixture
async def db(database_url):
    db = Db(database_url, pool_size=3, timeout=20)
    await db.open()
    await migrate(db, now_us=0)
    yield db
    await until(lambda: db.slots() == (3, 3))  # one that was given up comes back when its thread has ended
    await db.close()


@pytest.fixture
async def hasty(database_url):
    """A database with one connection, whose calls may take half a second; what must succeed is asked `eventually`."""
    await eventually(lambda: opened(database_url))
    db = await eventually(lambda: opened(database_url, pool_size=1, timeout=0.5))
    yield db
    await db.close()


async def opened(url: str, **options) -> Db:
    db = Db(url, **options)
    await db.open()
    await migrate(db, now_us=0)
    if not options:
        await db.close()
    return db


async def eventually(ask):
    """What `ask` answers, as soon as it does: a slow machine may pass a short deadline by itself."""
    async with asyncio.timeout(60):
        while True:
            with suppress(Unavailable):
                return await ask()


async def execute(db: Db, *statements: str) -> None:
    async def work(unit):
        for statement in statements:
            await unit.execute(statement)

    await db.transaction(work)


async def stored(db: Db) -> set[str]:
    return {each.id for each in await everything(db)}


class TestQuestions:
    async def test_a_query_is_asked_only_as_its_own_kind(self, db):
        for ask in (db.one, db.run):
            with pytest.raises(TypeError, match="list_migrations is a query of kind :many"):
                await ask("list_migrations")
        with pytest.raises(TypeError, match="missing"):
            await db.one("find_session")
        with pytest.raises(KeyError):
            await db.one("find_nothing")

    async def test_rows_are_plain_mappings(self, db):
        assert await db.one("has_migrations") == {"tables": 1}
        for row in await db.many("list_migrations"):
            assert sorted(row) == ["checksum", "name", "number"]
        assert await db.one("find_session", session_id="unknown") is None
        assert await db.many("list_session_totals", session_id="unknown") == []

    async def test_a_database_answers_a_query(self, db):
        await db.ping()
        assert (await db.check())["server"].startswith(("SQLite 3", "PostgreSQL 1"))
        assert db.slots() == (3, 3)

    async def test_many_simultaneous_queries_share_the_connections(self, db):
        await upload_records.insert_uploads(db, [upload(1)])
        assert await asyncio.gather(*(stored(db) for _ in range(50))) == [{upload(1).id}] * 50


class TestTransactions:
    async def test_a_transaction_is_committed_when_it_returns(self, db):
        async def work(unit):
            await upload_records.insert_uploads(unit, [upload(1)])
            return "done"

        assert await db.transaction(work) == "done"
        assert await stored(db) == {upload(1).id}

    async def test_a_transaction_is_invisible_to_others_before_its_commit(self, db):
        async def work(unit):
            await upload_records.insert_uploads(unit, [upload(1)])
            assert await everything(unit) == [upload(1)]
            assert await asyncio.create_task(stored(db)) == set()

        await db.transaction(work)

    @pytest.mark.parametrize("error", [NotFound(), KeyError("x"), TimeoutError("not ours"), OSError(28, "not ours")])
    async def test_an_error_of_the_work_passes_through_and_undoes_the_transaction(self, db, error):
        async def work(unit):
            await upload_records.insert_uploads(unit, [upload(1)])
            raise error

        with pytest.raises(type(error)) as caught:
            await db.transaction(work)
        assert caught.value is error
        assert await stored(db) == set()

    async def test_a_failed_statement_undoes_the_transaction_even_if_its_error_is_caught(self, db):
        async def work(unit):
            await upload_records.insert_uploads(unit, [upload(1)])
            with suppress(Exception):
                await unit.execute("DELETE FROM nothing")

        with pytest.raises(STATEMENT_ERRORS):
            await db.transaction(work)
        assert await stored(db) == set()

    async def test_a_commit_that_fails_keeps_nothing_and_locks_nothing(self, db):
        """F16."""
        await execute(db, *CHILDREN)

        async def work(unit):
            await upload_records.insert_uploads(unit, [upload(1)])
            await unit.execute("INSERT INTO children VALUES (1)")

        for _ in range(5):
            with pytest.raises(CONSTRAINT_ERRORS):
                await db.transaction(work)
        assert db.slots() == (3, 3)
        await upload_records.insert_uploads(db, [upload(2)])
        assert await stored(db) == {upload(2).id}

    async def test_a_transaction_object_ends_with_its_transaction(self, db):
        async def work(unit):
            return unit

        unit = await db.transaction(work)
        with pytest.raises(RuntimeError, match="ended"):
            await unit.many("list_migrations")

    async def test_simultaneous_writers_lose_no_update(self, db):
        await db.transaction(lambda unit: session_records.insert_sessions(unit, [session("mine", expires_at=0)]))

        async def work(unit):
            await unit.many("lock_live_sessions", first_id="mine", second_id="", now_us=-1)
            row = await unit.one("find_session", session_id="mine")
            await session_records.touch_sessions(unit, [session_records.Seen("mine", 0, row["expires_at_us"] + 1)])

        await asyncio.gather(*(db.transaction(work) for _ in range(30)))
        assert (await session_records.find_session(db, "mine")).expires_at == 30

    async def test_a_transaction_that_lost_a_race_is_retried_as_a_whole(self, postgres):
        """F16."""
        db = Db(url := postgres.create_database())
        await db.open()
        await migrate(db, now_us=0)
        codes = iter(["40001", "40P01"])

        async def work(unit):
            await upload_records.insert_uploads(unit, [upload(1)])
            for code in codes:
                await unit.execute(f"DO $$ BEGIN RAISE EXCEPTION 'lost' USING ERRCODE = '{code}'; END $$")

        await db.transaction(work)
        assert await stored(db) == {upload(1).id}
        await db.close()
        postgres.drop_database(url)


class TestCancellation:
    async def test_a_cancelled_call_ends_first(self, db):
        begun, go_on, ended = asyncio.Event(), asyncio.Event(), False

        async def work(unit):
            nonlocal ended
            begun.set()
            await go_on.wait()
            await upload_records.insert_uploads(unit, [upload(1)])
            ended = True

        task = asyncio.create_task(db.transaction(work))
        await begun.wait()
        task.cancel()
        await asyncio.sleep(0)
        assert not task.done()
        go_on.set()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert ended
        assert await stored(db) == {upload(1).id}

    async def test_no_moment_to_cancel_loses_a_connection_or_an_acknowledged_row(self, db):
        """F26. One or two cancellations after each number of turns of the event loop, on a pool that others use too."""
        acknowledged, cancelled = set(), 0
        for number in range(120):
            each = upload(number)
            task = asyncio.create_task(
                db.transaction(lambda unit, each=each: upload_records.insert_uploads(unit, [each]))
            )
            noise = asyncio.create_task(db.ping())
            for _ in range(1 + number % 2):
                for _ in range(number // 4):
                    await asyncio.sleep(0)
                task.cancel()
            try:
                await task
                acknowledged.add(each.id)
            except asyncio.CancelledError:
                cancelled += 1
            await noise
        assert acknowledged <= await stored(db)
        assert cancelled > 20
        assert db.slots() == (3, 3)

    async def test_a_storm_of_cancellations_loses_nothing(self, db):
        """F26."""
        chances = random.Random(7)
        acknowledged = set()

        async def send(number):
            await db.transaction(lambda unit: upload_records.insert_uploads(unit, [upload(number)]))
            acknowledged.add(upload(number).id)

        for start in range(0, 200, 20):
            tasks = [asyncio.create_task(send(number)) for number in range(start, start + 20)]
            while not all(task.done() for task in tasks):
                await asyncio.sleep(chances.choice([0, 0, 0.001]))
                chances.choice(tasks).cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            assert db.slots() == (3, 3)
        assert acknowledged <= await stored(db)
        await asyncio.gather(*(send(number) for number in range(300, 330)))


class TestDeadlines:
    async def test_work_that_does_not_end_is_ended_and_undone(self, hasty):
        async def work(unit):
            await upload_records.insert_uploads(unit, [upload(1)])
            await asyncio.Event().wait()

        with pytest.raises(Unavailable):
            await hasty.transaction(work)
        await eventually(lambda: upload_records.insert_uploads(hasty, [upload(2)]))
        assert await eventually(lambda: stored(hasty)) == {upload(2).id}

    async def test_a_statement_that_does_not_end_is_ended(self, hasty):
        endless = "WITH RECURSIVE n (i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n) SELECT count(*) FROM n"
        with pytest.raises(Unavailable):
            await execute(hasty, endless)
        await eventually(hasty.ping)
        assert hasty.slots() == (1, 1)

    async def test_waiting_for_a_connection_is_bounded(self, hasty):
        """F15."""
        begun, go_on = asyncio.Event(), asyncio.Event()

        async def work(unit):
            begun.set()
            await go_on.wait()

        holder = asyncio.create_task(hasty.transaction(work, timeout=60))
        await begun.wait()
        assert hasty.slots() == (0, 1)
        with pytest.raises(Unavailable):
            await hasty.ping()
        with pytest.raises(Unavailable):
            await upload_records.insert_uploads(hasty, [upload(1)])
        go_on.set()
        await holder
        await eventually(hasty.ping)

    async def test_a_longer_deadline_can_be_asked_for(self, hasty):
        slow = {"sqlite": "SELECT 1", "postgresql": "SELECT pg_sleep(0.6)"}[hasty.dialect]

        async def work(unit):
            await unit.execute(slow)
            await asyncio.sleep(0.6)  # longer than the usual time: that it passes is the point

        await hasty.transaction(work, timeout=60)

    async def test_a_lock_that_another_process_holds_is_waited_for_within_bounds(self, hasty, database_url):
        """F17."""
        holder = await lock(database_url)
        with pytest.raises(Unavailable):
            await upload_records.insert_uploads(hasty, [upload(1)])
        with pytest.raises(Unavailable):
            await hasty.transaction(lambda unit: upload_records.insert_uploads(unit, [upload(1)]))
        waiting = asyncio.create_task(
            hasty.transaction(lambda unit: upload_records.insert_uploads(unit, [upload(2)]), timeout=60)
        )
        await asyncio.sleep(0)
        await unlock(holder)
        await waiting
        assert await eventually(lambda: stored(hasty)) == {upload(2).id}

    @pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)
    async def test_writers_that_wait_for_each_other_leave_the_connections_to_readers(self, db):
        begun, go_on = asyncio.Event(), asyncio.Event()

        async def work(unit):
            begun.set()
            await go_on.wait()

        writers = [asyncio.create_task(db.transaction(work)) for _ in range(10)]
        await begun.wait()
        await asyncio.gather(*(db.ping() for _ in range(5)))
        assert db.slots() == (2, 3)
        go_on.set()
        await asyncio.gather(*writers)

    async def test_readers_that_take_long_leave_connections_to_uploads(self, db, monkeypatch):
        """What 48 who count their history at once did to everybody else."""
        go_on, fetch = asyncio.Event(), db._driver.fetch

        async def slowly(raw, query, arguments):
            if query.name == "count_uploads":
                await go_on.wait()
            return await fetch(raw, query, arguments)

        monkeypatch.setattr(db._driver, "fetch", slowly)
        counts = [
            asyncio.create_task(upload_records.count_uploads(db.reading, "mine", HistoryQuery())) for _ in range(10)
        ]
        await until(lambda: db.slots() == (2, 3))
        await asyncio.gather(*(upload_records.insert_uploads(db, [upload(number)]) for number in range(5)))
        assert db.slots() == (2, 3)
        go_on.set()
        assert await asyncio.gather(*counts) == [5] * 10

    @pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)
    async def test_a_new_file_that_another_process_holds_is_waited_for(self, database_url):
        holder = await lock(database_url)
        opening = asyncio.create_task(opened(database_url))
        await asyncio.sleep(0.1)
        assert not opening.done()
        await unlock(holder)
        await opening

    async def test_closing_does_not_wait_for_ever(self, database_url):
        db = await eventually(lambda: opened(database_url, timeout=0.5))
        begun = asyncio.Event()

        async def work(unit):
            begun.set()
            await asyncio.Event().wait()

        stuck = asyncio.create_task(db.transaction(work, timeout=3600))
        await begun.wait()
        await db.close()
        with pytest.raises(Unavailable, match="stopping"):
            await db.ping()
        stuck.cancel()
        for task in asyncio.all_tasks() - {asyncio.current_task()}:
            task.cancel()
        await asyncio.wait([stuck])
        await db.close()

    async def test_closing_waits_for_what_runs(self, database_url):
        db = Db(database_url)
        await db.open()
        await migrate(db, now_us=0)
        begun = asyncio.Event()

        async def work(unit):
            begun.set()
            await asyncio.sleep(0)
            await upload_records.insert_uploads(unit, [upload(1)])

        running = asyncio.create_task(db.transaction(work))
        await begun.wait()
        await db.close()
        await running
        again = Db(database_url)
        await again.open()
        assert await stored(again) == {upload(1).id}
        await again.close()


async def lock(url):
    """Take what a writer needs, as another process would."""
    if url.startswith("sqlite"):
        holder = sqlite3.connect(url.removeprefix("sqlite:///"), isolation_level=None)
        holder.execute("BEGIN EXCLUSIVE")
    else:
        holder = await asyncpg.connect(url)
        await holder.execute("BEGIN")
        await holder.execute("LOCK TABLE uploads")
    return holder


async def unlock(holder):
    if isinstance(holder, sqlite3.Connection):
        holder.close()
    else:
        await holder.close()


class TestFullDisk:
    async def test_a_full_disk_is_distinguished_from_an_outage(self, db):
        full = {
            "sqlite": "CREATE TABLE large AS SELECT zeroblob(10000000) AS zeros",
            "postgresql": "DO $$ BEGIN RAISE EXCEPTION 'full' USING ERRCODE = '53100'; END $$",
        }
        if db.dialect == "sqlite":
            await execute(db, "PRAGMA max_page_count = 100")  # this connection keeps it, and is used next
        with pytest.raises(StorageFull):
            await execute(db, full[db.dialect])
        await upload_records.insert_uploads(db, [upload(1)])
        assert await stored(db) == {upload(1).id}


class TestFitness:
    @pytest.mark.parametrize(
        "url",
        [
            "", "waybill.db", "mysql://u@h/d", "postgresql+aiopg://u@h/d", "sqlite://", "sqlite:///", "sqlite:///:memory:",
            "sqlite:///waybill.db?mode=ro", "postgresql://u@h", "postgresql://u@h/d?sslmode=require",
            "postgresql://u@h/d?max_size=3", "postgresql://u@h:99999/d", "postgresql://u@[h/d",
        ],
    )  # fmt: skip
    def test_a_url_that_would_not_mean_what_it_says_is_refused(self, url):
        with pytest.raises(Unusable):
            Db(url)

    def test_a_refusal_does_not_show_the_password(self):
        for url in ("postgresql://u:geheim@h", "postgresql://u:geheim@h/d?sslmode=x", "postgresql://u:geheim@h:x/d"):
            with pytest.raises(Unusable) as refusal:
                Db(url)
            assert "geheim" not in str(refusal.value)

    async def test_a_file_that_cannot_be_a_database_is_refused(self, tmp_path):
        (tmp_path / "text").write_text("not a database, but long enough to be taken for one " * 100)
        for name in ("missing/waybill.db", "text", ""):
            with pytest.raises(Unusable):
                await Db(f"sqlite:///{tmp_path}/{name}").open()

    async def test_a_server_that_does_not_let_us_in_is_refused(self, postgres):
        with pytest.raises(Unusable, match="does not exist"):
            await Db(postgres.url("no_such_database")).open()

    async def test_a_server_that_is_away_may_come_back(self):
        with pytest.raises(Unavailable):
            await Db("postgresql://waybill@127.0.0.1:1/waybill").open()

    async def test_a_database_that_cannot_hold_every_name_is_refused(self, postgres):
        url = postgres.create_database()
        name = url.rpartition("/")[2]
        postgres.execute(f"CREATE DATABASE {name}_ascii ENCODING 'SQL_ASCII' TEMPLATE template0")
        with pytest.raises(Unusable, match="encoding is SQL_ASCII"):
            await Db(f"{url}_ascii").open()

    async def test_the_log_shows_no_arguments(self, db, caplog):
        caplog.set_level("DEBUG")
        await upload_records.insert_uploads(db, [upload(1, filename="secret.txt")])
        await everything(db)
        assert "secret" not in caplog.text
