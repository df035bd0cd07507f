"""Property 4. Every refusal is a problem document with a documented code, the matching status and no inner detail."""

import re
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import quote

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.support import tables
from tests.support.asgi import Answer, Client, Service, serving, settings_in
from tests.support.strategies import BOUNDARY, chunkings, form

ABSENT = "0193a1f0-0000-7000-8000-000000000000"
INNER = "/srv/waybill/secret.db"
FORM = f"multipart/form-data; boundary={BOUNDARY}"


def documented() -> dict[str, int]:
    """Every problem code that the page of errors shows, and its status."""
    rows = re.findall(r"^\| (\d{3}) \| `(\w+)` \|", tables.shown("problem codes"), re.MULTILINE)
    return {code: int(status) for status, code in rows}


DOCUMENTED = documented()
NEEDED = {401: "www-authenticate", 405: "allow", 416: "content-range", 503: "retry-after"}
NEVER = re.compile(
    rf"{INNER}|Traceback|File \"|Error\b|Exception|SELECT|INSERT|sqlite|asyncpg|postgres|staging/|/files/../|\.py\b"
)


def check(service: Service, method: str, answer: Answer, *, broken: bool) -> None:
    assert answer.broken is None or broken
    if answer.status < 400:
        return
    assert answer.status in DOCUMENTED.values()
    assert answer["content-type"] == "application/problem+json"
    assert answer["x-request-id"]
    if (needed := NEEDED.get(answer.status)) is not None:
        assert answer[needed]
    if method == "HEAD":
        assert int(answer["content-length"]) > 0
        return
    problem = answer.json()
    answer.refused(DOCUMENTED[problem["code"]], problem["code"])
    assert problem["code"] != "internal" or broken
    said = answer.body.decode()
    assert not NEVER.search(said), said
    assert str(service.state["settings"].storage_dir) not in said
    assert len(said) < 2000


# --- requests of every kind

anything = st.text(st.characters(min_codepoint=0x20, max_codepoint=0xFF, exclude_characters="\x7f"), max_size=40)
escapes = st.lists(
    st.sampled_from(["%00", "%0a", "%ff", "%2e", "%2f", "%5c", "%25", "..", "/", ".", "a", "%C3%A9", "*"]), max_size=6
)
segments = anything.map(lambda text: quote(text.encode("latin-1"), safe="")) | escapes.map("".join)
FILES, HISTORY = "/api/ingestion/files", "/api/ingestion/history"
POSSIBLE = [
    *[("POST", "/api/ingestion/uploads")] * 4,
    *[("PUT", "/api/ingestion/uploads/a.txt")] * 2,
    *[("GET", f"{FILES}/MINE")] * 2,
    *[("GET", HISTORY)] * 3,
    *((method, f"{FILES}/{ABSENT}") for method in ("GET", "HEAD", "DELETE")),
    *((method, f"{HISTORY}/{name}") for method in ("GET", "HEAD") for name in ("MINE", "summary", ABSENT)),
    *(("POST", f"/api/session{end}") for end in ("", "/rotate", "/link", "/join", "/join")),
    *((method, "/api/session") for method in ("GET", "DELETE")),
    ("DELETE", f"{FILES}/MINE"),
    ("GET", "/health/live"),
]
methods = st.sampled_from(["GET", "POST", "PUT", "HEAD", "DELETE", "PATCH", "OPTIONS", "BREW"])
strange = st.one_of(
    st.tuples(st.just("PUT"), segments.map("/api/ingestion/uploads/{}".format)),
    st.tuples(methods, st.builds("/api/ingestion/{}/{}".format, st.sampled_from(["files", "history"]), segments)),
    st.tuples(
        methods, st.sampled_from([path for _, path in POSSIBLE]) | st.builds("/{}/{}".format, segments, segments)
    ),
)
parameters = st.tuples(
    st.sampled_from(
        ["limit", "cursor", "status", "filename", "from", "to", "sha256", "min_size", "order", "count", "format"]
    )
    | segments,
    st.sampled_from(["1", "0", "2026-01-01", "completed", "a", "csv", "ndjson", "oldest", "true", "9" * 19]) | segments,
)
queries = st.lists(parameters.map("=".join), max_size=3).map("&".join)
KNOWN: dict[str, list[str]] = {
    "Content-Type": [FORM, "multipart/form-data", "text/plain", "multipart/form-data; boundary=x"],
    "Content-Disposition": [
        "attachment; filename=a",
        "attachment; filename*=UTF-8''%ff",
        'attachment; filename="a/../b"',
    ],
    "Content-Encoding": ["gzip", "identity", "identity, br"],
    "Content-Range": ["bytes 0-1/2", "bytes 0-1/3", "bytes */2"],
    "Content-Length": ["0", "1", "3", "9" * 18, "9" * 30, "-1", "x"],
    "Transfer-Encoding": ["chunked", "gzip, chunked"],
    "Repr-Digest": ["sha-256=:AAAA:", f"sha-256=:{'A' * 43}=:", "sha-512=:AAAA:"],
    "Content-Digest": [f"sha-256=:{'B' * 42}A=:"],
    "Upload-Complete": ["?0", "?1"],
    "Tus-Resumable": ["1.0.0"],
    "Upgrade": ["h2c", "websocket"],
    "Expect": ["100-continue", "200-ok"],
    "Range": ["bytes=0-1", "bytes=99-", "bytes=0-0,2-2", "bytes=-0"],
    "If-Match": ['"x"', "*"],
    "If-None-Match": ['"x"', "*"],
    "If-Unmodified-Since": ["Sun, 06 Nov 1994 08:49:37 GMT"],
    "If-Range": ['"x"'],
    "Origin": ["https://evil.test", "null", "http://waybill.test"],
    "Sec-Fetch-Site": ["cross-site", "same-origin"],
    "Authorization": ["Bearer x", "Basic x", "Bearer a.1.b"],
    "Cookie": ["waybill_session=x", "waybill_session=a.1.b; waybill_session="],
    "Accept": ["text/csv", "application/x-ndjson", "*/*;q=0"],
    "X-Request-Id": ["mine", "not mine"],
    "Host": ["", "evil.test", "[", "a:b:c"],
}
headers = st.lists(
    st.one_of(
        *(st.tuples(st.just(name), st.sampled_from(values) | anything.map(str.strip)) for name, values in KNOWN.items())
    ),
    max_size=3,
)
WHOLE = form([("a.txt", "text/plain", b"hello"), (None, None, b"field"), ("b.txt", None, b"x" * 40)])[0]
bodies = st.one_of(
    st.just(b""),
    st.binary(max_size=60),
    st.just(WHOLE),
    st.integers(0, len(WHOLE)).map(lambda end: WHOLE[:end]),
    st.tuples(st.integers(0, len(WHOLE) - 1), st.integers(0, 255)).map(
        lambda change: WHOLE[: change[0]] + bytes([change[1]]) + WHOLE[change[0] + 1 :]
    ),
    st.sampled_from([b'{"code": "ABCD"}', b'{"code": 1}', b"x" * 5000]),
)


class Sent(NamedTuple):
    method: str
    target: str
    headers: list[tuple[str, str]]
    chunks: list[bytes]
    hang_up_after: int | None


@st.composite
def requests(draw: st.DrawFn) -> Sent:
    rarely = st.sampled_from([False] * 5 + [True])
    method, path = draw(strange if draw(rarely) else st.sampled_from(POSSIBLE))
    query = draw(queries) if path == HISTORY or draw(st.booleans()) else ""
    fields = draw(headers)
    if method == "POST" and path.endswith("uploads") and not draw(rarely):
        fields.append(("Content-Type", FORM))
    chunks = draw(bodies.flatmap(chunkings)) if method in {"POST", "PUT"} or draw(st.booleans()) else []
    hang_up_after = draw(st.integers(0, len(chunks))) if draw(rarely) else None
    return Sent(method, path + (f"?{query}" if query else ""), fields, chunks, hang_up_after)


async def send(client: Client, upload_id: str, sent: Sent) -> Answer:
    return await client.request(
        sent.method,
        sent.target.replace("MINE", upload_id),
        headers=sent.headers,
        body=sent.chunks,
        hang_up_after=sent.hang_up_after,
    )


@pytest.fixture
async def service(tmp_path: Path, database_url: str, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Service]:
    limits = {"max_file_size": 3000, "max_request_size": 4000, "max_files_per_request": 2}
    async with serving(settings_in(tmp_path, database_url, **limits)) as running:
        yield running


async def visitor(service: Service) -> tuple[Client, str]:
    """A client with a session, and the upload that it has."""
    client = service.client()
    return client, (await client.put("mine.txt", b"0123456789")).json()["id"]


@given(sent=requests())
async def test_any_request_is_answered_or_refused_in_the_documented_way(service: Service, sent: Sent) -> None:
    client, upload_id = await visitor(service)
    answer = await send(client, upload_id, sent)
    check(service, sent.method, answer, broken=False)
    # And nothing of it harms the next one.
    assert (await service.client().put("next", b"x")).status == 201


INSIDE = ["storage.stage", "storage.publish", "storage.open", "storage.remove", "db.one", "db.many", "db.transaction"]
ERRORS = [RuntimeError(INNER), OSError(5, "Input/output error", INNER), ValueError(f"SELECT {INNER}"), KeyError(INNER)]


@given(sent=requests(), broken=st.sets(st.sampled_from(INSIDE), min_size=1), error=st.sampled_from(ERRORS))
async def test_an_internal_failure_is_not_described_to_the_client(
    service: Service, sent: Sent, broken: set[str], error: Exception
) -> None:
    client, upload_id = await visitor(service)

    def breaks(*arguments: Any, **others: Any) -> Any:
        raise error

    with pytest.MonkeyPatch.context() as patch:
        for place in broken:
            owner, _, name = place.partition(".")
            patch.setattr(service.state[owner], name, breaks)  # type: ignore[literal-required]
        service.state["sessions"]._known.clear()  # it has to ask
        answer = await send(client, upload_id, sent)
    check(service, sent.method, answer, broken=True)
    assert INNER.encode() not in answer.body
    assert all(INNER not in value for _, value in answer.headers)
    assert (await service.client().put("next", b"x")).status == 201


def test_the_page_of_errors_shows_codes_and_statuses() -> None:
    assert {"bad_request": 400, "too_many_files": 413, "internal": 500}.items() <= DOCUMENTED.items()
