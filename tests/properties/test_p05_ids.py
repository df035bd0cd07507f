"""Property 5. Ids never repeat and never depend on what the client sent."""

import asyncio
import re
from collections.abc import AsyncIterator, Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from pathlib import Path
from typing import Any
from urllib.parse import quote
from uuid import UUID

import pytest
from hypothesis import given
from hypothesis import strategies as st

from app import ids
from app.model import Protocol
from app.storage.memory import MemoryStorage
from app.uploads.group_commit import Publisher
from app.uploads.ingest import Ingest, IngestLimits, Visitor
from tests.support.asgi import Client, Service, serving, settings_in
from tests.support.strategies import filenames, form
from tests.support.unreliable import Database, opened, ticking

HISTORY = "/api/ingestion/history"
V7 = re.compile(r"[0-9a-f]{8}-[0-9a-f]{4}-7[0-9a-f]{3}-[89ab][0-9a-f]{3}-[0-9a-f]{12}")


@pytest.fixture
async def service(tmp_path: Path) -> AsyncIterator[Service]:
    async with serving(settings_in(tmp_path)) as running:
        running.given_out = []  # type: ignore[attr-defined]
        yield running


HEADERS = ("X-Request-Id", "Upload-Id", "ETag", "If-None-Match", "Content-Id")
wishes = st.tuples(
    st.uuids().map(str) | st.integers(0, 99),  # an id that the client would like; or one that was given out before
    st.sets(st.sampled_from(HEADERS)),
    st.none() | filenames(),
    st.integers(0, 5),
)


async def send(client: Client, wish: tuple[Any, ...], known: list[str]) -> list[str]:
    """Send the same bytes as ever, with the wish in every place there is; the ids that were given."""
    wished, names, filename, files = wish
    if isinstance(wished, int):
        wished = known[wished % len(known)] if known else "0"
    headers = dict.fromkeys(names, wished)
    if not files:
        answer = await client.put(quote(filename or wished, safe=""), b"same bytes", headers=headers)
        return [answer.json()["id"]]
    body, kind = form([(filename or wished, "a/b", b"same bytes")] * files)
    answer = await client.post("/api/ingestion/uploads", body, headers={**headers, "Content-Type": kind})
    return [item["id"] for item in answer.json()["items"]]


@given(wishes=st.lists(wishes, min_size=1, max_size=3))
async def test_every_id_is_new_for_any_request(service: Service, wishes: list[tuple[Any, ...]]) -> None:
    given_out: list[str] = service.given_out  # type: ignore[attr-defined]
    client = service.client()
    for wish in wishes:
        ids = await send(client, wish, given_out)
        assert all(map(V7.fullmatch, ids))
        assert len({*given_out, *ids}) == len(given_out) + len(ids)
        assert all(UUID(earlier) < UUID(later) for earlier, later in pairwise([*given_out, *ids]))
        given_out += ids


uploads = st.lists(st.tuples(filenames(), st.sampled_from(["a/b", "text/html"]), st.binary(max_size=50)), max_size=4)


@given(one=uploads, other=uploads, script=st.lists(st.uuids(), min_size=4, max_size=4, unique=True))
async def test_ids_depend_on_the_randomness_and_not_on_the_request(
    db: Database, one: list[Any], other: list[Any], script: list[UUID]
) -> None:
    for sent in (one, other):
        source: Iterator[str] = map(str, script)
        storage = MemoryStorage()
        async with Publisher(storage, db, now_us=ticking()) as publisher:
            limits = IngestLimits(file_bytes=100, files=9, requests_at_once=1)
            ingest = Ingest(storage, publisher, limits=limits, now_us=ticking(), new_id=source.__next__)
            async with ingest.request(visitor=Visitor("mine"), protocol=Protocol.FORM) as landing:
                for filename, content_type, content in sent:
                    await landing.begin_file(filename, content_type)
                    await landing.write(content)
                    await landing.end_file()
                landed = await landing.publish() if sent else []
        assert [upload.id for upload in landed] == [str(each) for each in script[: len(sent)]]


@pytest.fixture
async def db(tmp_path: Path) -> AsyncIterator[Database]:
    db = await opened(f"sqlite:///{tmp_path}/waybill.db")
    yield db
    await db.close()


def test_ids_made_at_once_are_all_different() -> None:
    with ThreadPoolExecutor(4) as threads:
        drawn = [each for some in threads.map(lambda _: [ids.new_id() for _ in range(5000)], range(4)) for each in some]
    assert len(set(drawn)) == len(drawn) == 20_000
    assert all(map(V7.fullmatch, drawn))


async def test_ids_made_in_a_row_sort_as_they_were_made() -> None:
    drawn = [ids.new_id() for _ in range(5000)]
    await asyncio.sleep(0)
    assert drawn == sorted(drawn)
