"""Who sends: cookies in and out, and what a client may ask of its session."""

import asyncio
import re
from pathlib import Path
from typing import Any

import pytest
from structlog.testing import capture_logs

from app.errors import Unavailable
from app.model import MAX_TIME_US
from app.sessions import totals_records
from app.signing import Signer
from app.uploads import records as upload_records
from tests.contracts.records import upload
from tests.support.asgi import SECRET_KEY, Answer, Client, Service, serving, settings_in
from tests.support.unreliable import until

pytestmark = pytest.mark.asyncio(loop_scope="module")

COOKIE = "waybill_session"
SESSION = "/api/session"
HISTORY = "/api/ingestion/history"
OTHER_KEY = "another-key-for-tests-of-more-than-32-characters"
DAY = 86_400


async def started(service: Service, *names: str) -> Client:
    """A client with a session, in which it has uploaded these."""
    client = service.client()
    assert (await client.post(SESSION)).status == 200
    for name in names:
        assert (await client.put(name, b"x")).status == 201
    return client


async def names(client: Client) -> list[str]:
    answer = await client.get(f"{HISTORY}?order=oldest")
    assert answer.status == 200
    return [item["filename"] for item in answer.json()["items"]]


async def id_of(client: Client) -> str:
    session_id: str = (await client.get(SESSION)).json()["id"]
    return session_id


def bearer(token: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {token}"}


# --- the cookie


async def test_a_first_upload_starts_a_session(service: Service) -> None:
    client = service.client()
    answer = await client.put("a", b"x")
    value, *flags = answer["set-cookie"].split("; ")
    assert re.fullmatch(rf"{COOKIE}=[A-Za-z0-9._-]{{40,200}}", value)
    assert flags == ["Max-Age=2592000", "Path=/", "HttpOnly", "SameSite=Lax"]
    assert await names(client) == ["a"]
    assert (await client.put("b", b"x")).all("set-cookie") == []
    assert await names(client) == ["a", "b"]
    assert await names(await started(service)) == []


@pytest.mark.parametrize(
    ("method", "target"),
    [
        ("GET", SESSION),
        ("DELETE", SESSION),
        ("POST", f"{SESSION}/rotate"),
        ("POST", f"{SESSION}/link"),
        ("GET", HISTORY),
        ("GET", f"{HISTORY}/summary"),
        ("GET", f"{HISTORY}/0193a1f0-0000-7000-8000-000000000000"),
    ],
)
async def test_reading_or_changing_a_session_needs_one(service: Service, method: str, target: str) -> None:
    client = service.client()
    answer = await client.request(method, target)
    answer.refused(401, "no_session")
    assert answer["www-authenticate"] == 'Bearer realm="waybill"'
    assert client.cookies == {}


@pytest.mark.parametrize(
    ("scheme", "setting", "secure"), [("http", "auto", False), ("https", "auto", True), ("http", "always", True)]
)
async def test_a_cookie_is_secure_when_its_request_was(tmp_path: Path, scheme: str, setting: str, secure: bool) -> None:
    async with serving(settings_in(tmp_path, secure_cookies=setting, session_max_age="2h")) as service:
        client = service.client(scheme=scheme)
        for answer in (await client.post(SESSION), await service.client(scheme=scheme).put("a", b"x")):
            assert answer["set-cookie"].endswith("SameSite=Lax" + ("; Secure" if secure else ""))
            assert "; Max-Age=7200; " in answer["set-cookie"]


async def test_a_stale_cookie_is_renewed_and_its_session_lives_on(service: Service) -> None:
    sessions = service.state["sessions"]
    client = await started(service, "a")
    first = client.cookies[COOKIE]
    secret, given_at, _ = first.split(".")
    # A token of two days ago: its session was used all the time, its cookie would run out first.
    old = Signer([SECRET_KEY], "session").sign(f"{secret}.{int(given_at) - 2 * DAY}")
    answer = await client.get(SESSION, headers={"Cookie": f"{COOKIE}={old}"})
    assert answer.status == 200
    renewed = answer["set-cookie"].partition(";")[0].partition("=")[2]
    assert renewed.split(".")[0] == secret
    assert int(renewed.split(".")[1]) >= int(given_at)
    assert "Max-Age=2592000" in answer["set-cookie"]
    assert (await client.get(SESSION, headers=bearer(old))).all("set-cookie") == []
    almost = Signer([SECRET_KEY], "session").sign(f"{secret}.{int(given_at) - DAY + 60}")
    assert (await client.get(SESSION, headers={"Cookie": f"{COOKIE}={almost}"})).all("set-cookie") == []
    answer = await client.get(f"{HISTORY}/nothing", headers={"Cookie": f"{COOKIE}={old}"})
    answer.refused(404, "not_found")
    assert answer["set-cookie"]  # also on a refusal
    assert sessions.max_age_seconds == 30 * DAY


def broken_versions(token: str) -> dict[str, str | bytes]:
    secret, given_at, signature = token.split(".")
    return {
        "empty": "",
        "dots": "...",
        "no signature": f"{secret}.{given_at}.",
        "no time": f"{secret}.{signature}",
        "another secret": f"{secret[:-1]}_.{given_at}.{signature}",
        "another time": f"{secret}.{int(given_at) + 1}.{signature}",
        "junk in the signature": f"{secret}.{given_at}.{signature[:10]}!!!!{signature[10:]}",
        "padded": f"{token}=",
        "standard base64": f"{secret}.{given_at}.{signature[:-2]}+/",
        "cut": token[:-1],
        "cut short": token[:10],
        "twice": token + token,
        "long": "x" * 10_000,
        "long and signed": token + "x" * 10_000,
        "not ascii": "\xe9" * 20,
        "raw bytes": b"\xff\x80.\x81.\x82",
        "controls": b"a\x01\x7fb",
        "percent": token.replace(".", "%2E"),
        "another key": Signer([OTHER_KEY], "session").sign(f"{secret}.{given_at}"),
        "another purpose": Signer([SECRET_KEY], "cursor").sign(f"{secret}.{given_at}"),
        "a secret nobody has": Signer([SECRET_KEY], "session").sign(f"{'A' * 22}.{given_at}"),
        "json": '{"id": 1}',
    }


async def test_a_cookie_altered_in_any_way_is_no_session_and_no_500(service: Service) -> None:
    client = await started(service, "mine")
    for what, text in broken_versions(client.cookies[COOKIE]).items():
        cookie = COOKIE.encode() + b"=" + (text if isinstance(text, bytes) else text.encode("latin-1"))
        for headers in ([("Cookie", cookie)], [("Authorization", b"Bearer " + cookie.partition(b"=")[2])]):
            answer = await service.client().request("GET", HISTORY, headers=headers)
            assert answer.status == 401, what
            answer.refused(401, "no_session")
        fresh = service.client()
        answer = await fresh.put("new", b"x", headers=[("Cookie", cookie)])
        assert answer.status == 201, what
        assert await names(fresh) == ["new"]  # in a session of its own


@pytest.mark.parametrize(
    "line",
    [
        "{cookie}",
        " {cookie} ",
        "a=b; {cookie}; c=d",
        "{cookie};",
        ";;{cookie}",
        "a;{cookie}",
        '{name}="{token}"',
        "{cookie}; {cookie}",
        "{name}=broken; {cookie}",
        "{cookie}; {name}=",
        "{name}; {cookie}",
        "WAYBILL_SESSION=other; {cookie}",
        "x{name}=other; {cookie}",
    ],
)
async def test_the_valid_cookie_is_found_among_others(service: Service, line: str) -> None:
    client = await started(service, "mine")
    token = client.cookies[COOKIE]
    cookie = line.format(cookie=f"{COOKIE}={token}", name=COOKIE, token=token)
    answer = await service.client().get(HISTORY, headers={"Cookie": cookie})
    assert answer.status == 200
    assert len(answer.json()["items"]) == 1


async def test_a_bearer_token_goes_before_cookies_and_two_sessions_of_one_kind_are_ambiguous(service: Service) -> None:
    one, two = await started(service, "one"), await started(service, "two")
    first, second = one.cookies[COOKIE], two.cookies[COOKIE]
    ask = service.client().request
    assert (await ask("GET", HISTORY, headers=bearer(first))).json()["items"][0]["filename"] == "one"
    for headers in (
        [("Authorization", f"bearer {first}")],
        [("Authorization", f"BEARER   {first} ")],
        [("Authorization", f"Bearer {first}"), ("Cookie", f"{COOKIE}=broken")],
        [("Authorization", "Bearer broken"), ("Cookie", f"{COOKIE}={first}")],
        [("Authorization", f"bearer  {first}"), ("Cookie", f"{COOKIE}={first}")],
        [("Authorization", f"Bearer {first}"), ("Cookie", f"{COOKIE}={second}")],
        [("Authorization", "Bearer eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiIxIn0.c2ln"), ("Cookie", f"{COOKIE}={first}")],
        [("Cookie", f"__Host-{COOKIE}={first}; {COOKIE}={second}")],
        [("Cookie", f"__Secure-{COOKIE}={first}; {COOKIE}={second}")],
        [("Cookie", f"{COOKIE}={second}; __Secure-{COOKIE}={second}; __Host-{COOKIE}={first}")],
        [("Cookie", "; ".join([f"{COOKIE}=junk{number}" for number in range(100)] + [f"{COOKIE}={first}"]))],
        [("Authorization", "Basic dXNlcjpwYXNz"), ("Cookie", f"{COOKIE}={first}")],
        [("Cookie", f"{COOKIE}=broken"), ("Cookie", f"{COOKIE}={first}")],
    ):
        answer = await ask("GET", HISTORY, headers=headers)
        assert answer.status == 200
        assert [item["filename"] for item in answer.json()["items"]] == ["one"]
    for headers in (
        [("Cookie", f"{COOKIE}={first}; {COOKIE}={second}")],
        [("Cookie", f"{COOKIE}={first}"), ("Cookie", f"{COOKIE}={second}")],
        [("Cookie", f"__Host-{COOKIE}={first}; __Host-{COOKIE}={second}; {COOKIE}={second}")],
        [("Authorization", f"Bearer {first}"), ("Authorization", f"Bearer {second}")],
    ):
        (await ask("GET", HISTORY, headers=headers)).refused(400, "ambiguous_session")
        answer = await ask("PUT", "/api/ingestion/uploads/a", headers=headers, body=b"x")
        answer.refused(400, "ambiguous_session")
        assert answer.asked == 0
    assert await names(one) == ["one"]


async def test_a_hundred_cookies_are_not_looked_up(service: Service, monkeypatch: pytest.MonkeyPatch) -> None:
    client = await started(service, "mine")
    token = client.cookies[COOKIE]
    forged = [Signer([SECRET_KEY], "session").sign(f"{number:022}.1") for number in range(100)]
    headers = {"Cookie": "; ".join(f"{COOKIE}={text}" for text in [token, *forged])}
    asked = 0
    find = service.state["db"].one

    async def counted(name: str, **params: Any) -> Any:
        nonlocal asked
        asked += name == "find_session_by_token"
        return await find(name, **params)

    monkeypatch.setattr(service.state["db"], "one", counted)
    assert (await service.client().get(SESSION, headers=headers)).status == 200
    assert asked <= 8


async def test_keys_rotate_without_ending_a_session(tmp_path: Path, database_url: str) -> None:
    async with serving(settings_in(tmp_path, database_url)) as service:
        client = await started(service, "a")
    token = client.cookies[COOKIE]
    async with serving(settings_in(tmp_path, database_url, secret_keys=f"{OTHER_KEY},{SECRET_KEY}")) as service:
        again = service.client()
        again.cookies[COOKIE] = token
        assert await names(again) == ["a"]
        rotated = service.client()
        rotated.cookies[COOKIE] = token
        await rotated.post(f"{SESSION}/rotate")
    async with serving(settings_in(tmp_path, database_url, secret_keys=OTHER_KEY)) as service:
        old, new = service.client(), service.client()
        old.cookies[COOKIE], new.cookies[COOKIE] = token, rotated.cookies[COOKIE]
        (await old.get(HISTORY)).refused(401, "no_session")
        assert await names(new) == ["a"]


# --- /api/session


async def test_a_session_is_shown_without_its_secret(service: Service) -> None:
    client = await started(service, "a", "b")
    await client.put("c", b"yy")
    await client.put("failed", b"x", headers={"Content-Length": "3"})
    answer = await client.get(SESSION)
    assert answer["cache-control"] == "no-store"
    told = answer.json()
    assert told == {
        "id": told["id"],
        "created_at": told["created_at"],
        "last_seen_at": told["last_seen_at"],
        "expires_at": told["expires_at"],
        "uploads": 4,
        "bytes": 4,
        "devices": 1,
    }
    assert told["created_at"] <= told["last_seen_at"] < told["expires_at"]
    assert client.cookies[COOKIE].split(".")[0] not in answer.body.decode()
    (await service.client().get(HISTORY, headers=bearer(told["id"]))).refused(401, "no_session")


async def test_making_sure_of_a_session_makes_one_and_keeps_it(service: Service) -> None:
    client = service.client()
    first = await client.post(SESSION)
    assert (first.status, first.json()["uploads"]) == (200, 0)
    again = await client.post(SESSION)
    assert (again.status, again.json()["id"]) == (200, first.json()["id"])
    assert again.all("set-cookie") == []
    await asyncio.gather(*(client.put(f"{number}", b"x") for number in range(6)))
    assert sorted(await names(client)) == [f"{number}" for number in range(6)]


async def test_rotating_changes_the_token_and_nothing_else(service: Service) -> None:
    client = await started(service, "a")
    old, session_id = client.cookies[COOKIE], await id_of(client)
    answer = await client.post(f"{SESSION}/rotate")
    assert (answer.status, answer.json()["id"]) == (200, session_id)
    assert client.cookies[COOKIE].split(".")[0] != old.split(".")[0]
    assert await names(client) == ["a"]
    (await service.client().get(HISTORY, headers=bearer(old))).refused(401, "no_session")


async def test_ending_a_session_ends_it_for_all_and_keeps_its_records(service: Service) -> None:
    client = await started(service, "a")
    token, session_id = client.cookies[COOKIE], await id_of(client)
    answer = await client.delete(SESSION)
    assert (answer.status, answer.body) == (204, b"")
    assert answer["set-cookie"].startswith(f"{COOKIE}=; Max-Age=0; Path=/; HttpOnly")
    assert client.cookies == {}
    (await service.client().get(HISTORY, headers=bearer(token))).refused(401, "no_session")
    (await service.client().post(f"{SESSION}/rotate", headers=bearer(token))).refused(401, "no_session")
    assert (await totals_records.find(service.state["db"], session_id)).by_status == [("completed", 1, 1)]
    fresh = service.client()
    assert (await fresh.put("b", b"x", headers={"Cookie": f"{COOKIE}={token}"})).status == 201
    assert await names(fresh) == ["b"]


TUS = {"Tus-Resumable": "1.0.0", "Upload-Length": "1"}


@pytest.mark.parametrize(
    ("method", "target", "headers"),
    [
        ("POST", SESSION, {}),
        ("PUT", "/api/ingestion/uploads/a", {}),
        ("POST", "/api/ingestion/uploads", {"Content-Type": "multipart/form-data; boundary=x"}),
        ("POST", "/api/ingestion/uploads", TUS),
        ("POST", "/api/ingestion/uploads", {"Upload-Complete": "?0"}),
        ("PUT", "/api/ingestion/uploads/a", {"Idempotency-Key": "k"}),
        ("GET", HISTORY, {}),
        ("DELETE", SESSION, {}),
    ],
)
async def test_a_bearer_token_that_opens_nothing_is_refused_and_no_other_session_begun(
    service: Service, method: str, target: str, headers: dict[str, str]
) -> None:
    client, other = await started(service), await started(service, "kept")
    token = client.cookies[COOKIE]
    await client.delete(SESSION)
    for cookies in ({}, {"Cookie": f"{COOKIE}={other.cookies[COOKIE]}"}):
        answer = await service.client().request(
            method, target, headers={**headers, **bearer(token), **cookies}, body=b"x"
        )
        answer.refused(401, "no_session")
        assert answer.asked == 0
        assert answer.all("set-cookie") == []
    assert await names(other) == ["kept"]


async def test_the_url_of_a_resumable_upload_opens_it_to_no_bearer_token_that_opens_nothing(service: Service) -> None:
    client = await started(service)
    made = await client.post("/api/ingestion/uploads", headers=TUS)
    gone = await started(service)
    token = gone.cookies[COOKIE]
    await gone.delete(SESSION)
    for method in ("HEAD", "DELETE"):
        answer = await service.client().request(method, made["location"], headers={**TUS, **bearer(token)})
        assert answer.status == 401
    assert (await service.client().request("HEAD", made["location"], headers=TUS)).status == 200


# --- the token in JSON, the cookie's names


async def test_a_caller_that_keeps_no_cookies_is_given_the_token(service: Service) -> None:
    script = service.client()
    answer = await script.post(SESSION, headers={"Waybill-Token": "true"})
    token = answer.json()["token"]
    same = await service.client().post(SESSION, headers=bearer(token))
    assert (same.json()["id"], same.json()["token"].split(".")[0]) == (answer.json()["id"], token.split(".")[0])
    rotated = await service.client().post(f"{SESSION}/rotate", headers=bearer(token))
    assert rotated.all("set-cookie") == same.all("set-cookie") == []
    newer = rotated.json()["token"]
    assert (await service.client().get(SESSION, headers=bearer(newer))).json()["id"] == answer.json()["id"]
    code = await code_from(await started(service, "theirs"))
    joined = await service.client().post(f"{SESSION}/join", f'{{"code": "{code}"}}'.encode(), headers=bearer(newer))
    listed = await service.client().get(HISTORY, headers=bearer(joined.json()["token"]))
    assert [item["filename"] for item in listed.json()["items"]] == ["theirs"]


async def test_the_token_is_given_to_no_other_client(service: Service) -> None:
    browser = await started(service)
    for headers in ({}, {"Waybill-Token": "true"}):
        assert "token" not in (await browser.post(SESSION, headers=headers)).json()
        assert "token" not in (await browser.post(f"{SESSION}/rotate", headers=headers)).json()
    for headers in ({}, {"Waybill-Token": "no"}, {"Waybill-Token": "true", "Cookie": "a=b"}):
        assert "token" not in (await service.client().post(SESSION, headers=headers)).json()
    assert "token" not in (await browser.get(SESSION, headers=bearer(browser.cookies[COOKIE]))).json()


async def test_the_cookies_name_binds_it_to_this_host_over_https(service: Service) -> None:
    client = service.client(scheme="https")
    answer = await client.put("a", b"x")
    assert answer["set-cookie"].startswith(f"__Host-{COOKIE}=")
    assert "; Path=/; HttpOnly; SameSite=Lax; Secure" in answer["set-cookie"]
    ended = await client.delete(SESSION)
    assert ended["set-cookie"].startswith(f"__Host-{COOKIE}=; Max-Age=0; Path=/;")


async def test_a_plain_cookie_is_exchanged_over_https(service: Service) -> None:
    plain = await started(service, "mine")
    token = plain.cookies[COOKIE]
    secure = service.client(scheme="https")
    answer = await secure.get(HISTORY, headers={"Cookie": f"{COOKIE}={token}"})
    assert [item["filename"] for item in answer.json()["items"]] == ["mine"]
    given, taken = answer.all("set-cookie")
    assert given.startswith(f"__Host-{COOKIE}={token.split('.')[0]}.")
    assert taken.startswith(f"{COOKIE}=; Max-Age=0; Path=/;")
    # Once there is a better one the plain name counts for nothing, whoever has set it.
    other = (await started(service, "theirs")).cookies[COOKIE]
    both = {"Cookie": f"{COOKIE}={other}; {given.partition(';')[0]}"}
    answer = await service.client(scheme="https").get(HISTORY, headers=both)
    assert [item["filename"] for item in answer.json()["items"]] == ["mine"]
    assert answer.all("set-cookie") == []


async def test_the_cookies_name_is_another_one_below_a_base_path(tmp_path: Path) -> None:
    async with serving(settings_in(tmp_path, base_path="/up", secure_cookies="always")) as service:
        answer = await service.client(scheme="https").post("/up/api/session")
    assert answer["set-cookie"].startswith(f"__Secure-{COOKIE}=")
    assert "; Path=/up; HttpOnly; SameSite=Lax; Secure" in answer["set-cookie"]


# --- link and join


async def code_from(client: Client) -> str:
    answer = await client.post(f"{SESSION}/link")
    assert answer.status == 201
    assert answer.json().keys() == {"code", "expires_at"}
    code: str = answer.json()["code"]
    assert re.fullmatch(r"[0-9A-Z]{4}-[0-9A-Z]{4}-[0-9A-Z]{4}", code)
    return code


async def join(client: Client, code: str) -> Answer:
    return await client.post(f"{SESSION}/join", f'{{"code": "{code}"}}'.encode())


async def test_a_second_browser_joins_a_session(service: Service) -> None:
    first, second = await started(service, "a"), service.client()
    answer = await join(second, await code_from(first))
    assert (answer.status, answer.json()["id"]) == (200, await id_of(first))
    assert second.cookies[COOKIE] != first.cookies[COOKIE]
    await second.put("b", b"x")
    assert await names(first) == await names(second) == ["a", "b"]
    await second.post(f"{SESSION}/rotate")
    assert await names(first) == await names(second) == ["a", "b"]  # each has its own token
    await first.delete(SESSION)
    (await second.get(HISTORY)).refused(401, "no_session")


async def test_uploads_of_a_joining_browser_move_along(service: Service) -> None:
    first, second = await started(service, "a"), await started(service, "b", "c")
    third = service.client()
    await join(third, await code_from(second))
    old = second.cookies[COOKIE]
    target = (await second.get(HISTORY)).json()["items"][0]["links"]["content"]
    answer = await join(second, await code_from(first))
    assert answer.status == 200
    assert answer.json()["uploads"] == 3
    for client in (first, second, third):  # who shared the one that moved shares the one it moved into
        assert sorted(await names(client)) == ["a", "b", "c"]
        assert (await client.get(target)).body == b"x"
    (await service.client().get(HISTORY, headers=bearer(old))).refused(401, "no_session")


async def test_a_long_history_arrives_after_its_session_has_joined(
    service: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("app.sessions.merge._HURRY_SECONDS", 0)
    first, second = await started(service, "a"), await started(service, "b")
    oldest = (await second.get(HISTORY)).json()["items"][0]
    db, session_id = service.state["db"], await id_of(second)
    newer = {"created_at": MAX_TIME_US, "completed_at": MAX_TIME_US}
    await upload_records.insert_uploads(db, [upload(number, session_id, **newer) for number in range(1000)])
    answer = await join(second, await code_from(first))
    assert answer.status == 200
    assert 2 < answer.json()["uploads"] < 1002
    assert (await second.get(f"{HISTORY}/{oldest['id']}")).json() == oldest  # it is on its way, and found
    assert (await second.get(oldest["links"]["content"])).body == b"x"
    assert (await first.put("c", b"x")).status == 201
    assert (await second.delete(oldest["links"]["content"])).status == 204
    assert (await service.client().get(oldest["links"]["self"])).status == 401
    assert (await (await started(service)).get(oldest["links"]["self"])).status == 404

    async def arrived() -> bool:
        return bool((await first.get(f"{HISTORY}/summary")).json()["uploads"] == 1003)

    await until(arrived)
    assert (await second.get(SESSION)).json()["uploads"] == 1003


async def test_joining_the_session_one_has_changes_no_more_than_the_token(service: Service) -> None:
    client = await started(service, "a")
    answer = await join(client, await code_from(client))
    assert answer.status == 200
    assert await names(client) == ["a"]


async def test_a_code_opens_once(service: Service) -> None:
    first = await started(service, "a")
    code = await code_from(first)
    joined = [service.client() for _ in range(5)]
    answers = await asyncio.gather(*(join(client, code) for client in joined))
    assert sorted(answer.status for answer in answers) == [200, 403, 403, 403, 403]
    for client, answer in zip(joined, answers, strict=True):
        if answer.status == 403:
            answer.refused(403, "forbidden")
            assert client.cookies == {}


@pytest.mark.parametrize(
    "spoken", [str.lower, lambda code: code.replace("-", ""), lambda code: f" {code.replace('-', ' ')} "]
)
async def test_a_code_is_typed_as_people_type(service: Service, spoken: Any) -> None:
    first = await started(service, "a")
    assert (await join(service.client(), spoken(await code_from(first)))).status == 200


async def test_a_code_is_no_longer_good_after_ten_minutes(service: Service, monkeypatch: pytest.MonkeyPatch) -> None:
    first = await started(service, "a")
    linking = service.state["sessions"].linking
    now_us = linking._now_us
    codes = [await code_from(first) for _ in range(2)]
    monkeypatch.setattr(linking, "_now_us", lambda: now_us() + 590_000_000)
    assert (await join(service.client(), codes[0])).status == 200
    monkeypatch.setattr(linking, "_now_us", lambda: now_us() + 600_000_000)
    (await join(service.client(), codes[1])).refused(403, "forbidden")


async def test_a_session_that_is_not_used_runs_out(service: Service, monkeypatch: pytest.MonkeyPatch) -> None:
    client = await started(service, "a")
    sessions = service.state["sessions"]
    now_us = sessions._now_us
    monkeypatch.setattr(sessions, "_now_us", lambda: now_us() + (30 * DAY - 60) * 1_000_000)
    assert (await client.get(SESSION)).status == 200
    monkeypatch.setattr(sessions, "_now_us", lambda: now_us() + 30 * DAY * 1_000_000)
    (await client.get(SESSION)).refused(401, "no_session")


async def test_a_code_of_an_ended_session_opens_nothing(service: Service) -> None:
    first = await started(service, "a")
    code = await code_from(first)
    await first.delete(SESSION)
    (await join(service.client(), code)).refused(403, "forbidden")


@pytest.mark.parametrize(
    "body",
    [b"", b"{", b"[]", b"{}", b"null", b'"ABCD"', b'{"code": 1}', b'{"code": null}', b'{"code": "A", "x": 1}', b"\xff",
     b'{"code": "\xff"}', b"[" * 60_000],
)  # fmt: skip
async def test_a_join_without_a_code_is_refused(service: Service, body: bytes) -> None:
    (await service.client().post(f"{SESSION}/join", body)).refused(400, "bad_request")


@pytest.mark.parametrize("code", ["", "ABCD-EFGH-JKMN", "x" * 1000, "\\ud800", "\\u0000", "é"])
async def test_an_unknown_code_is_forbidden(service: Service, code: str) -> None:
    client = await started(service, "a")
    answer = await client.post(f"{SESSION}/join", f'{{"code": "{code}"}}'.encode())
    assert answer.status in {400, 403}
    answer.refused(answer.status, {400: "bad_request", 403: "forbidden"}[answer.status])
    assert await names(client) == ["a"]


async def test_a_join_is_short_and_plain(service: Service) -> None:
    client = service.client()
    answer = await client.post(f"{SESSION}/join", b"x" * 70_000)
    answer.refused(413, "request_too_large")
    assert answer.asked == 0
    answer = await client.post(f"{SESSION}/join", b"{}", headers={"Content-Encoding": "gzip"})
    answer.refused(415, "unsupported_media_type")
    (await client.post(f"{SESSION}/join", b"{}", headers={"Content-Length": "5"})).refused(400, "incomplete_body")


# --- other sites

OWN, FOREIGN = "http://waybill.test", "https://evil.test"
CHANGES = [
    ("PUT", "/api/ingestion/uploads/a"),
    ("POST", "/api/ingestion/uploads"),
    ("POST", SESSION),
    ("POST", f"{SESSION}/rotate"),
    ("POST", f"{SESSION}/link"),
    ("DELETE", SESSION),
    ("DELETE", "/api/ingestion/files/0193a1f0-0000-7000-8000-000000000000"),
]
REFUSED = [
    {"Origin": FOREIGN},
    {"Origin": "null"},
    {"Origin": ""},
    {"Origin": "http://waybill.test.evil.test"},
    {"Origin": "http://waybill.test:8080"},
    {"Origin": "http://other.waybill.test"},
    {"Origin": "https://waybill.test"},
    {"Origin": "http://[::1"},
    {"Origin": "http://waybill.test:x"},
    {"Sec-Fetch-Site": "cross-site"},
    {"Sec-Fetch-Site": "cross-site", "Origin": OWN},
    {"Sec-Fetch-Site": "same-site", "Origin": "http://other.waybill.test"},
]
ALLOWED = [
    {},
    {"Origin": OWN},
    {"Origin": "http://WAYBILL.test"},
    {"Sec-Fetch-Site": "same-origin"},
    {"Sec-Fetch-Site": "same-origin", "Origin": "https://waybill.test"},  # a proxy took the TLS off
    {"Sec-Fetch-Site": "none"},
    {"Sec-Fetch-Site": "same-origin", "Origin": OWN, "Sec-Fetch-Mode": "navigate"},
    {"Origin": "https://friend.test"},
    {"Origin": "https://friend.test", "Sec-Fetch-Site": "cross-site"},
]


@pytest.mark.parametrize("headers", REFUSED, ids=str)
async def test_a_page_of_another_site_changes_nothing(service: Service, headers: dict[str, str]) -> None:
    client = await started(service, "mine")
    for method, target in CHANGES:
        answer = await client.request(method, target, headers=headers, body=b"x")
        answer.refused(403, "cross_origin")
        assert answer.asked == 0
        assert answer.all("set-cookie") == []
    assert (await client.get(HISTORY, headers=headers)).status == 200  # asking changes nothing
    assert await names(client) == ["mine"]


async def test_our_own_pages_and_configured_ones_may_change_a_session(tmp_path: Path) -> None:
    async with serving(settings_in(tmp_path, allowed_origins="https://friend.test")) as service:
        for headers in ALLOWED:
            client = await started(service)
            assert (await client.put("a", b"x", headers=headers)).status == 201, headers
            assert (await client.post(f"{SESSION}/rotate", headers=headers)).status == 200
            assert (await client.delete(SESSION, headers=headers)).status == 204
        for headers in REFUSED:
            client = await started(service)
            (await client.put("a", b"x", headers=headers)).refused(403, "cross_origin")


@pytest.mark.parametrize(
    ("host", "origin", "same"),
    [
        ("nas:80", "http://nas", True),
        ("nas", "http://nas:80", True),
        ("nas", "http://nas:8080", False),
        ("nas:8080", "http://nas:8080", True),
        ("nas:443", "http://nas", False),
    ],
)
async def test_a_port_that_its_scheme_implies_is_no_other_origin(
    service: Service, host: str, origin: str, same: bool
) -> None:
    client = await started(service)
    with capture_logs() as lines:
        answer = await client.put("a", b"x", headers={"Host": host, "Origin": origin})
    assert answer.status == (201 if same else 403)
    if not same:
        [line] = [line for line in lines if line["event"] == "answered"]
        assert (line["origin"], line["own_origin"]) == (origin, f"http://{host}")


async def test_a_request_without_a_cookie_needs_no_origin(service: Service) -> None:
    client = await started(service, "mine")
    token = client.cookies[COOKIE]
    assert (await service.client().put("a", b"x", headers={"Origin": FOREIGN})).status == 201
    assert (await service.client().put("a", b"x", headers={**bearer(token), "Origin": FOREIGN})).status == 201


async def test_a_form_of_another_site_puts_no_session_over_the_browsers_own(service: Service) -> None:
    # SameSite keeps the cookie from being sent; without this rule the answer would bring a new one.
    headers = {"Origin": FOREIGN, "Sec-Fetch-Site": "cross-site", "Sec-Fetch-Mode": "navigate"}
    for method, target in CHANGES:
        answer = await service.client().request(method, target, headers=headers, body=b"x")
        answer.refused(403, "cross_origin")
        assert answer.all("set-cookie") == []


async def test_the_database_being_away_is_not_taken_for_no_session(service: Service) -> None:
    client = await started(service, "mine")
    stranger = service.client()
    with pytest.MonkeyPatch.context() as patch:

        async def away(name: str, **params: Any) -> Any:
            raise Unavailable

        patch.setattr(service.state["db"], "one", away)
        service.state["sessions"]._known.clear()
        answer = await client.put("a", b"x")
        answer.refused(503, "unavailable")
        assert answer.asked == 0
        assert answer["retry-after"]
        assert stranger.cookies == {}
    assert await names(client) == ["mine"]
