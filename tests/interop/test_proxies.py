"""The service behind each proxy of `deploy/`, run for real. docs/operations/proxies.md says what these tests show."""

import asyncio
import hashlib
import json
import re
import select
import socket
import subprocess
import time
from contextlib import ExitStack, closing
from dataclasses import dataclass
from http.client import HTTPResponse
from pathlib import Path

import httpx
import pytest

from tests.interop.clients import MIB, Growth
from tests.interop.test_proxy import wait_for_staged
from tests.support.loopback import answering, connected
from tests.support.proxy import DEPLOY, logged, running, said_of
from tests.support.service import HISTORY, PATIENCE, UPLOADS, Service
from tests.support.tools import tool

pytestmark = pytest.mark.slow

PROGRAMS = {"nginx": "nginx", "nginx-site": "nginx", "caddy": "caddy", "haproxy": "haproxy"}
KINDS = list(PROGRAMS)
PASS_INTERIM = ("caddy", "haproxy")
TAKE_INTERIM_FOR_THE_ANSWER = ("nginx", "nginx-site")
TUS = {"Tus-Resumable": "1.0.0"}
OFFER = {"Upload-Complete": "?1", "Upload-Draft-Interop-Version": "10"}
KEY = "AAECAwQFBgcICQoLDA0ODw"
EVERY_BLOCK = "import app.resumables.writer; app.resumables.writer.CHECKPOINT_SECONDS = 0.0"


@dataclass(frozen=True)
class Behind:
    """A service, and the proxy in front of it."""

    kind: str
    service: Service
    port: int
    directory: Path

    @property
    def url(self):
        return f"http://127.0.0.1:{self.port}"

    def client(self, **options):
        return httpx.Client(base_url=self.url, timeout=PATIENCE, trust_env=False, **options)


@pytest.fixture(scope="module", params=KINDS)
def behind(request, tmp_path_factory):
    tool(PROGRAMS[request.param])
    directory = tmp_path_factory.mktemp(request.param)
    passes = "true" if request.param in PASS_INTERIM else "false"
    settings = {"trusted_proxies": "127.0.0.1", "interim_responses": passes}
    # An offset is durable, and reported where that is possible, after every block instead of every five seconds.
    with closing(Service(directory / "service", change=EVERY_BLOCK, **settings)) as service:
        service.start()
        with running(directory / "proxy", service.port, kind=request.param) as port:
            yield Behind(request.param, service, port, directory / "proxy")


@pytest.fixture
def client(behind):
    with behind.client() as client:
        yield client


@pytest.fixture
def away():
    """A port that is taken, and at which nobody listens."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        yield taken.getsockname()[1]


def content_of(size):
    return (bytes(range(256)) * (size // 256 + 1))[:size]


@pytest.mark.parametrize(
    "command", [("haproxy", "-c", "-f", "haproxy.cfg"), ("caddy", "validate", "--config", "Caddyfile")], ids=" ".join
)
def test_a_file_is_accepted_as_it_is(command, tmp_path):
    program, *words = command
    checked = subprocess.run(
        [tool(program), *words], cwd=DEPLOY, env={"HOME": str(tmp_path)}, capture_output=True, timeout=PATIENCE
    )
    assert checked.returncode == 0, checked.stderr


def send_until_answered(connection, piece):
    """Send the piece again and again until an answer comes. Proxies in Go give none to a client that sends nothing."""
    left = piece
    while True:
        readable, writable, _ = select.select([connection], [connection], [], PATIENCE)
        if readable or not writable:
            return
        left = left[connection.send(left, socket.MSG_DONTWAIT) :] or piece


class TestUploads:
    @pytest.mark.parametrize("length", ["declared", "unknown"])
    @pytest.mark.parametrize("way", ["form", "raw"])
    def test_a_body_of_16_mib_streams_to_the_service_while_it_is_sent(self, behind, client, way, length):
        content, staged = content_of(16 * MIB), []
        before, after = b"", b""
        if way == "form":
            before = b'--edge\r\nContent-Disposition: form-data; name="file"; filename="large.bin"\r\n\r\n'
            after = b"\r\n--edge--\r\n"

        def pieces():
            yield before
            for start in range(0, len(content), MIB):
                if start == 15 * MIB:
                    staged.append(wait_for_staged(behind.service, 8 * MIB))
                yield content[start : start + MIB]
            yield after

        headers = {"Content-Type": "multipart/form-data; boundary=edge"} if way == "form" else {}
        if length == "declared":
            headers["Content-Length"] = str(len(before) + len(content) + len(after))
        method, path = ("POST", UPLOADS) if way == "form" else ("PUT", f"{UPLOADS}/large.bin")
        made = client.request(method, path, content=pieces(), headers=headers)
        assert made.status_code == 201, made.text
        assert staged == [True]
        [record] = made.json()["items"] if way == "form" else [made.json()]
        assert (record["size"], record["sha256"]) == (len(content), hashlib.sha256(content).hexdigest())

    def test_a_refusal_arrives_before_the_body_has_ended(self, behind, tmp_path):
        head = f"PUT {UPLOADS}/large.bin HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n".encode()
        with closing(Service(tmp_path / "small", max_file_size=1_000_000)) as small:
            small.start()
            with (
                running(tmp_path / "proxy", small.port, kind=behind.kind) as port,
                socket.create_connection(("127.0.0.1", port), timeout=PATIENCE) as connection,
            ):
                connection.sendall(head)
                send_until_answered(connection, b"10000\r\n%b\r\n" % bytes(0x10000))
                answer = HTTPResponse(connection)
                answer.begin()
                assert (answer.status, json.load(answer)["code"]) == (413, "too_large")

    def test_a_tus_upload_that_broke_off_goes_on(self, behind, client):
        content = content_of(2 * MIB)
        made = client.post(UPLOADS, headers={**TUS, "Upload-Length": str(len(content))})
        assert made.status_code == 201
        url, written = made.headers["location"], Growth(behind.service)
        head = (
            f"PATCH {url} HTTP/1.1\r\nHost: x\r\nTus-Resumable: 1.0.0\r\nUpload-Offset: 0\r\n"
            f"Content-Type: application/offset+octet-stream\r\nContent-Length: {len(content)}\r\n\r\n"
        )
        with socket.create_connection(("127.0.0.1", behind.port), timeout=PATIENCE) as connection:
            connection.sendall(head.encode() + content[:MIB])
            while not written():
                time.sleep(0.01)
        offset = int(client.head(url, headers=TUS).headers["upload-offset"])
        assert 0 < offset <= MIB
        chunk = {**TUS, "Content-Type": "application/offset+octet-stream", "Upload-Offset": str(offset)}
        assert client.patch(url, headers=chunk, content=content[offset:]).status_code == 204
        [record] = client.get(HISTORY).json()["items"]
        assert (record["status"], record["sha256"]) == ("completed", hashlib.sha256(content).hexdigest())

    def test_a_head_of_30_kib_passes_in_both_directions(self, client):
        parts = []
        for _ in range(2):
            made = client.post(UPLOADS, headers={**TUS, "Upload-Length": "0", "Upload-Concat": "partial"})
            parts.append(str(client.base_url.join(made.headers["location"])))
        concat = "final;" + " ".join(parts * 200)
        assert 30_000 > len(concat) > 25_000
        made = client.post(UPLOADS, headers={**TUS, "Upload-Concat": concat})
        assert made.status_code == 201, made.text
        assert client.head(made.headers["location"], headers=TUS).headers["upload-concat"] == concat


class TestInterim:
    """The response 104, which tells a client while it sends where it could go on."""

    HEAD = f"PUT {UPLOADS}/a.bin HTTP/1.1\r\nHost: x\r\nUpload-Complete: ?1\r\nUpload-Draft-Interop-Version: 10\r\n"

    @pytest.mark.parametrize("behind", PASS_INTERIM, indirect=True)
    async def test_an_upload_goes_on_where_a_104_said(self, behind):
        content = content_of(2 * MIB)
        async with connected(behind.port) as (reader, writer):
            writer.write(f"{self.HEAD}Content-Length: {len(content)}\r\n\r\n".encode() + content[:MIB])
            status, headers = await head_of_answer(reader)
            assert (status, headers["upload-draft-interop-version"]) == (104, "10")
            url = headers["location"]
            status, headers = await head_of_answer(
                reader
            )  # a part of it is known to be kept; how much, the blocks decide
            reported = int(headers["upload-offset"])
            assert (status, reported > 0) == (104, True)
        with behind.client() as client:
            asked = client.head(url)
            assert asked.headers["upload-complete"] == "?0"
            offset = int(asked.headers["upload-offset"])
            assert reported <= offset <= MIB
            fields = {"Content-Type": "application/partial-upload", "Upload-Offset": str(offset)}
            made = client.patch(url, headers={**fields, "Upload-Complete": "?1"}, content=content[offset:])
        assert (made.status_code, made.json()["sha256"]) == (201, hashlib.sha256(content).hexdigest())

    @pytest.mark.parametrize("behind", PASS_INTERIM, indirect=True)
    async def test_every_104_of_the_service_comes_before_the_answer(self, behind):
        """Caddy would fail the upload at the sixth interim response."""
        content, said = content_of(20 * MIB), []
        head = f"{self.HEAD}Content-Length: {len(content)}\r\nExpect: 100-continue\r\nConnection: close\r\n\r\n"
        async with connected(behind.port) as (reader, writer):
            writer.write(head.encode() + content)
            while not said or said[-1][0] < 200:
                said.append(await head_of_answer(reader))
        reports = [headers for status, headers in said if "upload-offset" in headers and status == 104]
        assert (said[-1][0], said[-1][1]["upload-complete"]) == (201, "?1")
        assert len(reports) == 3

    @pytest.mark.parametrize("behind", TAKE_INTERIM_FOR_THE_ANSWER, indirect=True)
    def test_an_upload_that_offers_to_be_resumable_works_where_no_104_passes(self, client):
        for _ in range(2):  # on a connection that is good for more
            made = client.put(f"{UPLOADS}/a.bin", content=content_of(2 * MIB), headers=OFFER)
            assert (made.status_code, made.headers["upload-complete"]) == (201, "?1")

    @pytest.mark.parametrize("kind", TAKE_INTERIM_FOR_THE_ANSWER)
    async def test_nginx_takes_a_104_for_the_answer(self, tmp_path, kind):
        """This is why the service is told to send none. The day this fails, it may send them behind nginx."""

        async def service(reader, writer):
            await reader.readuntil(b"\r\n\r\n")
            writer.write(b"HTTP/1.1 104 Upload Resumption Supported\r\nLocation: /there\r\n\r\n")
            await reader.readexactly(5)
            writer.write(b"HTTP/1.1 201 Created\r\nContent-Length: 0\r\n\r\n")

        async with answering(service) as upstream:
            with running(tmp_path / "proxy", upstream, kind=kind) as port:
                async with connected(port) as (reader, writer):
                    writer.write(f"{self.HEAD}Content-Length: 5\r\n\r\nhello".encode())
                    await head_of_answer(reader)
                    said_of(tmp_path / "proxy", r'"PUT /api/ingestion/uploads/a.bin HTTP/1.1" 104 ')


async def head_of_answer(reader):
    """The status and the fields of the next answer, interim or not."""
    start, *lines = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")
    fields = (line.partition(":") for line in lines if line)
    return int(start.split()[1]), {name.lower(): value.strip() for name, _, value in fields}


class TestDownloads:
    def test_ranges(self, client):
        made = client.put(f"{UPLOADS}/a.bin", content=content_of(3 * MIB))
        content = made.json()["links"]["content"]
        part = client.get(content, headers={"Range": f"bytes={MIB}-{2 * MIB - 1}"})
        assert (part.status_code, part.headers["content-range"]) == (206, f"bytes {MIB}-{2 * MIB - 1}/{3 * MIB}")
        assert part.content == content_of(3 * MIB)[MIB : 2 * MIB]
        several = client.get(content, headers={"Range": "bytes=0-0,-1"})
        assert several.status_code == 206
        assert several.headers["content-type"].startswith("multipart/byteranges")
        assert client.get(content, headers={"Range": f"bytes={3 * MIB}-"}).status_code == 416
        etag = client.head(content).headers["etag"]
        assert client.get(content, headers={"If-None-Match": etag}).status_code == 304

    def test_a_text_comes_back_as_it_was_sent(self, client):
        text = b"hello " * 10_000
        made = client.put(f"{UPLOADS}/a.txt", content=text, headers={"Content-Type": "text/plain"})
        answer = client.get(made.json()["links"]["content"], headers={"Accept-Encoding": "gzip"})
        assert answer.headers["content-type"] == "text/plain"
        assert "content-encoding" not in answer.headers
        assert answer.headers["content-length"] == str(len(text))
        assert answer.headers["accept-ranges"] == "bytes"
        assert answer.content == text


class TestWhoAsks:
    def test_a_forwarded_header_of_a_client_is_not_believed(self, behind):
        number = f"claims-{behind.kind}"
        claims = [
            ("X-Forwarded-For", "192.0.2.1"),
            ("x-forwarded-for", "192.0.2.2"),
            ("X-Forwarded-Proto", "https"),
            ("Forwarded", "for=192.0.2.3;proto=https"),
            ("X-Request-Id", number),
        ]
        with behind.client(transport=httpx.HTTPTransport(local_address="127.0.0.2")) as other:
            answer = other.post("/api/session", headers=claims)
        assert answer.status_code == 200
        assert "; Secure" not in answer.headers["set-cookie"]
        assert behind.service.wait_for("answered", request_id=number)["client"] == "127.0.0.2"

    def test_a_page_is_known_by_the_host_and_port_that_its_browser_asked(self, client):
        headers = {"Host": "files.example:8080", "Origin": "http://files.example:8080"}
        assert client.post(UPLOADS, files={"file": ("a.txt", b"hello")}, headers=headers).status_code == 201
        headers["Origin"] = "http://files.example"
        assert client.post(UPLOADS, files={"file": ("a.txt", b"hello")}, headers=headers).status_code == 403

    @pytest.mark.parametrize("kind", KINDS)
    async def test_the_service_gets_the_request_as_it_was_and_one_hop(self, tmp_path, kind):
        heads = asyncio.Queue()

        async def service(reader, writer):
            head = await reader.readuntil(b"\r\n\r\n")
            writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n")
            if b"/health/live" not in head:
                heads.put_nowait(head)

        async with answering(service) as upstream:
            with running(tmp_path / "proxy", upstream, kind=kind) as port:
                async with connected(port) as (reader, writer):
                    writer.write(
                        b"GET /api/ingestion/uploads/a%2Fb%20c//?q=%2e HTTP/1.1\r\nHost: files.example:8080\r\n"
                        b"X-Forwarded-For: 10.1.2.3\r\nX-Forwarded-Proto: https\r\nX-Forwarded-Host: evil.example\r\n"
                        b"Forwarded: for=10.1.2.3;proto=https\r\n\r\n"
                    )
                    status, _ = await head_of_answer(reader)
                    assert status == 200
                request, *lines = (await heads.get()).decode().split("\r\n")
        assert request == "GET /api/ingestion/uploads/a%2Fb%20c//?q=%2e HTTP/1.1"
        assert sorted(
            line.lower() for line in lines if line.lower().startswith(("host", "x-forwarded", "forwarded"))
        ) == [
            "host: files.example:8080",
            "x-forwarded-for: 127.0.0.1",
            "x-forwarded-host: files.example:8080",
            "x-forwarded-proto: http",
        ]


class TestKeysInLogs:
    def test_a_key_is_cut(self, behind, client):
        made = client.post(UPLOADS, headers={**TUS, "Upload-Length": "5"})
        url = made.headers["location"]
        key = url.rpartition("/")[2]
        assert client.head(url, headers={**TUS, "Referer": f"{behind.url}{url}"}).status_code == 200
        said_of(behind.directory, rf"HEAD\W.*{UPLOADS}/{re.escape(key[:6])}\.\.\.|{key[:6]}\.\.\..*HEAD")
        assert client.get(f"/d/{key}").status_code == client.get(f"/u/{key}?a=b").status_code == 404
        said_of(behind.directory, rf"/u/{re.escape(key[:4])}\.\.\.")
        text = said_of(behind.directory, rf"/d/{re.escape(key[:4])}\.\.\.")
        assert key not in text

    @pytest.mark.parametrize("kind", KINDS)
    def test_a_key_is_cut_when_no_service_answers(self, away, tmp_path, kind):
        with running(tmp_path / "proxy", away, kind=kind) as port:
            answer = httpx.head(f"http://127.0.0.1:{port}{UPLOADS}/{KEY}", trust_env=False, timeout=PATIENCE)
            assert answer.status_code == 503
            said_of(tmp_path / "proxy", rf"{UPLOADS}/{KEY[:6]}\.\.\.")
        assert KEY not in logged(tmp_path / "proxy")


class TestWhatIsThere:
    @pytest.mark.parametrize("path", ["/metrics", "/metr%69cs"])
    def test_nobody_outside_learns_how_busy_the_service_is(self, behind, client, path):
        there, nowhere = client.get(path), client.get("/nowhere")
        assert there.status_code == nowhere.status_code == 404
        for name in ("content-type", "cache-control", "x-content-type-options"):
            assert there.headers[name] == nowhere.headers[name]
        assert there.json() | {"request_id": ""} == nowhere.json() | {"request_id": ""}
        assert there.json()["request_id"]
        assert httpx.get(f"{behind.service.url}/metrics", trust_env=False).status_code == 200

    @pytest.mark.parametrize("kind", KINDS)
    def test_a_service_that_is_away_is_said_in_its_own_words(self, away, tmp_path, kind):
        with running(tmp_path / "proxy", away, kind=kind) as port:
            answer = httpx.put(f"http://127.0.0.1:{port}{UPLOADS}/a", content=b"x", trust_env=False, timeout=PATIENCE)
        assert (answer.status_code, answer.headers["content-type"]) == (503, "application/problem+json")
        assert (answer.headers["retry-after"], answer.headers["cache-control"]) == ("2", "no-store")
        assert (answer.json()["code"], answer.json()["status"]) == ("unavailable", 503)

    @pytest.mark.parametrize("kind", KINDS)
    async def test_a_service_that_dies_over_a_request_is_said_alike(self, tmp_path, kind):
        async def service(reader, writer):
            if b"/health/live" in await reader.readuntil(b"\r\n\r\n"):
                writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n")

        async with answering(service) as upstream:
            with running(tmp_path / "proxy", upstream, kind=kind) as port:
                async with connected(port) as (reader, writer):
                    writer.write(
                        f"PATCH {UPLOADS}/{KEY} HTTP/1.1\r\nHost: x\r\nContent-Length: 5\r\n\r\nhello".encode()
                    )
                    status, headers = await head_of_answer(reader)
                    said_of(tmp_path / "proxy", rf"{UPLOADS}/{KEY[:6]}\.\.\.")
        assert (status, headers["content-type"]) == (503, "application/problem+json")
        assert KEY not in logged(tmp_path / "proxy")

    def test_a_service_that_is_away_is_passed_over(self, behind, away, tmp_path):
        with running(tmp_path / "proxy", away, behind.service.port, kind=behind.kind) as port:
            url = f"http://127.0.0.1:{port}{UPLOADS}/a.bin"
            for _ in range(4):
                assert httpx.put(url, content=content_of(MIB), trust_env=False, timeout=PATIENCE).status_code == 201

    async def test_a_service_that_went_away_a_moment_ago_is_passed_over(self, behind, tmp_path):
        """The proxy has asked it whether it answers, and does not know yet that it does not any more."""
        checked = asyncio.Event()

        async def service(reader, writer):
            await reader.readuntil(b"\r\n\r\n")
            writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\nConnection: close\r\n\r\n")
            checked.set()

        with ExitStack() as proxies:
            async with answering(service) as leaving:
                ports = (leaving, behind.service.port)
                port = proxies.enter_context(running(tmp_path / "proxy", *ports, kind=behind.kind))
                if not behind.kind.startswith("nginx"):  # which asks nobody
                    await checked.wait()
            # Caddy has closed a body by then: who sends one is told 503 until the next check, a second later.
            outcomes = {"GET": {200}, "PUT": {201, 503} if behind.kind == "caddy" else {201}}
            for method in ["GET", "GET", "PUT", "PUT"]:
                path, length = ("/health/live", 0) if method == "GET" else (f"{UPLOADS}/a", 5)
                async with connected(port) as (reader, writer):
                    head = f"{method} {path} HTTP/1.1\r\nHost: x\r\nContent-Length: {length}\r\n\r\n"
                    writer.write(head.encode() + b"hello"[:length])
                    status, headers = await head_of_answer(reader)
                    assert status in outcomes[method]
                    assert status != 503 or headers["retry-after"] == "2"
