"""Whatever is done to the bytes of a good request, the service answers, stores what was sent or nothing, and goes on.

Requests of every kind are cut, doubled, swapped and sprinkled with bytes, and sent to one service.
"""

import os
import socket
from contextlib import suppress
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.hostile.wire import END, FORM, Visitor, named, part
from tests.service import HISTORY, PATIENCE, UPLOADS

CHANGE = """
import app.web.exchange
app.web.exchange._LINGER_SECONDS = 0.05
"""
CONTENT = b"the content of a file, 0123456789\r\n" * 3
TUS = "Tus-Resumable: 1.0.0"
CHUNKED = b"Transfer-Encoding: chunked"


@pytest.fixture(scope="module")
def good(running):
    """Requests that are answered with success, as bytes; most bring CONTENT."""
    visitor = Visitor(running)
    length = f"Content-Length: {len(CONTENT)}"
    made = visitor.said_to(visitor.put(length) + CONTENT)[0].json()
    tus = visitor.asked(f"POST {UPLOADS}", TUS, "Upload-Length: 1000")["location"]
    half = b"%x\r\n%b\r\n" % (len(CONTENT) // 2, CONTENT[: len(CONTENT) // 2])
    rest = b"%x;a=b\r\n%b\r\n0\r\nA: b\r\n\r\n" % (len(CONTENT) - len(CONTENT) // 2, CONTENT[len(CONTENT) // 2 :])
    return [
        visitor.put(length, "Expect: 100-continue", close=False) + CONTENT,
        visitor.put(CHUNKED, name="%C3%A9.txt", close=False) + half + rest,
        visitor.post(CONTENT, b"text/plain", "Content-Disposition: attachment; filename*=UTF-8''a%20b"),
        visitor.post(part(named(b"a.txt") + b"\r\nContent-Type: text/plain", CONTENT) + END),
        visitor.post(part(named(b"a"), CONTENT) + part(b'Content-Disposition: form-data; name="b"') + END, FORM),
        visitor.put(length, "Upload-Complete: ?1", "Upload-Draft-Interop-Version: 6") + CONTENT,
        visitor.head(f"POST {UPLOADS}", TUS, "Upload-Length: 1000", "Upload-Metadata: filename YS50eHQ=", close=False),
        visitor.head(f"PATCH {tus}", TUS, "Upload-Offset: 0", "Content-Type: application/offset+octet-stream",
                     "Upload-Checksum: sha1 AAAAAAAAAAAAAAAAAAAAAAAAAAA=", length) + CONTENT,
        visitor.head(f"HEAD {tus}", TUS, close=False),
        visitor.head(f"GET {made['links']['content']}", "Range: bytes=0-1,4-5", 'If-Match: *', close=False),
        visitor.head(f"GET {HISTORY}?limit=5&filename=a&from=2020-01-01&count=true", "Accept: text/csv", close=False),
        visitor.head("POST /api/session/join", "Content-Length: 26") + b'{"code": "ABCD-EFGH-JKMN"}',
        visitor.head(f"OPTIONS {UPLOADS}", "Origin: http://x", "Access-Control-Request-Method: PUT", close=False),
    ]  # fmt: skip


BITS = [
    b"\r\n", b"\n", b"\r", b"\0", b" ", b"\t", b":", b";", b",", b'"', b"\\", b"../", b"?", b"#", b"%00", b"%ff",
    b"\xff", b"--B", b"--B--", b"0\r\n\r\n", b"\r\n\r\n", b"-1", b"9" * 19, b"HTTP/1.0", b"Content-Length: 0\r\n",
    b"Host: y\r\n", b"Transfer-Encoding: chunked\r\n", b"Expect: 100-continue\r\n", b"Connection: close\r\n",
    b"Upgrade: h2c\r\n",
]  # fmt: skip
noise = st.binary(min_size=1, max_size=6) | st.sampled_from(BITS)
ACCIDENTS = ["insert", "overwrite", "delete", "double", "cut", "swap lines", "double a line", "drop a line"]


@st.composite
def mutated(draw, request):
    """The request after a few accidents, each to its bytes or to its lines."""
    for _ in range(draw(st.integers(1, 4))):
        at, until = sorted((draw(st.integers(0, len(request))), draw(st.integers(0, len(request)))))
        lines = request.split(b"\r\n")
        first, second = (draw(st.integers(0, len(lines) - 1)) for _ in range(2))
        match draw(
            st.sampled_from(
                ["insert", "overwrite", "delete", "double", "cut", "swap-lines", "double-line", "drop-line"]
            )
        ):
            case "insert":
                request = request[:at] + draw(noise) + request[at:]
            case "overwrite":
                request = request[:at] + (new := draw(noise)) + request[at + len(new) :]
            case "delete":
                request = request[:at] + request[min(until, at + draw(st.integers(1, 40))) :]
            case "double":
                request = request[:until] + request[at:]
            case "cut":
                request = request[:until]
            case "swap lines":
                lines[first], lines[second] = lines[second], lines[first]
                request = b"\r\n".join(lines)
            case "double a line":
                request = b"\r\n".join([*lines[:first], lines[second], *lines[first:]])
            case "drop a line":
                request = b"\r\n".join(lines[:first] + lines[first + 1 :])
    return request


def statuses(running, pieces):
    """The status of every response to these pieces, then the end of what the client has to say."""
    with socket.create_connection(("127.0.0.1", running.port), timeout=PATIENCE) as connection:
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        received = b""
        with suppress(ConnectionError):
            for piece in pieces:
                connection.sendall(piece)
        connection.settimeout(0.02)  # who needs longer for his answer does not hear it: the end below goes before
        with suppress(ConnectionError, TimeoutError):
            while block := connection.recv(65536):
                received += block
        connection.settimeout(PATIENCE)
        with suppress(OSError):  # it has ended already
            connection.shutdown(socket.SHUT_WR)
        with suppress(ConnectionError):
            while block := connection.recv(65536):
                received += block
    return [int(line[9:12]) for line in received.split(b"\r\n") if line.startswith(b"HTTP/1.1 ")]


@pytest.fixture(scope="module")
def seen(running):
    """The files that are known, and what was sent of late. In the end nothing is left of what was not stored."""
    yield set(), []
    assert running.stop() == 0
    assert [path for path in (running.store / "staging").rglob("*") if path.is_file() and path.name != "lock"] == []


def was_sent(content, request):
    """Whether these bytes stand in the request: one after the other, but for what a chunk puts between them."""
    left = iter(request)
    return content in request or (b"chunked" in request.lower() and all(byte in left for byte in content))


@given(data=st.data())
def test_whatever_is_sent_the_service_answers_and_stores_what_was_sent_or_nothing(running, good, seen, data):
    files, sent = seen
    request = data.draw(mutated(data.draw(st.sampled_from(good))))
    cuts = sorted(data.draw(st.lists(st.integers(0, len(request)), max_size=3)))
    pieces = [request[start:stop] for start, stop in zip([0, *cuts], [*cuts, len(request)], strict=True)]
    said = statuses(running, pieces)
    assert all(status < 500 or status in (503, 507) for status in said), said
    with running.client() as client:
        assert client.put(f"{UPLOADS}/next", content=b"hello").json()["status"] == "completed"
    sent[:] = [*sent, request][-3:]  # one that was cut off may land a moment later
    found = {os.path.join(place, name) for place, _, names in os.walk(running.store / "files") for name in names}
    for path in found - files:
        content = Path(path).read_bytes()
        assert content in (b"hello", CONTENT) or any(was_sent(content, request) for request in sent)
    files |= found
