"""The service's description of itself is true: of every route, every refusal, and of real answers."""

import json
import re
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from jsonschema import Draft202012Validator
from openapi_spec_validator import validate

from app.errors import problem_codes
from app.model import Upload
from app.web.openapi.words import EXAMPLE
from app.web.routes import pages, routes
from tests.support.asgi import Answer, Service, serving, settings_in

UPLOADS = "/api/ingestion/uploads"
HISTORY = "/api/ingestion/history"
TUS = {"Tus-Resumable": "1.0.0"}
CHUNK = {**TUS, "Content-Type": "application/offset+octet-stream"}
OF_ANY_ANSWER = {"content-type", "content-length", "date"}


@pytest.fixture
async def service(tmp_path: Path) -> AsyncIterator[Service]:
    async with serving(settings_in(tmp_path, max_file_size=1000, max_request_size=2000)) as running:
        yield running


async def described(service: Service) -> dict[str, Any]:
    answer = await service.client().get("/openapi.json")
    assert (answer.status, answer["content-type"]) == (200, "application/json")
    found: dict[str, Any] = answer.json()
    return found


def of_route(path: str) -> str:
    """A route's path as the description has it: the key and the filename stand in one place, so they have one name."""
    return re.sub(r"\{(key|filename:rest)\}", "{name}", path)


async def test_the_description_is_valid_openapi(service: Service) -> None:
    validate(await described(service))


async def test_the_description_has_every_route_and_method_and_no_others(service: Service) -> None:
    document = await described(service)
    written = {(path, method.upper()) for path, methods in document["paths"].items() for method in methods}
    described_routes = [route for route in routes if route not in pages]
    assert written == {(of_route(route.path), method) for route in described_routes for method in route.methods or ()}


async def test_every_code_stands_with_its_status_and_nothing_else_does(service: Service) -> None:
    document, codes = await described(service), problem_codes()
    found = set()
    for methods in document["paths"].values():
        for method, operation in methods.items():
            for status, answer in operation["responses"].items():
                problem = answer.get("content", {}).get("application/problem+json")
                if problem is None:
                    assert int(status) < 400 or method == "head"
                    continue
                here = problem["schema"]["allOf"][1]["properties"]["code"]["enum"]
                assert {codes[code].status for code in here} == {int(status)}
                found.update(here)
    assert found == codes.keys()


async def test_a_client_that_has_the_description_is_not_sent_it_again(service: Service) -> None:
    client = service.client()
    tag = (await client.get("/openapi.json"))["etag"]
    again = await client.get("/openapi.json", headers={"If-None-Match": f'"other", W/{tag}'})
    assert (again.status, again.body, again["etag"]) == (304, b"", tag)
    assert (await client.get("/openapi.json", headers={"If-None-Match": '"other"'})).status == 200


async def test_limits_are_those_of_the_settings(service: Service) -> None:
    text = json.dumps(await described(service))
    assert "At most 1000 bytes a file and 2000 a request." in text


class Witness:
    """Compares each answer with what is written of it."""

    def __init__(self, service: Service, document: dict[str, Any]) -> None:
        self.client = service.client()
        self._document = document
        self.seen: set[tuple[str, str, int]] = set()

    async def __call__(self, method: str, target: str, path: str, **how: Any) -> Answer:
        answer = await self.client.request(method, target, **how)
        self.compare(answer, method, path)
        return answer

    def compare(self, answer: Answer, method: str, path: str) -> None:
        self.seen.add((method, path, answer.status))
        where = f"{method} {path} {answer.status}"
        written = self._document["paths"][path][method.lower()]["responses"].get(str(answer.status))
        assert written is not None, where
        unknown = {name for name, _ in answer.headers} - {name.lower() for name in written["headers"]} - OF_ANY_ANSWER
        assert unknown == set(), where
        kind = (answer.get("content-type") or "").partition(";")[0]
        contents = written.get("content", {})
        if not answer.body:
            assert answer.status != 200 or method == "HEAD" or not contents or "*/*" in contents, where
            return
        content = contents.get(kind) or contents.get("*/*")
        assert content is not None, f"{where}: {kind}"
        if kind in {"application/json", "application/problem+json"}:
            # The whole document as the schema's own, so that what it refers to is there.
            schema = {**self._document, **content["schema"]}
            validator = Draft202012Validator(schema, format_checker=Draft202012Validator.FORMAT_CHECKER)
            faults = [f"{fault.json_path}: {fault.message}" for fault in validator.iter_errors(answer.json())]
            assert faults == [], where


async def test_answers_are_as_they_are_described(service: Service) -> None:
    ask = Witness(service, await described(service))
    one, name, file = f"{HISTORY}/{{id}}", f"{UPLOADS}/{{name}}", "/api/ingestion/files/{id}"
    for path in ("/health/live", "/health/ready", "/metrics", "/openapi.json"):
        await ask("GET", path, path)
        await ask("HEAD", path, path)
    await ask("GET", HISTORY, HISTORY)
    await ask("GET", "/api/session", "/api/session")
    await ask("POST", "/api/session", "/api/session")
    form = (
        b'--b\r\nContent-Disposition: form-data; name="f"; filename="a.txt"\r\n\r\nhello\r\n--b--\r\n',
        {"Content-Type": "multipart/form-data; boundary=b"},
    )
    [made] = (await ask("POST", UPLOADS, UPLOADS, body=form[0], headers=form[1])).json()["items"]
    await ask("POST", f"{UPLOADS}/", f"{UPLOADS}/", body=form[0][:-20], headers=form[1])
    await ask("POST", UPLOADS, UPLOADS, body=b"--b--\r\n", headers=form[1])
    await ask("POST", UPLOADS, UPLOADS, body=b"raw")
    await ask("POST", UPLOADS, UPLOADS, headers={"X-HTTP-Method-Override": "PATCH"})
    await ask("PUT", f"{UPLOADS}/b.txt", name, body=b"raw")
    await ask("PUT", f"{UPLOADS}/%00", name, body=b"raw")
    await ask("PUT", f"{UPLOADS}/big", name, body=b"x" * 1001)
    await ask("PUT", f"{UPLOADS}/bigger", name, body=b"x" * 2001)
    await ask("PUT", f"{UPLOADS}/packed", name, body=b"x", headers={"Content-Encoding": "gzip"})
    await ask("PUT", f"{UPLOADS}/c", name, body=b"x", headers={"Repr-Digest": "sha-256=:" + "A" * 43 + "=:"})
    await ask("PUT", f"{UPLOADS}/c", name, body=b"x", headers={"Origin": "http://elsewhere.test"})
    for target, path in ((UPLOADS, UPLOADS), (f"{UPLOADS}/key", name)):
        await ask("OPTIONS", target, path)
    # tus
    begin = {**TUS, "Upload-Length": "6", "Upload-Metadata": "filename YQ=="}
    url = (await ask("POST", UPLOADS, UPLOADS, headers=begin))["location"]
    await ask("POST", UPLOADS, UPLOADS, headers=TUS)
    await ask("POST", UPLOADS, UPLOADS, headers={"Tus-Resumable": "0.2.2", "Upload-Length": "1"})
    await ask("POST", UPLOADS, UPLOADS, headers={**TUS, "Upload-Length": "9999"})
    checksum = {"Upload-Checksum": "md5 " + "A" * 22 + "=="}
    await ask("PATCH", url, name, headers={**CHUNK, "Upload-Offset": "0", **checksum}, body=b"abc")
    await ask("PATCH", url, name, headers={**CHUNK, "Upload-Offset": "0"}, body=b"abc")
    await ask("PATCH", url, name, headers={**CHUNK, "Upload-Offset": "0"}, body=b"abc")
    await ask("PATCH", url, name, headers={**TUS, "Upload-Offset": "3"}, body=b"abc")
    override = {**CHUNK, "Upload-Offset": "3", "X-HTTP-Method-Override": "PATCH"}
    await ask("POST", url, name, headers=override, body=b"def")
    await ask("POST", url, name)
    await ask("HEAD", url, name, headers=TUS)
    await ask("GET", url, name)
    await ask("DELETE", url, name, headers=TUS)
    await ask("HEAD", url, name, headers=TUS)
    await ask("DELETE", f"{UPLOADS}/nothing", name, headers=TUS)
    # HTTP's own
    url = (await ask("POST", UPLOADS, UPLOADS, headers={"Upload-Complete": "?0"}, body=b"abc"))["location"]
    await ask("HEAD", url, name)
    more = {"Upload-Complete": "?1", "Content-Type": "application/partial-upload"}
    await ask("PATCH", url, name, headers={**more, "Upload-Offset": "7"}, body=b"def")
    await ask("PATCH", url, name, headers={**more, "Upload-Offset": "3"}, body=b"def")
    await ask("PUT", f"{UPLOADS}/whole", name, headers={"Upload-Complete": "?1"}, body=b"whole")
    # what became of it
    for query in ("?limit=1&count=true", "?format=csv", "?format=ndjson", "?limit=0", "?cursor=x", "?status=failed"):
        await ask("GET", HISTORY + query, HISTORY)
    await ask("HEAD", HISTORY, HISTORY)
    await ask("GET", f"{HISTORY}/summary", f"{HISTORY}/summary")
    await ask("GET", made["links"]["self"], one)
    await ask("GET", f"{HISTORY}/nothing", one)
    content = made["links"]["content"]
    tag = (await ask("GET", content, file))["etag"]
    for headers in (
        {"Range": "bytes=0-1"},
        {"Range": "bytes=0-0,-1"},
        {"Range": "bytes=99-"},
        {"If-None-Match": tag},
        {"If-Match": '"other"'},
    ):
        await ask("GET", content, file, headers=headers)
        await ask("HEAD", content, file, headers=headers)
    await ask("DELETE", content, file)
    await ask("DELETE", content, file)
    # the session
    await ask("GET", "/api/session", "/api/session")
    await ask("POST", "/api/session/rotate", "/api/session/rotate")
    code = (await ask("POST", "/api/session/link", "/api/session/link")).json()["code"]
    for page in (b'{"page": "http://waybill.test/"}', b'{"page": "http://elsewhere.test/"}'):
        await ask("POST", "/api/session/link", "/api/session/link", body=page)
    for body in (b"no", json.dumps({"code": "no"}).encode(), json.dumps({"code": code}).encode()):
        await ask("POST", "/api/session/join", "/api/session/join", body=body)
    await ask("DELETE", "/api/session", "/api/session")
    await ask("DELETE", "/api/session", "/api/session")
    assert {status for _, _, status in ask.seen} >= {
        200,
        201,
        204,
        206,
        304,
        400,
        401,
        403,
        404,
        405,
        409,
        410,
        412,
        413,
        415,
        416,
        460,
    }


async def test_the_example_is_what_comes_of_what_it_shows(service: Service) -> None:
    made = await service.client().put("hello.txt", b"hello, waybill\n", headers={"Content-Type": "text/plain"})
    found = made.json()
    differs = {"id", "created_at", "completed_at", "links"}
    assert EXAMPLE.keys() == found.keys()
    assert {key: found[key] for key in found.keys() - differs} == {
        key: EXAMPLE[key] for key in EXAMPLE.keys() - differs
    }
    links = {kind: url.replace(found["id"], EXAMPLE["id"]) for kind, url in found["links"].items()}
    assert links == EXAMPLE["links"]
    assert EXAMPLE["completed_at"] > EXAMPLE["created_at"]
    assert EXAMPLE.keys() == Upload.model_json_schema(mode="serialization")["properties"].keys()


async def test_a_service_that_is_not_ready_says_so_as_described(
    service: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    ask = Witness(service, await described(service))
    service.app.state.readiness = None

    async def none() -> int:
        return 0

    monkeypatch.setattr(service.state["storage"], "free_bytes", none)
    assert (await ask("GET", "/health/ready", "/health/ready")).status == 503
