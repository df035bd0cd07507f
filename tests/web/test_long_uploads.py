"""An upload that is under way for long: its session may join another, or not be used otherwise."""

import asyncio
from collections.abc import AsyncIterator, Mapping
from pathlib import Path
from typing import Any

import pytest

from app import claims
from app.main import now_us
from app.sweep import Sweeper
from tests.asgi import Answer, Client, Service, serving, settings_in

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
    await claims.renew(state["db"], state["once"]._live, then_us)  # as it does every few seconds
    await Sweeper(state["storage"], state["db"], now_us=lambda: then_us).once()


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
