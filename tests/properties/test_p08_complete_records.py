"""Property 8. Every complete upload has a row, and every field of it is true of the stored bytes."""

import hashlib
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest
from hypothesis import given
from hypothesis import strategies as st

from app import ids
from app.history import HistoryQuery
from app.model import Status
from app.uploads import records as upload_records
from tests.support.asgi import Client, Service, serving, settings_in
from tests.support.strategies import chunkings, filenames, form

UPLOADS = "/api/ingestion/uploads"
LIMIT = 300
content_types = st.sampled_from(["text/plain", "image/svg+xml; charset=utf-8", "application/octet-stream"])
contents = st.binary(max_size=20) | st.builds(
    lambda size, octet: bytes([octet]) * size, st.integers(0, LIMIT + 20), st.integers(0, 255)
)


@pytest.fixture
async def service(tmp_path: Path, database_url: str) -> AsyncIterator[Service]:
    settings = settings_in(tmp_path, database_url, max_file_size=LIMIT, max_files_per_request=3)
    async with serving(settings) as running:
        yield running


async def send(client: Client, data: st.DataObject) -> list[dict[str, Any]]:
    """Send something, perhaps too much, perhaps not to its end; what must be known of each file if it is complete."""
    way = data.draw(st.sampled_from(["form", "put", "post"]))
    count = data.draw(st.integers(0, 4)) if way == "form" else 1
    sent = [(data.draw(filenames()), data.draw(content_types), data.draw(contents)) for _ in range(count)]
    headers = {}
    if way == "form":
        body, headers["Content-Type"] = form(sent)
    else:
        [(filename, headers["Content-Type"], body)] = sent
        headers["Content-Disposition"] = f"attachment; filename*=UTF-8''{quote(filename, safe='')}"
    chunks = data.draw(chunkings(body))
    leaves = data.draw(st.none() | st.integers(0, len(chunks)))
    target = f"{UPLOADS}/{quote(sent[0][0], safe='')}" if way == "put" else UPLOADS
    method = "PUT" if way == "put" else "POST"
    answer = await client.request(method, target, headers=headers, body=chunks, hang_up_after=leaves)
    fits = 0 < count <= 3 and all(len(content) <= LIMIT for _, _, content in sent)
    assert (answer.status == 201) == (fits and leaves is None)
    return [
        {
            "filename": filename,
            "content_type": content_type,
            "size": len(content),
            "sha256": hashlib.sha256(content).hexdigest(),
            "protocol": "form" if way == "form" else "raw",
        }
        for filename, content_type, content in (sent if answer.status == 201 else [])
    ]


@given(data=st.data())
async def test_rows_and_files_tell_the_same_story(service: Service, data: st.DataObject) -> None:
    db = service.state["db"]
    client = service.client()
    await client.post("/api/session")
    session_id = (await client.get("/api/session")).json()["id"]
    before = ids.now_us()
    expected = [file for _ in range(data.draw(st.integers(1, 3))) for file in await send(client, data)]
    after = ids.now_us()

    page = await upload_records.list_uploads(
        db, session_id, HistoryQuery(statuses=(Status.COMPLETED,), order="oldest"), after=None, page_size=500
    )
    files = service.files()
    for upload, known in zip(page.uploads, expected, strict=True):
        stored = files[upload.id]
        assert (upload.size, upload.sha256) == (len(stored), hashlib.sha256(stored).hexdigest())
        assert {name: getattr(upload, name) for name in known} == known
        assert upload.session_id == session_id
        assert upload.completed_at is not None
        assert before <= upload.created_at <= upload.completed_at <= after
        assert upload.error is None
    # Over all sessions and examples: what is stored has a row that says so, and the other way round.
    assert {row.id for row in await upload_records.list_stored(db, "", 100_000)} == files.keys()
    assert service.staged() == []
