"""Metadata and paths that are attacks: data for display, or refused, and harmless in an archive."""

import base64
import io
import zipfile
from urllib.parse import quote

import pytest

from tests.hostile.wire import END, cases, named, part
from tests.support.service import UPLOADS

# Each: the path that is sent, and what is kept of it; None when it is refused, "" when it is no path.
PATHS = {
    "up and out": (b"../../etc/passwd", "etc/passwd"),
    "absolute": (b"/etc/passwd", "etc/passwd"),
    "only dots": (b"../..", ""),
    "dots within": (b"a/../../b", "a/b"),
    "a drive": (b"C:/Users/x", "Users/x"),
    "empty elements": (b"a////b", "a/b"),
    "elements of nothing": ("a/\u200b\u202e/b".encode(), "a/b"),
    "bidi": ("a\u202e/x\u202egpj.exe".encode(), "a/xgpj.exe"),
    "NUL": (b"a/b\0c", None),
    "a line": (b"a/b\nSet-Cookie: a=b", None),
    "ESC": (b"a\x1b[2J/b", None),
    "no UTF-8": (b"a/\xff", None),
    "a long element": (b"a/" + b"x" * 256, None),
    "a long path": (b"/".join([b"x" * 200] * 6), None),
    "a thousand elements": (b"a/" * 600 + b"a", None),
    "a device": (b"NUL/CON", "NUL/CON"),
    "a tag": (b"<b>/<img src=x onerror=alert(1)>", "<b>/<img src=x onerror=alert(1)>"),
    "a formula": (b"=cmd/=1+1", "=cmd/=1+1"),
}


def by_put(visitor, path):
    [said] = visitor.said_to(visitor.put("Content-Length: 5", name=quote(path, safe="/")) + b"hello")
    return said


def by_form(visitor, path):
    [said] = visitor.said_to(visitor.post(part(named(path)) + END))
    return said


def by_tus(visitor, path):
    return with_metadata(visitor, b"relativePath " + base64.b64encode(path))


def with_metadata(visitor, metadata):
    [said] = visitor.said_to(
        visitor.head(f"POST {UPLOADS}", "Tus-Resumable: 1.0.0", "Upload-Length: 5", b"Upload-Metadata: " + metadata,
                     "Content-Type: application/offset+octet-stream", "Content-Length: 5") + b"hello"
    )  # fmt: skip
    return said


def newest(visitor):
    [item] = visitor.asked("GET /api/ingestion/history").json()["items"]
    return item


@pytest.mark.parametrize("way", [by_put, by_form, by_tus])
@pytest.mark.parametrize(("path", "kept"), cases(PATHS))
def test_a_path_is_data_by_every_way_in(visitor, way, path, kept):
    said = way(visitor, path)
    if kept is None:  # a part's header cannot even hold all of these
        assert (said.status, said.code) in [(400, "bad_filename"), (400, "malformed_form")][: 1 + (way is by_form)]
        visitor.left_nothing()
        return
    assert said.status == 201
    record = newest(visitor)
    assert record["path"] == (kept or None)
    visitor.left(b"hello")
    with zipfile.ZipFile(io.BytesIO(visitor.asked("GET /api/ingestion/files.zip").body)) as archive:
        [name] = archive.namelist()
    assert name == (kept or record["filename"])
    assert not name.startswith("/")
    assert ".." not in name.split("/")


FIELDS = {
    "no dictionary": b'a="',
    "an injected line": b'a="x\x00y"',
    "a number": b"a=1",
    "a list": b"a=(x y)",
    "bytes": b"a=:eA==:",
    "64 and one": b", ".join(b"k%d=v" % number for number in range(65)),
    "too long": b'a="' + b"x" * 8_192 + b'"',
    "a long name": b"k" * 65 + b"=v",
    "no UTF-8": b'a=%"%ff"',
}


@pytest.mark.parametrize("field", FIELDS.values(), ids=FIELDS)
def test_a_field_of_metadata_that_cannot_be_is_refused(visitor, field):
    [said] = visitor.said_to(visitor.put(b"Waybill-Metadata: " + field, "Content-Length: 5") + b"hello")
    assert said.status == 400
    assert said.code in {"bad_metadata", "bad_request"}
    visitor.left_nothing()


def test_pairs_of_tus_that_cannot_be_metadata_are_left_out(visitor):
    pairs = {b"user[id]": b"1", b"good": "\u202e<b>".encode(), b"broken": b"\xff", b"nul": b"a\0b", b"x" * 65: b"1"}
    said = with_metadata(visitor, b",".join(name + b" " + base64.b64encode(value) for name, value in pairs.items()))
    assert said.status == 201
    assert newest(visitor)["metadata"] == {"good": "\u202e<b>"}
