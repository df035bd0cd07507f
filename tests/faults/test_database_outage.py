"""The database stops, freezes or is locked while uploads come in: nothing hangs, nothing is acknowledged, and
service returns with the database, without a restart."""

import asyncio
import json
import sqlite3
import time
from collections import Counter
from contextlib import closing
from itertools import count

import asyncpg
import pytest

from tests.faults.test_workers import figures
from tests.support.postgres import Postgres
from tests.support.service import HISTORY, PATIENCE, UPLOADS, ask, service

__all__ = ["service"]

pytestmark = pytest.mark.slow

POOL = 3
CLIENTS = 6
BACK_WITHIN = 5  # seconds after the database: promised, so measured
ANSWERED_WITHIN = 20  # seconds; no request may hang, and the slowest machine is quicker than this


@pytest.fixture(scope="module")
def database():
    """A server of our own: this one is hurt."""
    server = Postgres()
    yield server
    server.close()


def write(port, headers, name="a.bin"):
    return ask(port, "PUT", f"{UPLOADS}/{name}", headers, b"content of " + name.encode())


class Load:
    """Clients that upload all the time. Use as an async context manager."""

    def __init__(self, port, headers):
        self._port, self._headers = port, headers
        self._group = asyncio.TaskGroup()
        self._stopping = False
        self._news = asyncio.Condition()
        self.answers = []
        self.outage = False
        self.during_outage = []

    async def __aenter__(self):
        await self._group.__aenter__()
        for client in range(CLIENTS):
            self._group.create_task(self._upload(client))
        return self

    async def __aexit__(self, *error):
        self._stopping = True
        await self._group.__aexit__(*error)

    async def _upload(self, client):
        for number in count():
            if self._stopping:
                return
            name, asked_in_outage = f"{client}-{number}", self.outage
            async with asyncio.timeout(ANSWERED_WITHIN):
                answer = await write(self._port, self._headers, name)
            async with self._news:
                self.answers.append((name, answer.status))
                if asked_in_outage and self.outage:
                    self.during_outage.append(answer.status)
                self._news.notify_all()

    async def until(self, status, number):
        """Wait until `number` more requests were answered so."""
        seen = len(self.answers)
        async with asyncio.timeout(2 * ANSWERED_WITHIN), self._news:
            await self._news.wait_for(lambda: [each for _, each in self.answers[seen:]].count(status) >= number)


async def refused(port, headers):
    """Whoever asks now is told in bounded time to come back soon; with or without a session, to read or to write."""
    async with asyncio.timeout(ANSWERED_WITHIN):
        answers = await asyncio.gather(
            write(port, headers), write(port, {}), ask(port, "GET", HISTORY, headers), ask(port, "POST", "/api/session")
        )
    for answer in answers:
        assert answer.status == 503
        assert answer.json()["code"] == "unavailable"
        assert 0 < int(answer.headers["retry-after"]) <= 5


async def serves_again(port, headers):
    """Full service within the time promised, on every connection of the pool at once."""
    async with asyncio.timeout(BACK_WITHIN):
        while (await write(port, headers)).status != 201:  # noqa: ASYNC110  # nobody tells us but the answer
            await asyncio.sleep(0.05)
    answers = await asyncio.gather(*(ask(port, "GET", HISTORY, headers) for _ in range(4 * POOL)))
    assert {answer.status for answer in answers} == {200}


def all_slots_are_free(running):
    """No connection was lost: all that may be open could be borrowed now."""
    with running.client() as client:
        for _ in range(round(PATIENCE / 0.1)):  # the figures are half a second old at most
            found = figures(client)
            if found["waybill_database_slots_free"] == found["waybill_database_slots"]:
                return
            time.sleep(0.1)
    raise AssertionError(f"{found['waybill_database_slots_free']} of {found['waybill_database_slots']} slots are free")


def outage(running, begin, end):
    """Load, an outage in which more requests fail than the pool has connections, and its end."""
    headers = running.session()

    async def run():
        async with Load(running.port, headers) as load:
            await load.until(201, CLIENTS)
            await asyncio.to_thread(begin)
            load.outage = True
            await load.until(503, 2 * POOL)
            await refused(running.port, headers)
            load.outage = False
            await asyncio.to_thread(end)
            await serves_again(running.port, headers)
            await load.until(201, CLIENTS)
        return load

    load = asyncio.run(run())
    assert set(load.during_outage) == {503}
    assert {status for _, status in load.answers} == {201, 503}
    acknowledged = {name for name, status in load.answers if status == 201}
    with running.client(headers=headers) as client:
        history = client.get(HISTORY, params={"format": "ndjson", "status": "completed"})
    listed = Counter(json.loads(line)["filename"] for line in history.text.splitlines())
    assert {listed[name] for name in acknowledged} == {1}
    all_slots_are_free(running)


def test_uploads_are_refused_while_postgresql_is_stopped_and_taken_afterwards(service, database):
    """F12."""
    running = service(database_url=database.create_database(), database_pool_size=POOL)
    outage(running, lambda: database.stop("immediate"), database.start)
    assert running.stop() == 0


def test_uploads_are_refused_while_postgresql_is_frozen_and_taken_afterwards(service, database):
    """F13."""
    running = service(database_url=database.create_database(), database_pool_size=POOL)
    outage(running, database.freeze, database.thaw)
    assert running.stop() == 0


@pytest.mark.torture
def test_uploads_are_refused_while_every_connection_is_taken_and_taken_afterwards(service, database):
    """F15. Somebody holds what all of them wait for, and whoever comes then waits for one of them."""
    url = database.create_database()
    running = service(database_url=url, database_pool_size=POOL)
    headers = running.session()

    async def run():
        other = await asyncpg.connect(url)
        async with other.transaction():
            await other.execute("LOCK TABLE uploads, sessions, session_tokens IN ACCESS EXCLUSIVE MODE")
            async with asyncio.timeout(ANSWERED_WITHIN):
                answers = await asyncio.gather(*(ask(running.port, "GET", HISTORY, headers) for _ in range(4 * POOL)))
            assert {(answer.status, answer.json()["code"]) for answer in answers} == {(503, "unavailable")}
            await refused(running.port, headers)
        await other.close()
        await serves_again(running.port, headers)

    asyncio.run(run())
    all_slots_are_free(running)
    assert running.stop() == 0


def test_uploads_are_refused_while_sqlite_is_locked_and_taken_afterwards(service):
    """F17. Another process holds the lock, longer than anybody waits: readers read on, writers are refused in time."""
    running = service()
    headers = running.session()

    async def run():
        with closing(sqlite3.connect(running.store / "waybill.db", isolation_level=None)) as other:
            other.execute("BEGIN EXCLUSIVE")
            async with asyncio.timeout(ANSWERED_WITHIN):
                writes = await asyncio.gather(*(write(running.port, headers) for _ in range(CLIENTS)))
                read = await ask(running.port, "GET", HISTORY, headers)
            assert {answer.status for answer in writes} == {503}
            assert {answer.json()["code"] for answer in writes} == {"unavailable"}
            assert all(0 < int(answer.headers["retry-after"]) <= 5 for answer in writes)
            assert read.status == 200
            other.execute("ROLLBACK")
        await serves_again(running.port, headers)

    asyncio.run(run())
    assert running.stop() == 0
