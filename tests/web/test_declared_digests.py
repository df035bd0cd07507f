"""A digest that was declared is checked or refused, in uploads that come in several requests."""

from typing import Any

import pytest

from tests.support.asgi import Answer, Client, Service
from tests.web.test_tus import CHUNK, CONTENT, TUS, UPLOADS, create, head, listed, patch
from tests.web.test_uploads import digest_field

pytestmark = pytest.mark.asyncio(loop_scope="module")

ALGORITHMS = ["sha-256", "sha-512"]
PATCH = {"Content-Type": "application/partial-upload", "Upload-Draft-Interop-Version": "8"}
MORE, DONE = {"Upload-Complete": "?0"}, {"Upload-Complete": "?1"}


def whole(content: bytes, algorithm: str) -> dict[str, str]:
    return {"Repr-Digest": digest_field(content, algorithm)}


def body(content: bytes, algorithm: str) -> dict[str, str]:
    return {"Content-Digest": digest_field(content, algorithm)}


async def failed(client: Client) -> list[str | None]:
    """The error codes of what the session's history holds, the newest first."""
    return [item["error"] and item["error"]["code"] for item in await listed(client)]


@pytest.mark.parametrize("algorithm", ALGORITHMS)
async def test_a_tus_upload_has_the_digest_of_its_creation_or_fails(service: Service, algorithm: str) -> None:
    client = service.client()
    for content, status in ((CONTENT, 204), (CONTENT[::-1], 400)):
        url = await create(client, len(CONTENT), **whole(CONTENT, algorithm))
        assert (await patch(client, url, 0, content[:5000])).status == 204
        last = await patch(client, url, 5000, content[5000:])
        assert last.status == status
    assert last.refused(400, "digest_mismatch")["algorithm"] == algorithm
    assert await failed(client) == ["digest_mismatch", None]


@pytest.mark.parametrize("algorithm", ALGORITHMS)
async def test_a_tus_upload_has_the_digest_that_any_of_its_requests_declares(service: Service, algorithm: str) -> None:
    client = service.client()
    for declared, code in ((CONTENT, None), (b"other", "digest_mismatch")):
        for at in (0, 5000):  # the first request, or the last one
            url = await create(client, len(CONTENT))
            pieces = {0: CONTENT[:5000], 5000: CONTENT[5000:]}
            for offset, piece in pieces.items():
                fields = whole(declared, algorithm) if offset == at else {}
                answer = await patch(client, url, offset, piece, fields)
            if code is None:
                assert answer.status == 204
            else:
                answer.refused(400, code)
                assert (await head(client, url)).status == 410
    assert await failed(client) == ["digest_mismatch"] * 2 + [None] * 2


async def test_two_requests_that_declare_different_digests_are_refused(service: Service) -> None:
    client = service.client()
    url = await create(client, len(CONTENT), **whole(CONTENT, "sha-256"))
    refused = await patch(client, url, 0, CONTENT, whole(b"other", "sha-256"))
    refused.refused(400, "bad_request")
    assert (await head(client, url))["upload-offset"] == "0"
    assert (await patch(client, url, 0, CONTENT, whole(CONTENT, "sha-512"))).status == 204


@pytest.mark.parametrize("algorithm", ALGORITHMS)
async def test_the_bytes_of_a_tus_request_have_their_digest_or_do_not_count(service: Service, algorithm: str) -> None:
    client = service.client()
    url = await create(client, len(CONTENT))
    wrong = await patch(client, url, 0, CONTENT[:5000], body(b"other", algorithm))
    wrong.refused(400, "digest_mismatch")
    assert (await head(client, url))["upload-offset"] == "0"
    for offset, piece in ((0, CONTENT[:5000]), (5000, CONTENT[5000:])):
        assert (await patch(client, url, offset, piece, body(piece, algorithm))).status == 204
    fields = {**CHUNK, "Upload-Length": "5", **body(b"other", algorithm)}
    made = await client.post(UPLOADS, b"hello", headers=fields)
    made.refused(400, "digest_mismatch")
    assert (await head(client, made["location"]))["upload-offset"] == "0"
    fields = {**CHUNK, "Upload-Length": "5", **body(b"hello", algorithm)}
    assert (await client.post(UPLOADS, b"hello", headers=fields))["upload-offset"] == "5"


async def part(client: Client, content: bytes, declared: bytes, algorithm: str) -> Answer:
    fields = {**CHUNK, "Upload-Concat": "partial", "Upload-Length": str(len(content)), **whole(declared, algorithm)}
    return await client.post(UPLOADS, content, headers=fields)


@pytest.mark.parametrize("algorithm", ALGORITHMS)
async def test_a_part_has_its_digest_or_fails(service: Service, algorithm: str) -> None:
    client = service.client()
    wrong = await part(client, b"hello", b"other", algorithm)
    assert wrong.refused(400, "digest_mismatch")["algorithm"] == algorithm
    assert (await client.request("HEAD", wrong["location"], headers=TUS)).status == 410
    right = await part(client, b"hello", b"hello", algorithm)
    assert (right.status, right["upload-offset"]) == (201, "5")


@pytest.mark.parametrize("algorithm", ALGORITHMS)
async def test_a_concatenation_has_its_digest_or_fails(service: Service, algorithm: str) -> None:
    client = service.client()
    urls = [(await part(client, content, content, "sha-256"))["location"] for content in (b"hello, ", b"world")]
    final: dict[str, Any] = {**TUS, "Upload-Concat": f"final;{' '.join(urls)}"}
    wrong = await client.post(UPLOADS, headers={**final, **whole(b"hello", algorithm)})
    wrong.refused(400, "digest_mismatch")
    right = await client.post(UPLOADS, headers={**final, **whole(b"hello, world", algorithm)})
    assert (right.status, right["repr-digest"]) == (201, digest_field(b"hello, world"))
    assert await failed(client) == [None, "digest_mismatch"]
    for declared, status in ((b"", 201), (b"x", 400)):
        answer = await client.post(UPLOADS, headers={**final, **body(declared, algorithm), "Upload-Metadata": "a"})
        assert answer.status == status


@pytest.mark.parametrize("algorithm", ALGORITHMS)
async def test_a_draft_upload_has_its_digests_or_fails(service: Service, algorithm: str) -> None:
    client = service.client()
    for creation, last, status in (
        (whole(b"hello", algorithm), {}, 201),
        (whole(b"other", algorithm), {}, 400),
        ({}, whole(b"hello", algorithm), 201),
        ({}, whole(b"other", algorithm), 400),
        (body(b"hel", algorithm), body(b"lo", algorithm), 201),
    ):
        made = await client.post(UPLOADS, b"hel", headers={**MORE, **creation})
        assert made.status == 201
        fields = {**PATCH, **DONE, "Upload-Offset": "3", **last}
        answer = await client.request("PATCH", made["location"], headers=fields, body=b"lo")
        assert answer.status == status, (creation, last)
    assert await failed(client) == [None, "digest_mismatch", None, "digest_mismatch", None]


@pytest.mark.parametrize("algorithm", ALGORITHMS)
async def test_the_bytes_of_a_draft_request_have_their_digest_or_do_not_count(service: Service, algorithm: str) -> None:
    client = service.client()
    wrong = await client.post(UPLOADS, b"hel", headers={**MORE, **body(b"other", algorithm)})
    wrong.refused(400, "digest_mismatch")
    made = await client.post(UPLOADS, b"hel", headers={**MORE, **body(b"hel", algorithm)})
    fields = {**PATCH, **DONE, "Upload-Offset": "3"}
    again = await client.request("PATCH", made["location"], headers={**fields, **body(b"x", algorithm)}, body=b"lo")
    again.refused(400, "digest_mismatch")
    assert (await client.request("PATCH", made["location"], headers=fields, body=b"lo")).status == 201


@pytest.mark.parametrize("field", ["Repr-Digest", "Content-Digest"])
async def test_a_digest_that_cannot_be_checked_is_refused_before_the_body(service: Service, field: str) -> None:
    client = service.client()
    url = await create(client, 5)
    draft = await client.post(UPLOADS, b"hel", headers=MORE)
    unknown = {field: "md5=:AAAA:"}
    for method, target, fields in (
        ("POST", UPLOADS, {**CHUNK, "Upload-Length": "5"}),
        ("PATCH", url, {**CHUNK, "Upload-Offset": "0"}),
        ("POST", UPLOADS, {**TUS, "Upload-Concat": f"final;{url}"}),
        ("POST", UPLOADS, MORE),
        ("POST", UPLOADS, DONE),
        ("PATCH", draft["location"], {**PATCH, **DONE, "Upload-Offset": "3"}),
    ):
        sent = b"" if "Upload-Concat" in fields else b"hello"
        answer = await client.request(method, target, headers={**fields, **unknown}, body=sent)
        answer.refused(400, "bad_request")
        assert answer["want-repr-digest"] == "sha-256=10, sha-512=5"
        assert answer.asked == 0
