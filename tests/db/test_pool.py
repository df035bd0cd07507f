"""What a connection to PostgreSQL must be to be used, and what one of them learns for all."""

import asyncio
import socket
from contextlib import asynccontextmanager, suppress

import asyncpg
import pytest

from app.db import pool
from app.db.database import Db
from app.db.migrate import migrate
from app.errors import Unavailable, Unusable, root_reason
from app.uploads import records as upload_records
from tests.contracts.records import everything, upload
from tests.support.partition import Partition
from tests.support.postgres import Postgres

POOL = 4
BACK_WITHIN = 5.0  # seconds: promised (P15), so measured


@pytest.fixture(scope="module")
def server():
    """A server for this file alone: its settings are changed."""
    server = Postgres()
    yield server
    server.close()


@pytest.fixture
def url(postgres):
    url = postgres.create_database()
    yield url
    postgres.drop_database(url)


@asynccontextmanager
async def opened(url, **options):
    """The database at `url`, every connection of its pool open and idle."""
    db = Db(url, **{"pool_size": POOL, "timeout": 20, **options})
    await db.open()
    try:
        await migrate(db, now_us=0)
        await on_every_connection(db, "SELECT 1")
        yield db
    finally:
        await db.close()


async def on_every_connection(db, question):
    """What every connection of the pool answers, all in use at the same time."""
    meeting = asyncio.Barrier(POOL)

    async def work(unit):
        answer = await unit._raw.fetchval(question)
        await meeting.wait()
        return answer

    return await asyncio.gather(*(db.transaction(work) for _ in range(POOL)))


async def write(db, number):
    await db.transaction(lambda unit: upload_records.insert_uploads(unit, [upload(number)]))


async def served(ask):
    """Return once it is served, within the time that is promised."""
    async with asyncio.timeout(BACK_WITHIN):
        while True:
            with suppress(Unavailable):
                return await ask()
            await asyncio.sleep(0.05)


async def refused(ask):
    """The first refusal of what is asked over and over."""
    async with asyncio.timeout(BACK_WITHIN):
        while True:
            try:
                await ask()
            except Unavailable as error:
                return error
            await asyncio.sleep(0.05)


class TestDurability:
    @pytest.mark.parametrize("setting", ["off", "local", "on", "remote_apply"])
    async def test_every_connection_waits_for_the_disk_whatever_its_role_is_set_to(self, postgres, url, setting):
        postgres.execute(f"ALTER DATABASE {url.rpartition('/')[2]} SET synchronous_commit = {setting}")
        async with opened(url) as db:
            expected = "local" if setting == "off" else setting
            assert await on_every_connection(db, "SHOW synchronous_commit") == [expected] * POOL

    @pytest.mark.parametrize("switch", ["fsync", "full_page_writes"])
    @pytest.mark.slow
    async def test_a_switch_turned_off_at_the_server_is_noticed_and_so_is_its_return(self, server, switch):
        async with opened(server.create_database()) as db:
            server.execute(f"ALTER SYSTEM SET {switch} = off")
            server.execute("SELECT pg_reload_conf()")
            try:
                refusal = await refused(lambda: write(db, 1))
                assert isinstance(refusal.__cause__, Unusable)
                assert f"{switch} is off" in str(refusal.__cause__)
                for ask in (db.ping, lambda: everything(db), lambda: write(db, 2)):
                    with pytest.raises(Unavailable):
                        await ask()
            finally:
                server.execute(f"ALTER SYSTEM RESET {switch}")
                server.execute("SELECT pg_reload_conf()")
            await served(lambda: write(db, 3))
            assert len(await on_every_connection(db, "SELECT 1")) == POOL

    async def test_a_server_that_comes_back_without_its_safety_is_not_used(self, server):
        """As after a restart by somebody who wanted to load a dump quickly."""
        async with opened(server.create_database()) as db:
            server.execute("ALTER SYSTEM SET fsync = off")
            await asyncio.to_thread(server.stop, "fast")
            await asyncio.to_thread(server.start)
            server.execute("ALTER SYSTEM RESET fsync")
            for _ in range(2 * POOL):
                with pytest.raises(Unavailable):
                    await write(db, 1)
            server.execute("SELECT pg_reload_conf()")
            await served(lambda: write(db, 1))


class TestReadOnly:
    async def test_a_database_that_only_reads_is_read_from_until_it_takes_writes_again(self, postgres, url):
        name = url.rpartition("/")[2]
        async with opened(url) as db:
            await write(db, 1)
            postgres.execute(f"ALTER DATABASE {name} SET default_transaction_read_only = on")
            postgres.execute(f"SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = '{name}'")
            for number in range(2, 2 + 2 * POOL):
                refusal = await refused(lambda number=number: write(db, number))
            assert str(refusal) == "the database is read-only"
            reads = await asyncio.gather(*(everything(db) for _ in range(POOL)))  # opens as many as it may
            assert [len(each) for each in reads] == [1] * POOL
            postgres.execute(f"ALTER DATABASE {name} RESET default_transaction_read_only")
            await served(lambda: write(db, 100))
            assert all(held.writable for held in db._pool._idle)  # the others may lead elsewhere
            await asyncio.gather(*(write(db, number) for number in range(101, 101 + POOL)))

    async def test_a_standby_is_not_used_before_it_is_promoted(self, server):
        """It may have fallen behind: not even its answers to readers are right."""
        async with opened(server.create_database()) as db:
            await asyncio.to_thread(server.stop, "fast")
            await asyncio.to_thread(server.start, standby=True)
            for ask in (lambda: everything(db), lambda: write(db, 1), db.ping):
                refusal = await refused(ask)
            assert str(refusal) == "the database is a standby"
            server.execute("SELECT pg_promote()")
            await served(lambda: write(db, 1))
            assert len(await served(lambda: everything(db))) == 1

    async def test_connections_that_became_read_only_cost_one_refusal(self, url, monkeypatch):
        """A fail-over behind an address that stays: what is open leads to the server that was."""
        monkeypatch.setattr(pool, "_FRESH_SECONDS", 3600.0)
        async with opened(url) as db:
            await on_every_connection(db, "SELECT set_config('default_transaction_read_only', 'on', FALSE)")
            with pytest.raises(Unavailable, match="read-only") as refusal:
                await write(db, 1)
            assert root_reason(refusal.value).startswith("25006: ")
            await asyncio.gather(*(write(db, number) for number in range(1, 1 + POOL)))

    async def test_a_connection_found_to_be_read_only_is_replaced_before_it_is_used(self, url, monkeypatch):
        monkeypatch.setattr(pool, "_FRESH_SECONDS", 0.0)
        async with opened(url) as db:
            await on_every_connection(db, "SELECT set_config('default_transaction_read_only', 'on', FALSE)")
            await asyncio.gather(*(write(db, number) for number in range(1, 1 + POOL)))

    @pytest.mark.parametrize("state", ["25006", "25P03", "57014", "57P01", "08006"])
    async def test_a_connection_that_answers_read_only_is_not_used_again(self, url, state):
        db = Db(url, pool_size=1, timeout=20)
        await db.open()
        [before] = [await db.transaction(lambda unit: unit._raw.fetchval("SELECT pg_backend_pid()"))]
        with pytest.raises(Unavailable):
            await db.transaction(
                lambda unit: unit.execute(f"DO $$ BEGIN RAISE EXCEPTION 'so' USING ERRCODE = '{state}'; END $$")
            )
        assert await db.transaction(lambda unit: unit._raw.fetchval("SELECT pg_backend_pid()")) != before
        await db.close()


class TestSilence:
    @pytest.fixture
    def way(self, postgres):
        with Partition(postgres.port) as way:
            yield way

    async def test_connections_that_fell_silent_cost_one_caller_time(self, url, way, monkeypatch):
        """Whoever meets the first has waited for nothing; the others that are idle are not tried one by one."""
        monkeypatch.setattr(pool, "_FRESH_SECONDS", 3600.0)
        async with opened(way.leads(url)) as db:
            db._calls._timeout = 1.0
            way.forget()
            with pytest.raises(Unavailable):
                await db.ping()
            db._calls._timeout = 20.0
            async with asyncio.timeout(15):
                assert len(await on_every_connection(db, "SELECT 1")) == POOL

    async def test_a_silent_connection_is_noticed_before_it_is_used(self, url, way, monkeypatch):
        async with opened(way.leads(url), timeout=2.0) as db:
            monkeypatch.setattr(pool, "_FRESH_SECONDS", 0.0)
            way.forget()
            await write(db, 1)
            monkeypatch.setattr(pool, "_FRESH_SECONDS", 3600.0)
            assert len(await on_every_connection(db, "SELECT 1")) == POOL

    async def test_a_connection_that_was_idle_for_long_is_closed(self, url, monkeypatch):
        async with opened(url) as db:
            before = set(await on_every_connection(db, "SELECT pg_backend_pid()"))
            monkeypatch.setattr(pool, "_FRESH_SECONDS", 0.0)
            monkeypatch.setattr(db._driver, "longest_idle", 0.0, raising=False)
            assert await db.transaction(lambda unit: unit._raw.fetchval("SELECT pg_backend_pid()")) not in before
            assert len(db._pool._open) == 1

    async def test_the_kernel_ends_connections_that_nobody_answers_on(self, url):
        """The system's own times are hours and a quarter of an hour."""
        async with opened(url, timeout=5.0) as db:
            raw = next(iter(db._pool._open)).raw
            link = raw._transport.get_extra_info("socket")
            assert link.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE) == 1
            assert link.getsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE) <= 10
            assert link.getsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT) == 3000


class TestNoRoom:
    @pytest.fixture
    def crowded(self, postgres, url):
        """The database, by a role that is let in twice at a time and no more."""
        name = url.rpartition("/")[2]
        postgres.execute(f"CREATE ROLE {name}_few LOGIN CONNECTION LIMIT 2")
        postgres.execute(f"ALTER DATABASE {name} OWNER TO {name}_few")
        postgres.execute(f"GRANT ALL ON SCHEMA public TO {name}_few", url=url)
        yield url.replace("//waybill@", f"//{name}_few@")
        postgres.execute(f"ALTER DATABASE {name} OWNER TO waybill")
        postgres.execute(f"DROP OWNED BY {name}_few", url=url)
        postgres.execute(f"DROP ROLE {name}_few")

    async def test_callers_wait_for_the_connections_that_there_are(self, crowded):
        db = Db(crowded, pool_size=8, timeout=20)
        await db.open()
        await migrate(db, now_us=0)
        await asyncio.gather(*(write(db, number) for number in range(100)), *(everything(db) for _ in range(100)))
        assert len(await everything(db)) == 100
        assert db.slots() == (8, 8)
        await db.close()

    async def test_a_caller_that_waits_in_vain_leaves_nothing_behind(self, crowded):
        db = Db(crowded, pool_size=8, timeout=20)
        await db.open()
        hold, held = asyncio.Event(), asyncio.Barrier(3)

        async def work(unit):
            await held.wait()
            await hold.wait()

        holders = [asyncio.create_task(db.transaction(work)) for _ in range(2)]
        await held.wait()
        db._calls._timeout = 0.5
        for refusal in await asyncio.gather(*(db.ping() for _ in range(4)), return_exceptions=True):
            assert isinstance(refusal, Unavailable)
        db._calls._timeout = 20.0
        waiting = asyncio.create_task(db.ping())
        hold.set()
        await asyncio.gather(*holders, waiting)
        assert db.slots() == (8, 8)
        await asyncio.gather(*(db.ping() for _ in range(20)))
        await db.close()

    async def test_connections_that_others_release_are_taken(self, postgres, crowded):
        other = await asyncpg.connect(crowded)
        db = Db(crowded, pool_size=8, timeout=20)
        await db.open()
        begun, go_on = asyncio.Event(), asyncio.Event()

        async def work(unit):
            begun.set()
            await go_on.wait()

        holder = asyncio.create_task(db.transaction(work))
        await begun.wait()
        waiting = asyncio.create_task(db.ping())
        await asyncio.sleep(0)
        await other.close()
        await waiting
        go_on.set()
        await holder
        await db.close()

    async def test_a_full_server_is_reported_when_no_connection_is_left_to_wait_for(self, crowded):
        others = [await asyncpg.connect(crowded) for _ in range(2)]
        with pytest.raises(Unavailable) as refusal:
            await Db(crowded).open()
        assert root_reason(refusal.value).startswith("53300: ")
        for other in others:
            await other.close()
