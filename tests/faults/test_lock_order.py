"""Two services on one PostgreSQL, and people who upload, join, delete and resume at once: nobody waits crosswise."""

import asyncio
from random import Random
from urllib.parse import urlsplit

import asyncpg
import pytest

from app.sessions import totals_records
from app.sessions.merge import SessionMerges
from tests.support.asgi import Client, Service, serving, settings_in
from tests.support.sender import Tus

pytestmark = [pytest.mark.slow, pytest.mark.asyncio]

UPLOADS = "/api/ingestion/uploads"
FORM = {"Content-Type": "multipart/form-data; boundary=b"}
FILES = b"".join(b'--b\r\nContent-Disposition: form-data; name=f; filename="%d"\r\n\r\nx\r\n' % n for n in range(3))


@pytest.fixture
def database_url(postgres):
    """Who waits crosswise is found out at once, before anybody gives up waiting."""
    url = postgres.create_database()
    postgres.execute(f"ALTER DATABASE {url.rpartition('/')[2]} SET deadlock_timeout = '5ms'")
    yield url
    postgres.drop_database(url)


async def put(client: Client) -> list[int]:
    return [(await client.put("a", b"x")).status]


async def form(client: Client) -> list[int]:
    return [(await client.post(UPLOADS, FILES + b"--b--\r\n", headers=FORM)).status]


async def keyed(client: Client, key: str = '"a key"') -> list[int]:
    return [(await client.put("b", b"y", headers={"Idempotency-Key": key})).status]


async def resumable(client: Client) -> list[int]:
    made = await client.post(UPLOADS, headers=Tus.create("c", 4))
    if made.status != 201:
        return [made.status]
    path = urlsplit(made["location"]).path
    steps = [
        await client.request("PATCH", path, headers=Tus.append(offset, last=offset == 2), body=b"zz")
        for offset in (0, 2)
    ]
    return [made.status, *(step.status for step in steps)]


async def cancelled(client: Client) -> list[int]:
    made = await client.post(UPLOADS, headers=Tus.create("d", 4))
    if made.status != 201:
        return [made.status]
    return [(await client.request("DELETE", urlsplit(made["location"]).path, headers=Tus.ask())).status]


async def deleted(client: Client) -> list[int]:
    made = await client.put("e", b"x")
    if made.status != 201:
        return [made.status]
    return [(await client.delete(f"/api/ingestion/files/{made.json()['id']}")).status]


async def test_transactions_of_two_services_never_deadlock(tmp_path, database_url, monkeypatch):
    monkeypatch.setattr("app.sessions.merge.FIRST_SLICE", 2)
    settings = settings_in(tmp_path, database_url, session_quota="1TiB", session_quota_uploads=10**6)
    chance = Random(1)
    ways = [put, put, form, keyed, resumable, cancelled, deleted]
    statuses: set[int] = set()

    async def people(services: list[Service], rounds: int) -> None:
        for _ in range(rounds):
            first, second, third = (chance.choice(services).client() for _ in range(3))
            for client in (first, second, third):
                await client.put("first", b"x")
            codes = [(await client.post("/api/session/link")).json()["code"] for client in (first, second)]
            work = [way(client) for client in (first, second, third) for way in chance.sample(ways, 4)]
            # The third joins the second while that joins the first.
            for client, code in ((second, codes[0]), (third, codes[1])):
                work.append(join(client, code))
            chance.shuffle(work)
            for answers in await asyncio.gather(*work):
                statuses.update(answers)

    async def join(client: Client, code: str) -> list[int]:
        return [(await client.post("/api/session/join", f'{{"code": "{code}"}}'.encode())).status]

    async with serving(settings) as one, serving(settings) as other:
        await asyncio.gather(*(people([one, other], 4) for _ in range(6)))
        for service in (one, other):
            await SessionMerges(service.state["db"], now_us=service.state["now_us"]).finish()
        wrong = [session_id async for session_id in totals_records.recount(one.state["db"])]
    watcher = await asyncpg.connect(database_url)
    deadlocks = await watcher.fetchval("SELECT deadlocks FROM pg_stat_database WHERE datname = current_database()")
    await watcher.close()
    assert deadlocks == 0
    assert wrong == []
    assert statuses <= {200, 201, 204, 401, 403, 404, 409}
