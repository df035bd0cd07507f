"""Forms that break off, flood, or mean two things to two readers.

What a form is stands in tests/protocols/test_multipart.py, at every split. Here: what the service answers to what is
none, through a socket, and that nothing of it is stored.

Row 4.2.13 and the first half of 4.2.20 are decided otherwise by the contract: a POST of any other type is a file.
"""

from itertools import pairwise

import pytest

from tests.hostile.wire import CRLF, END, FORM, cases, named, one_by_one, part

FIELD = b'Content-Disposition: form-data; name="f"'
NAMED = named(b"a.txt")
FILE = part(NAMED)
MALFORMED = (400, "malformed_form")


def typed(value):
    return b"multipart/form-data; " + value


# Each: the body, the refusal, and the failures that are recorded: one for each file that had begun.
REFUSED = {
    "4.2.1 no closing boundary": (FILE, MALFORMED, 1),
    "4.2.1 cut in the bytes": (FILE[:-4], MALFORMED, 1),
    "4.2.1 cut in the headers": (FILE[:30], MALFORMED, 0),
    "4.2.1 cut behind the headers": (FILE[:-7], MALFORMED, 1),
    "4.2.1 cut in the boundary": (FILE + END[:2], MALFORMED, 1),
    "4.2.1 cut in the last dash": (FILE + END[:-3], MALFORMED, 1),
    "4.2.1 the second file cut": (FILE + part(NAMED, b"x" * 50_000)[:-5] + b"y", MALFORMED, 2),
    "4.2.1 nothing": (b"", MALFORMED, 0),
    "4.2.2 another boundary": ((FILE + END).replace(b"--B", b"--C"), MALFORMED, 0),
    "4.2.2 a boundary in lower case": ((FILE + END).replace(b"--B", b"--b"), MALFORMED, 0),
    "4.2.5 a preamble of 2 MB": (CRLF * 1_000_000 + FILE + END, MALFORMED, 0),
    "4.2.5 a preamble of 65 bytes": (b"p" * 63 + CRLF + FILE + END, MALFORMED, 0),
    "4.2.5 an epilogue of 2 MB": (FILE + END + CRLF * 1_000_000, MALFORMED, 1),
    "4.2.5 a form behind the form": (FILE + END + (FILE + END) * 2, MALFORMED, 1),
    "4.2.6 LF": ((FILE + END).replace(CRLF, b"\n"), MALFORMED, 0),
    "4.2.6 CR": ((FILE + END).replace(CRLF, b"\r"), MALFORMED, 0),
    "4.2.6 LF behind a header": (part(b"A: b\n" + NAMED) + END, MALFORMED, 0),
    "4.2.7 no disposition": (part(b"Content-Type: text/plain") + END, MALFORMED, 0),
    "4.2.7 no headers": (part(b"") + END, MALFORMED, 0),
    "4.2.7 no name": (part(b'Content-Disposition: form-data; filename="a"') + END, MALFORMED, 0),
    "4.2.7 an empty name": (part(b'Content-Disposition: form-data; name=""; filename="a"') + END, MALFORMED, 0),
    "4.2.7 attachment": (part(b'Content-Disposition: attachment; name="f"; filename="a"') + END, MALFORMED, 0),
    "4.2.7 a name that is not UTF-8": (part(b'Content-Disposition: form-data; name="\xff"') + END, MALFORMED, 0),
    "4.2.8 two dispositions": (part(NAMED + CRLF + NAMED) + END, MALFORMED, 0),
    "4.2.8 two filenames": (part(NAMED + b'; filename="b"') + END, MALFORMED, 0),
    "4.2.8 two filenames, one in capitals": (part(NAMED + b'; FILENAME="b"') + END, MALFORMED, 0),
    "4.2.8 filename and filename*": (part(NAMED + b"; filename*=UTF-8''b.txt") + END, MALFORMED, 0),
    "4.2.8 two types": (part(NAMED + CRLF + b"Content-Type: a/b" + CRLF + b"Content-Type: a/b") + END, MALFORMED, 0),
    "4.2.9 filename* alone": (part(FIELD + b"; filename*=UTF-8''b.txt") + END, MALFORMED, 0),
    "4.2.10 9 headers": (part(b"A: b\r\n" * 8 + NAMED) + END, MALFORMED, 0),
    "4.2.10 a header over 4 KiB": (part(b"A: " + b"b" * 4096 + CRLF + NAMED) + END, MALFORMED, 0),
    "4.2.10 headers without end": (b"--B\r\nA: " + b"b" * 1_000_000, MALFORMED, 0),
    "4.2.10 a folded header": (part(NAMED.replace(b"; f", b";\r\n f")) + END, MALFORMED, 0),
    "4.2.10 NUL in a header": (part(b"A: \0" + CRLF + NAMED) + END, MALFORMED, 0),
    "4.2.10 a space before the colon": (part(NAMED.replace(b":", b" :", 1)) + END, MALFORMED, 0),
    "4.2.11 21 files": (FILE * 21 + END, (413, "too_many_files"), 10),
    "4.2.11 21 empty files": (part(NAMED, b"") * 21 + END, (413, "too_many_files"), 10),
    "4.2.11 2,000 fields": (part(FIELD, b"") * 2_000 + END, (413, "too_many_files"), 0),
    "4.2.11 2,000 empty fields of a browser": (part(named(b""), b"") * 2_000 + END, (413, "too_many_files"), 0),
    "4.2.12 a field over 1 MiB": (part(FIELD, b"x" * 1_100_000) + FILE + END, (413, "request_too_large"), 0),
    "4.2.12 a file, then such a field": (FILE + part(FIELD, b"x" * 1_100_000) + END, (413, "request_too_large"), 1),
    "4.2.12 a file over its limit": (part(NAMED, b"x" * 2_000_001) + END, (413, "too_large"), 1),
    "4.2.14 base64": (part(b"Content-Transfer-Encoding: base64\r\n" + NAMED) + END, MALFORMED, 0),
    "4.2.14 quoted-printable": (part(b"Content-Transfer-Encoding: Quoted-Printable\r\n" + NAMED) + END, MALFORMED, 0),
    "4.2.14 no encoding that there is": (part(b"Content-Transfer-Encoding: x\r\n" + NAMED) + END, MALFORMED, 0),
    "4.2.20 JSON called a form": (b'{"a": "' + b"b" * 99 + b'"}', MALFORMED, 0),
    "4.2.20 a form without a file": (part(FIELD) + END, (400, "no_file"), 0),
    "4.2.20 a form without a part": (END, (400, "no_file"), 0),
    "a part that is longer than it says": (part(b"Content-Length: 1\r\n" + NAMED) + END, MALFORMED, 1),
    "a part that says -1": (part(b"Content-Length: -1\r\n" + NAMED) + END, MALFORMED, 1),
    "something behind a boundary": (FILE + b"--B \r\n" + NAMED + CRLF + CRLF + CRLF + END, MALFORMED, 1),
}  # fmt: skip


@pytest.mark.parametrize(("body", "refusal", "begun"), cases(REFUSED))
def test_a_malformed_form_is_refused_and_nothing_of_it_stays(visitor, body, refusal, begun):
    [said] = visitor.said_to(visitor.post(body))
    assert (said.status, said.code) == refusal
    visitor.left_nothing(*[refusal[1]] * begun)


SHORT = {name: case for name, case in REFUSED.items() if len(case[0]) < 2_000}


@pytest.mark.parametrize(("body", "refusal", "begun"), cases(SHORT))
def test_a_malformed_form_is_refused_byte_by_byte_too(visitor, body, refusal, begun):
    sent = visitor.post(body)
    head = len(sent) - len(body)
    [said] = visitor.said_to(sent[:head], *one_by_one(body))
    assert (said.status, said.code) == refusal
    visitor.left_nothing(*[refusal[1]] * begun)


TYPES = {
    "4.2.2 no boundary": (b"multipart/form-data", MALFORMED),
    "4.2.2 an empty boundary": (typed(b"boundary="), MALFORMED),
    "4.2.2 an empty boundary in quotes": (typed(b'boundary=""'), MALFORMED),
    "4.2.2 71 characters": (typed(b"boundary=" + b"B" * 71), MALFORMED),
    "4.2.2 two boundaries": (typed(b"boundary=B; boundary=C"), MALFORMED),
    "4.2.2 two boundaries, one in capitals": (typed(b"boundary=B; BOUNDARY=C"), MALFORMED),
    "4.2.2 a boundary*": (typed(b"boundary*=UTF-8''B"), MALFORMED),
    "4.2.2 parts of a boundary": (typed(b"boundary*0=B"), MALFORMED),
    "4.2.2 a boundary that ends with a space": (typed(b'boundary="B "'), MALFORMED),
    "4.2.2 a boundary with a comma behind it": (typed(b"boundary=B,"), MALFORMED),
    "4.2.2 bytes in a boundary": (typed(b'boundary="B\xff"'), MALFORMED),
    "4.2.2 a quote without end": (typed(b'boundary="B'), MALFORMED),
    "4.2.18 60,000 semicolons": (typed(b";" * 60_000), MALFORMED),
    "4.2.18 6,000 parameters": (typed(b";".join(b"a%d=b" % n for n in range(6_000))), MALFORMED),
    "4.2.18 60,000 backslashes": (typed(b'boundary="' + b"\\" * 60_000), MALFORMED),
    "4.2.18 60,000 spaces": (typed(b" " * 60_000 + b"boundary"), MALFORMED),
    "4.2.18 60,000 letters": (typed(b"boundary=" + b"a" * 60_000), MALFORMED),
    "4.2.20 two types": (FORM + b"\r\nContent-Type: " + FORM, (400, "bad_request")),
}


@pytest.mark.parametrize(("kind", "refusal"), cases(TYPES))
def test_a_form_without_a_boundary_is_refused_by_its_head(visitor, kind, refusal):
    [said] = visitor.said_to(visitor.post(FILE + END, kind))
    assert (said.status, said.code) == refusal
    visitor.left_nothing()


LOOKALIKES = b"\r\n--A\r\n--\r\n-B\r\n\r\n--\n--B\r--B--B --B--\r\n-"
STORED = {
    "4.2.3 what looks like the boundary": (part(NAMED, LOOKALIKES) + END, [LOOKALIKES]),
    "4.2.3 the boundary's beginning again and again": (
        part(NAMED, b"\r\n-" * 100 + b"\r" * 50) + END,
        [b"\r\n-" * 100 + b"\r" * 50],
    ),
    "4.2.4 CR first": (part(NAMED, b"\r" + b"x" * 300) + END, [b"\r" + b"x" * 300]),
    "4.2.4 LF first": (part(NAMED, b"\n" + b"x" * 300) + END, [b"\n" + b"x" * 300]),
    "4.2.4 CR alone": (part(NAMED, b"\r" * 300) + END, [b"\r" * 300]),
    "4.2.4 CRLF alone": (part(NAMED, CRLF * 150) + END, [CRLF * 150]),
    "4.2.5 a preamble and an epilogue of 64 bytes": (b"p" * 62 + CRLF + FILE + END + b"e" * 62, [b"hello"]),
    "4.2.14 binary": (part(b"Content-Transfer-Encoding: BINARY\r\n" + NAMED) + END, [b"hello"]),
    "4.2.15 punycode": (part(NAMED + b"\r\nContent-Type: text/plain; charset=punycode") + END, [b"hello"]),
    "4.2.15 utf-7": (part(NAMED + b"\r\nContent-Type: text/plain; charset=utf-7", b"+AC4ALg-") + END, [b"+AC4ALg-"]),
    "4.2.15 undefined": (part(NAMED + b"\r\nContent-Type: text/plain; charset=undefined") + END, [b"hello"]),
    "4.2.16 _charset_": (part(FIELD.replace(b'"f"', b'"_charset_"'), b"utf-7") + FILE + END, [b"hello"]),
    "4.2.17 multipart/mixed": (
        part(NAMED + b"\r\nContent-Type: multipart/mixed; boundary=C", b"--C\r\n\r\nhi\r\n--C--") + END,
        [b"--C\r\n\r\nhi\r\n--C--"],
    ),
    "4.2.17 a form in a form": (part(NAMED, (FILE + END).replace(b"--B", b"--D")) + END, [
        (FILE + END).replace(b"--B", b"--D")]),
    "two files and a field": (FILE + part(FIELD) + part(named(b"b"), b"x" * 500) + END, [b"hello", b"x" * 500]),
}  # fmt: skip


@pytest.mark.parametrize(("body", "contents"), cases(STORED))
def test_a_form_is_stored_as_it_is_however_it_comes(visitor, body, contents):
    sent = visitor.post(body)
    head = len(sent) - len(body)
    [said] = visitor.said_to(sent[:head], *one_by_one(body))
    assert [item["size"] for item in said.json()["items"]] == [len(content) for content in contents]
    visitor.left(*contents)


def test_4_2_15_no_charset_makes_a_path_of_a_clean_name(visitor):
    kinds = ["utf-7", "unicode_escape", "punycode", "undefined", "idna", "rot13", "base64"]
    body = b"".join(
        part(named(b"+AC4ALgAv-etc\xc3\xa9") + f"\r\nContent-Type: text/plain; charset={kind}".encode())
        for kind in kinds
    )
    [said] = visitor.said_to(visitor.post(body + END, FORM + b"; charset=utf-7"))
    assert [item["filename"] for item in said.json()["items"]] == ["+AC4ALgAv-etcé"] * len(kinds)


def test_a_form_is_the_same_file_wherever_it_is_cut(visitor):
    body = part(NAMED, LOOKALIKES) + END
    sent = visitor.post(body)
    places = [0, *range(len(sent) - len(body), len(sent) - 1)]
    digests = set()
    for before, after in pairwise(places):
        [said] = visitor.said_to(sent[:before], sent[before:after], sent[after:])
        digests.add(said.json()["items"][0]["sha256"])
    assert len(digests) == 1
    assert {status for status, _ in visitor.history()} == {"completed"}


def test_a_form_in_chunks_of_a_byte_is_the_same_file(visitor):
    body = part(NAMED, LOOKALIKES) + END
    head = visitor.head("POST /api/ingestion/uploads", b"Content-Type: " + FORM, b"Transfer-Encoding: chunked")
    [said] = visitor.said_to(head + b"".join(b"1\r\n" + byte + CRLF for byte in one_by_one(body)) + b"0\r\n\r\n")
    assert said.status == 201
    visitor.left(LOOKALIKES)


OTHERS = {
    "4.2.13 urlencoded": (b"application/x-www-form-urlencoded", b"a=b;c=d&" * 50_000),
    "4.2.20 JSON": (b"application/json", b'{"a": 1}'),
    "4.2.20 no body": (b"application/json", b""),
    "4.2.20 multipart/mixed": (b"multipart/mixed; boundary=B", FILE + END),
}


@pytest.mark.parametrize(("kind", "body"), cases(OTHERS))
def test_a_body_of_another_type_than_a_form_is_a_file_that_is_not_parsed(visitor, kind, body):
    [said] = visitor.said_to(visitor.post(body, kind))
    assert (said.status, said.json()["filename"], said.json()["content_type"]) == (201, "unnamed", kind.decode())
    visitor.left(body)
