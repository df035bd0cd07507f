"""tus 1.0.0, as its text has it and as its clients speak it."""

import hashlib
import zlib
from base64 import b64encode

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from app.annotations import Annotations
from app.errors import (
    BadFilename,
    BadRequest,
    ChecksumMismatch,
    DigestMismatch,
    Forbidden,
    Gone,
    OffsetMismatch,
    TooLarge,
    UnsupportedMediaType,
    UnsupportedVersion,
    UploadError,
)
from app.model import MAX_SIZE, Digests, Protocol
from app.protocols.detect import detect
from app.protocols.intents import ALGORITHMS, Append, Ask, Cancel, Concatenate, Create, Limits, State
from app.protocols.tus import EXTENSIONS, MAX_METADATA_CHARACTERS, MAX_PARTS, Tus, metadata, method, options
from app.web.request import RequestHeaders

CHUNK = "application/offset+octet-stream"
KEY = "abcdefghijklmnopqrstuv"
OTHER = "ABCDEFGHIJKLMNOPQRST_-"
LIMITS = Limits(file_bytes=1000, request_bytes=500, idle_seconds=60)
OURS = {"tus_resumable": "1.0.0"}


def sent(**fields):
    """Headers, an underscore for a hyphen; a list makes several lines."""
    lines = [
        (name, value) for name, given in fields.items() for value in (given if isinstance(given, list) else [given])
    ]
    return RequestHeaders([(name.replace("_", "-").encode(), value.encode("latin-1")) for name, value in lines])


def read(verb, /, **fields):
    return Tus(verb, sent(**{**OURS, **fields}), LIMITS).read()


def base64(text):
    return b64encode(text.encode() if isinstance(text, str) else text).decode()


# Versions and methods


@pytest.mark.parametrize("verb", ["POST", "PATCH", "DELETE"])
@pytest.mark.parametrize("version", [[], "1.0.1", "0.2.2", "1", ""])
def test_another_version_is_refused_with_the_supported_one(verb, version):
    with pytest.raises(UnsupportedVersion) as refused:
        read(verb, tus_resumable=version, upload_length="5", upload_offset="0", content_type=CHUNK)
    assert refused.value.status == 412
    assert refused.value.headers == {"Tus-Version": "1.0.0"}


@pytest.mark.parametrize("verb", ["HEAD", "GET"])
@pytest.mark.parametrize("version", [[], "1.0.0", "0.2.2"])
def test_options_may_be_asked_for_in_any_version(verb, version):
    assert read(verb, tus_resumable=version) == Ask()


def test_a_delete_cancels():
    assert read("DELETE") == Cancel()


def test_a_method_that_tus_does_not_have_is_refused():
    with pytest.raises(BadRequest, match="no other method"):
        read("PUT", upload_length="5")


@pytest.mark.parametrize(
    ("verb", "override", "meant"),
    [
        ("POST", "PATCH", "PATCH"),
        ("POST", "DELETE", "DELETE"),
        ("POST", "HEAD", "POST"),
        ("POST", "patch", "POST"),
        ("POST", [], "POST"),
        ("PATCH", "DELETE", "PATCH"),
        ("GET", "DELETE", "GET"),
        ("HEAD", ["PATCH", "DELETE"], "HEAD"),
    ],
)
def test_only_a_post_may_mean_another_method(verb, override, meant):
    assert method(verb, sent(x_http_method_override=override)) == meant


@pytest.mark.parametrize(
    ("verb", "fields", "protocol"),
    [
        ("POST", {"tus_resumable": "1.0.0"}, Protocol.TUS),
        ("POST", {"tus_resumable": "0.1", "upload_complete": "?1"}, Protocol.TUS),
        ("HEAD", {"tus_resumable": "1.0.0"}, Protocol.TUS),
        ("DELETE", {"tus_resumable": ""}, Protocol.TUS),
        ("PATCH", {"content_type": CHUNK}, Protocol.TUS),
        ("POST", {"upload_length": "5"}, Protocol.TUS),
        ("POST", {"upload_defer_length": "1"}, Protocol.TUS),
        ("POST", {"upload_concat": "final;/a"}, Protocol.TUS),
        ("POST", {}, None),
        ("POST", {"content_type": "multipart/form-data; boundary=x"}, None),
        ("PUT", {}, None),
        ("HEAD", {}, None),
        ("DELETE", {}, None),
    ],
)
def test_a_request_is_known_for_tus(verb, fields, protocol):
    assert detect(verb, sent(**fields)) is protocol


# Creation


def test_a_creation_says_what_the_file_is():
    intent = read("POST", upload_length="5", upload_metadata=f"filename {base64('q3.pdf')},filetype {base64('a/b')},x")
    assert intent == Create(
        5, None, "q3.pdf", "a/b", metadata=f"filename {base64('q3.pdf')},filetype {base64('a/b')},x",
        annotations=Annotations({"x": ""}),
    )  # fmt: skip


def test_a_creation_may_say_nothing_but_the_length():
    assert read("POST", upload_length="0") == Create(0, None, None, "application/octet-stream")


def test_the_length_may_follow_later():
    assert read("POST", upload_defer_length="1").length is None


@pytest.mark.parametrize(
    ("fields", "refusal"),
    [
        ({}, BadRequest),
        ({"upload_length": "5", "upload_defer_length": "1"}, BadRequest),
        ({"upload_defer_length": "0"}, BadRequest),
        ({"upload_defer_length": "true"}, BadRequest),
        ({"upload_length": ["5", "5"]}, BadRequest),
        ({"upload_length": "1001"}, TooLarge),
        ({"upload_length": "5", "content_type": CHUNK, "content_length": "6"}, TooLarge),
        ({"upload_defer_length": "1", "content_type": CHUNK, "content_length": "1001"}, TooLarge),
        ({"upload_length": "5", "upload_concat": "other"}, BadRequest),
        ({"upload_length": "5", "upload_concat": ""}, BadRequest),
        ({"upload_length": "5", "upload_metadata": f"filename {base64(b'a' * 256)}"}, BadFilename),
        ({"upload_length": "5", "upload_metadata": f"filename {base64(bytes([0xFF]))}"}, BadFilename),
        ({"upload_length": "5", "upload_checksum": "sha9 AAAA"}, BadRequest),
        ({"upload_length": "5", "repr_digest": "sha-256=:AAAA:"}, BadRequest),
        ({"upload_length": "5", "content_digest": "md5=:AAAA:"}, BadRequest),
        ({"upload_length": "5", "content_range": "bytes 0-4/5"}, BadRequest),
    ],
)
def test_a_creation_that_contradicts_itself_is_refused(fields, refusal):
    with pytest.raises(refusal):
        read("POST", **fields)


@pytest.mark.parametrize("text", ["+5", "-1", " ", "", "5.0", "5e3", "0x5", "5 5", "٥", str(MAX_SIZE + 1), "9" * 40])
@pytest.mark.parametrize("field", ["upload_length", "upload_offset"])
def test_a_number_is_digits_alone(field, text):
    raw = [(b"tus-resumable", b"1.0.0"), (b"content-type", CHUNK.encode())]
    raw.append((field.replace("_", "-").encode(), text.encode()))
    verb = "POST" if field == "upload_length" else "PATCH"
    with pytest.raises(BadRequest):
        Tus(verb, RequestHeaders(raw), Limits()).read()


@given(st.integers(0, MAX_SIZE))
@example(MAX_SIZE)
def test_a_number_is_taken_up_to_the_largest_size(number):
    fields = sent(**OURS, upload_length=str(number))
    assert Tus("POST", fields, Limits()).read() == Create(number, None, None, "application/octet-stream")


@pytest.mark.parametrize("length", ["100", "9223372036854775807"])
def test_a_body_that_goes_past_every_size_is_refused(length):
    fields = sent(**OURS, content_type=CHUNK, upload_offset=str(MAX_SIZE), content_length=length)
    with pytest.raises(TooLarge):
        Tus("PATCH", fields, Limits()).read()


@pytest.mark.parametrize(
    ("fields", "brings_bytes"),
    [
        ({"content_type": CHUNK, "content_length": "5"}, True),
        ({"content_type": CHUNK}, True),
        ({"content_type": f"{CHUNK.upper()}; charset=UTF-8"}, True),
        ({"content_type": "application/x-www-form-urlencoded"}, False),
        ({"content_type": "text/plain", "content_length": "9"}, False),
        ({"content_length": "0"}, False),
    ],
)
def test_a_creation_brings_bytes_when_its_content_type_says_so(fields, brings_bytes):
    assert read("POST", upload_length="5", **fields).brings_bytes is brings_bytes


def test_a_creation_may_declare_the_digest_of_the_file():
    digest = hashlib.sha256(b"x").digest()
    declared = f"sha-256=:{base64(digest)}:"
    for fields in ({"upload_length": "1"}, {"upload_length": "1", "upload_concat": "partial"},
                   {"upload_concat": f"final;{'k' * 22}"}):  # fmt: skip
        assert read("POST", repr_digest=declared, **fields).digests == Digests(digest.hex())
    assert read("PATCH", content_type=CHUNK, upload_offset="0", repr_digest=declared).digests.sha256 == digest.hex()


@pytest.mark.parametrize("fields", [{"upload_length": "1"}, {"upload_concat": f"final;{'k' * 22}"}])
def test_the_digest_of_a_body_that_does_not_come_is_that_of_no_bytes(fields):
    nothing, other = (f"sha-256=:{base64(hashlib.sha256(content).digest())}:" for content in (b"", b"x"))
    assert read("POST", content_digest=nothing, **fields)
    with pytest.raises(DigestMismatch):
        read("POST", content_digest=other, **fields)


def test_the_digest_of_a_body_holds_for_the_right_bytes_alone():
    declared = f"sha-512=:{base64(hashlib.sha512(b'x').digest())}:"
    for verb, fields in (("POST", {"upload_length": "2"}), ("PATCH", {"upload_offset": "0"})):
        [check] = read(verb, content_type=CHUNK, content_digest=declared, **fields).checks
        right, wrong = check.hasher(), check.hasher()
        right.update(b"x")
        check.check(right)
        with pytest.raises(DigestMismatch) as refused:
            check.check(wrong)
        assert refused.value.members["algorithm"] == "sha-512"


# Metadata


@pytest.mark.parametrize(
    ("raw", "found"),
    [
        ("", {}),
        ("a YQ==", {"a": b"a"}),
        ("a YQ==,b Yg==", {"a": b"a", "b": b"b"}),
        ("a YQ==, b Yg==", {"a": b"a", "b": b"b"}),
        ("a YQ== ,\tb Yg==", {"a": b"a", "b": b"b"}),
        ("a", {"a": b""}),
        ("a ", {"a": b""}),
        ("a,b ,c", {"a": b"", "b": b"", "c": b""}),
        ("is-private,file!~ /+8=", {"is-private": b"", "file!~": b"\xff\xef"}),
    ],
)
def test_metadata_are_pairs(raw, found):
    assert metadata(raw) == found


@pytest.mark.parametrize(
    "raw",
    [",", "a,", ",a", "a,,b", "a YQ", "a YQ=", "a Y===", "a YQ==YQ==", "a Y-_=", "a YQ== YQ==", "a a,a",
     "a YQ==,a Yg==", "é YQ==", "a é", "a\x00", "a " + "A" * MAX_METADATA_CHARACTERS],
)  # fmt: skip
def test_broken_metadata_are_refused(raw):
    with pytest.raises(BadRequest):
        metadata(raw)


@given(st.dictionaries(st.text(st.characters(codec="ascii", min_codepoint=33, exclude_characters=",\x7f"), min_size=1),
                       st.binary(max_size=50), max_size=8))  # fmt: skip
def test_metadata_come_back_as_they_went(pairs):
    assert metadata(",".join(f"{key} {base64(value)}" for key, value in pairs.items())) == pairs


@pytest.mark.parametrize(
    ("pairs", "filename", "content_type"),
    [
        ({"filename": "a.txt", "name": "b.txt", "filetype": "text/plain", "type": "x/y"}, "a.txt", "text/plain"),
        ({"name": "b.txt", "type": "x/y", "relativePath": "null"}, "b.txt", "x/y"),  # as Uppy sends them
        ({"filename": "", "name": "b.txt"}, "b.txt", "application/octet-stream"),
        ({"filename": "../../etc/passwd"}, "passwd", "application/octet-stream"),
        ({"filename": "日本語.txt"}, "日本語.txt", "application/octet-stream"),
        ({"filetype": "text/plain\r\nX: y"}, None, "application/octet-stream"),
        ({"filetype": "é"}, None, "application/octet-stream"),
    ],
)
def test_the_file_is_named_by_the_keys_in_use(pairs, filename, content_type):
    raw = ",".join(f"{key} {base64(value)}" for key, value in pairs.items())
    intent = read("POST", upload_length="5", upload_metadata=raw)
    assert (intent.filename, intent.content_type, intent.metadata) == (filename, content_type, raw)


def test_metadata_have_8_kib():
    assert metadata("key " + "A" * 8188) == {"key": bytes(6141)}
    with pytest.raises(BadRequest, match="8192 characters"):
        metadata("keys " + "A" * 8188)


def test_metadata_in_two_lines_are_one():
    assert read("POST", upload_length="5", upload_metadata=["a YQ==", "name Yg=="]).metadata == "a YQ==,name Yg=="


def test_empty_metadata_are_none():
    assert read("POST", upload_length="5", upload_metadata="").metadata is None


# Appending


def test_a_patch_appends():
    assert read("PATCH", content_type=CHUNK, upload_offset="7", content_length="3") == Append(7)


def test_a_patch_may_bring_the_length():
    assert read("PATCH", content_type=CHUNK, upload_offset="7", upload_length="10") == Append(7, 10)
    assert read("PATCH", content_type=CHUNK, upload_offset="7", upload_length="7", content_length="0") == Append(7, 7)


@pytest.mark.parametrize(
    ("fields", "refusal"),
    [
        ({"upload_offset": "0"}, UnsupportedMediaType),
        ({"upload_offset": "0", "content_type": "application/octet-stream"}, UnsupportedMediaType),
        ({"upload_offset": "0", "content_type": [CHUNK, CHUNK]}, BadRequest),
        ({"content_type": CHUNK}, BadRequest),
        ({"content_type": CHUNK, "upload_offset": ["0", "0"]}, BadRequest),
        ({"content_type": CHUNK, "upload_offset": "7", "upload_length": "6"}, BadRequest),
        ({"content_type": CHUNK, "upload_offset": "7", "upload_length": "1001"}, TooLarge),
        ({"content_type": CHUNK, "upload_offset": "7", "upload_length": "9", "content_length": "3"}, TooLarge),
        ({"content_type": CHUNK, "upload_offset": "999", "content_length": "2"}, TooLarge),
        ({"content_type": CHUNK, "upload_offset": "0", "content_length": "x"}, BadRequest),
    ],
)
def test_a_patch_that_cannot_fit_is_refused(fields, refusal):
    with pytest.raises(refusal):
        read("PATCH", **fields)


# Checksums


def digest_of(algorithm, content):
    return zlib.crc32(content).to_bytes(4, "big") if algorithm == "crc32" else hashlib.new(algorithm, content).digest()


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_a_checksum_holds_for_the_right_bytes_alone(algorithm):
    declared = f"{algorithm} {base64(digest_of(algorithm, b'hello world'))}"
    checksum = read("PATCH", content_type=CHUNK, upload_offset="0", upload_checksum=declared).checks[0]
    hasher = checksum.hasher()
    hasher.update(b"hello")
    hasher.update(memoryview(b" world"))
    checksum.check(hasher)
    hasher.update(b"!")
    with pytest.raises(ChecksumMismatch) as refused:
        checksum.check(hasher)
    assert refused.value.status == 460
    assert refused.value.members == {
        "algorithm": algorithm,
        "expected": digest_of(algorithm, b"hello world").hex(),
        "actual": digest_of(algorithm, b"hello world!").hex(),
    }


@pytest.mark.parametrize(
    "declared",
    ["", "sha1", "sha1 ", "SHA1 2jmj7l5rSw0yVb/vlWAYkK/YBwk=", "sha1  2jmj7l5rSw0yVb/vlWAYkK/YBwk=",
     "sha1 2jmj7l5rSw0yVb/vlWAYkK/YBw==", "sha1 2jmj7l5rSw0yVb_vlWAYkK_YBwk=", "sha1 é", "sha256 AAAA",
     "sha1," + "A" * 9000, "sha1 " + "A" * 9000, "adler32 AAAAAA==", ["sha1 2jmj7l5rSw0yVb/vlWAYkK/YBwk="] * 2],
)  # fmt: skip
def test_a_checksum_that_cannot_be_read_is_refused(declared):
    with pytest.raises(BadRequest):
        read("PATCH", content_type=CHUNK, upload_offset="0", upload_checksum=declared)


def test_a_creation_without_bytes_has_nothing_to_check():
    declared = "sha1 2jmj7l5rSw0yVb/vlWAYkK/YBwk="
    assert read("POST", upload_length="5", upload_checksum=declared).checks == ()
    assert read("POST", upload_length="5", upload_checksum=declared, content_type=CHUNK).checks != ()


# Concatenation


def test_a_part_is_created_like_an_upload():
    intent = read("POST", upload_length="5", upload_concat="partial")
    assert (intent.is_part, intent.concat) == (True, "partial")
    assert read("POST", upload_length="5").is_part is False


@pytest.mark.parametrize(
    ("concat", "keys"),
    [
        (f"final;/api/ingestion/uploads/{KEY}", (KEY,)),
        (f"final;https://a.example/b/uploads/{KEY} /uploads/{OTHER}", (KEY, OTHER)),
        (f"final;{KEY} ../{OTHER} {KEY}", (KEY, OTHER, KEY)),
        (f"final; /x/{KEY}  /x/{OTHER}", (KEY, OTHER)),
    ],
)
def test_a_concatenation_names_its_parts_in_order(concat, keys):
    raw = f"filename {base64('a.txt')}"
    assert read("POST", upload_concat=concat, upload_metadata=raw, content_length="0") == Concatenate(
        keys, "a.txt", "application/octet-stream", raw, concat
    )


FINAL = f"final;/x/{KEY}"


@pytest.mark.parametrize(
    ("fields", "refusal"),
    [
        ({"upload_concat": "final"}, BadRequest),
        ({"upload_concat": "final;"}, BadRequest),
        ({"upload_concat": "Final;/x/" + KEY}, BadRequest),
        ({"upload_concat": "final;/x/short"}, BadRequest),
        ({"upload_concat": f"final;/x/{KEY}/"}, BadRequest),
        ({"upload_concat": f"final;/x/{KEY}?a=b"}, BadRequest),
        ({"upload_concat": f"final;/x/{KEY},/x/{KEY}é"}, BadRequest),
        ({"upload_concat": f"final;/é/{KEY}"}, BadRequest),
        ({"upload_concat": f"final;/x/{KEY}\xa0/x/{KEY}"}, BadRequest),
        ({"upload_concat": "final;" + f"{KEY} " * (MAX_PARTS + 1)}, BadRequest),
        ({"upload_concat": "final;" + "x" * 60_000 + f"/{KEY}"}, BadRequest),
        ({"upload_concat": FINAL, "upload_length": "5"}, BadRequest),
        ({"upload_concat": FINAL, "upload_defer_length": "1"}, BadRequest),
        ({"upload_concat": FINAL, "content_length": "5"}, Forbidden),
        ({"upload_concat": FINAL, "transfer_encoding": "chunked"}, Forbidden),
        ({"upload_concat": FINAL, "upload_metadata": ","}, BadRequest),
    ],
)
def test_a_concatenation_that_cannot_be_made_is_refused(fields, refusal):
    with pytest.raises(refusal):
        read("POST", **fields)


def test_a_concatenation_takes_as_many_parts_as_allowed():
    assert len(read("POST", upload_concat="final;" + f"{KEY} " * MAX_PARTS).keys) == MAX_PARTS


# Answers

WHEN = 784111777_000000
STATE = State("/u/k", 3, 5, completed=False, at_us=WHEN - 1, expires_at_us=WHEN + 999_999)
DONE = State("/u/k", 5, 5, completed=True, at_us=WHEN, expires_at_us=WHEN, record="/h/i", sha256="00" * 32)
EXPIRES = {"Upload-Expires": "Sun, 06 Nov 1994 08:49:37 GMT"}
VERSION = {"Tus-Resumable": "1.0.0"}
FINISHED = {"Link": '</h/i>; rel="describedby"', "Repr-Digest": f"sha-256=:{base64(bytes(32))}:"}
CREATE = Create(5, None, None, "a/b")
CONCATENATE = Concatenate((KEY,), None, "a/b", None, FINAL)


@pytest.mark.parametrize(
    ("intent", "state", "status", "headers"),
    [
        (CREATE, STATE, 201, {"Location": "/u/k", "Upload-Offset": "3", **EXPIRES}),
        (CREATE, DONE, 201, {"Location": "/u/k", "Upload-Offset": "5", **FINISHED}),
        (Append(0), STATE, 204, {"Upload-Offset": "3", **EXPIRES}),
        (Append(0), DONE, 204, {"Upload-Offset": "5", **FINISHED}),
        (Append(0), State("/u/k", 5, 5, completed=True, at_us=WHEN, concat="partial"), 204, {"Upload-Offset": "5"}),
        (Cancel(), STATE, 204, {}),
        (Cancel(), DONE, 204, {}),
        (CONCATENATE, State("/u/k", None, None, completed=False, at_us=WHEN), 201, {"Location": "/u/k"}),
        (CONCATENATE, DONE, 201, {"Location": "/u/k", "Upload-Offset": "5", **FINISHED}),
        (Ask(), STATE, 200, {"Upload-Offset": "3", "Upload-Length": "5", "Cache-Control": "no-store", **EXPIRES}),
        (Ask(), DONE, 200, {"Upload-Offset": "5", "Upload-Length": "5", "Cache-Control": "no-store", **FINISHED}),
        (Ask(), State("/u/k", 0, None, completed=False, at_us=WHEN, metadata="a", concat="partial"), 200,
         {"Upload-Offset": "0", "Upload-Defer-Length": "1", "Cache-Control": "no-store", "Upload-Metadata": "a",
          "Upload-Concat": "partial"}),
        (Ask(), State("/u/k", None, 9, completed=False, at_us=WHEN, concat=FINAL), 200,
         {"Upload-Length": "9", "Cache-Control": "no-store", "Upload-Concat": FINAL}),
        (Ask(), State("/u/k", None, None, completed=False, at_us=WHEN, concat=FINAL), 200,
         {"Cache-Control": "no-store", "Upload-Concat": FINAL}),
    ],
)  # fmt: skip
def test_an_answer_says_what_its_request_asked_for(intent, state, status, headers):
    answer = Tus("POST", sent(**OURS), LIMITS).answer(intent, state)
    assert (answer.status, dict(answer.headers), answer.with_record) == (status, {**VERSION, **headers}, False)
    assert len(dict(answer.headers)) == len(answer.headers)


@pytest.mark.parametrize("error", [Gone(), UnsupportedVersion("1.0.0"), BadRequest("x")])
def test_a_refusal_says_the_version_and_no_offset(error):
    assert dict(Tus("HEAD", sent(), LIMITS).refusal(error)) == {**VERSION, "Cache-Control": "no-store"}


def test_a_refused_offset_comes_with_the_one_to_go_on_from():
    headers = Tus("PATCH", sent(), LIMITS).refusal(OffsetMismatch(3, 4))
    assert dict(headers) == {**VERSION, "Cache-Control": "no-store", "Upload-Offset": "3"}


def test_a_creation_whose_bytes_are_refused_still_says_where_the_upload_is():
    headers = Tus("POST", sent(), LIMITS).refusal(ChecksumMismatch("sha1", "a", "b"), location="/u/k")
    assert ("Location", "/u/k") in headers


def test_no_interim_response_is_sent():
    assert Tus("POST", sent(**OURS), LIMITS).interim(STATE) is None
    assert Tus("POST", sent(**OURS), LIMITS).progress(3) is None


def test_options_name_everything_that_is_offered():
    offered = dict(options(LIMITS))
    assert offered["Tus-Resumable"] == offered["Tus-Version"] == "1.0.0"
    assert offered["Tus-Extension"].split(",") == list(EXTENSIONS)
    assert offered["Tus-Max-Size"] == "1000"
    assert "sha1" in offered["Tus-Checksum-Algorithm"].split(",")
    assert "Tus-Max-Size" not in dict(options(Limits()))


# Whatever comes

ANY = st.text(st.characters(codec="latin-1"), max_size=40)
NUMBERS = st.integers(-1, 2**64).map(str)
CONCATS = st.sampled_from(["partial", "final;", FINAL, f"final;{KEY} {OTHER}"])
FIELDS = st.fixed_dictionaries(
    {},
    optional={
        "Tus-Resumable": st.just("1.0.0") | ANY,
        "Upload-Length": NUMBERS | ANY,
        "Upload-Offset": NUMBERS | ANY,
        "Upload-Defer-Length": st.just("1") | ANY,
        "Upload-Metadata": st.just("filename YQ==, b") | ANY,
        "Upload-Concat": CONCATS | ANY,
        "Upload-Checksum": st.just("sha1 2jmj7l5rSw0yVb/vlWAYkK/YBwk=") | ANY,
        "Content-Type": st.just(CHUNK) | ANY,
        "Content-Length": NUMBERS | ANY,
        "Repr-Digest": ANY,
        "X-HTTP-Method-Override": st.sampled_from(["PATCH", "DELETE"]) | ANY,
        "Upload-Complete": st.sampled_from(["?0", "?1"]) | ANY,
    },
)


def outcome(verb, headers):
    try:
        detect(verb, headers)
        return Tus(method(verb, headers), headers, LIMITS).read()
    except UploadError as refusal:
        return refusal


@given(verb=st.sampled_from(["POST", "PATCH", "HEAD", "GET", "DELETE", "PUT"]), fields=FIELDS, twice=st.booleans())
def test_any_request_is_an_intent_or_a_refusal(verb, fields, twice):
    raw = [(name.lower().encode(), value.encode("latin-1")) for name, value in fields.items()]
    headers = RequestHeaders(raw + raw[:1] * twice)
    match outcome(verb, headers):
        case UploadError() as refusal:
            assert str(refusal).isascii()
        case Create(length=length):
            assert length is None or 0 <= length <= LIMITS.file_bytes
        case Append(offset=offset, length=length):
            assert 0 <= offset <= MAX_SIZE
            assert length is None or offset <= length <= LIMITS.file_bytes
        case Concatenate(keys=keys):
            assert keys
        case intent:
            assert intent in {Ask(), Cancel()}


@pytest.mark.parametrize("piece", ["a,", "a ", ", ", "a YQ==,", "\ta", "a a a", "=", "A", "a YQ== ,"])
@pytest.mark.parametrize("field", ["upload_metadata", "upload_concat", "upload_checksum", "upload_length"])
def test_a_long_header_is_read_in_linear_time(field, piece):
    # Ten times what a head may hold: anything worse than linear would take minutes here.
    fields = {"upload_length": "5", field: "final;" * (field == "upload_concat") + piece * (640 * 1024 // len(piece))}
    with pytest.raises(UploadError):
        read("POST", **fields)
