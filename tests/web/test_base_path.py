"""The service below a path of its domain: what it is asked there, and every URL that it gives out."""

import json
from collections.abc import AsyncIterator
from typing import Any

import pytest
import pytest_asyncio

from tests.support.asgi import Service, serving, settings_in
from tests.support.strategies import form

pytestmark = pytest.mark.asyncio(loop_scope="module")

BASE = "/files/in"
UPLOADS = f"{BASE}/api/ingestion/uploads"
HISTORY = f"{BASE}/api/ingestion/history"
TUS = {"Tus-Resumable": "1.0.0"}


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def service(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Service]:
    async with serving(settings_in(tmp_path_factory.mktemp("service"), base_path=BASE)) as running:
        yield running


def is_below(item: dict[str, Any]) -> None:
    assert item["links"] == {
        "self": f"{HISTORY}/{item['id']}",
        "content": f"{BASE}/api/ingestion/files/{item['id']}",
    }


async def test_every_link_and_the_cookie_lie_below_the_base_path(service: Service) -> None:
    client = service.client()
    made = await client.request("PUT", f"{UPLOADS}/a%2Fb%20c.txt", body=b"hello")
    assert (made.status, made.json()["filename"]) == (201, "b c.txt")
    assert f"Path={BASE};" in made["set-cookie"]
    is_below(made.json())
    assert made["location"] == made.json()["links"]["self"]
    assert (await client.get(made["location"])).json() == made.json()
    assert (await client.get(made.json()["links"]["content"])).body == b"hello"
    body, kind = form([("a", None, b"x"), ("b", None, b"y")])
    for item in (await client.post(UPLOADS, body, headers={"Content-Type": kind})).json()["items"]:
        is_below(item)
    page = await client.get(f"{HISTORY}?limit=1")
    is_below(page.json()["items"][0])
    following = page["link"].partition(">")[0][1:]
    assert following.startswith(f"{HISTORY}?")
    assert (await client.get(following)).status == 200
    for line in (await client.get(f"{HISTORY}?format=ndjson")).body.splitlines():
        is_below(json.loads(line))
    assert (await client.get(f"{BASE}/openapi.json")).json()["servers"] == [{"url": BASE}]
    for path in ("/health/live", "/health/ready", "/metrics", "/api/session"):
        assert (await client.get(f"{BASE}{path}")).status == 200


async def test_resumable_uploads_go_on_below_the_base_path(service: Service) -> None:
    client = service.client()
    made = await client.post(UPLOADS, headers={**TUS, "Upload-Length": "5"})
    assert made["location"].startswith(f"{UPLOADS}/")
    chunk = {**TUS, "Content-Type": "application/offset+octet-stream", "Upload-Offset": "0"}
    done = await client.request("PATCH", made["location"], body=b"hello", headers=chunk)
    record = done["link"].partition(">")[0][1:]
    is_below((await client.get(record)).json())
    draft = await client.post(UPLOADS, b"hello", headers={"Upload-Complete": "?1"})
    assert draft["location"].startswith(f"{HISTORY}/")
    is_below(draft.json())
    part = await client.post(UPLOADS, headers={**TUS, "Upload-Length": "0", "Upload-Concat": "partial"})
    final = {**TUS, "Upload-Concat": f"final;{part['location']}"}
    assert (await client.post(UPLOADS, headers=final))["location"].startswith(f"{UPLOADS}/")


@pytest.mark.parametrize(
    "target",
    ["/", "/health/live", "/api/session", "/api/ingestion/uploads", BASE, f"{BASE}x/health/live", "/files/health/live",
     "/files%2Fin/health/live"],
)  # fmt: skip
async def test_nothing_lies_beside_the_base_path(service: Service, target: str) -> None:
    answer = await service.client().get(target)
    answer.refused(404, "not_found")
    assert answer.all("set-cookie") == []
