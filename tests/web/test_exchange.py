"""What every answer has: an id, a log line, a clean end. What breaks is a 500 that says nothing."""

import asyncio
import gc
from collections.abc import AsyncIterator
from typing import Any

import pytest
from starlette.exceptions import HTTPException
from structlog.testing import capture_logs

from app.errors import UploadError
from tests.support.asgi import Client, Service

pytestmark = pytest.mark.asyncio(loop_scope="module")

UPLOADS = "/api/ingestion/uploads"
HISTORY = "/api/ingestion/history"
INNER = "/srv/secret.db: SELECT * FROM uploads"

EVERY_KIND = [
    ("GET", "/health/live", 200),
    ("HEAD", "/health/live", 200),
    ("GET", "/nowhere", 404),
    ("POST", "/health/live", 405),
    ("GET", HISTORY, 401),
    ("OPTIONS", UPLOADS, 204),
    ("PUT", f"{UPLOADS}/a", 201),
    ("PUT", f"{UPLOADS}/%00", 400),
]


@pytest.mark.parametrize(("method", "target", "status"), EVERY_KIND)
@pytest.mark.parametrize(
    ("given", "kept"),
    [
        ("r-1.2_X", True),
        ("x" * 64, True),
        (None, False),
        ("", False),
        ("x" * 65, False),
        ("a b", False),
        ("a,b", False),
        ("a\xe4", False),
    ],
)
async def test_every_answer_has_a_request_id(
    service: Service, method: str, target: str, status: int, given: str | None, kept: bool
) -> None:
    headers = {} if given is None else {"X-Request-Id": given}
    answer = await service.client().request(method, target, headers=headers)
    assert answer.status == status
    assert (answer["x-request-id"] == given) is kept
    assert 1 <= len(answer["x-request-id"]) <= 64
    if method == "HEAD" or status < 300:
        assert b"request_id" not in answer.body
    else:
        assert answer.json()["request_id"] == answer["x-request-id"]


REFUSED = [
    ("GET", "/nowhere", {}, 404),
    ("GET", HISTORY, {}, 401),
    ("PUT", f"{UPLOADS}/%00", {}, 400),
    ("PUT", f"{UPLOADS}/a", {"Content-Length": "9"}, 400),
    ("POST", UPLOADS, {"Content-Type": "multipart/form-data; boundary=B"}, 400),
    ("DELETE", f"{UPLOADS}/aaaaaaaaaaaaaaaaaaaaaa", {"Tus-Resumable": "1.0.0"}, 404),
    (
        "PATCH",
        f"{UPLOADS}/aaaaaaaaaaaaaaaaaaaaaa",
        {"Tus-Resumable": "1.0.0", "Upload-Offset": "0", "Content-Type": "application/offset+octet-stream"},
        404,
    ),
]


@pytest.mark.parametrize(("method", "target", "headers", "status"), REFUSED)
async def test_a_refusal_leaves_no_exception_to_the_garbage_collector(
    service: Service, method: str, target: str, headers: dict[str, str], status: int
) -> None:
    """Its traceback holds every frame, and so the last block of the body: none may wait for the collector of cycles."""
    client = service.client()
    gc.disable()
    gc.freeze()  # what was there before is no longer listed
    try:
        assert (await client.request(method, target, body=b"hello", headers=headers)).status == status
        await asyncio.sleep(0)
        assert [one for one in gc.get_objects() if isinstance(one, UploadError | HTTPException)] == []
    finally:
        gc.unfreeze()
        gc.enable()


def fails(*arguments: Any, **others: Any) -> Any:
    raise RuntimeError(INNER)


async def test_a_fault_is_a_500_without_inner_detail(service: Service, monkeypatch: pytest.MonkeyPatch) -> None:
    client = service.client()
    await client.post("/api/session")
    monkeypatch.setattr("app.uploads.records.list_uploads", fails)
    with capture_logs() as lines:
        answer = await client.get(HISTORY, headers={"X-Request-Id": "mine"})
    problem = answer.refused(500, "internal")
    assert problem.keys() == {"type", "title", "status", "detail", "code", "request_id"}
    assert INNER.encode() not in answer.body
    assert b"RuntimeError" not in answer.body
    failed, answered = (line for line in lines if "request_id" in line)
    assert (failed["event"], failed["request_id"], failed["log_level"]) == ("a request failed", "mine", "error")
    assert failed["exc_info"]
    assert (answered["request_id"], answered["status"], answered["code"]) == ("mine", 500, "internal")


@pytest.mark.parametrize("place", ["begin", "write", "publish"])
async def test_a_first_upload_that_breaks_is_in_the_history_of_the_session_it_began(
    service: Service, monkeypatch: pytest.MonkeyPatch, place: str
) -> None:
    client = service.client()
    before = service.files()
    if place == "write":
        monkeypatch.setattr("app.uploads.ingest.Ingestion.write", fails)
    else:
        monkeypatch.setattr(service.state["storage"], "stage" if place == "begin" else "publish", fails)
    answer = await client.put("f", [b"ab", b"c"])
    monkeypatch.undo()
    answer.refused(500, "internal")
    assert INNER.encode() not in answer.body
    assert service.files() == before
    if place == "begin":
        assert client.cookies == {}
    else:
        [item] = (await client.get(HISTORY)).json()["items"]
        assert (item["filename"], item["status"], item["error"]["code"]) == ("f", "failed", "internal")


async def test_an_answer_that_breaks_after_it_began_is_cut_off(
    service: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    client = service.client()
    record = (await client.put("big", b"x" * 600_000)).json()
    storage = service.state["storage"]
    stored_open = storage.open

    async def open_and_break(key: str) -> Any:
        stored = await stored_open(key)
        read = stored.read

        async def read_once(offset: int, length: int) -> bytes:
            if offset:
                raise RuntimeError(INNER)
            return await read(offset, length)

        monkeypatch.setattr(stored, "read", read_once, raising=False)
        return stored

    monkeypatch.setattr(storage, "open", open_and_break)
    answer = await client.get(record["links"]["content"])
    assert answer.status == 200
    assert isinstance(answer.broken, RuntimeError)
    assert not answer.complete
    assert len(answer.body) < 600_000
    assert INNER.encode() not in answer.body


# --- the end of the connection


async def refuse(client: Client, body: Any, **headers: str) -> Any:
    answer = await client.put("%00", body, headers=headers)
    answer.refused(400, "bad_filename")
    assert answer.asked == 0
    assert answer["connection"] == "close"
    return answer


async def test_the_body_is_read_for_a_moment_after_an_early_answer(service: Service) -> None:
    taken = []

    async def body() -> AsyncIterator[bytes]:
        for number in range(5):
            taken.append(number)
            yield b"x" * 1000

    answer = await refuse(service.client(), body())
    assert taken == [0, 1, 2, 3, 4]
    assert answer.blocks[0].startswith(b"{")  # all of the answer went out first
    assert answer.blocks[1:] == [b""]  # and its end only afterwards: a close would reset a connection in use


async def test_the_body_is_not_read_for_long_after_an_early_answer(
    service: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("app.web.exchange._LINGER_BYTES", 3000)
    monkeypatch.setattr("app.web.exchange._LINGER_SECONDS", 0.1)
    taken, enough = 0, asyncio.Event()

    async def endless() -> AsyncIterator[bytes]:
        nonlocal taken
        while True:
            taken += 1
            if taken == 3:
                enough.set()
            yield b"x" * 1000

    refusing = asyncio.create_task(refuse(service.client(), endless()))
    await enough.wait()
    for _ in range(100):
        await asyncio.sleep(0)
    assert not refusing.done()  # a close would reset the connection of a client that has yet to read its answer
    await refusing
    assert taken == 3

    async def silent() -> AsyncIterator[bytes]:
        yield b"x"
        await asyncio.Event().wait()

    monkeypatch.setattr("app.web.exchange._LINGER_SECONDS", 0.01)
    await refuse(service.client(), silent())


async def test_a_client_that_waits_for_100_continue_is_not_asked_for_what_was_refused(service: Service) -> None:
    async def never() -> AsyncIterator[bytes]:
        raise AssertionError("the body was asked for")
        yield b""

    await refuse(service.client(), never(), Expect="100-continue")


async def test_a_client_that_was_sent_100_continue_is_heard_out_too(service: Service) -> None:
    taken = []

    async def body() -> AsyncIterator[bytes]:
        for number in range(5):
            taken.append(number)
            yield b"no form" * 30

    headers = {"Content-Type": f"multipart/form-data; boundary={'x' * 20}", "Expect": "100-continue"}
    answer = await service.client().post(UPLOADS, body(), headers=headers)
    answer.refused(400, "malformed_form")
    assert 0 < answer.asked < 5
    assert taken == [0, 1, 2, 3, 4]


@pytest.mark.parametrize(
    ("method", "target"),
    [("PUT", f"{UPLOADS}/a"), ("POST", UPLOADS), ("POST", "/api/session"), ("GET", HISTORY), ("GET", "/nowhere")],
)
async def test_a_connection_is_kept_when_the_body_was_read_to_its_end(
    service: Service, method: str, target: str
) -> None:
    for body in (b"", b"abc") if method in {"PUT"} or target == UPLOADS else (b"",):
        answer = await service.client().request(method, target, body=body)
        assert answer.all("connection") == []


async def test_a_client_that_hangs_up_while_it_is_heard_out_is_released(service: Service) -> None:
    answer = await service.client().put("%00", [b"x", b"y"], hang_up_after=1)
    assert (answer.status, answer.heard) == (400, False)


# --- the log


async def test_each_request_is_logged_in_one_line_without_its_cookies(service: Service) -> None:
    client = service.client()
    with capture_logs() as lines:
        created = (await client.put("a%0A%1B[31m%E2%80%AEb", b"abc")).status
        record = (await client.put("a%E2%80%AEb", b"abc")).json()
        await client.get(record["links"]["content"])
        await client.get(f"{HISTORY}?filename=secret")
    assert created == 400
    lines = [line for line in lines if "request_id" in line]  # and not of what goes on beside them
    assert [line["event"] for line in lines] == ["answered"] * 4
    refused, uploaded, downloaded, listed = lines
    assert refused["path"] == f"{UPLOADS}/a%0A%1B[31m%E2%80%AEb"  # as it was sent: nothing in it can move a terminal
    assert (refused["status"], refused["code"]) == (400, "bad_filename")
    assert (uploaded["status"], uploaded["received"], uploaded["uploads"]) == (201, 3, [record["id"]])
    assert (downloaded["method"], downloaded["status"]) == ("GET", 200)
    assert listed["path"] == HISTORY
    token = client.cookies["waybill_session"]
    assert all(token not in str(line) and "secret" not in str(line) for line in lines)
