"""Ways in: what each request means, what it answers, and what is then stored and listed."""

import base64
import hashlib
from pathlib import Path
from typing import Any

import pytest

from app.model import is_upload_id
from tests.support.asgi import Answer, Client, Service, serving, settings_in
from tests.support.strategies import BOUNDARY, form

pytestmark = pytest.mark.asyncio(loop_scope="module")

UPLOADS = "/api/ingestion/uploads"
HISTORY = "/api/ingestion/history"
FORM = {"Content-Type": f"multipart/form-data; boundary={BOUNDARY}"}


def sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def digest_field(content: bytes, algorithm: str = "sha-256") -> str:
    digest = hashlib.new(algorithm.replace("-", ""), content).digest()
    return f"{algorithm}=:{base64.b64encode(digest).decode()}:"


async def send_form(client: Client, files: list[tuple[str | None, str | None, bytes]], **how: Any) -> Answer:
    body, content_type = form(files)
    return await client.post(UPLOADS, body, headers={"Content-Type": content_type}, **how)


async def listed(client: Client) -> list[dict[str, Any]]:
    """Everything that the client's history holds, newest first."""
    answer = await client.get(f"{HISTORY}?limit=500")
    assert answer.status == 200
    return answer.json()["items"]


async def test_files_of_a_form_land_in_its_order_and_its_fields_are_ignored(service: Service) -> None:
    client = service.client()
    answer = await send_form(
        client,
        [
            (None, None, b"a field"),
            ("b.txt", "text/plain", b"bee"),
            (None, "text/plain", b"x" * 70_000),
            ("a.bin", None, b"\r\n--not the end"),
            ("b.txt", "image/png", b""),
        ],
    )
    assert answer.status == 201
    assert answer["content-type"] == "application/json"
    assert answer.all("location") == answer.all("repr-digest") == []
    items = answer.json()["items"]
    assert [(item["filename"], item["content_type"], item["size"]) for item in items] == [
        ("b.txt", "text/plain", 3),
        ("a.bin", "application/octet-stream", 15),
        ("b.txt", "image/png", 0),
    ]
    assert [item["sha256"] for item in items] == [sha256(b"bee"), sha256(b"\r\n--not the end"), sha256(b"")]
    assert {item["id"] for item in await listed(client)} == {item["id"] for item in items}
    files = service.files()
    assert [files[item["id"]] for item in items] == [b"bee", b"\r\n--not the end", b""]


async def test_a_form_with_one_file_names_where_its_record_is(service: Service) -> None:
    client = service.client()
    answer = await send_form(client, [(None, None, b"x"), ("a.txt", None, b"hello")])
    assert answer.status == 201
    [record] = answer.json()["items"]
    assert answer["location"] == record["links"]["self"] == f"{HISTORY}/{record['id']}"
    assert answer["repr-digest"] == digest_field(b"hello")
    assert (await client.get(answer["location"])).json() == record


async def test_a_record_has_every_key(service: Service) -> None:
    record = (await service.client().put("a.txt", b"hello", headers={"Content-Type": "text/plain"})).json()
    assert is_upload_id(record["id"])
    assert record == {
        "id": record["id"],
        "filename": "a.txt",
        "content_type": "text/plain",
        "size": 5,
        "sha256": sha256(b"hello"),
        "status": "completed",
        "protocol": "raw",
        "created_at": record["created_at"],
        "completed_at": record["completed_at"],
        "error": None,
        "metadata": {},
        "path": None,
        "expires_at": None,
        "links": {"self": f"{HISTORY}/{record['id']}", "content": f"/api/ingestion/files/{record['id']}"},
    }
    assert record["created_at"] <= record["completed_at"]
    for time in (record["created_at"], record["completed_at"]):
        assert len(time) == 27
        assert time[10] + time[19] + time[26] == "T.Z"


async def test_an_empty_field_of_a_browser_is_no_file_and_a_file_without_a_name_is_one(service: Service) -> None:
    answer = await send_form(
        service.client(), [("", "application/octet-stream", b""), ("", None, b"x"), ("a", None, b"")]
    )
    assert [(item["filename"], item["size"]) for item in answer.json()["items"]] == [("unnamed", 1), ("a", 0)]


@pytest.mark.parametrize("files", [[], [(None, None, b"a field")], [("", None, b"")]], ids=["none", "field", "empty"])
async def test_a_form_without_a_file_is_refused(service: Service, files: list[Any]) -> None:
    client = service.client()
    (await send_form(client, files)).refused(400, "no_file")
    assert client.cookies == {}


@pytest.mark.parametrize(
    "target",
    [f"{UPLOADS}/a.txt", UPLOADS],
)
async def test_a_file_of_no_bytes_is_a_file(service: Service, target: str) -> None:
    client = service.client()
    answer = await client.request("PUT" if target != UPLOADS else "POST", target)
    assert answer.status == 201
    assert answer.json()["size"] == 0
    assert answer.json()["sha256"] == sha256(b"")
    assert answer["location"] == answer.json()["links"]["self"]
    assert service.files()[answer.json()["id"]] == b""


@pytest.mark.parametrize(
    ("target", "filename"),
    [
        ("report.pdf", "report.pdf"),
        ("", "unnamed"),
        ("..", "unnamed"),
        ("%2e%2e%2f%2e%2e%2fetc%2fpasswd", "passwd"),
        ("a%2Fb", "b"),
        ("a/b/c.txt", "c.txt"),
        ("a%5Cb", "b"),
        ("dir/", "unnamed"),
        ("%E2%82%AC%20rates.txt", "€ rates.txt"),
        ("e%CC%81", "é"),
        ("a%3Fb%23c%25d", "a?b#c%d"),
        ("a+b", "a+b"),
        ("%252F", "%2F"),
        ("x%E2%80%AEgpj.exe", "xgpj.exe"),
        ("CON", "CON"),
        ("x" * 255, "x" * 255),
        ("uploads/summary", "summary"),
    ],
)
async def test_the_path_of_a_put_names_the_file(service: Service, target: str, filename: str) -> None:
    client = service.client()
    answer = await client.put(target, b"x")
    assert (answer.status, answer.json()["filename"]) == (201, filename)
    assert [item["filename"] for item in await listed(client)] == [filename]


@pytest.mark.parametrize(
    "target",
    ["%00", "a%00b", "a%0d%0ab", "%ff", "%C0%AF", "%ED%A0%80", "%7f", "%C2%85", "x" * 256, "%F0%9F%92%A9" * 64],
)
async def test_a_name_that_cannot_be_shown_is_refused_before_the_body(service: Service, target: str) -> None:
    answer = await service.client().put(target, b"x")
    answer.refused(400, "bad_filename")
    assert answer.asked == 0


async def test_the_name_is_read_where_our_own_path_ends(service: Service) -> None:
    (await service.client().request("PUT", "/api/ingestion/%75ploads/a.txt", body=b"x")).refused(404, "not_found")


@pytest.mark.parametrize(
    ("disposition", "filename"),
    [
        ("attachment", "unnamed"),
        ('attachment; filename="a b.txt"', "a b.txt"),
        ("inline; filename=plain.txt", "plain.txt"),
        ("attachment; filename*=UTF-8''%e2%82%ac%20rates", "€ rates"),
        ("attachment; filename=\"fallback.txt\"; filename*=UTF-8''n%C3%A4me.txt", "näme.txt"),
        ("attachment; filename*=UTF-8''best; filename=other", "best"),
        (r'attachment; filename="say \"hi\".txt"', 'say "hi".txt'),
        ('attachment; filename="../../etc/passwd"', "passwd"),
        ('attachment; filename="näme.txt"'.encode(), "näme.txt"),
        ('attachment; filename=""', "unnamed"),
    ],
)
async def test_content_disposition_names_the_body_of_a_post(
    service: Service, disposition: str | bytes, filename: str
) -> None:
    headers = {"Content-Disposition": disposition, "Content-Type": "text/x-notes"}
    answer = await service.client().post(UPLOADS, b"x", headers=headers)
    assert answer.status == 201
    assert (answer.json()["filename"], answer.json()["content_type"]) == (filename, "text/x-notes")


@pytest.mark.parametrize(
    ("disposition", "code"),
    [
        ("", "bad_request"),
        ("; filename=a", "bad_request"),
        ("attachment; filename=a; filename=b", "bad_request"),
        ("attachment; filename*=latin-1''x", "bad_request"),
        ('attachment; filename="open', "bad_request"),
        ("attachment; filename*=UTF-8''%00", "bad_filename"),
        ("attachment; filename*=UTF-8''%ff", "bad_filename"),
        (b'attachment; filename="n\xe4me.txt"', "bad_filename"),
        (f'attachment; filename="{"x" * 256}"', "bad_filename"),
    ],
)
async def test_a_content_disposition_that_cannot_be_read_is_refused_before_the_body(
    service: Service, disposition: str | bytes, code: str
) -> None:
    answer = await service.client().post(UPLOADS, b"x", headers={"Content-Disposition": disposition})
    answer.refused(400, code)
    assert answer.asked == 0


@pytest.mark.parametrize("field", ["Repr-Digest", "Content-Digest"])
@pytest.mark.parametrize("method", ["PUT", "POST"])
async def test_a_declared_digest_is_verified(service: Service, method: str, field: str) -> None:
    client = service.client()
    target = f"{UPLOADS}/a.txt" if method == "PUT" else UPLOADS
    before = service.files()
    good = await client.request(method, target, body=b"hello", headers={field: digest_field(b"hello")})
    assert good.status == 201
    assert good["repr-digest"] == digest_field(b"hello")
    bad = await client.request(method, target, body=b"hallo", headers={field: digest_field(b"hello")})
    problem = bad.refused(400, "digest_mismatch")
    assert (problem["expected"], problem["actual"]) == (sha256(b"hello"), sha256(b"hallo"))
    failed, done = await listed(client)
    assert (failed["status"], failed["error"]["code"], failed["links"]["content"]) == (
        "failed",
        "digest_mismatch",
        None,
    )
    assert done == good.json()
    assert service.files().keys() - before.keys() == {done["id"]}


@pytest.mark.parametrize("field", ["Repr-Digest", "Content-Digest"])
async def test_a_declared_sha_512_is_verified(service: Service, field: str) -> None:
    client = service.client()
    declared = {field: f"{digest_field(b'hello')}, {digest_field(b'hello', 'sha-512')}"}
    assert (await client.put("a.txt", [b"he", b"llo"], headers=declared)).status == 201
    wrong = {field: f"{digest_field(b'hello')}, {digest_field(b'HELLO', 'sha-512')}"}
    problem = (await client.put("a.txt", [b"he", b"llo"], headers=wrong)).refused(400, "digest_mismatch")
    assert problem["algorithm"] == "sha-512"


async def test_a_form_that_does_not_have_its_digest_is_refused(service: Service) -> None:
    client = service.client()
    body, content_type = form([("a.txt", None, b"hello"), ("b.txt", None, b"world")])
    right = await client.post(
        UPLOADS, body, headers={"Content-Type": content_type, "Content-Digest": digest_field(body)}
    )
    assert right.status == 201
    for algorithm in ("sha-256", "sha-512"):
        headers = {"Content-Type": content_type, "Content-Digest": digest_field(b"other", algorithm)}
        (await client.post(UPLOADS, body, headers=headers)).refused(400, "digest_mismatch")
    headers = {"Content-Type": content_type, "Repr-Digest": digest_field(body)}
    (await client.post(UPLOADS, body, headers=headers)).refused(400, "bad_request")
    assert sorted(item["status"] for item in await listed(client)) == ["completed"] * 2 + ["failed"] * 4


@pytest.mark.parametrize("field", ["Repr-Digest", "Content-Digest"])
@pytest.mark.parametrize("algorithm", ["sha-256", "sha-512"])
async def test_a_part_that_does_not_have_its_digest_is_refused(service: Service, field: str, algorithm: str) -> None:
    client = service.client()

    def body(declared: str) -> bytes:
        head = 'Content-Disposition: form-data; name="f"; filename="a.txt"'
        return f"--{BOUNDARY}\r\n{head}\r\n{field}: {declared}\r\n\r\nhello\r\n--{BOUNDARY}--\r\n".encode()

    assert (await client.post(UPLOADS, body(digest_field(b"hello", algorithm)), headers=FORM)).status == 201
    wrong = await client.post(UPLOADS, body(digest_field(b"hallo", algorithm)), headers=FORM)
    assert wrong.refused(400, "digest_mismatch")["algorithm"] == algorithm
    (await client.post(UPLOADS, body("md5=:AAAA:"), headers=FORM)).refused(400, "bad_request")


WHOLE = {"Content-Range": "bytes 0-4/5"}
FRAGMENTS = ["bytes 0-4/12", "bytes 5-9/12", "bytes 0-4/*", "bytes */5", "bytes 0-5/6", "bytes 0-3/4"]


@pytest.mark.parametrize("chunked", [False, True])
@pytest.mark.parametrize("method", ["PUT", "POST", "form"])
async def test_a_fragment_of_a_file_is_refused_and_the_complete_file_taken(
    service: Service, method: str, chunked: bool
) -> None:
    client = service.client()

    async def send(content_range: str, files: int = 1) -> Answer:
        headers = {"Content-Range": content_range}
        body: Any = b"hello"
        if method == "form":
            body, headers["Content-Type"] = form([("a.txt", None, b"hello")] * files)
        if chunked:
            body = [body[:3], body[3:]]
        target = f"{UPLOADS}/a.txt" if method == "PUT" else UPLOADS
        return await client.request("PUT" if method == "PUT" else "POST", target, body=body, headers=headers)

    assert (await send("bytes 0-4/5")).status == 201
    for fragment in FRAGMENTS:
        (await send(fragment)).refused(400, "bad_request")
    if method == "form":
        (await send("bytes 0-4/5", files=2)).refused(400, "bad_request")
        (await send("bytes 0-9/10", files=2)).refused(400, "bad_request")
    assert [item["size"] for item in await listed(client) if item["status"] == "completed"] == [5]


@pytest.mark.parametrize("more", [{}, {"Upload-Complete": "?1"}])
async def test_a_form_is_not_taken_by_put(service: Service, more: dict[str, str]) -> None:
    client = service.client()
    body, content_type = form([("a.txt", None, b"hello")])
    refused = await client.put("a.txt", body, headers={"Content-Type": content_type, **more})
    assert "POST" in refused.refused(415, "unsupported_media_type")["detail"]
    assert refused.asked == 0


URLENCODED = {"Content-Type": "application/x-www-form-urlencoded"}
BROWSER = {"Accept": "text/html,application/xhtml+xml,*/*;q=0.8"}


@pytest.mark.parametrize(
    "headers",
    [
        {**URLENCODED, "Sec-Fetch-Mode": "navigate", "Sec-Fetch-Site": "same-origin"},
        {**URLENCODED, **BROWSER},
        {"Content-Type": "text/plain", "Sec-Fetch-Mode": "navigate", "Sec-Fetch-Site": "none"},
    ],
)
async def test_a_browsers_form_without_its_files_is_refused(service: Service, headers: dict[str, str]) -> None:
    refused = await service.client().post(UPLOADS, b"file=photo.jpg", headers=headers)
    assert 'enctype="multipart/form-data"' in refused.refused(415, "unsupported_media_type")["detail"]
    assert refused.asked == 0


@pytest.mark.parametrize(
    "headers",
    [
        URLENCODED,
        {**URLENCODED, "Accept": "*/*"},
        {**URLENCODED, **BROWSER, "Sec-Fetch-Mode": "cors", "Sec-Fetch-Site": "same-origin"},
        {**URLENCODED, **BROWSER, "Content-Disposition": 'attachment; filename="a"'},
        {"Content-Type": "text/plain", **BROWSER},
    ],
)
async def test_another_clients_body_of_that_type_is_a_file(service: Service, headers: dict[str, str]) -> None:
    answer = await service.client().post(UPLOADS, b"file=photo.jpg", headers=headers)
    assert (answer.status, answer.json()["size"]) == (201, 14)


@pytest.mark.parametrize(
    ("fields", "status"),
    [
        ([("Repr-Digest", digest_field(b"x", "sha-512"))], 201),
        ([("Repr-Digest", f"{digest_field(b'x', 'sha-512')}, {digest_field(b'x')}")], 201),
        ([("Repr-Digest", digest_field(b"x", "sha-512")), ("Content-Digest", digest_field(b"x"))], 201),
        ([("Content-Digest", "md5=:AAAA:")], 400),
        ([("Repr-Digest", digest_field(b"x")), ("Content-Digest", "md5=:AAAA:")], 400),
        ([("Repr-Digest", digest_field(b"x")), ("Content-Digest", digest_field(b"x"))], 201),
        ([("Repr-Digest", digest_field(b"x")), ("Content-Digest", digest_field(b"y"))], 400),
        ([("Repr-Digest", "sha-256=abc")], 400),
        ([("Repr-Digest", "sha-256=:YWJj:")], 400),
        ([("Content-Digest", "sha-256=:")], 400),
    ],
)
async def test_digest_fields_are_understood_or_refused_before_the_body(
    service: Service, fields: list[tuple[str, str]], status: int
) -> None:
    answer = await service.client().put("a", b"x", headers=fields)
    assert answer.status == status
    if status == 400:
        answer.refused(400, "bad_request")
        assert answer.asked == 0


EARLY = {
    "a compressed body": ("PUT", "/a", {"Content-Encoding": "gzip"}, 415, "unsupported_media_type"),
    "compressed last": ("PUT", "/a", {"Content-Encoding": "identity, gzip"}, 415, "unsupported_media_type"),
    "compressed in a second line": (
        "PUT", "/a", [("Content-Encoding", "identity"), ("Content-Encoding", "br")], 415, "unsupported_media_type"),
    "a compressed form": ("POST", "", {**FORM, "Content-Encoding": "br"}, 415, "unsupported_media_type"),
    "a fragment": ("PUT", "/a", {"Content-Range": "bytes 0-1/10"}, 400, "bad_request"),
    "tus without a length": ("POST", "", {"Tus-Resumable": "1.0.0"}, 400, "bad_request"),
    "tus, by PUT": ("PUT", "/a", {"Tus-Resumable": "1.0.0"}, 400, "bad_request"),
    "a part of a form": ("POST", "", {**FORM, "Upload-Complete": "?0"}, 415, "unsupported_media_type"),
    "a form without a boundary": ("POST", "", {"Content-Type": "multipart/form-data"}, 400, "malformed_form"),
    "an endless boundary": (
        "POST", "", {"Content-Type": f"multipart/form-data; boundary={'x' * 71}"}, 400, "malformed_form"),
    "a file over the limit": ("PUT", "/a", {"Content-Length": "1001"}, 413, "too_large"),
    "a request over the limit": ("PUT", "/a", {"Content-Length": "2001"}, 413, "request_too_large"),
    "a form over the limit": ("POST", "", {**FORM, "Content-Length": "2001"}, 413, "request_too_large"),
    "an impossible length": ("PUT", "/a", {"Content-Length": str(2**64)}, 400, "bad_request"),
    "a length that is none": ("PUT", "/a", {"Content-Length": "+5"}, 400, "bad_request"),
    "two lengths": ("PUT", "/a", [("Content-Length", "5"), ("Content-Length", "5")], 400, "bad_request"),
    "a length and chunks": ("PUT", "/a", {"Content-Length": "5", "Transfer-Encoding": "chunked"}, 400, "bad_request"),
    "a compressed transfer": ("PUT", "/a", {"Transfer-Encoding": "gzip, chunked"}, 400, "bad_request"),
    "two types": ("POST", "", [("Content-Type", "text/plain"), *FORM.items()], 400, "bad_request"),
    "two types, by PUT": ("PUT", "/a", [("Content-Type", "text/plain"), ("Content-Type", "a/b")], 400, "bad_request"),
    "two names": ("POST", "", [("Content-Disposition", "attachment; filename=a")] * 2, 400, "bad_request"),
    "a name that is none": ("PUT", "/%00", {}, 400, "bad_filename"),
    "an unknown path": ("POST", "/a/b", {}, 405, "method_not_allowed"),
    "another site": ("PUT", "/a", {"Cookie": "waybill_session=x", "Origin": "https://evil.test"}, 403, "cross_origin"),
}  # fmt: skip


@pytest.mark.parametrize("case", EARLY.values(), ids=EARLY)
@pytest.mark.parametrize("expect", [True, False], ids=["expect", "blunt"])
async def test_an_upload_that_its_headers_forbid_is_refused_before_the_body_is_asked_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, case: Any, expect: bool
) -> None:
    method, path, headers, status, code = case
    fields = list(headers.items() if isinstance(headers, dict) else headers)
    if expect:
        fields.append(("Expect", "100-continue"))
    async with serving(settings_in(tmp_path, max_file_size=1000, max_request_size=2000)) as service:
        client = service.client()
        if not expect:  # a client that sends its body unasked is heard out for a moment, after its answer
            monkeypatch.setattr("app.web.exchange._LINGER_SECONDS", 0.0)
        answer = await client.request(method, UPLOADS + path, headers=fields, body=b"0123456789")
        answer.refused(status, code)
        assert answer.asked == 0
        assert answer["connection"] == "close"
        assert client.cookies == {}
        assert service.files() == {}


async def test_an_encoding_that_changes_nothing_is_taken(service: Service) -> None:
    answer = await service.client().post(UPLOADS, b"x", headers={"Content-Encoding": "identity"})
    assert answer.status == 201


async def test_options_name_the_protocols_and_the_limits(service: Service) -> None:
    answer = await service.client().request("OPTIONS", UPLOADS)
    assert answer.status == 204
    assert answer["allow"] == "OPTIONS, POST, PUT"
    assert "multipart/form-data" in answer["accept-post"]
    settings = service.state["settings"]
    assert f"max-file-size={settings.max_file_size}" in answer["waybill-limits"]


SMALL = {"max_file_size": 10, "max_request_size": 1000, "max_files_per_request": 2}
THREE = form([("a", None, b"1"), ("b", None, b"2"), ("c", None, b"3")])[0]
LATE: dict[str, tuple[list[bytes], dict[str, str], int, str, list[tuple[str, int]]]] = {
    "a raw file that proves too large": (
        [b"123456", b"78901"], {"Transfer-Encoding": "chunked"}, 413, "too_large", [("f", 6)]),
    "a file of a form that is too large": (
        [form([("a", None, b"1"), ("b", None, b"x" * 11)])[0]], FORM, 413, "too_large", [("a", 1), ("b", 0)]),
    "too many files": (
        [THREE], FORM, 413, "too_many_files", [("a", 1), ("b", 1)]),
    "a form cut in a file": (
        [THREE[:-130]], FORM, 400, "malformed_form", [("a", 1), ("b", 1)]),
    "a form cut before its last boundary ends": (
        [form([("a", None, b"1")])[0][:-4]], FORM, 400, "malformed_form", [("a", 1)]),
    "a form with a bad name behind a good file": (
        [form([("a", None, b"1"), ("b\0", None, b"2")])[0]], FORM, 400, "malformed_form", [("a", 1)]),
    "a form whose second name is broken UTF-8": (
        [form([("a", None, b"1"), ("b?", None, b"2")])[0].replace(b"b?", b"b\xff")],
        FORM, 400, "bad_filename", [("a", 1)]),
    "a field that is endless": (
        [form([("a", None, b"1"), (None, None, b"x" * 2000)])[0]], {**FORM, "Transfer-Encoding": "chunked"},
        413, "request_too_large", []),
    "what is no form": (
        [b"x" * 200], FORM, 400, "malformed_form", []),
}  # fmt: skip


@pytest.mark.parametrize("case", LATE.values(), ids=LATE)
async def test_a_request_lands_whole_or_not_at_all(tmp_path: Path, database_url: str, case: Any) -> None:
    chunks, headers, status, code, begun = case
    async with serving(settings_in(tmp_path, database_url, **SMALL)) as service:
        client = service.client()
        target, method = (UPLOADS, "POST") if headers.keys() & FORM.keys() else (f"{UPLOADS}/f", "PUT")
        answer = await client.request(method, target, headers=headers, body=chunks)
        problem = answer.refused(status, code)
        assert service.files() == {}
        assert service.staged() == []
        if not begun:  # nothing to tell of, so nobody needs a session
            assert client.cookies == {}
            return
        items = await listed(client)  # with the cookie that came with the refusal
        assert sorted((item["filename"], item["size"]) for item in items) == begun
        for item in items:
            assert item["status"] == "failed"
            assert item["error"] == {"code": code, "detail": problem["detail"]}
            assert item["sha256"] is item["completed_at"] is item["links"]["content"] is None
            (await client.get(f"/api/ingestion/files/{item['id']}")).refused(404, "not_found")


async def test_a_request_may_be_as_long_as_allowed_and_no_longer(tmp_path: Path) -> None:
    async with serving(settings_in(tmp_path, max_file_size=10, max_request_size=len(THREE))) as service:
        client = service.client()
        for headers in (FORM, {**FORM, "Transfer-Encoding": "chunked"}):
            assert (await client.post(UPLOADS, THREE, headers=headers)).status == 201
            answer = await client.post(UPLOADS, [THREE, b"\n"], headers=headers)
            answer.refused(413, "request_too_large")
        for headers in ({}, {"Transfer-Encoding": "chunked"}):
            assert (await client.put("a", b"x" * 10, headers=headers)).status == 201
            (await client.put("a", b"x" * 11, headers=headers)).refused(413, "too_large")


async def test_a_refusal_over_a_limit_names_the_size_and_the_limit(tmp_path: Path) -> None:
    async with serving(settings_in(tmp_path, **SMALL)) as service:
        client = service.client()
        problem = (await client.put("a", b"x" * 11)).refused(413, "too_large")
        assert (problem["received"], problem["limit"]) == (11, 10)
        problem = (await client.put("a", b"x" * 1001)).refused(413, "request_too_large")
        assert (problem["received"], problem["limit"]) == (1001, 1000)
        problem = (await client.post(UPLOADS, THREE, headers=FORM)).refused(413, "too_many_files")
        assert (problem["received"], problem["limit"]) == (3, 2)


async def test_a_disk_that_is_too_small_refuses_before_the_body(tmp_path: Path) -> None:
    async with serving(settings_in(tmp_path, max_file_size=2**62, max_request_size=2**62)) as service:
        client = service.client()
        answer = await client.put("a", b"x", headers={"Content-Length": str(2**61), "Expect": "100-continue"})
        answer.refused(507, "storage_full")
        assert answer.asked == 0
        assert (await client.put("a", b"x")).status == 201  # others live on


async def test_a_full_disk_refuses_a_body_of_unknown_length(tmp_path: Path) -> None:
    async with serving(settings_in(tmp_path)) as service:
        client = service.client()
        space = service.state["storage"].space
        space._min_free, space._seen = 2**62, None  # the floor rises while the service runs
        answer = await client.put("a", [b"x"] * 3, headers={"Transfer-Encoding": "chunked"})
        answer.refused(507, "storage_full")
        assert service.files() == {}
        assert service.staged() == []
        assert client.cookies == {}  # nor is there a row of it


async def test_the_same_name_twice_is_two_uploads(service: Service) -> None:
    client = service.client()
    first, second = [(await client.put("a", b"x")).json() for _ in range(2)]
    assert first["id"] < second["id"]
    assert [item["id"] for item in await listed(client)] == [second["id"], first["id"]]
