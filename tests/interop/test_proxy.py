"""The service behind the real nginx, with the configuration of the repository."""

import base64
import hashlib
import json
import socket
import subprocess
import time

import httpx
import pytest

from tests.support.proxy import proxy
from tests.support.service import HISTORY, PATIENCE, UPLOADS, service
from tests.support.tools import tool

pytestmark = pytest.mark.slow

__all__ = ["proxy", "service"]

MIB = 1024 * 1024
PIECE = bytes(range(256)) * 4096


@pytest.fixture
def behind(service, proxy):
    """The service, and the port of the proxy in front of it."""
    running = service(trusted_proxies="127.0.0.1")
    return running, proxy(running.port)


@pytest.fixture
def client(behind):
    running, port = behind
    with running.client() as client:
        client.base_url = f"http://127.0.0.1:{port}"
        yield client


def test_an_upload_through_the_proxy_is_listed_downloaded_and_deleted(client):
    made = client.post(UPLOADS, files={"file": ("a.txt", b"0123456789")})
    assert made.status_code == 201
    [item] = made.json()["items"]
    assert client.get(HISTORY).json()["items"] == [item]
    content = item["links"]["content"]
    assert client.get(content).content == b"0123456789"
    part = client.get(content, headers={"Range": "bytes=2-4"})
    assert (part.status_code, part.content, part.headers["content-range"]) == (206, b"234", "bytes 2-4/10")
    parts = client.get(content, headers={"Range": "bytes=0-0,-1"})
    assert parts.status_code == 206
    assert parts.headers["content-type"].startswith("multipart/byteranges")
    assert client.get(content, headers={"Range": "bytes=10-"}).status_code == 416
    etag = client.head(content).headers["etag"]
    assert client.get(content, headers={"If-None-Match": etag}).status_code == 304
    assert client.delete(content).status_code == 204
    assert client.get(content).json()["code"] == "not_found"


def test_the_proxys_log_has_no_key_of_an_upload(client, tmp_path):
    made = client.post(UPLOADS, headers={"Tus-Resumable": "1.0.0", "Upload-Length": "5"})
    key = made.headers["location"].rpartition("/")[2]
    assert client.head(made.headers["location"]).status_code == 200
    assert client.get("/health/live").status_code == 200  # by now the lines before are written
    [log] = tmp_path.glob("nginx-*/access.log")
    text = log.read_text()
    assert f"HEAD {UPLOADS}/{key[:6]}..." in text
    assert key not in text


def test_metrics_are_not_reachable_from_outside(client, behind):
    running, _ = behind
    there, nowhere = client.get("/metrics"), client.get("/nowhere")
    assert there.status_code == nowhere.status_code == 404
    for name in ("content-type", "cache-control", "x-content-type-options"):
        assert there.headers[name] == nowhere.headers[name]
    assert there.json() | {"request_id": ""} == nowhere.json() | {"request_id": ""}
    assert httpx.get(f"{running.url}/metrics").status_code == 200


@pytest.mark.parametrize("length", ["declared", "unknown"])
def test_a_large_file_streams_through_in_both_directions(client, behind, length):
    """Nothing is kept on the way: it lies in the service's staging while the client still sends."""
    running, _ = behind
    digest, seen = hashlib.sha256(), []

    def pieces():
        for number in range(16):
            if number == 15:
                seen.append(wait_for_staged(running, 8 * MIB))
            piece = number.to_bytes(4, "big") + PIECE[4:]
            digest.update(piece)
            yield piece

    headers = {"Content-Length": str(16 * MIB)} if length == "declared" else {}
    made = client.put(f"{UPLOADS}/large.bin", content=pieces(), headers=headers)
    assert made.status_code == 201
    assert seen == [True]
    assert (made.json()["size"], made.json()["sha256"]) == (16 * MIB, digest.hexdigest())
    received = hashlib.sha256()
    with client.stream("GET", made.json()["links"]["content"]) as answer:
        assert answer.headers["content-length"] == str(16 * MIB)
        for block in answer.iter_raw():
            received.update(block)
    assert received.hexdigest() == digest.hexdigest()


def wait_for_staged(running, size):
    """Whether that many bytes come to lie in staging although the rest is not sent yet."""
    for _ in range(round(PATIENCE / 0.01)):
        files = (running.store / "staging").glob("*/*")
        if sum(file.stat().st_size for file in files) >= size:
            return True
        time.sleep(0.01)
    return False


def test_a_refusal_comes_through_before_the_end_of_the_body(service, proxy):
    running = service(max_file_size=1_000_000)
    port = proxy(running.port)
    command = [tool("curl"), "--silent", "--upload-file", "-", "--max-time", "30", "--write-out", "\n%{http_code}"]
    url = f"http://127.0.0.1:{port}{UPLOADS}/large.bin"
    done = subprocess.run([*command, url], input=bytes(64 * MIB), capture_output=True, timeout=PATIENCE)
    body, _, status = done.stdout.rpartition(b"\n")
    assert (status, json.loads(body)["code"]) == (b"413", "too_large")


def test_the_service_learns_who_asks_and_believes_no_client_about_itself(client, behind):
    """The configuration replaces what clients claim: nobody can pretend to be another or to use HTTPS."""
    running, port = behind
    claims = {"X-Forwarded-For": "192.0.2.1", "X-Forwarded-Proto": "https", "X-Request-Id": "forwarded"}
    elsewhere = httpx.HTTPTransport(local_address="127.0.0.2")
    with httpx.Client(transport=elsewhere, base_url=f"http://127.0.0.1:{port}") as other:
        answer = other.post("/api/session", headers=claims)
    assert "; Secure" not in answer.headers["set-cookie"]
    assert running.wait_for("answered", request_id="forwarded")["client"] == "127.0.0.2"


def test_a_service_that_is_away_is_answered_by_a_problem(behind, client):
    running, _ = behind
    assert client.get("/health/live").status_code == 200
    assert running.stop() == 0
    answer = client.get("/health/live")
    assert (answer.status_code, answer.json()["code"]) == (503, "unavailable")
    assert answer.headers["content-type"] == "application/problem+json"
    assert int(answer.headers["retry-after"]) > 0


def test_an_upload_that_breaks_off_before_the_proxy_goes_on_behind_it(service, proxy):
    running = service(trusted_proxies="127.0.0.1", interim_responses="false")
    port = proxy(running.port)
    tus = {"Tus-Resumable": "1.0.0"}
    described = "filename " + base64.b64encode(b"x" * 100).decode() + ",note " + base64.b64encode(bytes(5000)).decode()
    content = bytes(range(256)) * 8192
    with running.client() as client:
        client.base_url = f"http://127.0.0.1:{port}"
        made = client.post(UPLOADS, headers={**tus, "Upload-Length": str(len(content)), "Upload-Metadata": described})
        assert made.status_code == 201
        url = made.headers["location"]
        head = (
            f"PATCH {url} HTTP/1.1\r\nHost: x\r\nTus-Resumable: 1.0.0\r\nUpload-Offset: 0\r\n"
            f"Content-Type: application/offset+octet-stream\r\nContent-Length: {len(content)}\r\n\r\n"
        )
        with socket.create_connection(("127.0.0.1", port), timeout=PATIENCE) as connection:
            connection.sendall(head.encode() + content[: MIB // 2])
            offset = 0
            for _ in range(round(PATIENCE / 0.01)):  # until something has come through
                asked = client.head(url, headers=tus)
                assert asked.status_code == 200, (asked, running.events[-4:])
                offset = int(asked.headers["upload-offset"])
                if offset:
                    break
                time.sleep(0.01)
        assert 0 < offset <= MIB // 2
        chunk = {**tus, "Content-Type": "application/offset+octet-stream", "Upload-Offset": str(offset)}
        assert client.patch(url, headers=chunk, content=content[offset:]).status_code == 204
        [record] = client.get(HISTORY).json()["items"]
        assert (record["status"], record["sha256"]) == ("completed", hashlib.sha256(content).hexdigest())
        # And who offers to be resumable just uploads, on a connection that is good for more.
        offer = {"Upload-Complete": "?1", "Upload-Draft-Interop-Version": "6"}
        for _ in range(2):
            answer = client.put(f"{UPLOADS}/a.txt", content=b"hello", headers=offer)
            assert (answer.status_code, answer.headers["upload-complete"], answer.json()["size"]) == (201, "?1", 5)
