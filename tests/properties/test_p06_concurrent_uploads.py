"""Property 6. Any interleaving leaves the files and rows that some one-after-another order would leave."""

import asyncio
import hashlib
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import quote

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.support.asgi import Answer, Client, HangUp, Service, serving, settings_in
from tests.support.strategies import chunkings, form

UPLOADS = "/api/ingestion/uploads"
HISTORY = "/api/ingestion/history"
FILES = "/api/ingestion/files"
LIMIT = 200


class Planned(NamedTuple):
    """A request as it will be sent: by which browser, what, in which chunks, and whether it leaves before the end."""

    browser: int
    way: str
    contents: list[bytes]
    chunks: list[bytes]
    leaves_after: int | None


@st.composite
def requests(draw: st.DrawFn) -> Planned:
    way = draw(st.sampled_from(["put", "form"]))
    sizes = st.integers(0, LIMIT + 10)
    contents = [bytes([draw(st.integers(0, 255))]) * size for size in draw(st.lists(sizes, min_size=1, max_size=3))]
    contents = contents[:1] if way == "put" else contents
    body = contents[0] if way == "put" else form([(f"{at}", "a/b", each) for at, each in enumerate(contents)])[0]
    chunks = draw(chunkings(body).filter(lambda chunks: len(chunks) < 20))
    leaves_after = draw(st.none() | st.integers(0, len(chunks)))
    return Planned(draw(st.integers(0, 2)), way, contents, chunks, leaves_after)


class Sending:
    """A request under way, whose next chunk leaves when it is told to."""

    def __init__(self, client: Client, planned: Planned) -> None:
        self.planned = planned
        self._next: asyncio.Queue[bytes | None] = asyncio.Queue()
        self._left = [*planned.chunks[: planned.leaves_after], None]
        kind = form([])[1] if planned.way == "form" else "a/b"
        target = f"{UPLOADS}/0" if planned.way == "put" else UPLOADS
        method = "PUT" if planned.way == "put" else "POST"
        headers = {"Content-Type": kind}
        self.task = asyncio.create_task(client.request(method, target, headers=headers, body=self._body()))

    async def _body(self) -> AsyncIterator[bytes]:
        while (chunk := await self._next.get()) is not None:
            yield chunk
        if self.planned.leaves_after is not None:
            raise HangUp

    def go_on(self) -> bool:
        """Send the next chunk, or end; whether there was anything left to do."""
        if self._left:
            self._next.put_nowait(self._left.pop(0))
        return bool(self._left)

    def check(self, answer: Answer) -> list[str]:
        """That the answer is the one this request would get if it were alone; the ids it was given."""
        fits = all(len(content) <= LIMIT for content in self.planned.contents)
        if self.planned.leaves_after is not None:
            assert answer.status in {0, 400, 413}
            return []
        if not fits:
            answer.refused(413, "too_large")
            return []
        assert answer.status == 201
        landed = answer.json()["items"] if self.planned.way == "form" else [answer.json()]
        digests = [hashlib.sha256(content).hexdigest() for content in self.planned.contents]
        assert [item["sha256"] for item in landed] == digests
        return [item["id"] for item in landed]


@pytest.fixture
async def service(tmp_path: Path, database_url: str) -> AsyncIterator[Service]:
    async with serving(settings_in(tmp_path, database_url, max_file_size=LIMIT)) as running:
        yield running


async def history(client: Client) -> list[dict[str, Any]]:
    return (await client.get(f"{HISTORY}?limit=500")).json()["items"]  # type: ignore[no-any-return]


@given(
    planned=st.lists(requests(), min_size=2, max_size=6),
    order=st.lists(st.tuples(st.integers(0, 5), st.integers(0, 4)), max_size=60),
)
@pytest.mark.slow
async def test_uploads_at_the_same_time_are_as_if_each_were_alone(
    service: Service, planned: list[Planned], order: list[tuple[int, int]]
) -> None:
    """The schedule says whose chunk comes next, and how many turns the service gets before the one after it."""
    clients = [service.client() for _ in range(3)]
    for client in clients:
        await client.post("/api/session")
    sendings = [Sending(clients[each.browser], each) for each in planned]
    for number, turns in order:
        sendings[number % len(sendings)].go_on()
        for _ in range(turns):
            await asyncio.sleep(0)
    for sending in sendings:
        while sending.go_on():
            pass
    answers = await asyncio.gather(*(sending.task for sending in sendings))
    landed: dict[int, list[str]] = {0: [], 1: [], 2: []}
    for sending, answer in zip(sendings, answers, strict=True):
        landed[sending.planned.browser] += sending.check(answer)

    files = service.files()
    for browser, client in enumerate(clients):
        items = await history(client)
        completed = {item["id"]: item for item in items if item["status"] == "completed"}
        assert completed.keys() == set(landed[browser])
        for upload_id, item in completed.items():
            assert hashlib.sha256(files[upload_id]).hexdigest() == item["sha256"]
            assert len(files[upload_id]) == item["size"]
        # What failed has left no bytes, and its row names one of the reasons there were.
        failed = [item for item in items if item["status"] != "completed"]
        assert {item["status"] for item in failed} <= {"failed"}
        assert not {item["id"] for item in failed} & files.keys()
        assert {item["error"]["code"] for item in failed} <= {"incomplete_body", "too_large"}
    assert service.staged() == []


@given(
    deleters=st.lists(st.tuples(st.integers(0, 3), st.integers(0, 6)), min_size=2, max_size=8),
    late=st.integers(0, 30),
)
@pytest.mark.slow
async def test_simultaneous_deletions_of_a_file_succeed_and_its_readers_get_all_or_nothing(
    service: Service, deleters: list[tuple[int, int]], late: int
) -> None:
    """While others read it: they get all of it or nothing."""
    client = service.client()
    content = b"content" * 20
    uploads = [(await client.put(quote("a b"), content)).json()["id"] for _ in range(4)]

    async def delete(number: int, turns: int) -> tuple[int, int]:
        for _ in range(turns):
            await asyncio.sleep(0)
        return number, (await client.delete(f"{FILES}/{uploads[number]}")).status

    async def read(number: int) -> Answer:
        for _ in range(late):
            await asyncio.sleep(0)
        return await client.get(f"{FILES}/{uploads[number]}")

    deletions = asyncio.gather(*(delete(*each) for each in deleters))
    readings = await asyncio.gather(*(read(number) for number in range(4)))
    asked = {number for number, _ in deleters}
    assert set(await deletions) == {(number, 204) for number in asked}
    for answer in readings:
        assert (answer.status, answer.body) == (200, content) or answer.status in {404, 503}
    statuses = {item["id"]: item["status"] for item in await history(client)}
    assert statuses == {each: "deleted" if at in asked else "completed" for at, each in enumerate(uploads)}
    assert {each for at, each in enumerate(uploads) if at not in asked} <= service.files().keys()
    assert not {uploads[number] for number in asked} & service.files().keys()
