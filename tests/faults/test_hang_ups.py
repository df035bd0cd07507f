"""F22. Clients that go without a word, at every point of a request: there is no file, or exactly the one they sent."""

import socket
import struct
from collections.abc import Iterator
from contextlib import closing

import pytest

from tests.hostile.wire import CRLF, END, FORM, Visitor, cases, named, part, rest
from tests.support.sender import TUS
from tests.support.service import UPLOADS, Service

CHANGE = """
import app.web.body
app.web.body.PACE_SECONDS = 0.5
"""
CONTENT = bytes(range(256)) * 2000  # more than waits in memory
CHUNKED = b"Transfer-Encoding: chunked"
HALF = len(CONTENT) // 2


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    directory = tmp_path_factory.mktemp("service")
    with closing(Service(directory, change=CHANGE, min_upload_rate=1024)) as running:
        yield running.start()
        assert running.said("error") + running.said("critical") == []
        assert running.stop() == 0


@pytest.fixture
def visitor(running: Service) -> Visitor:
    return Visitor(running)


def chunk(content: bytes) -> bytes:
    return b"%x\r\n%b\r\n" % (len(content), content)


FORM_BODY = part(named(b"a.bin"), CONTENT) + END
KNOWN = [b"Content-Length: %d" % len(CONTENT)]
POINTS = {
    "in a body": (KNOWN, CONTENT[:HALF]),
    "before a body": (KNOWN, b""),
    "in a chunk": ([CHUNKED], chunk(CONTENT[:HALF]) + b"100\r\nsome of it"),
    "in the header of a chunk": ([CHUNKED], chunk(CONTENT[:HALF]) + b"1f"),
    "between chunks": ([CHUNKED], chunk(CONTENT)),
    "in the last chunk": ([CHUNKED], chunk(CONTENT) + b"0\r\n"),
    "in a form": ([b"Content-Type: " + FORM, b"Content-Length: %d" % len(FORM_BODY)], FORM_BODY[:HALF]),
    "before the end of a form": ([b"Content-Type: " + FORM, CHUNKED], chunk(FORM_BODY[: -len(END)])),
}
WHOLE = {
    "a body": (KNOWN, CONTENT),
    "chunks": ([CHUNKED], chunk(CONTENT) + b"0\r\n\r\n"),
    "a form": ([b"Content-Type: " + FORM, b"Content-Length: %d" % len(FORM_BODY)], FORM_BODY),
}


def head(visitor: Visitor, lines: list[bytes]) -> bytes:
    if any(FORM in line for line in lines):
        return visitor.head(f"POST {UPLOADS}", *lines)
    return visitor.put(*lines)


def leave(connection: socket.socket, how: str) -> None:
    if how == "RST":
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    connection.close()


@pytest.mark.parametrize(("lines", "body"), cases(POINTS))
def test_a_client_reset_in_the_middle_leaves_nothing(visitor, lines, body):
    """Who only ends his side stands in tests/hostile/test_framing.py."""
    connection = visitor.connect()
    connection.sendall(head(visitor, lines) + body)
    leave(connection, "RST")
    assert visitor.ended()["code"] == "incomplete_body"
    visitor.left_nothing("incomplete_body")


@pytest.mark.torture
def test_a_client_silent_in_the_middle_leaves_nothing(running):
    """The service has enough of it after a while, and says so to whoever still listens."""
    silent = [(Visitor(running), *point) for point in POINTS.values()]
    connections = [visitor.connect() for visitor, _, _ in silent]
    for (visitor, lines, body), connection in zip(silent, connections, strict=True):
        connection.sendall(head(visitor, lines) + body)
    for (visitor, _, _), connection in zip(silent, connections, strict=True):
        with connection:
            assert rest(connection).startswith(b"HTTP/1.1 408 ")
        assert visitor.ended()["code"] == "too_slow"
    for visitor, _, _ in silent:
        visitor.left_nothing("too_slow")


@pytest.mark.parametrize("how", ["RST", "FIN"])
@pytest.mark.parametrize(("lines", "body"), cases(WHOLE))
def test_a_client_leaving_before_the_answer_has_sent_one_file_or_none(visitor, lines, body, how):
    """With FIN everything had come, so it is there. What is on its way when a connection is reset may be lost."""
    connection = visitor.connect()
    connection.sendall(head(visitor, lines) + body)
    leave(connection, how)
    visitor.ended()
    if how == "FIN" or visitor.history() == [("completed", None)]:
        visitor.left(CONTENT)
    else:
        visitor.left_nothing("incomplete_body")


@pytest.mark.parametrize("how", ["RST", "FIN"])
@pytest.mark.parametrize("sent", [HALF, len(CONTENT)])
def test_a_client_leaving_a_resumable_upload_goes_on_where_it_was(visitor, sent, how):
    """Asked for the offset the client learns what came; when all did, the answer alone was lost."""
    tus = [f"{name}: {value}" for name, value in TUS.items()]
    url = visitor.asked(f"POST {UPLOADS}", *tus, f"Upload-Length: {len(CONTENT)}", "Content-Length: 0")["location"]

    def append(offset: int) -> bytes:
        append_type = "Content-Type: application/offset+octet-stream"
        length = f"Content-Length: {len(CONTENT) - offset}"
        return visitor.head(f"PATCH {url}", *tus, f"Upload-Offset: {offset}", append_type, length)

    connection = visitor.connect()
    connection.sendall(append(0) + CONTENT[:sent])
    leave(connection, how)
    offset = int(visitor.asked(f"HEAD {url}", *tus)["upload-offset"])
    assert 0 <= offset <= sent
    if offset < len(CONTENT):
        [answer] = visitor.said_to(append(offset) + CONTENT[offset:])
        assert (answer.status, answer["upload-offset"]) == (204, str(len(CONTENT)))
    visitor.left(CONTENT)


def test_a_head_that_never_ends_is_no_request(visitor):
    with visitor.connect() as connection:
        connection.sendall(visitor.put(*KNOWN).removesuffix(CRLF))
        leave(connection, "RST")
    visitor.left_nothing()
