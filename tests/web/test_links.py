"""Share links: who has the URL gets the bytes, as often and as long as it says."""

import asyncio
import json
from typing import Any

import pytest

from tests.support.asgi import Answer, Client, Service, serving, settings_in

pytestmark = pytest.mark.asyncio(loop_scope="module")

FILES = "/api/ingestion/files"
CONTENT = bytes(range(256)) * 8


async def stored(client: Client, content: bytes = CONTENT, name: str = "shared.bin") -> str:
    answer = await client.put(name, content)
    assert answer.status == 201
    upload_id: str = answer.json()["id"]
    return upload_id


async def link_to(client: Client, upload_id: str, **bounds: Any) -> dict[str, Any]:
    answer = await client.post(f"{FILES}/{upload_id}/links", json.dumps(bounds).encode())
    assert answer.status == 201, answer.body
    made: dict[str, Any] = answer.json()
    assert answer["location"] == made["url"]
    return made


async def listed(client: Client, upload_id: str) -> list[dict[str, Any]]:
    items: list[dict[str, Any]] = (await client.get(f"{FILES}/{upload_id}/links")).json()["items"]
    return items


async def test_a_link_gives_the_bytes_to_whoever_has_its_url(service: Service) -> None:
    owner, stranger = service.client(), service.client()
    upload_id = await stored(owner)
    link = await link_to(owner, upload_id, label="for Ann")
    assert link["url"].startswith("/d/")
    assert (link["label"], link["expires_at"], link["max_downloads"], link["downloads"]) == ("for Ann", None, None, 0)
    got = await stranger.get(link["url"])
    mine = await owner.get(f"{FILES}/{upload_id}")
    assert (got.status, got.body) == (200, CONTENT)
    for name in ("etag", "content-disposition", "content-security-policy", "repr-digest", "referrer-policy"):
        assert got.all(name) == mine.all(name)
    assert stranger.cookies == {}
    part = await stranger.get(link["url"], headers={"Range": "bytes=10-19"})
    assert (part.status, part.body) == (206, CONTENT[10:20])
    head = await stranger.request("HEAD", link["url"])
    assert (head.status, head["content-length"]) == (200, str(len(CONTENT)))
    [shown] = await listed(owner, upload_id)
    assert (shown["id"], shown["downloads"]) == (link["id"], 2)
    assert "url" not in shown


async def test_a_link_gives_no_more_bytes_than_its_downloads(service: Service) -> None:
    client = service.client()
    upload_id = await stored(client)
    link = await link_to(client, upload_id, max_downloads=2)
    half = len(CONTENT) // 2
    for asked in (f"bytes=0-{half - 1}", f"bytes={half}-", "bytes=0-"):
        assert (await client.get(link["url"], headers={"Range": asked})).status == 206
    (await client.get(link["url"])).refused(410, "gone")
    (await client.get(link["url"], headers={"Range": "bytes=0-0"})).refused(410, "gone")
    [shown] = await listed(client, upload_id)
    assert shown["downloads"] == 2


async def test_questions_take_nothing(service: Service) -> None:
    client = service.client()
    link = await link_to(client, await stored(client), max_downloads=1)
    tag = (await client.request("HEAD", link["url"]))["etag"]
    assert (await client.get(link["url"], headers={"If-None-Match": tag})).status == 304
    (await client.get(link["url"], headers={"If-Match": '"other"'})).refused(412, "precondition_failed")
    (await client.get(link["url"], headers={"Range": "bytes=99999-"})).refused(416, "range_not_satisfiable")
    assert (await client.get(link["url"])).status == 200


async def test_requests_of_an_empty_file_count(service: Service) -> None:
    client = service.client()
    link = await link_to(client, await stored(client, b""), max_downloads=2)
    statuses = [(await client.get(link["url"])).status for _ in range(3)]
    assert statuses == [200, 200, 410]


async def test_fifty_at_once_get_the_last_download_once(service: Service) -> None:
    client = service.client()
    link = await link_to(client, await stored(client), max_downloads=1)
    answers: list[Answer] = await asyncio.gather(*(service.client().get(link["url"]) for _ in range(50)))
    assert sorted(answer.status for answer in answers) == [200] + [410] * 49


async def test_bytes_that_were_not_sent_are_given_back(service: Service) -> None:
    client = service.client()
    content = bytes(4 * 1024 * 1024)
    upload_id = await stored(client, content)
    link = await link_to(client, upload_id, max_downloads=1)
    left = await client.request("GET", link["url"], stop_listening_after=1)
    got = sum(map(len, left.blocks))
    assert 0 < got < len(content)

    async def rest() -> Answer:
        return await client.get(link["url"], headers={"Range": f"bytes={len(content) // 2}-"})

    assert (await rest()).status == 206


async def test_a_link_ends_with_its_time(service: Service, monkeypatch: pytest.MonkeyPatch) -> None:
    client = service.client()
    link = await link_to(client, await stored(client), expires_in="1h")
    assert link["expires_at"] is not None
    assert (await client.get(link["url"])).status == 200
    links = service.state["links"]
    now_us = links._now_us
    monkeypatch.setattr(links, "_now_us", lambda: now_us() + 3_600_000_001)
    (await client.get(link["url"])).refused(410, "gone")
    assert (await client.request("HEAD", link["url"])).status == 410


async def test_a_link_that_is_unknown_revoked_or_without_its_file_is_the_same_404(service: Service) -> None:
    client = service.client()
    upload_id, other = await stored(client), await stored(client)
    revoked, kept = await link_to(client, upload_id), await link_to(client, other)
    assert (await client.delete(f"{FILES}/{upload_id}/links/{revoked['id']}")).status == 204
    (await client.delete(f"{FILES}/{upload_id}/links/{revoked['id']}")).refused(404, "not_found")
    (await client.delete(f"{FILES}/{upload_id}/links/{kept['id']}")).refused(404, "not_found")
    assert (await client.delete(f"{FILES}/{other}")).status == 204
    same = {"X-Request-Id": "same"}
    answers = [await client.get(url, headers=same) for url in (revoked["url"], kept["url"], "/d/unknown", "/d/%ff")]
    assert {answer.status for answer in answers} == {404}
    assert len({answer.body for answer in answers}) == 1


async def test_links_are_known_to_the_session_of_their_file_alone(service: Service) -> None:
    owner, stranger = service.client(), service.client()
    await stranger.post("/api/session")
    upload_id = await stored(owner)
    link = await link_to(owner, upload_id)
    (await stranger.post(f"{FILES}/{upload_id}/links", b"{}")).refused(404, "not_found")
    (await stranger.get(f"{FILES}/{upload_id}/links")).refused(404, "not_found")
    (await stranger.delete(f"{FILES}/{upload_id}/links/{link['id']}")).refused(404, "not_found")
    (await service.client().post(f"{FILES}/{upload_id}/links", b"{}")).refused(401, "no_session")
    assert (await stranger.get(link["url"])).status == 200


@pytest.mark.parametrize(
    "bounds",
    [
        b"", b"[]", b'{"max_downloads": 0}', b'{"max_downloads": "3"}', b'{"expires_in": "soon"}', b'{"label": ""}',
        b'{"unknown": 1}', b'{"max_downloads": 9223372036854775808}', b'{"expires_in": 7}',
    ],
)  # fmt: skip
async def test_bounds_that_cannot_be_are_refused(service: Service, bounds: bytes) -> None:
    client = service.client()
    (await client.post(f"{FILES}/{await stored(client)}/links", bounds)).refused(400, "bad_request")


async def test_a_link_takes_as_many_downloads_as_can_be_counted(service: Service) -> None:
    client = service.client()
    link = await link_to(client, await stored(client), max_downloads=2**63 - 1)
    assert (await client.get(link["url"])).status == 200


async def test_the_database_knows_no_key(service: Service) -> None:
    client = service.client()
    link = await link_to(client, await stored(client))
    rows = await service.state["db"].many("list_share_links", upload_id=link["id"], page_size=9)
    assert link["url"].removeprefix("/d/") not in repr(rows)


async def test_a_links_key_is_not_logged(service: Service, capsys: pytest.CaptureFixture[str]) -> None:
    client = service.client()
    link = await link_to(client, await stored(client))
    capsys.readouterr()
    await client.get(link["url"])
    said = capsys.readouterr().out
    assert "/d/" in said
    assert link["url"] not in said


async def test_no_link_lives_longer_than_the_operator_allows(tmp_path_factory: pytest.TempPathFactory) -> None:
    async with serving(settings_in(tmp_path_factory.mktemp("bounded"), link_max_age="1h")) as service:
        client = service.client()
        upload_id = await stored(client)
        bounded, unbounded = await link_to(client, upload_id, expires_in="7d"), await link_to(client, upload_id)
        shorter = await link_to(client, upload_id, expires_in="90s")
        assert bounded["expires_at"][:15] == unbounded["expires_at"][:15] > shorter["expires_at"][:15]
