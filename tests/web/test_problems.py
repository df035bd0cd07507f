"""What the framework refuses by itself looks like every other refusal."""

import pytest

from tests.support.asgi import Service

pytestmark = pytest.mark.asyncio(loop_scope="module")

ID = "0193a1f0-0000-7000-8000-000000000000"

METHODS = {
    "/api/ingestion/uploads": {"OPTIONS", "POST"},
    "/api/ingestion/uploads/a.txt": {"DELETE", "GET", "HEAD", "OPTIONS", "PATCH", "POST", "PUT"},
    "/api/ingestion/uploads/a/b": {"PUT"},
    "/api/ingestion/history": {"GET", "HEAD"},
    "/api/ingestion/history/summary": {"GET", "HEAD"},
    f"/api/ingestion/history/{ID}": {"GET", "HEAD"},
    f"/api/ingestion/files/{ID}": {"DELETE", "GET", "HEAD"},
    "/api/session": {"DELETE", "GET", "HEAD", "POST"},
    "/api/session/rotate": {"POST"},
    "/api/session/link": {"POST"},
    "/api/session/join": {"POST"},
    "/": {"GET", "HEAD", "POST"},
    "/docs": {"GET", "HEAD"},
    "/static/page.css": {"GET", "HEAD"},
    "/health/live": {"GET", "HEAD"},
    "/health/ready": {"GET", "HEAD"},
}


@pytest.mark.parametrize("target", METHODS)
async def test_an_unsupported_method_is_refused_with_the_supported_ones(service: Service, target: str) -> None:
    possible = METHODS[target]
    for method in {"GET", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "TRACE", "BREW"} - possible:
        answer = await service.client().request(method, target, body=b"x")
        problem = answer.refused(405, "method_not_allowed")
        assert set(answer["allow"].split(", ")) == possible
        assert method in problem["detail"]
    if "HEAD" not in possible:
        answer = await service.client().request("HEAD", target)
        assert (answer.status, answer.body) == (405, b"")
        assert int(answer["content-length"]) > 0


@pytest.mark.parametrize("method", ["GET", "POST", "PUT", "DELETE", "OPTIONS", "BREW"])
@pytest.mark.parametrize(
    "target",
    [
        "/api",
        "/api/",
        "/nowhere",
        "/api/nowhere",
        "/api/session/",
        "/api/ingestion/files",
        "/api/ingestion/files/a/b",
        "/health",
        "*",
    ],
)
async def test_an_unknown_address_is_not_found(service: Service, method: str, target: str) -> None:
    (await service.client().request(method, target)).refused(404, "not_found")


async def test_a_refusal_to_head_has_the_headers_of_the_one_to_get(service: Service) -> None:
    for target in ("/nowhere", "/api/ingestion/history", f"/api/ingestion/files/{ID}"):
        headers = {"X-Request-Id": "same"}
        got = await service.client().get(target, headers=headers)
        head = await service.client().request("HEAD", target, headers=headers)
        assert (head.status, head.body, head.headers) == (got.status, b"", got.headers)
