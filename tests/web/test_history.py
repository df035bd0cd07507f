"""The history: every filter against a plain Python model, pages by cursor, and what a query may not be."""

import hashlib
import json
import re
import time
import unicodedata
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any
from urllib.parse import quote, urlencode

import pytest
import pytest_asyncio
from hypothesis import given
from hypothesis import strategies as st

from app.model import Failure, Protocol, Status, Upload
from app.protocols.filenames import searched_name
from app.signing import Signer
from app.uploads import records as upload_records
from tests.support.asgi import SECRET_KEY, Client, Service

pytestmark = pytest.mark.asyncio(loop_scope="module")

HISTORY = "/api/ingestion/history"
COUNT = 60
NAMES = (
    "report.pdf", "Report Q3.PDF", "STRASSE.txt", "straße.txt", "100% sure_.txt", "a_b", "a%b", "axb", "back[slash]",
    "émile.txt", "日本語.txt", "e.tar.gz", "[x](y)", "it's.txt", 'say "hi"', "İstanbul", "ΣΊΣΥΦΟΣ", "what?", "star*",
)  # fmt: skip
EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
SECOND = 1_000_000
START = int((datetime(2026, 3, 1, 12, tzinfo=UTC) - EPOCH).total_seconds()) * SECOND


TYPES = (None, "text/plain", "Text/HTML; charset=utf-8", "image/png", "image/svg+xml", "imagex/png")
PATHS = (None, "photos/2026/a.jpg", "Photos/b_c.JPG", "straße/100%.txt", "a/b")
PAIRS = (
    {}, {"album": "Summer"}, {"album": "summer", "a.b": '"'}, {"album": "x","note": 'x","album":"Summer'},
    {"n": "", "album": "Summer"}, {"note": "back\\slash %_ ü"},
)  # fmt: skip


def id_of(number: int) -> str:
    return f"00000000-0000-7000-8000-{number * 7919 % 1_000_003:012d}"  # not in the order of time


def some_upload(session_id: str, number: int) -> Upload:
    """One of a colourful lot: several of the same moment, every status, protocol and size."""
    status = list(Status)[number % 6]
    present = status in {Status.COMPLETED, Status.DELETED}
    step = number % 1000 // 3
    created = START + step * 37 * SECOND + step**2
    return Upload(
        id=id_of(number),
        session_id=session_id,
        filename=NAMES[number % len(NAMES)],
        content_type=TYPES[number % len(TYPES)],
        size=(number % 10) ** 3,
        sha256=hashlib.sha256(bytes([number % 4])).hexdigest() if present else None,
        status=status,
        protocol=list(Protocol)[number % 4],
        created_at=created,
        completed_at=created + number if present else None,
        error=Failure(code="too_large", detail="=1+1") if status is Status.FAILED else None,
        metadata=PAIRS[number // 2 % len(PAIRS)],
        path=PATHS[number // 3 % len(PATHS)],
        keep_us=number * SECOND if number % 3 == 0 and number else None,
    )


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def client(service: Service) -> Client:
    """A client whose history holds COUNT uploads, beside a stranger with the same ones."""
    for number in range(2):
        visitor = service.client()
        session_id = (await visitor.post("/api/session")).json()["id"]
        lot = [some_upload(session_id, number * 1000 + each) for each in range(COUNT)]
        await upload_records.insert_uploads(service.state["db"], lot)
    return visitor


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def everything(client: Client) -> list[dict[str, Any]]:
    answer = await client.get(f"{HISTORY}?limit=500")
    items: list[dict[str, Any]] = answer.json()["items"]
    assert len(items) == COUNT
    return items


# --- the model


def folded(text: str) -> str:
    return unicodedata.normalize("NFC", unicodedata.normalize("NFC", text).casefold())


def name_matches(wanted: str, filename: str) -> bool:
    wanted = searched_name(wanted)
    if "*" in wanted or "?" in wanted:
        pattern = "".join({"*": ".*", "?": "."}.get(letter, re.escape(letter)) for letter in folded(wanted))
        return re.fullmatch(pattern, folded(filename), re.DOTALL) is not None
    return folded(wanted) in folded(filename)


def moment(text: str) -> datetime:
    if len(text) == 10:
        text += "T00:00:00Z"
    return datetime.fromisoformat(text)


def is_of_type(given: str, found: str | None) -> bool:
    essence = (found or "").partition(";")[0].lower()
    return any(
        essence == wanted or (wanted.endswith("/*") and essence.startswith(wanted[:-1]))
        for wanted in given.lower().split(",")
    )


def path_matches(wanted: str, path: str | None) -> bool:
    pattern = "".join({"*": ".*", "?": "."}.get(letter, re.escape(letter)) for letter in folded(wanted))
    return path is not None and re.fullmatch(pattern, folded(path), re.DOTALL) is not None


FILTERS: dict[str, Callable[[str, dict[str, Any]], bool]] = {
    "status": lambda given, item: item["status"] in given.split(","),
    "filename": lambda given, item: name_matches(given, item["filename"]),
    "from": lambda given, item: moment(item["created_at"]) >= moment(given),
    "to": lambda given, item: moment(item["created_at"]) < moment(given),
    "sha256": lambda given, item: item["sha256"] == given.lower(),
    "protocol": lambda given, item: item["protocol"] == given,
    "min_size": lambda given, item: item["size"] >= int(given),
    "max_size": lambda given, item: item["size"] <= int(given),
    "id": lambda given, item: item["id"] in given.split(","),
    "content_type": lambda given, item: is_of_type(given, item["content_type"]),
    "path": lambda given, item: path_matches(given, item["path"]),
    **{
        f"metadata.{name}": lambda given, item, name=name: item["metadata"].get(name) == given
        for name in ("album", "a.b", "n", "note", "nobody")
    },
}
KEYS: dict[str, Callable[[dict[str, Any]], Any]] = {
    "newest": lambda item: item["created_at"],
    "oldest": lambda item: item["created_at"],
    "name": lambda item: folded(item["filename"]),
    "size": lambda item: item["size"],
}


def expected(everything: list[dict[str, Any]], query: dict[str, str]) -> list[dict[str, Any]]:
    found = [item for item in everything if all(FILTERS[name](query[name], item) for name in FILTERS.keys() & query)]
    order = query.get("order", "newest")
    key = KEYS[order.removeprefix("-")]
    found.sort(key=lambda item: (key(item), item["id"]), reverse=order == "newest" or order.startswith("-"))
    return found


async def walk(client: Client, query: dict[str, str]) -> list[dict[str, Any]]:
    """Every page, one after the other, each checked for what a page must have."""
    items: list[dict[str, Any]] = []
    total = len(items)
    target = f"{HISTORY}?{urlencode(query)}"
    while True:
        answer = await client.get(target)
        assert answer.status == 200, answer.body
        page = answer.json()
        limit = int(query.get("limit", 50))
        assert page["limit"] == limit
        assert page["skipped"] == 0
        assert len(page["items"]) == limit or page["next_cursor"] is None
        assert len(page["items"]) <= limit
        items += page["items"]
        total = page.get("total", total)
        if page["next_cursor"] is None:
            assert answer.all("link") == []
            if query.get("count") == "true":
                assert total == len(items)
            return items
        target = next_of(answer["link"])
        assert f"cursor={quote(page['next_cursor'], safe='')}" in target


def next_of(link: str) -> str:
    found = re.fullmatch(r'<([!-;=?-~]+)>; rel="next"', link)
    assert found, link
    return found[1]


# --- what is found


SINGLE = [
    {},
    *({"status": status.value} for status in Status),
    {"status": "completed,deleted"},
    *({"protocol": protocol.value} for protocol in Protocol),
    *({"filename": wanted} for wanted in (
        "report", "REPORT", "strasse", "STRAẞE", "%", "_", "a%b", "a_b", "\\", "[", "e", "É", "e\u0301", ".txt", "日本",
        "'", '"', "*", "?*", "*.txt", "a?b", "report.*", "Rep*3*", "?????????", "*_*", "*%*", "ΣΊΣΥΦΟς", "i̇stanbul",
        "nothing", "x" * 255, " ", "a b", "*" * 50,
    )),
    *({"sha256": hashlib.sha256(bytes([number])).hexdigest()} for number in range(3)),
    {"sha256": hashlib.sha256(b"\0").hexdigest().upper()},
    {"min_size": "0"}, {"min_size": "1"}, {"max_size": "0"}, {"max_size": "26"}, {"min_size": "27", "max_size": "27"},
    {"min_size": "9223372036854775807"}, {"max_size": "9223372036854775807"},
    {"from": "2026-03-01"}, {"to": "2026-03-01"}, {"from": "2026-03-02"}, {"to": "2026-03-02"}, {"from": "1970-01-01"},
    {"from": "2026-03-01T12:05:00Z"}, {"to": "2026-03-01T12:05:00Z"}, {"to": "9999-12-31T23:59:59.999999Z"},
    {"from": "2026-03-01T14:05:00.5+02:00", "to": "2026-03-01t11:06:10.123456-00:59"},
    *({"order": order} for order in ("oldest", "newest", "name", "-name", "size", "-size")),
    {"id": id_of(1003)}, {"id": ",".join(id_of(1000 + number) for number in range(0, 40, 3))}, {"id": id_of(3)},
    *({"content_type": kind} for kind in (
        "text/plain", "TEXT/html", "image/*", "image/png", "image/p_g", "text/*,image/svg+xml", "video/*",
    )),
    *({"path": path} for path in (
        "photos/*", "PHOTOS/*", "*", "*.jpg", "photos/2026/a.jpg", "photos", "STRASSE/100%.txt", "a_b", "*_*", "?/?",
    )),
    *({"metadata.album": value} for value in ("Summer", "summer", "x", "nothing", "")),
    {"metadata.n": ""}, {"metadata.a.b": '"'}, {"metadata.note": "back\\slash %_ ü"}, {"metadata.nobody": "x"},
    {"metadata.album": "Summer", "metadata.n": ""}, {"metadata.album": "Summer", "metadata.a.b": '"'},
    {"metadata.album": "Summer", "order": "name"}, {"status": "completed", "order": "-size"},
    {"path": "photos/*", "order": "oldest", "filename": "e", "min_size": "1"},
]  # fmt: skip


@pytest.mark.parametrize("query", SINGLE, ids=str)
async def test_a_filter_finds_what_a_plain_search_finds(
    client: Client, everything: list[dict[str, Any]], query: dict[str, str]
) -> None:
    for paging in ({}, {"limit": "7", "count": "true"}):
        assert await walk(client, query | paging) == expected(everything, query)


async def test_each_filter_leaves_something_out_and_something_in(everything: list[dict[str, Any]]) -> None:
    """Else the tests above would say little."""
    for name in FILTERS.keys() - {"metadata.nobody"}:
        sizes = {len(expected(everything, query)) for query in SINGLE if name in query}
        assert any(0 < size < COUNT for size in sizes), name


async def test_bounds_are_exact_to_the_microsecond(client: Client, everything: list[dict[str, Any]]) -> None:
    for item in everything[::7]:
        same = [each for each in everything if each["created_at"] == item["created_at"]]
        at = item["created_at"]
        after = (moment(at) + timedelta(microseconds=1)).isoformat()
        assert await walk(client, {"from": at, "to": after}) == same
        for order in ("newest", "oldest"):
            for query in ({"from": at, "order": order}, {"to": at, "order": order}):
                assert await walk(client, {**query, "limit": "2"}) == expected(everything, query)


async def test_a_date_is_midnight_utc_wherever_the_machine_stands(
    client: Client, everything: list[dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    try:
        with monkeypatch.context() as patch:
            patch.setenv("TZ", "Pacific/Kiritimati")  # noon in London is the next day there
            time.tzset()
            assert await walk(client, {"from": "2026-03-01", "to": "2026-03-02"}) == everything
            assert await walk(client, {"from": "2026-03-02"}) == []
            assert await walk(client, {"to": "2026-03-01"}) == []
    finally:
        time.tzset()


def times() -> st.SearchStrategy[str]:
    return st.integers(-100, COUNT // 3 * 37 + 100).map(
        lambda seconds: (EPOCH + timedelta(microseconds=START + seconds * SECOND)).isoformat().replace("+00:00", "Z")
    )


@st.composite
def queries(draw: st.DrawFn) -> dict[str, str]:
    """Any combination of filters that does not contradict itself."""
    fragments = st.sampled_from(["a", "e", "T", ".", "x", "*", "?", "%", "_", "ß", "日", "report", " "])
    query = draw(
        st.fixed_dictionaries(
            {},
            optional={
                "status": st.lists(st.sampled_from([*Status]), min_size=1, max_size=4).map(",".join),
                "filename": st.lists(fragments, min_size=1, max_size=4).map("".join),
                "from": times(),
                "to": times(),
                "sha256": st.integers(0, 4).map(lambda number: hashlib.sha256(bytes([number])).hexdigest()),
                "protocol": st.sampled_from([*Protocol]).map(str),
                "min_size": st.integers(0, 800).map(str),
                "max_size": st.integers(0, 800).map(str),
                "id": st.lists(st.integers(0, COUNT), min_size=1, max_size=50).map(
                    lambda numbers: ",".join(id_of(1000 + number) for number in numbers)
                ),
                "content_type": st.sampled_from(["image/*", "text/plain", "text/*,image/png", "a/b"]),
                "path": st.lists(fragments | st.sampled_from(["photos", "/"]), min_size=1, max_size=4).map("".join),
                "metadata.album": st.sampled_from(["Summer", "summer", "x"]),
                "metadata.n": st.just(""),
                "order": st.sampled_from(["newest", "oldest", "name", "-name", "size", "-size"]),
                "limit": st.integers(1, 500).map(str) | st.integers(1, 5).map(str),
                "count": st.sampled_from(["true", "false"]),
            },
        )
    )
    for low, high, number in (("from", "to", str), ("min_size", "max_size", int)):
        if low in query and high in query and number(query[low]) >= number(query[high]):
            del query[high]
    return query


@given(query=queries())
async def test_any_combination_finds_what_a_plain_search_finds(
    client: Client, everything: list[dict[str, Any]], query: dict[str, str]
) -> None:
    assert await walk(client, query) == expected(everything, query)


async def test_a_status_may_be_repeated_instead(client: Client, everything: list[dict[str, Any]]) -> None:
    for query in ("status=failed&status=deleted", "status=deleted,failed&status=failed"):
        answer = await client.get(f"{HISTORY}?{query}&limit=500")
        assert answer.json()["items"] == expected(everything, {"status": "failed,deleted"})


async def test_a_page_has_fifty_records_by_default(client: Client) -> None:
    page = (await client.get(HISTORY)).json()
    assert (page["limit"], len(page["items"])) == (50, 50)
    assert page.keys() == {"items", "next_cursor", "limit", "skipped"}
    assert (await client.get(f"{HISTORY}?count=true")).json()["total"] == COUNT
    assert "total" not in (await client.get(f"{HISTORY}?count=false")).json()


async def test_a_page_is_not_kept_by_caches(client: Client) -> None:
    for target in (HISTORY, f"{HISTORY}?format=csv", f"{HISTORY}/summary", f"{HISTORY}/{id_of(1001)}"):
        assert (await client.get(target)).all("cache-control") == ["no-store"]
    assert (await client.get(HISTORY))["vary"] == "Accept"


async def test_new_uploads_move_no_page(service: Service) -> None:
    client = service.client()
    first = [(await client.put(f"{number}", b"")).json()["filename"] for number in range(4)]
    page = await client.get(f"{HISTORY}?limit=2")
    await client.put("new", b"")
    rest = await client.get(next_of(page["link"]))
    seen = [item["filename"] for item in page.json()["items"] + rest.json()["items"]]
    assert seen == first[::-1]
    oldest = await client.get(f"{HISTORY}?limit=4&order=oldest")
    assert oldest.json()["next_cursor"] is not None
    assert [item["filename"] for item in (await client.get(next_of(oldest["link"]))).json()["items"]] == ["new"]


async def test_a_single_record_is_the_one_in_the_list(client: Client, everything: list[dict[str, Any]]) -> None:
    for item in everything:
        answer = await client.get(item["links"]["self"])
        assert (answer.status, answer.json()) == (200, item)
    (await client.get(f"{HISTORY}/{id_of(1)}")).refused(404, "not_found")  # the stranger's


async def test_the_summary_adds_up(client: Client, everything: list[dict[str, Any]]) -> None:
    told = (await client.get(f"{HISTORY}/summary")).json()
    by_status = {
        status.value: {
            "uploads": sum(item["status"] == status for item in everything),
            "bytes": sum(item["size"] for item in everything if item["status"] == status),
        }
        for status in Status
    }
    assert told == {
        "uploads": COUNT,
        "bytes": sum(item["size"] for item in everything),
        "by_status": by_status,
        "first_created_at": everything[-1]["created_at"],
        "last_created_at": everything[0]["created_at"],
        "quota": {
            "used": by_status["completed"]["bytes"],
            "limit": None,
            "left": None,
            "uploads": {"used": by_status["completed"]["uploads"], "limit": None, "left": None},
        },
    }


async def test_a_summary_of_nothing_is_zero(service: Service) -> None:
    client = service.client()
    await client.post("/api/session")
    told = (await client.get(f"{HISTORY}/summary")).json()
    assert (told["uploads"], told["bytes"], told["first_created_at"], told["last_created_at"]) == (0, 0, None, None)
    assert told["by_status"].keys() == {status.value for status in Status}
    page = (await client.get(f"{HISTORY}?count=true")).json()
    assert page == {"items": [], "next_cursor": None, "limit": 50, "skipped": 0, "total": 0}


# --- cursors


async def test_a_changed_cursor_is_refused(client: Client) -> None:
    cursor = (await client.get(f"{HISTORY}?limit=2")).json()["next_cursor"]
    changed = [cursor[:at] + ("A" if cursor[at] != "A" else "B") + cursor[at + 1 :] for at in range(len(cursor))]
    others = [
        "",
        ".",
        "x",
        cursor + "=",
        cursor + "x",
        cursor[:-1],
        cursor * 2,
        cursor.upper(),
        "é",
        "\0",
        "a" * 10_000,
    ]
    signed = Signer([SECRET_KEY], "session").sign(cursor.rpartition(".")[0])
    for text in [*changed, *others, signed]:
        (await client.get(f"{HISTORY}?limit=2&cursor={quote(text, safe='')}")).refused(400, "bad_cursor")
    assert (await client.get(f"{HISTORY}?limit=2&cursor={quote(cursor, safe='')}")).status == 200


async def test_a_cursor_belongs_to_its_session_and_its_filters(service: Service, client: Client) -> None:
    query = {"status": "completed,failed", "min_size": "1", "order": "oldest"}
    first = await client.get(f"{HISTORY}?{urlencode({**query, 'limit': '2'})}")
    cursor = first.json()["next_cursor"]
    for change in (
        {"status": "completed"}, {"min_size": "2"}, {"order": "newest"}, {"filename": "a"}, {"max_size": "1000"},
        {"protocol": "tus"}, {"from": "2026-01-01"}, {"to": "2027-01-01"}, {"sha256": "0" * 64},
    ):  # fmt: skip
        answer = await client.get(f"{HISTORY}?{urlencode({**query, **change, 'cursor': cursor})}")
        answer.refused(400, "bad_cursor")
    stranger = service.client()
    await stranger.post("/api/session")
    (await stranger.get(f"{HISTORY}?{urlencode({**query, 'cursor': cursor})}")).refused(400, "bad_cursor")
    for same in ({"limit": "9"}, {"count": "true"}, {"format": "json"}):  # not what is found, but how it is shown
        assert (await client.get(f"{HISTORY}?{urlencode({**query, **same, 'cursor': cursor})}")).status == 200


async def test_a_cursor_is_opaque(client: Client, everything: list[dict[str, Any]]) -> None:
    answer = await client.get(f"{HISTORY}?limit=2&filename={quote('a*')}&count=true")
    cursor = answer.json()["next_cursor"]
    assert re.fullmatch(r"[A-Za-z0-9._-]+", cursor)
    assert next_of(answer["link"]) == f"{HISTORY}?limit=2&filename=a%2A&count=true&cursor={cursor}"


# --- what a query may not be


BAD = {
    "limit": ["0", "501", "-1", "1e9", "abc", "", "+5", "%205", "5.0", "0x5", "%D9%A3", "9" * 5000],
    "status": ["", "done", "completed,", "Completed", "completed%00"],
    "filename": ["", "x" * 256, "%00", "a%00b", "x" * 100_000],
    "from": [
        "", "yesterday", "2026", "2026-02-30", "2026-13-01", "2026-W01-1", "1767225600", "2026-01-01T00:00:00",
        "2026-01-01T00:00Z", "2026-01-01T24:00:00Z", "2026-01-01T00:00:00%2B24:00", "2026-01-01+02:00",
        "2026-01-01T00:00:00.Z", "0001-01-01", "1969-12-31", "10000-01-01", "9999-12-31T23:59:59-23:59",
        "%D9%A2%D9%A0%D9%A2%D9%A6-01-01", "2026-01-01%0A",
    ],
    "to": ["", "soon", "9999-12-31T23:59:59-01:00", "0001-01-01T00:00:00%2B23:59"],
    "sha256": ["", "abc", "g" * 64, "0" * 65],
    "protocol": ["", "ftp", "raw,form", "RAW"],
    "min_size": ["", "-1", "1.5", "%D9%A3"],
    "max_size": ["", "9223372036854775808", "10MiB"],
    "order": ["", "random", "NEWEST"],
    "count": ["", "1", "True"],
    "format": ["", "xml", "CSV"],
    "bom": ["", "1", "true"],
    "page": ["2"],
    "session_id": ["x"],
    "Limit": ["5"],
    "limit[]": ["5"],
}  # fmt: skip
BAD_TOGETHER = [
    *((f"{name}={value}&{name}={value}", name) for name, value in (
        ("limit", "5"), ("filename", "a"), ("from", "2026-01-01"), ("to", "2026-01-01"), ("sha256", "0" * 64),
        ("protocol", "raw"), ("min_size", "1"), ("max_size", "1"), ("order", "newest"), ("count", "true"),
        ("format", "csv"), ("cursor", "x"),
    )),
    ("status=completed&status=x", "status"),
    ("from=2026-01-02&to=2026-01-01", "to"),
    ("from=2026-01-01&to=2026-01-01", "to"),
    ("from=2026-01-01T00:00:00.000001Z&to=2026-01-01", "to"),
    ("min_size=2&max_size=1", "max_size"),
    ("=5", ""),
    ("%0d%0aX:y=1", "a parameter"),
    ("x" * 41 + "=1", "a parameter"),
    ("%F0%9F%92%A9=1", "a parameter"),
    ("filename=%ff", "a parameter"),
    ("filename=%ED%A0%80", "a parameter"),
    ("%ff=1", "a parameter"),
]  # fmt: skip


@pytest.mark.parametrize(
    ("query", "parameter"),
    [*((f"{name}={value}", name) for name, values in BAD.items() for value in values), *BAD_TOGETHER],
    ids=lambda text: text[:40],
)
async def test_a_query_is_understood_as_a_whole_or_refused(client: Client, query: str, parameter: str) -> None:
    problem = (await client.get(f"{HISTORY}?{query}")).refused(400, "bad_query")
    assert problem["parameter"] == parameter
    assert problem["detail"].startswith(f"{parameter}: expected ")
    assert len(problem["detail"]) < 200  # what was sent is not sent back


async def test_a_stream_has_no_cursor(client: Client) -> None:
    cursor = (await client.get(f"{HISTORY}?limit=2")).json()["next_cursor"]
    for headers, query in (({}, "format=csv&"), ({"Accept": "application/x-ndjson"}, "")):
        answer = await client.get(f"{HISTORY}?{query}cursor={cursor}", headers=headers)
        assert answer.refused(400, "bad_query")["parameter"] == "cursor"


async def test_a_plus_that_was_not_escaped_in_a_time_is_a_plus(client: Client) -> None:
    moment = "2026-03-01T14:05:00"
    escaped = (await client.get(f"{HISTORY}?from={moment}%2B02:00&to={moment}%2B01:00")).json()
    plain = (await client.get(f"{HISTORY}?from={moment}+02:00&to={moment}+01:00")).json()
    assert plain["items"] == escaped["items"] != []


@pytest.mark.parametrize(
    ("sent", "asked"),
    [
        ("خانه\u200cها.txt", "خانه\u200cها.txt"),
        ("👨\u200d👩\u200d👧.png", "👨\u200d👩\u200d👧.png"),
        ("a\u200fb.txt", "a\u200fb.txt"),
        ("C:\\fakepath\\report.txt", "C:\\fakepath\\report.txt"),
        ("2026/11/report.txt", "2026/11/report.txt"),
        ("\u00a0report.txt", "\u00a0report.txt"),
        (unicodedata.normalize("NFD", "한글 문서.hwp"), unicodedata.normalize("NFD", "한글 문서.hwp")),
    ],
)
async def test_the_name_that_was_sent_finds_its_upload(service: Service, sent: str, asked: str) -> None:
    client = service.client()
    stored = (await client.put(quote(sent, safe=""), b"x")).json()
    [found] = (await client.get(f"{HISTORY}?{urlencode({'filename': asked})}")).json()["items"]
    assert found["id"] == stored["id"]


async def test_an_empty_query_asks_for_everything(client: Client) -> None:
    for query in ("?", "?&", "?&&limit=50"):
        assert (await client.get(f"{HISTORY}{query}")).status == 200


# --- rows that break the model


def odd_row(session_id: str, number: int, **changes: Any) -> dict[str, Any]:
    return some_upload(session_id, 6000 + number).as_row() | {"id": f"{number:036d}"} | changes


BROKEN = [
    {"filename": "a/b"},
    {"filename": "line\nbreak"},
    {"sha256": "Z" * 64, "status": "completed", "completed_at_us": START * 2, "error_code": None, "error_detail": None},
    {"id": "€_wéird_id" + "." * 26},
    {"id": "A" * 36},
    {"content_type": "x" * 300},
    {"metadata": "no JSON"},
    {"metadata": '{"album":1}', "path": "a//b"},
]


async def test_a_broken_row_is_left_out_and_counted_and_ends_nothing(service: Service) -> None:
    client = service.client()
    session_id = (await client.post("/api/session")).json()["id"]
    sound = [some_upload(session_id, 3000 + number) for number in range(12)]
    rows = [upload.as_row() for upload in sound]
    rows += [odd_row(session_id, number, **change) for number, change in enumerate(BROKEN, start=1)]
    await service.state["db"].run("insert_uploads", rows=json.dumps(rows))
    names = sorted(upload.id for upload in sound)
    for order in ("newest", "oldest"):
        for limit in (1, 2, 5, 500):  # in the smallest pages a broken row is the last, and the cursor comes from it
            target, seen, skipped, pages = f"{HISTORY}?limit={limit}&order={order}&count=true", [], 0, 0
            while target:
                answer = await client.get(target)
                assert answer.status == 200
                page = answer.json()
                seen += [item["id"] for item in page["items"]]
                skipped += page["skipped"]
                pages += 1
                assert page["total"] == len(rows)
                target = next_of(answer["link"]) if page["next_cursor"] else ""
            assert sorted(seen) == names
            assert skipped == len(BROKEN)
            assert pages == -(-len(rows) // limit)
    (await client.get(f"{HISTORY}/{1:036d}")).refused(404, "not_found")
    for format_ in ("csv", "ndjson"):
        lines = (await client.get(f"{HISTORY}?format={format_}")).body.decode().splitlines()
        assert sorted(re.search("[0-9a-f-]{36}", line)[0] for line in lines[format_ == "csv" :]) == names
    for query in ("metadata.album=Summer", "order=name", "order=-size", "path=*", "content_type=text/plain"):
        assert (await client.get(f"{HISTORY}?{query}&count=true")).status == 200
    assert (await client.get(f"{HISTORY}/summary")).status == 200
    assert (await client.get("/api/session")).status == 200
