"""The connection itself: what is no request is refused in the service's words, and nobody holds a connection idly."""

import json
import socket
import time
from contextlib import closing

import pytest

from tests.support.service import HISTORY, PATIENCE, UPLOADS, Service, service

__all__ = ["service"]

PUT = b"PUT /api/ingestion/uploads/a.bin HTTP/1.1\r\nHost: x\r\n"
LIVE = b"GET /health/live HTTP/1.1\r\nHost: x\r\n\r\n"
LAST = b"GET /health/live HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"

IMPATIENT = """
from app.server.connection import Connection
Connection.HEAD_SECONDS = 1.0
Connection.STALLED_SECONDS = 0.5
"""


@pytest.fixture(scope="module")
def running(tmp_path_factory):
    """One service for all whom it refuses; it must be as good as new after each."""
    with closing(Service(tmp_path_factory.mktemp("service"))) as running:
        yield running.start()


@pytest.fixture(scope="module")
def impatient(tmp_path_factory):
    """One that waits for a second where others wait for ten, and for a stalled reader less."""
    with closing(Service(tmp_path_factory.mktemp("impatient"), change=IMPATIENT)) as running:
        yield running.start()


@pytest.fixture(scope="module")
def offering(tmp_path_factory):
    """One that offers to resume in two interop versions."""
    with closing(Service(tmp_path_factory.mktemp("offering"), interop_versions="6,10")) as running:
        yield running.start()


def connect(running):
    return socket.create_connection(("127.0.0.1", running.port), timeout=PATIENCE)


def rest(connection):
    """All that still comes, up to the end of the connection."""
    received = bytearray()
    try:
        while block := connection.recv(65536):
            received += block
    except ConnectionResetError:
        pass
    return bytes(received)


def said_to(running, *pieces):
    """What is answered to these bytes, until the service ends the connection."""
    with connect(running) as connection:
        try:
            for piece in pieces:
                connection.sendall(piece)
        except (ConnectionResetError, BrokenPipeError):
            pass
        return rest(connection)


def understood(answer):
    """Status, headers and body of one whole answer, and what follows it."""
    head, _, rest = answer.partition(b"\r\n\r\n")
    start, *lines = head.decode("ascii").split("\r\n")
    headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
    length = int(headers.get("content-length", 0))
    return int(start.split()[1]), headers, rest[:length], rest[length:]


def next_answer(connection):
    """The answer that comes on a connection that stays open."""
    received = bytearray()
    while True:
        block = connection.recv(65536)
        assert block, f"the connection ended after {received}"
        received += block
        if b"\r\n\r\n" in received:
            answer = understood(bytes(received))
            if len(answer[2]) == int(answer[1]["content-length"]):
                return answer


def is_refused(answer, detail=""):
    status, headers, body, more = understood(answer)
    problem = json.loads(body)
    assert (status, problem["code"], problem["status"]) == (400, "bad_request", 400)
    assert headers["content-type"] == "application/problem+json"
    assert headers["connection"] == "close"
    assert headers["x-request-id"] == problem["request_id"]
    assert detail in problem["detail"]
    assert more == b""


@pytest.mark.parametrize(
    "spoken",
    [
        b"nonsense\r\n\r\n",
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(64),  # somebody believes that this is HTTPS
        b"GET /health/live\r\n\r\n",
        b"GET /health/live HTTP/0.9\r\nHost: x\r\n\r\n",
        b"GET /health/live HTTP/1.2\r\nHost: x\r\n\r\n",
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
        b"GET /health/live HTTP/1.1\r\nHost : x\r\n\r\n",
        b"GET /health/live HTTP/1.1\r\nHost: x\r\nA: b\x00c\r\n\r\n",
        b"GET /health/live HTTP/1.1\r\nHost: x\r\nA: b\r\n c\r\n\r\n",
        b"GET /health/live HTTP/1.1\nHost: x\n\n",
        PUT + b"Content-Length: 1\r\nContent-Length: 1\r\n\r\nx",
        PUT + b"Content-Length: 1, 1\r\n\r\nx",
        PUT + b"Content-Length: -1\r\n\r\n",
        PUT + b"Content-Length: +1\r\n\r\nx",
        PUT + b"Content-Length: 0x1\r\n\r\nx",
        PUT + b"Content-Length: 18446744073709551616\r\n\r\n",
        PUT + b"Content-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        PUT + b"Transfer-Encoding: chunked, identity\r\n\r\n0\r\n\r\n",
        PUT + b"Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        PUT + b"Transfer-Encoding: chunked\r\n\r\n1g\r\nx\r\n0\r\n\r\n",
        PUT + b"Transfer-Encoding: chunked\r\n\r\nfffffffffffffffff\r\nx",
        PUT + b"Transfer-Encoding: chunked\r\n\r\n1\r\nxy\r\n0\r\n\r\n",
    ],
    ids=lambda spoken: spoken[:200].decode("ascii", "backslashreplace"),
)
def test_bytes_that_are_no_http_are_refused(running, spoken):
    is_refused(said_to(running, spoken))


@pytest.mark.parametrize(
    ("spoken", "detail"),
    [
        (b"GET /health/live HTTP/1.1\r\n\r\n", "exactly one Host"),
        (b"GET /health/live HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n", "exactly one Host"),
        (PUT + b"Transfer-Encoding: gzip, chunked\r\n\r\n0\r\n\r\n", "chunked, once"),
        (b"PUT / HTTP/1.0\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n", "with HTTP/1.1"),
        (b"GET /" + b"a" * 70_000 + b" HTTP/1.1\r\nHost: x\r\n\r\n", "more than 65536 bytes"),
        (b"GET / HTTP/1.1\r\nHost: x\r\nA: " + b"a" * 70_000 + b"\r\n\r\n", "more than 65536 bytes"),
        (b"GET / HTTP/1.1\r\nHost: x\r\n" + b"A: b\r\n" * 70_000 + b"\r\n", "more than 65536 bytes"),
    ],
    ids=lambda value: value[:60].decode("ascii") if isinstance(value, bytes) else value,
)
def test_an_ambiguous_or_overlong_request_is_refused(running, spoken, detail):
    is_refused(said_to(running, spoken), detail)


@pytest.mark.parametrize(
    "endless",
    [
        [b"GET /"] + [b"a" * 10_000] * 200,
        [b"GET / HTTP/1.1\r\nHost: x\r\nA: "] + [b"a" * 10_000] * 200,
        [PUT + b"Transfer-Encoding: chunked\r\n\r\n1;"] + [b"a" * 10_000] * 200,
        [PUT + b"Transfer-Encoding: chunked\r\n\r\n1\r\nx\r\n0\r\nA: "] + [b"a" * 10_000] * 200,
    ],
    ids=["path", "header", "chunk extension", "trailer"],
)
def test_a_head_without_end_is_refused_before_it_fills_the_memory(running, endless):
    """Piece by piece, as a parser that keeps what it has not understood yet would keep it all."""
    before = running.memory()
    with connect(running) as connection:
        sent = 0
        try:
            for piece in endless:
                connection.sendall(piece)
                sent += len(piece)
                time.sleep(0.0005)
        except (ConnectionResetError, BrokenPipeError):
            pass
        assert sent < 2_000_000
        answer = rest(connection)
    if answer:  # else it was still sending when the connection was cut
        is_refused(answer)
    assert running.memory() < before + 4_000_000


def test_nothing_of_a_body_that_is_malformed_is_stored(running):
    headers = running.session()
    cookie = f"Cookie: {headers['Cookie']}\r\n".encode()
    is_refused(said_to(running, PUT + cookie + b"Transfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n", b"x\r\n"))
    running.wait_for("answered", count=1)
    with running.client(headers=headers) as client:
        assert client.get(HISTORY, params={"status": "completed"}).json()["items"] == []


def test_requests_may_come_one_by_one_and_pipelined(running):
    with connect(running) as connection:
        connection.sendall(LIVE)
        status, _, body, more = next_answer(connection)
        assert (status, body, more) == (200, b'{"status":"live"}', b"")
        nowhere = LIVE.replace(b"/health/live", b"/nowhere")
        connection.sendall(LIVE + nowhere + LAST)
        first, _, _, more = understood(rest(connection))
        second, _, _, more = understood(more)
        third, _, _, more = understood(more)
        assert (first, second, third, more) == (200, 404, 200, b"")


def test_many_small_requests_in_one_piece_are_not_one_large_one(running):
    with connect(running) as connection:
        connection.sendall(LIVE * 2_000 + LAST)  # more than a head may have
        assert rest(connection).count(b"HTTP/1.1 200 OK") == 2_001


def test_many_small_chunks_count_as_a_body_and_not_as_framing(running):
    with running.client() as client:
        made = client.put(f"{UPLOADS}/a.bin", content=(b"x" for _ in range(20_000)))
    assert made.status_code == 201
    assert made.json()["size"] == 20_000


def test_trailers_are_ignored(running):
    body = b"Transfer-Encoding: chunked\r\nConnection: close\r\n\r\n5\r\nhello\r\n0\r\nContent-Encoding: gzip\r\n\r\n"
    assert understood(said_to(running, PUT + body))[0] == 201


def test_an_upgrade_is_not_made_and_the_parser_that_stops_at_it_gets_no_second_request(running):
    upgrade = b"Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAMAAABk\r\n\r\n"
    status, headers, _, more = understood(said_to(running, LIVE[:-2] + upgrade))
    assert (status, headers["connection"], more) == (200, "close", b"")
    status, _, body, more = understood(said_to(running, PUT + b"Content-Length: 5\r\n" + upgrade + b"hello" + LIVE))
    assert (status, json.loads(body)["size"], more) == (201, 5, b"")
    assert not any("Unsupported" in warning for warning in running.said("warning"))


class TestTimeouts:
    def test_a_silent_connection_is_closed(self, impatient):
        assert said_to(impatient) == b""

    @pytest.mark.parametrize("piece", [b"GET /health/li", b"\r\n", b"GET / HTTP/1.1\r\nHost: x\r\nA: b\r\n"])
    def test_a_head_that_does_not_end_is_not_waited_for(self, impatient, piece):
        assert said_to(impatient, piece) == b""

    def test_a_head_may_not_come_drop_by_drop(self, impatient):
        with connect(impatient) as connection:
            connection.sendall(b"GET / HTTP/1.1\r\nA: ")
            connection.settimeout(0.05)
            for _ in range(round(PATIENCE / 0.05)):
                try:
                    connection.sendall(b"A")
                    assert connection.recv(1) == b""
                    return
                except TimeoutError:
                    continue  # still open: the next drop
                except (ConnectionResetError, BrokenPipeError):
                    return
            pytest.fail("it waits for ever")

    def test_a_second_head_that_does_not_end_is_not_waited_for(self, impatient):
        with connect(impatient) as connection:
            connection.sendall(LIVE)
            assert next_answer(connection)[0] == 200
            connection.sendall(b"GET /hea")
            assert rest(connection) == b""

    def test_an_idle_connection_is_kept_for_longer_than_a_head_may_take(self, impatient):
        with connect(impatient) as connection, connect(impatient) as silent:
            connection.sendall(LIVE)
            assert next_answer(connection)[0] == 200
            assert rest(silent) == b""  # so a head's time is over
            connection.sendall(LIVE)
            assert next_answer(connection)[0] == 200

    def test_a_body_may_take_longer_than_a_head(self, impatient):
        with connect(impatient) as connection, connect(impatient) as silent:
            connection.sendall(PUT + b"Content-Length: 5\r\nConnection: close\r\n\r\nhe")
            assert rest(silent) == b""
            connection.sendall(b"llo")
            assert understood(rest(connection))[0] == 201

    def test_a_client_that_reads_nothing_of_an_answer_is_cut_off(self, impatient):
        headers = impatient.session()
        with impatient.client(headers=headers) as client:
            made = client.put(f"{UPLOADS}/large.bin", content=bytes(32 * 1024 * 1024)).json()
        with connect(impatient) as connection:
            link = made["links"]["content"]
            connection.sendall(f"GET {link} HTTP/1.1\r\nHost: x\r\nCookie: {headers['Cookie']}\r\n\r\n".encode())
            impatient.wait_for("answered", path=link)
            assert len(rest(connection)) < made["size"]


class TestProxies:
    def who(self, running, *, client, scheme):
        """What the service makes of a request that says that it was forwarded."""
        headers = {"X-Forwarded-For": client, "X-Forwarded-Proto": scheme, "X-Request-Id": client.replace(":", "_")}
        with running.client(headers=headers) as asking:
            cookie = asking.post("/api/session").headers["set-cookie"]
        line = running.wait_for("answered", request_id=client.replace(":", "_"))
        return line["client"], "; Secure" in cookie

    def test_a_trusted_proxy_is_believed(self, service):
        running = service(trusted_proxies="127.0.0.0/8,10.0.0.0/8")
        assert self.who(running, client="192.0.2.1", scheme="https") == ("192.0.2.1", True)
        assert self.who(running, client="2001:db8::1", scheme="http") == ("2001:db8::1", False)

    def test_an_untrusted_proxy_is_not_believed(self, running):
        assert self.who(running, client="192.0.2.1", scheme="https") == ("127.0.0.1", False)


class TestInterim:
    """104, which tells a client while it sends where it could go on."""

    CONTENT = bytes(range(256)) * 1025  # more than waits in memory
    DONE = b"Content-Length: 262400\r\nUpload-Complete: ?1\r\n"
    SMALL = b"Content-Length: 5\r\nUpload-Complete: ?1\r\n"
    LAST = b"Connection: close\r\n\r\n"

    def responses(self, received):
        """Every response, the interim ones too."""
        found = []
        while received:
            response = understood(received)
            found.append(response[:3])
            received = response[3]
        return found

    def version(self, number):
        return f"Upload-Draft-Interop-Version: {number}\r\n".encode()

    @pytest.mark.parametrize("number", [6, 10])
    def test_the_interim_response_is_sent_before_the_body_comes(self, offering, number):
        with connect(offering) as connection:
            connection.sendall(PUT + self.DONE + self.version(number) + self.LAST)
            received = connection.recv(65536)
            while b"\r\n\r\n" not in received:
                received += connection.recv(65536)
            assert received.startswith(b"HTTP/1.1 104 Upload Resumption Supported\r\n")
            [(_, headers, _)] = self.responses(received)
            assert headers["upload-draft-interop-version"] == str(number)
            assert "max-size=" in headers["upload-limit"]
            connection.sendall(self.CONTENT[:3])
        with offering.client() as client:  # it went away, and knows where it can go on
            url = headers["location"]
            asked = client.head(url)
            assert asked.headers["upload-complete"] == "?0"
            offset = int(asked.headers["upload-offset"])
            fields = {"Content-Type": "application/partial-upload", "Upload-Offset": str(offset)}
            answer = client.patch(url, headers={**fields, "Upload-Complete": "?1"}, content=self.CONTENT[offset:])
            assert answer.status_code == 201
            assert (answer.json()["size"], answer.json()["filename"]) == (len(self.CONTENT), "a.bin")

    def test_the_interim_response_does_not_replace_100_continue(self, offering):
        head = PUT + self.DONE + self.version(6) + b"Expect: 100-continue\r\n" + self.LAST
        responses = self.responses(said_to(offering, head, self.CONTENT))
        assert [status for status, _, _ in responses] == [104, 100, 201]
        assert responses[2][1]["upload-complete"] == "?1"

    @pytest.mark.parametrize("number", [8, 77])
    def test_a_client_of_another_version_is_sent_no_interim_response(self, offering, number):
        [(status, headers, _)] = self.responses(
            said_to(offering, PUT + self.DONE + self.version(number) + self.LAST, self.CONTENT)
        )
        assert (status, headers["upload-complete"]) == (201, "?1")

    def test_a_client_without_a_version_or_an_offer_is_sent_no_interim_response(self, offering):
        for fields in (self.DONE, b"Content-Length: 262400\r\n" + self.version(6)):
            [(status, _, _)] = self.responses(said_to(offering, PUT + fields + self.LAST, self.CONTENT))
            assert status == 201

    def test_a_small_upload_is_sent_no_interim_response(self, offering):
        head = PUT + self.SMALL + self.version(6) + self.LAST
        [(status, headers, _)] = self.responses(said_to(offering, head, b"hello"))
        assert (status, headers["upload-complete"]) == (201, "?1")

    def test_an_http_1_0_client_is_sent_no_interim_response(self, offering):
        head = (PUT + self.DONE + self.version(6) + self.LAST).replace(b"HTTP/1.1", b"HTTP/1.0")
        assert [status for status, _, _ in self.responses(said_to(offering, head, self.CONTENT))] == [201]

    def test_no_request_gets_more_than_the_five_that_the_client_of_go_takes(self, service):
        running = service(change="import app.resumables.writer; app.resumables.writer.CHECKPOINT_SECONDS = 0.0")
        head = PUT + b"Content-Length: 20971520\r\nUpload-Complete: ?1\r\nExpect: 100-continue\r\n" + self.version(10)
        responses = self.responses(said_to(running, head + self.LAST, bytes(20 * 1024 * 1024)))
        assert [status for status, _, _ in responses] == [104, 100, 104, 104, 104, 201]
        offsets = [int(headers["upload-offset"]) for _, headers, _ in responses[2:5]]
        assert 8 * offsets[0] <= offsets[1] <= offsets[2] // 8

    def test_interim_responses_can_be_turned_off(self, service):
        running = service(interim_responses="false")
        [(status, headers, _)] = self.responses(
            said_to(running, PUT + self.DONE + self.version(6) + self.LAST, self.CONTENT)
        )
        assert (status, headers["upload-complete"]) == (201, "?1")
