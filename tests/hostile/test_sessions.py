"""Sessions that are forged, stolen in part, doubled, or used by the pages of others; and what comes back of a file.

Rows 4.5 and 4.6. Expiry, rotation of keys and skewed clocks need a clock of one's own: tests/sessions/test_sessions.py.
By the contract the cookie is `waybill_session`, and of two the valid one counts; only two valid ones are refused.
Webhooks and quotas do not exist yet.
"""

import json
import re

import pytest

from tests.hostile.wire import END, Visitor, cases, named, part, rest
from tests.support.service import HISTORY, UPLOADS

SESSION = "/api/session"


def changed_in(token, place):
    at = place % len(token)
    return token[:at] + ("A" if token[at] != "A" else "B") + token[at + 1 :]


FORGED = {
    "4.5.3 =": lambda token: token + "=",
    "4.5.3 junk in the signature": lambda token: token[:-10] + "!!!!" + token[-10:],
    "4.5.3 the last character": lambda token: changed_in(token, -1),
    "4.5.3 + for -": lambda token: token.replace("-", "+").replace("_", "/") + "+",
    "4.5.5 truncated": lambda token: token[:-1],
    "4.5.5 half": lambda token: token[: len(token) // 2],
    "4.5.5 without a signature": lambda token: token.rpartition(".")[0],
    "4.5.5 without what is signed": lambda token: "." + token.rpartition(".")[2],
    "4.5.5 another secret": lambda token: changed_in(token, 0),
    "4.5.5 another time": lambda token: token.replace(".1", ".2", 1),
    "4.5.5 empty": lambda token: "",
    "4.5.5 dots": lambda token: "..." * 100,
    "4.5.5 10 KB": lambda token: token * 100,
    "4.5.5 bytes": lambda token: token + "\xff",
    "4.5.5 in capitals": lambda token: token.upper(),
    "4.5.5 escaped": lambda token: token.replace(".", "%2e"),
    "4.5.5 with a space": lambda token: token[:5] + " " + token[5:],
}


def token_of(visitor):
    return visitor.session["Cookie"].partition("=")[2]


def as_somebody(visitor, start, *lines):
    """The answer to a request that brings these lines and no cookie of the visitor's own."""
    said = [line.encode("latin-1") for line in (start + " HTTP/1.1", "Host: x", "Connection: close", *lines)]
    [answer] = visitor.said_to(b"\r\n".join([*said, b"", b""]), to=start.split()[0])
    return answer


@pytest.mark.parametrize(
    "way", ["Cookie: waybill_session={}", 'Cookie: waybill_session="{}"', "Authorization: Bearer {}"]
)
@pytest.mark.parametrize("forge", cases(FORGED))
def test_a_token_that_is_altered_in_any_way_is_no_session(visitor, forge, way):
    token = token_of(visitor)
    assert as_somebody(visitor, f"GET {HISTORY}", way.format(token)).status == 200
    said = as_somebody(visitor, f"GET {HISTORY}", way.format(forge(token)))
    assert (said.status, said.code) == (401, "no_session")
    assert "set-cookie" not in said.headers


def test_4_5_2_a_cursor_is_signed_with_the_same_key_and_is_no_session(visitor):
    for _ in range(2):
        visitor.said_to(visitor.put("Content-Length: 1") + b"x")
    cursor = visitor.asked(f"GET {HISTORY}?limit=1").json()["next_cursor"]
    assert as_somebody(visitor, f"GET {HISTORY}", f"Cookie: waybill_session={cursor}").code == "no_session"
    assert visitor.asked(f"GET {HISTORY}?cursor={token_of(visitor)}").code == "bad_cursor"


def test_4_5_5_one_valid_cookie_of_many_counts_and_two_valid_ones_are_refused(visitor, running):
    mine, other = token_of(visitor), token_of(Visitor(running))
    for line in (f"waybill_session=x; waybill_session={mine}", f"waybill_session={mine}; waybill_session="):
        assert as_somebody(visitor, f"GET {HISTORY}", f"Cookie: {line}").status == 200
    said = as_somebody(visitor, f"GET {HISTORY}", f"Cookie: waybill_session={mine}; waybill_session={other}")
    assert (said.status, said.code) == (400, "ambiguous_session")
    lines = f"Authorization: Bearer {mine}", f"Authorization: Bearer {other}"
    assert as_somebody(visitor, f"GET {HISTORY}", *lines).code == "ambiguous_session"
    said = as_somebody(visitor, f"GET {HISTORY}", f"Cookie: x_waybill_session={mine}; waybill_sessionx={mine}")
    assert said.code == "no_session"
    assert as_somebody(visitor, f"GET {HISTORY}", "Cookie: " + "waybill_session=x;" * 3_000).code == "no_session"


def test_4_5_6_a_session_that_a_client_invents_is_not_taken_over(visitor):
    said = as_somebody(visitor, f"POST {SESSION}", "Cookie: waybill_session=chosen", "Content-Length: 0")
    assert said.status == 200
    assert "chosen" not in said["set-cookie"]
    cookie, *flags = said["set-cookie"].split("; ")
    assert {flag.lower() for flag in flags} >= {"httponly", "samesite=lax", "path=/"}  # 4.5.7
    assert len(cookie) < 4096


def test_4_5_6_a_token_that_was_replaced_or_ended_opens_nothing(visitor):
    old = f"Cookie: waybill_session={token_of(visitor)}"
    new = (
        "Cookie: "
        + as_somebody(visitor, f"POST {SESSION}/rotate", old, "Content-Length: 0")["set-cookie"].split(";")[0]
    )
    assert as_somebody(visitor, f"GET {HISTORY}", new).status == 200  # it has come, so the old one is not needed
    assert as_somebody(visitor, f"GET {HISTORY}", old).code == "no_session"
    assert as_somebody(visitor, f"DELETE {SESSION}", new).status == 204
    assert as_somebody(visitor, f"GET {HISTORY}", new).code == "no_session"


FOREIGN = {
    "4.5.8 Origin": ["Origin: https://evil.test"],
    "4.5.8 Origin null": ["Origin: null"],
    "4.5.8 Origin empty": ["Origin: "],
    "4.5.8 Origin of the host on another port": ["Origin: http://x:81"],
    "4.5.8 Origin of the host by another scheme": ["Origin: https://x"],
    "4.5.8 Origin that begins like the host": ["Origin: http://x.evil.test"],
    "4.5.8 Origin with the host as user": ["Origin: http://x@evil.test"],
    "4.5.8 Origin that is none": ["Origin: http://[::1"],
    "4.5.8 Sec-Fetch-Site": ["Sec-Fetch-Site: cross-site"],
    "4.5.8 Sec-Fetch-Site, and our Origin": ["Sec-Fetch-Site: cross-site", "Origin: http://x"],
    "4.5.8 another subdomain": ["Sec-Fetch-Site: same-site", "Origin: http://a.x"],
}


@pytest.mark.parametrize("lines", [pytest.param(lines, id=name) for name, lines in FOREIGN.items()])
def test_a_page_of_another_site_changes_nothing(visitor, lines):
    form = part(named(b"a")) + END
    for sent in (
        visitor.put("Content-Length: 5", *lines) + b"hello",
        visitor.post(form, b"multipart/form-data; boundary=B", *lines),
        visitor.post(b"hello", b"text/plain", *lines),
        visitor.head(f"POST {UPLOADS}", "Tus-Resumable: 1.0.0", "Upload-Length: 5", *lines),
        visitor.head(f"DELETE {SESSION}", *lines),
        visitor.head(f"POST {SESSION}/rotate", "Content-Length: 0", *lines),
    ):
        [said] = visitor.said_to(sent)
        assert (said.status, said.code) == (403, "cross_origin")
        assert "access-control-allow-origin" not in said.headers
        assert "set-cookie" not in said.headers
    visitor.left_nothing()


def test_4_5_8_no_preflight_of_another_site_is_granted(visitor):
    said = visitor.asked(f"OPTIONS {UPLOADS}", "Origin: https://evil.test", "Access-Control-Request-Method: PUT")
    assert not [name for name in said.headers if name.startswith("access-control")]


# Each: the type under which it came, and its first bytes.
CONTENTS = {
    "4.6.1 HTML": ("text/html", b"<script>alert(1)</script>"),
    "4.6.1 SVG": ("image/svg+xml", b"<svg xmlns='http://www.w3.org/2000/svg' onload='alert(1)'/>"),
    "4.6.1 XML": ("application/xml", b"<?xml version='1.0'?><?xml-stylesheet href='#'?>"),
    "4.6.1 XHTML": ("application/xhtml+xml", b"<html xmlns='http://www.w3.org/1999/xhtml'/>"),
    "4.6.1 PDF": ("application/pdf", b"%PDF-1.7"),
    "4.6.1 text that is HTML": ("text/plain", b"<!doctype html><script>alert(1)</script>"),
    "4.6.1 a script": ("text/javascript", b"alert(1)"),
    "4.6.1 an image that is HTML": ("image/png", b"\x89PNG\r\n\x1a\n<script>alert(1)</script>"),
    "4.6.1 a message": ("message/rfc822", b"Content-Type: text/html\r\n\r\n<script>"),
    "4.6.1 parts": ("multipart/x-mixed-replace; boundary=x", b"--x\r\nContent-Type: text/html\r\n\r\n<script>"),
    "4.6.1 two types": ("text/plain, text/html", b"<script>"),
    "4.6.1 a charset": ("text/plain; charset=utf-7", b"+ADw-script+AD4-"),
}
RUNS = ("html", "xml", "script", "multipart", "message", ",")


@pytest.mark.parametrize(("kind", "content"), cases(CONTENTS))
@pytest.mark.parametrize("range_", ["", "Range: bytes=0-3", "Range: bytes=0-1,4-5", "If-None-Match: *"])
def test_a_stored_file_never_runs(visitor, kind, content, range_):
    made = visitor.said_to(visitor.put(f"Content-Type: {kind}", f"Content-Length: {len(content)}") + content)[0].json()
    said = visitor.asked(f"GET {made['links']['content']}", *([range_] if range_ else []))
    assert said.status in (200, 206, 304)
    assert said["content-disposition"].startswith("attachment;")
    assert said["x-content-type-options"] == "nosniff"
    assert said["content-security-policy"] == "sandbox; default-src 'none'; frame-ancestors 'none'"
    assert said["cross-origin-resource-policy"] == "same-origin"
    assert said["referrer-policy"] == "no-referrer"
    assert said["cache-control"] == "private, no-store"
    if said.status != 304:
        served = said["content-type"].partition(";")[0]
        assert served == "multipart/byteranges" or not any(word in served for word in RUNS)


def test_4_6_3_the_log_holds_no_secret_and_a_name_begins_no_line_in_it(visitor, running):
    token = token_of(visitor)
    said = visitor.asked(f"POST {UPLOADS}", "Tus-Resumable: 1.0.0", "Upload-Length: 5")
    key = said["location"].rpartition("/")[2]
    visitor.asked(f"HEAD {said['location']}", "Tus-Resumable: 1.0.0", f"Authorization: Bearer {token}")
    visitor.said_to(visitor.put("Content-Length: 5", name="%0a%7b%22event%22:%22forged%22%7d") + b"hello")
    visitor.asked("GET /api/ingestion/files/%0a{%22event%22:%22forged%22}")
    visitor.ended()
    lines = "".join(running.lines)
    assert token not in lines
    assert token.split(".")[0] not in lines
    assert key not in lines
    assert (running.store / "secret.key").read_text().strip() not in lines
    assert not re.search(r"[\x00-\x09\x0b-\x1f\x7f-\x9f]", lines)
    assert all(line.startswith("{") and json.loads(line)["event"] != "forged" for line in running.lines)


def raw_of(visitor, start, *lines, body=b""):
    """The answer as it comes, but for its date."""
    said = [
        line.encode() for line in (start + " HTTP/1.1", "Host: x", "Connection: close", "X-Request-Id: same", *lines)
    ]
    with visitor.connect() as connection:
        connection.sendall(b"\r\n".join([*said, b"", b""]) + body)
        received = rest(connection)
    return re.sub(rb"(?im)^date: [^\r]*\r\n", b"", received)


ABSENT = "0193a1f0-0000-7000-8000-000000000000"
CHUNK = [
    "Tus-Resumable: 1.0.0",
    "Content-Type: application/offset+octet-stream",
    "Upload-Offset: 0",
    "Content-Length: 1",
]
DRAFT = ["Content-Type: application/partial-upload", "Upload-Offset: 0", "Upload-Complete: ?1", "Content-Length: 1"]


def test_a_foreign_upload_is_answered_as_an_absent_one(visitor, running):
    """P10: byte by byte, the headers too. But for the date, and the request's id, which the client gave."""
    cookie = f"Cookie: {visitor.session['Cookie']}"
    stranger = Visitor(running)
    theirs = stranger.said_to(stranger.put("Content-Length: 5") + b"hello")[0].json()["id"]
    mine = visitor.said_to(visitor.put("Content-Length: 5") + b"hello")[0].json()["id"]
    assert visitor.asked(f"DELETE /api/ingestion/files/{mine}").status == 204
    for method in ("GET", "HEAD", "DELETE"):
        for more in ([], ["Range: bytes=0-1"], ["If-None-Match: *"]):
            answers = {
                raw_of(visitor, f"{method} /api/ingestion/files/{each}", cookie, *more)
                for each in (theirs, ABSENT, "x", *([mine] if method != "DELETE" else []))  # that is told for a day
            }
            assert len(answers) == 1
            assert b" 404 " in answers.pop()[:16]
    for method in ("GET", "HEAD"):
        answers = {raw_of(visitor, f"{method} {HISTORY}/{each}", cookie) for each in (theirs, ABSENT, "x")}
        assert len(answers) == 1
        assert b" 404 " in answers.pop()[:16]


def test_a_foreign_resumable_upload_is_answered_as_an_absent_one(visitor, running):
    cookie = f"Cookie: {visitor.session['Cookie']}"
    stranger = Visitor(running)
    theirs = stranger.asked(f"POST {UPLOADS}", "Tus-Resumable: 1.0.0", "Upload-Length: 5")["location"]
    absent = f"{UPLOADS}/{'a' * 22}"
    assert visitor.asked(f"HEAD {absent}", "Tus-Resumable: 1.0.0").status == 404
    version = "Upload-Draft-Interop-Version: 10"
    for method, lines, body in (
        ("HEAD", CHUNK[:1], b""),
        ("HEAD", [version], b""),
        ("GET", [version], b""),
        ("PATCH", CHUNK, b"x"),
        ("PATCH", DRAFT, b"x"),
        ("POST", [*CHUNK, "X-HTTP-Method-Override: PATCH"], b"x"),
        ("DELETE", CHUNK[:1], b""),
        ("DELETE", [version], b""),
    ):
        answers = {raw_of(visitor, f"{method} {each}", cookie, *lines, body=body) for each in (theirs, absent)}
        assert len(answers) == 1, (method, lines, answers)
        assert b" 404 " in answers.pop()[:16]
    for each in (theirs, absent):
        lines = [cookie, CHUNK[0], f"Upload-Concat: final;{each}", "Content-Length: 0"]
        assert b" 404 " in raw_of(visitor, f"POST {UPLOADS}", *lines)[:16]
    # And what is theirs is as it was.
    assert stranger.asked(f"HEAD {theirs}", "Tus-Resumable: 1.0.0")["upload-offset"] == "0"
