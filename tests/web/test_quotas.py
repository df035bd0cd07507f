"""What one session may send at once, and keep: quotas and their bookkeeping, by every way in, on both databases."""

import asyncio
import hashlib
import re
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import pytest

from app import main
from app.resumables import records as resumable_records
from app.uploads import records as upload_records
from tests.support.asgi import Answer, Client, HangUp, Service, serving, settings_in
from tests.support.strategies import form

UPLOADS = "/api/ingestion/uploads"
TUS = {"Tus-Resumable": "1.0.0"}
CHUNK = {**TUS, "Content-Type": "application/offset+octet-stream"}


@pytest.fixture
async def stack(database_url: str) -> AsyncIterator[AsyncExitStack]:  # which is to be there longer
    async with AsyncExitStack() as opened:
        yield opened


async def service(stack: AsyncExitStack, directory: Path, database_url: str, **limits: Any) -> Service:
    """One more process, on the same store and database."""
    return await stack.enter_async_context(serving(settings_in(directory, database_url, **limits)))


async def a_session(service: Service) -> Client:
    client = service.client()
    assert (await client.post("/api/session")).status == 200
    return client


def again(client: Client, service: Service) -> Client:
    """The same session, at another process."""
    other = service.client()
    other.cookies = client.cookies
    return other


async def quota(client: Client) -> tuple[Any, Any]:
    """Bytes and uploads that the session has used of its quota."""
    answer = (await client.get("/api/ingestion/history/summary")).json()["quota"]
    for each in (answer, answer["uploads"]):
        assert each["left"] == (None if each["limit"] is None else max(0, each["limit"] - each["used"]))
    return answer["used"], answer["uploads"]["used"]


async def settled(client: Client, *, used: tuple[int, int]) -> None:
    """What is given back is free soon; nobody waits for it but we."""
    async with asyncio.timeout(20):
        while await quota(client) != used:  # noqa: ASYNC110  # the database alone knows
            await asyncio.sleep(0.01)


async def send_form(client: Client, *contents: bytes) -> Answer:
    body, kind = form([(f"{number}.bin", None, content) for number, content in enumerate(contents)])
    return await client.post(UPLOADS, body, headers={"Content-Type": kind})


async def create(client: Client, length: int | None, **headers: str) -> Answer:
    given = {"Upload-Length": str(length)} if length is not None else {"Upload-Defer-Length": "1"}
    return await client.post(
        UPLOADS, headers={**TUS, **given, **{name.replace("_", "-"): value for name, value in headers.items()}}
    )


async def patch(client: Client, url: str, offset: int, body: Any, **headers: str) -> Answer:
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    return await client.request("PATCH", url, headers={**CHUNK, "Upload-Offset": str(offset), **named}, body=body)


# --- quotas


@pytest.mark.parametrize("way", ["raw", "form", "chunked", "tus"])
async def test_the_quota_is_used_to_the_last_byte(
    stack: AsyncExitStack, tmp_path: Path, database_url: str, way: str
) -> None:
    client = await a_session(running := await service(stack, tmp_path, database_url, session_quota=1000))

    async def chunks(content: bytes) -> AsyncIterator[bytes]:
        for at in range(0, len(content), 100):
            yield content[at : at + 100]

    async def send(content: bytes) -> Answer:
        if way == "form":
            return await send_form(client, content[:10], content[10:])
        if way == "tus":
            answer = await create(client, len(content))
            return answer if answer.status != 201 else await patch(client, answer["location"], 0, content)
        return await client.put("f", chunks(content) if way == "chunked" else content)

    assert (await send(b"x" * 600)).status in {201, 204}
    problem = (await send(b"x" * 401)).refused(413, "quota_exceeded")
    assert (problem["limit"], problem["unit"]) == (1000, "bytes")
    assert problem["used"] + problem["asked"] > 1000
    await settled(client, used=(600, 2 if way == "form" else 1))
    assert (await send(b"x" * 400)).status in {201, 204}
    assert await quota(client) == (1000, 4 if way == "form" else 2)
    (await client.put("f", b"x")).refused(413, "quota_exceeded")
    assert (await client.put("empty", b"")).status == 201
    assert running.staged() == []


async def test_uploads_are_counted_as_well_as_bytes(stack: AsyncExitStack, tmp_path: Path, database_url: str) -> None:
    running = await service(stack, tmp_path, database_url, session_quota_uploads=3)
    client = await a_session(running)
    assert (await send_form(client, b"a", b"b")).status == 201
    problem = (await send_form(client, b"c", b"")).refused(413, "quota_exceeded")
    assert (problem["used"], problem["limit"], problem["unit"]) == (3, 3, "uploads")
    await settled(client, used=(2, 2))
    assert (await client.put("c", b"c")).status == 201
    for refused in (await client.put("d", b""), await send_form(client, b"d"), await create(client, 0)):
        refused.refused(413, "quota_exceeded")
    [other] = [await a_session(running)]
    assert (await other.put("d", b"d")).status == 201  # the quota is each session's own


async def test_quota_of_a_deleted_upload_is_free_again(
    stack: AsyncExitStack, tmp_path: Path, database_url: str
) -> None:
    client = await a_session(await service(stack, tmp_path, database_url, session_quota=10))
    made = (await client.put("f", b"x" * 10)).json()
    (await client.put("f", b"x")).refused(413, "quota_exceeded")
    assert (await client.delete(made["links"]["content"])).status == 204
    assert await quota(client) == (0, 0)
    assert (await client.put("f", b"x" * 10)).status == 201


async def test_a_damaged_upload_counts_again_when_it_is_repaired(
    stack: AsyncExitStack, tmp_path: Path, database_url: str
) -> None:
    client = await a_session(running := await service(stack, tmp_path, database_url, session_quota=100))
    made = (await client.put("f", b"x" * 60)).json()
    await upload_records.fail_uploads(running.state["db"], [made["id"]], "damaged", "other bytes")
    assert await quota(client) == (0, 0)
    await upload_records.repair_uploads(running.state["db"], [made["id"]])
    assert await quota(client) == (60, 1)
    (await client.put("f", b"x" * 41)).refused(413, "quota_exceeded")


async def test_an_upload_over_the_quota_is_refused_before_the_body_is_asked_for(
    stack: AsyncExitStack, tmp_path: Path, database_url: str
) -> None:
    client = await a_session(await service(stack, tmp_path, database_url, session_quota=10, session_quota_uploads=1))
    answer = await client.put("f", b"x" * 11, headers={"Expect": "100-continue"})
    answer.refused(413, "quota_exceeded")
    assert answer.asked == 0
    assert (await client.put("f", b"x" * 10)).status == 201
    body, kind = form([("f", None, b"")])
    answer = await client.post(UPLOADS, body, headers={"Content-Type": kind, "Expect": "100-continue"})
    answer.refused(413, "quota_exceeded")
    assert answer.asked == 0


@pytest.mark.parametrize("way", ["raw", "form", "tus"])
async def test_fifty_uploads_at_once_get_the_last_places_and_no_more(
    stack: AsyncExitStack, tmp_path: Path, database_url: str, way: str
) -> None:
    """F36, over two processes."""
    limits = {"session_quota": 7000, "session_quota_uploads": 9}
    workers = [await service(stack, tmp_path, database_url, **limits) for _ in range(2)]
    client = await a_session(workers[0])

    async def send(number: int) -> int:
        at = again(client, workers[number % 2])
        if way == "form":
            return (await send_form(at, b"x" * 1000)).status
        if way == "tus":
            answer = await create(at, 1000)
            if answer.status == 201:
                assert (await patch(at, answer["location"], 0, b"x" * 1000)).status == 204
            return answer.status
        return (await at.put("f", b"x" * 1000)).status

    statuses = await asyncio.gather(*(send(number) for number in range(50)))
    assert sorted(statuses) == [201] * 7 + [413] * 43
    await settled(client, used=(7000, 7))
    assert len(workers[0].files()) == 7


async def test_broken_uploads_release_their_quota(stack: AsyncExitStack, tmp_path: Path, database_url: str) -> None:
    client = await a_session(running := await service(stack, tmp_path, database_url, session_quota=100_000))

    async def hang_up() -> AsyncIterator[bytes]:
        yield b"x" * 50_000
        raise HangUp

    body, kind = form([("f", None, b"x" * 90_000)])
    await client.put("hung up", hang_up(), headers={"Content-Length": "90000"})
    await client.put("hung up", hang_up())
    await client.post(UPLOADS, body, headers={"Content-Type": kind}, hang_up_after=0)
    wrong = {"Repr-Digest": f"sha-256=:{'A' * 43}=:"}
    (await client.put("wrong", b"x" * 90_000, headers=wrong)).refused(400, "digest_mismatch")
    (await client.post(UPLOADS, body[:-9], headers={"Content-Type": kind})).refused(400, "malformed_form")
    await settled(client, used=(0, 0))
    assert running.staged() == []
    assert (await client.put("f", b"x" * 100_000)).status == 201


# --- uploads in several requests


async def test_an_upload_in_several_requests_has_its_place_from_its_creation_to_its_end(
    stack: AsyncExitStack, tmp_path: Path, database_url: str
) -> None:
    client = await a_session(await service(stack, tmp_path, database_url, session_quota=1000, session_quota_uploads=2))
    url = (await create(client, 700))["location"]
    assert await quota(client) == (700, 1)
    (await create(client, 301)).refused(413, "quota_exceeded")
    assert (await patch(client, url, 0, b"x" * 300)).status == 204
    assert await quota(client) == (700, 1)
    assert (await client.request("DELETE", url, headers=TUS)).status == 204
    assert await quota(client) == (0, 0)
    other = (await create(client, 1000))["location"]
    assert (await patch(client, other, 0, b"x" * 1000)).status == 204
    assert await quota(client) == (1000, 1)


@pytest.mark.slow
async def test_an_upload_of_unknown_length_is_granted_more_as_it_grows(
    stack: AsyncExitStack, tmp_path: Path, database_url: str
) -> None:
    client = await a_session(await service(stack, tmp_path, database_url, session_quota=1000))
    url = (await create(client, None))["location"]
    assert await quota(client) == (0, 1)
    assert (await patch(client, url, 0, b"x" * 600)).status == 204

    async def endless() -> AsyncIterator[bytes]:
        while True:
            yield b"x" * 100

    (await patch(client, url, 600, b"x" * 401)).refused(413, "quota_exceeded")
    (await patch(client, url, 600, endless())).refused(413, "quota_exceeded")
    assert (await client.request("HEAD", url, headers=TUS))["upload-offset"] == "1000"
    assert (await patch(client, url, 1000, b"", Upload_Length="1000")).status == 204
    assert await quota(client) == (1000, 1)


async def test_parts_count_once_with_their_concatenation(
    stack: AsyncExitStack, tmp_path: Path, database_url: str
) -> None:
    client = await a_session(await service(stack, tmp_path, database_url, session_quota=1000, session_quota_uploads=1))
    parts = []
    for _ in range(2):
        url = (await create(client, 500, Upload_Concat="partial"))["location"]
        assert (await patch(client, url, 0, b"x" * 500)).status == 204
        parts.append(url)
    assert await quota(client) == (1000, 0)
    (await create(client, 1, Upload_Concat="partial")).refused(413, "quota_exceeded")
    concat = {**TUS, "Upload-Concat": f"final;{' '.join(parts)}"}
    final = await client.post(UPLOADS, headers=concat)
    assert final.status == 201
    assert await quota(client) == (1000, 1)
    another = await client.post(UPLOADS, headers={**concat, "Upload-Metadata": "another"})
    assert another.status == 410  # the parts went with what they were for
    assert await quota(client) == (1000, 1)


async def test_a_quota_is_not_passed_by_parts_again_and_again(
    stack: AsyncExitStack, tmp_path: Path, database_url: str
) -> None:
    client = await a_session(await service(stack, tmp_path, database_url, session_quota=1000))
    kept = (await create(client, 300, Upload_Concat="partial"))["location"]
    assert (await patch(client, kept, 0, b"x" * 300)).status == 204
    for _ in range(3):
        used = (await create(client, 600, Upload_Concat="partial"))["location"]
        assert (await patch(client, used, 0, b"x" * 600)).status == 204
        final = await client.post(UPLOADS, headers={**TUS, "Upload-Concat": f"final;{used}"})
        assert final.status == 201
        record = final["link"].partition(">")[0].rpartition("/")[2]
        assert (await client.delete(f"/api/ingestion/files/{record}")).status == 204
        on_disk = sum(path.stat().st_size for path in (tmp_path / "store" / "partial").iterdir())
        assert await quota(client) == (on_disk, 0)
        assert on_disk == 300


# --- over time


async def test_a_crashed_process_holds_quota_until_nobody_renews_it(
    stack: AsyncExitStack, tmp_path: Path, database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """F18, as far as quotas go: what a process held that is gone is free a lease later."""
    running = await service(stack, tmp_path, database_url, session_quota=1000)
    client = await a_session(running)
    quotas = running.state["ingest"].quotas
    assert quotas is not None
    await quotas.grant("of a crash", await session_id(client), uploads=1, size=1000)
    (await client.put("f", b"x")).refused(413, "quota_exceeded")
    monkeypatch.setattr("app.quotas.LEASE_SECONDS", 0.0)  # time passes
    task = asyncio.create_task(quotas.run())
    await settled(client, used=(0, 0))
    task.cancel()
    monkeypatch.undo()
    assert (await client.put("f", b"x" * 1000)).status == 201


async def session_id(client: Client) -> str:
    found: str = (await client.get("/api/session")).json()["id"]
    return found


async def test_uploads_from_before_the_quota_count(stack: AsyncExitStack, tmp_path: Path, database_url: str) -> None:
    async with serving(settings_in(tmp_path, database_url)) as before:
        client = await a_session(before)
        assert (await client.put("f", b"x" * 900)).status == 201
        url = (await create(client, 100))["location"]
        assert await quota(client) == (900, 1)
    async with serving(settings_in(tmp_path, database_url, session_quota=1000)) as running:
        client = again(client, running)
        (await client.put("f", b"x" * 101)).refused(413, "quota_exceeded")
        assert (await patch(client, url, 0, b"x" * 100)).status == 204
        assert await quota(client) == (1000, 2)
    async with serving(settings_in(tmp_path, database_url)) as after:
        client = again(client, after)
        assert (await client.put("f", b"x" * 500)).status == 201
    async with serving(settings_in(tmp_path, database_url, session_quota=2000)) as running:
        client = again(client, running)
        (await client.put("f", b"x" * 501)).refused(413, "quota_exceeded")
        assert (await client.put("f", b"x" * 500)).status == 201


async def test_a_session_that_joins_another_brings_what_it_has(
    stack: AsyncExitStack, tmp_path: Path, database_url: str
) -> None:
    running = await service(stack, tmp_path, database_url, session_quota=1000)
    one, two = await a_session(running), await a_session(running)
    assert (await one.put("f", b"x" * 600)).status == 201
    assert (await two.put("f", b"x" * 100)).status == 201
    assert (await create(two, 200)).status == 201
    code = (await one.post("/api/session/link")).json()["code"]
    body = b'{"code": "%s"}' % code.encode()
    assert (await two.post("/api/session/join", body, headers={"Content-Type": "application/json"})).status == 200
    assert await quota(one) == await quota(two) == (900, 3)
    (await two.put("f", b"x" * 101)).refused(413, "quota_exceeded")


# --- how many at once, and what answers say


async def test_a_session_sends_a_limited_number_of_uploads_at_once(
    stack: AsyncExitStack, tmp_path: Path, database_url: str
) -> None:
    running = await service(stack, tmp_path, database_url, session_concurrent_uploads=2)
    client = await a_session(running)
    url = (await create(client, 2))["location"]
    waits, goes_on = asyncio.Queue[None](), asyncio.Event()

    async def body() -> AsyncIterator[bytes]:
        yield b"x"
        waits.put_nowait(None)
        await goes_on.wait()

    under_way = [asyncio.create_task(client.put("f", body())) for _ in range(2)]
    for _ in under_way:
        await waits.get()
    for refused in (await client.put("f", b"x"), await send_form(client, b"x")):
        assert refused.refused(429, "rate_limited")["limit"] == 2
        assert refused["retry-after"] == "1"
        assert refused["ratelimit"] == '"at-once";r=0'
    # Clients of tus give up for a 4xx, and this will pass.
    (await patch(client, url, 0, b"xx")).refused(503, "unavailable")
    key_hash = hashlib.sha256(url.rpartition("/")[2].encode()).hexdigest()
    found = await resumable_records.find(running.state["db"], key_hash)
    assert found is not None
    assert found.holder is None  # what was refused keeps nothing that it had taken
    assert (await running.client().put("f", b"x")).status == 201  # others are not hindered
    goes_on.set()
    assert [(await each).status for each in under_way] == [201, 201]
    assert (await patch(client, url, 0, b"xx")).status == 204


async def test_answers_say_what_is_limited_and_left(stack: AsyncExitStack, tmp_path: Path, database_url: str) -> None:
    limits = {"session_concurrent_uploads": 4, "session_quota": 1000, "session_quota_uploads": 10}
    client = await a_session(await service(stack, tmp_path, database_url, **limits))
    answer = await client.put("f", b"x" * 300)
    assert answer["ratelimit-policy"] == (
        '"at-once";q=4;qu="concurrent-requests", "quota";q=1000;qu="content-bytes", "quota-uploads";q=10;qu="uploads"'
    )
    assert answer["ratelimit"] == '"at-once";r=4, "quota";r=700, "quota-uploads";r=9'
    refused = await send_form(client, b"x" * 701)
    refused.refused(413, "quota_exceeded")
    assert re.fullmatch(r'"at-once";r=4, "quota";r=700, "quota-uploads";r=[89]', refused["ratelimit"])
    assert (await create(client, 700))["ratelimit"].startswith('"at-once";r=4, "quota";r=0')


async def test_a_service_without_limits_says_and_counts_nothing(
    stack: AsyncExitStack, tmp_path: Path, database_url: str
) -> None:
    running = await service(stack, tmp_path, database_url)
    client = await a_session(running)
    answer = await client.put("f", b"x")
    assert answer.all("ratelimit") == answer.all("ratelimit-policy") == []
    assert running.state["ingest"].quotas is None
    assert await quota(client) == (1, 1)


async def test_a_database_that_is_away_refuses_instead_of_forgetting(
    stack: AsyncExitStack, tmp_path: Path, database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    running = await service(stack, tmp_path, database_url, session_quota=1000)
    client = await a_session(running)
    assert (await client.put("f", b"x" * 500)).status == 201
    transaction = running.state["db"].transaction

    async def away(*_: Any, **__: Any) -> Any:
        from app.errors import Unavailable

        raise Unavailable("away")

    with monkeypatch.context() as patched:
        patched.setattr(running.state["db"], "transaction", away)
        (await client.put("f", b"x")).refused(503, "unavailable")
    assert running.state["db"].transaction == transaction
    assert (await client.put("f", b"x" * 500)).status == 201
    await settled(client, used=(1000, 2))


async def test_a_command_that_knows_of_no_quota_forgets_nothing_of_a_running_service(
    stack: AsyncExitStack, tmp_path: Path, database_url: str
) -> None:
    client = await a_session(running := await service(stack, tmp_path, database_url, session_quota=1000))
    assert (await create(client, 900)).status == 201
    without = settings_in(tmp_path, database_url)
    async with main.receiving(without, running.state["storage"], running.state["db"]) as ways_in:  # as `waybill sweep`
        assert ways_in.quotas is None
    assert await quota(client) == (900, 1)
    (await client.put("f", b"x" * 101)).refused(413, "quota_exceeded")
