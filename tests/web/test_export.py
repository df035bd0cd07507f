"""Everything that matches, as a stream: CSV and NDJSON, who asks for them and what they cost."""

import codecs
import csv
import io
import json
from typing import Any

import pytest

from app.errors import Unavailable
from app.uploads import records as upload_records
from tests.support.asgi import Client, Service
from tests.web.test_history import some_upload

pytestmark = pytest.mark.asyncio(loop_scope="module")

HISTORY = "/api/ingestion/history"
CSV, NDJSON, JSON = "text/csv; charset=utf-8; header=present", "application/x-ndjson", "application/json"
COLUMNS = [
    "id", "filename", "content_type", "size", "sha256", "status", "protocol", "created_at", "completed_at",
    "error_code", "error_detail", "metadata", "path", "expires_at",
]  # fmt: skip


async def holding(service: Service, count: int, first: int, **changes: Any) -> Client:
    """A client whose history holds that many uploads; their ids begin at number `first`."""
    client = service.client()
    session_id = (await client.post("/api/session")).json()["id"]
    lot = [some_upload(session_id, first + number).model_copy(update=changes) for number in range(count)]
    await upload_records.insert_uploads(service.state["db"], lot)
    return client


@pytest.mark.parametrize(
    ("accept", "content_type"),
    [
        (None, JSON),
        ("", JSON),
        ("*/*", JSON),
        ("application/json", JSON),
        ("application/*", JSON),
        ("text/html,application/xhtml+xml,application/xml;q=0.9,*/*;q=0.8", JSON),
        ("text/csv", CSV),
        ("TEXT/CSV", CSV),
        ("text/csv; charset=utf-8", CSV),
        ("text/csv;header=present;q=0.1", CSV),
        ("application/x-ndjson", NDJSON),
        ("text/csv, application/x-ndjson", CSV),
        ("application/x-ndjson, text/csv", NDJSON),
        ("text/csv;q=0.5, application/x-ndjson;q=0.6", NDJSON),
        ("text/csv, */*", CSV),
        ("*/*, text/csv", CSV),
        ("*/*;q=0.1, text/csv;q=0.2", CSV),
        ("*/*;q=0.8, text/csv;q=0.5", JSON),
        ("application/*;q=0.8, text/csv;q=0.5", JSON),
        ("application/*;q=0.1, */*;q=0.9, text/csv;q=0.5", CSV),
        ("application/json, text/csv", JSON),
        ("text/csv, application/json", CSV),
        ("application/json;q=0.5, text/csv;q=0.9", CSV),
        ("application/json;q=0.9, text/csv;q=0.5", JSON),
        ("text/csv;q=0", JSON),
        ("text/csv;q=0.000, */*;q=0", JSON),
        ("text/csv; Q=0.5, application/json;q=0.4", CSV),
        ("text/*", JSON),
        ("image/png", JSON),
        ("text/csv;q=nonsense", CSV),
        (",,;;q=,", JSON),
    ],
)
async def test_accept_says_which_form_is_wanted(service: Service, accept: str | None, content_type: str) -> None:
    client = await visitor(service)
    answer = await client.get(HISTORY, headers={} if accept is None else {"Accept": accept})
    assert (answer.status, answer["content-type"], answer["vary"]) == (200, content_type, "Accept")


async def visitor(service: Service) -> Client:
    client = service.client()
    await client.post("/api/session")
    return client


async def test_accept_may_come_in_several_lines_and_format_goes_before_it(service: Service) -> None:
    client = await visitor(service)
    lines = [("Accept", "application/json;q=0.5"), ("Accept", "text/csv")]
    assert (await client.get(HISTORY, headers=lines))["content-type"] == CSV
    for format_, content_type in (("json", JSON), ("csv", CSV), ("ndjson", NDJSON)):
        for accept in ("text/csv", "application/json"):
            answer = await client.get(f"{HISTORY}?format={format_}", headers={"Accept": accept})
            assert answer["content-type"] == content_type


@pytest.mark.parametrize("filters", ["", "&status=completed", "&order=oldest&min_size=1&limit=3", "&filename=nothing"])
async def test_a_stream_holds_what_all_pages_hold(service: Service, filters: str) -> None:
    client = await holding(service, 40, first=10_000 + 100 * len(filters))
    pages = (await client.get(f"{HISTORY}?limit=500{filters.replace('&limit=3', '')}")).json()["items"]
    lines = (await client.get(f"{HISTORY}?format=ndjson{filters}")).body.splitlines()
    assert [json.loads(line) for line in lines] == pages
    answer = await client.get(f"{HISTORY}?format=csv{filters}")
    header, *rows = csv.reader(io.StringIO(answer.body.decode(), newline=""))
    assert header == COLUMNS
    assert len(rows) == len(pages)
    for row, item in zip(rows, pages, strict=True):
        told = dict(zip(COLUMNS, row, strict=True))
        assert told["id"] == item["id"]
        assert told["size"] == str(item["size"])
        for key in ("content_type", "sha256", "status", "protocol", "created_at", "completed_at"):
            assert told[key] == (item[key] or "")
        assert told["error_code"] == (item["error"]["code"] if item["error"] else "")
        assert told["error_detail"] == ("'=1+1" if item["error"] else "")
        assert json.loads(told["metadata"]) == item["metadata"]
        assert (told["path"], told["expires_at"]) == (item["path"] or "", item["expires_at"] or "")


async def test_a_table_for_excel_begins_with_a_byte_order_mark_and_has_a_file_name(service: Service) -> None:
    client = await holding(service, 3, first=20_000)
    plain = await client.get(f"{HISTORY}?format=csv")
    marked = await client.get(HISTORY + "?format=csv&bom=true")
    assert marked.body == codecs.BOM_UTF8 + plain.body
    assert marked["content-disposition"] == "attachment; filename=\"history.csv\"; filename*=UTF-8''history.csv"
    assert (await client.get(f"{HISTORY}?bom=false&format=ndjson"))["content-disposition"].endswith("history.ndjson")
    for query in ("bom=true", "bom=true&format=ndjson", "bom=true&format=json"):
        assert (await client.get(f"{HISTORY}?{query}")).refused(400, "bad_query")["parameter"] == "bom"


@pytest.mark.parametrize(
    "name",
    ["=1+1", "+1", "-1", "@SUM(A1)", "=cmd|'calc'!A1", "  =1", "\u00a0=1", "\u3000=1", "'=1", '"=1', "|x", "%x",
     "＝1", "＋1", "－1", "＠x"],
)  # fmt: skip
async def test_no_cell_starts_a_formula(service: Service, name: str) -> None:
    client = await holding(service, 1, first=100_000 + sum(name.encode()), filename=name, content_type=name)
    answer = await client.get(f"{HISTORY}?format=csv")
    [_, row] = csv.reader(io.StringIO(answer.body.decode(), newline=""))
    assert row[1] == row[2] == f"'{name}"
    assert json.loads((await client.get(f"{HISTORY}?format=ndjson")).body)["filename"] == name  # only there


@pytest.mark.parametrize("name", ["a,b", 'say "hi"', "a;b", "a=b", "1-2", "émile 日本", "it's", "a\u2028b"])
async def test_other_names_come_through_a_table_unchanged(service: Service, name: str) -> None:
    client = await holding(service, 1, first=200_000 + sum(name.encode()), filename=name)
    answer = await client.get(f"{HISTORY}?format=csv")
    [_, row] = csv.reader(io.StringIO(answer.body.decode(), newline=""))
    assert row[1] == name


async def test_a_stream_reads_a_page_at_a_time_and_stops_with_its_reader(
    service: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    client = await holding(service, 1203, first=300_000)
    asked: list[int] = []
    list_uploads = upload_records.list_uploads

    async def counted(*arguments: Any, page_size: int, **others: Any) -> Any:
        asked.append(page_size)
        return await list_uploads(*arguments, page_size=page_size, **others)

    monkeypatch.setattr(upload_records, "list_uploads", counted)
    for format_ in ("csv", "ndjson"):
        asked.clear()
        answer = await client.get(f"{HISTORY}?format={format_}")
        assert answer.body.count(b"\n") == 1203 + (format_ == "csv")
        assert len(asked) == 3
        assert max(asked) <= 500
        assert len([block for block in answer.blocks if block]) == 3  # each page went out before the next was read
        asked.clear()
        left = await client.request("GET", f"{HISTORY}?format={format_}", stop_listening_after=1)
        assert not left.heard
        assert len(asked) <= 2
        asked.clear()
        head = await client.request("HEAD", f"{HISTORY}?format={format_}")
        assert (head.status, head["content-type"], head.all("content-length")) == (200, answer["content-type"], [])
        assert asked == []


async def test_a_stream_that_cannot_begin_is_refused_and_one_that_cannot_go_on_is_cut(
    service: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    client = await holding(service, 600, first=400_000)
    list_uploads = upload_records.list_uploads

    async def away(*arguments: Any, after: Any, **others: Any) -> Any:
        if after is None and goes_at_once:
            raise Unavailable
        if after is not None:
            raise Unavailable
        return await list_uploads(*arguments, after=after, **others)

    monkeypatch.setattr(upload_records, "list_uploads", away)
    goes_at_once = True
    (await client.get(f"{HISTORY}?format=csv")).refused(503, "unavailable")
    goes_at_once = False
    answer = await client.get(f"{HISTORY}?format=csv")
    assert answer.status == 200
    assert answer.broken is not None
    assert not answer.complete
