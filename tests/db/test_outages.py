"""PostgreSQL away, crashed, frozen, or lost in the middle: refused in bounded time, and back without a restart."""

import asyncio
from contextlib import asynccontextmanager, suppress

import pytest

from app.db.database import Db
from app.db.migrate import migrate
from app.errors import Unavailable, Unusable
from app.uploads import records as upload_records
from tests.contracts.records import everything, upload
from tests.support.postgres import Postgres

TIMEOUT = 1.0


@pytest.fixture(scope="module")
def server():
    """A server for this file alone, since its tests hurt it."""
    server = Postgres()
    yield server
    server.close()


@asynccontextmanager
async def database(server):
    url = server.create_database()
    patient = Db(url)
    await patient.open()
    await migrate(patient, now_us=0)
    await patient.close()
    db = Db(url, pool_size=4, timeout=TIMEOUT)
    await db.open()
    try:
        yield db
    finally:
        await db.close()


async def back(db: Db) -> None:
    """Return once every connection works; each may have to find first that its server is gone."""
    async with asyncio.timeout(60):
        while any(await asyncio.gather(*(db.ping() for _ in range(4)), return_exceptions=True)):
            assert db.slots() == (4, 4)
    assert db.slots() == (4, 4)


async def refused(db: Db) -> None:
    """Every way of asking is refused, within its time."""
    asking = [
        db.ping(),
        upload_records.count_stored(db),
        upload_records.insert_uploads(db, [upload(900)]),
        db.transaction(lambda unit: upload_records.insert_uploads(unit, [upload(901)])),
    ] * 3
    async with asyncio.timeout(TIMEOUT + 30):  # far above what it takes, far below for ever
        for answer in await asyncio.gather(*asking, return_exceptions=True):
            assert isinstance(answer, Unavailable)


@pytest.mark.parametrize("mode", ["immediate", "fast"])
async def test_queries_are_refused_while_the_server_is_stopped_and_answered_afterwards(server, mode):
    """F12."""
    async with database(server) as db:
        await asyncio.gather(*(upload_records.insert_uploads(db, [upload(n)]) for n in range(8)))
        server.stop(mode)
        try:
            with suppress(Unavailable):  # several connections had been open; each may notice only now
                await db.ping()
            await refused(db)
            assert db.slots() == (4, 4)
        finally:
            server.start()
        await back(db)
        assert len(await everything(db)) == 8


async def test_connections_that_are_known_to_be_lost_are_not_borrowed(server):
    async with database(server) as db:
        await asyncio.gather(*(db.ping() for _ in range(4)))
        await asyncio.to_thread(server.stop, "fast")
        await asyncio.to_thread(server.start)
        await asyncio.gather(*(db.ping() for _ in range(4)))


async def test_acknowledged_records_survive_crashes_under_load(server):
    """F12."""
    async with database(server) as db:
        acknowledged, enough, stop = set(), asyncio.Event(), asyncio.Event()

        async def send(start):
            for number in range(start, start + 10_000):
                if stop.is_set():
                    return
                try:
                    await db.transaction(
                        lambda unit, number=number: upload_records.insert_uploads(unit, [upload(number)])
                    )
                    acknowledged.add(upload(number).id)
                    if len(acknowledged) % 50 == 0:
                        enough.set()
                except Unavailable:
                    await asyncio.sleep(0.01)

        senders = [asyncio.create_task(send(start * 10_000)) for start in range(8)]
        for _ in range(3):
            enough.clear()
            await enough.wait()
            await asyncio.to_thread(server.stop)
            await asyncio.to_thread(server.start)
        stop.set()
        await asyncio.gather(*senders)
        await back(db)
        assert acknowledged <= {each.id for each in await everything(db)}


async def test_a_frozen_server_is_refused_in_time_and_needs_nothing_when_it_is_back(server):
    """F13."""
    async with database(server) as db:
        await asyncio.gather(*(db.ping() for _ in range(4)))
        server.freeze()
        try:
            await refused(db)
        finally:
            server.thaw()
        await back(db)


async def test_a_cancelled_transaction_of_long_patience_has_the_time_of_any_other(server):
    """A sweep's page may take a minute; a stop does not wait so long for a server that fell silent."""
    async with database(server) as db:
        began = asyncio.Event()

        async def work(unit):
            began.set()
            await unit.execute("SELECT pg_sleep(3600)")

        busy = asyncio.create_task(db.transaction(work, timeout=3600))
        await began.wait()
        busy.cancel()
        with pytest.raises(asyncio.CancelledError):
            async with asyncio.timeout(TIMEOUT + 30):
                await asyncio.shield(busy)
        assert busy.cancelled()


@pytest.mark.slow
async def test_closing_is_bounded_while_the_server_is_frozen(server):
    async with database(server) as db:
        await asyncio.gather(*(db.ping() for _ in range(4)))
        busy = asyncio.create_task(db.transaction(lambda unit: unit.execute("SELECT pg_sleep(60)"), timeout=3600))
        await asyncio.sleep(0)
        server.freeze()
        try:
            async with asyncio.timeout(TIMEOUT + 30):
                await db.close()
                with pytest.raises(Unavailable):
                    await busy
        finally:
            server.thaw()


@pytest.mark.parametrize("moment", ["before the commit", "between two transactions"])
async def test_a_connection_that_the_server_ends_is_replaced(server, moment):
    """F14."""
    async with database(server) as db:
        for _ in range(10):
            if moment == "before the commit":
                with pytest.raises(Unavailable):
                    await db.transaction(lambda unit: unit.execute("SELECT pg_terminate_backend(pg_backend_pid())"))
            else:
                server.execute("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname LIKE 'waybill%'")
                with suppress(Unavailable):
                    await db.ping()
            await back(db)


async def test_a_server_without_its_safety_is_refused(server):
    url = server.create_database()
    for setting in ("fsync", "full_page_writes"):
        server.execute(f"ALTER SYSTEM SET {setting} = off")
        server.stop("fast")
        server.start()
        with pytest.raises(Unusable, match=f"{setting} is off"):
            await Db(url).open()
        server.execute(f"ALTER SYSTEM RESET {setting}")
    server.stop("fast")
    server.start()
    await (db := Db(url)).open()
    await db.close()
