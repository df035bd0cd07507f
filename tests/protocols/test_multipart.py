"""Forms: the same body gives the same events, or the same refusal, wherever the network cut it."""

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from app.errors import BadFilename, MalformedForm, RequestTooLarge, TooManyFiles, UnsupportedMediaType, UploadError
from app.protocols.multipart import FormDecoder, PartBegin, PartData, PartEnd
from tests.support.strategies import chunkings, filenames, form

B = "multipart/form-data; boundary=B"
FILE = b'--B\r\nContent-Disposition: form-data; name="f"; filename="x"\r\n\r\n'
END = b"\r\n--B--\r\n"
LIMITS = {"max_parts": 3, "max_field_bytes": 5}


def read(chunks, content_type=B, **limits):
    """What a form gives: its events with each part's bytes joined, and the class of the refusal that ended it.

    Of a refused form only the beginnings and ends: how far its bytes came depends on the cuts.
    """
    events, refusal = [], None
    decoder = FormDecoder(content_type, **limits)
    try:
        for chunk in chunks:
            for event in decoder.feed(chunk):
                if isinstance(event, PartData):
                    assert event.data
                    before = events.pop().data if isinstance(events[-1], PartData) else b""
                    event = PartData(bytes(before) + bytes(event.data))
                events.append(event)
        decoder.finish()
    except UploadError as error:
        refusal = type(error)
        events = [event for event in events if not isinstance(event, PartData)]
    return events, refusal


def every_split(body):
    """The body whole, in two at every place, and byte by byte."""
    yield [body]
    for place in range(len(body) + 1):
        yield [body[:place], body[place:]]
    yield [body[at : at + 1] for at in range(len(body))]


def at_every_split(body, content_type=B, **limits):
    """What the body gives, which is the same at every split."""
    [first, *others] = [read(chunks, content_type, **limits) for chunks in every_split(body)]
    assert all(other == first for other in others)
    return first


def file(name, content_type, content, path=None):
    data = [PartData(content)] if content else []
    return [PartBegin(name, content_type, "f", path=path), *data, PartEnd()]


def field(content, name="f"):
    data = [PartData(content)] if content else []
    return [PartBegin(None, "application/octet-stream", name), *data, PartEnd()]


def part(headers, content=b"hi"):
    return b"--B\r\n" + headers + b"\r\n\r\n" + content + b"\r\n"


OCTETS = "application/octet-stream"
ONE = file("x", "application/octet-stream", b"hi")
FIELD = b'Content-Disposition: form-data; name="f"'
UNNAMED = FIELD + b'; filename=""'
NAMED = b'Content-Disposition: form-data; name="f"; filename="x"'
GOOD = {
    "one file": (FILE + b"hi" + END, ONE),
    "no line end behind the last boundary": (FILE + b"hi\r\n--B--", ONE),
    "no part at all": (b"--B--\r\n", []),
    "an empty file": (FILE + END, file("x", OCTETS, b"")),
    "a field": (part(FIELD) + b"--B--", field(b"hi")),
    "an empty field": (part(FIELD, b"") + b"--B--", field(b"")),
    "a field as large as allowed": (part(FIELD, b"12345") + b"--B--", field(b"12345")),
    "a large file among small limits": (FILE + b"h" * 99 + END, file("x", OCTETS, b"h" * 99)),
    "as many parts as allowed": (part(NAMED) * 3 + b"--B--", ONE * 3),
    "a file of CR": (FILE + b"\r" * 9 + END, file("x", OCTETS, b"\r" * 9)),
    "a file of CRLF": (FILE + b"\r\n" * 9 + END, file("x", OCTETS, b"\r\n" * 9)),
    "a file of LF": (FILE + b"\n" * 9 + END, file("x", OCTETS, b"\n" * 9)),
    "CR in front of the boundary": (FILE + b"hi\r" + END, file("x", OCTETS, b"hi\r")),
    "CRLF first, then no line end": (FILE + b"\r\nhihihi" + END, file("x", OCTETS, b"\r\nhihihi")),
    "what begins like a boundary": (
        FILE + b"\r\n--A\r\n--\r\n-B\r\n\r\n--\n--B\r--B--B --B--" + END,
        file("x", OCTETS, b"\r\n--A\r\n--\r\n-B\r\n\r\n--\n--B\r--B--B --B--"),
    ),
    "what ends where a boundary would": (FILE + b"--" + END, file("x", OCTETS, b"--")),
    "CRLF in front": (b"\r\n" + FILE + b"hi" + END, ONE),
    "a preamble of 64 bytes": (b"--A\r\n" + b"p" * 57 + b"\r\n" + FILE + b"hi" + END, ONE),
    "a boundary in a preamble's line": (b"p --B\r\n" + FILE + b"hi" + END, ONE),
    "an epilogue of 64 bytes": (FILE + b"hi" + END[:-2] + (b"--B\r\nnot a part\r\n--B\r\n" * 3)[:64], ONE),
    "a content type": (
        part(NAMED + b"\r\nContent-Type: text/plain; charset=utf-7") + b"--B--",
        file("x", "text/plain; charset=utf-7", b"hi"),
    ),
    "a content type that is no label": (part(NAMED + b"\r\nContent-Type: t\xc3\xa9xt") + b"--B--", ONE),
    "8 headers": (part(b"X-A: \xff;;=\r\n" * 7 + NAMED) + b"--B--", ONE),
    "header names in any case": (
        part(b"CONTENT-type:a/b\r\ncontent-DISPOSITION:FORM-DATA;NAME=f;FileName=x ") + b"--B--",
        file("x", "a/b", b"hi"),
    ),
    "a header of 4,096 bytes": (part(b"X: " + b"x" * 4093 + b"\r\n" + NAMED) + b"--B--", ONE),
    "the length of a part": (part(b"Content-Length: 2\r\n" + NAMED) + b"--B--", ONE),
    "an encoding that changes nothing": (part(b"Content-Transfer-Encoding: 8BIT\r\n" + NAMED) + b"--B--", ONE),
    "multipart/mixed inside": (
        part(NAMED + b"\r\nContent-Type: multipart/mixed; boundary=C", b"--C\r\n\r\nhi\r\n--C--") + b"--B--",
        file("x", "multipart/mixed; boundary=C", b"--C\r\n\r\nhi\r\n--C--"),
    ),
    "_charset_": (
        part(FIELD.replace(b"f\"", b"_charset_\""), b"utf-7") + FILE + b"hi" + END,
        field(b"utf-7", "_charset_") + ONE,
    ),
    'filename="" without bytes': (part(UNNAMED, b"") + b"--B--", field(b"")),
    'filename="" with bytes': (
        part(UNNAMED, b"123456") + b"--B--",
        file("unnamed", OCTETS, b"123456"),
    ),
}  # fmt: skip

BAD = {
    "nothing": (b"", MalformedForm),
    "no boundary": (b"hi", MalformedForm),
    "another boundary": (FILE.replace(b"--B", b"--C") + b"hi" + END.replace(b"--B", b"--C"), MalformedForm),
    "JSON": (b'{"a": "' + b"b" * 99 + b'"}', MalformedForm),
    "urlencoded": (b"a=b&" * 99, MalformedForm),
    "a preamble of 65 bytes": (b"p" * 63 + b"\r\n" + FILE + b"hi" + END, MalformedForm),
    "an endless preamble": (b"\r\n" * 200, MalformedForm),
    "an epilogue of 65 bytes": (FILE + b"hi" + END[:-2] + b"e" * 65, MalformedForm),
    "a form behind the form": ((FILE + b"hi" + END) * 2, MalformedForm),
    "LF for CRLF": ((FILE + b"hi" + END).replace(b"\r\n", b"\n"), MalformedForm),
    "CR for CRLF": ((FILE + b"hi" + END).replace(b"\r\n", b"\r"), MalformedForm),
    "LF behind a header": (part(b"X: a\n" + NAMED) + b"--B--", MalformedForm),
    "LF behind the first boundary": (b"--B\n" + FILE[5:] + b"hi" + END, MalformedForm),
    "CR in a header": (part(b"X: a\rb\r\n" + NAMED) + b"--B--", MalformedForm),
    "NUL in a header": (part(b"X: a\x00b\r\n" + NAMED) + b"--B--", MalformedForm),
    "a folded header": (part(NAMED.replace(b"; f", b";\r\n f")) + b"--B--", MalformedForm),
    "a header without a colon": (part(b"X\r\n" + NAMED) + b"--B--", MalformedForm),
    "a header without a name": (part(b": x\r\n" + NAMED) + b"--B--", MalformedForm),
    "a space in front of the colon": (part(b"X : a\r\n" + NAMED) + b"--B--", MalformedForm),
    "a boundary in front of the headers": (part(b"--B: x\r\n" + NAMED) + b"--B--", MalformedForm),
    "a boundary among the headers": (part(NAMED + b"\r\n--B--: x") + b"--B--", MalformedForm),
    "a boundary behind the empty line": (FILE + b"--B\r\n" + NAMED + b"\r\n\r\nhi" + END, MalformedForm),
    "the last boundary behind the empty line": (FILE + b"--B--" + END, MalformedForm),
    "9 headers": (part(b"X: a\r\n" * 8 + NAMED) + b"--B--", MalformedForm),
    "a header of 4,097 bytes": (part(b"X:" + b" " * 4095 + b"\r\n" + NAMED) + b"--B--", MalformedForm),
    "a header that never ends": (b"--B\r\nX: " + b"x" * 5000, MalformedForm),
    "no headers": (b"--B\r\n\r\nhi" + END, MalformedForm),
    "no content disposition": (part(b"Content-Type: a/b") + b"--B--", MalformedForm),
    "two content dispositions": (part(NAMED + b"\r\n" + NAMED) + b"--B--", MalformedForm),
    "two content types": (part(NAMED + b"\r\nContent-Type: a/b" * 2) + b"--B--", MalformedForm),
    "base64": (part(NAMED + b"\r\nContent-Transfer-Encoding: base64") + b"--B--", MalformedForm),
    "quoted-printable": (part(NAMED + b"\r\nContent-Transfer-Encoding: quoted-printable") + b"--B--", MalformedForm),
    "no encoding at all": (part(NAMED + b"\r\nContent-Transfer-Encoding:") + b"--B--", MalformedForm),
    "two encodings": (part(NAMED + b"\r\nContent-Transfer-Encoding: 8bit" * 2) + b"--B--", MalformedForm),
    "a part shorter than it says": (part(b"Content-Length: 3\r\n" + NAMED) + b"--B--", MalformedForm),
    "a part longer than it says": (part(b"Content-Length: 1\r\n" + NAMED) + b"--B--", MalformedForm),
    "a part of no length": (part(b"Content-Length: -1\r\n" + NAMED) + b"--B--", MalformedForm),
    "something behind a boundary": (FILE + b"hi\r\n--Bx" + END, MalformedForm),
    "spaces behind a boundary": (FILE + b"hi\r\n--B  \r\n" + NAMED + b"\r\n\r\n" + END, MalformedForm),
    "something behind the first boundary": (b"--Bx" + FILE[3:] + b"hi" + END, MalformedForm),
    "a field over its limit": (part(FIELD, b"123456") + b"--B--", RequestTooLarge),
    "more parts than allowed": (part(NAMED) * 4 + b"--B--", TooManyFiles),
    "more empty fields than allowed": (part(UNNAMED, b"") * 4 + b"--B--", TooManyFiles),
    "a name with a line end": (part(NAMED.replace(b"x", b"x\t")) + b"--B--", BadFilename),
    "a name that is not UTF-8": (part(NAMED.replace(b"x", b"\xff")) + b"--B--", BadFilename),
    "a name of 256 bytes": (part(NAMED.replace(b"x", b"x" * 256)) + b"--B--", BadFilename),
    "a good file, then a bad name": (FILE + b"hi\r\n" + part(NAMED.replace(b"x", b"\xc0\xaf")) + b"--B--", BadFilename),
    "a good file, then a bad part": (FILE + b"hi\r\n" + part(b"X: a") + b"--B--", MalformedForm),
}  # fmt: skip


@pytest.mark.parametrize("case", GOOD)
def test_a_form_gives_its_parts_at_every_split(case):
    body, events = GOOD[case]
    assert at_every_split(body, **LIMITS) == (events, None)


@pytest.mark.parametrize("case", BAD)
def test_a_malformed_form_is_refused_at_every_split(case):
    body, refusal = BAD[case]
    assert at_every_split(body, **LIMITS)[1] is refusal


@pytest.mark.parametrize("case", GOOD)
def test_a_form_cut_short_is_refused_wherever_it_ends(case):
    body, events = GOOD[case]
    whole = body.index(b"--B--") + 5 if events == [] else body.index(b"\r\n--B--") + 7
    for end in range(max(0, whole - 300), whole):
        assert read([body[:end]], **LIMITS)[1] is MalformedForm
    assert read([body[:whole]], **LIMITS) == (events, None)


@given(files=st.lists(st.tuples(filenames(), st.just("a/b"), st.binary(max_size=200)), max_size=3), data=st.data())
def test_files_come_out_as_they_went_in_however_the_body_was_cut(files, data):
    body, content_type = form(files)
    events, refusal = read(data.draw(chunkings(body)), content_type)
    expected = []
    for number, (name, media_type, content) in enumerate(files):
        expected += [PartBegin(name, media_type, f"part{number}"), *([PartData(content)] if content else []), PartEnd()]
    assert (events, refusal) == (expected, None)


FRAGMENTS = [
    b"--B", b"--B--", b"--", b"B", b"\r\n", b"\r", b"\n", b"\r\n--B\r\n", b"\r\n--B--\r\n", b"\r\n\r\n", b"x", b": ",
    FIELD, b'; filename="x"', b'; filename=""', b'"', b"\\", b"%22",
    b"\xff", b"\x00",
    b"Content-Disposition: ", b"Content-Type: a/b", b"Content-Length: 2", b" ", b"X: " + b"y" * 4090, b"hi", FILE, END,
]  # fmt: skip


@given(body=st.lists(st.sampled_from(FRAGMENTS), max_size=25).map(b"".join), data=st.data())
@example(body=b"xxxxxxxxxx--B\r\n" + FILE[5:] + END, data=None)
@example(body=b"--B\r\n" + b"X:" + b"y" * 4094 + b"\r\n" + FILE[5:] + END, data=None)
def test_anything_gives_the_same_however_it_was_cut(body, data):
    whole = read([body], **LIMITS)
    for chunks in every_split(body) if data is None else [data.draw(chunkings(body)) for _ in range(5)]:
        assert read(chunks, **LIMITS) == whole


@given(body=st.binary(max_size=200).map(lambda noise: FILE + noise + END), data=st.data())
def test_a_file_may_hold_anything_but_the_boundary(body, data):
    content = body[len(FILE) : -len(END)]
    if b"\r\n--B" in (content + END)[: -len(END) + 4]:
        return
    assert read(data.draw(chunkings(body))) == ([*file("x", OCTETS, content)], None)


@pytest.mark.parametrize("boundary", ["B", "b" * 70, "-" * 70, "a'()+_,-./:=?b", "a b"])
def test_look_alikes_of_the_boundary_are_stored_at_every_split(boundary):
    look_alikes = [f"\r\n--{boundary}"[:end] + "!" for end in range(1, len(boundary) + 4)]
    content = "".join(look_alikes).encode()[-400:]
    body, _ = form([("x", "a/b", content)], boundary=boundary)
    events, refusal = at_every_split(body, f'multipart/form-data; boundary="{boundary}"')
    assert (events, refusal) == ([PartBegin("x", "a/b", "part0"), PartData(content), PartEnd()], None)


# What clients write into Content-Disposition, as captured from them, and the name they mean.
CLIENTS = {
    "a browser, undici, curl since 7.81": [
        (b'form-data; name="f"; filename="report 1.pdf"', "report 1.pdf"),
        (b'form-data; name="f"; filename="a%22b.txt"', 'a"b.txt'),
        (b'form-data; name="f"; filename="c\\d.txt"', "d.txt"),
        (b'form-data; name="f"; filename="e\\%22f.txt"', '"f.txt'),
        (b'form-data; name="f"; filename="l%0Am.txt"', "l%0Am.txt"),
        (b'form-data; name="f"; filename="%41%2e%25.txt"', "%41%2e%25.txt"),
        (b'form-data; name="f"; filename="tail\\"', "unnamed"),
        ('form-data; name="f"; filename="ü;x=y.txt"'.encode(), "ü;x=y.txt"),
        (b'form-data; name="f"; filename="C:\\Users\\new\\x.txt"', "x.txt"),
    ],
    "curl --form-escape, older curl, Go, Apache": [
        (b'form-data; name="f"; filename="a\\"b.txt"', 'a"b.txt'),
        (b'form-data; name="f"; filename="c\\\\d.txt"', "d.txt"),
        (b'form-data; name="f"; filename="e\\\\\\"f.txt"', '"f.txt'),
        (b'form-data; name="f"; filename="\\"\\"; %22.txt"', '""; %22.txt'),
        (b'form-data; name="f"; filename="a\\""', 'a"'),
    ],
    ".NET": [
        (b"form-data; name=f; filename=a.txt; filename*=utf-8''a.txt", "a.txt"),
        (b"form-data; name=f; filename=\"a b.txt\"; filename*=utf-8''a%20b.txt", "a b.txt"),
        (b"form-data; name=f; filename=\"r?sum?.pdf\"; filename*=UTF-8''r%C3%A9sum%C3%A9.pdf", "résumé.pdf"),
        (b"form-data; name=f; filename=\"r__sum__.pdf\"; filename*=UTF-8''r%C3%A9sum%C3%A9.pdf", "résumé.pdf"),
        (
            b"form-data; name=f; filename=\"r\xe9sum? (1).pdf\"; filename*=UTF-8''r%C3%A9sum%E4%BD%A0%20(1).pdf",
            "résum你 (1).pdf",
        ),
        (b"form-data; name=f; filename=\"??.png\"; filename*=UTF-8''%F0%9F%98%80.png", "😀.png"),
        (
            b'form-data; name=f; filename="=?utf-8?B?c3BlY2lhbOKCrGZpbGVuYW1l?="; '
            b"filename*=utf-8''special%E2%82%ACfilename",
            "special€filename",
        ),
    ],
    "others": [
        (b"form-data; filename=a.txt; name=f", "a.txt"),
        (b'form-data;name="f";filename="a.txt";', "a.txt"),
        (b'form-data; name="f"; filename="a.txt"; size=3; x="\xff"', "a.txt"),
        (b'form-data; name="f"; filename="../../etc/passwd"', "passwd"),
        (b'form-data; name="f"; filename=" "', "unnamed"),
    ],
}


@pytest.mark.parametrize(("disposition", "name"), [case for cases in CLIENTS.values() for case in cases])
def test_every_client_means_a_name(disposition, name):
    body = part(b"Content-Disposition: " + disposition) + b"--B--"
    path = "etc/passwd" if b"etc/passwd" in disposition else None
    assert read([body]) == (file(name, "application/octet-stream", b"hi", path), None)


@pytest.mark.parametrize(
    "disposition",
    [
        b"", b"form-data", b'attachment; name="f"; filename="x"', b'form-data; filename="x"', b'form-data; name=""',
        b"form-data; name=", b'form-data; name="f', b'form-data; name="f"; filename="x', b'form-data, name="f"',
        b'form-data; name="f"; name="f"', b'form-data; name="f"; filename="x"; filename="x"',
        b'form-data; name="f"; filename="x"; FILENAME=y', b'form-data; name="f" filename="x"',
        b'form-data; name="f"; filename="a"b"', b'form-data; name="\xff"', b"form-data; name=\xc3\xbc",
        b"form-data; name=f; filename*=UTF-8''x", b"form-data; name=f; filename=x; filename*=UTF-8''y",
        b"form-data; name=f; filename=\"\"; filename*=UTF-8''y",
        b"form-data; name=f; filename=\"r?sum?.exe\"; filename*=UTF-8''r%C3%A9sum%C3%A9.pdf",
        b"form-data; name=f; filename=\"?eport.pdf\"; filename*=UTF-8''report.pdf",
        b"form-data; name=f; filename=x; filename*=x",
        b"form-data; name=f; filename=\"=?utf-8?B?eg==?=\"; filename*=utf-8''y", b'form-data; name="f"; filename',
        b"form-data; name=f; filename=x; filename*=ISO-8859-1''x",
    ],
)  # fmt: skip
def test_a_part_that_does_not_say_what_it_is_is_refused(disposition):
    assert read([part(b"Content-Disposition: " + disposition) + b"--B--"]) == ([], MalformedForm)


def test_the_name_of_a_field_comes_with_it():
    body = part('Content-Disposition: form-data; name="a%22ü"'.encode()) + b"--B--"
    assert read([body])[0] == field(b"hi", 'a"ü')


@pytest.mark.parametrize(
    "content_type",
    [
        "multipart/form-data; boundary=B",
        'Multipart/Form-Data;BOUNDARY="B"',
        "multipart/form-data; charset=punycode; boundary=B",
        'multipart/form-data; boundary="\\B"',
    ],
)
def test_a_content_type_names_the_boundary(content_type):
    assert read([FILE + b"hi" + END], content_type) == (ONE, None)


@pytest.mark.parametrize(
    "content_type",
    [
        "multipart/form-data", "multipart/form-data;",
        "multipart/form-data; boundary=", 'multipart/form-data; boundary=""',
        f"multipart/form-data; boundary={'b' * 71}", 'multipart/form-data; boundary="b "',
        'multipart/form-data; boundary="b',
        'multipart/form-data; boundary="a\r\nb"', 'multipart/form-data; boundary="a@b"',
        "multipart/form-data; boundary=ü",
        "multipart/form-data; boundary=a; boundary=a", "multipart/form-data boundary=a",
        "multipart/form-data; boundary=a b",
        "multipart/form-data; boundary=a, multipart/form-data; boundary=b", "",
    ],
)  # fmt: skip
def test_a_content_type_without_a_boundary_is_refused(content_type):
    with pytest.raises(MalformedForm):
        FormDecoder(content_type)


@pytest.mark.parametrize(
    "content_type", ["application/x-www-form-urlencoded", "multipart/mixed; boundary=B", "text/plain"]
)
def test_a_body_that_is_not_a_form_is_refused_by_its_type(content_type):
    with pytest.raises(UnsupportedMediaType):
        FormDecoder(content_type)


def test_limits_are_there_without_asking_and_are_named():
    empty = part(b'Content-Disposition: form-data; name="f"', b"")
    assert read([empty * 1000 + b"--B--"])[1] is None
    decoder = FormDecoder(B)
    with pytest.raises(TooManyFiles) as refused:
        list(decoder.feed(empty * 1001))
    assert refused.value.members == {"received": 1001, "limit": 1000}
    decoder = FormDecoder(B)
    with pytest.raises(RequestTooLarge) as refused:
        list(decoder.feed(part(b'Content-Disposition: form-data; name="f"', bytes(2_000_000))))
    assert refused.value.members == {"received": 2**20 + 1, "limit": 2**20}


def test_a_block_far_from_any_boundary_is_handed_on_without_a_copy():
    decoder = FormDecoder(B)
    list(decoder.feed(FILE))
    block = bytes(65536)
    [event] = decoder.feed(block)
    assert event.data is block


def test_a_refused_form_stays_refused():
    decoder = FormDecoder(B)
    with pytest.raises(MalformedForm):
        list(decoder.feed(FILE + b"\r\n--B??"))
    with pytest.raises(MalformedForm):
        list(decoder.feed(END))
    with pytest.raises(MalformedForm):
        decoder.finish()
