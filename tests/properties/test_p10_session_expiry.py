"""Property 10. An expired session opens nothing; sweeping it keeps its records."""

from collections.abc import AsyncIterator
from datetime import timedelta
from pathlib import Path

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from app.history import HistoryQuery
from app.maintenance.sweep import Sweeper
from app.maintenance.verify import verify
from app.sessions import records as session_records
from app.sessions.last_seen import SEEN_EVERY_US
from app.uploads import records as upload_records
from tests.support.asgi import Client, Service, serving, settings_in
from tests.support.unreliable import Time, sweep_alone

HISTORY = "/api/ingestion/history"
HOUR = 3600
MAX_AGE = 24 * HOUR


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Time:
    clock = Time()
    monkeypatch.setattr("app.main.now_us", clock)
    return clock


@pytest.fixture
async def service(tmp_path: Path, database_url: str, clock: Time) -> AsyncIterator[Service]:
    settings = settings_in(tmp_path, database_url, session_max_age=timedelta(seconds=MAX_AGE))
    async with serving(settings) as running:
        yield running


async def statuses(client: Client, upload_id: str) -> set[int]:
    """What every question gets for an answer."""
    answers = [
        await client.get(HISTORY),
        await client.get(f"{HISTORY}/summary"),
        await client.get(f"{HISTORY}/{upload_id}"),
        await client.get(f"/api/ingestion/files/{upload_id}"),
        await client.get("/api/session"),
    ]
    return {answer.status for answer in answers}


pauses = st.integers(1, 2 * MAX_AGE) | st.sampled_from([59, 60, 61, HOUR, MAX_AGE - 1, MAX_AGE, MAX_AGE + 1])


@settings(max_examples=settings.default.max_examples // 4)  # each sweeps several times
@given(pauses=st.lists(st.tuples(pauses, st.booleans()), min_size=1, max_size=4))
@example(pauses=[(MAX_AGE, False)])
@example(pauses=[(MAX_AGE - 1, False), (MAX_AGE - 1, True), (MAX_AGE, True)])
@pytest.mark.slow
async def test_a_session_lives_as_long_as_it_is_used_and_no_longer(
    service: Service, clock: Time, pauses: list[tuple[int, bool]]
) -> None:
    """The sweep comes by in some pauses: who is expired and who is not does not depend on it."""
    sessions, db = service.state["sessions"], service.state["db"]
    client = service.client()
    upload = (await client.put("a.txt", b"content")).json()
    session_id = (await client.get("/api/session")).json()["id"]
    cookies = dict(client.cookies)
    seen = clock()
    alive = True
    for seconds, swept in pauses:
        clock.pass_by(seconds=seconds)
        alive = alive and clock() < seen + MAX_AGE * 1_000_000
        if swept:
            await sweep_alone(Sweeper(service.state["storage"], db, now_us=clock))
        client.cookies = dict(cookies)
        assert await statuses(client, upload["id"]) == ({200} if alive else {401})
        if alive:
            if clock() - seen >= SEEN_EVERY_US:
                seen = clock()
            await sessions.last_seen.flush()
        else:
            for path in ("rotate", "link"):
                (await client.post(f"/api/session/{path}")).refused(401, "no_session")
            (await client.delete(f"/api/ingestion/files/{upload['id']}")).refused(401, "no_session")

    clock.pass_by(seconds=MAX_AGE)
    await sweep_alone(Sweeper(service.state["storage"], db, now_us=clock))
    recorded = await session_records.find_session(db, session_id)
    assert recorded is not None
    assert recorded.ended_at is not None
    page = await upload_records.list_uploads(db, session_id, HistoryQuery(), after=None, page_size=9)
    assert [each.id for each in page.uploads] == [upload["id"]]
    assert service.path_of(upload["id"]).read_bytes() == b"content"

    client.cookies = dict(cookies)
    again = await client.put("b.txt", b"content")
    assert again.status == 201
    assert client.cookies != cookies
    items = (await client.get(HISTORY)).json()["items"]
    assert [item["filename"] for item in items] == ["b.txt"]


async def test_everything_that_expired_is_sound(service: Service, clock: Time) -> None:
    for number in range(3):
        await service.client().put(f"{number}.txt", b"content")
    clock.pass_by(seconds=MAX_AGE)
    await sweep_alone(Sweeper(service.state["storage"], service.state["db"], now_us=clock))
    sessions = await session_records.list_sessions(service.state["db"], 9)
    assert [session.ended_at is not None for session in sessions] == [True] * 3
    found = await verify(service.state["storage"], service.state["db"])
    assert (found.sound, found.files) == (True, 3)
