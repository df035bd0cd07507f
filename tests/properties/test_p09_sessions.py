"""Property 9. A session sees its own uploads and no others; a cookie altered in any byte is no session."""

import re
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from app.model import Status
from tests.support.asgi import Client, Service, serving, settings_in

HISTORY = "/api/ingestion/history"
FILES = "/api/ingestion/files"
COOKIE = "waybill_session"


@pytest.fixture
async def service(tmp_path: Path, database_url: str) -> AsyncIterator[Service]:
    async with serving(settings_in(tmp_path, database_url)) as running:
        yield running


async def history(client: Client) -> list[dict[str, Any]]:
    answer = await client.get(f"{HISTORY}?limit=500&order=oldest")
    if answer.status == 401:
        return []
    return answer.json()["items"]  # type: ignore[no-any-return]


browsers = st.integers(0, 2)
steps = st.lists(
    st.tuples(st.just("upload"), browsers)
    | st.tuples(st.just("delete"), browsers, st.integers(0, 9))
    | st.tuples(st.sampled_from(["rotate", "end", "ensure"]), browsers)
    | st.tuples(st.just("join"), browsers, browsers),
    min_size=3,
    max_size=14,
)


class Shelves:
    """What each session must hold, kept without a database: which shelf a browser uses, and what stands on it."""

    def __init__(self) -> None:
        self.of_browser: dict[int, dict[str, str]] = {}

    def shelf(self, browser: int) -> dict[str, str]:
        return self.of_browser.get(browser, {})

    def put(self, browser: int, upload_id: str) -> None:
        self.of_browser.setdefault(browser, {})[upload_id] = "completed"

    def join(self, browser: int, other: int) -> None:
        own, joined = self.shelf(browser), self.of_browser[other]
        if own is not joined:
            joined.update(own)
            movers = [each for each, shelf in self.of_browser.items() if shelf is own]
            for each in {*movers, browser}:
                self.of_browser[each] = joined

    def end(self, browser: int) -> None:
        ended = self.of_browser.get(browser)
        self.of_browser = {each: shelf for each, shelf in self.of_browser.items() if shelf is not ended}


@given(steps=steps)
@example(steps=[("upload", 0), ("upload", 1), ("join", 0, 1), ("delete", 1, 0), ("end", 1), ("upload", 0)])
@pytest.mark.slow
async def test_each_session_sees_its_own_uploads_and_no_others(service: Service, steps: list[tuple[Any, ...]]) -> None:
    clients = [service.client() for _ in range(3)]
    shelves = Shelves()
    everything: list[str] = []
    for step, browser, *more in steps:
        client = clients[browser]
        match step:
            case "upload":
                answer = await client.put("a.txt", b"content")
                shelves.put(browser, answer.json()["id"])
                everything.append(answer.json()["id"])
            case "delete" if everything:
                upload_id = everything[more[0] % len(everything)]
                own = shelves.shelf(browser)
                answer = await client.delete(f"{FILES}/{upload_id}")
                if browser not in shelves.of_browser:
                    assert answer.status == 401
                elif upload_id in own:  # a second time is like the first
                    assert answer.status == 204
                    own[upload_id] = "deleted"
                else:
                    assert answer.status == 404
            case "rotate":
                answer = await client.post("/api/session/rotate")
                assert answer.status == (200 if browser in shelves.of_browser else 401)
            case "end":
                answer = await client.delete("/api/session")
                assert answer.status == (204 if browser in shelves.of_browser else 401)
                shelves.end(browser)
            case "ensure":
                await client.post("/api/session")
                shelves.of_browser.setdefault(browser, {})
            case "join":
                [other] = more
                link = await clients[other].post("/api/session/link")
                if other in shelves.of_browser:
                    joined = await client.post("/api/session/join", b'{"code": "%s"}' % link.json()["code"].encode())
                    assert joined.status == 200
                    shelves.join(browser, other)
    for browser, client in enumerate(clients):
        shelf = shelves.shelf(browser)
        assert {item["id"]: item["status"] for item in await history(client)} == shelf
        for upload_id in everything:
            answers = [await client.get(f"{HISTORY}/{upload_id}"), await client.get(f"{FILES}/{upload_id}")]
            if browser not in shelves.of_browser:
                assert [answer.status for answer in answers] == [401, 401]
            elif upload_id in shelf:
                there = 200 if shelf[upload_id] == Status.COMPLETED else 404
                assert [answer.status for answer in answers] == [200, there]
            else:
                unknown = await client.get(f"{HISTORY}/{'0' * 8}-0000-7000-8000-{'0' * 12}")
                for answer in answers:
                    assert answer.status == 404
                    assert without_id(answer.json()) == without_id(unknown.json())


def without_id(problem: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in problem.items() if key != "request_id"}


# What is no part of a cookie's value, a space around it or quotes, does not alter it.
OCTETS = [chr(code) for code in (*range(0x21, 0x7F), *range(0xA0, 0x100)) if chr(code) not in '";']
SHAPE = re.compile(r"[A-Za-z0-9_-]{16,64}\.[0-9]{1,19}\.[A-Za-z0-9_-]{20,128}")
alterations = st.tuples(st.integers(0, 999), st.sampled_from(["change", "take out", "put in"]), st.sampled_from(OCTETS))


def altered(text: str, alteration: tuple[int, str, str]) -> str:
    """The text with one byte changed, taken out, or put in."""
    at, how, octet = alteration
    if how == "put in":
        at %= len(text) + 1
        return text[:at] + octet + text[at:]
    at %= len(text)
    put = "" if how == "take out" else octet if octet != text[at] else "~"
    return text[:at] + put + text[at + 1 :]


@given(alteration=alterations, carried=st.sampled_from(["cookie", "bearer"]))
@example(alteration=(-1, "put in", "\xa0"), carried="cookie")
@example(alteration=(-1, "put in", "="), carried="cookie")
@example(alteration=(-1, "put in", "="), carried="bearer")
async def test_an_altered_cookie_is_no_session(
    service: Service, alteration: tuple[int, str, str], carried: str
) -> None:
    owner = service.client()
    upload = (await owner.put("a.txt", b"content")).json()
    text = owner.cookies[COOKIE]
    other = altered(text, alteration)
    assert other != text
    thief = service.client()
    headers = [("Cookie", f"{COOKIE}={other}") if carried == "cookie" else ("Authorization", f"Bearer {other}")]
    for target in (HISTORY, upload["links"]["self"], upload["links"]["content"], "/api/session"):
        (await thief.get(target, headers=headers)).refused(401, "no_session")
    # The right one beside it wins.
    both = {"Cookie": f"{COOKIE}={other}; {COOKIE}={text}"}
    assert len((await thief.get(HISTORY, headers=both)).json()["items"]) == 1
    # A cookie comes unasked, and a foreign token is none of ours; ours is sent on purpose, and is never passed over.
    started = await thief.put("b.txt", b"content", headers=headers)
    assert started.status == (401 if carried == "bearer" and SHAPE.fullmatch(other) else 201)
    assert [item["id"] for item in await history(owner)] == [upload["id"]]
