"""Idempotency-Key: an upload that is sent again lands once, and is answered as the first time."""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from tests.support.asgi import Answer, Client, HangUp, Service, serving, settings_in
from tests.support.strategies import form
from tests.web.test_metrics import changed, figures
from tests.web.test_uploads import HISTORY, UPLOADS, digest_field, listed

pytestmark = pytest.mark.asyncio(loop_scope="module")

KEY = {"Idempotency-Key": '"8e03978e-40d5-43dd-bc93-6894a57f9324"'}
TEXT = {**KEY, "Content-Type": "text/plain"}


async def visitor(service: Service) -> Client:
    """A client that has its session, as one that sends keys should."""
    client = service.client()
    assert (await client.post("/api/session")).status == 200
    return client


async def send_form(client: Client, content: bytes = b"hello", *, boundary: str = "one", **how: Any) -> Answer:
    files = [("a.txt", "text/plain", content), (None, None, b"a field"), ("b.txt", None, b"more")]
    body, kind = form(files, boundary=boundary)
    return await client.post(UPLOADS, body, headers={**KEY, "Content-Type": kind}, **how)


def is_the_same(first: Answer, again: Answer) -> None:
    """The same answer, without a look at the body that came with the question."""
    assert first.status == again.status == 201
    assert first.body == again.body
    for name in ("location", "repr-digest", "content-type"):
        assert first.get(name) == again.get(name)
    assert first.get("idempotent-replayed") is None
    assert again["idempotent-replayed"] == "true"
    assert again.asked == 0


async def test_a_put_that_is_sent_again_is_answered_as_the_first_time_and_stores_nothing(service: Service) -> None:
    client, before = await visitor(service), len(service.files())
    first = await client.put("a.txt", b"hello", headers=TEXT)
    is_the_same(first, await client.put("a.txt", b"hello", headers=TEXT))
    is_the_same(first, await client.put("a.txt", [b"he", b"llo"], headers=TEXT))
    assert [record["id"] for record in await listed(client)] == [first.json()["id"]]
    assert len(service.files()) == before + 1


async def test_a_post_whose_body_is_the_file_is_answered_as_the_first_time(service: Service) -> None:
    client = await visitor(service)
    headers = {**TEXT, "Content-Disposition": 'attachment; filename="a.txt"'}
    first = await client.post(UPLOADS, b"hello", headers=headers)
    is_the_same(first, await client.post(UPLOADS, b"hello", headers=headers))
    assert len(await listed(client)) == 1


@pytest.mark.parametrize("boundary", ["one", "two", "another-one", "x"])
async def test_a_form_is_answered_as_the_first_time_whatever_its_boundary(service: Service, boundary: str) -> None:
    client = await visitor(service)
    first = await send_form(client)
    is_the_same(first, await send_form(client, boundary=boundary))
    assert len(await listed(client)) == 2


async def test_a_resumable_put_without_interim_responses_is_answered_as_the_first_time(service: Service) -> None:
    client = await visitor(service)
    headers = {**TEXT, "Upload-Complete": "?1"}
    first = await client.put("a.txt", b"hello", headers=headers)
    is_the_same(first, await client.put("a.txt", b"hello", headers=headers))
    assert first["upload-complete"] == "?1"
    assert len(await listed(client)) == 1


async def test_a_client_that_waits_for_100_continue_is_answered_without_sending(service: Service) -> None:
    client = await visitor(service)
    first = await client.put("a.txt", b"hello", headers=TEXT)

    async def nothing() -> dict[str, Any]:
        raise AssertionError("the body was asked for")

    headers = {**TEXT, "Expect": "100-continue", "Content-Length": "5"}
    again = await client.put("a.txt", headers=headers, receive=nothing)
    is_the_same(first, again)


async def test_a_key_may_stand_without_its_quotes(service: Service) -> None:
    client = await visitor(service)
    first = await client.put("a.txt", b"hello", headers=TEXT)
    is_the_same(
        first, await client.put("a.txt", b"hello", headers={**TEXT, "Idempotency-Key": KEY["Idempotency-Key"][1:-1]})
    )


@pytest.mark.parametrize(
    "key",
    [
        "",
        '""',
        '"a',
        'a"',
        "a b",
        "a,b",
        "a;b",
        "a\\b",
        "é",
        '"é"',
        "x" * 256,
        '"' + "x" * 256 + '"',
        '"a", "b"',
        ":YQ==:, a",
        "(a)(b) c",
    ],
)
async def test_a_malformed_key_is_refused(service: Service, key: str) -> None:
    client = service.client()
    answer = await client.put("a.txt", b"hello", headers={"Idempotency-Key": key.encode()})
    answer.refused(400, "bad_request")
    assert answer.asked == 0
    assert client.cookies == {}


async def test_two_keys_are_refused(service: Service) -> None:
    headers = [("Idempotency-Key", "a"), ("Idempotency-Key", "a")]
    (await service.client().put("a.txt", b"hello", headers=headers)).refused(400, "bad_request")


@pytest.mark.parametrize(
    ("name", "body", "headers"),
    [
        ("a.txt", b"hello, world", {}),
        ("b.txt", b"hello", {}),
        ("a.txt", b"hello", {"Content-Type": "text/html"}),
        ("a.txt", b"hello", {"Repr-Digest": digest_field(b"HELLO")}),
    ],
    ids=["length", "name", "type", "digest"],
)
async def test_a_key_stands_for_one_request(service: Service, name: str, body: bytes, headers: dict[str, str]) -> None:
    client = await visitor(service)
    await client.put("a.txt", b"hello", headers=TEXT)
    other = await client.put(name, body, headers={**TEXT, **headers})
    other.refused(422, "idempotency_mismatch")
    assert other.asked == 0
    assert len(await listed(client)) == 1


async def test_the_size_of_a_body_without_a_length_is_compared_too(service: Service) -> None:
    async def body() -> AsyncIterator[bytes]:
        yield b"hello"

    client = await visitor(service)
    first = await client.put("a.txt", body(), headers=TEXT)
    is_the_same(first, await client.put("a.txt", b"hello", headers=TEXT))
    is_the_same(first, await client.put("a.txt", body(), headers=TEXT))
    (await client.put("a.txt", b"hello!", headers=TEXT)).refused(422, "idempotency_mismatch")


@pytest.mark.parametrize("boundary", ["one", "seventeen"])
async def test_another_form_is_refused_whatever_its_boundary(service: Service, boundary: str) -> None:
    client = await visitor(service)
    await send_form(client)
    (await send_form(client, b"hello!", boundary=boundary)).refused(422, "idempotency_mismatch")
    (await client.put("a.txt", b"hello", headers=TEXT)).refused(422, "idempotency_mismatch")
    assert len(await listed(client)) == 2


async def test_requests_beside_the_first_are_told_to_retry(service: Service) -> None:
    client, begun, go_on = await visitor(service), asyncio.Event(), asyncio.Event()

    async def slow() -> AsyncIterator[bytes]:
        yield b"he"
        begun.set()
        await go_on.wait()
        yield b"llo"

    headers = {**TEXT, "Content-Length": "5"}
    first = asyncio.create_task(client.put("a.txt", slow(), headers=headers))
    await begun.wait()
    for _ in range(2):
        other = await client.put("a.txt", b"hello", headers=TEXT)
        other.refused(409, "in_progress")
        assert 0 < int(other["retry-after"]) <= 5
        assert other.asked == 0
    (await client.put("b.txt", b"hello", headers=TEXT)).refused(422, "idempotency_mismatch")
    go_on.set()
    is_the_same(await first, await client.put("a.txt", b"hello", headers=TEXT))
    assert len(await listed(client)) == 1


async def test_simultaneous_retries_land_once(service: Service) -> None:
    client = await visitor(service)
    answers = await asyncio.gather(*(client.put("a.txt", b"hello", headers=TEXT) for _ in range(20)))
    [first] = [answer for answer in answers if answer.status == 201 and not answer.get("idempotent-replayed")]
    for answer in answers:
        if answer.status == 201:
            assert answer.body == first.body
        else:
            answer.refused(409, "in_progress")
    assert len(await listed(client)) == 1


async def test_only_a_success_is_remembered(service: Service) -> None:
    client = await visitor(service)

    async def hung_up() -> AsyncIterator[bytes]:
        yield b"he"
        raise HangUp

    wrong = {**TEXT, "Repr-Digest": digest_field(b"HELLO")}
    (await client.put("a.txt", b"hello", headers=wrong)).refused(400, "digest_mismatch")
    (await client.put("a.txt", b"hello, again", headers={**TEXT, "Content-Length": "11"})).refused(
        400, "incomplete_body"
    )
    await client.put("a.txt", hung_up(), headers=TEXT)
    await send_form(client, hang_up_after=0)
    body, kind = form([])
    (await client.post(UPLOADS, body, headers={**KEY, "Content-Type": kind})).refused(400, "no_file")
    first = await client.put("b.txt", b"another", headers=TEXT)
    is_the_same(first, await client.put("b.txt", b"another", headers=TEXT))
    assert [record["filename"] for record in await listed(client) if record["status"] == "completed"] == ["b.txt"]


async def test_a_request_that_its_headers_forbid_claims_no_key(service: Service) -> None:
    client = await visitor(service)
    too_large = {**TEXT, "Content-Length": str(2**50)}
    (await client.put("a.txt", headers=too_large)).refused(413, "request_too_large")
    assert (await client.put("a.txt", b"hello", headers=TEXT)).status == 201


async def test_the_keys_of_two_sessions_have_nothing_to_do_with_each_other(service: Service) -> None:
    one, other = await visitor(service), await visitor(service)
    assert (await one.put("a.txt", b"hello", headers=TEXT)).status == 201
    answer = await other.put("b.txt", b"hello, world", headers=TEXT)
    assert answer.status == 201
    assert answer.get("idempotent-replayed") is None
    assert len(await listed(one)) == len(await listed(other)) == 1


async def test_a_request_that_brings_no_session_begins_one_that_has_the_key(service: Service) -> None:
    client, stranger = service.client(), service.client()
    first = await client.put("a.txt", b"hello", headers=TEXT)
    assert client.cookies.keys() == {"waybill_session"}
    is_the_same(first, await client.put("a.txt", b"hello", headers=TEXT))
    # Who has lost the answer has lost its cookie with it: nothing tells this request from anybody else's.
    assert (await stranger.put("a.txt", b"hello", headers=TEXT)).json()["id"] != first.json()["id"]


async def test_a_session_that_joins_another_brings_its_keys(service: Service) -> None:
    client, other = await visitor(service), await visitor(service)
    first = await other.put("a.txt", b"hello", headers=TEXT)
    own = await client.put("b.txt", b"hello", headers={**TEXT, "Idempotency-Key": "another"})
    code = (await client.post("/api/session/link")).json()["code"]
    joined = await other.post("/api/session/join", f'{{"code": "{code}"}}'.encode())
    assert joined.status == 200
    is_the_same(first, await other.put("a.txt", b"hello", headers=TEXT))
    is_the_same(own, await other.put("b.txt", b"hello", headers={**TEXT, "Idempotency-Key": "another"}))
    assert len(await listed(client)) == 2


async def test_a_key_of_an_upload_in_flight_moves_with_its_session(service: Service) -> None:
    client, other, begun, go_on = await visitor(service), await visitor(service), asyncio.Event(), asyncio.Event()

    async def slow() -> AsyncIterator[bytes]:
        yield b"hello"
        begun.set()
        await go_on.wait()

    first = asyncio.create_task(other.put("a.txt", slow(), headers=TEXT))
    await begun.wait()
    code = (await client.post("/api/session/link")).json()["code"]
    assert (await other.post("/api/session/join", f'{{"code": "{code}"}}'.encode())).status == 200
    (await other.put("a.txt", b"hello", headers=TEXT)).refused(409, "in_progress")
    go_on.set()
    is_the_same(await first, await other.put("a.txt", b"hello", headers=TEXT))
    assert len(await listed(client)) == 1


async def test_the_first_answer_stays_when_the_file_is_gone(service: Service) -> None:
    client = await visitor(service)
    first = await client.put("a.txt", b"hello", headers=TEXT)
    assert (await client.delete(first.json()["links"]["content"])).status == 204
    is_the_same(first, await client.put("a.txt", b"hello", headers=TEXT))
    assert (await client.get(f"{HISTORY}/{first.json()['id']}")).json()["status"] == "deleted"


async def test_a_session_is_charged_once(tmp_path: Path, database_url: str) -> None:
    limits = {"session_quota": 8, "session_quota_uploads": 1}
    async with serving(settings_in(tmp_path, database_url, **limits)) as service:
        client = await visitor(service)
        first = await client.put("a.txt", b"hello", headers=TEXT)
        is_the_same(first, await client.put("a.txt", b"hello", headers=TEXT))
        (await client.put("a.txt", b"hello")).refused(413, "quota_exceeded")
        summary = (await client.get(f"{HISTORY}/summary")).json()
        assert (summary["quota"]["used"], summary["quota"]["uploads"]["used"]) == (5, 1)


async def test_outcomes_of_requests_with_a_key_are_counted(service: Service) -> None:
    client, before, name = await visitor(service), await figures(service), "waybill_keyed_requests_total"
    for filename in ("a.txt", "a.txt", "a.txt", "b.txt"):
        await client.put(filename, b"hello", headers=TEXT)
    assert await changed(service, before, name) == {
        f'{name}{{outcome="first"}}': 1,
        f'{name}{{outcome="replayed"}}': 2,
        f'{name}{{outcome="mismatch"}}': 1,
    }
