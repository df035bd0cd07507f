"""What can happen at a COMMIT, done to a real PostgreSQL.

Whatever it is, an upload ends in one way, which its record and its file agree about; nothing lands
twice, and no connection is lost over it.
"""

import asyncio
import os
import signal
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import asyncpg
import pytest

from tests.faults.test_database_outage import all_slots_are_free
from tests.interop.clients import everything
from tests.support.load import form, raw, tus
from tests.support.postgres import Postgres
from tests.support.service import PATIENCE, service
from tests.support.tally import TORTURE

__all__ = ["service"]

pytestmark = pytest.mark.slow

POOL = 3
CONTENT = b"whole or not at all " * 1000
HOLD = """
CREATE FUNCTION hold() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN PERFORM pg_advisory_xact_lock(1); RETURN NULL; END';
CREATE CONSTRAINT TRIGGER hold AFTER INSERT ON uploads DEFERRABLE INITIALLY DEFERRED
    FOR EACH ROW EXECUTE FUNCTION hold();
"""
FAIL = """
CREATE SEQUENCE commits;
CREATE FUNCTION fail() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    IF nextval('commits') <= {times} THEN RAISE EXCEPTION 'as the test says' USING ERRCODE = '{state}'; END IF;
    RETURN NULL;
END $$;
CREATE CONSTRAINT TRIGGER fail AFTER INSERT OR UPDATE ON uploads DEFERRABLE INITIALLY DEFERRED
    FOR EACH ROW EXECUTE FUNCTION fail();
"""


@pytest.fixture(scope="module")
def database():
    """A server of our own: this one is hurt."""
    server = Postgres()
    yield server
    server.close()


@asynccontextmanager
async def somebody_else(url: str) -> AsyncIterator[asyncpg.Connection]:
    """Another program's connection to the same database."""
    connection = await asyncpg.connect(url)
    try:
        yield connection
    finally:
        connection.terminate()


async def in_commit(other, *, waits_for):
    """The process that serves a COMMIT that waits for this, once there is one."""
    question = "SELECT pid FROM pg_stat_activity WHERE query = 'COMMIT' AND wait_event = $1"
    async with asyncio.timeout(PATIENCE):
        while (pid := await other.fetchval(question, waits_for)) is None:  # noqa: ASYNC110  # nobody tells us
            await asyncio.sleep(0.01)
    return pid


def recovered(database):
    """Return once the server lets anybody in and has read its settings."""
    for _ in range(round(PATIENCE / 0.1)):
        try:
            return database.execute("SELECT pg_reload_conf()")
        except RuntimeError:
            time.sleep(0.1)
    raise AssertionError("PostgreSQL does not recover")


def outcome(running, headers):
    """What has become of the one upload; its record and its file agree."""
    with running.client(headers=headers) as client:
        [record] = everything(client)
        content = client.get(f"/api/ingestion/files/{record['id']}")
    if record["status"] == "completed":
        assert (content.status_code, content.content) == (200, CONTENT)
    else:
        assert record["status"] == "failed"
        assert content.status_code == 404
        assert [path for path in (running.store / "files").rglob("*") if path.is_file()] == []
    return record["status"]


DEATHS = [
    ("before", "its process"),
    ("after", "its process"),
    ("before", "the server"),
    ("after", "the server"),
]


@pytest.mark.parametrize(("moment", "dies"), DEATHS if TORTURE else DEATHS[1:2])
def test_a_commit_in_which_the_server_dies_is_settled(service, database, moment, dies):
    """F14. Before it has written the commit, or after and before it could say so.

    If it is back at once nobody notices. If it stays away for seconds the client is told that the
    outcome is open, and the history tells it later. PostgreSQL is held in the COMMIT by a lock that a deferred
    trigger wants, or by a standby that is not there.
    """
    url = database.create_database()
    running = service(database_url=url, database_pool_size=POOL)
    headers = running.session()

    async def run():
        async with somebody_else(url) as other:
            if moment == "before":
                await other.execute(HOLD)
                await other.execute("SELECT pg_advisory_lock(1)")
            else:
                await other.execute("ALTER SYSTEM SET synchronous_standby_names = 'nobody'")
                await other.execute("SELECT pg_reload_conf()")
            uploading = asyncio.create_task(raw(running.port, headers, "a.bin", CONTENT))
            pid = await in_commit(other, waits_for="advisory" if moment == "before" else "SyncRep")
            if moment == "after":
                await other.execute("ALTER SYSTEM RESET synchronous_standby_names")  # read when it is told to
            if dies == "its process":
                os.kill(pid, signal.SIGKILL)  # at which the server ends all others, too, and recovers
                await asyncio.to_thread(recovered, database)
            else:
                await asyncio.to_thread(database.stop, "immediate")
            [answer] = await uploading
        return answer

    answer = asyncio.run(run())
    if dies == "the server":
        assert answer.status == 503
        database.start()
    if answer.status == 201:
        assert outcome(running, headers) == "completed"
    else:
        assert (answer.status, answer.json()["code"]) == (503, "unavailable")
        running.wait_for("settled what was in doubt")
        assert outcome(running, headers) == ("failed" if moment == "before" else "completed")
    all_slots_are_free(running)
    assert running.stop() == 0


@pytest.mark.parametrize("state", ["40001", "40P01"] if TORTURE else ["40P01"])
def test_a_commit_that_lost_a_race_is_tried_again(service, database, state):
    """F16. A serialization failure, a deadlock: the client hears nothing of it, and the file is there once."""
    url = database.create_database()
    running = service(database_url=url, database_pool_size=POOL)
    headers = running.session()

    async def run():
        async with somebody_else(url) as other:
            await other.execute(FAIL.format(times=2 * POOL, state=state))
        sent = (way(running.port, headers, way.__name__, CONTENT) for way in (raw, form, tus))
        return [answer for answers in await asyncio.gather(*sent) for answer in answers]

    assert {answer.status // 100 for answer in asyncio.run(run())} == {2}
    with running.client(headers=headers) as client:
        found = [(record["filename"], record["status"]) for record in everything(client)]
    assert sorted(found) == [(way, "completed") for way in ("form", "raw", "tus")]
    all_slots_are_free(running)
    assert running.stop() == 0


@pytest.mark.torture
def test_a_commit_that_the_database_refuses_is_a_clean_failure(service, database):
    """F16. As often as there are connections and more, and the next one passes."""
    url = database.create_database()
    running = service(database_url=url, database_pool_size=POOL)
    headers = running.session()

    async def run():
        async with somebody_else(url) as other:
            await other.execute(FAIL.format(times=1_000_000, state="23514"))
            answers = [await raw(running.port, headers, "a.bin", CONTENT) for _ in range(2 * POOL)]
            await other.execute("DROP TRIGGER fail ON uploads")
        return [answer for [answer] in answers], await raw(running.port, headers, "a.bin", CONTENT)

    refused, [taken] = asyncio.run(run())
    assert {(answer.status, answer.json()["code"]) for answer in refused} == {(500, "internal")}
    assert taken.status == 201
    assert outcome(running, headers) == "completed"
    all_slots_are_free(running)
    assert running.stop() == 0
