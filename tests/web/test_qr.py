"""The QR code by which a second device joins: what it holds, and for which page it is drawn."""

import json
import re
from collections.abc import AsyncIterator
from typing import Any
from xml.etree import ElementTree

import pytest
import pytest_asyncio
import segno

from tests.support.asgi import Answer, Service, serving, settings_in
from tests.support.memory import quick_directory

pytestmark = pytest.mark.asyncio(loop_scope="module")

SVG = "{http://www.w3.org/2000/svg}"
LINK = "/api/session/link"
QUIET = 4


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def service() -> AsyncIterator[Service]:
    with quick_directory() as directory:
        async with serving(settings_in(directory)) as running:
            yield running


async def linked(service: Service, body: Any, **headers: str) -> Answer:
    client = service.client()
    await client.post("/api/session")
    sent = json.dumps(body).encode() if body is not None else b""
    return await client.post(LINK, sent, headers={name.replace("_", "-"): value for name, value in headers.items()})


def modules(svg: str) -> list[list[int]]:
    """The dark modules of the code, as they are drawn: lines of 1 along rows, by relative moves."""
    root = ElementTree.fromstring(svg)
    side = int(root.attrib["viewBox"].split()[2]) - 2 * QUIET
    ground, dark = root.findall(f"{SVG}path")
    assert (ground.attrib["fill"], dark.attrib["stroke"]) == ("#fff", "#000")
    found = [[0] * side for _ in range(side)]
    x = y = 0.0
    for command, numbers in re.findall(r"([Mmh])([^Mmh]*)", dark.attrib["d"]):
        first, *second = (float(number) for number in re.findall(r"-?[\d.]+", numbers))
        if command == "h":
            for column in range(int(first)):
                found[int(y) - QUIET][int(x) + column - QUIET] = 1
            x += first
        else:
            x, y = (first, second[0]) if command == "M" else (x + first, y + second[0])
    return found


@pytest.mark.parametrize(
    ("page", "headers"),
    [
        ("http://waybill.test/", {}),
        ("http://waybill.test/uploads/", {}),
        ("http://WAYBILL.test:80/", {}),
        ("https://nas:8443/uploads/", {"Origin": "https://nas:8443", "Sec_Fetch_Site": "same-origin"}),
    ],
)
async def test_the_code_holds_the_page_and_what_joins(service: Service, page: str, headers: dict[str, str]) -> None:
    answer = await linked(service, {"page": page}, **headers)
    assert answer.status == 201
    made = answer.json()
    assert modules(made["qr"]) == [list(row) for row in segno.make_qr(f"{page}#join={made['code']}", error="m").matrix]
    assert not re.search(r"style|script|href|class|\bon\w+=", made["qr"])
    joined = await service.client().post("/api/session/join", json.dumps({"code": made["code"]}).encode())
    assert joined.status == 200


@pytest.mark.parametrize("body", [None, {}, {"page": None}])
async def test_a_link_without_a_page_is_a_code_alone(service: Service, body: Any) -> None:
    answer = await linked(service, body)
    assert (answer.status, answer.json().keys()) == (201, {"code", "expires_at"})


@pytest.mark.parametrize(
    "body",
    [
        {"page": ""},
        {"page": "/"},
        {"page": "waybill.test/"},
        {"page": "http://"},
        {"page": "http:///uploads/"},
        {"page": "http://evil.test/"},
        {"page": "https://waybill.test/"},  # not as we see it, and no browser says that it is so
        {"page": "http://waybill.test:8080/"},
        {"page": "http://waybill.test:x/"},
        {"page": "http://[::1/"},
        {"page": "http://waybill.test@evil.test/"},
        {"page": "http://user:word@waybill.test/"},
        {"page": "http://waybill.test/?a=b"},
        {"page": "http://waybill.test/?"},
        {"page": "http://waybill.test/#join=AAAA-AAAA-AAAA"},
        {"page": "http://waybill.test/ "},
        {"page": "\thttp://waybill.test/"},
        {"page": "http://waybill.test/\n"},
        {"page": "http://wäybill.test/"},
        {"page": "ftp://waybill.test/"},
        {"page": "javascript:alert(1)"},
        {"page": "http://waybill.test/" + "a" * 500},
        {"page": 1},
        {"page": ["http://waybill.test/"]},
        {"pages": "http://waybill.test/"},
        [],
        "http://waybill.test/",
    ],
    ids=str,
)
async def test_no_code_is_drawn_for_another_page(service: Service, body: Any) -> None:
    (await linked(service, body)).refused(400, "bad_request")


async def test_the_page_of_an_allowed_origin_is_not_our_own() -> None:
    with quick_directory() as directory:
        async with serving(settings_in(directory, allowed_origins="https://friend.test")) as service:
            answer = await linked(service, {"page": "https://friend.test/"}, Origin="https://friend.test")
            answer.refused(400, "bad_request")


async def test_a_caller_without_a_session_is_given_no_code(service: Service) -> None:
    (await service.client().post(LINK, b'{"page": "http://waybill.test/"}')).refused(401, "no_session")
