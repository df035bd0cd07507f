"""Bytes out: ranges, conditions, headers; and that what is gone, foreign or damaged is never a 200."""

import asyncio
import base64
import hashlib
import json
import os
import re
from contextlib import suppress
from email.parser import BytesParser
from email.policy import HTTP
from typing import Any

import pytest

from app.uploads import records as upload_records
from tests.support.asgi import Answer, Client, Service

pytestmark = pytest.mark.asyncio(loop_scope="module")

CONTENT = b"0123456789abcdefghij"
DIGEST = hashlib.sha256(CONTENT).hexdigest()
ETAG = f'"sha256-{DIGEST}"'
LARGE = bytes(range(256)) * 4096  # 1 MiB: read in several blocks
ABSENT = "0193a1f0-0000-7000-8000-000000000000"


async def upload(client: Client, content: bytes = CONTENT, name: str = "a.bin", **headers: str) -> dict[str, Any]:
    answer = await client.put(name, content, headers=headers)
    assert answer.status == 201
    record: dict[str, Any] = answer.json()
    return record


async def content_of(client: Client, content: bytes = CONTENT, **headers: str) -> str:
    record = await upload(client, content, **headers)
    return str(record["links"]["content"])


async def test_a_download_brings_the_bytes_and_their_headers(service: Service) -> None:
    client = service.client()
    record = await upload(client, name="%E2%82%AC%20%22rates%22%3B.csv", **{"Content-Type": "text/csv"})
    answer = await client.get(record["links"]["content"])
    assert (answer.status, answer.body) == (200, CONTENT)
    digest = base64.b64encode(bytes.fromhex(DIGEST)).decode()
    completed = re.sub(r"\D", "", record["completed_at"])
    modified = answer["last-modified"]
    assert dict(answer.headers) == {
        "accept-ranges": "bytes",
        "cache-control": "private, no-store",
        "content-disposition": 'attachment; filename="_ _rates__.csv"; '
        "filename*=UTF-8''%E2%82%AC%20%22rates%22%3B.csv",
        "content-length": "20",
        "content-security-policy": "sandbox; default-src 'none'; frame-ancestors 'none'",
        "content-type": "text/csv",
        "cross-origin-resource-policy": "same-origin",
        "etag": ETAG,
        "last-modified": modified,
        "referrer-policy": "no-referrer",
        "repr-digest": f"sha-256=:{digest}:",
        "x-content-type-options": "nosniff",
        "x-request-id": answer["x-request-id"],
    }
    assert (modified[12:16], modified[17:25].replace(":", "")) == (completed[:4], completed[8:14])


async def test_head_is_get_without_the_bytes(service: Service) -> None:
    client = service.client()
    for content in (CONTENT, b"", LARGE):
        target = await content_of(client, content)
        same = {"X-Request-Id": "same"}
        got = await client.get(target, headers=same)
        head = await client.request("HEAD", target, headers=same)
        assert (head.status, head.body, head.headers) == (200, b"", got.headers)
        assert got.body == content


@pytest.mark.parametrize(
    ("given", "served"),
    [
        ("text/plain", "text/plain"),
        ("text/plain; charset=ISO-8859-1", "text/plain; charset=iso-8859-1"),
        ('Text/CSV ;charset="utf-8"; header=present', "text/csv; charset=utf-8"),
        ("image/png", "image/png"),
        ("image/png; x=y", "image/png"),
        ("audio/ogg; codecs=opus", "audio/ogg"),
        ("video/mp4", "video/mp4"),
        ("application/pdf", "application/pdf"),
        ("application/zip", "application/zip"),
        ("text/html", None),
        ("text/html; charset=utf-8", None),
        ("TEXT/HTML", None),
        ("application/xhtml+xml", None),
        ("application/xml", None),
        ("text/xml", None),
        ("image/svg+xml", None),
        ("image/SVG+xml; charset=utf-8", None),
        ("image/svg", None),
        ("image/x+xml", None),
        ("image/png, text/html", None),
        ("image/png text/html", None),
        ("image/png;,text/html", "image/png"),
        ("text/plain-html", None),
        ("text/javascript", None),
        ("application/pdfx", None),
        ("image/", None),
        ("image", None),
        ("/", None),
        ("multipart/x-mixed-replace; boundary=x", None),
        ("message/rfc822", None),
    ],
)
async def test_only_types_that_no_browser_runs_are_served_as_declared(
    service: Service, given: str, served: str | None
) -> None:
    client = service.client()
    record = await upload(client, **{"Content-Type": given})
    assert record["content_type"] == given  # kept as it came
    for headers, status in (({}, 200), ({"Range": "bytes=0-0"}, 206)):
        answer = await client.get(record["links"]["content"], headers=headers)
        assert (answer.status, answer["content-type"]) == (status, served or "application/octet-stream")
        assert answer["x-content-type-options"] == "nosniff"
        assert answer["content-disposition"].startswith("attachment; ")
        assert answer["content-security-policy"].startswith("sandbox; default-src 'none'")
        assert answer["cross-origin-resource-policy"] == "same-origin"


# --- ranges


@pytest.mark.parametrize(
    ("asked", "start", "stop"),
    [
        ("bytes=0-0", 0, 1),
        ("bytes=0-4", 0, 5),
        ("bytes=5-", 5, 20),
        ("bytes=19-19", 19, 20),
        ("bytes=19-100", 19, 20),
        ("bytes=-1", 19, 20),
        ("bytes=-20", 0, 20),
        ("bytes=-1000", 0, 20),
        ("BYTES=2-3", 2, 4),
        ("bytes= 2-3 ", 2, 4),
        ("bytes=2-3,", 2, 4),
        ("bytes=2-3,100-200", 2, 4),
        (f"bytes=1-{10**18}", 1, 20),
    ],
)
async def test_a_range_is_a_206_with_these_bytes(service: Service, asked: str, start: int, stop: int) -> None:
    client = service.client()
    answer = await client.get(await content_of(client), headers={"Range": asked})
    assert (answer.status, answer.body) == (206, CONTENT[start:stop])
    assert answer["content-range"] == f"bytes {start}-{stop - 1}/20"
    assert answer["content-length"] == str(stop - start)
    assert answer["etag"] == ETAG


@pytest.mark.parametrize(
    "asked",
    [
        "",
        "bytes",
        "bytes=",
        "bytes=-",
        "bytes=a-b",
        "bytes=4-2",
        "bytes=0-1,4-2",
        "bytes=1.5-2",
        "bytes=+1-2",
        "bytes=\xb2-\xb3",
        "items=0-1",
        "bytes 0-1",
        "bytes=0-1,2-3,4-5,6-7,8-9,10-11",
        "bytes=0-5,5-6",
        "bytes=10-,0-10",
        "bytes=-5,-3",
        "bytes=" + ",".join(f"{at}-{at}" for at in range(10_000)),
        "bytes=0-" + "9" * 5000,
    ],
)
async def test_an_unsupported_range_gets_the_whole_file(service: Service, asked: str) -> None:
    client = service.client()
    answer = await client.get(await content_of(client), headers={"Range": asked})
    assert (answer.status, answer.body) == (200, CONTENT)
    assert answer.all("content-range") == []


@pytest.mark.parametrize("asked", ["bytes=20-", "bytes=20-30", "bytes=-0", "bytes=100-200,300-"])
async def test_a_range_outside_the_file_is_refused_with_its_size(service: Service, asked: str) -> None:
    client = service.client()
    target = await content_of(client)
    answer = await client.get(target, headers={"Range": asked})
    answer.refused(416, "range_not_satisfiable")
    assert answer["content-range"] == "bytes */20"
    head = await client.request("HEAD", target, headers={"Range": asked})
    assert (head.status, head["content-length"]) == (200, "20")  # a Range is for GET alone


async def test_a_head_ignores_ranges(service: Service) -> None:
    client = service.client()
    head = await client.request("HEAD", await content_of(client), headers={"Range": "bytes=0-1"})
    assert (head.status, head["content-length"], head.all("content-range")) == (200, "20", [])


def parts_of(answer: Answer) -> list[tuple[str, str, bytes]]:
    """The parts of a multipart/byteranges, read by the standard library."""
    head = f"Content-Type: {answer['content-type']}\r\n\r\n".encode()
    message = BytesParser(policy=HTTP).parsebytes(head + answer.body)
    assert message.is_multipart()
    assert not message.defects
    return [
        (part["content-range"], part["content-type"], part.get_payload(decode=True)) for part in message.iter_parts()
    ]


@pytest.mark.parametrize(
    ("asked", "ranges"),
    [
        ("bytes=0-1,4-5", [(0, 2), (4, 6)]),
        ("bytes=4-5, 0-1", [(4, 6), (0, 2)]),
        ("bytes=0-0,1-1,2-2,3-3,-1", [(0, 1), (1, 2), (2, 3), (3, 4), (19, 20)]),
        ("bytes=0-1,500-600,4-5", [(0, 2), (4, 6)]),
    ],
)
async def test_several_ranges_come_as_parts_in_their_order(service: Service, asked: str, ranges: Any) -> None:
    client = service.client()
    target = await content_of(client, **{"Content-Type": "image/png"})
    answer = await client.get(target, headers={"Range": asked})
    assert answer.status == 206
    assert answer["content-type"].startswith("multipart/byteranges; boundary=")
    assert parts_of(answer) == [
        (f"bytes {start}-{stop - 1}/20", "image/png", CONTENT[start:stop]) for start, stop in ranges
    ]


async def test_ranges_of_a_large_file_are_cut_from_its_blocks(service: Service) -> None:
    client = service.client()
    target = await content_of(client, LARGE)
    assert (await client.get(target)).body == LARGE
    for start, stop in ((0, 1), (262_143, 262_145), (1, len(LARGE) - 1), (524_288, len(LARGE))):
        answer = await client.get(target, headers={"Range": f"bytes={start}-{stop - 1}"})
        assert (answer.status, answer.body) == (206, LARGE[start:stop])
    answer = await client.get(target, headers={"Range": "bytes=0-300000,400000-999999"})
    assert [payload for _, _, payload in parts_of(answer)] == [LARGE[:300_001], LARGE[400_000:1_000_000]]


async def test_an_empty_file_has_no_range_but_its_end(service: Service) -> None:
    client = service.client()
    target = await content_of(client, b"")
    assert (await client.get(target)).body == b""
    assert (await client.get(target, headers={"Range": "bytes=-5"})).status == 200
    answer = await client.get(target, headers={"Range": "bytes=0-"})
    answer.refused(416, "range_not_satisfiable")
    assert answer["content-range"] == "bytes */0"


# --- conditions


PAST, FUTURE = "Sun, 06 Nov 1994 08:49:37 GMT", "Fri, 31 Dec 2999 23:59:59 GMT"
CONDITIONS: list[tuple[dict[str, str], int]] = [
    ({"If-None-Match": ETAG}, 304),
    ({"If-None-Match": f"W/{ETAG}"}, 304),
    ({"If-None-Match": f'"x", {ETAG}'}, 304),
    ({"If-None-Match": "*"}, 304),
    ({"If-None-Match": '"x"'}, 200),
    ({"If-None-Match": DIGEST}, 200),
    ({"If-None-Match": '"x"', "If-Modified-Since": FUTURE}, 200),  # RFC 9110 §13.1.3: the tag goes before the date
    ({"If-Modified-Since": FUTURE}, 304),
    ({"If-Modified-Since": PAST}, 200),
    ({"If-Modified-Since": "Sunday, 06-Nov-94 08:49:37 GMT"}, 200),
    ({"If-Modified-Since": "soon"}, 200),
    ({"If-Match": ETAG}, 200),
    ({"If-Match": f'"x", {ETAG}'}, 200),
    ({"If-Match": "*"}, 200),
    ({"If-Match": f"W/{ETAG}"}, 412),
    ({"If-Match": '"x"'}, 412),
    ({"If-Match": ""}, 412),
    ({"If-Match": ETAG, "If-Unmodified-Since": PAST}, 200),
    ({"If-Match": ETAG, "If-None-Match": ETAG}, 304),
    ({"If-Unmodified-Since": PAST}, 412),
    ({"If-Unmodified-Since": FUTURE}, 200),
    ({"If-Unmodified-Since": "soon"}, 200),
    ({"Range": "bytes=0-1", "If-None-Match": ETAG}, 304),
    ({"Range": "bytes=0-1", "If-Match": '"x"'}, 412),
    ({"Range": "bytes=0-1", "If-Range": ETAG}, 206),
    ({"Range": "bytes=0-1", "If-Range": f"W/{ETAG}"}, 200),
    ({"Range": "bytes=0-1", "If-Range": '"x"'}, 200),
    ({"Range": "bytes=0-1", "If-Range": PAST}, 200),
    ({"Range": "bytes=0-1", "If-Range": "Last-Modified"}, 206),
    ({"Range": "bytes=99-", "If-Range": '"x"'}, 200),
    ({"If-Range": ETAG}, 200),
]


@pytest.mark.parametrize(("headers", "status"), CONDITIONS)
async def test_conditional_requests_are_answered_by_their_conditions(
    service: Service, headers: dict[str, str], status: int
) -> None:
    client = service.client()
    target = await content_of(client)
    if headers.get("If-Range") == "Last-Modified":
        headers = {**headers, "If-Range": (await client.get(target))["last-modified"]}
    answer = await client.get(target, headers=headers)
    if status == 412:
        answer.refused(412, "precondition_failed")
    assert answer.status == status
    assert answer.body == {200: CONTENT, 206: CONTENT[:2], 304: b"", 412: answer.body}[status]
    if status != 412:
        assert answer["etag"] == ETAG
    head = await client.request("HEAD", target, headers=headers)
    assert head.status == (200 if status == 206 else status)


async def test_a_list_of_tags_may_come_in_several_lines(service: Service) -> None:
    client = service.client()
    target = await content_of(client)
    for name, status in (("If-None-Match", 304), ("If-Match", 200)):
        answer = await client.request("GET", target, headers=[(name, '"x"'), (name, ETAG)])
        assert answer.status == status


async def test_a_file_has_not_changed_since_its_last_modified_time(service: Service) -> None:
    client = service.client()
    target = await content_of(client)
    modified = (await client.get(target))["last-modified"]
    assert (await client.get(target, headers={"If-Modified-Since": modified})).status == 304
    assert (await client.get(target, headers={"If-Unmodified-Since": modified})).status == 200


# --- gone, foreign, damaged


async def test_deleting_removes_the_bytes_and_keeps_the_record(service: Service) -> None:
    client = service.client()
    record = await upload(client)
    other = await upload(client)
    answer = await client.delete(record["links"]["content"])
    assert (answer.status, answer.body) == (204, b"")
    assert service.files().keys() & {record["id"], other["id"]} == {other["id"]}
    gone = (await client.get(record["links"]["self"])).json()
    assert gone == {**record, "status": "deleted", "links": {**record["links"], "content": None}}
    (await client.get(record["links"]["content"])).refused(404, "not_found")


async def test_simultaneous_deletions_all_succeed(service: Service) -> None:
    client = service.client()
    target = await content_of(client)
    answers = await asyncio.gather(*(client.delete(target) for _ in range(5)))
    assert [answer.status for answer in answers] == [204] * 5


MANY = "/api/ingestion/files/delete"


async def test_many_files_are_deleted_at_once_with_an_outcome_for_each(service: Service) -> None:
    client, stranger = service.client(), service.client()
    first, damaged, kept, deleted = [await upload(client) for _ in range(4)]
    foreign = await upload(stranger)
    await upload_records.fail_uploads(service.state["db"], [damaged["id"]], "damaged", "")
    await client.delete(deleted["links"]["content"])
    ids = [foreign["id"], first["id"], ABSENT, "../" + kept["id"], damaged["id"], first["id"], deleted["id"]]
    for _ in range(2):  # its answer may be lost
        answer = await client.post(MANY, json.dumps({"ids": ids}).encode())
        assert answer.status == 200
        assert [(item["id"], item["outcome"]) for item in answer.json()["items"]] == [
            (foreign["id"], "not_found"),
            (first["id"], "deleted"),
            (ABSENT, "not_found"),
            ("../" + kept["id"], "not_found"),
            (damaged["id"], "deleted"),
            (deleted["id"], "deleted"),
        ]
    assert service.files().keys() & {first["id"], damaged["id"], kept["id"], foreign["id"]} == {
        kept["id"],
        foreign["id"],
    }
    statuses = [(await client.get(record["links"]["self"])).json()["status"] for record in (first, damaged, kept)]
    assert statuses == ["deleted", "deleted", "completed"]


async def test_a_thousand_files_at_most_are_deleted_at_once(service: Service) -> None:
    client = service.client()
    records = [await upload(client, b"") for _ in range(3)]
    most = [record["id"] for record in records] + [ABSENT[:-4] + f"{number:04x}" for number in range(997)]
    outcomes = (await client.post(MANY, json.dumps({"ids": most}).encode())).json()["items"]
    assert [item["outcome"] for item in outcomes].count("deleted") == 3
    (await client.post(MANY, json.dumps({"ids": [*most, ABSENT]}).encode())).refused(400, "bad_request")


@pytest.mark.parametrize(
    "body",
    [b"", b"{", b"[]", b"{}", b'{"ids": []}', b'{"ids": [1]}', b'{"ids": "x"}', b'{"ids": null}', b'{"id": ["x"]}',
     b'{"ids": ["x"], "all": true}', b'{"ids": ["\xff"]}'],
)  # fmt: skip
async def test_a_selection_that_is_none_deletes_nothing(service: Service, body: bytes) -> None:
    client = service.client()
    record = await upload(client)
    (await client.post(MANY, body)).refused(400, "bad_request")
    assert (await client.get(record["links"]["content"])).status == 200


async def test_a_selection_needs_a_session_and_its_own_origin(service: Service) -> None:
    client = service.client()
    record = await upload(client)
    body = json.dumps({"ids": [record["id"]]}).encode()
    (await service.client().post(MANY, body)).refused(401, "no_session")
    (await client.post(MANY, body, headers={"Origin": "https://evil.example"})).refused(403, "cross_origin")
    assert (await client.get(record["links"]["content"])).status == 200


async def test_foreign_absent_deleted_and_failed_uploads_are_answered_alike(service: Service) -> None:
    client, stranger = service.client(), service.client()
    foreign = (await upload(stranger))["id"]
    deleted = await upload(client)
    await client.delete(deleted["links"]["content"])
    await client.put("f", b"x", headers={"Content-Length": "5"})
    failed = (await client.get("/api/ingestion/history?status=failed")).json()["items"][0]["id"]
    mine = (await upload(client))["id"]
    ids = [
        foreign,
        deleted["id"],
        failed,
        ABSENT,
        mine.upper(),
        mine[:-1],
        mine + "0",
        f"{{{mine}}}",
        "x",
        "%00",
        "..",
        "%2e",
    ]
    same = {"X-Request-Id": "same"}
    for method in ("GET", "HEAD", "DELETE"):
        if method == "DELETE":  # one's own is known as deleted for a day
            ids.remove(deleted["id"])
        answers = [await client.request(method, f"/api/ingestion/files/{upload_id}", headers=same) for upload_id in ids]
        if method != "HEAD":
            answers[0].refused(404, "not_found")
        for answer in answers:
            assert (answer.status, answer.headers, answer.body) == (404, answers[0].headers, answers[0].body)
    assert (await stranger.get(f"/api/ingestion/files/{foreign}")).body == CONTENT
    # The same holds for records, of which only the client's own are there.
    answers = [
        await client.get(f"/api/ingestion/history/{each}", headers=same)
        for each in (foreign, ABSENT, "x", mine.upper())
    ]
    answers[0].refused(404, "not_found")
    assert {(answer.status, answer.body) for answer in answers} == {(404, answers[0].body)}


@pytest.mark.parametrize("method", ["GET", "HEAD", "DELETE"])
async def test_a_client_without_a_session_finds_no_file(service: Service, method: str) -> None:
    target = await content_of(service.client())
    for client in (service.client(), service.client()):
        answer = await client.request(method, target)
        assert answer.status == 401
        assert answer["www-authenticate"].startswith("Bearer")
        if method != "HEAD":
            answer.refused(401, "no_session")
    assert client.cookies == {}


def cut(path: Any) -> None:
    os.truncate(path, 3)


def grow(path: Any) -> None:
    with open(path, "ab") as file:
        file.write(b"more")


def replace_by_directory(path: Any) -> None:
    path.unlink()
    path.mkdir()


def replace_by_link(path: Any) -> None:
    other = path.with_name(ABSENT)
    path.rename(other)
    path.symlink_to(other)


def replace_by_pipe(path: Any) -> None:
    path.unlink()
    os.mkfifo(path)


@pytest.mark.parametrize(
    "damage", [os.unlink, cut, grow, replace_by_directory, replace_by_link, replace_by_pipe], ids=lambda f: f.__name__
)
@pytest.mark.parametrize("content", [CONTENT, LARGE], ids=["small", "large"])
async def test_a_damaged_file_is_never_a_200(service: Service, damage: Any, content: bytes) -> None:
    client = service.client()
    record = await upload(client, content)
    path = service.path_of(record["id"])
    damage(path)
    try:
        for method, headers in (("GET", {}), ("HEAD", {}), ("GET", {"Range": "bytes=0-1"})):
            answer = await client.request(method, record["links"]["content"], headers=headers)
            assert answer.status == 503
            assert answer["retry-after"]
            if method == "GET":
                answer.refused(503, "unavailable")
                assert b"store/" not in answer.body
    finally:
        for left in (path, path.with_name(ABSENT)):
            if left.is_dir() and not left.is_symlink():
                left.rmdir()
            else:
                left.unlink(missing_ok=True)


@pytest.mark.parametrize(("code", "detail"), [("lost", "the stored file is missing"), ("damaged", "it was altered")])
async def test_a_damaged_upload_is_gone_until_it_is_repaired(service: Service, code: str, detail: str) -> None:
    client, db = service.client(), service.state["db"]
    record = await upload(client)
    target = record["links"]["content"]
    assert await upload_records.fail_uploads(db, [record["id"]], code, detail) == [record["id"]]
    for method in ("GET", "HEAD"):
        for headers in ({}, {"Range": "bytes=0-1"}, {"If-None-Match": ETAG}):
            answer = await client.request(method, target, headers=headers)
            assert (answer.status, answer.get("etag"), answer.get("repr-digest")) == (410, None, None)
    assert (await client.get(target)).refused(410, "gone")["detail"] == f"{detail}; nothing of it is sent"
    shown = (await client.get(record["links"]["self"])).json()
    assert (shown["status"], shown["error"]) == ("failed", {"code": code, "detail": detail})
    assert shown["links"]["content"] is None
    assert service.path_of(record["id"]).read_bytes() == CONTENT
    stranger = service.client()
    await upload(stranger)
    (await stranger.get(target)).refused(404, "not_found")
    (await stranger.delete(target)).refused(404, "not_found")
    assert await upload_records.repair_uploads(db, [record["id"]]) == [record["id"]]
    assert (await client.get(target)).body == CONTENT
    assert (await client.get(record["links"]["self"])).json() == record


async def test_a_damaged_upload_can_be_deleted_by_its_owner(service: Service) -> None:
    client, db = service.client(), service.state["db"]
    record = await upload(client)
    target = record["links"]["content"]
    path = service.path_of(record["id"])
    await upload_records.fail_uploads(db, [record["id"]], "damaged", "")
    assert (await client.delete(target)).status == 204
    assert not path.exists()
    shown = (await client.get(record["links"]["self"])).json()
    assert (shown["status"], shown["error"], shown["sha256"]) == ("deleted", None, DIGEST)
    (await client.get(target)).refused(404, "not_found")


async def test_an_upload_that_failed_in_flight_was_never_a_file(service: Service) -> None:
    client = service.client()
    (await client.put("a", b"x", headers={"Repr-Digest": f"sha-256=:{base64.b64encode(bytes(32)).decode()}:"})).refused(
        400, "digest_mismatch"
    )
    [failed] = (await client.get("/api/ingestion/history")).json()["items"]
    for method in ("GET", "DELETE"):
        (await client.request(method, f"/api/ingestion/files/{failed['id']}")).refused(404, "not_found")


async def test_a_file_that_is_deleted_while_it_is_asked_for_is_not_found(
    service: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    client = service.client()
    record = await upload(client, CONTENT)
    storage = service.state["storage"]
    stored_open = storage.open

    async def after_the_deletion(key: str) -> Any:
        assert (await client.delete(record["links"]["content"])).status == 204
        return await stored_open(key)

    monkeypatch.setattr(storage, "open", after_the_deletion)
    (await client.get(record["links"]["content"])).refused(404, "not_found")


async def test_a_file_that_gets_shorter_while_it_is_read_is_cut_off(service: Service) -> None:
    client = service.client()
    record = await upload(client, LARGE)
    path = service.path_of(record["id"])
    stored_open = service.state["storage"].open

    async def open_and_cut(key: str) -> Any:
        stored = await stored_open(key)
        os.truncate(path, 300_000)
        return stored

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(service.state["storage"], "open", open_and_cut)
        answer = await client.get(record["links"]["content"])
    assert answer.broken is not None
    assert not answer.complete
    assert LARGE.startswith(answer.body)


def open_files() -> set[str]:
    """What this process has open, by path."""
    links = set()
    for descriptor in os.listdir("/proc/self/fd"):
        with suppress(FileNotFoundError):  # the one that lists them
            links.add(os.readlink(f"/proc/self/fd/{descriptor}"))
    return links


async def test_a_client_that_stops_listening_stops_the_reading_and_leaves_no_file_open(service: Service) -> None:
    client = service.client()
    target = await content_of(client, LARGE)
    opened = asyncio.Event()
    stored_open = service.state["storage"].open

    async def watched(key: str) -> Any:
        stored = await stored_open(key)
        opened.set()
        return stored

    tasks = asyncio.all_tasks()
    path = service.path_of(target.rpartition("/")[2])
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(service.state["storage"], "open", watched)
        answer = await client.request("GET", target, stop_listening_after=1)
        assert not answer.heard
        assert len(answer.body) < len(LARGE)
        opened.clear()
        cancelled = asyncio.create_task(client.get(target))
        await opened.wait()
        cancelled.cancel()
        await asyncio.wait((cancelled,))
    assert str(path) not in open_files()
    assert {task for task in asyncio.all_tasks() - tasks if not task.done() and not task.cancelling()} == set()
