"""A session's last place goes to one upload, whichever worker took it, and comes back from a crash. F36."""

import asyncio
import time

import pytest

from tests.support.service import PATIENCE, UPLOADS, Cut, ask, service

__all__ = ["service"]

pytestmark = pytest.mark.slow

QUICK_LEASE = "import app.quotas as quota\nquota.LEASE_SECONDS = 1.0\n"


def test_fifty_uploads_at_once_get_the_last_places_of_two_workers(service, database_url):
    running = service(workers=2, database_url=database_url, session_quota_uploads=7, session_quota=9000)
    headers = running.session()

    async def all_at_once() -> list[int]:
        sent = (ask(running.port, "PUT", f"{UPLOADS}/{number}", headers, bytes(1000)) for number in range(50))
        return [answer.status for answer in await asyncio.gather(*sent)]

    assert sorted(asyncio.run(all_at_once())) == [201] * 7 + [413] * 43
    with running.client(headers=headers) as client:
        assert len(client.get("/api/ingestion/history?status=completed").json()["items"]) == 7
        told = client.get("/api/ingestion/history/summary").json()["quota"]
    assert told == {"used": 7000, "limit": 9000, "left": 2000, "uploads": {"used": 7, "limit": 7, "left": 0}}


def test_quota_held_by_a_crashed_process_is_free_when_nobody_renews_it(service, database_url):
    """F18: three uploads stand half-way when the service is killed; it begins again with their places taken."""
    running = service(database_url=database_url, session_quota_uploads=3, change=QUICK_LEASE)
    headers = running.session()

    async def cut_off() -> None:
        killed = asyncio.Event()

        async def half():
            yield bytes(1000)
            await killed.wait()
            yield bytes(1000)

        held = [
            asyncio.create_task(ask(running.port, "PUT", f"{UPLOADS}/half", headers, half(), length=2000))
            for _ in range(3)
        ]
        while running.metric("waybill_received_bytes_total") < 3000:  # noqa: ASYNC110  # a process of its own
            await asyncio.sleep(0.05)
        assert (await ask(running.port, "PUT", f"{UPLOADS}/one-more", headers, b"")).status == 413
        running.kill()
        killed.set()
        assert all(isinstance(each, Cut) for each in await asyncio.gather(*held, return_exceptions=True))

    asyncio.run(cut_off())
    running.start()
    with running.client(headers=headers) as client:
        deadline = time.monotonic() + PATIENCE
        while client.put(f"{UPLOADS}/after", content=b"x").status_code != 201:
            assert time.monotonic() < deadline
            time.sleep(0.1)
        assert [client.put(f"{UPLOADS}/more", content=b"x").status_code for _ in range(3)] == [201, 201, 413]
