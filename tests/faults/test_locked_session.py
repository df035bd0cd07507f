"""The rows of one session are locked, by a long join or an operator's transaction: that session alone waits."""

import asyncio
from contextlib import asynccontextmanager

import asyncpg
import pytest

from tests.support.service import UPLOADS, ask, service

__all__ = ["service"]

pytestmark = pytest.mark.slow

POOL = 3


def upload(running, headers, **more):
    return ask(running.port, "PUT", f"{UPLOADS}/a.bin", {**headers, **more}, b"content")


@asynccontextmanager
async def locked(url, statement, *arguments):
    holder = await asyncpg.connect(url)
    async with holder.transaction():
        await holder.execute(statement, *arguments)
        yield
    await holder.close()


@pytest.mark.parametrize(
    ("table", "keyed", "workers"), [("sessions", False, 3), ("sessions", True, 1), ("session_totals", False, 1)]
)
def test_a_locked_session_refuses_nobody_else(service, postgres, table, keyed, workers):
    url = postgres.create_database()
    running = service(database_url=url, database_pool_size=POOL, workers=workers, session_quota="1GiB")
    victim, *others = (running.session() for _ in range(5))
    key = {"sessions": "id", "session_totals": "session_id"}[table]

    async def run():
        for headers in (victim, *others):
            assert (await upload(running, headers)).status == 201
        with running.client(headers=victim) as client:
            session_id = client.get("/api/session").json()["id"]
        async with locked(url, f"SELECT 1 FROM {table} WHERE {key} = $1 FOR UPDATE", session_id):
            waiting = [
                asyncio.create_task(upload(running, victim, **({"Idempotency-Key": f'"key-{n}"'} if keyed else {})))
                for n in range(4 * POOL)
            ]
            statuses = []
            while not all(task.done() for task in waiting):
                answers = await asyncio.gather(*(upload(running, headers) for headers in others))
                statuses += [answer.status for answer in answers]
                await asyncio.sleep(0.05)
            assert {task.result().status for task in waiting} == {503}
            statuses += [answer.status for answer in await asyncio.gather(*(upload(running, each) for each in others))]
            assert set(statuses) == {201}
        async with asyncio.timeout(5):  # as after an outage
            while (await upload(running, victim)).status != 201:  # noqa: ASYNC110  # nobody tells us but the answer
                await asyncio.sleep(0.05)

    asyncio.run(run())
    assert "the database is away" not in running.said("error")
    assert running.stop() == 0
