"""Many files in one archive: what is in it, what it is refused for, and that a damaged file never makes it whole."""

import asyncio
import io
import json
import os
import zipfile
from typing import Any
from urllib.parse import urlencode

import pytest

from app.uploads import records as upload_records
from tests.support.asgi import Answer, Client, Service, serving, settings_in

pytestmark = pytest.mark.asyncio(loop_scope="module")

ARCHIVE = "/api/ingestion/files.zip"
LARGE = bytes(range(256)) * 4096 + b"the end"  # in several blocks


async def upload(client: Client, name: str, content: bytes) -> dict[str, Any]:
    record: dict[str, Any] = (await client.put(name, content)).json()
    return record


def unpacked(answer: Answer) -> dict[str, bytes]:
    assert answer.status == 200
    assert int(answer["content-length"]) == len(answer.body)
    with zipfile.ZipFile(io.BytesIO(answer.body)) as archive:
        assert archive.testzip() is None
        return {name: archive.read(name) for name in archive.namelist()}


async def test_an_archive_holds_every_file_that_matches(service: Service) -> None:
    client, stranger = service.client(), service.client()
    await upload(stranger, "foreign.txt", b"foreign")
    contents = {"empty": b"", "small.txt": b"small", "large.bin": LARGE, "%C3%A4%20b.txt": b"umlaut"}
    records = [await upload(client, name, content) for name, content in contents.items()]
    again = await upload(client, "SMALL.txt", b"another")
    deleted = await upload(client, "deleted.txt", b"deleted")
    await client.delete(deleted["links"]["content"])
    answer = await client.get(ARCHIVE)
    assert unpacked(answer) == {
        "SMALL.txt": b"another",
        "ä b.txt": b"umlaut",
        "large.bin": LARGE,
        "small (2).txt": b"small",
        "empty": b"",
    }
    assert answer["content-type"] == "application/zip"
    assert answer["content-disposition"] == "attachment; filename=\"files.zip\"; filename*=UTF-8''files.zip"
    assert answer["cache-control"] == "private, no-store"
    assert unpacked(await client.get(f"{ARCHIVE}?filename=*.bin")) == {"large.bin": LARGE}
    assert unpacked(await client.get(f"{ARCHIVE}?order=oldest&max_size=5")).keys() == {"empty", "small.txt"}
    assert unpacked(await client.get(f"{ARCHIVE}?status=failed")) == {}
    assert unpacked(await client.get(f"{ARCHIVE}?status=completed,failed&sha256={again['sha256']}")).keys() == {
        "SMALL.txt"
    }
    head = await client.request("HEAD", ARCHIVE)
    assert (head.status, head.body, head["content-length"]) == (200, b"", answer["content-length"])
    for form in ({"Content-Type": "application/x-www-form-urlencoded"}, {}):
        ids = [records[0]["id"], deleted["id"], records[2]["id"], "nonsense", records[0]["id"]]
        pairs = [("id", upload_id) for upload_id in ids]
        body = urlencode(pairs).encode() if form else multipart(pairs)
        chosen = await client.post(ARCHIVE, body, headers=form or MULTIPART)
        assert unpacked(chosen) == {"empty": b"", "large.bin": LARGE}


MULTIPART = {"Content-Type": "multipart/form-data; boundary=edge"}


def multipart(pairs: list[tuple[str, str]]) -> bytes:
    parts = (f'--edge\r\nContent-Disposition: form-data; name="{name}"\r\n\r\n{value}\r\n' for name, value in pairs)
    return ("".join(parts) + "--edge--\r\n").encode()


@pytest.mark.parametrize("unwanted", ["limit=5", "count=true", "format=csv", "format=json", "nonsense=1", "from=x"])
async def test_parameters_of_pages_are_refused(service: Service, unwanted: str) -> None:
    client = service.client()
    await upload(client, "a", b"a")
    problem = (await client.get(f"{ARCHIVE}?{unwanted}")).refused(400, "bad_query")
    assert problem["parameter"] == unwanted.partition("=")[0]


async def test_a_cursor_of_the_history_is_refused(service: Service) -> None:
    client = service.client()
    for name in "ab":
        await upload(client, name, b"a")
    cursor = (await client.get("/api/ingestion/history?limit=1")).json()["next_cursor"]
    assert (await client.get(f"{ARCHIVE}?cursor={cursor}")).refused(400, "bad_query")["parameter"] == "cursor"


async def test_an_archive_needs_a_session(service: Service) -> None:
    (await service.client().get(ARCHIVE)).refused(401, "no_session")
    (await service.client().post(ARCHIVE, b"", headers=MULTIPART)).refused(401, "no_session")


@pytest.mark.parametrize(
    ("body", "kind", "status", "code"),
    [
        (b"{}", "application/json", 415, "unsupported_media_type"),
        (b"id=%ff&=", "application/x-www-form-urlencoded", 400, "bad_request"),
        (b"id=\xff", "application/x-www-form-urlencoded", 400, "bad_request"),
        (b"ids=a", "application/x-www-form-urlencoded", 400, "bad_request"),
        (b"nonsense", "application/x-www-form-urlencoded", 400, "bad_request"),
        (multipart([("ids", "a")]), MULTIPART["Content-Type"], 400, "bad_request"),
        (multipart([("id", "a")])[:-4], MULTIPART["Content-Type"], 400, "malformed_form"),
        (
            b'--edge\r\nContent-Disposition: form-data; name="id"; filename="a"\r\n\r\n\r\n--edge--\r\n',
            MULTIPART["Content-Type"],
            400,
            "bad_request",
        ),
    ],
)
async def test_a_selection_that_is_no_form_of_ids_is_refused(
    service: Service, body: bytes, kind: str, status: int, code: str
) -> None:
    client = service.client()
    await upload(client, "a", b"a")
    (await client.post(ARCHIVE, body, headers={"Content-Type": kind})).refused(status, code)


async def test_an_empty_selection_is_an_empty_archive(service: Service) -> None:
    client = service.client()
    await upload(client, "a", b"a")
    answer = await client.post(ARCHIVE, b"", headers={"Content-Type": "application/x-www-form-urlencoded"})
    assert unpacked(answer) == {}


@pytest.mark.parametrize("damage", ["altered", "shorter", "gone"])
@pytest.mark.parametrize("content", [b"small", LARGE])
async def test_a_damaged_file_ends_the_archive_before_its_directory(
    service: Service, damage: str, content: bytes
) -> None:
    client = service.client()
    await upload(client, "last", b"last")
    record = await upload(client, "damaged", content)
    await upload(client, "first", b"first")
    path = service.path_of(record["id"])
    path.chmod(0o600)
    match damage:
        case "altered":
            path.write_bytes(content[:-1] + b"?")
        case "shorter":
            os.truncate(path, len(content) - 1)
        case "gone":
            path.unlink()
    answer = await client.get(ARCHIVE)
    assert answer.broken is not None
    assert len(answer.body) < int(answer["content-length"])
    assert b"first" in answer.body
    with pytest.raises(zipfile.BadZipFile):
        zipfile.ZipFile(io.BytesIO(answer.body))


async def test_more_files_than_allowed_are_refused(tmp_path_factory: pytest.TempPathFactory) -> None:
    async with serving(settings_in(tmp_path_factory.mktemp("few"), max_zip_files=2)) as service:
        client = service.client()
        ids = [(await upload(client, name, b"a"))["id"] for name in "ab"]
        assert len(unpacked(await client.get(ARCHIVE))) == 2
        ids.append((await upload(client, "c", b"a"))["id"])
        problem = (await client.get(ARCHIVE)).refused(413, "too_many_files")
        assert (problem["received"], problem["limit"]) == (3, 2)
        assert "archive" in problem["detail"]
        body = urlencode([("id", upload_id) for upload_id in ids]).encode()
        form = {"Content-Type": "application/x-www-form-urlencoded"}
        (await client.post(ARCHIVE, body, headers=form)).refused(413, "too_many_files")
        (await client.post(ARCHIVE, multipart([("id", "a")] * 3), headers=MULTIPART)).refused(413, "too_many_files")
        assert len(unpacked(await client.get(f"{ARCHIVE}?filename=c"))) == 1


async def test_a_client_that_leaves_ends_the_archive(service: Service, monkeypatch: pytest.MonkeyPatch) -> None:
    client, storage = service.client(), service.state["storage"]
    records = [await upload(client, f"{number}", LARGE) for number in range(3)]
    opened, open_file = [], storage.open

    async def counting(key: str) -> Any:
        opened.append(key)
        return await open_file(key)

    monkeypatch.setattr(storage, "open", counting)
    answer = await client.request("GET", ARCHIVE, stop_listening_after=2)
    assert len(answer.body) < len(LARGE)
    assert opened == [records[-1]["id"]]


async def test_deleting_many_and_fetching_the_rest(service: Service) -> None:
    client = service.client()
    records = [await upload(client, f"{number}.txt", b"x") for number in range(5)]
    await upload_records.fail_uploads(service.state["db"], [records[4]["id"]], "lost", "")
    ids = [record["id"] for record in records[:2]]
    await client.post("/api/ingestion/files/delete", json.dumps({"ids": ids}).encode())
    first, second = await asyncio.gather(client.get(ARCHIVE), client.get(ARCHIVE))
    assert unpacked(first).keys() == unpacked(second).keys() == {"2.txt", "3.txt"}
