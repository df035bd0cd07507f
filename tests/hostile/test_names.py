"""Names that are paths, commands, or not text at all: data for display, or refused.

What is made of a name stands in tests/protocols/test_headers.py. Here: that each way in makes the same of it, through a
socket, that it comes back as it went in, and that no file of such a name is ever made.
"""

import base64
from urllib.parse import quote, unquote_to_bytes

import pytest

from tests.hostile.wire import END, Visitor, cases, named, part
from tests.support.service import UPLOADS

LONG = "é" * 127 + "x"

# Each: the name that is sent, as bytes, and what is kept of it; None when it is refused.
NAMES = {
    "4.3.1 ../": (b"../../etc/passwd", "passwd"),
    "4.3.1 ..\\": (b"..\\..\\x", "x"),
    "4.3.1 a drive": (b"C:\\x", "x"),
    "4.3.1 a share": (b"\\\\host\\share", "share"),
    "4.3.1 absolute": (b"/abs", "abs"),
    "4.3.1 two elements": (b"a/b", "b"),
    "4.3.1 a directory": (b"a/", "unnamed"),
    "4.3.2 NUL": (b"a\0.txt", None),
    "4.3.2 CR": (b"a\r.txt", None),
    "4.3.2 LF": (b"a\nSet-Cookie: a=b", None),
    "4.3.2 ESC": (b"\x1b[2Ja", None),
    "4.3.2 DEL": (b"a\x7f", None),
    "4.3.2 C1": (b"a\xc2\x9b", None),
    "4.3.3 bidi": ("x\u202egpj.exe".encode(), "xgpj.exe"),
    "4.3.3 zero width": ("a\u200b\ufeff\u2066b".encode(), "ab"),
    "4.3.3 nothing but that": ("\u200b\u202e".encode(), "unnamed"),
    "4.3.4 .": (b".", "unnamed"),
    "4.3.4 ..": (b"..", "unnamed"),
    "4.3.4 spaces": ("  \u00a0\u3000 ".encode(), "unnamed"),
    "4.3.4 a trailing dot": (b"a.", "a."),
    "4.3.4 ...": (b"...", "..."),
    "4.3.5 CON": (b"CON", "CON"),
    "4.3.5 NUL.txt": (b"NUL.txt", "NUL.txt"),
    "4.3.5 COM1": (b"COM1", "COM1"),
    "4.3.5 a stream": (b"a:b", "a:b"),
    "4.3.5 desktop.ini": (b"desktop.ini", "desktop.ini"),
    "4.3.5 .htaccess": (b".htaccess", ".htaccess"),
    "4.3.5 ~": (b"~", "~"),
    "4.3.5 an option": (b"-rf *", "-rf *"),
    "4.3.6 255 bytes": (LONG.encode(), LONG),
    "4.3.6 256 bytes": (b"x" * 256, None),
    "4.3.6 3,000 bytes": (b"x" * 3_000, None),
    "4.3.6 300 emoji": ("🎉".encode() * 300, None),
    "4.3.6 NFD": ("e\u0301".encode(), "é"),
    "4.3.6 NFC": ("é".encode(), "é"),
    "4.3.6 500 marks": (b"e" + "\u0301\u0323".encode() * 250, None),
    "4.3.6 a lone surrogate": (b"a\xed\xa0\x80", None),
    "4.3.6 overlong": (b"\xc0\xae\xc0\xae\xc0\xaf", None),
    "4.3.6 latin-1": (b"\xe9", None),
    "4.3.6 cut in a character": (b"a\xf0\x9f\x8e", None),
    "4.3.7 a semicolon": (b"a;b=c", "a;b=c"),
    "4.3.7 a percent sign": (b"100%.txt", "100%.txt"),
    "4.3.7 a tag": (b"<img src=x onerror=alert(1)>", "<img src=x onerror=alert(1)>"),
    "4.3.7 a formula": (b"=cmd|'calc'!A1", "=cmd|'calc'!A1"),
}


def by_put(visitor, name):
    [said] = visitor.said_to(visitor.put("Content-Length: 5", name=quote(name, safe="")) + b"hello")
    return said, said.json()


def by_disposition(visitor, name):
    disposition = b"Content-Disposition: attachment; filename*=UTF-8''" + quote(name, safe="").encode()
    [said] = visitor.said_to(visitor.post(b"hello", b"text/plain", disposition))
    return said, said.json()


def by_form(visitor, name):
    [said] = visitor.said_to(visitor.post(part(named(name)) + END))
    return said, said.json().get("items", [said.json()])[0]


def by_tus(visitor, name):
    metadata = b"Upload-Metadata: filename " + base64.b64encode(name)
    [said] = visitor.said_to(
        visitor.head(f"POST {UPLOADS}", "Tus-Resumable: 1.0.0", "Upload-Length: 5", metadata,
                     "Content-Type: application/offset+octet-stream", "Content-Length: 5") + b"hello"
    )  # fmt: skip
    if said.status != 201:
        return said, said.json()
    [item] = visitor.asked("GET /api/ingestion/history").json()["items"]
    return said, item


@pytest.mark.parametrize("way", [by_put, by_disposition, by_form, by_tus])
@pytest.mark.parametrize(("name", "kept"), cases(NAMES))
def test_a_name_is_data_by_every_way_in(visitor, way, name, kept):
    said, record = way(visitor, name)
    if kept is None:  # a part's header cannot even hold all of these
        assert (said.status, said.code) in [(400, "bad_filename"), (400, "malformed_form")][: 1 + (way is by_form)]
        visitor.left_nothing()
        return
    assert (said.status, record["filename"]) == (201, kept)
    visitor.left(b"hello")
    download = visitor.asked(f"GET {record['links']['content']}")
    disposition = download["content-disposition"]
    assert disposition.isascii()
    assert disposition.startswith('attachment; filename="')
    assert unquote_to_bytes(disposition.partition("filename*=UTF-8''")[2]) == kept.encode()
    assert not set(disposition.split('"')[1]) & set("\\/:*?<>|%;")


QUOTED = {
    "4.3.7 %22": (b"say %22hi%22", 'say "hi"'),
    "4.3.7 a backslash and a quote": (b'say \\"hi\\"', 'say "hi"'),
    "4.3.7 %0d%0a": (b"a%0d%0aSet-Cookie: a=b", "a%0d%0aSet-Cookie: a=b"),
    "4.3.7 %2e%2e%2f": (b"%2e%2e%2fa", "%2e%2e%2fa"),
    "4.3.7 an encoded word": (b"=?utf-8?B?Li4vYQ==?=", "=?utf-8?B?Li4vYQ==?="),
}


@pytest.mark.parametrize(("name", "kept"), cases(QUOTED))
def test_a_name_in_a_form_is_read_as_browsers_write_it_and_comes_back_exactly(visitor, name, kept):
    said, record = by_form(visitor, name)
    assert (said.status, record["filename"]) == (201, kept)
    disposition = visitor.asked(f"GET {record['links']['content']}")["content-disposition"]
    assert unquote_to_bytes(disposition.partition("filename*=UTF-8''")[2]) == kept.encode()


def test_4_3_1_dots_of_a_path_are_not_resolved(visitor):
    for path in (b"../../../etc/passwd", b"..%2f..%2fpasswd", b"./x/../passwd", b"..;/passwd", b"a//passwd"):
        [said] = visitor.said_to(visitor.put("Content-Length: 5", name=path) + b"hello")
        assert (said.status, said.json()["filename"]) == (201, "passwd")


def test_4_3_8_the_same_name_twice_is_two_uploads_and_no_client_chooses_an_id(visitor):
    known = "0193a1f0-0000-7000-8000-000000000000"
    lines = [f"Upload-Id: {known}", f"X-Upload-Id: {known}", f"Location: /api/ingestion/files/{known}"]
    ids = set()
    for _ in range(2):
        [said] = visitor.said_to(visitor.put("Content-Length: 5", *lines, name=known) + b"hello")
        ids.add(said.json()["id"])
    assert len(ids) == 2
    assert known not in ids
    visitor.left(b"hello", b"hello")


KINDS = {
    "4.3.9 HTML": (b"text/html", "text/html"),
    "4.3.9 SVG": (b"image/svg+xml", "image/svg+xml"),
    "4.3.9 10 KB": (b"text/" + b"x" * 10_000, "application/octet-stream"),
    "4.3.9 bytes": (b"text/\xff", "application/octet-stream"),
    "4.3.9 a tab": (b"text/\tplain", "application/octet-stream"),
    "4.3.9 nothing": (b"", "application/octet-stream"),
    "4.3.9 a list": (b"text/plain, text/html", "text/plain, text/html"),
    "4.3.9 a tag": (b'text/html; x="<script>"', 'text/html; x="<script>"'),
}


@pytest.mark.parametrize(("kind", "kept"), cases(KINDS))
def test_a_type_is_a_label_and_never_served_as_what_a_browser_runs(visitor, kind, kept):
    [said] = visitor.said_to(visitor.put(b"Content-Type: " + kind, "Content-Length: 5") + b"hello")
    assert (said.status, said.json()["content_type"]) == (201, kept)
    assert visitor.asked(f"GET {said.json()['links']['content']}")["content-type"] == "application/octet-stream"


METADATA = {
    "4.3.10 base64 that is none": b"filename ***",
    "4.3.10 base64 without its end": b"filename YQ=",
    "4.3.10 base64 for URLs": b"filename _-8=",
    "4.3.10 a key twice": b"filename YQ==,filename Yg==",
    "4.3.10 a key with a space": b"file name YQ==",
    "4.3.10 a comma at the end": b"filename YQ==,",
    "4.3.10 two commas": b"filename YQ==,,a",
    "4.3.10 10 KB": b"filename " + base64.b64encode(b"x" * 10_000),
    "4.3.10 5,000 keys": b",".join(b"k%d" % number for number in range(5_000)),
    "4.3.10 a key of bytes": b"\xff YQ==",
}


@pytest.mark.parametrize("metadata", cases(METADATA))
def test_metadata_that_cannot_be_read_are_refused(visitor, metadata):
    said = visitor.asked(f"POST {UPLOADS}", "Tus-Resumable: 1.0.0", "Upload-Length: 5", b"Upload-Metadata: " + metadata)
    assert (said.status, said.code) == (400, "bad_request")
    visitor.left_nothing()


def test_4_3_10_a_key_may_have_no_value(visitor):
    said = visitor.asked(
        f"POST {UPLOADS}", "Tus-Resumable: 1.0.0", "Upload-Length: 0", "Upload-Metadata: filename,private"
    )
    assert said.status == 201


CONCATENATIONS = {
    "4.3.11 ..": ("../../x", 400, "bad_request"),
    "4.3.11 a path of the store": ("/api/ingestion/uploads/../../waybill.db", 400, "bad_request"),
    "4.3.11 NUL": ("/api/ingestion/uploads/%00", 400, "bad_request"),
    "4.3.11 nothing": ("", 400, "bad_request"),
    "4.3.11 600 parts": (" ".join(["/api/ingestion/uploads/" + "a" * 22] * 600), 400, "bad_request"),
    "4.3.11 unknown": ("/api/ingestion/uploads/" + "a" * 22, 404, "not_found"),
}


@pytest.mark.parametrize(("parts", "status", "code"), cases(CONCATENATIONS))
def test_a_concatenation_of_what_is_no_part_is_refused(visitor, parts, status, code):
    said = visitor.asked(f"POST {UPLOADS}", "Tus-Resumable: 1.0.0", f"Upload-Concat: final;{parts}")
    assert (said.status, said.code) == (status, code)
    visitor.left_nothing()


def test_4_3_11_a_part_of_another_session_is_refused(visitor, running):
    other = Visitor(running)
    made = other.asked(f"POST {UPLOADS}", "Tus-Resumable: 1.0.0", "Upload-Length: 0", "Upload-Concat: partial")
    said = visitor.asked(f"POST {UPLOADS}", "Tus-Resumable: 1.0.0", f"Upload-Concat: final;{made['location']}")
    assert (said.status, said.code) == (404, "not_found")
