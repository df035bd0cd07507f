"""The database becomes another while the service runs: read-only, unsafe, replaced on disk, or silent on old ways.

Nothing is acknowledged that would not last, ready says what an upload would be told, the log says why, and service
returns with the database, without a restart where none is needed.
"""

import asyncio
import sqlite3
import time
from contextlib import closing

import asyncpg
import httpx
import pytest

from tests.faults.test_database_outage import serves_again, write
from tests.support.partition import Partition
from tests.support.postgres import Postgres
from tests.support.service import HISTORY, PATIENCE, ask, service

__all__ = ["service"]

pytestmark = pytest.mark.slow


@pytest.fixture
def database():
    """A server of our own: this one is hurt."""
    server = Postgres()
    yield server
    server.close()


def upload(running, headers, name="a.bin"):
    return asyncio.run(write(running.port, headers, name)).status


def readiness(running):
    return httpx.get(f"{running.url}/health/ready", trust_env=False, timeout=PATIENCE)


def until_ready(running, status):
    """What ready says of the database, once it answers with this status."""
    deadline = time.monotonic() + PATIENCE
    while (answer := readiness(running)).status_code != status:
        assert time.monotonic() < deadline, answer.text
        time.sleep(0.1)
    return answer.json()["checks"]["database"]


def listed(running, headers):
    with running.client(headers=headers) as client:
        answer = client.get(HISTORY, params={"limit": 500})
        assert answer.status_code == 200, answer.text
        return {item["filename"] for item in answer.json()["items"]}


def test_a_database_that_only_reads_is_not_ready_and_back_without_a_restart(service, postgres):
    """A fail-over to a server that is not promoted yet, or an operator who wants quiet."""
    url = postgres.create_database()
    name = url.rpartition("/")[2]
    running = service(database_url=url)
    headers = running.session()
    assert upload(running, headers, "before") == 201
    postgres.execute(f"ALTER DATABASE {name} SET default_transaction_read_only = on")
    postgres.execute(f"SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = '{name}'")
    assert until_ready(running, 503) in {"the database is read-only", "the database is away"}
    assert upload(running, headers) == 503
    assert upload(running, headers) == 503
    assert listed(running, headers) == {"before"}
    postgres.execute(f"ALTER DATABASE {name} RESET default_transaction_read_only")
    asyncio.run(serves_again(running.port, headers))
    assert until_ready(running, 200) == "ok"
    assert any("read-only" in str(event.get("reason")) for event in running.events)
    assert running.stop() == 0


def test_acknowledged_uploads_survive_a_crash_of_a_server_set_not_to_flush(service, database):
    """Nobody looked again: 30 of 30 were gone."""
    url = database.create_database()
    running = service(database_url=url)
    headers = running.session()
    assert upload(running, headers) == 201
    database.execute(f"ALTER DATABASE {url.rpartition('/')[2]} SET synchronous_commit = off")
    database.execute("ALTER SYSTEM SET wal_writer_delay = '10s'")
    database.stop("fast")
    database.start()
    asyncio.run(serves_again(running.port, headers))
    names = {f"file-{number}" for number in range(30)}
    acknowledged = {name for name in names if upload(running, headers, name) == 201}
    assert acknowledged == names
    database.stop("immediate")
    database.start()
    asyncio.run(serves_again(running.port, headers))
    assert acknowledged <= listed(running, headers)
    assert running.stop() == 0


def test_a_server_that_does_not_flush_is_refused_with_its_reason(service, database):
    running = service(database_url=database.create_database())
    headers = running.session()
    assert upload(running, headers) == 201
    database.execute("ALTER SYSTEM SET fsync = off")
    database.stop("fast")
    database.start()
    running.wait_for(
        "database not usable", reason="Unusable: PostgreSQL's fsync is off: what it acknowledges could be lost"
    )
    assert upload(running, headers) == 503
    assert "fsync is off" in until_ready(running, 503)
    database.execute("ALTER SYSTEM RESET fsync")
    database.execute("SELECT pg_reload_conf()")
    asyncio.run(serves_again(running.port, headers))
    assert until_ready(running, 200) == "ok"
    assert running.stop() == 0


def test_connections_that_fell_silent_are_replaced_in_the_time_that_is_promised(service, postgres):
    """P15. What stands between forgot them; one timeout after the other was 44 seconds of 503."""
    url = postgres.create_database()
    with Partition(postgres.port) as way:
        running = service(database_url=way.leads(url))
        headers = running.session()
        assert upload(running, headers) == 201

        async def open_many():
            other = await asyncpg.connect(url)
            count = "SELECT count(*) FROM pg_stat_activity WHERE application_name = 'waybill' AND datname = $1"
            while await other.fetchval(count, url.rpartition("/")[2]) < 4:
                await asyncio.gather(*(ask(running.port, "GET", HISTORY, headers) for _ in range(16)))
            await other.close()

        asyncio.run(open_many())
        way.forget()
        asyncio.run(serves_again(running.port, headers))
        assert running.stop() == 0


def replace(store):
    """Restore a backup as somebody does who does not think of the service."""
    path, backup = store / "waybill.db", store / "backup.db"
    with closing(sqlite3.connect(path)) as source, closing(sqlite3.connect(backup)) as target:
        source.backup(target)
    (store / "waybill.db-wal").unlink()
    (store / "waybill.db-shm").unlink()
    backup.rename(path)


def remove_log(store):
    (store / "waybill.db-wal").unlink()
    (store / "waybill.db-shm").unlink()


def until_in_file(path, names):
    """Wait until the database's file, without any log, has the uploads of these names."""
    deadline = time.monotonic() + PATIENCE
    while True:
        with closing(sqlite3.connect(f"{path.as_uri()}?immutable=1", uri=True)) as alone:
            found = {name for (name,) in alone.execute("SELECT filename FROM uploads")}
        if names <= found:
            return
        assert time.monotonic() < deadline, found
        time.sleep(0.1)


@pytest.mark.parametrize("deed", [replace, remove_log])
@pytest.mark.parametrize("workers", [1, 3])
def test_nothing_is_acknowledged_by_a_database_that_was_replaced_on_disk(service, deed, workers):
    """Five were, and gone after the restart."""
    running = service(workers=workers)
    headers = running.session()
    old = {f"old-{number}" for number in range(5)}
    assert {upload(running, headers, name) for name in old} == {201}
    deed(running.store)
    new = {f"new-{number}" for number in range(5)}
    assert {upload(running, headers, name) for name in new} == {503}
    running.wait_for("database not usable", count=workers)  # whoever is asked nothing notices, too
    assert {readiness(running).status_code for _ in range(4 * workers)} == {503}
    assert "moved, replaced or removed" in until_ready(running, 503)
    until_in_file(running.store / "waybill.db", old)
    running.kill()
    running.start()
    assert until_ready(running, 200) == "ok"
    assert old <= listed(running, headers)
    assert upload(running, headers, "again") == 201
    assert running.stop() == 0
