"""What a worker remembers of a session is shown, and decides nothing: the session may have joined another elsewhere."""

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from tests.support.asgi import Client, Service, serving, settings_in

SESSION, HISTORY, UPLOADS = "/api/session", "/api/ingestion/history", "/api/ingestion/uploads"
TUS = {"Tus-Resumable": "1.0.0"}
CHUNK = {**TUS, "Content-Type": "application/offset+octet-stream"}


class World(NamedTuple):
    """Two services on one database, and a client that `there` remembers with the session that it had before."""

    here: Service
    there: Service
    client: Client
    """Its cookie opens the joined session by now; it asks `there`."""
    joined: Client
    """Has been in the joined session from the beginning; it asks `here`."""
    uploads: dict[str, str]
    """URLs of the client's, made in the session before."""


@pytest.fixture
async def world(tmp_path: Path, database_url: str, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[World]:
    monkeypatch.setattr("app.sessions.KNOWN_SECONDS", 1000.0)
    settings = settings_in(tmp_path, database_url)
    async with AsyncExitStack() as stack:
        here, there = [await stack.enter_async_context(serving(settings)) for _ in range(2)]
        joined, sister, client = here.client(), here.client(), there.client()
        assert (await joined.put("theirs", b"x")).status == 201
        made = {"file": (await sister.put("mine", b"x")).json()["links"]["content"]}
        for name, more in (("tus", {}), ("part", {"Upload-Concat": "partial"}), ("given up", {})):
            answer = await sister.post(UPLOADS, headers={**TUS, "Upload-Length": "2", **more})
            made[name] = answer["location"]
        code = await code_of(sister)
        assert (await client.post(f"{SESSION}/join", code)).status == 200
        assert (await client.get(HISTORY)).status == 200
        assert (await sister.post(f"{SESSION}/join", await code_of(joined))).status == 200
        yield World(here, there, client, joined, made)


async def code_of(client: Client) -> bytes:
    return b'{"code": "%s"}' % (await client.post(f"{SESSION}/link")).json()["code"].encode()


async def names(client: Client) -> set[str]:
    return {item["filename"] for item in (await client.get(HISTORY)).json()["items"]}


async def test_the_session_that_the_token_opens_now_is_ended(world: World) -> None:
    token = dict(world.client.cookies)
    assert (await world.client.delete(SESSION)).status == 204
    again = world.here.client()
    again.cookies = token
    (await again.get(HISTORY)).refused(401, "no_session")
    (await world.joined.get(HISTORY)).refused(401, "no_session")


async def test_a_code_is_one_of_the_session_that_the_token_opens_now(world: World) -> None:
    second = world.here.client()
    assert (await second.post(f"{SESSION}/join", await code_of(world.client))).status == 200
    assert "theirs" in await names(second)


async def test_a_rotated_token_opens_the_same_session_as_the_old_one_now(world: World) -> None:
    answer = await world.client.post(f"{SESSION}/rotate")
    assert answer.json()["id"] == (await world.joined.get(SESSION)).json()["id"]
    assert "theirs" in await names(world.client)


async def test_the_session_that_the_token_opens_now_joins_another(world: World) -> None:
    third = world.there.client()
    assert (await third.put("third", b"x")).status == 201
    assert (await world.client.post(f"{SESSION}/join", await code_of(third))).status == 200
    assert {"theirs", "mine", "third"} <= await names(third)


async def test_a_file_that_has_moved_is_deleted(world: World) -> None:
    assert (await world.client.delete(world.uploads["file"])).status == 204
    assert (await world.joined.get(world.uploads["file"])).status == 404


async def test_a_file_lands_where_the_session_went(world: World) -> None:
    assert (await world.client.put("new", b"x")).status == 201
    assert (await world.client.put("keyed", b"x", headers={"Idempotency-Key": "k"})).status == 201
    assert {"new", "keyed"} <= await names(world.joined)


async def test_a_resumable_upload_that_has_moved_goes_on(world: World) -> None:
    asked = await world.client.request("HEAD", world.uploads["tus"], headers=TUS)
    assert (asked.status, asked["upload-offset"]) == (200, "0")
    for offset in "01":
        headers = {**CHUNK, "Upload-Offset": offset}
        assert (await world.client.request("PATCH", world.uploads["tus"], headers=headers, body=b"x")).status == 204
    assert (await world.client.request("DELETE", world.uploads["given up"], headers=TUS)).status == 204


async def test_a_resumable_upload_can_be_created_with_its_bytes(world: World) -> None:
    headers = {**CHUNK, "Upload-Length": "1", "Upload-Metadata": "filename YQ=="}
    answer = await world.client.post(UPLOADS, b"x", headers=headers)
    assert (answer.status, answer["upload-offset"]) == (201, "1")
    assert "a" in await names(world.joined)


async def test_parts_that_have_moved_are_concatenated(world: World) -> None:
    part = world.uploads["part"]
    assert (
        await world.client.request("PATCH", part, headers={**CHUNK, "Upload-Offset": "0"}, body=b"xx")
    ).status == 204
    headers = {**TUS, "Upload-Concat": f"final;{part}", "Upload-Metadata": "filename YQ=="}
    assert (await world.client.post(UPLOADS, headers=headers)).status == 201
    assert "a" in await names(world.joined)


async def test_another_sessions_resumable_upload_is_not_found(world: World) -> None:
    stranger = world.there.client()
    assert (await stranger.post(SESSION)).status == 200
    for method, headers in (("HEAD", TUS), ("PATCH", {**CHUNK, "Upload-Offset": "0"}), ("DELETE", TUS)):
        answer: Any = await stranger.request(method, world.uploads["tus"], headers=headers)
        assert answer.status == 404
    headers = {**TUS, "Upload-Concat": f"final;{world.uploads['part']}"}
    (await stranger.post(UPLOADS, headers=headers)).refused(404, "not_found")
