"""Small uploads by the resumable protocols cost what an ordinary upload costs, in transactions and in flushes."""

import asyncio
import hashlib
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import pytest

from app.db.database import Db
from app.errors import Unavailable
from app.storage.local import syscalls
from app.storage.local.publish import GroupPublisher
from tests.support.asgi import Answer, Client, Service

pytestmark = pytest.mark.asyncio(loop_scope="module")

UPLOADS = "/api/ingestion/uploads"
HISTORY = "/api/ingestion/history"
TUS = {"Tus-Resumable": "1.0.0"}
CHUNK = {**TUS, "Content-Type": "application/offset+octet-stream"}
CONTENT = bytes(range(256)) * 64


@dataclass
class Work:
    """How often something was done."""

    transactions: int = 0
    flushes: int = 0
    published: int = 0


@pytest.fixture
def counted(monkeypatch: pytest.MonkeyPatch) -> Callable[[], Any]:
    """A context that counts transactions that write, flushes, and commit groups of files."""
    work = Work()
    transaction, fsync, syncfs, publish = Db.transaction, os.fsync, syscalls.syncfs, GroupPublisher.publish

    async def counting(self: Db, *arguments: Any, **options: Any) -> Any:
        work.transactions += 1
        return await transaction(self, *arguments, **options)

    def flushing(fd: int) -> None:
        work.flushes += 1
        fsync(fd)

    def flushing_all(fd: int) -> None:
        work.flushes += 1
        syncfs(fd)

    def publishing(self: GroupPublisher, *arguments: Any) -> Any:
        work.published += 1
        return publish(self, *arguments)

    monkeypatch.setattr(Db, "transaction", counting)
    monkeypatch.setattr(os, "fsync", flushing)
    monkeypatch.setattr(syscalls, "syncfs", flushing_all)
    monkeypatch.setattr(GroupPublisher, "publish", publishing)

    @contextmanager
    def count() -> Iterator[Work]:
        work.__init__()  # type: ignore[misc]
        yield work

    return count


async def living(service: Service) -> Client:
    """A client with a session that was seen just now, so that nothing but its uploads is written."""
    client = service.client()
    await client.post("/api/session")
    await client.put("first.bin", b"1")
    return client


async def whole(client: Client, content: bytes = CONTENT, **headers: str) -> Answer:
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    return await client.post(
        UPLOADS,
        content,
        headers={**CHUNK, "Upload-Length": str(len(content)), "Content-Length": str(len(content)), **named},
    )


async def records(client: Client) -> list[dict[str, Any]]:
    items: list[dict[str, Any]] = (await client.get(f"{HISTORY}?limit=500&order=oldest")).json()["items"]
    return items[1:]


async def test_a_small_creation_with_all_its_bytes_costs_what_a_put_costs(service: Service, counted: Any) -> None:
    client = await living(service)
    with counted() as work:
        assert (await client.put("a.bin", CONTENT)).status == 201
        ordinary = Work(**vars(work))
    with counted() as work:
        answer = await whole(client, Upload_Metadata="filename YS5iaW4=")
        assert vars(work) == vars(ordinary) == {"transactions": 1, "flushes": 2, "published": 1}
    assert (answer.status, answer["upload-offset"], answer.get("upload-expires")) == (201, str(len(CONTENT)), None)
    _, record = await records(client)
    assert (record["status"], record["protocol"], record["filename"]) == ("completed", "tus", "a.bin")
    assert record["sha256"] == hashlib.sha256(CONTENT).hexdigest()
    assert record["links"]["self"] in answer["link"]
    assert service.files()[record["id"]] == CONTENT
    asked = await client.request("HEAD", answer["location"], headers=TUS)
    assert (asked.status, asked["upload-offset"], asked["upload-length"]) == (200, str(len(CONTENT)), str(len(CONTENT)))
    assert asked["upload-metadata"] == "filename YS5iaW4="
    repeated = await client.request("PATCH", answer["location"], headers={**CHUNK, "Upload-Offset": str(len(CONTENT))})
    assert repeated.status == 204
    assert (await client.request("DELETE", answer["location"], headers=TUS)).status == 204
    assert (await client.request("HEAD", answer["location"], headers=TUS)).status == 410
    assert (await client.get(record["links"]["content"])).body == CONTENT


async def test_a_small_creation_comes_with_its_session(service: Service) -> None:
    client = service.client()
    answer = await whole(client)
    assert (answer.status, len(client.cookies)) == (201, 1)
    [item] = (await client.get(HISTORY)).json()["items"]
    assert item["status"] == "completed"
    stranger = await living(service)
    assert (await stranger.request("HEAD", answer["location"], headers=TUS)).status == 404


async def test_a_small_creation_that_cannot_land_can_be_resumed(
    service: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    client = await living(service)
    with monkeypatch.context() as patched:

        def refused(self: Any, *arguments: Any) -> None:
            raise Unavailable

        patched.setattr("app.storage.local.staged.LocalStaged.take_name", refused)
        answer = await whole(client)
        answer.refused(503, "unavailable")
    asked = await client.request("HEAD", answer["location"], headers=TUS)
    assert asked["upload-offset"] == str(len(CONTENT))
    [record] = await records(client)
    assert (record["status"], record["sha256"]) == ("completed", hashlib.sha256(CONTENT).hexdigest())


async def test_a_small_creation_with_another_digest_fails(service: Service) -> None:
    client = await living(service)
    answer = await whole(client, Repr_Digest="sha-256=:uU0nuZNNPgilLlLX2n2r+sSE7+N6U4DukIj3rOLvzek=:")
    answer.refused(400, "digest_mismatch")
    [record] = await records(client)
    assert (record["status"], record["error"]["code"]) == ("failed", "digest_mismatch")
    assert service.staged() == []


async def test_small_creations_at_once_share_transactions_and_flushes(service: Service, counted: Any) -> None:
    client = await living(service)
    with counted() as work:
        answers = await asyncio.gather(*(whole(client, b"%d" % number) for number in range(40)))
        assert work.transactions < 20
        assert work.flushes < 40
    assert [answer.status for answer in answers] == [201] * 40
    assert len({answer["location"] for answer in answers}) == 40
    assert sorted(record["sha256"] for record in await records(client)) == sorted(
        hashlib.sha256(b"%d" % number).hexdigest() for number in range(40)
    )


async def create(client: Client, length: int) -> str:
    answer = await client.post(UPLOADS, headers={**TUS, "Upload-Length": str(length)})
    assert answer.status == 201
    return answer["location"]


async def patch(client: Client, url: str, body: Any, offset: int = 0, **how: Any) -> Answer:
    return await client.request("PATCH", url, headers={**CHUNK, "Upload-Offset": str(offset)}, body=body, **how)


async def test_a_small_upload_in_one_patch_is_flushed_as_a_put_is(service: Service, counted: Any) -> None:
    client = await living(service)
    with counted() as work:
        url = await create(client, len(CONTENT))
        assert vars(work) == {"transactions": 1, "flushes": 0, "published": 0}
    with counted() as work:
        answer = await patch(client, url, CONTENT)
        assert vars(work) == {"transactions": 2, "flushes": 2, "published": 1}  # the writer lock, and the landing
    assert (answer.status, answer["upload-offset"], answer.get("upload-expires")) == (204, str(len(CONTENT)), None)
    [record] = await records(client)
    assert (record["status"], record["sha256"]) == ("completed", hashlib.sha256(CONTENT).hexdigest())
    assert record["links"]["self"] in answer["link"]
    assert service.files()[record["id"]] == CONTENT
    assert (await patch(client, url, b"", len(CONTENT)))["upload-offset"] == str(len(CONTENT))
    assert (await client.request("HEAD", url, headers=TUS))["upload-offset"] == str(len(CONTENT))


async def test_a_small_patch_that_breaks_off_can_be_resumed(service: Service) -> None:
    client = await living(service)
    url = await create(client, len(CONTENT))
    await patch(client, url, [CONTENT[:5000], CONTENT[5000:]], hang_up_after=1)
    assert (await client.request("HEAD", url, headers=TUS))["upload-offset"] == "5000"
    assert (await patch(client, url, CONTENT[5000:], 5000)).status == 204
    [record] = await records(client)
    assert service.files()[record["id"]] == CONTENT


async def test_a_small_patch_that_cannot_land_can_be_resumed(service: Service, monkeypatch: pytest.MonkeyPatch) -> None:
    client = await living(service)
    url = await create(client, len(CONTENT))
    with monkeypatch.context() as patched:

        def refused(self: Any, *arguments: Any) -> None:
            raise Unavailable

        patched.setattr("app.storage.local.staged.LocalStaged.take_name", refused)
        assert (await patch(client, url, CONTENT)).status == 204  # by its own file, as a large one
    assert (await client.request("HEAD", url, headers=TUS))["upload-offset"] == str(len(CONTENT))
    [record] = await records(client)
    assert service.files()[record["id"]] == CONTENT


async def test_small_uploads_at_once_share_transactions_and_flushes(service: Service, counted: Any) -> None:
    client = await living(service)
    with counted() as work:
        urls = await asyncio.gather(*(create(client, 2) for _ in range(40)))
        assert work.transactions < 20
    assert len(set(urls)) == 40
    with counted() as work:
        answers = await asyncio.gather(*(patch(client, url, b"%02d" % number) for number, url in enumerate(urls)))
        assert work.transactions < 40
        assert work.flushes < 40
    assert [answer.status for answer in answers] == [204] * 40
    assert sorted(record["sha256"] for record in await records(client)) == sorted(
        hashlib.sha256(b"%02d" % number).hexdigest() for number in range(40)
    )


@pytest.mark.parametrize("version", ["6", "10"])
async def test_a_small_upload_of_the_draft_costs_what_a_put_costs(service: Service, counted: Any, version: str) -> None:
    client = await living(service)
    headers = {"Upload-Complete": "?1", "Upload-Draft-Interop-Version": version}
    with counted() as work:
        answer = await client.put("a.bin", CONTENT, headers=headers)
        assert vars(work) == {"transactions": 1, "flushes": 2, "published": 1}
    assert (answer.status, answer["upload-complete"], answer.interim) == (201, "?1", [])
    [record] = await records(client)
    assert service.files()[record["id"]] == CONTENT


async def test_uploads_refused_together_are_sent_their_own_addresses(
    service: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The address of an upload is a capability: no other client may see it."""
    client = await living(service)
    with monkeypatch.context() as patched:

        async def refused(self: Any, *arguments: Any) -> None:
            raise Unavailable

        patched.setattr("app.storage.local.LocalStorage.publish", refused)
        answers = await asyncio.gather(*(whole(client, b"%d" % number) for number in range(10)))
    assert [answer.status for answer in answers] == [503] * 10
    assert len({answer["location"] for answer in answers}) == 10
