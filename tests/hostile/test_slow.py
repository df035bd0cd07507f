"""Who sends just enough not to be silent: a body is held to a rate, whatever it comes as.

Row 4.1.19. Slow heads, silence and slow readers stand in tests/server/test_connection.py.
"""

import itertools

import pytest

from tests.hostile.wire import FORM, answers, cases, named, part
from tests.support.service import UPLOADS

CHANGE = """
import app.web.body
import app.web.exchange
app.web.body.PACE_SECONDS = 0.5
app.web.exchange._LINGER_SECONDS = 0.1
"""
CHUNKED = b"Transfer-Encoding: chunked"
TUS = b"Tus-Resumable: 1.0.0"
FORM_TYPE = b"Content-Type: " + FORM


def dripped(connection, head, drops):
    """What is answered to who lets a few bytes fall every now and then, and never stops by himself."""
    connection.sendall(head)
    connection.settimeout(0.05)
    received = b""
    for drop in drops:
        try:
            received += (block := connection.recv(65536))
            if not block:
                return received
        except TimeoutError:
            try:
                connection.sendall(drop)
            except (ConnectionResetError, BrokenPipeError):
                return received
        except ConnectionResetError:
            return received
    return received


DROPS = {
    "4.1.19 a file of known length": ([b"Content-Length: 100000"], b"x", 408, "too_slow"),
    "4.1.19 a file in chunks": ([CHUNKED], b"1\r\nx\r\n", 408, "too_slow"),
    "4.1.19 a chunk whose extension never ends": ([CHUNKED], b"1;aaaaaaaa", 408, "too_slow"),
}


@pytest.mark.parametrize(("lines", "drop", "status", "code"), cases(DROPS))
def test_a_body_is_cut_off_by_its_rate_and_not_by_silence_alone(visitor, lines, drop, status, code):
    first = b"1;" if drop.startswith(b"1;") else b""
    with visitor.connect() as connection:
        drops = itertools.chain([first], itertools.repeat(drop.removeprefix(first), 400))
        [said] = answers(dripped(connection, visitor.put(*lines, close=False), drops))
    assert (said.status, said.code, said["connection"]) == (status, code, "close")
    visitor.ended()
    visitor.left_nothing(code)


def test_4_1_19_a_form_that_drips_is_cut_off_too(visitor):
    head = visitor.head(f"POST {UPLOADS}", FORM_TYPE, "Content-Length: 100000", close=False)
    with visitor.connect() as connection:
        [said] = answers(dripped(connection, head + part(named(b"a"))[:-7], itertools.repeat(b"x", 400)))
    assert (said.status, said.code) == (408, "too_slow")
    visitor.ended()
    visitor.left_nothing("too_slow")


def test_4_1_19_trailers_that_drip_are_cut_off_too(visitor):
    with visitor.connect() as connection:
        head = visitor.put(CHUNKED, close=False) + b"5\r\nhello\r\n0\r\n"
        [said] = answers(dripped(connection, head, itertools.repeat(b"A: b\r\n", 400)))
    assert (said.status, said.code) == (408, "too_slow")
    visitor.ended()
    visitor.left_nothing("too_slow")


def test_4_1_19_a_json_body_that_drips_is_cut_off_too(visitor):
    head = visitor.head("POST /api/session/join", "Content-Length: 1000", close=False)
    with visitor.connect() as connection:
        [said] = answers(dripped(connection, head, itertools.repeat(b" ", 400)))
    assert (said.status, said.code) == (408, "too_slow")


def test_4_1_19_a_resumable_upload_that_drips_is_kept_and_cut_off(visitor):
    made = visitor.asked(f"POST {UPLOADS}", TUS, "Upload-Length: 100000")
    lines = [TUS, "Upload-Offset: 0", "Content-Type: application/offset+octet-stream", "Content-Length: 100000"]
    with visitor.connect() as connection:
        head = visitor.head(f"PATCH {made['location']}", *lines, close=False)
        [said] = answers(dripped(connection, head, itertools.repeat(b"x", 400)))
    assert (said.status, said.code) == (503, "unavailable")
    assert int(said["retry-after"]) >= 1
    assert int(visitor.asked(f"HEAD {made['location']}", TUS)["upload-offset"]) > 0
    visitor.asked(f"DELETE {made['location']}", TUS)
