"""What the page is made of, as it is sent: its types, its compression, its tags, its policy and its size."""

import gzip
import zipfile
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio
from hatchling.builders.wheel import WheelBuilder

from app.errors import Unusable
from app.web.assets import STATIC, assets
from app.web.languages import languages
from tests.support.asgi import Answer, Service, serving, settings_in
from tests.support.memory import quick_directory

pytestmark = pytest.mark.asyncio(loop_scope="module")

ROOT = Path(__file__).parents[2]
GZIP = {"Accept-Encoding": "gzip"}
POLICY = {
    "default-src": "'none'",
    "script-src": "'self'",
    "style-src": "'self'",
    "img-src": "'self' blob: data:",
    "connect-src": "'self'",
    "worker-src": "'self'",
    "manifest-src": "'self'",
    "form-action": "'self'",
    "base-uri": "'none'",
    "frame-ancestors": "'none'",
}
PNG = b"\x89PNG\r\n\x1a\n" + bytes(100)
SVG = b'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 1 1"><path d="M0 0h1v1z"/></svg>'


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def service() -> AsyncIterator[Service]:
    with quick_directory() as directory:
        async with serving(settings_in(directory)) as running:
            yield running


def has_policy(answer: Answer) -> None:
    given = dict(part.split(" ", 1) for part in answer["content-security-policy"].split("; "))
    assert given == POLICY
    assert answer["referrer-policy"] == "same-origin"
    assert answer["x-content-type-options"] == "nosniff"


@pytest.mark.parametrize("target", ["/", "/docs", *(f"/static/{name}" for name in assets())])
async def test_every_part_of_the_page_has_its_policy_and_comes_in_gzip(service: Service, target: str) -> None:
    client = service.client()
    plain, packed = await client.get(target), await client.get(target, headers=GZIP)
    head = await client.request("HEAD", target, headers=GZIP)
    assert (plain.status, packed.status, head.status) == (200, 200, 200)
    assert "content-encoding" not in dict(plain.headers)
    assert (gzip.decompress(packed.body) if packed.get("content-encoding") else packed.body) == plain.body
    assert len(packed.body) <= len(plain.body)
    assert head.headers[:-2] == packed.headers[:-2]  # all but the request's id, and what follows it
    for answer in (plain, packed):
        has_policy(answer)
        assert "Accept-Encoding" in answer["vary"]
        assert answer.all("set-cookie") == []


@pytest.mark.parametrize("target", ["/docs", "/openapi.json", "/static/page.css", "/static/languages/de.json"])
async def test_an_asset_that_a_browser_has_is_not_sent_again(service: Service, target: str) -> None:
    client = service.client()
    plain, packed = (await client.get(target))["etag"], (await client.get(target, headers=GZIP))["etag"]
    assert plain != packed  # a strong tag is that of these very bytes
    assert {plain[0], packed[0]} == {'"'}
    for tag, headers in ((plain, {}), (packed, GZIP)):
        answer = await client.get(target, headers={**headers, "If-None-Match": tag})
        assert (answer.status, answer.body, answer["etag"]) == (304, b"", tag)
        assert (answer["cache-control"], answer["vary"]) == ("no-cache", "Accept-Encoding")
    for tag, headers in ((packed, {}), (plain, GZIP), ('"other"', {})):
        assert (await client.get(target, headers={**headers, "If-None-Match": tag})).status == 200


@pytest.mark.parametrize(
    ("accepted", "encoding"),
    [
        ("gzip", "gzip"),
        ("GZip, deflate, br", "gzip"),
        ("x-gzip", "gzip"),
        ("*", "gzip"),
        ("br, *;q=0.1", "gzip"),
        ("gzip;q=0.001", "gzip"),
        ("identity;q=0.5, gzip", "gzip"),
        ("", None),
        ("br", None),
        ("identity", None),
        ("gzip;q=0", None),
        ("gzip; q=0.000", None),
        ("*, gzip;q=0", None),
        ("identity, gzip;q=0.5", None),
        ("gzipped", None),
        (",,;q=1,=", None),
    ],
)
async def test_an_asset_is_encoded_as_its_client_accepts(service: Service, accepted: str, encoding: str | None) -> None:
    for target in ("/", "/static/page.css"):
        answer = await service.client().get(target, headers={"Accept-Encoding": accepted})
        assert (answer.status, answer.get("content-encoding")) == (200, encoding)


@pytest.mark.parametrize(
    "name",
    ["", "page", "page.html", "docs.html", "scripts", "scripts/", "nothing.js", "../page.py", "..%2fpage.py",
     "%2e%2e/page.py", "/etc/passwd", "languages/../page.css", "page.css/", "PAGE.CSS", "page.css%00", "logo"],
)  # fmt: skip
async def test_an_address_below_static_is_an_assets_or_unknown(service: Service, name: str) -> None:
    (await service.client().get(f"/static/{name}")).refused(404, "not_found")


async def test_the_types_are_what_browsers_want(service: Service) -> None:
    client = service.client()
    for target, kind in {
        "/": "text/html; charset=utf-8",
        "/docs": "text/html; charset=utf-8",
        "/static/page.css": "text/css; charset=utf-8",
        "/static/scripts/docs.js": "text/javascript; charset=utf-8",
        "/static/languages/en.json": "application/json",
    }.items():
        assert (await client.get(target))["content-type"] == kind


# --- sizes


async def sent(service: Service, *targets: str) -> int:
    answers = [await service.client().get(target, headers=GZIP) for target in targets]
    assert {answer.status for answer in answers} == {200}
    return sum(len(answer.body) for answer in answers)


async def test_the_page_with_one_language_is_small(service: Service) -> None:
    shared = [f"/static/{name}" for name in assets() if not name.startswith("languages/") and "docs" not in name]
    for code in languages():
        assert await sent(service, "/", *shared, f"/static/languages/{code}.json") <= 60 * 1024


async def test_the_pages_of_the_api_are_small(service: Service) -> None:
    assert await sent(service, "/docs", "/static/docs.css", "/static/scripts/docs.js", "/openapi.json") <= 40 * 1024


async def test_a_wheel_holds_all_of_the_page(tmp_path: Path) -> None:
    [wheel] = WheelBuilder(str(ROOT)).build(directory=str(tmp_path), versions=["standard"])
    packed = {name for name in zipfile.ZipFile(wheel).namelist() if name.startswith("app/web/static/")}
    assert packed == {f"app/web/static/{path.relative_to(STATIC)}" for path in STATIC.rglob("*") if path.is_file()}


# --- title and logo


@pytest.mark.parametrize(("content", "kind"), [(PNG, "image/png"), (SVG, "image/svg+xml")])
async def test_a_logo_is_shown_and_runs_nothing(tmp_path: Path, content: bytes, kind: str) -> None:
    logo = tmp_path / "logo"
    logo.write_bytes(content)
    async with serving(settings_in(tmp_path, logo=logo, title="Mÿ <b>files</b>")) as service:
        client = service.client()
        page, shown = await client.get("/"), await client.get("/static/logo", headers=GZIP)
    assert b'src="/static/logo"' in page.body
    assert "Mÿ &lt;b&gt;files&lt;/b&gt;" in page.body.decode()
    assert b"<b>files" not in page.body
    body = gzip.decompress(shown.body) if shown.get("content-encoding") else shown.body
    assert (shown.status, shown["content-type"], body) == (200, kind, content)
    policy = shown["content-security-policy"].split("; ")
    assert {"sandbox", "default-src 'none'"} <= set(policy)
    assert "script" not in shown["content-security-policy"]


@pytest.mark.parametrize(
    "svg",
    [
        b'<?xml version="1.0" encoding="UTF-8"?>\n<!-- drawn -->\n<svg/>'.replace(b"<svg/>", SVG),
        b"\xef\xbb\xbf" + SVG,
        b"\n  " + SVG,
        b'<!DOCTYPE svg PUBLIC "-//W3C//DTD SVG 1.1//EN" "http://www.w3.org/Graphics/SVG/1.1/DTD/svg11.dtd">' + SVG,
    ],
)
async def test_an_svg_may_begin_as_svgs_do(tmp_path: Path, svg: bytes) -> None:
    (tmp_path / "logo.svg").write_bytes(svg)
    async with serving(settings_in(tmp_path, logo=tmp_path / "logo.svg")) as service:
        assert (await service.client().get("/static/logo"))["content-type"] == "image/svg+xml"


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (None, "cannot be read: No such file or directory"),
        ("directory", "cannot be read: Is a directory"),
        (b"", "which is neither, expected a PNG or an SVG"),
        (b"GIF89a" + bytes(100), "which is neither, expected a PNG or an SVG"),
        (b"<html><svg></svg></html>", "which is neither, expected a PNG or an SVG"),
        (b"<svgx></svgx>", "which is neither, expected a PNG or an SVG"),
        (b'<!DOCTYPE svg [<!ENTITY a "b">]>' + SVG, "which is neither, expected a PNG or an SVG"),
        (PNG + bytes(64 * 1024), "which has more than 64 KiB"),
    ],
    ids=lambda given: given[:12].hex() if isinstance(given, bytes) else str(given),
)
async def test_an_unfit_logo_is_refused_at_the_start(tmp_path: Path, content: Any, reason: str) -> None:
    logo = tmp_path / "logo.png"
    if content == "directory":
        logo.mkdir()
    elif content is not None:
        logo.write_bytes(content)
    with pytest.raises(Unusable, match="WAYBILL_LOGO is '") as refusal:
        async with serving(settings_in(tmp_path, logo=logo)):
            pass
    assert reason in str(refusal.value)
