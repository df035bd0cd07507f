"""Property 12. A record that obeys the model keeps its meaning from row to JSON."""

import asyncio
import json
from datetime import UTC, datetime, timedelta
from itertools import count
from uuid import UUID

import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.db.database import Db
from app.db.migrate import migrate
from app.history import HistoryQuery
from app.model import MAX_SIZE, MAX_TIME_US, Failure, Protocol, Status, Upload
from app.uploads import records as upload_records
from tests.support.strategies import annotations, filenames

sendable = st.text(st.characters(codec="utf-8", exclude_characters="\0"), max_size=40)
times = st.integers(0, MAX_TIME_US)


@st.composite
def uploads(draw):
    """Any upload that the model allows."""
    status = draw(st.sampled_from(Status))
    there = status in {Status.COMPLETED, Status.DELETED}
    created_at = draw(times)
    digests = st.from_regex(r"[0-9a-f]{64}", fullmatch=True)
    ends = st.integers(created_at, MAX_TIME_US)
    failures = st.builds(Failure, code=sendable.filter(bool), detail=sendable)
    return Upload(
        id=str(draw(st.uuids())),
        session_id=draw(sendable.filter(bool)),
        filename=draw(filenames()),
        content_type=draw(sendable | st.none()),
        size=draw(st.integers(0, MAX_SIZE)),
        sha256=draw(digests if there else digests | st.none()),
        status=status,
        protocol=draw(st.sampled_from(Protocol)),
        created_at=created_at,
        completed_at=draw(ends if there else ends | st.none()),
        error=draw(failures) if status is Status.FAILED else None,
        **draw(annotations()),
    )


def moment(time_us):
    """As a client reads it, by way of the standard library's calendar."""
    return None if time_us is None else datetime(1970, 1, 1, tzinfo=UTC) + timedelta(microseconds=time_us)


@pytest.fixture
def runner():
    with asyncio.Runner() as runner:
        yield runner


@pytest.fixture
def db(runner, database_url):
    db = Db(database_url)
    runner.run(db.open())
    runner.run(migrate(db, now_us=0))
    yield db
    runner.run(db.close())


def test_a_record_keeps_its_meaning_from_row_to_json(runner, db):
    ids = count()

    @given(uploads())
    def keeps_its_meaning(upload):
        upload = upload.model_copy(update={"id": str(UUID(int=next(ids)))})  # an id is recorded once
        runner.run(upload_records.insert_uploads(db, [upload]))
        found = runner.run(upload_records.list_these(db, [upload.id]))[upload.id]
        assert found == upload
        query = HistoryQuery(from_us=upload.created_at, min_size=upload.size, filename=upload.filename)
        if not {"*", "?"} & set(upload.filename):
            page = runner.run(upload_records.list_uploads(db, upload.session_id, query, after=None, page_size=500))
            assert upload in page.uploads
        answer = json.loads(found.as_json())
        links = answer.pop("links")
        created_at, completed_at = answer.pop("created_at"), answer.pop("completed_at")
        expires_at = answer.pop("expires_at")
        assert answer == {
            "id": upload.id,
            "filename": upload.filename,
            "content_type": upload.content_type,
            "size": upload.size,
            "sha256": upload.sha256,
            "status": upload.status.value,
            "protocol": upload.protocol.value,
            "error": upload.error and {"code": upload.error.code, "detail": upload.error.detail},
            "metadata": upload.metadata,
            "path": upload.path,
        }
        assert (expires_at is not None) == (upload.status is Status.COMPLETED and upload.keep_us is not None)
        assert datetime.fromisoformat(created_at) == moment(upload.created_at)
        assert created_at.endswith("Z")
        assert (completed_at and datetime.fromisoformat(completed_at)) == moment(upload.completed_at)
        assert links["self"] == f"/api/ingestion/history/{upload.id}"
        assert (links["content"] is not None) == (upload.status is Status.COMPLETED)

    keeps_its_meaning()
