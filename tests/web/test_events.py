"""The stream of events: what happens to a session's uploads, told in order, to whoever listens or comes back."""

import asyncio
import json
import random
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from typing import Any, NamedTuple

import pytest

from app.db.queryable import Transaction
from app.events import STREAMS_OF_SESSION, streams
from tests.support.asgi import Answer, Client, Service, serving, settings_in
from tests.support.memory import quick_directory
from tests.web.test_concatenation import concatenate, part
from tests.web.test_session import code_from, join
from tests.web.test_tus import CHUNK, TUS, UPLOADS

pytestmark = pytest.mark.asyncio(loop_scope="module")

EVENTS = "/api/ingestion/events"
HISTORY = "/api/ingestion/history"
DRAFT = {"Upload-Draft-Interop-Version": "6"}


class Heard(NamedTuple):
    kind: str
    data: Any
    position: str | None

    @property
    def what(self) -> tuple[str, str]:
        return self.data["id"], self.kind.removeprefix("upload.")


class Listener:
    """A client of the stream that reads as the HTML Standard says."""

    def __init__(self) -> None:
        self.events: asyncio.Queue[Heard] = asyncio.Queue()
        self.position: str | None = None
        self.opened = asyncio.Event()
        self._text = ""

    def read(self, block: bytes) -> None:
        self.opened.set()
        self._text += block.decode()
        *whole, self._text = self._text.split("\n\n")
        for text in whole:
            fields = dict(line.split(": ", 1) for line in text.split("\n") if not line.startswith(":"))
            self.position = fields.get("id", self.position)
            if "data" in fields:
                self.events.put_nowait(Heard(fields["event"], json.loads(fields["data"]), fields.get("id")))

    async def next(self, *, progress: bool = False) -> Heard:
        async with asyncio.timeout(20):
            while True:
                heard = await self.events.get()
                if progress or heard.kind != "upload.progress":
                    return heard

    async def several(self, count: int) -> list[tuple[str, str]]:
        return [(await self.next()).what for _ in range(count)]

    async def nothing_more(self, client: Client) -> None:
        """Nothing else was told before what happens now."""
        last = await stored(client)
        assert await self.several(2) == [(last, "created"), (last, "completed")]


@asynccontextmanager
async def listening(client: Client, after: str | None = None, query: str = "") -> AsyncIterator[Listener]:
    listener = Listener()
    headers = {} if after is None else {"Last-Event-ID": after}
    task = asyncio.create_task(client.request("GET", EVENTS + query, headers=headers, listen=listener.read))
    opened = asyncio.create_task(listener.opened.wait())
    await asyncio.wait((task, opened), return_when=asyncio.FIRST_COMPLETED)
    try:
        yield listener
    finally:
        task.cancel()
        opened.cancel()
        await asyncio.wait((task, opened))


async def stored(client: Client, content: bytes = b"x", name: str = "a.bin") -> str:
    answer = await client.put(name, content)
    assert answer.status == 201
    upload_id: str = answer.json()["id"]
    return upload_id


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr("app.events._TICK_SECONDS", 0.02)
    return


async def by_form(client: Client) -> Answer:
    body = b'--b\r\nContent-Disposition: form-data; name="f"; filename="f"\r\n\r\nx\r\n--b--\r\n'
    return await client.post(UPLOADS, body, headers={"Content-Type": "multipart/form-data; boundary=b"})


async def by_tus(client: Client) -> Answer:
    created = await client.post(UPLOADS, headers={**TUS, "Upload-Length": "2"})
    for offset in range(2):
        fields = {**CHUNK, "Upload-Offset": str(offset)}
        answer = await client.request("PATCH", created["location"], headers=fields, body=b"x")
    return answer


async def by_draft(client: Client) -> Answer:
    fields = {**DRAFT, "Upload-Complete": "?0", "Content-Type": "a/b"}
    created = await client.post(UPLOADS, b"x", headers=fields)
    fields = {**DRAFT, "Upload-Complete": "?1", "Upload-Offset": "1", "Content-Type": "application/partial-upload"}
    return await client.request("PATCH", created["location"], headers=fields, body=b"y")


async def by_concatenation(client: Client) -> Answer:
    return await concatenate(client, await part(client, b"a"), await part(client, b"b"))


WAYS = {
    "raw": lambda client: client.put("a", b"x"),
    "form": by_form,
    "tus in one request": lambda client: client.post(UPLOADS, b"x", headers={**CHUNK, "Upload-Length": "1"}),
    "tus in several": by_tus,
    "draft in one request": lambda client: client.post(UPLOADS, b"x", headers={**DRAFT, "Upload-Complete": "?1"}),
    "draft in several": by_draft,
    "concatenation": by_concatenation,
}


async def test_every_way_to_upload_is_told_as_created_then_completed(service: Service) -> None:
    client = service.client()
    await client.post("/api/session")
    async with listening(client) as listener:
        for way, upload in WAYS.items():
            assert (await upload(client)).status in {200, 201, 204}, way
            created, completed = await listener.next(), await listener.next()
            if completed.kind == "upload.processing":  # parts are put together
                completed = await listener.next()
            [record] = (await client.get(f"{HISTORY}?limit=1")).json()["items"]
            assert (created.what, completed.what) == ((record["id"], "created"), (record["id"], "completed")), way
            assert completed.data == record
            assert created.position != completed.position
        await listener.nothing_more(client)


async def test_the_end_of_an_upload_is_told(service: Service) -> None:
    client = service.client()
    first, second = await stored(client), await stored(client)
    async with listening(client) as listener:
        refused = await client.put("b", b"x", headers={"Repr-Digest": f"sha-256=:{'A' * 43}=:"})
        refused.refused(400, "digest_mismatch")
        created, failed = await listener.next(), await listener.next()
        assert (created.kind, failed.kind) == ("upload.created", "upload.failed")
        assert failed.data["error"]["code"] == "digest_mismatch"
        unfinished = (await client.post(UPLOADS, headers={**TUS, "Upload-Length": "5"}))["location"]
        await client.request("DELETE", unfinished, headers=TUS)
        created, failed = await listener.next(), await listener.next()
        assert (created.kind, failed.kind, failed.data["error"]["code"]) == ("upload.created", "upload.failed", "gone")
        assert (await client.delete(f"/api/ingestion/files/{first}")).status == 204
        assert (await client.delete(f"/api/ingestion/files/{first}")).status == 204
        await client.post("/api/ingestion/files/delete", json.dumps({"ids": [second]}).encode())
        assert await listener.several(2) == [(first, "deleted"), (second, "deleted")]
        await listener.nothing_more(client)


async def test_listeners_that_come_back_miss_nothing_and_hear_nothing_twice(service: Service) -> None:
    """Several sessions: what is read for one may be on its way while another begins to listen."""

    async def one() -> None:
        client = service.client()
        await client.post("/api/session")
        heard: list[tuple[str, str]] = []
        position = None
        sent: list[str] = []

        async def upload() -> None:
            while len(sent) < 30:
                sent.append(await stored(client))

        async with listening(client) as listener:
            position = listener.position
        uploading = asyncio.create_task(upload())
        while not uploading.done() or len(heard) < 60:
            async with listening(client, position) as listener:
                for _ in range(min(random.randrange(1, 6), 60 - len(heard))):
                    told = await listener.next()
                    heard.append(told.what)
                    position = told.position
        await uploading
        assert heard == [(upload_id, kind) for upload_id in sent for kind in ("created", "completed")]
        async with listening(client, position) as listener:
            await listener.nothing_more(client)

    async with asyncio.TaskGroup() as group:
        for _ in range(5):
            group.create_task(one())


async def test_the_url_may_name_the_position_and_a_reconnect_comes_before_it(service: Service) -> None:
    client = service.client()
    await client.post("/api/session")
    async with listening(client) as listener:
        first = await stored(client)
        before, after = await listener.next(), await listener.next()
    async with listening(client, query=f"?after={before.position}") as listener:
        assert await listener.several(1) == [(first, "completed")]
    async with listening(client, after.position, query=f"?after={before.position}") as listener:
        await listener.nothing_more(client)


@pytest.mark.parametrize("position", ["", "x", "A" * 33, "é" * 33, "-" * 400, "0"])
async def test_an_unknown_position_is_answered_by_a_reset(service: Service, position: str) -> None:
    client = service.client()
    await stored(client)
    async with listening(client, position) as listener:
        assert (await listener.next()).kind == "reset"
        await listener.nothing_more(client)


async def test_a_forgotten_position_is_answered_by_a_reset(service: Service) -> None:
    client = service.client()
    await client.post("/api/session")
    async with listening(client) as listener:
        await stored(client)
        kept = (await listener.next()).position
        await listener.next()
    await changed(service, "DELETE FROM changes WHERE id < (SELECT max(id) FROM changes)")
    async with listening(client, kept) as listener:
        assert (await listener.next()).kind == "reset"
        await listener.nothing_more(client)


async def changed(service: Service, statement: str) -> None:
    async def run(transaction: Transaction) -> None:
        await transaction.execute(statement)

    await service.state["db"].transaction(run)


async def test_listeners_begin_again_when_an_older_database_was_restored(service: Service) -> None:
    client = service.client()
    await client.post("/api/session")
    async with listening(client) as listener:
        await stored(client)
        await listener.several(2)
        await changed(service, "UPDATE changes SET at_us = at_us + 1")
        assert (await listener.next()).kind == "reset"
        await listener.nothing_more(client)


async def test_nobody_hears_of_another_session(service: Service) -> None:
    one, other = service.client(), service.client()
    await one.post("/api/session")
    async with listening(one) as listener:
        for _ in range(5):
            await stored(other)
        await listener.nothing_more(one)
        mine = listener.position
    await stored(other)
    await other.post("/api/session")
    async with listening(other, mine) as listener:  # another's position tells nothing either
        assert (await listener.next()).data["id"] in {item["id"] for item in (await other.get(HISTORY)).json()["items"]}


async def test_a_session_has_a_limited_number_of_streams(service: Service) -> None:
    client = service.client()
    await client.post("/api/session")
    opened = [listening(client) for _ in range(STREAMS_OF_SESSION)]
    for each in opened:
        await each.__aenter__()
    problem = (await client.get(EVENTS)).refused(429, "rate_limited")
    assert problem["limit"] == STREAMS_OF_SESSION
    assert service.state["events"].count() == STREAMS_OF_SESSION
    for each in opened:
        await each.__aexit__(None, None, None)
    assert service.state["events"].count() == 0
    async with listening(client) as listener:
        await listener.nothing_more(client)


async def test_a_stream_ends_with_its_session(service: Service) -> None:
    client, second = service.client(), service.client()
    await client.post("/api/session")
    await join(second, await code_from(client))
    listener = Listener()
    stream = asyncio.create_task(client.request("GET", EVENTS, listen=listener.read))
    await listener.opened.wait()
    await second.delete("/api/session")
    async with asyncio.timeout(20):
        assert (await stream).complete
    (await client.get(EVENTS)).refused(401, "no_session")


async def test_a_join_tells_both_sides_to_begin_again(service: Service) -> None:
    first, second = service.client(), service.client()
    await stored(first)
    moving = await stored(second)
    async with listening(first) as staying, listening(second) as joining:
        await join(second, await code_from(first))
        assert (await staying.next()).kind == "reset"
        assert (await joining.next()).kind == "reset"
        assert moving in {item["id"] for item in (await first.get(HISTORY)).json()["items"]}


async def test_progress_is_told_without_a_position(service: Service) -> None:
    client = service.client()
    await client.post("/api/session")
    async with listening(client) as listener:
        created = await client.post(UPLOADS, headers={**TUS, "Upload-Length": "700000"})
        record = (await listener.next()).data
        fields = {**CHUNK, "Upload-Offset": "0"}
        await client.request("PATCH", created["location"], headers=fields, body=b"x" * 300_000)
        heard = await listener.next(progress=True)
        assert heard == ("upload.progress", {"id": record["id"], "offset": 300_000, "length": 700_000}, None)

        async def slowly() -> AsyncIterator[bytes]:
            yield b"x" * 100_000
            assert (await listener.next(progress=True)).data["offset"] == 400_000
            yield b"x" * 300_000

        await client.request("PATCH", created["location"], headers={**CHUNK, "Upload-Offset": "300000"}, body=slowly())
        assert (await listener.next()).what == (record["id"], "completed")


async def test_a_listener_that_reads_slowly_misses_nothing(service: Service, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(streams, "_PENDING_BYTES", 2000)
    client = service.client()
    session_id = (await client.post("/api/session")).json()["id"]
    token = service.state["sessions"].tokens.read_all([next(iter(client.cookies.values()))])[0]
    listener = Listener()
    async with service.state["events"].listen(session_id, token.hash, None) as blocks:
        listener.read(await anext(blocks))
        sent = []
        for number in range(24):
            sent.append(await stored(client))
            if number % 8 == 7:
                async with asyncio.timeout(20):
                    listener.read(await anext(blocks))
        async with asyncio.timeout(20):
            while listener.events.qsize() < 48:
                listener.read(await anext(blocks))
    assert await listener.several(48) == [(each, kind) for each in sent for kind in ("created", "completed")]


async def test_questions_about_the_stream_are_answered(service: Service) -> None:
    client = service.client()
    (await client.get(EVENTS)).refused(401, "no_session")
    await client.post("/api/session")
    head = await client.request("HEAD", EVENTS)
    assert (head.status, head["content-type"], head["x-accel-buffering"]) == (200, "text/event-stream", "no")
    (await client.get(f"{EVENTS}?since=x")).refused(400, "bad_query")
    (await client.get(f"{EVENTS}?after=x&after=y")).refused(400, "bad_query")


async def test_streams_end_at_once_when_the_service_stops() -> None:
    with quick_directory() as directory:
        async with serving(settings_in(directory, base_path="/up")) as service:
            client = service.client()
            await client.post("/up/api/session")
            listener = Listener()
            stream = asyncio.create_task(client.request("GET", f"/up{EVENTS}", listen=listener.read))
            await listener.opened.wait()
            await client.request("PUT", f"/up{UPLOADS}/a", body=b"x")
            links = (await listener.next()).data["links"]
            assert links["self"].startswith(f"/up{HISTORY}/")
            service.state["stopping"].set()
            async with asyncio.timeout(20):
                assert (await stream).complete
            (await client.get(f"/up{EVENTS}")).refused(503, "unavailable")
