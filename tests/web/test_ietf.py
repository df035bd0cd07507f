"""HTTP's own resumable uploads (draft-ietf-httpbis-resumable-upload), in every interop version that is spoken."""

import asyncio
import base64
import hashlib
from collections.abc import AsyncIterator
from typing import Any

import pytest

from app.errors import InProgress
from tests.support.asgi import Answer, Client, HangUp, Service, serving, settings_in

pytestmark = pytest.mark.asyncio(loop_scope="module")

UPLOADS = "/api/ingestion/uploads"
HISTORY = "/api/ingestion/history"
CHUNK = {"Content-Type": "application/partial-upload"}
MORE, DONE = {"Upload-Complete": "?0"}, {"Upload-Complete": "?1"}
VERSIONS = [None, "5", "6", "8", "9", "10"]
LARGE = bytes(range(256)) * 1025  # more than waits in memory
IANA = "https://iana.org/assignments/http-problem-types#"


def sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def digest_field(content: bytes) -> str:
    return f"sha-256=:{base64.b64encode(hashlib.sha256(content).digest()).decode()}:"


def speaking(version: str | None) -> dict[str, str]:
    return {"Upload-Draft-Interop-Version": version} if version else {}


async def append(client: Client, url: str, offset: int, body: Any, headers: dict[str, str], **how: Any) -> Answer:
    return await client.request(
        "PATCH", url, headers={**CHUNK, "Upload-Offset": str(offset), **headers}, body=body, **how
    )


async def listed(client: Client) -> list[dict[str, Any]]:
    answer = await client.get(f"{HISTORY}?limit=500")
    assert answer.status == 200
    return answer.json()["items"]


def refused_with_a_registered_type(answer: Answer, status: int, code: str, kind: str) -> dict[str, Any]:
    assert answer.status == status, answer.body
    problem: dict[str, Any] = answer.json()
    assert problem["code"] == code
    assert problem["type"] == f"{IANA}{kind}"
    return problem


@pytest.mark.parametrize("version", VERSIONS)
async def test_a_careful_upload_is_stored(service: Service, version: str | None) -> None:
    client, speak = service.client(), speaking(version)
    headers = {**MORE, **speak, "Content-Type": "text/x-notes", "Content-Disposition": "inline; filename=a.txt"}
    answer = await client.post(UPLOADS, headers=headers)
    assert (answer.status, answer["upload-complete"], answer["upload-offset"]) == (201, "?0", "0")
    assert "max-size=" in answer["upload-limit"]
    url = answer["location"]
    [begun] = await listed(client)
    assert (begun["status"], begun["protocol"]) == ("uploading", "resumable")

    answer = await append(client, url, 0, b"hel", {**MORE, **speak})
    assert (answer.status, answer["upload-complete"], answer["upload-offset"]) == (204, "?0", "3")
    for method in ("HEAD", "GET"):
        asked = await client.request(method, url, headers=speak)
        assert asked.status == 204
        assert (asked["upload-offset"], asked["upload-complete"], asked["cache-control"]) == ("3", "?0", "no-store")
        assert asked["upload-limit"]
    answer = await append(client, url, 3, b"lo", {**DONE, **speak})
    assert (answer.status, answer["upload-complete"]) == (201, "?1")
    record = answer.json()
    assert record == (await listed(client))[0]
    assert (record["filename"], record["content_type"], record["size"]) == ("a.txt", "text/x-notes", 5)
    assert (record["status"], record["sha256"]) == ("completed", sha256(b"hello"))
    assert answer["repr-digest"] == digest_field(b"hello")
    assert service.files()[record["id"]] == b"hello"
    asked = await client.request("HEAD", url, headers=speak)
    assert (asked["upload-offset"], asked["upload-complete"], asked["upload-length"]) == ("5", "?1", "5")
    assert "max-age" not in asked["upload-limit"]  # it does not expire any more


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("method", ["POST", "PUT"])
@pytest.mark.parametrize("content", [b"hello", LARGE], ids=["small", "large"])
async def test_an_optimistic_upload_answers_as_an_ordinary_one(
    service: Service, method: str, version: str | None, content: bytes
) -> None:
    client = service.client()
    target = f"{UPLOADS}/b.txt" if method == "PUT" else UPLOADS
    headers = {**DONE, **speaking(version), "Content-Type": "text/plain"}
    answer = await client.request(method, target, headers=headers, body=content)
    assert (answer.status, answer["upload-complete"], answer["upload-offset"]) == (201, "?1", str(len(content)))
    is_offered = version is not None and content == LARGE
    assert [status for status, _ in answer.interim] == [104] * is_offered
    record = answer.json()
    assert record["protocol"] == ("resumable" if is_offered else "raw")
    assert record["sha256"] == sha256(content)
    assert record["filename"] == ("b.txt" if method == "PUT" else "unnamed")
    assert [record] == await listed(client)
    if version is None or int(version) > 6:
        assert answer["location"] == record["links"]["self"]
    elif is_offered:  # clients of those drafts take it for the upload's own URL
        asked = await client.request("HEAD", answer["location"])
        assert asked["upload-complete"] == "?1"


@pytest.mark.parametrize("version", VERSIONS[1:])
async def test_an_offering_client_is_sent_the_location_early(service: Service, version: str) -> None:
    client = service.client()
    await client.post("/api/session")
    answer = await client.put("c.txt", [LARGE, b"lo"], headers={**DONE, **speaking(version)}, hang_up_after=1)
    [(status, headers)] = answer.interim
    assert (status, headers["upload-draft-interop-version"]) == (104, version)
    assert "max-size=" in headers["upload-limit"]
    asked = await client.request("HEAD", headers["location"], headers=speaking(version))
    assert (asked["upload-offset"], asked["upload-complete"]) == (str(len(LARGE)), "?0")
    done = await append(client, headers["location"], len(LARGE), b"lo", {**DONE, **speaking(version)})
    assert (done.status, done.json()["filename"], done.json()["sha256"]) == (201, "c.txt", sha256(LARGE + b"lo"))


@pytest.mark.parametrize(("version", "told"), [("10", ["3", "24"]), ("6", []), (None, [])])
async def test_a_client_of_the_draft_is_sent_its_durable_offset_while_it_sends(
    service: Service, monkeypatch: pytest.MonkeyPatch, version: str | None, told: list[str]
) -> None:
    monkeypatch.setattr("app.resumables.writer.CHECKPOINT_BYTES", 1)
    client = service.client()
    made = await client.post(UPLOADS, headers={**MORE, "Upload-Length": "30"})
    blocks = [b"hel", b"lo", bytes(19), b"!"]  # reported is what came first, and then what is eight times as much
    answer = await append(client, made["location"], 0, blocks, {**MORE, **speaking(version)})
    assert answer["upload-offset"] == "25"
    assert [headers["upload-offset"] for _, headers in answer.interim] == told
    assert not any("location" in headers for _, headers in answer.interim)


async def test_a_question_at_a_busy_upload_is_answered_with_retry_after(
    service: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    client = service.client()
    made = await client.post(UPLOADS, headers=MORE)

    async def passed_over(*_: Any, **__: Any) -> None:
        raise InProgress

    with monkeypatch.context() as patched:
        patched.setattr(service.state["resumes"], "find", passed_over)
        answer = await client.get(made["location"], headers=speaking("10"))
        answer.refused(503, "unavailable")
        assert answer["retry-after"] == "1"
    assert (await client.get(made["location"])).status == 204


@pytest.mark.parametrize("method", ["HEAD", "GET", "DELETE"])
async def test_an_absent_upload_is_not_kept_by_caches(service: Service, method: str) -> None:
    """The session that owns it would be told so too."""
    made = await service.client().post(UPLOADS, headers=MORE)
    other = service.client()
    await other.post("/api/session")
    for headers in ({}, speaking("10"), {"Tus-Resumable": "1.0.0"}):
        answer = await other.request(method, made["location"], headers=headers)
        assert (answer.status, answer["cache-control"]) == (404, "no-store")


@pytest.mark.parametrize("version", [None, "7", "11", "x"])
async def test_an_upload_that_breaks_off_and_cannot_go_on_leaves_nothing(service: Service, version: str | None) -> None:
    client = service.client()
    await client.post("/api/session")
    answer = await client.put("c.txt", [b"hel", b"lo"], headers={**DONE, **speaking(version)}, hang_up_after=1)
    assert answer.interim == []
    [record] = await listed(client)
    assert (record["status"], record["error"]["code"]) == ("failed", "incomplete_body")


async def test_a_length_that_comes_apart_from_the_body_counts_too(service: Service) -> None:
    client = service.client()
    for content, status in ((b"hello", 201), (b"hell", 400)):
        fields = {**DONE, "Upload-Length": "5", "Transfer-Encoding": "chunked"}
        answer = await client.put("a", [content], headers=fields)
        assert answer.status == status
    refused_with_a_registered_type(answer, 400, "inconsistent_upload_length", "inconsistent-upload-length")


async def test_a_tus_client_of_this_protocol_may_name_the_file_by_its_metadata(service: Service) -> None:
    named = {"Upload-Metadata": "filename YS50eHQ=,filetype dGV4dC9wbGFpbg=="}
    for fields in (speaking("6"), {}):
        answer = await service.client().post(UPLOADS, b"hello", headers={**CHUNK, **DONE, **fields, **named})
        assert (answer.json()["filename"], answer.json()["content_type"]) == ("a.txt", "text/plain")


async def test_interim_responses_can_be_turned_off(tmp_path: Any) -> None:
    async with serving(settings_in(tmp_path, interim_responses=False)) as service:
        answer = await service.client().put("a", b"hello", headers={**DONE, **speaking("6")})
        assert (answer.status, answer["upload-complete"], answer.interim) == (201, "?1", [])


async def test_an_upload_that_breaks_off_goes_on_where_it_was(service: Service) -> None:
    client = service.client()
    made = await client.post(UPLOADS, headers=MORE)
    await append(client, made["location"], 0, [b"hel", b"lo"], DONE, hang_up_after=1)
    asked = await client.request("HEAD", made["location"])
    assert (asked["upload-offset"], asked["upload-complete"]) == ("3", "?0")
    answer = await append(client, made["location"], 3, b"lo", DONE)
    assert answer.json()["sha256"] == sha256(b"hello")


async def test_an_empty_body_completes_what_is_there(service: Service) -> None:
    client = service.client()
    made = await client.post(UPLOADS, b"hello", headers=MORE)
    assert (made.status, made["upload-offset"]) == (201, "5")
    answer = await append(client, made["location"], 5, b"", DONE)
    assert (answer.status, answer["upload-complete"], answer.json()["size"]) == (201, "?1", 5)


async def test_a_file_of_no_bytes_is_a_file(service: Service) -> None:
    client = service.client()
    assert (await client.post(UPLOADS, b"", headers=DONE)).json()["sha256"] == sha256(b"")
    # As tus-js-client has it: it never sends a request that ends this one.
    answer = await client.post(UPLOADS, b"", headers={**MORE, **speaking("6"), "Upload-Length": "0"})
    assert (answer.status, answer["upload-complete"]) == (201, "?1")
    assert [item["status"] for item in await listed(client)] == ["completed", "completed"]


async def test_the_last_byte_of_a_known_length_completes_it(service: Service) -> None:
    """As tus-js-client leaves it, too: with ?0, and nothing after it."""
    client = service.client()
    made = await client.post(UPLOADS, b"", headers={**MORE, **speaking("6"), "Upload-Length": "5"})
    answer = await append(client, made["location"], 0, b"hello", {**MORE, **speaking("6")})
    assert answer["upload-complete"] == "?1"
    assert answer["upload-offset"] == "5"
    [record] = await listed(client)
    assert (record["status"], record["size"]) == ("completed", 5)


async def test_the_final_answer_can_be_had_again(service: Service) -> None:
    client = service.client()
    made = await client.post(UPLOADS, b"hel", headers=MORE)
    first = await append(client, made["location"], 3, b"lo", DONE)
    again = await append(client, made["location"], 5, b"", DONE)
    assert again.status == first.status
    assert (again.json(), again["upload-complete"]) == (first.json(), "?1")
    assert len(await listed(client)) == 1


async def test_a_wrong_offset_is_refused_with_the_right_one(service: Service) -> None:
    client = service.client()
    made = await client.post(UPLOADS, b"hel", headers=MORE)
    for offset in (0, 2, 4):
        answer = await append(client, made["location"], offset, b"lo", DONE)
        problem = refused_with_a_registered_type(answer, 409, "offset_mismatch", "mismatching-upload-offset")
        assert (problem["expected-offset"], problem["provided-offset"]) == (3, offset)
        assert (answer["upload-offset"], answer["upload-complete"]) == ("3", "?0")
        assert answer.asked == 0
    assert (await append(client, made["location"], 3, b"lo", DONE)).status == 201


async def test_lengths_that_differ_are_refused(service: Service) -> None:
    client = service.client()
    kind = "inconsistent-upload-length"
    answer = await client.post(UPLOADS, b"hello", headers={**DONE, "Upload-Length": "6"})
    refused_with_a_registered_type(answer, 400, "inconsistent_upload_length", kind)
    assert answer["upload-complete"] == "?0"
    made = await client.post(UPLOADS, b"hel", headers={**MORE, "Upload-Length": "5"})
    for body, headers in ((b"l", {**MORE, "Upload-Length": "6"}), (b"l", DONE)):
        answer = await append(client, made["location"], 3, body, headers)
        refused_with_a_registered_type(answer, 400, "inconsistent_upload_length", kind)
    assert (await append(client, made["location"], 3, b"lo", DONE)).status == 201


async def test_an_upload_longer_than_declared_fails_for_good(service: Service) -> None:
    client = service.client()
    made = await client.post(UPLOADS, b"hel", headers={**MORE, "Upload-Length": "5"})

    async def body() -> AsyncIterator[bytes]:
        yield b"lo"
        yield b"!"

    (await append(client, made["location"], 3, body(), MORE)).refused(413, "too_large")
    assert (await client.request("HEAD", made["location"])).status == 410
    [record] = await listed(client)
    assert (record["status"], record["error"]["code"]) == ("failed", "too_large")
    assert service.files().keys().isdisjoint({record["id"]})


async def test_a_file_over_the_limit_is_refused_with_the_limit(tmp_path: Any) -> None:
    async with serving(settings_in(tmp_path, max_file_size=10, max_request_size=100)) as service:
        client = service.client()
        for headers, body in (({**MORE, "Upload-Length": "11"}, b""), (DONE, b"x" * 11), (MORE, b"x" * 11)):
            answer = await client.post(UPLOADS, body, headers=headers)
            answer.refused(413, "too_large")
            assert "max-size=10" in answer["upload-limit"]
            assert answer.asked == 0


@pytest.mark.parametrize("ends", [MORE, DONE])
async def test_the_digest_of_the_file_is_verified_in_the_end(service: Service, ends: dict[str, str]) -> None:
    client = service.client()
    for content, status in ((b"hello", 201), (b"hallo", 400)):
        made = await client.post(UPLOADS, content[:3], headers={**MORE, "Repr-Digest": digest_field(b"hello")})
        if ends is MORE:
            assert (await append(client, made["location"], 3, content[3:4], MORE)).status == 204
            answer = await append(client, made["location"], 4, content[4:], DONE)
        else:
            answer = await append(client, made["location"], 3, content[3:], DONE)
        assert answer.status == status
        assert answer["upload-complete"] == "?1"  # nothing that could follow would mend it
    answer.refused(400, "digest_mismatch")
    assert (await client.request("HEAD", made["location"])).status == 410
    failed, done = await listed(client)
    assert (failed["status"], failed["error"]["code"], done["status"]) == ("failed", "digest_mismatch", "completed")
    assert failed["id"] not in service.files()


async def test_the_digest_of_a_chunk_is_verified_before_it_counts(service: Service) -> None:
    client = service.client()
    made = await client.post(UPLOADS, b"hel", headers=MORE)
    answer = await append(client, made["location"], 3, b"la", {**DONE, "Content-Digest": digest_field(b"lo")})
    assert (answer.status, answer["upload-complete"]) == (400, "?0")
    assert (await client.request("HEAD", made["location"]))["upload-offset"] == "3"
    assert (
        await append(client, made["location"], 3, b"lo", {**DONE, "Content-Digest": digest_field(b"lo")})
    ).status == 201


async def test_a_cancelled_upload_is_gone(service: Service) -> None:
    client = service.client()
    made = await client.post(UPLOADS, b"hel", headers=MORE)
    assert (await client.delete(made["location"])).status == 204
    assert (await client.request("HEAD", made["location"])).status == 410
    (await append(client, made["location"], 3, b"lo", DONE)).refused(410, "gone")
    finished = await client.post(UPLOADS, LARGE, headers={**DONE, **speaking("6")})
    assert (await client.delete(finished["location"])).status == 204
    assert (await client.request("HEAD", finished["location"])).status in {404, 410}
    done, _ = await listed(client)
    assert (await client.get(done["links"]["content"])).body == LARGE


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({"Upload-Offset": "3"}, 400),
        ({"Upload-Complete": "?1"}, 400),
        ({"Upload-Offset": "-3", "Upload-Complete": "?1"}, 400),
        ({"Upload-Offset": "3", "Upload-Complete": "true"}, 400),
        ({"Upload-Offset": "3", "Upload-Complete": "?1", "Content-Type": "application/json"}, 415),
    ],
)
async def test_a_malformed_request_is_refused_before_the_body(
    service: Service, headers: dict[str, str], status: int
) -> None:
    client = service.client()
    made = await client.post(UPLOADS, b"hel", headers=MORE)
    answer = await client.request("PATCH", made["location"], headers={**CHUNK, **headers}, body=b"lo")
    assert (answer.status, answer.asked, answer["upload-complete"]) == (status, 0, "?0")
    assert (await client.request("HEAD", made["location"]))["upload-offset"] == "3"


async def test_a_question_with_an_answer_in_it_is_refused(service: Service) -> None:
    client = service.client()
    made = await client.post(UPLOADS, b"hel", headers=MORE)
    (await client.get(made["location"], headers={"Upload-Offset": "3"})).refused(400, "bad_request")


async def test_a_field_that_says_nothing_leaves_an_ordinary_upload(service: Service) -> None:
    answer = await service.client().put("a", b"x", headers={"Upload-Complete": "true"})
    assert (answer.status, answer.json()["protocol"], answer.get("upload-complete")) == (201, "raw", None)


async def test_a_form_is_a_form_whatever_it_offers(service: Service) -> None:
    body = b'--b\r\nContent-Disposition: form-data; name="f"; filename="a"\r\n\r\nx\r\n--b--\r\n'
    headers = {"Content-Type": "multipart/form-data; boundary=b", **speaking("6")}
    answer = await service.client().post(UPLOADS, body, headers={**headers, **DONE})
    assert (answer.status, answer.json()["items"][0]["protocol"]) == (201, "form")
    answer = await service.client().post(UPLOADS, body, headers={**headers, **MORE})
    answer.refused(415, "unsupported_media_type")
    assert answer["upload-complete"] == "?1"


async def test_the_newest_request_preempts_the_writer(service: Service) -> None:
    client = service.client()
    made = await client.post(UPLOADS, headers=MORE)
    taken, more = asyncio.Event(), asyncio.Event()

    async def body() -> AsyncIterator[bytes]:
        yield b"hel"
        taken.set()
        await more.wait()
        raise HangUp

    running = asyncio.create_task(append(client, made["location"], 0, body(), DONE))
    await taken.wait()
    asked = await client.request("HEAD", made["location"])
    assert asked["upload-offset"] == "3"
    more.set()
    assert (await running).status in {0, 409}
    assert (await append(client, made["location"], 3, b"lo", DONE)).json()["sha256"] == sha256(b"hello")
