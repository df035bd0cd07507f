"""Requests that are none, that two readers could read differently, or that want to cost much.

What is malformed for every parser stands in tests/server/test_connection.py, with what never ends and who is slow.
Here: what becomes of the upload that such bytes pretend to be, what is behind them, and what passes.
"""

from contextlib import suppress

import pytest

from tests.hostile.wire import answers, cases, one_by_one, rest
from tests.support.service import HISTORY, UPLOADS

CHUNKED = b"Transfer-Encoding: chunked"
SMUGGLED = f"PUT {UPLOADS}/smuggled HTTP/1.1\r\nHost: x\r\nContent-Length: 0\r\n\r\n".encode()
"""A second request, which a reader would find who takes the first one for shorter than it is."""


# Each: the lines of the head that say how long the body is, and the body.
NO_REQUEST = {
    "4.1.1 CL and TE": ([b"Content-Length: 5", CHUNKED], b"0\r\n\r\n" + SMUGGLED),
    "4.1.1 TE and CL": ([CHUNKED, b"Content-Length: 5"], b"0\r\n\r\n" + SMUGGLED),
    "4.1.2 CL twice, unequal": ([b"Content-Length: 0", b"Content-Length: 5"], SMUGGLED),
    "4.1.3 CL 1_0": ([b"Content-Length: 1_0"], b"hellohello"),
    "4.1.3 CL empty": ([b"Content-Length: "], b"hello"),
    "4.1.3 CL and VT": ([b"Content-Length: 5\x0b"], b"hello"),
    "4.1.4 CL 2^64+1": ([b"Content-Length: 18446744073709551617"], b"hello"),
    "4.1.4 CL 2^63": ([b"Content-Length: 9223372036854775808"], b"hello"),
    "4.1.11 TE xchunked": ([b"Transfer-Encoding: xchunked"], b"0\r\n\r\n"),
    "4.1.11 TE identity": ([b"Transfer-Encoding: identity"], b"hello"),
    "4.1.11 TE with a parameter": ([b"Transfer-Encoding: chunked;q=1"], b"0\r\n\r\n"),
    "4.1.11 TE in quotes": ([b'Transfer-Encoding: "chunked"'], b"0\r\n\r\n"),
    "4.1.11 TE behind VT": ([b"Transfer-Encoding: \x0bchunked"], b"0\r\n\r\n"),
    "4.1.11 TE on the next line": ([b"Transfer-Encoding:\r\n chunked"], b"0\r\n\r\n"),
    "4.1.11 TE behind LF": ([b"Transfer-Encoding:\n chunked"], b"0\r\n\r\n"),
    "4.1.16 obs-fold": ([b"Content-Length: 0", b" 5"], b"hello"),
    "4.1.16 a folded header": ([b"A: b", b"\tContent-Length: 5", b"Content-Length: 0"], SMUGGLED),
    "4.1.16 bare LF": ([b"A: b\nContent-Length: 5"], b"hello"),
    "4.1.16 bare CR": ([b"A: b\rContent-Length: 5"], b"hello"),
    "4.1.16 NUL in a value": ([b"A: b\0", b"Content-Length: 5"], b"hello"),
    "4.1.16 NUL in a name": ([b"A\0: b", b"Content-Length: 5"], b"hello"),
    "4.1.16 DEL in a value": ([b"A: \x7f", b"Content-Length: 5"], b"hello"),
    "4.1.16 a space before the colon": ([b"Content-Length : 5"], b"hello"),
    "4.1.16 a tab before the colon": ([b"Content-Length\t: 5"], b"hello"),
    "4.1.16 a space before TE's colon": ([b"Content-Length: 0", b"Transfer-Encoding : chunked"], SMUGGLED),
    "4.1.16 no name": ([b": b", b"Content-Length: 5"], b"hello"),
    "4.1.16 no colon": ([b"Content-Length 5", b"Content-Length: 5"], b"hello"),
}

# Each: the body of a request whose head is in order.
NO_BODY = {
    "4.1.8 chunk size 1g": b"1g\r\nx\r\n0\r\n\r\n",
    "4.1.8 chunk size +5": b"+5\r\nhello\r\n0\r\n\r\n",
    "4.1.8 chunk size 0x5": b"0x5\r\nhello\r\n0\r\n\r\n",
    "4.1.8 chunk size -5": b"-5\r\nhello\r\n0\r\n\r\n",
    "4.1.8 chunk size and a space": b"5 \r\nhello\r\n0\r\n\r\n",
    "4.1.8 no chunk size": b"\r\nhello\r\n0\r\n\r\n",
    "4.1.8 chunk size overflows": b"fffffffffffffffff\r\nx",
    "4.1.8 chunk of 2^64-1": b"5\r\nhello\r\n10000000000000000\r\nx",
    "4.1.8 chunk too long": b"5\r\nhelloX\r\n0\r\n\r\n",
    "4.1.8 chunk ended by LF": b"5\r\nhello\n0\r\n\r\n",
    "4.1.8 chunk size ended by LF": b"5\nhello\r\n0\r\n\r\n",
    "4.1.8 CR for CRLF": b"5\r\nhello\r\r0\r\n\r\n",
    "4.1.9 CR in a chunk extension": b"5;a\rb\r\nhello\r\n0\r\n\r\n",
    "4.1.9 LF in a chunk extension": b'5;a="b\nc"\r\nhello\r\n0\r\n\r\n',
    "4.1.9 NUL in a chunk extension": b"5;a\0b\r\nhello\r\n0\r\n\r\n",
    "4.1.9 a chunk extension of 600 KB": b"5;a=" + b"a" * 600_000 + b"\r\nhello\r\n0\r\n\r\n",
    "4.1.9 extensions on every chunk": (b"1;a=" + b"a" * 1000 + b"\r\nx\r\n") * 600 + b"0\r\n\r\n",
    "4.1.10 600 KB of trailers": b"5\r\nhello\r\n0\r\n" + b"A: b\r\n" * 100_000 + b"\r\n",
    "4.1.10 obs-fold in a trailer": b"5\r\nhello\r\n0\r\nA: b\r\n c\r\n\r\n",
}


@pytest.mark.parametrize(("lines", "body"), cases(NO_REQUEST))
def test_a_malformed_request_is_refused_and_bytes_behind_it_are_never_read(visitor, lines, body):
    [said] = visitor.said_to(visitor.put(*lines, close=False) + body + SMUGGLED)
    assert (said.status, said.code, said["connection"]) == (400, "bad_request", "close")
    visitor.left_nothing()


@pytest.mark.parametrize("body", cases(NO_BODY))
@pytest.mark.parametrize("waits", [False, True], ids=["at once", "when asked"])
def test_a_malformed_body_leaves_nothing_and_bytes_behind_it_are_never_read(visitor, body, waits):
    head = visitor.put(CHUNKED, *([b"Expect: 100-continue"] if waits else []), close=False)
    with visitor.connect() as connection:
        connection.sendall(head)
        if waits:  # then a file has been begun
            assert connection.recv(65536) == b"HTTP/1.1 100 Continue\r\n\r\n"
            connection.sendall(b"5\r\nfirst\r\n")
        with suppress(ConnectionResetError, BrokenPipeError):
            connection.sendall(body + SMUGGLED)
        [said] = answers(rest(connection))
    assert (said.status, said.code, said["connection"]) == (400, "bad_request", "close")
    visitor.ended()
    failed = [("failed", "incomplete_body")]
    assert visitor.history() in ([failed] if waits else [[], failed])
    visitor.kept_nothing()


PASSES = {
    "4.1.3 CL with zeros in front": ([b"Content-Length: 0005"], b"hello"),
    "4.1.3 CL behind a tab": ([b"Content-Length:\t5"], b"hello"),
    "4.1.3 CL with an underscore is another header": ([b"Content_Length: 9", b"Content-Length: 5"], b"hello"),
    "4.1.8 a chunk size with zeros in front": ([CHUNKED], b"0000000000000000000000000000005\r\nhello\r\n00\r\n\r\n"),
    "4.1.9 a chunk extension": ([CHUNKED], b'5;a=b;c="d e"\r\nhello\r\n0;a\r\n\r\n'),
    "4.1.10 trailers": ([CHUNKED], b"5\r\nhello\r\n0\r\nHost: evil\r\nCookie: waybill_session=x\r\nA: b\r\n\r\n"),
    "4.1.11 TE in capitals": ([b"TRANSFER-ENCODING: CHUNKED"], b"5\r\nhello\r\n0\r\n\r\n"),
    "4.1.20 another expectation": ([b"Content-Length: 5", b"Expect: 200-ok"], b"hello"),
    "4.1.13 an offer of h2c": (
        [b"Content-Length: 5", b"Connection: Upgrade, HTTP2-Settings", b"Upgrade: h2c", b"HTTP2-Settings: AAMAAABk"],
        b"hello",
    ),
    "4.1.13 an offer of h2c, chunked": ([CHUNKED, b"Connection: Upgrade", b"Upgrade: h2c"], b"5\r\nhello\r\n0\r\n\r\n"),
    "4.1.24 X-Forwarded": (
        [b"Content-Length: 5", b"X-Forwarded-For: 10.0.0.1", b"X-Forwarded-Proto: https", b"X-Forwarded-Host: evil"],
        b"hello",
    ),
}


@pytest.mark.parametrize("hang_up", [False, True], ids=["open", "half-closed"])
@pytest.mark.parametrize("in_pieces", [False, True], ids=["whole", "byte by byte"])
@pytest.mark.parametrize(("lines", "body"), cases(PASSES))
def test_an_unambiguous_body_is_stored(visitor, lines, body, in_pieces, hang_up):
    sent = visitor.put(*lines) + body
    [said] = visitor.said_to(*(one_by_one(sent) if in_pieces else [sent]), hang_up=hang_up)
    assert (said.status, said.json()["size"]) == (201, 5)
    visitor.left(b"hello")


def test_a_long_body_beside_an_offer_of_h2c_is_stored_whole(visitor):
    content = bytes(range(256)) * 4000
    lines = (b"Content-Length: %d" % len(content), b"Connection: Upgrade", b"Upgrade: h2c")
    [said] = visitor.said_to(visitor.put(*lines) + content)
    assert (said.status, said.json()["size"]) == (201, len(content))
    visitor.left(content)


def test_a_client_that_sends_no_more_gets_every_answer(visitor):
    """A FIN behind the last byte is no hang-up: of one request, of a pipeline, of a long download."""
    content = b"x" * 1_500_000
    [made] = visitor.said_to(visitor.put(b"Content-Length: 1500000") + content, hang_up=True)
    assert made.status == 201
    for target in (HISTORY, "/api/session", "/health/live", "/nothing"):
        [said] = visitor.said_to(visitor.head(f"GET {target}", close=False), hang_up=True)
        assert said.status == (404 if target == "/nothing" else 200)
    [download] = visitor.said_to(visitor.head(f"GET {made.json()['links']['content']}", close=False), hang_up=True)
    assert download.body == content
    asked = [visitor.head("GET /health/live", close=False)] * 30
    assert [said.status for said in visitor.said_to(b"".join(asked), hang_up=True)] == [200] * 30


CUT_SHORT = {
    "4.1.6 a body shorter than CL": ([b"Content-Length: 5"], b"hell"),
    "4.1.6 a long body that lacks one byte": ([b"Content-Length: 500000"], b"x" * 499_999),
    "4.1.6 nothing of the body": ([b"Content-Length: 5"], b""),
    "4.1.7 chunked, cut in a chunk": ([CHUNKED], b"5\r\nhell"),
    "4.1.7 chunked, cut behind a chunk": ([CHUNKED], b"5\r\nhello\r\n"),
    "4.1.7 chunked, cut in the last chunk": ([CHUNKED], b"5\r\nhello\r\n0\r\n"),
    "4.1.7 chunked, cut in the trailers": ([CHUNKED], b"5\r\nhello\r\n0\r\nA: b\r\n"),
    "4.1.7 chunked, cut in an extension": ([CHUNKED], b"5\r\nhello\r\n0;a"),
}


@pytest.mark.parametrize(("lines", "body"), cases(CUT_SHORT))
def test_a_client_that_hangs_up_in_a_body_leaves_nothing(visitor, lines, body):
    """F22."""
    assert visitor.said_to(visitor.put(*lines) + body, hang_up=True) == []
    assert visitor.ended()["code"] == "incomplete_body"
    visitor.left_nothing("incomplete_body")


EARLY = {
    "4.1.5 CL over the limit": (b"Content-Length: 2000001", 413, "too_large"),
    "4.1.5 CL over the limit of a request": (b"Content-Length: 3000001", 413, "request_too_large"),
    "4.1.4 CL 2^63-1": (b"Content-Length: 9223372036854775807", 413, "request_too_large"),
    "4.1.22 gzip": (b"Content-Length: 5\r\nContent-Encoding: gzip", 415, "unsupported_media_type"),
    "4.1.22 identity, gzip": (b"Content-Length: 5\r\nContent-Encoding: identity, GZIP", 415, "unsupported_media_type"),
    "4.1.22 twice": (
        b"Content-Length: 5\r\nContent-Encoding: identity\r\nContent-Encoding: br", 415, "unsupported_media_type"),
    "4.1.22 a fragment": (b"Content-Length: 5\r\nContent-Range: bytes 0-4/10", 400, "bad_request"),
    "4.1.22 a digest that is none": (b"Content-Length: 5\r\nRepr-Digest: sha-256=:AAAA:", 400, "bad_request"),
    "4.1.22 two types": (b"Content-Length: 5\r\nContent-Type: a/b\r\nContent-Type: a/b", 400, "bad_request"),
}  # fmt: skip


@pytest.mark.parametrize(("line", "status", "code"), cases(EARLY))
def test_a_body_that_the_head_forbids_is_refused_before_it_is_asked_for(visitor, line, status, code):
    [said] = visitor.said_to(visitor.put(line, b"Expect: 100-continue", close=False))
    assert (said.status, said.code, said["connection"]) == (status, code, "close")
    visitor.left_nothing()


def test_4_1_5_a_body_of_unknown_length_over_the_limit_is_refused_where_it_passes_it(visitor):
    chunk = b"10000\r\n" + b"x" * 0x10000 + b"\r\n"
    [said] = visitor.said_to(visitor.put(CHUNKED), chunk * 31, b"0\r\n\r\n")
    assert (said.status, said.code, said.json()["limit"]) == (413, "too_large", 2_000_000)
    visitor.left_nothing("too_large")


TARGETS = {
    "4.1.18 100 KB": (b"/" + b"a" * 100_000, 400, "bad_request"),
    "4.1.18 60 KB of query": (f"{HISTORY}?filename=".encode() + b"a" * 60_000, 400, "bad_query"),
    "4.1.18 20,000 parameters": (f"{HISTORY}?".encode() + b"a&" * 20_000, 400, "bad_query"),
    "4.1.21 NUL": (b"/api/ingestion/files/%00", 404, "not_found"),
    "4.1.21 not UTF-8": (b"/api/ingestion/files/%ff", 404, "not_found"),
    "4.1.21 raw bytes": (b"/api/ingestion/files/\xff", 400, "bad_request"),
    "4.1.21 raw bytes in the query": (f"{HISTORY}?filename=".encode() + b"\xff", 400, "bad_request"),
    "4.1.21 ..": (b"/api/ingestion/files/../../../../etc/passwd", 404, "not_found"),
    "4.1.21 .. in escapes": (b"/api/ingestion/files/%2e%2e%2f%2e%2e%2fwaybill.db", 404, "not_found"),
    "4.1.21 .. in escapes of escapes": (b"/api/ingestion/files/%252e%252e%252fwaybill.db", 404, "not_found"),
    "4.1.21 ..\\": (b"/api/ingestion/files/..%5c..%5cwaybill.db", 404, "not_found"),
    "4.1.21 two slashes": (b"//api//ingestion//history", 404, "not_found"),
    "4.1.21 an escape that is none": (b"/api/ingestion/files/%zz%", 404, "not_found"),
    "4.1.21 a backslash first": (b"\\api", 400, "bad_request"),
    "4.1.21 no slash first": (b"api", 400, "bad_request"),
    "4.1.21 another scheme": (b"file:///etc/passwd", 400, "bad_request"),
    "4.1.21 absolute, without a path": (b"http://x", 400, "bad_request"),
    "4.1.21 absolute, with a port that is none": (b"http://x:99999/health/live", 400, "bad_request"),
    "4.1.21 absolute": (b"http://other.test/health/live", 200, None),
    "4.1.21 *": (b"*", 404, "not_found"),
}


@pytest.mark.parametrize(("target", "status", "code"), cases(TARGETS))
def test_a_target_is_a_known_address_or_is_refused(visitor, target, status, code):
    said = visitor.asked(b"GET " + target)
    assert (said.status, said.code) == (status, code)


@pytest.mark.parametrize("start", [b"CONNECT x:443", b"BREW /health/live", b"get /health/live"])
def test_4_1_15_an_unknown_method_is_refused(visitor, start):
    said = visitor.asked(start)
    assert (said.status, said.code) == (400, "bad_request")


def cut_anywhere(sent):
    yield from ((sent[:at], sent[at:]) for at in (1, len(sent) // 3, len(sent) // 2, len(sent) - 1))
    yield (sent,)


def test_4_1_23_a_pipeline_is_answered_in_order_wherever_it_is_cut(visitor):
    content = b"x" * 300_000  # of which most passes the parser by
    sent = (
        visitor.put(b"Content-Length: 300000", close=False) + content
        + visitor.put(CHUNKED, close=False) + b"5\r\nhello\r\n0\r\n\r\n"
        + visitor.put(b"Content-Length: 300000", close=False) + content
        + visitor.head("GET /nowhere")
    )  # fmt: skip
    for pieces in cut_anywhere(sent):
        said = visitor.said_to(*pieces)
        assert [one.status for one in said] == [201, 201, 201, 404]
        assert [one.json()["size"] for one in said[:3]] == [300_000, 5, 300_000]


BEHIND = {
    "what is no HTTP": b"nonsense\r\n\r\n",
    "no Host": b"GET /health/live HTTP/1.1\r\n\r\n",
    "a version that is none": b"GET /health/live HTTP/3.0\r\nHost: x\r\n\r\n",
    "a body that is none": f"PUT {UPLOADS}/b HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\nx\r\n".encode(),
    "a long head": b"GET /" + b"a" * 70_000 + b" HTTP/1.1\r\nHost: x\r\n\r\n",
}


@pytest.mark.parametrize("behind", cases(BEHIND))
def test_4_1_23_a_malformed_request_spares_the_answers_of_those_before_it(visitor, behind):
    whole = visitor.put(b"Content-Length: 5", close=False) + b"hello"
    said = visitor.said_to(whole + whole + behind)
    assert [(one.status, one.code) for one in said] == [(201, None), (201, None), (400, "bad_request")]
    visitor.left(b"hello", b"hello")


def test_4_1_23_a_client_that_asks_for_much_and_reads_nothing_fills_no_memory(visitor, running):
    made = visitor.said_to(visitor.put(b"Content-Length: 900000") + bytes(900_000))[0].json()
    large = visitor.head(f"GET {made['links']['content']}", close=False) * 12  # more than the network holds
    before = running.memory()
    connections = [visitor.connect() for _ in range(8)]
    for connection in connections:
        connection.sendall(large + b"GET / HTTP/1.1\r\nHost:\r\n\r\n" * 10_000)
    with visitor.connect() as other:
        for _ in range(3):  # by then it has been read
            other.sendall(visitor.head("GET /health/live", close=False))
            assert other.recv(65536).startswith(b"HTTP/1.1 200 OK")
    grown = running.memory() - before
    for connection in connections:
        connection.close()
    assert grown < 45_000_000, grown
    running.wait_for("answered", path=made["links"]["content"], count=8)  # they hear that nobody listens any more


def test_4_1_23_five_thousand_requests_in_one_piece_are_answered_in_their_order(visitor):
    asked = visitor.head("GET /health/live", close=False)
    nowhere = visitor.head("GET /nowhere", close=False)
    sent = (asked * 99 + nowhere) * 50 + visitor.put(b"Content-Length: 5") + b"hello"
    said = visitor.said_to(sent)
    assert [one.status for one in said] == ([200] * 99 + [404]) * 50 + [201]


HOSTS = {
    "4.1.14 a space": b"a b",
    "4.1.14 a path": b"a/b",
    "4.1.14 a user": b"user@a",
    "4.1.14 a query": b"a?b",
    "4.1.14 a fragment": b"a#b",
    "4.1.14 a URL": b"http://a",
    "4.1.14 a list": b"a, b",
    "4.1.14 no port": b"a:b",
    "4.1.14 two ports": b"a:80:80",
    "4.1.14 an address that does not end": b"[::1",
    "4.1.14 no address": b"[<script>]",
    "4.1.14 a tag": b"<script>",
    "4.1.14 a quote": b'"a"',
    "4.1.14 a backslash": b"a\\b",
    "4.1.14 bytes": b"\xff",
    "4.1.14 a broken escape": b"%zz",
}


@pytest.mark.parametrize("host", cases(HOSTS))
def test_a_host_that_names_none_is_refused(visitor, host):
    [said] = visitor.said_to(visitor.head("GET /health/live", b"Host: " + host, host=False))
    assert (said.status, said.code, said["connection"]) == (400, "bad_request", "close")


@pytest.mark.parametrize("host", [b"", b"a", b"A.b-c_d.test:8000", b"127.0.0.1", b"[::1]:80", b"[v1.a]", b"%41", b"a:"])
def test_4_1_14_every_valid_host_is_taken(visitor, host):
    [said] = visitor.said_to(visitor.head("GET /health/live", b"Host: " + host, host=False))
    assert said.status == 200


FLOODS = {
    "4.1.17 5,000 headers": ["A: b"] * 5_000,
    "4.1.17 300 headers of one name": ["Cookie: a=b"] * 300,
    "4.1.17 16,000 short ones": ["A:"] * 16_000,
    "4.1.17 60 KB and much beside": ["A: " + "a" * 250] * 250 + ["B: " + "b" * 2_700],
}


@pytest.mark.parametrize("lines", cases(FLOODS))
def test_a_flood_of_headers_is_refused(visitor, lines):
    [said] = visitor.said_to(visitor.head("GET /health/live", *lines))
    assert (said.status, said.code, said["connection"]) == (400, "bad_request", "close")


def test_4_1_17_a_head_may_have_200_headers_of_300_bytes(visitor):
    [said] = visitor.said_to(visitor.head("GET /health/live", *["A: " + "a" * 297] * 200))
    assert said.status == 200
