import email.message
import unicodedata
from base64 import b64encode
from contextlib import suppress
from hashlib import sha256

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from app.errors import BadFilename, BadRequest, RangeNotSatisfiable, UncheckedDigest
from app.model import MAX_TIME_US, Digests, Protocol, Status, Upload
from app.protocols.filenames import safe_filename, searched_name
from app.protocols.headers import (
    attachment,
    byte_ranges,
    content_length,
    content_type,
    declared_digests,
    digest_field,
    disposition_filename,
    etag,
    http_date,
    idempotency_key,
    matches,
    parameters,
    parse_http_date,
    request_id,
    whole_range,
)
from tests.support.strategies import filenames

LATIN_1 = st.text(st.characters(codec="latin-1"), max_size=60)


# Names


@pytest.mark.parametrize(
    ("raw", "name"),
    [
        ("report.pdf", "report.pdf"),
        ("../../etc/passwd", "passwd"),
        ("..\\..\\x", "x"),
        ("C:\\x", "x"),
        ("\\\\host\\share", "share"),
        ("/abs", "abs"),
        ("a/b", "b"),
        ("a/b\\c", "c"),
        ("a/", "unnamed"),
        ("notes\\", "unnamed"),
        ("/", "unnamed"),
        ("", "unnamed"),
        (".", "unnamed"),
        ("..", "unnamed"),
        ("a/..", "unnamed"),
        (" ", "unnamed"),
        ("\u3000\u00a0", "unnamed"),
        (".\u200b.", "unnamed"),
        (" .. ", "unnamed"),
        ("...", "..."),
        (" a b ", "a b"),
        ("\u00a0a\u2003", "a"),
        ("a ", "a"),
        ("trailing.", "trailing."),
        ("x\u202egpj.exe", "xgpj.exe"),
        ("a\u200b\ufeff\u2060\u2066\u061cb", "ab"),
        ("خانه\u200cها.txt", "خانه\u200cها.txt"),
        ("👨\u200d👩\u200d👧.png", "👨\u200d👩\u200d👧.png"),
        ("\u200d\u200c", "unnamed"),
        (" \u200e a", "a"),
        ("cafe\u0301", "caf\u00e9"),
        ("cafe\u200b\u0301", "caf\u00e9"),
        ("CON", "CON"),
        ("NUL.txt", "NUL.txt"),
        ("a:b", "a:b"),
        ("desktop.ini", "desktop.ini"),
        (".htaccess", ".htaccess"),
        ("~", "~"),
        ('";%22%0d%0a', '";%22%0d%0a'),
        ("x" * 255, "x" * 255),
        ("a" * 5000 + "/b", "b"),
        (" " * 5000 + "b", "b"),
        ("e\u0301" * 127, "\u00e9" * 127),  # 381 bytes before NFC, 254 after
        ("日本語.txt", "日本語.txt"),
        ("日本語.txt".encode(), "日本語.txt"),
        (b"a.txt", "a.txt"),
    ],
)
def test_a_name_is_made_fit_for_display(raw, name):
    assert safe_filename(raw) == name


@pytest.mark.parametrize(
    "raw",
    [
        "a\x00b", "a\r\nb", "a\nb", "\n", "a\tb", "a\x1b[2J", "a\x7f", "a\x85b", "\x9f", "\n/a", "a\n/b",
        "x" * 256, "é" * 128, "🎉" * 300, "x" * 5000, "\u0327\u0301" * 400,
        "\ud800", "a\udcffb", "\udc80/a",
        b"\xff.txt", b"\xc0\xaf", b"\xed\xa0\x80", b"\xf4\x90\x80\x80", b"a\x00", b"\xe2\x82",
    ],
)  # fmt: skip
def test_a_name_that_cannot_be_shown_is_refused(raw):
    with pytest.raises(BadFilename):
        safe_filename(raw)


def test_twins_are_equal():
    assert safe_filename(unicodedata.normalize("NFD", "Ünïcödé 각.txt")) == safe_filename("Ünïcödé 각.txt")


@given(filenames() | st.just("100%22.txt"))
def test_a_clean_name_stays_as_it_is(name):
    assert safe_filename(name) == safe_filename(name.encode()) == name


@given(st.text(st.characters(), max_size=300) | st.binary(max_size=300))
@example("A\u030a\u200b\u0301")
@example("\u2000")
def test_a_cleaned_name_fits_a_record_and_cleaning_it_again_changes_nothing(raw):
    try:
        name = safe_filename(raw)
    except BadFilename:
        return
    assert safe_filename(name) == name
    assert name == unicodedata.normalize("NFC", name)
    assert not any(unicodedata.category(character) in {"Cc", "Cs"} for character in name)
    record_with(filename=name)


def test_normalising_makes_no_name_four_times_shorter():
    for number in (*range(0xD800), *range(0xE000, 0x110000)):
        if unicodedata.decomposition(chr(number)) or 0xAC00 <= number <= 0xD7A3:
            parts = unicodedata.normalize("NFD", chr(number))
            composed = unicodedata.normalize("NFC", parts)
            assert max(len(parts.encode()), len(chr(number).encode())) < 4 * len(composed.encode())


def record_with(*, filename="a", content_type="text/plain"):
    return Upload(
        id="0193a1f0-0000-7000-8000-000000000000", session_id="s", filename=filename, content_type=content_type, size=0,
        sha256="0" * 64, status=Status.COMPLETED, protocol=Protocol.FORM, created_at=0, completed_at=0, error=None,
    )  # fmt: skip


@given(st.text(min_size=1))
@example("photos/\u200f \u0061\u030a\u200c")
def test_a_name_is_found_by_a_search_for_what_was_sent(raw):
    try:
        name = safe_filename(raw)
    except BadFilename:
        return
    if name != "unnamed":
        assert searched_name(raw) == name


@pytest.mark.parametrize("text", [".", "..", " ", "/", "\u200f"])
def test_a_search_for_what_no_name_is_stays_as_it_is(text):
    assert searched_name(text) == text


# Content-Disposition


@pytest.mark.parametrize(
    ("value", "name"),
    [
        ("attachment", None),
        ("attachment; size=3", None),
        ('attachment; filename="a.txt"', "a.txt"),
        ("attachment; filename=a.txt", "a.txt"),
        ('Attachment ; FileName="a.txt" ; ', "a.txt"),
        ('inline; filename="a.txt"', "a.txt"),
        ('attachment;;filename="a;b=c.txt"', "a;b=c.txt"),
        ('attachment; filename="say \\"hi\\".txt"', 'say "hi".txt'),
        ('attachment; filename="a\\\\"', "unnamed"),
        ('attachment; filename=""', "unnamed"),
        ('attachment; filename="a%22b%0d%0a"', "a%22b%0d%0a"),
        ('attachment; filename="../../etc/passwd"', "passwd"),
        ("attachment; filename*=UTF-8''%e2%82%ac%20rates.txt", "€ rates.txt"),
        ("attachment; filename*=utf-8'en'a.txt", "a.txt"),
        ("attachment; filename*=UTF-8''..%2fetc%2Fpasswd", "passwd"),
        ("attachment; filename=\"EURO.txt\"; filename*=UTF-8''%e2%82%ac.txt", "€.txt"),
        ("attachment; filename*=UTF-8''%e2%82%ac.txt; filename=\"EURO.txt\"", "€.txt"),
        ("attachment; filename=\"\xff\"; filename*=UTF-8''a", "a"),
        ("attachment; filename*=UTF-8''report%20(1).pdf", "report (1).pdf"),
        ("attachment; filename*=UTF-8''it's*.pdf; size=3", "it's*.pdf"),
        ('attachment; filename="{}"'.format("日本.txt".encode().decode("latin-1")), "日本.txt"),
    ],
)
def test_a_content_disposition_names_its_body(value, name):
    assert disposition_filename(value) == name


@pytest.mark.parametrize(
    "value",
    [
        "", ";", "=", '"attachment"', "attachment filename=a", "attachment, filename=a", "attachment; filename",
        "attachment; filename=", "attachment; filename=a b", 'attachment; filename="a', 'attachment; filename="a"b',
        'attachment; filename="a""b"', "attachment; =a", "attachment; file name=a", "attachment; filename = a",
        "attachment; filename=a; filename=a", 'attachment; filename=a; FILENAME="b"', "attachment; x=1; x=1",
        "attachment; filename*=UTF-8''a; filename*=UTF-8''b",
        "attachment; filename*=a", "attachment; filename*=\"UTF-8''a\"", "attachment; filename*=ISO-8859-1''a",
        "attachment; filename*=UTF-8''%", "attachment; filename*=UTF-8''%4", "attachment; filename*=UTF-8''%zz",
        "attachment; filename*=UTF-8'a", "attachment; filename=a; filename*=utf-7''b", "attachment; filename=é",
        "attachment; filename*=UTF-8''é",
    ],
)  # fmt: skip
def test_a_content_disposition_that_cannot_be_read_is_refused(value):
    with pytest.raises(BadRequest):
        disposition_filename(value)


@pytest.mark.parametrize(
    "value",
    [
        'attachment; filename="\xff.txt"',
        "attachment; filename*=UTF-8''%ff",
        "attachment; filename*=UTF-8''%00",
        "attachment; filename*=UTF-8''a%0d%0ab",
        "attachment; filename*=UTF-8''" + "a" * 256,
    ],
)
def test_a_content_disposition_with_a_bad_name_is_refused_as_such(value):
    with pytest.raises(BadFilename):
        disposition_filename(value)


@given(filenames() | st.just("100%22.txt"))
@example('a"; filename="b')
@example("a'b")
def test_a_download_has_the_name_of_its_upload(name):
    header = attachment(name)
    assert header.isascii()
    assert header.isprintable()
    assert disposition_filename(header) == name
    _, found = parameters(header)
    assert set(found) == {"filename", "filename*"}
    theirs = email.message.Message()
    theirs["Content-Disposition"] = header.partition("; filename=")[0] + "; filename*=" + found["filename*"]
    assert theirs.get_filename() == name


def test_old_clients_get_a_name_without_what_they_misread():
    assert attachment('50% "ü";\\.txt').startswith('attachment; filename="50_ _____.txt"; ')


@given(LATIN_1)
@example('a;b="' + "\\" * 20_000)
@example("a" + " ;" * 20_000)
@example("a;" + " " * 20_000 + "!")
@example("a;b=" + "c" * 20_000 + '"')
def test_a_header_has_parameters_or_is_refused(value):
    try:
        word, found = parameters(value)
    except BadRequest:
        return
    assert word == word.lower()
    rebuilt = word + "".join(f"; {name}={text}" for name, text in found.items())
    assert parameters(rebuilt) == (word, found)


# Words and numbers


@pytest.mark.parametrize(
    ("raw", "kept"),
    [
        (None, "application/octet-stream"),
        ("", "application/octet-stream"),
        (" \t", "application/octet-stream"),
        ("text/html", "text/html"),
        ("image/svg+xml", "image/svg+xml"),
        (' text/plain; charset="utf-7" ', 'text/plain; charset="utf-7"'),
        ("text/plain, text/html", "text/plain, text/html"),
        ("nonsense", "nonsense"),
        ("x" * 255, "x" * 255),
        ("x" * 256, "application/octet-stream"),
        ("x" * 10_000, "application/octet-stream"),
        ("text/html\r\nSet-Cookie: a=b", "application/octet-stream"),
        ("text/plain\n", "application/octet-stream"),
        ("text/\x00", "application/octet-stream"),
        ("text/ü", "application/octet-stream"),
        ("text/\u202e", "application/octet-stream"),
        ("text/\ud800", "application/octet-stream"),
    ],
)
def test_a_content_type_is_kept_as_a_label(raw, kept):
    assert content_type(raw) == kept


@given(st.none() | st.text(st.characters(), max_size=300))
def test_every_content_type_is_one_a_record_accepts(raw):
    record_with(content_type=content_type(raw))


@pytest.mark.parametrize(
    ("values", "length"),
    [
        ([], None),
        (["0"], 0),
        (["000"], 0),
        (["5"], 5),
        (["0" * 5000 + "5"], 5),
        (["9223372036854775807"], 2**63 - 1),
    ],
)
def test_a_content_length_is_a_number(values, length):
    assert content_length(values) == length


@pytest.mark.parametrize(
    "values",
    [
        ["-1"], ["+5"], ["0x5"], ["1_0"], [""], [" 5"], ["5 "], ["5.0"], ["1e3"], ["5, 5"], ["٣"], ["²"], ["5\n"],
        ["9223372036854775808"], ["18446744073709551617"], ["9" * 5000], ["5", "5"], ["5", "6"], ["", ""],
    ],
)  # fmt: skip
def test_a_content_length_that_is_no_number_is_refused(values):
    with pytest.raises(BadRequest):
        content_length(values)


@pytest.mark.parametrize("raw", ["a", "A-z_0.9", "x" * 64])
def test_a_request_may_bring_its_own_id(raw):
    assert request_id(raw) == raw


@pytest.mark.parametrize("raw", [None, "", "x" * 65, "a b", "a\n", "é", "a/b", "٣", "a\x00"])
def test_a_malformed_request_id_is_none(raw):
    assert request_id(raw) is None


# Digests

HELLO = sha256(b"hello").hexdigest()
HELLO_BASE64 = b64encode(sha256(b"hello").digest()).decode()


@pytest.mark.parametrize(
    ("value", "digest"),
    [
        (f"sha-256=:{HELLO_BASE64}:", Digests(HELLO)),
        (f"  md5=:AAAA:,sha-256=:{HELLO_BASE64}:;x=1  ", Digests(HELLO)),
        (f"sha-256=:{'A' * 43}=:, sha-256=:{HELLO_BASE64}:", Digests(HELLO)),
        (f"sha-512=:{'A' * 86}==:", Digests(None, "00" * 64)),
        (f"sha-512=:{'A' * 86}==:, sha-256=:{HELLO_BASE64}:", Digests(HELLO, "00" * 64)),
        ("", Digests()),
    ],
)
def test_a_digest_field_declares_what_is_checked(value, digest):
    assert declared_digests("Repr-Digest", [value]) == digest


@pytest.mark.parametrize("value", ["md5=:AAAA:, unixsum=1, x;y=2, z=(1 2)", "sha-384=:AAAA:"])
def test_a_digest_field_that_names_nothing_to_check_is_refused_with_what_is_wanted(value):
    with pytest.raises(UncheckedDigest) as refused:
        declared_digests("Repr-Digest", [value])
    assert refused.value.headers == {"Want-Repr-Digest": "sha-256=10, sha-512=5"}


@pytest.mark.parametrize(
    "value",
    [
        HELLO, f"sha-256={HELLO}", f"sha-256={HELLO_BASE64}", f"SHA-256=:{HELLO_BASE64}:", "sha-256", "sha-256=?1",
        "sha-256=1", f'sha-256="{HELLO_BASE64}"', f"sha-256=(:{HELLO_BASE64}:)", "sha-256=::", "sha-256=:AAAA:",
        f"sha-256=:{HELLO_BASE64}", f"sha-256=:{HELLO_BASE64}:,", f"sha-256=:{HELLO_BASE64}: x", "sha-256=:!!!!:",
        f"sha-256=:{'A' * 88}:", "sha-512=:AAAA:", f"sha-512=:AAAA: sha-256=:{HELLO_BASE64}:", "\xff",
        "sha-512=:AAAA:, " * 500 + "x",
    ],
)  # fmt: skip
def test_a_digest_field_that_cannot_be_read_is_refused(value):
    with pytest.raises(BadRequest):
        declared_digests("Repr-Digest", [value])


@given(st.binary(min_size=32, max_size=32))
def test_a_digest_comes_back_from_its_field(digest):
    assert declared_digests("Repr-Digest", [digest_field(digest.hex())]) == Digests(digest.hex())


@given(LATIN_1)
def test_a_digest_field_is_understood_or_refused(value):
    try:
        sha256, sha512 = declared_digests("Repr-Digest", [value])
    except BadRequest:
        return
    assert sha256 is None or len(sha256) == 64
    assert sha512 is None or len(sha512) == 128


@pytest.mark.parametrize(("value", "size"), [("bytes 0-11/12", 12), ("Bytes  0-0/1", 1)])
def test_a_content_range_may_be_the_whole(value, size):
    assert whole_range(value) == size


@pytest.mark.parametrize(
    "value",
    [
        "bytes 0-5/12",
        "bytes 6-11/12",
        "bytes 0-5/*",
        "bytes */0",
        "bytes */12",
        "bytes 0-11",
        "0-11/12",
        "bytes=0-11/12",
        "",
    ],
)
def test_a_content_range_of_a_fragment_is_refused(value):
    with pytest.raises(BadRequest):
        whole_range(value)


# Ranges


@pytest.mark.parametrize(
    ("value", "size", "ranges"),
    [
        (None, 10, None),
        ("bytes=0-4", 10, [(0, 5)]),
        ("Bytes=0-0", 10, [(0, 1)]),
        ("bytes=5-", 10, [(5, 10)]),
        ("bytes=0-", 10, [(0, 10)]),
        ("bytes=5-999999999999999999999999", 10, [(5, 10)]),
        ("bytes=-3", 10, [(7, 10)]),
        ("bytes=-99", 10, [(0, 10)]),
        ("bytes=0-0, -1", 10, [(0, 1), (9, 10)]),
        ("bytes=5-6 ,\t1-2,,", 10, [(5, 7), (1, 3)]),
        ("bytes=0-4,5-9", 10, [(0, 5), (5, 10)]),
        ("bytes=0-1,20-30,-0", 10, [(0, 2)]),
        ("bytes=0-0,1-1,2-2,3-3,4-4", 10, [(0, 1), (1, 2), (2, 3), (3, 4), (4, 5)]),
        ("bytes=0-0,1-1,2-2,3-3,4-4,5-5", 10, None),
        ("bytes=90-91,92-93,94-95,96-97,98-99,80-81", 10, None),
        ("bytes=" + "0-0," * 10_000, 10, None),
        ("bytes=" + "0" * 10_000 + "-", 10, None),
        ("bytes=0-5,5-9", 10, None),
        ("bytes=0-,-1", 10, None),
        ("bytes=1-2,1-2", 10, None),
        ("bytes=4-3", 10, None),
        ("bytes=0-1,4-3", 10, None),
        ("bytes=90-89", 10, None),
        ("bytes", 10, None),
        ("bytes=", 10, None),
        ("bytes=,", 10, None),
        ("bytes=-", 10, None),
        ("bytes=--1", 10, None),
        ("bytes=+1-2", 10, None),
        ("bytes=1-2-3", 10, None),
        ("bytes=1 - 2", 10, None),
        ("bytes=a-b", 10, None),
        ("bytes=٣-", 10, None),
        ("bytes 0-4", 10, None),
        ("bytes = 0-4", 10, None),
        ("items=0-4", 10, None),
        ("=0-4", 10, None),
        ("", 10, None),
        ("bytes=-5", 0, None),
        ("bytes=-5,0-", 0, None),
    ],
)
def test_a_range_names_parts_of_the_file_or_the_whole(value, size, ranges):
    assert byte_ranges(value, size) == ranges


@pytest.mark.parametrize(
    ("value", "size"),
    [
        ("bytes=10-", 10),
        ("bytes=10-20,30-", 10),
        ("bytes=-0", 10),
        ("bytes=0-", 0),
        ("bytes=0-0", 0),
        ("bytes=-0", 0),
        ("bytes=99999999999999999999999-", 10),
    ],
)
def test_a_range_outside_the_file_is_refused(value, size):
    with pytest.raises(RangeNotSatisfiable) as refused:
        byte_ranges(value, size)
    assert refused.value.headers == {"Content-Range": f"bytes */{size}"}


range_specs = st.lists(
    st.tuples(st.none() | st.integers(0, 14), st.none() | st.integers(0, 14)).filter(lambda pair: pair != (None, None)),
    min_size=1,
    max_size=7,
)


@given(specs=range_specs, size=st.integers(0, 12))
def test_ranges_are_those_that_counting_byte_by_byte_gives(specs, size):
    value = "bytes=" + ",".join(f"{'' if a is None else a}-{'' if b is None else b}" for a, b in specs)
    positions = range(size)
    wanted = [
        [at for at in positions if at >= size - b]
        if a is None
        else [at for at in positions if a <= at <= (size if b is None else b)]
        for a, b in specs
    ]
    inverted = any(a is not None and b is not None and b < a for a, b in specs)
    end_of_nothing = size == 0 and any(a is None and b for a, b in specs)
    found = [places for places in wanted if places]
    if inverted or len(specs) > 5 or end_of_nothing or sum(map(len, found)) > len(set().union(*found)):
        assert byte_ranges(value, size) is None
    elif not found:
        with pytest.raises(RangeNotSatisfiable):
            byte_ranges(value, size)
    else:
        assert [list(range(*pair)) for pair in byte_ranges(value, size)] == found


@given(value=LATIN_1 | LATIN_1.map("bytes=".__add__) | st.text("0123456789-, ", max_size=40).map("bytes=".__add__))
def test_any_range_is_served_whole_in_parts_or_refused(value):
    try:
        ranges = byte_ranges(value, 10)
    except RangeNotSatisfiable:
        return
    assert ranges is None or all(0 <= start < stop <= 10 for start, stop in ranges)


# Conditions

TAG = etag(HELLO)


@pytest.mark.parametrize(
    ("value", "strong", "weak"),
    [
        ("*", True, True),
        (" * ", True, True),
        (TAG, True, True),
        (f"W/{TAG}", False, True),
        (f'"x", W/"y" ,{TAG}', True, True),
        (f'"a,b",,{TAG},', True, True),
        (f'W/{TAG}, "x"', False, True),
        (f"W/{TAG}, {TAG}", True, True),
        ('"x"', False, False),
        ("", False, False),
        (",", False, False),
        (HELLO, False, False),
        (f"w/{TAG}", False, False),
        (f"W/ {TAG}", False, False),
        (f"*, {TAG}", False, False),
        (f"{TAG}, *", False, False),
        (f'{TAG} "x"', False, False),
        (f'{TAG}, "x', False, False),
        (f'"x" y, {TAG}', False, False),
        (TAG.upper(), False, False),
        (f'"{TAG}"', False, False),
        ('"' * 20_001, False, False),
        (" " * 20_000 + "x", False, False),
    ],
)
def test_a_condition_names_the_tag_or_not(value, strong, weak):
    assert matches(value, TAG, weak=False) is strong
    assert matches(value, TAG, weak=True) is weak


def test_a_tag_is_strong_and_from_the_digest():
    assert etag(HELLO) == f'"sha256-{HELLO}"'
    assert etag("0" * 64) != TAG


@pytest.mark.parametrize(
    "value",
    ["Sun, 06 Nov 1994 08:49:37 GMT", "Sunday, 06-Nov-94 08:49:37 GMT", "Sun Nov  6 08:49:37 1994"],
)
def test_http_has_three_forms_of_date(value):
    assert parse_http_date(value) == 784111777


def test_a_date_is_written_in_one_form():
    assert http_date(784111777_999999) == "Sun, 06 Nov 1994 08:49:37 GMT"


@given(st.integers(0, MAX_TIME_US // 1_000_000))
def test_a_date_comes_back_as_its_seconds(seconds):
    assert parse_http_date(http_date(seconds * 1_000_000)) == seconds


@pytest.mark.parametrize(
    "value",
    [
        "", "x", "0", "Sun, 31 Feb 1994 08:49:37 GMT", "Sun, 06 Nov 1994 25:49:37 GMT",
        "Sun, 06 Nov 99999999999999999999 08:49:37 GMT", "Sun, 06 Nov 1994 08:49:37 " + "x" * 1000,
        "Sun, 06 Nov 1994 08:49:37 +9999",
    ],
)  # fmt: skip
def test_a_malformed_date_is_none(value):
    assert parse_http_date(value) is None


@given(st.text(max_size=64) | st.text("0123456789:, +-GMTSunNov", max_size=64))
def test_any_date_is_a_time_or_none(value):
    assert isinstance(parse_http_date(value), int | None)


# Keys


@given(st.text(st.characters(min_codepoint=0x20, max_codepoint=0x7E), min_size=1, max_size=255))
@example("\\" * 255)
def test_a_key_in_quotes_comes_back(key):
    escaped = key.replace("\\", "\\\\").replace('"', '\\"')
    assert idempotency_key(f' "{escaped}"\t') == key


@given(
    st.text(st.characters(min_codepoint=0x21, max_codepoint=0x7E, exclude_characters='",;\\'), min_size=1, max_size=255)
)
def test_a_key_without_quotes_comes_back(key):
    assert idempotency_key(key) == idempotency_key(f'"{key}"') == key


@given(LATIN_1 | st.text('"\\a ,;?:%', max_size=600))
@example('"' + "a" * 256 + '"')
@example("a" * 256)
@example('"' + '\\"' * 256 + '"')
@example('"a";' + "b;" * 600)
@example(" " * 2000 + '"a')
def test_any_field_is_a_key_or_is_refused(value):
    with suppress(BadRequest):
        assert 1 <= len(idempotency_key(value)) <= 255
