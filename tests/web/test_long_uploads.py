"""An upload that is under way for long: its session may join another, or not be used otherwise."""

import asyncio
from collections.abc import AsyncIterator, Mapping
from pathlib import Path
from typing import Any

import pytest

from app import main
from app.idempotency import records as key_records
from app.ids import now_us
from app.maintenance.sweep import Sweeper
from app.sessions import records as session_records
from tests.support.asgi import Answer, Client, Service, serving, settings_in
from tests.support.unreliable import sweep_alone, until

HISTORY = "/api/ingestion/history"
SESSION = "/api/session"
UPLOADS = "/api/ingestion/uploads"
HOUR_US = 3_600_000_000
FORM = {"Content-Type": "multipart/form-data; boundary=b"}
KEYED = {"Idempotency-Key": "key"}
TUS = {"Tus-Resumable": "1.0.0"}
WAYS: dict[str, tuple[Mapping[str, str], bytes, bytes]] = {
    "raw": ({}, b"hello, ", b"waybill"),
    "form": (FORM, b'--b\r\nContent-Disposition: form-data; name="f"; filename="a"\r\n\r\nhello', b"\r\n--b--\r\n"),
}
WAYS |= {f"{way} with a key": ({**headers, **KEYED}, *body) for way, (headers, *body) in WAYS.items()}


class Held:
    """A request whose body waits in its middle until `go_on`."""

    def __init__(self, client: Client, target: str, headers: Mapping[str, str], first: bytes, last: bytes) -> None:
        self.begun, self._more = asyncio.Event(), asyncio.Event()

        async def body() -> AsyncIterator[bytes]:
            yield first
            self.begun.set()
            await self._more.wait()
            yield last

        method = "PUT" if target.startswith(f"{UPLOADS}/") else "POST"
        method = "PATCH" if "Upload-Offset" in headers else method
        self._answer = asyncio.create_task(client.request(method, target, headers=headers, body=body()))

    async def go_on(self) -> Answer:
        self._more.set()
        return await self._answer


async def upload_under_way(client: Client, way: str) -> Held:
    headers, first, last = WAYS[way]
    held = Held(client, f"{UPLOADS}/a" if way.startswith("raw") else UPLOADS, headers, first, last)
    await held.begun.wait()
    return held


async def session(service: Service) -> Client:
    client = service.client()
    assert (await client.post(SESSION)).status == 200
    return client


async def join(client: Client, other: Client) -> None:
    """`client` joins the session of `other`."""
    code = (await other.post(f"{SESSION}/link")).json()["code"]
    assert (await client.post(f"{SESSION}/join", b'{"code": "%s"}' % code.encode())).status == 200


async def names(client: Client) -> list[str]:
    return [item["filename"] for item in (await client.get(HISTORY)).json()["items"]]


async def sweep(service: Service, *, hours: int) -> None:
    """Sweep as the service does so many hours from now."""
    state: Any = service.state
    then_us = now_us() + hours * HOUR_US
    await key_records.renew(state["db"], state["once"]._live, then_us)  # as it does every few seconds
    await sweep_alone(Sweeper(state["storage"], state["db"], now_us=lambda: then_us))


class Clock:
    """The service's clock, which a test moves, with what it does every few seconds done all the time."""

    def __init__(self) -> None:
        self.off_us = 0

    def __call__(self) -> int:
        return now_us() + self.off_us

    def pass_by(self, *, minutes: int) -> None:
        self.off_us += minutes * 60_000_000


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(main, "now_us", clock)
    monkeypatch.setattr("app.sessions.last_seen.FLUSH_SECONDS", 0.001)
    return clock


async def its_age_passes(service: Service, clock: Clock, session_id: str) -> None:
    """More than an hour in which nothing comes from the session but what is under way, and the sweep looks at it."""
    state: Any = service.state
    sweeper = Sweeper(state["storage"], state["db"], now_us=clock)
    for _ in range(4):
        clock.pass_by(minutes=20)

        async def seen() -> bool:
            found = await session_records.find_session(state["db"], session_id)
            assert found is not None
            assert found.ended_at is None
            return found.last_seen_at >= clock() - 60_000_000

        await until(seen)
        await sweep_alone(sweeper)


SHORT = {"session_max_age": "1h", "upload_idle_time": "1d"}


@pytest.mark.parametrize("way", ["raw", "form"])
async def test_an_upload_keeps_its_session_alive(tmp_path: Path, database_url: str, clock: Clock, way: str) -> None:
    async with serving(settings_in(tmp_path, database_url, **SHORT)) as service:
        client = await session(service)
        held = await upload_under_way(client, way)
        await its_age_passes(service, clock, (await client.get(SESSION)).json()["id"])
        answer = await held.go_on()
        assert answer.status == 201
        assert answer["set-cookie"]  # a browser's own would be over by now
        assert await names(client) == ["a"]


async def test_an_append_by_the_url_alone_keeps_the_session_alive(
    tmp_path: Path, database_url: str, clock: Clock
) -> None:
    async with serving(settings_in(tmp_path, database_url, **SHORT)) as service:
        client = await session(service)
        created = await client.post(UPLOADS, headers={**TUS, "Upload-Length": "2", "Upload-Metadata": "filename YQ=="})
        headers = {**TUS, "Upload-Offset": "0", "Content-Type": "application/offset+octet-stream"}
        held = Held(service.client(), created["location"], headers, b"a", b"b")
        await held.begun.wait()
        await its_age_passes(service, clock, (await client.get(SESSION)).json()["id"])
        assert (await held.go_on()).status == 204
        assert await names(client) == ["a"]


async def test_an_upload_keeps_alive_the_session_that_its_own_has_joined(
    tmp_path: Path, database_url: str, clock: Clock
) -> None:
    async with serving(settings_in(tmp_path, database_url, **SHORT)) as service:
        client, other = await session(service), await session(service)
        held = await upload_under_way(client, "raw")
        await join(client, other)
        await its_age_passes(service, clock, (await other.get(SESSION)).json()["id"])
        assert (await held.go_on()).status == 201
        assert await names(client) == await names(other) == ["a"]


async def test_the_late_answer_to_an_upload_takes_no_new_token_away(
    tmp_path: Path, database_url: str, clock: Clock
) -> None:
    async with serving(settings_in(tmp_path, database_url, **SHORT)) as service:
        client = await session(service)
        held = await upload_under_way(client, "raw")
        clock.pass_by(minutes=30)
        assert (await client.post(f"{SESSION}/rotate")).status == 200
        answer = await held.go_on()
        assert (answer.status, answer.all("set-cookie")) == (201, [])
        assert await names(client) == ["a"]


@pytest.mark.parametrize("way", ["raw", "form"])
async def test_a_session_that_begins_with_a_long_upload_lives_from_its_end(
    tmp_path: Path, database_url: str, clock: Clock, way: str
) -> None:
    async with serving(settings_in(tmp_path, database_url, **SHORT)) as service:
        client = service.client()
        held = await upload_under_way(client, way)
        clock.pass_by(minutes=240)
        assert (await held.go_on()).status == 201
        clock.pass_by(minutes=59)
        assert await names(client) == ["a"]


@pytest.mark.parametrize("way", WAYS)
async def test_an_upload_lands_where_its_session_went_days_ago(tmp_path: Path, database_url: str, way: str) -> None:
    async with serving(settings_in(tmp_path, database_url)) as service:
        client, other = await session(service), await session(service)
        held = await upload_under_way(client, way)
        await join(client, other)
        for days in (1, 2, 20):
            await sweep(service, hours=days * 24 + 1)
        answer = await held.go_on()
        assert answer.status == 201, answer.body
        assert await names(client) == await names(other) == ["a"]


async def test_the_row_of_a_session_goes_with_that_of_the_one_it_joined(tmp_path: Path, database_url: str) -> None:
    async with serving(settings_in(tmp_path, database_url)) as service:
        client, other = await session(service), await session(service)
        await join(client, other)
        assert (await client.delete(SESSION)).status == 204
        for _ in range(2):
            await sweep(service, hours=25)
        assert await service.state["db"].many("list_sessions", limit=9) == []
