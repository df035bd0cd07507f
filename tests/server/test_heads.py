"""The head of a request says in one way how long its body is, and for which host it is, or it is refused."""

import pytest

from app.server.heads import HeadRefused, framing

HOST = (b"host", b"a")


def read(*headers, version="1.1", url=b"/", most_bytes=100, most_fields=5):
    return framing(version, url, headers, most_bytes=most_bytes, most_fields=most_fields)


@pytest.mark.parametrize(
    ("headers", "found"),
    [
        ([HOST], (None, False)),
        ([HOST, (b"content-length", b"12")], (12, False)),
        ([HOST, (b"transfer-encoding", b" Chunked ")], (None, True)),
        ([(b"host", b"[::1]:80")], (None, False)),
        ([(b"host", b"")], (None, False)),
    ],
)
def test_a_head_declares_the_framing_of_its_body(headers, found):
    assert read(*headers) == found


def test_a_head_of_http_1_0_needs_no_host():
    assert read(version="1.0") == (None, False)


@pytest.mark.parametrize(
    ("headers", "options", "reason"),
    [
        ([HOST], {"version": "0.9"}, "only HTTP/1.0 and HTTP/1.1"),
        ([HOST], {"url": b"/" * 96}, "more than 100 bytes"),
        ([HOST, *[(b"a", b"b")] * 5], {}, "more than 5 header fields"),
        ([], {}, "exactly one Host"),
        ([HOST, HOST], {"version": "1.0"}, "exactly one Host"),
        ([(b"host", b"a,b")], {}, "no name of a host"),
        ([HOST, (b"transfer-encoding", b"gzip, chunked")], {}, "Transfer-Encoding"),
        ([HOST, *[(b"transfer-encoding", b"chunked")] * 2], {}, "Transfer-Encoding"),
        ([HOST, (b"transfer-encoding", b"chunked")], {"version": "1.0"}, "Transfer-Encoding"),
    ],
)
def test_an_ambiguous_or_large_head_is_refused(headers, options, reason):
    with pytest.raises(HeadRefused, match=reason):
        read(*headers, **options)


def test_a_head_of_just_the_most_bytes_passes():
    assert read(HOST, url=b"/" * 95) == (None, False)
