"""The page as people without JavaScript see it: its texts, its form, its list, and its refusals in words."""

import html
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from app.errors import Unavailable
from app.sessions import totals_records
from app.web.languages import languages
from tests.support.asgi import Answer, Client, Service, serving, settings_in
from tests.support.strategies import BOUNDARY, form

pytestmark = pytest.mark.asyncio(loop_scope="module")

OWN = {"Origin": "http://waybill.test"}
HISTORY = "/api/ingestion/history"
MARKUP = "<script>alert(1)</script>'\" & {{ 7*7 }}.txt"


class Page(HTMLParser):
    """A page as a browser without JavaScript reads it."""

    def __init__(self, answer: Answer) -> None:
        super().__init__()
        assert answer["content-type"] == "text/html; charset=utf-8", answer.body
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.texts: list[str] = []
        self._within: list[str] = []
        self.feed(answer.body.decode("utf-8"))

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag in {"script", "style"}:
            self._within.append(tag)

    def handle_endtag(self, tag: str) -> None:
        if self._within and self._within[-1] == tag:
            self._within.pop()

    def handle_data(self, data: str) -> None:
        if not self._within:
            self.texts.append(data)

    def all(self, tag: str, **wanted: str) -> list[dict[str, str | None]]:
        return [attrs for name, attrs in self.tags if name == tag and all(attrs.get(k) == v for k, v in wanted.items())]

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.texts).split())


def fields(*pairs: tuple[str, str]) -> tuple[bytes, dict[str, str]]:
    """A form of plain fields, and the headers of its request."""
    parts = [f'--{BOUNDARY}\r\nContent-Disposition: form-data; name="{n}"\r\n\r\n{v}\r\n' for n, v in pairs]
    return "".join([*parts, f"--{BOUNDARY}--\r\n"]).encode(), kind(f"multipart/form-data; boundary={BOUNDARY}")


def kind(content_type: str) -> dict[str, str]:
    return {**OWN, "Content-Type": content_type}


async def send(client: Client, *files: tuple[str | None, str | None, bytes], **more: str) -> Answer:
    body, content_type = form(files)
    return await client.post("/", body, headers={**kind(content_type), **more})


async def uploaded(client: Client, *names: str) -> list[dict[str, Any]]:
    """Files sent by the form of the page, as the API shows them."""
    answer = await send(client, *((name, "text/plain", name.encode()) for name in names))
    assert (answer.status, answer["location"], answer.body) == (303, "/", b"")
    items = (await client.get(HISTORY)).json()["items"]
    return list(reversed(items[: len(names)]))


# --- the page


async def test_the_page_has_a_form_and_sets_no_cookie(service: Service) -> None:
    client = service.client()
    answer = await client.get("/")
    page = Page(answer)
    assert answer.status == 200
    assert answer["cache-control"] == "no-store"
    assert answer.all("set-cookie") == []
    [sending] = page.all("form", method="post", action="/", enctype="multipart/form-data")[:1]
    assert sending is not None
    assert page.all("input", type="file", name="file")
    assert "Waybill" in page.text


async def test_files_are_uploaded_by_the_form_and_listed_with_links(service: Service) -> None:
    client = service.client()
    one, two = await uploaded(client, "one.txt", "two.txt")
    page = Page(await client.get("/"))
    for item in (one, two):
        assert page.all("a", href=item["links"]["content"])
        assert page.all("button", name="delete", value=item["id"])
        assert item["filename"] in page.text
    assert (await client.get(one["links"]["content"])).body == b"one.txt"
    assert (one["protocol"], one["content_type"]) == ("form", "text/plain")


async def test_the_form_begins_a_session_of_which_everything_is_kept(service: Service) -> None:
    client = service.client()
    answer = await send(client, ("a.txt", None, b"x"))
    assert "HttpOnly; SameSite=Lax" in answer["set-cookie"]
    assert (await send(client, ("b.txt", None, b"y"))).all("set-cookie") == []
    assert (await client.get("/api/session")).json()["uploads"] == 2


@pytest.mark.parametrize("size", [1, 2, 7, 64, 100])
async def test_a_form_is_understood_however_it_is_cut(service: Service, size: int) -> None:
    client = service.client()
    body, content_type = form([("a b.txt", "text/plain", b"one" * 40), ("c", None, b"")])
    cut = [body[at : at + size] for at in range(0, len(body), size)]
    assert (await client.post("/", cut, headers=kind(content_type))).status == 303
    second, first = (await client.get(HISTORY)).json()["items"]
    assert [(item["filename"], item["size"]) for item in (first, second)] == [("a b.txt", 120), ("c", 0)]
    body, headers = fields(("delete", first["id"]))
    cut = [body[at : at + size] for at in range(0, len(body), size)]
    assert (await client.post("/", cut, headers=headers)).status == 303
    (await client.get(first["links"]["content"])).refused(404, "not_found")


async def test_a_form_that_breaks_off_is_recorded_as_failed(service: Service) -> None:
    client = service.client()
    await uploaded(client, "before")
    body, content_type = form([("cut.txt", None, b"x" * 1000)])
    answer = await client.post("/", [body[:500], body[500:]], headers=kind(content_type), hang_up_after=1)
    assert answer.status in {0, 400}
    [cut] = (await client.get(f"{HISTORY}?status=failed")).json()["items"]
    assert (cut["filename"], cut["error"]["code"]) == ("cut.txt", "incomplete_body")
    assert service.staged() == []


async def test_a_name_full_of_markup_is_text(service: Service) -> None:
    client = service.client()
    [item] = await uploaded(client, MARKUP)
    answer = await client.get("/")
    assert b"<script>alert(1)" not in answer.body
    assert item["filename"] in html.unescape(answer.body.decode())


async def test_a_history_is_paged_by_links_to_its_end(service: Service) -> None:
    client = service.client()
    names = [f"file-{number:03}.txt" for number in range(120)]
    for at in (0, 60):
        await uploaded(client, *names[at : at + 60])
    seen: list[str] = []
    target = "/"
    for length in (50, 50, 20):
        page = Page(await client.get(target))
        here = [attrs["value"] for attrs in page.all("button", name="delete")]
        assert len(here) == length
        seen += [value for value in here if value]
        older = [a["href"] for a in page.all("a") if (a.get("href") or "").startswith("/?cursor=")]
        assert bool(older) == (length == 50)
        assert bool(page.all("a", href="/")) == (target != "/")
        target = older[0] or "" if older else target
    everything = (await client.get(f"{HISTORY}?limit=500")).json()["items"]
    assert seen == [item["id"] for item in everything]


async def test_a_cursor_of_the_api_opens_the_page_behind_it(service: Service) -> None:
    client = service.client()
    await uploaded(client, *(f"{number}" for number in range(52)))
    shown = "uploading,processing,completed,failed,expired"
    cursor = (await client.get(f"{HISTORY}?status={shown}&limit=51")).json()["next_cursor"]
    page = Page(await client.get(f"/?cursor={cursor}&utm_source=mail"))
    assert len(page.all("button", name="delete")) == 1


# --- deleting


async def test_a_button_deletes_its_file(service: Service) -> None:
    client = service.client()
    one, two, three = await uploaded(client, "one", "two", "three")
    body, headers = fields(("delete", one["id"]))
    answer = await client.post("/", body, headers=headers)
    assert (answer.status, answer["location"]) == (303, "/")
    assert (await client.post("/", body, headers=headers)).status == 303  # a second click, within a day
    (await client.get(one["links"]["content"])).refused(404, "not_found")
    page = Page(await client.get("/"))
    assert [attrs["value"] for attrs in page.all("button", name="delete")] == [three["id"], two["id"]]
    body, headers = fields(("delete", two["id"]), ("delete", three["id"]))
    assert (await client.post("/", body, headers=headers)).status == 303
    assert Page(await client.get("/")).all("button", name="delete") == []


async def test_a_file_is_deleted_on_a_full_disk(service: Service, monkeypatch: pytest.MonkeyPatch) -> None:
    client = service.client()
    [item] = await uploaded(client, "large")

    def reserve(size: int) -> None:
        raise AssertionError("space was asked for")

    monkeypatch.setattr(service.state["storage"], "reserve", reserve)
    body, headers = fields(("delete", item["id"]))
    assert (await client.post("/", body, headers=headers)).status == 303


@pytest.mark.parametrize("value", ["", "nothing", "0193a1f0-0000-7000-8000-000000000000", "ü"])
async def test_a_file_that_is_not_there_is_not_deleted(service: Service, value: str) -> None:
    client = service.client()
    [item] = await uploaded(client, "mine")
    body, headers = fields(("delete", value))
    answer = await client.post("/", body, headers=headers)
    refused(answer, 404, "not_found")
    body, headers = fields(("delete", item["id"]))
    refused(await service.client().post("/", body, headers=headers), 401, "no_session")
    stranger = service.client()
    await uploaded(stranger, "theirs")
    refused(await stranger.post("/", body, headers=headers), 404, "not_found")
    assert (await client.get(item["links"]["content"])).status == 200


# --- refusals


def refused(answer: Answer, status: int, code: str, language: str = "en", **members: int | str) -> Page:
    """The page with this refusal in words."""
    assert answer.status == status, (answer.status, answer.body)
    page = Page(answer)
    sentence = languages()[language].refusal(code, members)
    assert " ".join(sentence.split()) in page.text, page.text
    assert answer["x-request-id"] in page.text
    assert page.all("form", method="post", action="/", enctype="multipart/form-data")
    return page


BAD_FORMS = [
    (b"", {}, 415, "unsupported_media_type"),
    (b"delete=1", {"Content-Type": "application/x-www-form-urlencoded"}, 415, "unsupported_media_type"),
    (b"{}", {"Content-Type": "application/json"}, 415, "unsupported_media_type"),
    (b"x", {"Content-Type": "multipart/form-data"}, 400, "malformed_form"),
    (b"", {"Content-Type": "multipart/form-data; boundary=a"}, 400, "malformed_form"),
    (b"x" * 100_000, {"Content-Type": "multipart/form-data; boundary=a"}, 400, "malformed_form"),
    (b"--a--\r\n", {"Content-Type": "multipart/form-data; boundary=a"}, 400, "no_file"),
    (
        b'--a\r\nContent-Disposition: form-data; name="file"; filename=""\r\n\r\n\r\n--a--\r\n',
        {"Content-Type": "multipart/form-data; boundary=a"},
        400,
        "no_file",
    ),
    (
        b'--a\r\nContent-Disposition: form-data; name="other"\r\n\r\n1\r\n--a--\r\n',
        {"Content-Type": "multipart/form-data; boundary=a"},
        400,
        "no_file",
    ),
    (
        b'--a\r\nContent-Disposition: form-data; name="file"; filename="' + b"a" * 256 + b'"\r\n\r\n1\r\n--a--\r\n',
        {"Content-Type": "multipart/form-data; boundary=a"},
        400,
        "bad_filename",
    ),
    (
        b'--a\r\nContent-Disposition: form-data; name="file"; filename="cut"\r\n\r\n1234',
        {"Content-Type": "multipart/form-data; boundary=a"},
        400,
        "malformed_form",
    ),
    (
        b'--a\r\nContent-Disposition: form-data; name="delete"\r\n\r\n' + b"1" * 1000 + b"\r\n--a--\r\n",
        {"Content-Type": "multipart/form-data; boundary=a"},
        413,
        "request_too_large",
    ),
    (
        b'--a\r\nContent-Disposition: form-data; name="file"; filename="a"\r\n\r\n1\r\n--a--\r\n',
        {"Content-Type": "multipart/form-data; boundary=a", "Content-Encoding": "gzip"},
        415,
        "unsupported_media_type",
    ),
    (
        b'--a\r\nContent-Disposition: form-data; name="file"; filename="a"\r\n\r\n1\r\n--a--\r\n',
        {"Content-Type": "multipart/form-data; boundary=a", "Content-Digest": "sha-256=:AAAA:"},
        400,
        "bad_request",
    ),
]


@pytest.mark.parametrize(("body", "headers", "status", "code"), BAD_FORMS, ids=range(len(BAD_FORMS)))
async def test_a_bad_form_is_refused_in_words(
    service: Service, body: bytes, headers: dict[str, str], status: int, code: str
) -> None:
    client = service.client()
    await uploaded(client, "before")
    answer = await client.post("/", body, headers={**OWN, **headers})
    members = {"received": 37, "limit": 36} if code == "request_too_large" else {}
    page = refused(answer, status, code, **members)
    assert "before" in page.text  # the list is there, too
    completed = (await client.get(f"{HISTORY}?status=completed")).json()["items"]
    assert [item["filename"] for item in completed] == ["before"]


async def test_limits_and_the_quota_are_told_in_human_units(tmp_path: Path) -> None:
    limits = {"max_file_size": 2 * 2**20, "max_files_per_request": 2, "session_quota": 3 * 2**20}
    async with serving(settings_in(tmp_path, **limits)) as service:
        client = service.client()
        large = bytes(2 * 2**20 + 1)
        german = {"Accept-Language": "de"}
        answer = await send(client, ("large.bin", None, large), **german)
        page = refused(answer, 413, "too_large", "de", received=len(large), limit=2 * 2**20)
        assert "2 MiB" in page.text
        answer = await send(client, *((f"{number}", None, b"x") for number in range(3)))
        refused(answer, 413, "too_many_files", received=3, limit=2)
        assert (await send(client, ("most.bin", None, bytes(2 * 2**20)))).status == 303
        answer = await send(client, ("more.bin", None, bytes(2 * 2**20)))
        taken = {"used": 2 * 2**20, "asked": 2 * 2**20, "limit": 3 * 2**20, "unit": "bytes"}
        assert "3 MiB" in refused(answer, 413, "quota_exceeded", **taken).text


@pytest.mark.parametrize(
    "headers",
    [
        {},
        {"Origin": "http://evil.test"},
        {"Origin": "null"},
        {"Origin": "https://friend.test"},
        {"Origin": "http://waybill.test:8080"},
        {"Origin": "http://other.waybill.test", "Sec-Fetch-Site": "same-site"},
        {"Origin": "http://waybill.test", "Sec-Fetch-Site": "cross-site"},
        {"Referer": "http://evil.test/http://waybill.test/"},
        {"Origin": "null", "Referer": "http://waybill.test/"},
    ],
    ids=str,
)
async def test_a_form_of_another_site_does_nothing(tmp_path: Path, headers: dict[str, str]) -> None:
    async with serving(settings_in(tmp_path, allowed_origins="https://friend.test")) as service:
        client = service.client()
        [item] = await uploaded(client, "mine")
        deletion, content_type = fields(("delete", item["id"]))
        for sender in (client, service.client()):
            answer = await sender.post("/", deletion, headers={"Content-Type": content_type["Content-Type"], **headers})
            refused(answer, 403, "cross_origin")
            assert answer.asked == 0
            assert answer.all("set-cookie") == []
        assert (await client.get(item["links"]["content"])).status == 200


@pytest.mark.parametrize(
    "headers",
    [
        {"Origin": "http://WAYBILL.test:80"},
        {"Origin": "https://waybill.test", "Sec-Fetch-Site": "same-origin"},  # a proxy took the TLS off
        {"Referer": "http://waybill.test/?cursor=x"},  # a browser that sends no Origin
    ],
    ids=str,
)
async def test_our_own_form_is_known(service: Service, headers: dict[str, str]) -> None:
    body, content_type = form([("a", None, b"x")])
    answer = await service.client().post("/", body, headers={"Content-Type": content_type, **headers})
    assert answer.status == 303


async def test_a_bad_cursor_is_refused_on_the_first_page(service: Service) -> None:
    client, other = service.client(), service.client()
    await uploaded(client, "mine")
    await uploaded(other, *(f"{number}" for number in range(51)))
    foreign = next(
        a["href"] for a in Page(await other.get("/")).all("a") if (a.get("href") or "").startswith("/?cursor=")
    )
    for target in ("/?cursor=x", "/?cursor=%FF", str(foreign)):
        assert "mine" in refused(await client.get(target), 400, "bad_cursor").text
    assert (await service.client().get("/?cursor=x")).status == 200  # nobody has no pages


async def test_the_page_is_shown_while_the_database_is_away(service: Service, monkeypatch: pytest.MonkeyPatch) -> None:
    client = service.client()
    await uploaded(client, "mine")

    async def away(*args: object, **kwargs: object) -> None:
        raise Unavailable

    monkeypatch.setattr(totals_records, "find", away)
    answer = await client.get("/")
    refused(answer, 503, "unavailable")
    assert answer["retry-after"] == "2"


async def test_the_api_never_answers_html(service: Service) -> None:
    client = service.client()
    accept = {"Accept": "text/html", "Sec-Fetch-Mode": "navigate", "Sec-Fetch-Site": "none"}
    for method, target in [("GET", HISTORY), ("GET", "/nowhere"), ("DELETE", "/api/session"), ("PUT", "/")]:
        answer = await client.request(method, target, headers=accept)
        assert answer.status >= 400
        assert answer["content-type"] == "application/problem+json"


# --- languages


@pytest.mark.parametrize(
    ("accepted", "code"),
    [
        ("", "en"),
        ("de", "de"),
        ("DE-at", "de"),
        ("de-DE,de;q=0.9,en;q=0.8", "de"),
        ("de-CH, en;q=0.9, de;q=0.1", "de"),
        ("en;q=0.5, de;q=0.6", "de"),
        ("de;q=0.5, en;q=0.5", "de"),
        ("fr, it;q=0.9, de;q=0.1", "de"),
        ("fr", "en"),
        ("*", "en"),
        ("*;q=0.5, de;q=0.4", "en"),
        ("de;q=0", "en"),
        ("en;q=0, de;q=0.1", "de"),
        ("de;q=x", "de"),
        ("deutsch", "en"),
        (";;,=,*-*", "en"),
        pytest.param("x" * 5000, "en", id="long"),
    ],
)
async def test_the_page_is_in_the_language_of_its_reader(service: Service, accepted: str, code: str) -> None:
    answer = await service.client().get("/", headers={"Accept-Language": accepted})
    assert answer["content-language"] == code
    assert Page(answer).all("html", lang=code, dir="ltr")
    assert "Accept-Language" in answer["vary"]


# --- below a base path


async def test_the_page_lives_below_a_base_path(tmp_path: Path) -> None:
    (tmp_path / "logo.png").write_bytes(b"\x89PNG\r\n\x1a\n")
    async with serving(settings_in(tmp_path, base_path="/nas/in", logo=tmp_path / "logo.png")) as service:
        client = service.client()
        body, content_type = form([("a.txt", None, b"x")])
        answer = await client.post("/nas/in/", body, headers=kind(content_type))
        assert (answer.status, answer["location"]) == (303, "/nas/in/")
        page, docs = Page(await client.get("/nas/in/")), Page(await client.get("/nas/in/docs"))
        for tag, attrs in page.tags + docs.tags:
            for name in ("href", "src", "action"):
                target = attrs.get(name)
                assert target is None or target.startswith(("/nas/in/", "#")), (tag, name, target)
        [item] = (await client.get(f"/nas/in{HISTORY}")).json()["items"]
        assert page.all("a", href=f"/nas/in/api/ingestion/files/{item['id']}")
        for target in ("/docs", "/static/page.css", "/static/logo"):
            assert (await client.get(f"/nas/in{target}")).status == 200
            (await client.get(target)).refused(404, "not_found")
        docs = Page(await client.get("/nas/in/docs"))
        assert all(
            (attrs.get("src") or attrs.get("href") or "/nas/in/").startswith(("/nas/in/", "#"))
            for _, attrs in docs.tags
        )
        (await client.get("/")).refused(404, "not_found")
