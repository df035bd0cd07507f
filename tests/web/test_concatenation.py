"""A concatenation that is asked for again, because its answer was lost, is the one that was made."""

import asyncio
from contextlib import AsyncExitStack
from pathlib import Path

import pytest

from app.resumables import assembly, concatenation
from tests.support.asgi import Answer, Client, Service, serving, settings_in
from tests.support.unreliable import until
from tests.web.test_tus import CHUNK, TUS, UPLOADS, listed

pytestmark = pytest.mark.asyncio(loop_scope="module")


async def part(client: Client, content: bytes) -> str:
    fields = {**CHUNK, "Upload-Concat": "partial", "Upload-Length": str(len(content))}
    return (await client.post(UPLOADS, content, headers=fields))["location"]


async def concatenate(client: Client, *urls: str, **more: str) -> Answer:
    named = {name.replace("_", "-"): value for name, value in more.items()}
    answer = await client.post(UPLOADS, headers={**TUS, "Upload-Concat": f"final;{' '.join(urls)}", **named})
    assert answer.status == 201, answer.body
    return answer


async def finals(client: Client) -> list[str]:
    return [item["status"] for item in await listed(client)]


async def test_the_same_concatenation_twice_is_one_upload(service: Service) -> None:
    client = service.client()
    one, two = await part(client, b"hello, "), await part(client, b"world")
    first = await concatenate(client, one, two, Upload_Metadata="filename YQ==")
    again = await concatenate(client, one, two, Upload_Metadata="filename YQ==")
    for name in ("location", "repr-digest", "link", "upload-offset"):
        assert again[name] == first[name]
    assert len(await listed(client)) == 1
    assert len(first["location"].rpartition("/")[2]) >= 22


async def test_another_order_or_name_or_digest_is_another_upload(service: Service) -> None:
    client = service.client()
    one, two = await part(client, b"a"), await part(client, b"a")
    made = [
        await concatenate(client, one, two),
        await concatenate(client, two, one),
        await concatenate(client, one, two, one),
        await concatenate(client, one, two, Upload_Metadata="filename YQ=="),
    ]
    assert len({answer["location"] for answer in made}) == len(made) == len(await listed(client))


async def test_a_concatenation_is_found_again_by_its_own_session_or_by_none(service: Service) -> None:
    owner = service.client()
    url = await part(owner, b"x")
    by_owner = await concatenate(owner, url)
    by_nobody = await concatenate(service.client(), url)
    assert by_nobody["location"] != by_owner["location"]
    assert (await concatenate(service.client(), url))["location"] == by_nobody["location"]
    assert (await concatenate(owner, url))["location"] == by_owner["location"]


async def test_a_concatenation_that_waits_for_its_parts_is_found_again(service: Service) -> None:
    client = service.client()
    unfinished = (await client.post(UPLOADS, headers={**TUS, "Upload-Concat": "partial", "Upload-Length": "2"}))[
        "location"
    ]
    first = await concatenate(client, unfinished)
    assert (await concatenate(client, unfinished))["location"] == first["location"]
    fields = {**CHUNK, "Upload-Offset": "0"}
    assert (await client.request("PATCH", unfinished, headers=fields, body=b"hi")).status == 204
    assert (await concatenate(client, unfinished))["location"] == first["location"]
    assert len(await listed(client)) == 1


async def test_a_cancelled_or_deleted_concatenation_is_made_anew(service: Service) -> None:
    client = service.client()
    url = (await client.post(UPLOADS, headers={**TUS, "Upload-Concat": "partial", "Upload-Length": "2"}))["location"]
    cancelled = await concatenate(client, url)
    assert (await client.request("DELETE", cancelled["location"], headers=TUS)).status == 204
    anew = await concatenate(client, url)
    assert anew["location"] != cancelled["location"]
    assert (await concatenate(client, url))["location"] == anew["location"]
    whole = await part(client, b"x")
    done = await concatenate(client, whole)
    newest = (await listed(client))[0]
    assert (await client.delete(f"/api/ingestion/files/{newest['id']}")).status == 204
    assert (await concatenate(client, whole))["location"] != done["location"]


@pytest.mark.slow
async def test_one_concatenation_is_made_of_many_simultaneous_requests(tmp_path: Path, database_url: str) -> None:
    async with AsyncExitStack() as stack:
        settings = settings_in(tmp_path, database_url, session_quota_uploads=3)
        workers = [await stack.enter_async_context(serving(settings)) for _ in range(2)]
        client = workers[0].client()
        url = await part(client, b"x")
        others = [worker.client() for worker in workers for _ in range(10)]
        for other in others:
            other.cookies.update(client.cookies)
        made = await asyncio.gather(*(concatenate(other, url) for other in others))
        assert len({answer["location"] for answer in made}) == 1
        assert await finals(client) == ["completed"]
        summary = await client.get("/api/ingestion/history/summary")
        assert summary.json()["quota"]["uploads"]["used"] == 1


# --- how many, and of how many bytes


async def test_a_part_is_in_a_limited_number_of_concatenations(
    service: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(concatenation, "MAX_OF_PART", 3)
    client = service.client()
    url, other = await part(client, b"x"), await part(client, b"y")
    made = [await concatenate(client, url, Upload_Metadata=f"n{number}") for number in range(3)]
    for attempt in ("n3", "n4"):
        fields = {**TUS, "Upload-Concat": f"final;{other} {url}", "Upload-Metadata": attempt}
        (await client.post(UPLOADS, headers=fields)).refused(400, "bad_request")
    assert (await concatenate(client, url, Upload_Metadata="n0"))["location"] == made[0]["location"]
    assert (await concatenate(client, other)).status == 201
    assert len(await listed(client)) == 4  # nothing is left of those that were refused


async def test_a_session_has_a_limited_number_of_waiting_concatenations(
    service: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(concatenation, "MAX_WAITING_OF_SESSION", 2)
    client = service.client()
    begun = {**TUS, "Upload-Concat": "partial", "Upload-Length": "1"}
    urls = [(await client.post(UPLOADS, headers=begun))["location"] for _ in range(3)]
    waiting = [await concatenate(client, url) for url in urls[:2]]
    refused = await client.post(UPLOADS, headers={**TUS, "Upload-Concat": f"final;{urls[2]}"})
    assert refused.refused(429, "rate_limited")["limit"] == 2
    assert await finals(client) == ["uploading"] * 2
    assert (await client.request("DELETE", waiting[0]["location"], headers=TUS)).status == 204
    assert (await concatenate(client, urls[2])).status == 201


async def test_a_part_is_not_repeated_for_many_bytes(service: Service, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(assembly, "MAX_REPEATED_BYTES", 10)
    client = service.client()
    url = await part(client, b"hello")
    assert (await concatenate(client, url, url, url)).status == 201
    refused = await client.post(UPLOADS, headers={**TUS, "Upload-Concat": f"final;{url} {url} {url} {url}"})
    refused.refused(400, "bad_request")
    # How long it will be is not known yet: it fails when it is.
    begun = {**TUS, "Upload-Concat": "partial", "Upload-Defer-Length": "1"}
    growing = (await client.post(UPLOADS, headers=begun))["location"]
    waits = await concatenate(client, growing, growing, growing, growing)
    fields = {**CHUNK, "Upload-Offset": "0", "Upload-Length": "5"}
    assert (await client.request("PATCH", growing, headers=fields, body=b"hello")).status == 204
    await until(lambda: ended(client, waits["location"]))
    assert (await listed(client))[0]["error"]["code"] == "bad_request"


async def ended(client: Client, url: str) -> bool:
    return (await client.request("HEAD", url, headers=TUS)).status == 410
