"""Annotations: metadata, path and expiry of an upload, by every way in."""

import base64
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from datetime import datetime, timedelta
from typing import Any

import pytest

from tests.support.asgi import Answer, Client, Service

pytestmark = pytest.mark.asyncio(loop_scope="module")

UPLOADS = "/api/ingestion/uploads"
HISTORY = "/api/ingestion/history"
TUS = {"Tus-Resumable": "1.0.0"}
CHUNK = {**TUS, "Content-Type": "application/offset+octet-stream"}
DRAFT = {"Upload-Draft-Interop-Version": "6"}
BOUNDARY = "a boundary"
Pairs = dict[str, str]


def upload_metadata(pairs: Pairs) -> str:
    return ",".join(f"{name} {base64.b64encode(value.encode()).decode()}" for name, value in pairs.items())


def field_of(pairs: Pairs) -> str:
    return ", ".join(f'{name}="{value}"' for name, value in pairs.items())


def form(files: dict[str, bytes], fields: dict[str, str | bytes]) -> tuple[dict[str, str], bytes]:
    """A form whose fields stand behind its files."""
    parts = [
        f'--{BOUNDARY}\r\nContent-Disposition: form-data; name="file"; filename="{name}"\r\n\r\n'.encode() + content
        for name, content in files.items()
    ]
    for name, value in fields.items():
        head = f'--{BOUNDARY}\r\nContent-Disposition: form-data; name="{name}"\r\n\r\n'.encode()
        parts.append(head + (value.encode() if isinstance(value, str) else value))
    body = b"\r\n".join([*parts, f"--{BOUNDARY}--\r\n".encode()])
    return {"Content-Type": f'multipart/form-data; boundary="{BOUNDARY}"'}, body


async def by_form(client: Client, pairs: Pairs, path: str, expires_in: str) -> Answer:
    fields = {f"metadata.{name}": value for name, value in pairs.items()} | {"expires_in": expires_in}
    headers, body = form({path: b"abc"}, fields)
    return await client.post(UPLOADS, body, headers=headers)


async def by_put(client: Client, pairs: Pairs, path: str, expires_in: str) -> Answer:
    return await client.put(
        path, b"abc", headers={"Waybill-Metadata": field_of(pairs), "Waybill-Expires-In": expires_in}
    )


async def by_tus_at_once(client: Client, pairs: Pairs, path: str, expires_in: str) -> Answer:
    said = upload_metadata(
        {**pairs, "relativePath": path, "filename": path.rpartition("/")[2], "expires_in": expires_in}
    )
    return await client.post(UPLOADS, b"abc", headers={**CHUNK, "Upload-Length": "3", "Upload-Metadata": said})


async def by_tus(client: Client, pairs: Pairs, path: str, expires_in: str) -> Answer:
    said = upload_metadata({**pairs, "webkitRelativePath": path, "expires_in": expires_in})
    made = await client.post(UPLOADS, headers={**TUS, "Upload-Length": "3", "Upload-Metadata": said})
    for offset, block in enumerate((b"a", b"b", b"c")):
        headers = {**CHUNK, "Upload-Offset": str(offset)}
        answer = await client.request("PATCH", made["location"], headers=headers, body=block)
    return answer


async def by_concatenation(client: Client, pairs: Pairs, path: str, expires_in: str) -> Answer:
    part = await client.post(UPLOADS, b"abc", headers={**CHUNK, "Upload-Length": "3", "Upload-Concat": "partial"})
    said = upload_metadata({**pairs, "relativePath": path, "expires_in": expires_in})
    concat = {"Upload-Concat": f"final;{part['location']}", "Upload-Metadata": said}
    return await client.post(UPLOADS, headers={**TUS, **concat})


async def by_draft_at_once(client: Client, pairs: Pairs, path: str, expires_in: str) -> Answer:
    annotations = {"Waybill-Metadata": field_of(pairs), "Waybill-Expires-In": expires_in}
    return await client.put(path, b"abc", headers={**DRAFT, **annotations, "Upload-Complete": "?1"})


async def by_draft(client: Client, pairs: Pairs, path: str, expires_in: str) -> Answer:
    annotations = {"Waybill-Metadata": field_of(pairs), "Waybill-Expires-In": expires_in}
    made = await client.put(path, b"ab", headers={**DRAFT, **annotations, "Upload-Complete": "?0"})
    headers = {**DRAFT, "Upload-Offset": "2", "Upload-Complete": "?1", "Content-Type": "application/partial-upload"}
    return await client.request("PATCH", made["location"], headers=headers, body=b"c")


Way = Callable[[Client, Pairs, str, str], Awaitable[Answer]]
WAYS = [by_form, by_put, by_tus_at_once, by_tus, by_concatenation, by_draft_at_once, by_draft]


async def newest(client: Client) -> dict[str, Any]:
    record: dict[str, Any] = (await client.get(f"{HISTORY}?limit=1")).json()["items"][0]
    return record


@pytest.mark.parametrize("way", WAYS)
async def test_an_upload_carries_its_annotations(service: Service, way: Way) -> None:
    client = service.client()
    pairs = {"album": "Summer 2026", "a.b_c-1": "x"}
    answer = await way(client, pairs, "photos/2026/a.jpg", "7d")
    assert answer.status in {201, 204}, answer.body
    record = await newest(client)
    assert (record["metadata"], record["path"], record["filename"]) == (pairs, "photos/2026/a.jpg", "a.jpg")
    assert record["status"] == "completed"
    completed_at, expires_at = (datetime.fromisoformat(record[name]) for name in ("completed_at", "expires_at"))
    assert expires_at - completed_at == timedelta(days=7)
    if answer.status == 201 and answer.body:
        told = answer.json()
        assert told == record or told["items"] == [record]
    assert (await client.get(f"{HISTORY}?metadata.album=Summer+2026&path=PHOTOS/*&count=true")).json()["total"] == 1


async def test_an_upload_without_annotations_has_none(service: Service) -> None:
    client = service.client()
    record = (await client.put("plain.txt", b"x")).json()
    assert (record["metadata"], record["path"], record["expires_at"]) == ({}, None, None)


async def test_an_unfinished_upload_shows_its_annotations_and_no_end(service: Service) -> None:
    client = service.client()
    said = upload_metadata({"k": "v", "relativePath": "a/b", "expires_in": "90s"})
    await client.post(UPLOADS, headers={**TUS, "Upload-Length": "3", "Upload-Metadata": said})
    record = await newest(client)
    assert (record["metadata"], record["path"], record["expires_at"]) == ({"k": "v"}, "a/b", None)


async def test_the_fields_of_a_form_count_for_each_of_its_files(service: Service) -> None:
    client = service.client()
    headers, body = form({"one/a.txt": b"1", "b.txt": b"2"}, {"metadata.k": "vü", "other": "ignored"})
    items = (await client.post(UPLOADS, body, headers=headers)).json()["items"]
    assert [(item["metadata"], item["path"]) for item in items] == [({"k": "vü"}, "one/a.txt"), ({"k": "vü"}, None)]


async def test_a_form_takes_its_expiry_from_a_header_as_well(service: Service) -> None:
    client = service.client()
    headers, body = form({"a.txt": b"1"}, {})
    items = (await client.post(UPLOADS, body, headers={**headers, "Waybill-Expires-In": "1d"})).json()["items"]
    assert items[0]["expires_at"] is not None


@pytest.mark.parametrize(
    ("path", "kept"),
    [
        ("C:\\Users\\me\\x.txt", "Users/me/x.txt"),
        ("./a//../b.txt", "a/b.txt"),
        ("one", None),
        ("null", None),
        ("", None),
        ("\u202e a /\u200bb", "a/b"),
        ("/etc/passwd", "etc/passwd"),
        ("e\u0301/x", "é/x"),
    ],
)
async def test_a_path_is_cleaned(service: Service, path: str, kept: str | None) -> None:
    client = service.client()
    said = upload_metadata({"filename": "given.txt", "relativePath": path})
    answer = await client.post(UPLOADS, b"x", headers={**CHUNK, "Upload-Length": "1", "Upload-Metadata": said})
    assert answer.status == 201
    record = await newest(client)
    assert record["path"] == kept
    assert record["filename"] == ("given.txt" if kept is None else kept.rpartition("/")[2])


@pytest.mark.parametrize(
    ("name", "path"),
    [("a/b/", "a/b"), ("a/b/..", "a/b"), ("a%2Fb.txt", "a/b.txt"), ("C:%5Cx%5Cy", "x/y"), ("%2e%2e/%2e/x", None)],
)
async def test_the_path_of_a_put_is_cleaned(service: Service, name: str, path: str | None) -> None:
    record = (await service.client().put(name, b"x")).json()
    assert record["path"] == path
    if path is not None:
        assert record["filename"] == path.rpartition("/")[2]


async def test_a_filename_of_a_form_is_a_path_by_slashes_alone(service: Service) -> None:
    headers, body = form({"C:\\photos\\x.jpg": b"1"}, {})
    [item] = (await service.client().post(UPLOADS, body, headers=headers)).json()["items"]
    assert (item["path"], item["filename"]) == (None, "x.jpg")


async def test_pairs_of_tus_that_cannot_be_metadata_are_left_out(service: Service) -> None:
    client = service.client()
    said = upload_metadata(
        {"user[id]": "1", "name": "n.txt", "type": "a/b", "good": "yes", "nul": "a\0b", "x" * 65: "1"}
    )
    said += ",broken " + base64.b64encode(b"\xff").decode() + ",flag"
    answer = await client.post(UPLOADS, b"x", headers={**CHUNK, "Upload-Length": "1", "Upload-Metadata": said})
    assert answer.status == 201
    assert (await newest(client))["metadata"] == {"good": "yes", "flag": ""}


@pytest.mark.parametrize(
    "field",
    [
        "a=?1",
        "a",
        "a=1",
        "a=1.5",
        "a=(x y)",
        "A=x",
        "a=:YQ==:",
        '"',
        "a=@1",
        ", ".join(f"k{n}=v" for n in range(65)),
        f'a="{"x" * 8200}"',
    ],
)
async def test_a_field_that_is_no_dictionary_of_texts_is_refused(service: Service, field: str) -> None:
    (await service.client().put("a", b"x", headers={"Waybill-Metadata": field})).refused(400, "bad_metadata")


@pytest.mark.parametrize(
    "fields",
    [
        {"metadata.": "x"},
        {"metadata.a b": "x"},
        {"metadata.k": b"\xff"},
        {"metadata.k": "\0"},
        {f"metadata.{'k' * 65}": "x"},
        {"metadata.k": "x" * 8200},
    ],
)
async def test_a_form_with_bad_metadata_is_refused(service: Service, fields: dict[str, str | bytes]) -> None:
    client = service.client()
    headers, body = form({"a.txt": b"1"}, fields)
    (await client.post(UPLOADS, body, headers=headers)).refused(400, "bad_metadata")


async def test_a_form_that_names_a_pair_twice_is_refused(service: Service) -> None:
    headers, body = form({"a.txt": b"1"}, {"metadata.k": "1"})
    twice = body.replace(f"--{BOUNDARY}--".encode(), b"")
    twice += (
        f'--{BOUNDARY}\r\nContent-Disposition: form-data; name="metadata.k"\r\n\r\n2\r\n--{BOUNDARY}--\r\n'.encode()
    )
    (await service.client().post(UPLOADS, twice, headers=headers)).refused(400, "bad_metadata")


async def test_too_much_metadata_of_tus_is_refused(service: Service) -> None:
    said = upload_metadata({f"k{number}": "v" for number in range(65)})
    answer = await service.client().post(UPLOADS, headers={**TUS, "Upload-Length": "1", "Upload-Metadata": said})
    answer.refused(400, "bad_metadata")


@pytest.mark.parametrize("expires_in", ["soon", "0s", "7", "-1d", "1d2h", "7 d"])
async def test_an_expiry_that_cannot_be_read_is_refused(service: Service, expires_in: str) -> None:
    (await service.client().put("a", b"x", headers={"Waybill-Expires-In": expires_in})).refused(400, "bad_request")


@pytest.mark.parametrize("path", ["a/b\x01c", "a/" + "x" * 256, "/".join(["y" * 200] * 6)])
async def test_a_path_that_cannot_be_shown_is_refused(service: Service, path: str) -> None:
    said = upload_metadata({"relativePath": path})
    answer = await service.client().post(UPLOADS, headers={**TUS, "Upload-Length": "1", "Upload-Metadata": said})
    answer.refused(400, "bad_filename")


async def test_exports_have_the_annotations_in_their_last_columns(service: Service) -> None:
    client = service.client()
    await by_put(client, {"k": "=1+1"}, "dir/a.txt", "7d")
    record = await newest(client)
    [head, row] = (await client.get(f"{HISTORY}?format=csv")).body.decode().splitlines()
    assert head.endswith(",error_code,error_detail,metadata,path,expires_at")
    assert row.endswith(f',"{{""k"":""=1+1""}}",dir/a.txt,{record["expires_at"]}')
    [line] = (await client.get(f"{HISTORY}?format=ndjson")).body.splitlines()
    assert json.loads(line) == record


@pytest.mark.parametrize(
    "query",
    [
        "id=x",
        "order=color",
        "content_type=text",
        "content_type=text/*x",
        "path=",
        "metadata.=1",
        "metadata.a%20b=1",
        "metadata.k=1&metadata.k=2",
        "metadata.k=%00",
        "path=a&path=b",
    ],
)
async def test_a_filter_that_cannot_be_is_refused(service: Service, query: str) -> None:
    client = service.client()
    await client.post("/api/session")
    (await client.get(f"{HISTORY}?{query}")).refused(400, "bad_query")


async def test_fields_of_a_form_are_refused_as_soon_as_they_are_too_much(service: Service) -> None:
    """Not at the body's end, which never comes here: many fields must not gather in memory first."""
    headers, body = form({}, {f"metadata.k{number}": "x" * 4096 for number in range(3)})

    async def blocks() -> AsyncIterator[bytes]:
        for number in range(100):
            yield body.replace(f"--{BOUNDARY}--\r\n".encode(), b"").replace(b".k", b".k%d-" % number)

    answer = await service.client().post(UPLOADS, blocks(), headers=headers)
    answer.refused(400, "bad_metadata")
