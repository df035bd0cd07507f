"""tus 1.0.0 at the service's own door: every extension, and what clients do when something goes wrong."""

import asyncio
import base64
import hashlib
import zlib
from collections.abc import AsyncIterator
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from structlog.testing import capture_logs

from app.errors import Unavailable
from tests.support.asgi import Answer, Client, HangUp, Service, serving, settings_in

pytestmark = pytest.mark.asyncio(loop_scope="module")

UPLOADS = "/api/ingestion/uploads"
HISTORY = "/api/ingestion/history"
TUS = {"Tus-Resumable": "1.0.0"}
CHUNK = {**TUS, "Content-Type": "application/offset+octet-stream"}
METADATA = "filename bmFtZS50eHQ=,filetype dGV4dC9wbGFpbg==,empty"
CONTENT = bytes(range(256)) * 40


def sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


async def create(client: Client, length: int | None = None, **headers: str) -> str:
    """The URL of a new upload."""
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    if length is not None:
        named["Upload-Length"] = str(length)
    answer = await client.post(UPLOADS, headers={**TUS, **named})
    assert answer.status == 201, answer.body
    return answer["location"]


async def patch(client: Client, url: str, offset: int, body: Any, headers: Any = (), **how: Any) -> Answer:
    given = {**CHUNK, "Upload-Offset": str(offset), **dict(headers)}
    return await client.request("PATCH", url, headers=given, body=body, **how)


async def head(client: Client, url: str) -> Answer:
    answer = await client.request("HEAD", url, headers=TUS)
    assert answer["tus-resumable"] == "1.0.0"
    assert answer["cache-control"] == "no-store"
    return answer


async def listed(client: Client) -> list[dict[str, Any]]:
    answer = await client.get(f"{HISTORY}?limit=500")
    assert answer.status == 200
    return answer.json()["items"]


async def test_a_file_in_pieces_is_stored(service: Service) -> None:
    client = service.client()
    answer = await client.post(UPLOADS, headers={**TUS, "Upload-Length": "10240", "Upload-Metadata": METADATA})
    assert answer.status == 201
    assert answer["tus-resumable"] == "1.0.0"
    assert answer["upload-offset"] == "0"
    assert answer["upload-expires"].endswith(" GMT")
    url = answer["location"]
    assert url.startswith(f"{UPLOADS}/")
    assert len(url.rpartition("/")[2]) >= 22
    [begun] = await listed(client)
    assert (begun["status"], begun["size"], begun["protocol"]) == ("uploading", 0, "tus")
    assert begun["id"] not in url

    for start, stop in [(0, 1), (1, 5000), (5000, 5000), (5000, 10240)]:
        asked = await head(client, url)
        assert asked.status == 200
        assert (asked["upload-offset"], asked["upload-length"]) == (str(start), "10240")
        assert asked["upload-metadata"] == METADATA  # as it came, the pair without a value too
        assert asked["upload-expires"]
        answer = await patch(client, url, start, CONTENT[start:stop])
        assert (answer.status, answer["upload-offset"], answer.body) == (204, str(stop), b"")
        assert answer["tus-resumable"] == "1.0.0"
        assert bool(answer.get("upload-expires")) == (stop < 10240)

    [record] = await listed(client)
    assert record == {
        **begun,
        "filename": "name.txt",
        "content_type": "text/plain",
        "size": 10240,
        "sha256": sha256(CONTENT),
        "status": "completed",
        "completed_at": record["completed_at"],
        "links": {"self": f"{HISTORY}/{begun['id']}", "content": f"/api/ingestion/files/{begun['id']}"},
    }
    assert service.files()[record["id"]] == CONTENT
    assert (await client.get(record["links"]["content"])).body == CONTENT
    assert record["links"]["self"] in answer["link"]
    asked = await head(client, url)
    assert (asked["upload-offset"], asked["upload-length"]) == ("10240", "10240")
    assert asked.get("upload-expires") is None


async def test_an_answer_that_got_lost_can_be_had_again(service: Service) -> None:
    client = service.client()
    url = await create(client, 5)
    for offset, body in ((0, b"hello"), (5, b""), (5, b"")):
        answer = await patch(client, url, offset, body)
        assert (answer.status, answer["upload-offset"]) == (204, "5")
    (await patch(client, url, 0, b"hello")).refused(409, "offset_mismatch")
    assert [item["status"] for item in await listed(client)] == ["completed"]


async def test_a_file_of_no_bytes_is_done_with_its_creation(service: Service) -> None:
    client = service.client()
    url = await create(client, 0, Upload_Metadata="filename ZW1wdHk=")
    [record] = await listed(client)
    assert (record["filename"], record["status"], record["size"]) == ("empty", "completed", 0)
    assert service.files()[record["id"]] == b""
    asked = await head(client, url)
    assert (asked["upload-offset"], asked["upload-length"]) == ("0", "0")


@pytest.mark.parametrize("sent", [5, 10])
async def test_the_first_bytes_may_come_with_the_creation(service: Service, sent: int) -> None:
    client = service.client()
    content = CONTENT[:10]
    answer = await client.post(UPLOADS, content[:sent], headers={**CHUNK, "Upload-Length": "10"})
    assert (answer.status, answer["upload-offset"]) == (201, str(sent))
    url = answer["location"]
    if sent < 10:
        assert (await patch(client, url, sent, content[sent:])).status == 204
    [record] = await listed(client)
    assert (record["sha256"], record["filename"]) == (sha256(content), "unnamed")


async def test_a_creation_whose_bytes_break_off_keeps_them(service: Service) -> None:
    client = service.client()
    await client.post("/api/session")
    answer = await client.post(UPLOADS, [b"hel", b"lo"], headers={**CHUNK, "Upload-Length": "10"}, hang_up_after=1)
    url = answer["location"]  # written down although the client has gone
    assert (await head(client, url))["upload-offset"] == "3"


async def test_the_length_may_come_later(service: Service) -> None:
    client = service.client()
    url = await create(client, Upload_Defer_Length="1")
    asked = await head(client, url)
    assert (asked["upload-defer-length"], asked.get("upload-length")) == ("1", None)
    assert (await patch(client, url, 0, b"hello")).status == 204
    assert (await listed(client))[0]["status"] == "uploading"
    (await patch(client, url, 5, b"", {"Upload-Length": "4"})).refused(400, "bad_request")
    answer = await patch(client, url, 5, b"", {"Upload-Length": "5"})
    assert (answer.status, answer["upload-offset"]) == (204, "5")
    assert (await head(client, url))["upload-length"] == "5"
    assert (await listed(client))[0]["sha256"] == sha256(b"hello")


async def test_a_length_never_changes(service: Service) -> None:
    client = service.client()
    url = await create(client, 10)
    (await patch(client, url, 0, b"x", {"Upload-Length": "11"})).refused(400, "inconsistent_upload_length")
    assert (await patch(client, url, 0, b"x", {"Upload-Length": "10"})).status == 204


def checksum(algorithm: str, content: bytes) -> dict[str, str]:
    if algorithm == "crc32":
        digest = zlib.crc32(content).to_bytes(4, "big")
    else:
        digest = hashlib.new(algorithm, content).digest()
    return {"Upload-Checksum": f"{algorithm} {base64.b64encode(digest).decode()}"}


@pytest.mark.parametrize("algorithm", ["sha1", "sha256", "sha512", "md5", "crc32"])
async def test_bytes_with_another_checksum_do_not_count(service: Service, algorithm: str) -> None:
    client = service.client()
    assert algorithm in (await client.request("OPTIONS", UPLOADS))["tus-checksum-algorithm"].split(",")
    url = await create(client, 10)
    assert (await patch(client, url, 0, b"hello", checksum(algorithm, b"hello"))).status == 204
    answer = await patch(client, url, 5, b"wrold", checksum(algorithm, b"world"))
    answer.refused(460, "checksum_mismatch")
    assert answer["tus-resumable"] == "1.0.0"
    assert (await head(client, url))["upload-offset"] == "5"
    assert (await patch(client, url, 5, b"world", checksum(algorithm, b"world"))).status == 204
    assert (await listed(client))[0]["sha256"] == sha256(b"helloworld")


async def test_bytes_whose_checksum_cannot_be_checked_do_not_count(service: Service) -> None:
    client = service.client()
    url = await create(client, 10)
    how = {"headers": checksum("sha1", b"hello")}
    await patch(client, url, 0, [b"hel", b"lo"], hang_up_after=1, **how)
    assert (await head(client, url))["upload-offset"] == "0"
    answer = await client.post(UPLOADS, b"hello", headers={**CHUNK, "Upload-Length": "5", **checksum("sha1", b"hallo")})
    answer.refused(460, "checksum_mismatch")
    assert (await head(client, answer["location"]))["upload-offset"] == "0"


async def test_bytes_that_arrived_before_the_connection_broke_stay(service: Service) -> None:
    client = service.client()
    url = await create(client, len(CONTENT))
    await patch(client, url, 0, [CONTENT[:1000], CONTENT[1000:3000], CONTENT[3000:]], hang_up_after=2)
    asked = await head(client, url)
    assert asked["upload-offset"] == "3000"
    assert (await patch(client, url, 3000, CONTENT[3000:])).status == 204
    [record] = await listed(client)
    assert (record["status"], record["sha256"]) == ("completed", sha256(CONTENT))


@pytest.mark.slow
async def test_a_client_that_sends_too_slowly_is_told_to_resume_later(
    service: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not 408, for which clients of tus give up."""
    monkeypatch.setattr("app.web.body.PACE_SECONDS", 0.05)
    client = service.client()
    url = await create(client, 10)

    async def body() -> AsyncIterator[bytes]:
        yield b"hello"
        await asyncio.Event().wait()

    answer = await patch(client, url, 0, body())
    answer.refused(503, "unavailable")
    assert answer["retry-after"] == "1"
    assert (await head(client, url))["upload-offset"] == "5"


REFUSED: dict[str, tuple[dict[str, str], int, str]] = {
    "no version": ({"Tus-Resumable": ""}, 412, "unsupported_version"),
    "another version": ({"Tus-Resumable": "0.2.2"}, 412, "unsupported_version"),
    "another type": ({"Content-Type": "application/octet-stream"}, 415, "unsupported_media_type"),
    "an offset behind": ({"Upload-Offset": "4"}, 409, "offset_mismatch"),
    "an offset ahead": ({"Upload-Offset": "6"}, 409, "offset_mismatch"),
    "a negative offset": ({"Upload-Offset": "-5"}, 400, "bad_request"),
    "an offset in hex": ({"Upload-Offset": "0x5"}, 400, "bad_request"),
    "an impossible offset": ({"Upload-Offset": str(2**63)}, 400, "bad_request"),
    "an unknown checksum": ({"Upload-Checksum": "crc31 AAAA"}, 400, "bad_request"),
    "a checksum that is none": ({"Upload-Checksum": "sha1 AAAA"}, 400, "bad_request"),
    "more than there can be": ({"Content-Length": "6"}, 413, "too_large"),
    "compressed bytes": ({"Content-Encoding": "gzip"}, 415, "unsupported_media_type"),
}


@pytest.mark.parametrize("case", REFUSED.values(), ids=REFUSED)
async def test_an_append_is_refused_before_its_body_and_changes_nothing(service: Service, case: Any) -> None:
    headers, status, code = case
    client = service.client()
    url = await create(client, 10)
    assert (await patch(client, url, 0, b"hello")).status == 204
    sent = {name: value for name, value in {**CHUNK, "Upload-Offset": "5", **headers}.items() if value}
    sent["Expect"] = "100-continue"
    answer = await client.request("PATCH", url, headers=sent, body=b"world!" if status == 413 else b"world")
    answer.refused(status, code)
    assert answer.asked == 0
    assert answer["tus-resumable"] == "1.0.0"
    assert (await head(client, url))["upload-offset"] == "5"
    assert (await patch(client, url, 5, b"world")).status == 204


async def test_a_body_that_proves_too_long_is_cut_off(service: Service) -> None:
    client = service.client()
    url = await create(client, 10)
    answer = await patch(client, url, 0, [b"hello", b"world!"], {"Transfer-Encoding": "chunked"})
    answer.refused(413, "too_large")
    offset = int((await head(client, url))["upload-offset"])
    assert offset <= 10
    assert (await patch(client, url, offset, b"helloworld"[offset:])).status == 204
    assert (await listed(client))[0]["sha256"] == sha256(b"helloworld")


CREATIONS: dict[str, tuple[dict[str, str], int, str]] = {
    "no length": ({}, 400, "bad_request"),
    "two lengths": ({"Upload-Length": "1", "Upload-Defer-Length": "1"}, 400, "bad_request"),
    "a length that is none": ({"Upload-Length": "ten"}, 400, "bad_request"),
    "another deferral": ({"Upload-Defer-Length": "2"}, 400, "bad_request"),
    "more than is accepted": ({"Upload-Length": str(2**62)}, 413, "too_large"),
    "metadata that are not base64": ({"Upload-Length": "1", "Upload-Metadata": "filename *"}, 400, "bad_request"),
    "a key twice": ({"Upload-Length": "1", "Upload-Metadata": "a YQ==,a YQ=="}, 400, "bad_request"),
    "a name that is none": ({"Upload-Length": "1", "Upload-Metadata": "filename AA=="}, 400, "bad_filename"),
    "another version": ({"Tus-Resumable": "2.0.0", "Upload-Length": "1"}, 412, "unsupported_version"),
    "a final of nothing": ({"Upload-Concat": "final;"}, 400, "bad_request"),
    "a final of anything": ({"Upload-Concat": "final;../../etc/passwd"}, 400, "bad_request"),
    "a final of a stranger": ({"Upload-Concat": f"final;{UPLOADS}/{'x' * 22}"}, 404, "not_found"),
}


@pytest.mark.parametrize("case", CREATIONS.values(), ids=CREATIONS)
async def test_a_creation_is_refused_and_leaves_nothing(service: Service, case: Any) -> None:
    headers, status, code = case
    client = service.client()
    answer = await client.post(UPLOADS, headers={**TUS, **headers})
    answer.refused(status, code)
    assert answer["tus-resumable"] == "1.0.0"
    assert client.cookies == {}
    if status == 412:
        assert answer["tus-version"] == "1.0.0"


async def test_a_post_may_stand_for_a_patch_or_a_delete(service: Service) -> None:
    client = service.client()
    url = await create(client, 10)
    headers = {**CHUNK, "Upload-Offset": "0", "X-HTTP-Method-Override": "PATCH"}
    answer = await client.post(url, b"hello", headers=headers)
    assert (answer.status, answer["upload-offset"]) == (204, "5")
    assert (await client.post(url, headers={**TUS, "X-HTTP-Method-Override": "DELETE"})).status == 204
    assert (await head(client, url)).status == 410
    answer = await client.post(url, headers=TUS)
    answer.refused(405, "method_not_allowed")
    assert "PATCH" in answer["allow"]
    answer = await client.post(UPLOADS, headers={**TUS, "X-HTTP-Method-Override": "PATCH"})
    answer.refused(405, "method_not_allowed")


async def test_a_cancelled_upload_is_gone_and_listed_in_the_history(service: Service) -> None:
    client = service.client()
    url = await create(client, 10)
    assert (await patch(client, url, 0, b"hello")).status == 204
    answer = await client.request("DELETE", url, headers=TUS)
    assert (answer.status, answer["tus-resumable"]) == (204, "1.0.0")
    asked = await head(client, url)
    assert (asked.status, asked.get("upload-offset")) == (410, None)
    (await patch(client, url, 5, b"world")).refused(410, "gone")
    (await client.request("DELETE", url, headers=TUS)).refused(410, "gone")
    [record] = await listed(client)
    assert (record["status"], record["error"]["code"]) == ("failed", "gone")


async def test_cancelling_a_completed_upload_leaves_its_file(service: Service) -> None:
    client = service.client()
    url = await create(client, 5)
    assert (await patch(client, url, 0, b"hello")).status == 204
    assert (await client.request("DELETE", url, headers=TUS)).status == 204
    assert (await head(client, url)).status in {404, 410}
    [record] = await listed(client)
    assert record["status"] == "completed"
    assert (await client.get(record["links"]["content"])).body == b"hello"


async def test_an_unknown_upload_is_not_found(service: Service) -> None:
    client = service.client()
    url = f"{UPLOADS}/{'A' * 22}"
    answer = await head(client, url)
    assert (answer.status, answer.get("upload-offset")) == (404, None)
    (await patch(client, url, 0, b"x")).refused(404, "not_found")
    (await client.request("DELETE", url, headers=TUS)).refused(404, "not_found")
    for nonsense in ("x", "%00", "..", "x" * 300):
        assert (await head(client, f"{UPLOADS}/{nonsense}")).status == 404


class TestOwners:
    """Whoever holds the URL may go on, unless he shows another session."""

    async def test_the_url_is_enough(self, service: Service) -> None:
        owner, bare = service.client(), service.client()
        url = await create(owner, 10)
        assert (await patch(bare, url, 0, b"hello")).status == 204
        assert (await head(bare, url))["upload-offset"] == "5"
        assert (await patch(owner, url, 5, b"world")).status == 204
        assert bare.cookies == {}
        assert (await listed(owner))[0]["status"] == "completed"

    async def test_another_session_finds_nothing(self, service: Service) -> None:
        owner, other = service.client(), service.client()
        url = await create(owner, 10)
        await other.post("/api/session")
        here = (await patch(other, url, 0, b"hello")).refused(404, "not_found")
        nowhere = (await patch(other, f"{UPLOADS}/{'A' * 22}", 0, b"hello")).refused(404, "not_found")
        assert {**here, "request_id": ""} == {**nowhere, "request_id": ""}
        assert (await head(other, url)).status == 404
        (await other.request("DELETE", url, headers=TUS)).refused(404, "not_found")
        assert (await head(owner, url))["upload-offset"] == "0"

    async def test_a_session_that_is_none_is_no_other(self, service: Service) -> None:
        owner, late = service.client(), service.client()
        url = await create(owner, 10)
        late.cookies["waybill_session"] = "expired"
        assert (await patch(late, url, 0, b"hello")).status == 204

    async def test_a_session_may_be_demanded(self, tmp_path: Any) -> None:
        async with serving(settings_in(tmp_path, upload_url_needs_session=True)) as service:
            owner, bare = service.client(), service.client()
            url = await create(owner, 5)
            (await patch(bare, url, 0, b"hello")).refused(401, "no_session")
            assert (await head(bare, url)).status == 401
            assert (await patch(owner, url, 0, b"hello")).status == 204

    async def test_uploads_follow_a_session_that_joins_another(self, service: Service) -> None:
        first, second = service.client(), service.client()
        await first.post("/api/session")
        code = (await first.post("/api/session/link")).json()["code"]
        url = await create(second, 10)
        assert (await patch(second, url, 0, b"hello")).status == 204
        await second.post("/api/session/join", b'{"code": "%s"}' % code.encode())
        assert (await patch(second, url, 5, b"wo")).status == 204
        assert (await patch(first, url, 7, b"rld")).status == 204
        assert [item["status"] for item in await listed(first)] == ["completed"]


async def _away(*_: object) -> None:
    raise Unavailable("the database is away, as the test says")


class TestConcatenation:
    async def part(self, client: Client, content: bytes, length: int | None = None) -> str:
        url = await create(client, len(content) if length is None else length, Upload_Concat="partial")
        if content:
            assert (await patch(client, url, 0, content)).status == 204
        return url

    async def final(self, client: Client, *urls: str, **headers: str) -> Answer:
        concat = f"final;{' '.join(urls)}"
        return await client.post(UPLOADS, headers={**TUS, "Upload-Concat": concat, **headers})

    async def test_parts_become_a_file(self, service: Service) -> None:
        client = service.client()
        urls = [await self.part(client, content) for content in (b"hel", b"lo", b"")]
        assert (await head(client, urls[0]))["upload-concat"] == "partial"
        assert await listed(client) == []  # parts are no uploads of their own
        answer = await self.final(
            client, urls[0], urls[1], f"http://waybill.test{urls[2]}", urls[0], **{"Upload-Metadata": METADATA}
        )
        assert answer.status == 201
        [record] = await listed(client)
        assert (record["sha256"], record["filename"], record["size"]) == (sha256(b"hellohel"), "name.txt", 8)
        assert service.files()[record["id"]] == b"hellohel"
        asked = await head(client, answer["location"])
        assert asked["upload-concat"].startswith(f"final;{urls[0]} ")
        assert (asked["upload-offset"], asked["upload-length"]) == ("8", "8")
        (await patch(client, answer["location"], 8, b"")).refused(403, "forbidden")
        again = await self.final(client, *urls)  # parts may serve another file
        assert again.status == 201
        assert len(await listed(client)) == 2

    async def test_an_acknowledged_final_upload_is_completed_though_nobody_asks_for_it(
        self, service: Service, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """The database goes away in the middle, and comes back; only the history is looked at."""
        client = service.client()
        url = await self.part(client, b"hello")
        monkeypatch.setattr("app.resumables.recovery.ROUND_SECONDS", 0.01)
        with monkeypatch.context() as outage:
            outage.setattr("app.resumables.transitions.Holding.take", _away)
            assert (await self.final(client, url)).status == 201
        [record] = await listed(client)
        while record["status"] != "completed":
            await asyncio.sleep(0.01)
            [record] = await listed(client)
        assert record["sha256"] == sha256(b"hello")

    async def test_a_final_may_wait_for_its_parts(self, service: Service) -> None:
        client = service.client()
        urls = [await self.part(client, b"hel", 5), await self.part(client, b"world")]
        answer = await self.final(client, *urls)
        assert answer.status == 201
        asked = await head(client, answer["location"])
        assert (asked.status, asked.get("upload-offset")) == (200, None)
        assert (await patch(client, urls[0], 3, b"lo")).status == 204
        while asked.get("upload-offset") is None:  # it is put together, and nobody is told when that has ended
            asked = await head(client, answer["location"])
            assert asked.status == 200
        assert asked["upload-offset"] == asked["upload-length"] == "10"
        [record] = await listed(client)
        assert (record["status"], record["sha256"]) == ("completed", sha256(b"helloworld"))

    async def test_a_concatenation_takes_only_parts_of_its_own_session(self, service: Service) -> None:
        owner, other = service.client(), service.client()
        part, whole = await self.part(owner, b"hello"), await create(owner, 5)
        (await self.final(owner, whole)).refused(400, "bad_request")
        await other.post("/api/session")
        (await self.final(other, part)).refused(404, "not_found")
        body = await owner.post(UPLOADS, b"x", headers={**CHUNK, "Upload-Concat": f"final;{part}"})
        body.refused(403, "forbidden")


class TestPreemption:
    async def begun(self, client: Client, url: str, *, first: bytes) -> tuple["asyncio.Task[Answer]", asyncio.Event]:
        """A PATCH under way, which has sent its first bytes and then nothing; and what lets it go on."""
        taken, more = asyncio.Event(), asyncio.Event()

        async def body() -> AsyncIterator[bytes]:
            yield first
            taken.set()
            await more.wait()
            yield b"x"

        running = asyncio.create_task(patch(client, url, 0, body()))
        await taken.wait()
        return running, more

    async def test_a_head_preempts_the_writer_and_returns_its_offset(self, service: Service) -> None:
        client = service.client()
        url = await create(client, 10)
        running, more = await self.begun(client, url, first=b"hello")
        asked = await head(client, url)
        assert (asked.status, asked["upload-offset"]) == (200, "5")
        more.set()
        (await running).refused(409, "in_progress")
        assert (await patch(client, url, 5, b"world")).status == 204
        assert (await listed(client))[0]["sha256"] == sha256(b"helloworld")

    async def test_a_patch_preempts_the_writer(self, service: Service) -> None:
        client = service.client()
        url = await create(client, 10)
        running, more = await self.begun(client, url, first=b"hello")
        assert (await patch(client, url, 5, b"world")).status == 204
        more.set()
        (await running).refused(409, "in_progress")
        assert (await listed(client))[0]["sha256"] == sha256(b"helloworld")

    async def test_a_delete_preempts_the_writer(self, service: Service) -> None:
        client = service.client()
        url = await create(client, 10)
        running, more = await self.begun(client, url, first=b"hello")
        assert (await client.request("DELETE", url, headers=TUS)).status == 204
        more.set()
        answer = await running
        assert answer.status in {409, 410}
        assert (await head(client, url)).status == 410


async def test_the_address_may_end_in_a_slash(service: Service) -> None:
    answer = await service.client().post(f"{UPLOADS}/", headers={**TUS, "Upload-Length": "5"})
    assert answer.status == 201
    assert answer["location"].startswith(f"{UPLOADS}/")
    assert "//" not in answer["location"]


async def test_options_name_extensions_and_limits(service: Service) -> None:
    for target in (UPLOADS, f"{UPLOADS}/anything"):
        answer = await service.client().request("OPTIONS", target, headers={"Tus-Resumable": "0.0.1"})
        assert answer.status == 204
        assert answer["tus-version"] == answer["tus-resumable"] == "1.0.0"
        assert answer["tus-max-size"] == str(service.state["settings"].max_file_size)
        assert set(answer["tus-extension"].split(",")) == {
            "creation", "creation-with-upload", "creation-defer-length", "expiration", "checksum", "termination",
            "concatenation", "concatenation-unfinished",
        }  # fmt: skip
        assert "max-size" in answer["upload-limit"]
        assert ("PATCH" in answer["allow"]) == (target != UPLOADS)


async def test_a_browser_that_opens_the_url_gets_a_readable_answer(service: Service) -> None:
    client = service.client()
    url = await create(client, 10)
    answer = await client.get(url)
    assert (answer.status, answer.body, answer["upload-offset"]) == (200, b"", "0")


@settings(max_examples=25)
@given(
    content=st.binary(max_size=3000),
    cuts=st.lists(st.tuples(st.integers(1, 1500), st.sampled_from(["whole", "hang up", "bad checksum"])), max_size=8),
)
async def test_a_file_is_the_same_however_it_is_cut(service: Service, content: bytes, cuts: Any) -> None:
    """Pieces of any length, connections that break, checksums that do not match: HEAD leads to the same file."""
    client = service.client()
    await client.post("/api/session")
    url = await create(client, len(content))
    offset = 0
    for size, how in cuts:
        piece = content[offset : offset + size]
        if how == "whole":
            assert (await patch(client, url, offset, piece)).status == 204
        elif how == "hang up":
            await patch(client, url, offset, gone_after(piece))
        elif piece:
            assert (await patch(client, url, offset, piece, checksum("sha1", b"other"))).status == 460
        told = int((await head(client, url))["upload-offset"])
        assert told == offset + (len(piece) if how != "bad checksum" else 0)
        offset = told
    assert (await patch(client, url, offset, content[offset:])).status == 204
    [record] = await listed(client)
    assert (record["status"], record["sha256"], record["size"]) == ("completed", sha256(content), len(content))


async def gone_after(piece: bytes) -> AsyncIterator[bytes]:
    yield piece
    raise HangUp


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("PUT", UPLOADS, 405),
        ("PATCH", f"{UPLOADS}/a/b", 405),
        ("GET", "/api/nothing", 404),
        ("GET", "/api/session", 401),
    ],
)
async def test_a_refusal_names_the_version_wherever_it_comes_from(
    service: Service, method: str, path: str, status: int
) -> None:
    answer = await service.client().request(method, path, headers=TUS)
    assert (answer.status, answer.get("tus-resumable")) == (status, "1.0.0")
    assert (await service.client().request(method, path)).get("tus-resumable") is None


async def test_the_log_does_not_hold_the_key(service: Service) -> None:
    client = service.client()
    with capture_logs() as lines:
        url = await create(client, 5)
        assert (await patch(client, url, 0, b"hello")).status == 204
        assert (await head(client, url)).status == 200
    key = url.rpartition("/")[2]
    assert key not in str(lines)
    answered = [line for line in lines if line["event"] == "answered"]
    assert [line["path"] for line in answered] == [UPLOADS, *[f"{UPLOADS}/{key[:6]}..."] * 2]
    assert len({line["uploads"][0] for line in answered}) == 1
    with capture_logs() as lines:
        for path in (url.replace("uploads", "%75ploads"), url.replace("/ingestion", "%2Fingestion"), f"/x/{url}"):
            await client.request("HEAD", path, headers=TUS)
    assert key not in str(lines)
    assert [line["status"] for line in lines if line["event"] == "answered"] == [200, 200, 404]
