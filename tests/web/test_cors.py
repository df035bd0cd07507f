"""Pages of other origins: those that are allowed may ask anything and read every answer, others may not."""

from collections.abc import AsyncIterator
from typing import Any

import pytest
import pytest_asyncio

from tests.support.asgi import Answer, Service, serving, settings_in

pytestmark = pytest.mark.asyncio(loop_scope="module")

UPLOADS = "/api/ingestion/uploads"
PAGE = "https://app.example"
STRANGER = "https://other.example"


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def service(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Service]:
    directory = tmp_path_factory.mktemp("service")
    async with serving(
        settings_in(directory, allowed_origins=[PAGE], max_file_size=10, max_request_size=10)
    ) as running:
        yield running


def readable(answer: Answer) -> bool:
    """Whether a browser lets the page see the answer to a request with credentials."""
    return answer.get("access-control-allow-origin") == PAGE and answer["access-control-allow-credentials"] == "true"


async def ask(service: Service, origin: str | None, method: str = "GET", target: str = UPLOADS, **how: Any) -> Answer:
    headers = {**how.pop("headers", {}), **({"Origin": origin} if origin else {})}
    return await service.client().request(method, target, headers=headers, **how)


@pytest.mark.parametrize("target", [UPLOADS, f"{UPLOADS}/some-key", "/api/ingestion/files/x", "/api/session"])
async def test_a_preflight_is_answered_for_every_method_and_header(service: Service, target: str) -> None:
    asked = "tus-resumable,upload-offset,x-of-the-page"
    headers = {"Access-Control-Request-Method": "PATCH", "Access-Control-Request-Headers": asked}
    answer = await ask(service, PAGE, "OPTIONS", target, headers=headers)
    assert answer.status == 204
    assert readable(answer)
    assert {"PATCH", "DELETE", "HEAD", "PUT", "POST", "GET"} <= set(answer["access-control-allow-methods"].split(", "))
    assert answer["access-control-allow-headers"] == asked
    assert "Origin" in answer.all("vary")
    assert answer["x-request-id"]
    plain = await ask(service, None, "OPTIONS")
    for name in ("tus-resumable", "tus-version", "tus-extension", "tus-checksum-algorithm", "upload-limit"):
        assert answer[name] == plain[name]


@pytest.mark.parametrize("origin", [STRANGER, "null", "https://app.example.evil", "http://app.example", None])
async def test_other_origins_may_not_ask(service: Service, origin: str | None) -> None:
    headers = {"Access-Control-Request-Method": "PATCH", "Access-Control-Request-Headers": "upload-offset"}
    preflight = await ask(service, origin, "OPTIONS", UPLOADS, headers=headers)
    made = await ask(service, origin, "PUT", f"{UPLOADS}/a", body=b"x")
    for answer in (preflight, made):
        assert not [name for name, _ in answer.headers if name.startswith("access-control-")]
        assert "Origin" in answer.all("vary")  # or a cache would give one origin another's answer


async def test_the_headers_that_a_client_goes_on_by_may_be_read(service: Service) -> None:
    answer = await ask(service, PAGE, "PUT", f"{UPLOADS}/a", body=b"x")
    assert answer.status == 201
    assert readable(answer)
    exposed = {name.lower() for name in answer["access-control-expose-headers"].split(", ")}
    needed = (
        "Location, Upload-Offset, Upload-Length, Upload-Metadata, Upload-Defer-Length, Upload-Concat, Upload-Expires, "
        "Tus-Version, Tus-Resumable, Tus-Max-Size, Tus-Extension, Tus-Checksum-Algorithm, "
        "Upload-Complete, Upload-Limit, Retry-After, X-Request-Id, RateLimit, RateLimit-Policy, Want-Repr-Digest"
    )
    assert {name.lower() for name in needed.split(", ")} <= exposed
    assert len(answer.all("set-cookie")) == 1  # and the session's cookie comes along


@pytest.mark.parametrize(
    ("method", "target", "how", "status"),
    [
        ("PUT", f"{UPLOADS}/a", {"body": b"x" * 11}, 413),
        ("GET", "/nowhere", {}, 404),
        ("PATCH", "/api/session", {}, 405),
        ("GET", "/api/ingestion/history", {}, 401),
        ("POST", "/api/session", {"headers": [("Authorization", "Bearer x"), ("Cookie", "waybill_session=x")]}, 200),
    ],
)
async def test_refusals_may_be_read_too(service: Service, method: str, target: str, how: Any, status: int) -> None:
    how = {**how, "headers": dict(how.get("headers", {}))}
    answer = await ask(service, PAGE, method, target, **how)
    assert answer.status == status
    assert readable(answer)


async def test_a_fault_may_be_read_too(service: Service, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("app.uploads.records.list_uploads", None)
    client = service.client()
    await client.post("/api/session")
    answer = await client.get("/api/ingestion/history", headers={"Origin": PAGE})
    answer.refused(500, "internal")
    assert readable(answer)


async def test_a_service_without_allowed_origins_sends_no_cors_headers(tmp_path: Any) -> None:
    async with serving(settings_in(tmp_path)) as service:
        answer = await service.client().put("a", b"x", headers={"Origin": PAGE})
        assert answer.status == 201
        assert not [name for name, _ in answer.headers if name.startswith("access-control-") or name == "vary"]
