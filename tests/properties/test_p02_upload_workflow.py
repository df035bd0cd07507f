"""Property 2. An accepted upload is stored, recorded and listed with the same bytes, size and digest."""

import base64
import hashlib
from collections.abc import AsyncIterator
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import quote

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.support.asgi import Answer, Client, Service, serving, settings_in
from tests.support.strategies import chunkings, filenames, form

UPLOADS = "/api/ingestion/uploads"
HISTORY = "/api/ingestion/history"
KIB = 1024


class File(NamedTuple):
    name: str
    content_type: str | None
    content: bytes


def large(size: int) -> bytes:
    """Content whose blocks all differ."""
    return b"".join(number.to_bytes(8, "big") for number in range(size // 8 + 1))[:size]


# Around the borders where a file is kept in memory, spilt to the disk, written in blocks, and rarely long.
LARGE = (64 * KIB, 256 * KIB - 1, 256 * KIB, 256 * KIB + 1, 1024 * KIB + 1, 3000 * KIB)
contents = st.binary(max_size=400) | st.sampled_from([b"\r\n", b"\r\n--", b"--", b"\0" * 100, b"\r" * 300])
content_types = st.none() | st.sampled_from(["text/plain; charset=utf-8", "image/svg+xml", "x" * 255, 'a/b; c="d"'])
files = st.builds(File, filenames(), content_types, contents)


@st.composite
def large_files(draw: st.DrawFn) -> File:
    return File(draw(filenames()), draw(content_types), large(draw(st.sampled_from(LARGE))))


@st.composite
def cut(draw: st.DrawFn, body: bytes) -> list[bytes]:
    """The body as a network might deliver it; a large one in few chunks."""
    if len(body) < 4 * KIB:
        return draw(chunkings(body))
    borders = [0, *sorted(draw(st.lists(st.integers(0, len(body)), max_size=8))), len(body)]
    return [body[start:stop] for start, stop in pairwise(borders)]


async def send(client: Client, way: str, sent: list[File], data: st.DataObject) -> tuple[Answer, list[dict[str, Any]]]:
    """The answer, and the records in it."""
    if way == "form":
        fields = [(None, None, field) for field in data.draw(st.lists(contents, max_size=2))]
        body, content_type = form([*fields, *sent, *fields])
        chunks = data.draw(cut(body))
        answer = await client.post(UPLOADS, chunks, headers={"Content-Type": content_type})
        return answer, answer.json()["items"]
    [file] = sent
    headers = {} if file.content_type is None else {"Content-Type": file.content_type}
    if data.draw(st.booleans()):
        headers["Transfer-Encoding"] = "chunked"
    if data.draw(st.booleans()):
        digest = base64.b64encode(hashlib.sha256(file.content).digest()).decode()
        headers[data.draw(st.sampled_from(["Repr-Digest", "Content-Digest"]))] = f"sha-256=:{digest}:"
    chunks = data.draw(cut(file.content))
    escaped = quote(file.name, safe=data.draw(st.sampled_from(["", "!$&'()*+,;=:@"])) if way == "put" else "")
    if way == "put":
        answer = await client.put(escaped, chunks, headers=headers)
    else:
        headers["Content-Disposition"] = f"attachment; filename*=UTF-8''{escaped}"
        answer = await client.post(UPLOADS, chunks, headers=headers)
    return answer, [answer.json()]


@pytest.fixture
async def service(tmp_path: Path, database_url: str) -> AsyncIterator[Service]:
    async with serving(settings_in(tmp_path, database_url)) as running:
        yield running


async def check(service: Service, client: Client, sent: list[File], received: list[dict[str, Any]]) -> None:
    listed = (await client.get(f"{HISTORY}?limit=500")).json()["items"]
    assert {item["id"] for item in listed} == {record["id"] for record in received}
    for file, record in zip(sent, received, strict=True):
        assert record["filename"] == file.name
        assert record["content_type"] == (file.content_type or "application/octet-stream")
        assert record["size"] == len(file.content)
        assert record["sha256"] == hashlib.sha256(file.content).hexdigest()
        assert record["status"] == "completed"
        assert record in listed
        assert service.path_of(record["id"]).read_bytes() == file.content
        assert (await client.get(record["links"]["self"])).json() == record
        download = await client.get(record["links"]["content"])
        assert (download.status, download.body) == (200, file.content)


@given(way=st.sampled_from(["put", "post"]), file=files, data=st.data())
async def test_a_body_comes_out_as_it_went_in(service: Service, way: str, file: File, data: st.DataObject) -> None:
    client = service.client()
    answer, received = await send(client, way, [file], data)
    assert answer.status == 201
    assert {record["protocol"] for record in received} == {"raw"}
    await check(service, client, [file], received)


@given(sent=st.lists(files, min_size=1, max_size=5), data=st.data())
async def test_all_files_of_a_form_come_out_as_they_went_in(
    service: Service, sent: list[File], data: st.DataObject
) -> None:
    client = service.client()
    answer, received = await send(client, "form", sent, data)
    assert answer.status == 201
    assert {record["protocol"] for record in received} == {"form"}
    await check(service, client, sent, received)


@pytest.fixture
async def store(tmp_path: Path) -> AsyncIterator[Service]:
    """A service whose database does not matter."""
    async with serving(settings_in(tmp_path)) as running:
        yield running


@given(way=st.sampled_from(["put", "post", "form"]), file=large_files(), data=st.data())
@pytest.mark.slow
async def test_a_file_of_any_size_comes_out_as_it_went_in(
    store: Service, way: str, file: File, data: st.DataObject
) -> None:
    client = store.client()
    answer, received = await send(client, way, [file], data)
    assert answer.status == 201
    await check(store, client, [file], received)
    assert (await client.delete(received[0]["links"]["content"])).status == 204  # the disk is not endless
