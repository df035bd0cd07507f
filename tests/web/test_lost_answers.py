"""A client whose answer got lost asks again, and is locked out of nothing."""

import asyncio
from collections.abc import Callable, Iterator
from contextvars import ContextVar
from typing import Any

import pytest

from app.errors import Unavailable
from tests.support.asgi import Answer, Client, Service

pytestmark = pytest.mark.asyncio(loop_scope="module")

COOKIE = "waybill_session"
SESSION = "/api/session"
HISTORY = "/api/ingestion/history"
MINUTE, HOUR, DAY = 60, 3600, 86_400


class Clock:
    """The clock of the service's sessions and handlers, which a test moves."""

    def __init__(self, service: Service, patch: pytest.MonkeyPatch) -> None:
        true_us, self.seconds = service.state["now_us"], 0
        sessions = service.state["sessions"]
        for part in (sessions, sessions.tokens, sessions.linking, sessions.last_seen):
            patch.setattr(part, "_now_us", lambda: true_us() + self.seconds * 1_000_000)
        patch.setitem(service.state, "now_us", lambda: true_us() + self.seconds * 1_000_000)  # type: ignore[arg-type]

    def pass_by(self, seconds: int) -> None:
        self.seconds += seconds


@pytest.fixture
def clock(service: Service) -> Iterator[Clock]:
    with pytest.MonkeyPatch.context() as patch:
        yield Clock(service, patch)
    service.state["sessions"]._known.clear()


async def started(service: Service, *names: str) -> Client:
    client = service.client()
    assert (await client.post(SESSION)).status == 200
    for name in names:
        assert (await client.put(name, b"x")).status == 201
    return client


def carrying(service: Service, token: str) -> Client:
    """A browser with this cookie."""
    client = service.client()
    client.cookies[COOKIE] = token
    return client


async def names(client: Client) -> list[str]:
    answer = await client.get(f"{HISTORY}?order=oldest")
    assert answer.status == 200, answer.body
    return [item["filename"] for item in answer.json()["items"]]


def is_out(answer: Answer) -> None:
    answer.refused(401, "no_session")


async def rotated(service: Service, token: str) -> str:
    """The token that a rotate by `token` gives; whoever has `token` goes on carrying it."""
    client = carrying(service, token)
    answer = await client.post(f"{SESSION}/rotate")
    assert answer.status == 200, answer.body
    assert client.cookies[COOKIE] != token
    return client.cookies[COOKIE]


async def code_of(client: Client) -> bytes:
    code = (await client.post(f"{SESSION}/link")).json()["code"]
    return b'{"code": "%s"}' % code.encode()


async def joined(service: Service, token: str, code: bytes) -> tuple[Answer, str]:
    """Join as a browser that carries `token`, and does not keep what it is given: that is returned."""
    client = carrying(service, token)
    answer = await client.post(f"{SESSION}/join", code)
    return answer, client.cookies[COOKIE]


# --- the database's answer to a COMMIT


LOSES: ContextVar[list[str]] = ContextVar("LOSES")


@pytest.fixture
def lose_a_commit(service: Service, monkeypatch: pytest.MonkeyPatch) -> Callable[[], None]:
    """Call it, and the next COMMIT that the test itself brings about is done and its answer lost."""
    driver = service.state["db"]._driver
    commit = driver.commit

    async def done_and_lost(raw: Any) -> None:
        await commit(raw)
        if losing := LOSES.get([]):  # not what the service does beside it, which has another context
            losing.clear()
            raise Unavailable("the answer is lost, as the test says")

    monkeypatch.setattr(driver, "commit", done_and_lost)
    return lambda: LOSES.set(["the next"]) and None


async def test_a_rotate_whose_commit_is_not_answered_is_repeated(service: Service, lose_a_commit: Any) -> None:
    client = await started(service, "a")
    old = client.cookies[COOKIE]
    lose_a_commit()
    (await client.post(f"{SESSION}/rotate")).refused(503, "unavailable")
    assert client.cookies[COOKIE] == old
    assert (await client.post(f"{SESSION}/rotate")).status == 200
    assert await names(client) == ["a"]


async def test_a_join_whose_commit_is_not_answered_is_repeated(service: Service, lose_a_commit: Any) -> None:
    client, target = await started(service, "mine"), await started(service, "theirs")
    code = await code_of(target)
    lose_a_commit()
    (await client.post(f"{SESSION}/join", code)).refused(503, "unavailable")
    assert (await client.post(f"{SESSION}/join", code)).status == 200
    assert sorted(await names(client)) == sorted(await names(target)) == ["mine", "theirs"]


async def test_a_deletion_whose_commit_is_not_answered_is_repeated(service: Service, lose_a_commit: Any) -> None:
    client = await started(service, "a")
    [item] = (await client.get(HISTORY)).json()["items"]
    lose_a_commit()
    (await client.delete(item["links"]["content"])).refused(503, "unavailable")
    assert item["id"] in service.files()
    assert (await client.delete(item["links"]["content"])).status == 204
    assert item["id"] not in service.files()


async def test_an_end_whose_commit_is_not_answered_has_ended_the_session(service: Service, lose_a_commit: Any) -> None:
    client = await started(service, "a")
    lose_a_commit()
    (await client.delete(SESSION)).refused(503, "unavailable")
    is_out(await client.delete(SESSION))
    is_out(await client.get(HISTORY))


async def test_a_code_whose_commit_is_not_answered_is_followed_by_another(service: Service, lose_a_commit: Any) -> None:
    client = await started(service, "a")
    lose_a_commit()
    (await client.post(f"{SESSION}/link")).refused(503, "unavailable")
    assert (await service.client().post(f"{SESSION}/join", await code_of(client))).status == 200


# --- rotate


async def test_a_replaced_token_works_until_the_new_one_is_used(service: Service) -> None:
    client = await started(service, "a")
    old = client.cookies[COOKIE]
    new = await rotated(service, old)
    for _ in range(3):
        assert await names(carrying(service, old)) == ["a"]
    assert await names(carrying(service, new)) == ["a"]
    is_out(await carrying(service, old).get(HISTORY))
    is_out(await carrying(service, old).post(f"{SESSION}/rotate"))
    assert await names(carrying(service, new)) == ["a"]


async def test_a_token_rotates_again_and_the_first_new_one_that_is_used_ends_the_others(service: Service) -> None:
    client = await started(service, "a")
    old = client.cookies[COOKIE]
    first, second, third = [await rotated(service, old) for _ in range(3)]
    assert len({old, first, second, third}) == 4
    assert await names(carrying(service, old)) == ["a"]
    assert await names(carrying(service, second)) == ["a"]
    for ended in (old, first, third):
        is_out(await carrying(service, ended).get(HISTORY))
    newest = await rotated(service, second)
    assert await names(carrying(service, newest)) == ["a"]
    is_out(await carrying(service, second).get(HISTORY))


async def test_a_replaced_token_ends_after_an_hour_and_the_new_one_does_not(service: Service, clock: Clock) -> None:
    client = await started(service, "a")
    old = client.cookies[COOKIE]
    first = await rotated(service, old)
    clock.pass_by(HOUR - MINUTE)
    second = await rotated(service, old)
    clock.pass_by(MINUTE)
    service.state["sessions"]._known.clear()
    is_out(await carrying(service, old).get(HISTORY))
    is_out(await carrying(service, old).post(f"{SESSION}/rotate"))
    clock.pass_by(5 * DAY)
    assert await names(carrying(service, second)) == ["a"]
    is_out(await carrying(service, first).get(HISTORY))
    is_out(await carrying(service, old).get(HISTORY))


async def test_rotates_at_once_lock_nobody_out(service: Service) -> None:
    client = await started(service, "a")
    old = client.cookies[COOKIE]
    news = await asyncio.gather(*(rotated(service, old) for _ in range(4)))
    answers = await asyncio.gather(*(carrying(service, new).get(HISTORY) for new in news))
    alive = [new for new in news if (await carrying(service, new).get(HISTORY)).status == 200]
    assert len(alive) == 1
    assert {answer.status for answer in answers} <= {200, 401}
    is_out(await carrying(service, old).get(HISTORY))


async def test_other_browsers_of_the_session_keep_their_tokens(service: Service) -> None:
    client = await started(service, "a")
    other = service.client()
    assert (await other.post(f"{SESSION}/join", await code_of(client))).status == 200
    new = await rotated(service, client.cookies[COOKIE])
    assert await names(carrying(service, new)) == await names(other) == ["a"]


# --- join


async def test_a_join_can_be_repeated_by_the_token_before(service: Service) -> None:
    client, target = await started(service, "mine"), await started(service, "theirs")
    old, code = client.cookies[COOKIE], await code_of(target)
    first, lost = await joined(service, old, code)
    again, new = await joined(service, old, code)
    assert first.status == again.status == 200
    assert first.json() == {**again.json(), "last_seen_at": first.json()["last_seen_at"]}
    assert new != lost
    assert sorted(await names(carrying(service, new))) == ["mine", "theirs"]
    for ended in (old, lost):
        is_out(await carrying(service, ended).get(HISTORY))


async def test_a_join_can_be_repeated_when_the_new_token_was_used(service: Service) -> None:
    """Sent twice by a browser or a proxy, the second may come when the first was answered and gone on from."""
    client, target = await started(service, "mine"), await started(service, "theirs")
    old, code = client.cookies[COOKIE], await code_of(target)
    _, new = await joined(service, old, code)
    assert len(await names(carrying(service, new))) == 2
    again, newer = await joined(service, old, code)
    assert again.status == 200
    assert len(await names(carrying(service, newer))) == 2
    assert len(await names(carrying(service, new))) == 2


async def test_a_script_with_a_bearer_token_asks_again_as_a_browser_does(service: Service) -> None:
    target, script = await started(service, "theirs"), service.client()
    old = {"Authorization": f"Bearer {(await started(service, 'mine')).cookies[COOKIE]}"}
    rotated = [(await script.post(f"{SESSION}/rotate", headers=old)).json()["token"] for _ in range(2)]
    old = {"Authorization": f"Bearer {rotated[1]}"}
    code = await code_of(target)
    for _ in range(2):
        answer = await script.post(f"{SESSION}/join", code, headers=old)
        assert answer.status == 200
        new = {"Authorization": f"Bearer {answer.json()['token']}"}
        assert len((await script.get(HISTORY, headers=new)).json()["items"]) == 2
        is_out(await script.get(HISTORY, headers=old))
    assert script.cookies == {}


async def test_a_join_by_a_token_that_opens_nothing_can_be_repeated_too(service: Service) -> None:
    dead, target = await started(service), await started(service, "theirs")
    old, code = dead.cookies[COOKIE], await code_of(target)
    assert (await dead.delete(SESSION)).status == 204
    for _ in range(2):
        answer, new = await joined(service, old, code)
        assert answer.status == 200
    assert await names(carrying(service, new)) == ["theirs"]


async def test_a_join_leads_to_where_the_joined_session_went_since(service: Service) -> None:
    client, target, third = [await started(service, name) for name in ("a", "b", "c")]
    old, code = client.cookies[COOKIE], await code_of(target)
    assert (await joined(service, old, code))[0].status == 200
    assert (await target.post(f"{SESSION}/join", await code_of(third))).status == 200
    answer, new = await joined(service, old, code)
    assert answer.json()["id"] == (await third.get(SESSION)).json()["id"]
    assert sorted(await names(carrying(service, new))) == ["a", "b", "c"]


async def test_a_used_code_opens_nothing_to_others(service: Service) -> None:
    client, target, other = [await started(service, name) for name in ("a", "b", "c")]
    old, code = client.cookies[COOKIE], await code_of(target)
    assert (await joined(service, old, code))[0].status == 200
    for stranger in (other, service.client()):
        (await stranger.post(f"{SESSION}/join", code)).refused(403, "forbidden")
    assert await names(other) == ["c"]


async def test_a_join_cannot_be_repeated_when_the_codes_time_is_over(service: Service, clock: Clock) -> None:
    client, target = await started(service, "mine"), await started(service, "theirs")
    old, code = client.cookies[COOKIE], await code_of(target)
    clock.pass_by(9 * MINUTE)
    await joined(service, old, code)
    clock.pass_by(MINUTE)
    (await carrying(service, old).post(f"{SESSION}/join", code)).refused(403, "forbidden")
    assert len(await names(carrying(service, old))) == 2  # nobody has used the new token, so it is not locked out


async def test_a_join_of_a_session_that_has_ended_since_is_refused(service: Service) -> None:
    client, target = await started(service, "mine"), await started(service, "theirs")
    old, code = client.cookies[COOKIE], await code_of(target)
    await joined(service, old, code)
    assert (await target.delete(SESSION)).status == 204
    (await carrying(service, old).post(f"{SESSION}/join", code)).refused(403, "forbidden")


async def test_joins_at_once_by_one_browser_all_succeed(service: Service) -> None:
    client, target = await started(service, "mine"), await started(service, "theirs")
    old, code = client.cookies[COOKIE], await code_of(target)
    results = await asyncio.gather(*(joined(service, old, code) for _ in range(4)))
    assert [answer.status for answer, _ in results] == [200] * 4
    assert len({answer.json()["id"] for answer, _ in results}) == 1
    assert sorted(await names(carrying(service, results[0][1]))) == ["mine", "theirs"]


# --- deletion


async def test_a_deletion_can_be_repeated_for_a_day(service: Service, clock: Clock) -> None:
    client, stranger = await started(service, "a"), await started(service)
    [item] = (await client.get(HISTORY)).json()["items"]
    target = item["links"]["content"]
    assert (await client.delete(target)).status == 204
    clock.pass_by(DAY - MINUTE)
    for _ in range(2):
        assert (await client.delete(target)).status == 204
        (await client.get(target)).refused(404, "not_found")
        (await stranger.delete(target)).refused(404, "not_found")
    clock.pass_by(MINUTE)
    said = {"X-Request-Id": "same"}
    late, foreign, unknown = [
        await who.request("DELETE", where, headers=said)
        for who, where in ((client, target), (stranger, target), (client, target[:-1] + "f"))
    ]
    late.refused(404, "not_found")
    assert late.body == foreign.body == unknown.body


async def test_a_repeated_deletion_removes_what_the_first_had_left(service: Service) -> None:
    """The record was committed, and the process died before it removed the file."""
    client = await started(service, "a")
    [item] = (await client.get(HISTORY)).json()["items"]
    left = service.path_of(item["id"])
    content = left.read_bytes()
    assert (await client.delete(item["links"]["content"])).status == 204
    left.write_bytes(content)
    assert (await client.delete(item["links"]["content"])).status == 204
    assert not left.exists()
