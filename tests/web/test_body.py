"""Bodies that are cut, too long, too slow, or not wanted now; and that each leaves a trace in history and no byte."""

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from app.web import body as module
from tests.support.asgi import Answer, Client, HangUp, Service, serving, settings_in
from tests.support.strategies import form

pytestmark = pytest.mark.asyncio(loop_scope="module")

UPLOADS = "/api/ingestion/uploads"
CONTENT = b"0123456789"
CHUNKED = {"Transfer-Encoding": "chunked"}


async def visitor(service: Service) -> Client:
    """A client that has its session already: one that hangs up never sees a cookie."""
    client = service.client()
    assert (await client.post("/api/session")).status == 200
    return client


async def failures(client: Client) -> list[tuple[str, int, str]]:
    """Name, size and code of every failed upload, oldest first."""
    items = (await client.get("/api/ingestion/history?order=oldest&limit=500")).json()["items"]
    assert {item["status"] for item in items} <= {"failed"}
    return [(item["filename"], item["size"], item["error"]["code"]) for item in items]


@pytest.mark.parametrize("sent", [CONTENT[:9], CONTENT + b"!", b""], ids=["short", "long", "empty"])
async def test_a_body_has_the_length_it_declares(service: Service, sent: bytes) -> None:
    client = service.client()
    before = service.files()
    problem = (await client.put("f", sent, headers={"Content-Length": "10"})).refused(400, "incomplete_body")
    assert (problem["received"], problem["declared"]) == (len(sent), 10)
    assert await failures(client) == [("f", len(sent), "incomplete_body")]
    assert service.files() == before
    assert service.staged() == []


async def test_a_raw_body_may_be_cut_off_anywhere(service: Service) -> None:
    client = await visitor(service)
    before = service.files()
    chunks = [CONTENT[at : at + 1] for at in range(10)]
    for declared in ({"Content-Length": "10"}, CHUNKED):
        for place in range(11):
            answer = await client.put(f"{place}", chunks, headers=declared, hang_up_after=place)
            assert not answer.heard
            # Also when all bytes had come: without the end that would follow them it may be a part of more.
            assert answer.status == 400
    assert await failures(client) == [(f"{place}", place, "incomplete_body") for place in range(11)] * 2
    assert service.files() == before
    assert service.staged() == []


async def test_a_form_may_be_cut_off_anywhere(service: Service) -> None:
    client = await visitor(service)
    before = service.files()
    body, content_type = form([("a.txt", None, b"hello"), (None, None, b"field"), ("b.txt", None, b"x" * 50)])
    for place in range(0, len(body), 5):
        answer = await client.post(
            UPLOADS, [body[:place], body[place:]], headers={"Content-Type": content_type}, hang_up_after=1
        )
        assert (answer.heard, answer.status) == (False, 400)
    codes = {code for _, _, code in await failures(client)}
    assert codes == {"incomplete_body"}
    assert service.files() == before
    assert service.staged() == []


async def test_a_client_that_leaves_before_its_form_names_a_file_leaves_no_trace(service: Service) -> None:
    client = await visitor(service)
    _, content_type = form([])
    await client.post(UPLOADS, [b"--", b"x"], headers={"Content-Type": content_type}, hang_up_after=1)
    assert await failures(client) == []


async def test_a_client_may_leave_once_its_upload_is_handed_over(service: Service) -> None:
    client = await visitor(service)

    async def body() -> AsyncIterator[bytes]:
        yield CONTENT

    publish = service.state["storage"].publish

    async def publish_and_be_cancelled(batch: Any) -> Any:
        request.cancel()
        return await publish(batch)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(service.state["storage"], "publish", publish_and_be_cancelled)
        request = asyncio.create_task(client.put("late", body()))
        with pytest.raises(asyncio.CancelledError):
            await request
        await settled(client, "late")


async def settled(client: Client, filename: str) -> None:
    """Return once the upload is completed, whenever its batch is through."""
    while True:
        items = (await client.get(f"/api/ingestion/history?filename={filename}")).json()["items"]
        if items:
            assert [item["status"] for item in items] == ["completed"]
            return
        await asyncio.sleep(0)


async def test_an_upload_that_is_cancelled_is_not_stored_and_is_in_the_history(service: Service) -> None:
    client = await visitor(service)
    before = service.files()
    waits = asyncio.Event()

    async def body() -> AsyncIterator[bytes]:
        yield b"abc"
        waits.set()
        await asyncio.Event().wait()

    request = asyncio.create_task(client.put("f", body()))
    await waits.wait()
    request.cancel()
    with pytest.raises(asyncio.CancelledError):
        await request
    assert await failures(client) == [("f", 3, "unavailable")]
    assert service.files() == before
    assert service.staged() == []


# --- pace

PACE: Any = module._Pace


def end_window(pace: Any) -> None:
    """What the timer does when its time has come."""
    pace.stop()
    pace._look_back()


@contextmanager
def paces(patch: pytest.MonkeyPatch) -> Iterator[list[Any]]:
    """The pace of every body that begins meanwhile."""
    found: list[Any] = []

    class Kept(PACE):
        def __init__(self, min_rate: int, timeout: float) -> None:
            super().__init__(min_rate, timeout)
            found.append(self)

    patch.setattr(module, "_Pace", Kept)
    yield found
    for pace in found:
        assert pace._timer is None or pace._timer.cancelled(), "a timer outlived its request"


@pytest.fixture
def no_linger(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("app.web.exchange._LINGER_SECONDS", 0.0)


@pytest.mark.usefixtures("no_linger")
@pytest.mark.parametrize("kind", ["raw", "form"])
async def test_a_body_that_hardly_moves_is_too_slow(
    service: Service, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    monkeypatch.setattr(module, "PACE_SECONDS", 0.02)
    client = service.client()
    whole, content_type = form([("f", None, CONTENT)])

    async def body() -> AsyncIterator[bytes]:
        yield CONTENT if kind == "raw" else whole[:-40]
        await asyncio.Event().wait()

    with paces(monkeypatch):
        if kind == "raw":
            answer = await client.put("f", body())
        else:
            answer = await client.post(UPLOADS, body(), headers={"Content-Type": content_type})
    problem = answer.refused(408, "too_slow")
    assert problem["limit"] == service.state["settings"].min_upload_rate
    assert answer["connection"] == "close"
    [(name, _, code)] = await failures(client)
    assert (name, code) == ("f", "too_slow")
    assert service.staged() == []


async def test_a_stop_at_the_same_moment_is_still_a_stop(service: Service, monkeypatch: pytest.MonkeyPatch) -> None:
    async def body() -> AsyncIterator[bytes]:
        yield b"x"
        request.cancel()
        end_window(found[0])
        await asyncio.Event().wait()

    with paces(monkeypatch) as found:
        request = asyncio.create_task(service.client().put("f", body()))
        with pytest.raises(asyncio.CancelledError):
            await request


@pytest.mark.usefixtures("no_linger")
async def test_each_window_of_the_pace_counts_by_itself(service: Service, monkeypatch: pytest.MonkeyPatch) -> None:
    enough = b"x" * (1024 * 30)

    async def body(windows: list[bytes], found: list[Any]) -> AsyncIterator[bytes]:
        for sent in windows:
            yield sent
            end_window(found[0])  # the client is waited for, and the window is over

    for windows, status in (
        ([enough, enough], 201),
        ([enough * 5, enough[1:]], 408),  # what came early buys nothing later
        ([enough[1:]], 408),
    ):
        with paces(monkeypatch) as found:
            assert (await service.client().put("f", body(windows, found))).status == status


async def test_our_own_slowness_is_not_the_clients(service: Service, monkeypatch: pytest.MonkeyPatch) -> None:
    with paces(monkeypatch) as found:
        publish = service.state["storage"].publish

        async def slow_publish(batch: Any) -> Any:
            end_window(found[0])  # a window in which nothing came, because nothing was asked for
            return await publish(batch)

        monkeypatch.setattr(service.state["storage"], "publish", slow_publish)
        assert (await service.client().put("f", b"x")).status == 201


async def test_a_pace_of_nothing_accepts_any(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def body() -> AsyncIterator[bytes]:
        yield b"x"
        end_window(found[0])
        end_window(found[0])

    async with serving(settings_in(tmp_path, min_upload_rate=0)) as service:
        with paces(monkeypatch) as found:
            assert (await service.client().put("f", body())).status == 201


@pytest.mark.usefixtures("no_linger")
async def test_a_body_has_only_so_long_however_fast_it_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    enough = b"x" * (1024 * 30)

    async def body(windows: int) -> AsyncIterator[bytes]:
        for _ in range(windows):
            yield enough
            end_window(found[-1])

    async with serving(settings_in(tmp_path, request_timeout="75s")) as service:  # two windows of 30 s and a half
        client = service.client()
        with paces(monkeypatch) as found:
            assert (await client.put("in time", body(2))).status == 201
            problem = (await client.put("late", body(3))).refused(408, "too_slow")
        assert problem["limit"] == 75
        [late, _] = (await client.get("/api/ingestion/history")).json()["items"]
        assert (late["filename"], late["error"]["code"]) == ("late", "too_slow")
        assert service.staged() == []


async def test_a_client_that_is_late_while_the_service_is_busy_is_measured_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def body() -> AsyncIterator[bytes]:
        yield b"x" * 1024 * 30
        pace = found[-1]
        waiting, pace._waiting = pace._waiting, None  # it is we who are at work when the time is over
        end_window(pace)
        pace._waiting = waiting
        yield b"x" * 1024 * 30
        end_window(pace)

    async with serving(settings_in(tmp_path, request_timeout="30s")) as service:
        with paces(monkeypatch) as found:
            (await service.client().put("late", body())).refused(408, "too_slow")


# --- not now


async def test_uploads_over_the_limit_at_once_are_told_to_retry(tmp_path: Path) -> None:
    async with serving(settings_in(tmp_path, max_concurrent_uploads=1)) as service:
        waits, goes_on = asyncio.Event(), asyncio.Event()

        async def body() -> AsyncIterator[bytes]:
            yield b"ab"
            waits.set()
            await goes_on.wait()
            yield b"c"

        first = asyncio.create_task(service.client().put("first", body()))
        await waits.wait()
        for target in (f"{UPLOADS}", f"{UPLOADS}/second"):
            answer = await service.client().request(
                "PUT" if target != UPLOADS else "POST", target, body=b"x", headers={"Expect": "100-continue"}
            )
            answer.refused(503, "unavailable")
            assert answer.asked == 0
            assert int(answer["retry-after"]) > 0
        goes_on.set()
        assert (await first).json()["size"] == 3
        assert (await service.client().put("third", b"x")).status == 201


async def test_a_service_that_stops_takes_nothing_new_and_finishes_what_it_has(tmp_path: Path) -> None:
    async with serving(settings_in(tmp_path)) as service:
        waits, goes_on = asyncio.Event(), asyncio.Event()

        async def body() -> AsyncIterator[bytes]:
            waits.set()
            await goes_on.wait()
            yield b"abc"

        client = service.client()
        first = asyncio.create_task(client.put("first", body()))
        await waits.wait()
        stopping = asyncio.create_task(service.state["ingest"].close(60))
        await asyncio.sleep(0)  # it begins to stop
        (await service.client().put("second", b"x")).refused(503, "unavailable")
        goes_on.set()
        assert (await first).status == 201
        await stopping


async def test_many_first_uploads_at_once_leave_no_task_behind(service: Service) -> None:
    async def leave() -> AsyncIterator[bytes]:
        yield b"x"
        raise HangUp

    def sent(number: int) -> Any:
        return service.client().put(f"{number}", leave() if number % 3 == 0 else b"x" * number)

    before = asyncio.all_tasks()
    answers: list[Answer] = await asyncio.gather(*(sent(number) for number in range(30)))
    assert [answer.status for answer in answers] == [400 if number % 3 == 0 else 201 for number in range(30)]
    assert {task for task in asyncio.all_tasks() - before if not task.done()} == set()
    ids = [answer.json()["id"] for answer in answers if answer.heard]
    assert all(first != second for first, second in pairwise(sorted(ids)))
