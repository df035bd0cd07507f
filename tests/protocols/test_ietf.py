"""Resumable uploads of the HTTP working group, in all their versions that are spoken."""

import hashlib
from base64 import b64encode

import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.errors import (
    BadFilename,
    BadRequest,
    ChunkDigestMismatch,
    DigestMismatch,
    Forbidden,
    Gone,
    InconsistentUploadLength,
    Internal,
    NotFound,
    OffsetMismatch,
    RequestTooLarge,
    TooLarge,
    Unavailable,
    UnsupportedMediaType,
    UploadError,
)
from app.model import MAX_SIZE, Digests, Protocol
from app.protocols.detect import codec_for, detect
from app.protocols.ietf import VERSIONS, Resumable, boolean, integer, options
from app.protocols.intents import Append, Ask, Cancel, Concatenate, Create, Limits, State
from app.protocols.tus import Tus
from app.web.request import RequestHeaders

CHUNK = "application/partial-upload"
LIMITS = Limits(file_bytes=1000, request_bytes=500, idle_seconds=60)
VERSION = "Upload-Draft-Interop-Version"
WHOLE = "sha-256=:LPJNul+wow4m6DsqxbninhsWHlwfp0JecwQzYpOLmCQ=:"  # of `hello`
HELLO = hashlib.sha256(b"hello").hexdigest()


def sent(version=None, /, **fields):
    """Headers, an underscore for a hyphen; a list makes several lines."""
    if version is not None:
        fields[VERSION] = str(version)
    lines = [
        (name, value) for name, given in fields.items() for value in (given if isinstance(given, list) else [given])
    ]
    return RequestHeaders([(name.replace("_", "-").lower().encode(), value.encode("latin-1")) for name, value in lines])


def read(verb, version=None, /, **fields):
    return Resumable(verb, sent(version, **fields), LIMITS).read()


def create(version=None, /, **fields):
    return read("POST", version, **{"upload_complete": "?1", **fields})


def append(version=None, /, **fields):
    return read("PATCH", version, **{"content_type": CHUNK, "upload_offset": "7", "upload_complete": "?0", **fields})


# Fields


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("?0", False), ("?1", True), ("?1;x=1", True), (" ?0 ", False), ("?2", None), ("true", None), ("1", None),
        ("0", None), ("", None), ("?1, ?0", None), ("(?1)", None), ("é", None), ([], None),
    ],
)  # fmt: skip
def test_a_truth_value_is_one_or_nothing(text, value):
    assert boolean(sent(upload_complete=text), "Upload-Complete") is value


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("0", 0), ("5", 5), ("5;x", 5), ("007", 7), ("999999999999999", 10**15 - 1), ("1000000000000000", None),
        ("-1", None), ("-0", 0), ("+5", None), ("5.0", None), ("?1", None), ('"5"', None), ("5, 5", None), ("", None),
        ("٥".encode().decode("latin-1"), None), ([], None),
    ],
)  # fmt: skip
def test_a_number_is_one_or_nothing(text, value):
    assert integer(sent(upload_offset=text), "Upload-Offset") == value


@pytest.mark.parametrize("name", ["upload_complete", "upload_offset", "upload_length", "content_type"])
def test_a_field_that_stands_there_twice_is_refused(name):
    with pytest.raises(BadRequest, match="more than one"):
        append(**{name: ["7", "7"]})


def test_a_field_of_any_length_is_not_read():
    assert boolean(sent(upload_complete="?0" + ";a" * 511), "Upload-Complete") is False
    with pytest.raises(BadRequest, match="1024 characters"):
        detect("POST", sent(upload_complete="?0" + ";a" * 511 + " ;"))


# Which requests are meant


@pytest.mark.parametrize(
    ("verb", "fields", "protocol"),
    [
        ("POST", {"upload_complete": "?1"}, Protocol.RESUMABLE),
        ("POST", {"upload_complete": "?0"}, Protocol.RESUMABLE),
        ("PUT", {"upload_complete": "?0"}, Protocol.RESUMABLE),
        ("PUT", {"upload_complete": "?1", VERSION: "99"}, Protocol.RESUMABLE),
        ("POST", {"upload_complete": "?0", "upload_length": "0", "upload_metadata": "a"}, Protocol.RESUMABLE),
        ("POST", {"upload_complete": "?0", "content_type": "multipart/form-data; boundary=x"}, Protocol.RESUMABLE),
        ("POST", {"content_type": CHUNK}, Protocol.RESUMABLE),
        ("PATCH", {"content_type": CHUNK}, Protocol.RESUMABLE),
        ("PATCH", {"upload_complete": "?1"}, Protocol.RESUMABLE),
        ("PATCH", {}, Protocol.RESUMABLE),
        ("HEAD", {VERSION: "6"}, Protocol.RESUMABLE),
        ("DELETE", {VERSION: "6"}, Protocol.RESUMABLE),
        # What iOS 17 adds to every upload is no offence; what it would make of a part of one would be.
        ("POST", {"upload_incomplete": "?0", VERSION: "3"}, None),
        ("POST", {"upload_incomplete": "?1", VERSION: "3"}, Protocol.RESUMABLE),
        ("POST", {"upload_complete": "?1", "content_type": "Multipart/Form-Data; boundary=x"}, None),
        ("POST", {"upload_complete": "true"}, None),
        ("POST", {"upload_complete": "true", "upload_length": "5"}, None),
        ("PUT", {"upload_complete": ""}, None),
        ("POST", {VERSION: "6"}, None),
        ("HEAD", {}, None),
        ("GET", {"upload_complete": "?1"}, None),
    ],
)
def test_a_request_is_known_for_resumable(verb, fields, protocol):
    assert detect(verb, sent(**fields)) is protocol


def test_the_codec_is_that_of_the_protocol():
    assert isinstance(codec_for(Protocol.TUS, "HEAD", sent(), LIMITS, VERSIONS), Tus)
    assert isinstance(codec_for(Protocol.RESUMABLE, "HEAD", sent(), LIMITS, VERSIONS), Resumable)


# Creation


def test_a_creation_says_what_the_file_is():
    assert create(
        upload_length="5", content_length="5", content_type="a/b", content_disposition="inline; filename=q3.pdf"
    ) == Create(5, True, "q3.pdf", "a/b", brings_bytes=True)


@pytest.mark.parametrize("verb", ["POST", "PUT"])
def test_a_creation_may_say_nothing_but_whether_it_ends(verb):
    whole = Create(None, True, None, "application/octet-stream", brings_bytes=True)
    part = Create(None, False, None, "application/octet-stream", brings_bytes=True)
    assert read(verb, upload_complete="?1") == whole
    assert read(verb, upload_complete="?0") == part


@pytest.mark.parametrize(
    ("fields", "length"),
    [
        ({"upload_complete": "?1", "content_length": "5"}, 5),
        ({"upload_complete": "?1", "content_length": "0"}, 0),
        ({"upload_complete": "?1", "upload_length": "5"}, 5),
        ({"upload_complete": "?1", "upload_length": "-5", "content_length": "4"}, 4),
        ({"upload_complete": "?0", "content_length": "5"}, None),
        ({"upload_complete": "?0", "content_length": "5", "upload_length": "9"}, 9),
        ({"upload_complete": "?0", "content_length": "9", "upload_length": "9"}, 9),
        ({"upload_complete": "?0", "upload_length": "nine"}, None),
        ({"upload_complete": "?0", "upload_length": "0"}, 0),
    ],
)
def test_the_length_is_declared_or_the_end_of_the_last_body(fields, length):
    assert create(**fields).length == length


@pytest.mark.parametrize(
    ("fields", "refusal"),
    [
        ({"upload_complete": []}, BadRequest),
        ({"upload_complete": "true"}, BadRequest),
        ({"upload_offset": "0"}, BadRequest),
        ({"upload_incomplete": "?0"}, BadRequest),
        ({"content_range": "bytes 0-4/5"}, BadRequest),
        ({"content_length": "x"}, BadRequest),
        ({"content_length": "5", "upload_length": "6"}, InconsistentUploadLength),
        ({"content_length": "6", "upload_length": "5"}, InconsistentUploadLength),
        ({"upload_complete": "?0", "content_length": "6", "upload_length": "5"}, TooLarge),
        ({"upload_length": "1001"}, TooLarge),
        ({"content_length": "1001"}, TooLarge),
        ({"upload_complete": "?0", "content_length": "1001"}, TooLarge),
        ({"upload_complete": "?0", "content_type": "multipart/form-data; boundary=x"}, UnsupportedMediaType),
        ({"content_disposition": "attachment; filename*=UTF-8''%ff"}, BadFilename),
        ({"content_disposition": ";"}, BadRequest),
        ({"upload_metadata": ",,"}, BadRequest),
        ({"upload_metadata": "filename /w=="}, BadFilename),
        ({"repr_digest": "sha-256=:AAAA:"}, BadRequest),
        ({"repr_digest": "md5=:AAAA:"}, BadRequest),
        ({"repr_digest": WHOLE, "content_digest": WHOLE.replace("LPJN", "AAAA")}, BadRequest),
    ],
)
def test_a_creation_that_contradicts_itself_is_refused(fields, refusal):
    with pytest.raises(refusal):
        create(**fields)


@pytest.mark.parametrize(
    ("fields", "filename", "content_type"),
    [
        ({"content_type": "image/png"}, None, "image/png"),
        ({"content_type": f"{CHUNK}"}, None, "application/octet-stream"),
        ({"upload_metadata": "filename YS50eHQ=,filetype YS9i", "content_type": CHUNK}, "a.txt", "a/b"),
        ({"upload_metadata": "name YS50eHQ=,type YS9i"}, "a.txt", "a/b"),
        ({"upload_metadata": "filename YS50eHQ=,filetype YS9i", "content_type": "c/d"}, "a.txt", "c/d"),
        ({"upload_metadata": "filename YS50eHQ=", "content_disposition": "inline; filename=b"}, "b", None),
        ({"upload_metadata": "filename YS50eHQ=", "content_disposition": "inline"}, "a.txt", None),
        ({"upload_metadata": "filename "}, None, None),
    ],
)
def test_the_file_is_described_by_http_or_else_as_tus_clients_do(fields, filename, content_type):
    intent = create(**fields)
    assert (intent.filename, intent.content_type) == (filename, content_type or "application/octet-stream")
    assert intent.metadata is None


@pytest.mark.parametrize(
    ("fields", "whole", "body"),
    [
        ({}, None, None),
        ({"repr_digest": WHOLE}, HELLO, None),
        ({"content_digest": WHOLE}, HELLO, None),
        ({"repr_digest": WHOLE, "content_digest": WHOLE}, HELLO, None),
        ({"content_digest": WHOLE, "upload_complete": "?0"}, None, HELLO),
        ({"repr_digest": WHOLE, "content_digest": WHOLE, "upload_complete": "?0"}, HELLO, HELLO),
    ],
)
def test_a_digest_holds_for_the_file_or_for_the_body(fields, whole, body):
    intent = create(**fields)
    assert intent.digests.sha256 == whole
    assert [check.digest.hex() for check in intent.checks] == ([] if body is None else [body])


def test_the_digest_of_a_body_refuses_other_bytes():
    [checksum] = append(content_digest=WHOLE).checks
    hasher = checksum.hasher()
    hasher.update(b"hello")
    checksum.check(hasher)
    hasher.update(b"!")
    with pytest.raises(ChunkDigestMismatch) as refused:
        checksum.check(hasher)
    assert refused.value.code == "digest_mismatch"
    assert refused.value.members["expected"] == HELLO


# Appending


@pytest.mark.parametrize(
    ("fields", "intent"),
    [
        ({}, Append(7, None, False)),
        ({"content_length": "3"}, Append(7, None, False)),
        ({"upload_length": "10", "content_length": "3"}, Append(7, 10, False)),
        ({"upload_complete": "?1"}, Append(7, None, True)),
        ({"upload_complete": "?1", "content_length": "3"}, Append(7, 10, True)),
        ({"upload_complete": "?1", "content_length": "0"}, Append(7, 7, True)),
        ({"upload_complete": "?1", "content_length": "3", "upload_length": "10"}, Append(7, 10, True)),
        ({"content_disposition": ";", "upload_metadata": ","}, Append(7, None, False)),
        ({"repr_digest": WHOLE}, Append(7, None, False, (), Digests(HELLO))),
    ],
)
def test_a_patch_appends(fields, intent):
    assert append(**fields) == intent


@pytest.mark.parametrize(
    ("fields", "refusal"),
    [
        ({"content_type": []}, UnsupportedMediaType),
        ({"content_type": "application/offset+octet-stream"}, UnsupportedMediaType),
        ({"upload_offset": []}, BadRequest),
        ({"upload_offset": "-1"}, BadRequest),
        ({"upload_offset": "x"}, BadRequest),
        ({"upload_complete": []}, BadRequest),
        ({"upload_complete": "true"}, BadRequest),
        ({"upload_incomplete": "?1"}, BadRequest),
        ({"upload_complete": "?1", "content_length": "3", "upload_length": "11"}, InconsistentUploadLength),
        ({"content_length": "3", "upload_length": "9"}, TooLarge),
        ({"upload_length": "6"}, TooLarge),
        ({"upload_length": "1001"}, TooLarge),
        ({"content_length": "994"}, TooLarge),
        ({"upload_offset": "1001"}, TooLarge),
        ({"content_digest": "sha-256=:AAAA:"}, BadRequest),
        ({"content_digest": "md5=:AAAA:"}, BadRequest),
        ({"repr_digest": "md5=:AAAA:"}, BadRequest),
        ({"content_range": "bytes 7-9/10"}, BadRequest),
    ],
)
def test_a_patch_that_cannot_fit_is_refused(fields, refusal):
    with pytest.raises(refusal):
        append(**fields)


def test_a_body_that_goes_past_every_size_is_refused():
    fields = sent(content_type=CHUNK, upload_offset="5", upload_complete="?1", content_length=str(MAX_SIZE))
    with pytest.raises(TooLarge):
        Resumable("PATCH", fields, Limits()).read()


@pytest.mark.parametrize("version", [4, 5])
def test_older_drafts_need_no_media_type(version):
    assert append(version, content_type=[]) == append(version, content_type="a/b") == Append(7, None, False)


@pytest.mark.parametrize("version", [6, 7, 8, 9, 10, 11, None])
def test_newer_drafts_need_a_media_type(version):
    with pytest.raises(UnsupportedMediaType):
        append(version, content_type=[])


def test_version_6_completes_without_upload_complete():
    assert append(6, upload_complete=[], content_length="3") == Append(7, 10, True)
    with pytest.raises(BadRequest):
        append(6, upload_complete="true")


@pytest.mark.parametrize("version", [5, 8, 9, 10, 11, None])
def test_other_versions_refuse_an_append_without_upload_complete(version):
    with pytest.raises(BadRequest):
        append(version, upload_complete=[])


# The others


@pytest.mark.parametrize("version", [None, *VERSIONS, 99])
def test_asking_and_cancelling_need_no_version(version):
    assert read("HEAD", version) == read("GET", version) == Ask()
    assert read("DELETE", version) == Cancel()


@pytest.mark.parametrize("name", ["upload_offset", "upload_complete", "upload_length"])
@pytest.mark.parametrize("version", [None, 8, 9, 10, 11])
def test_a_head_that_carries_an_answer_is_refused(name, version):
    with pytest.raises(BadRequest):
        read("HEAD", version, **{name: "5"})


def test_fields_that_an_iphone_repeats_describe_the_file():
    said = {"content_digest": WHOLE, "upload_length": "1000"}
    assert read("HEAD", 6, **said, content_type="video/mp4", content_length="0") == Ask()
    assert append(6, **said, upload_offset="900", upload_complete="?1", content_length="100") == Append(
        900, 1000, True, (), Digests(HELLO)
    )


def test_a_method_that_the_draft_does_not_have_is_refused():
    with pytest.raises(BadRequest, match="no other method"):
        read("OPTIONS")


# Answers

HALF = State("/u/k", 3, 5, completed=False, at_us=10_000_000, expires_at_us=70_999_999)
DONE = State("/u/k", 5, 5, completed=True, at_us=10_000_000, record="/h/i", sha256="00" * 32)
UNSURE = State("/u/k", 3, None, completed=False, at_us=10_000_000, expires_at_us=5_000_000)
SIZES = "max-size=1000, max-append-size=500"
MORE = {"Upload-Complete": "?0", "Upload-Offset": "3", "Upload-Limit": f"{SIZES}, max-age=60"}
OVER = {"Upload-Complete": "?1", "Upload-Offset": "5", "Upload-Limit": SIZES}
CREATE = Create(5, False, None, "a/b", brings_bytes=True)
LAST = {"Location": "/h/i", "Repr-Digest": f"sha-256=:{b64encode(bytes(32)).decode()}:"}


@pytest.mark.parametrize(
    ("intent", "state", "status", "headers"),
    [
        (CREATE, HALF, 201, {**MORE, "Location": "/u/k"}),
        (CREATE, DONE, 201, {**OVER, **LAST}),
        (Append(0), HALF, 204, MORE),
        (Append(0), DONE, 201, {**OVER, **LAST}),
        (Ask(), HALF, 204, {**MORE, "Upload-Length": "5", "Cache-Control": "no-store"}),
        (Ask(), DONE, 204, {**OVER, "Upload-Length": "5", "Cache-Control": "no-store"}),
        (Ask(), UNSURE, 204, {**MORE, "Upload-Limit": f"{SIZES}, max-age=0", "Cache-Control": "no-store"}),
        (Append(0), State("/u/k", 5, 5, completed=True, at_us=0), 204, OVER),
        (CREATE, State("/u/k", 5, 5, completed=True, at_us=0), 201, {**OVER, "Location": "/u/k"}),
        (Cancel(), HALF, 204, {}),
        (Cancel(), DONE, 204, {}),
        (Ask(), State("/u/k", None, None, completed=False, at_us=0), 204,
         {"Upload-Complete": "?0", "Upload-Limit": SIZES, "Cache-Control": "no-store"}),
    ],
)  # fmt: skip
@pytest.mark.parametrize("version", [None, 7, 8, 9, 10, 99])
def test_an_answer_says_what_its_request_asked_for(intent, state, status, headers, version):
    answer = Resumable("POST", sent(version), LIMITS).answer(intent, state)
    if version in VERSIONS:
        headers = {**headers, VERSION: str(version)}
    assert (answer.status, dict(answer.headers)) == (status, headers)
    assert len(dict(answer.headers)) == len(answer.headers)
    assert answer.with_record is (status == 201 and state is DONE)


@pytest.mark.parametrize("version", [5, 6])
def test_the_older_versions_learn_the_uploads_own_url_and_their_name_for_its_age(version):
    for intent, state in ((CREATE, HALF), (CREATE, DONE)):
        assert dict(Resumable("POST", sent(version), LIMITS).answer(intent, state).headers)["Location"] == "/u/k"
    half = dict(Resumable("POST", sent(version), LIMITS).answer(CREATE, HALF).headers)
    assert half["Upload-Limit"] == f"{SIZES}, expires=60"
    assert half[VERSION] == str(version)


@pytest.mark.parametrize(
    ("verb", "error", "headers"),
    [
        ("PATCH", OffsetMismatch(3, 4), {"Upload-Complete": "?0", "Upload-Offset": "3"}),
        ("PATCH", BadRequest("x"), {"Upload-Complete": "?0", "Upload-Limit": f"{SIZES}, max-age=60"}),
        ("PATCH", InconsistentUploadLength(4, 5), {"Upload-Complete": "?0", "Upload-Limit": f"{SIZES}, max-age=60"}),
        ("PATCH", RequestTooLarge(501, 500), {"Upload-Complete": "?0", "Upload-Limit": f"{SIZES}, max-age=60"}),
        ("PATCH", DigestMismatch("a", "b"), {"Upload-Complete": "?1", "Upload-Limit": f"{SIZES}, max-age=60"}),
        ("PATCH", ChunkDigestMismatch("a", "b"), {"Upload-Complete": "?0", "Upload-Limit": f"{SIZES}, max-age=60"}),
        ("PATCH", UnsupportedMediaType("x"), {"Upload-Complete": "?0"}),
        ("PATCH", Unavailable(), {"Upload-Complete": "?0"}),
        ("PATCH", NotFound(), {}),
        ("PATCH", Gone(), {}),
        ("POST", TooLarge(1001, 1000), {"Upload-Complete": "?0", "Upload-Limit": f"{SIZES}, max-age=60"}),
        ("POST", DigestMismatch("a", "b"), {"Upload-Complete": "?1", "Upload-Limit": f"{SIZES}, max-age=60"}),
        ("POST", BadFilename("x"), {"Upload-Complete": "?1", "Upload-Limit": f"{SIZES}, max-age=60"}),
        ("PUT", UnsupportedMediaType("x"), {"Upload-Complete": "?1"}),
        ("POST", Forbidden("x"), {"Upload-Complete": "?1"}),
        ("POST", Internal(), {"Upload-Complete": "?0"}),
        ("HEAD", NotFound(), {}),
        ("HEAD", Unavailable(), {}),
        ("DELETE", Gone(), {}),
    ],
)
def test_a_refusal_says_whether_to_go_on(verb, error, headers):
    said = Resumable(verb, sent(), LIMITS).refusal(error)
    assert dict(said) == {**headers, "Cache-Control": "no-store"}
    assert len(dict(said)) == len(said)


def test_a_creation_whose_bytes_are_refused_still_says_where_the_upload_is():
    said = Resumable("POST", sent(10), LIMITS).refusal(ChunkDigestMismatch("a", "b"), location="/u/k")
    assert {("Location", "/u/k"), (VERSION, "10")} <= set(said)


@pytest.mark.parametrize("version", [5, 6, 8, 9, 10])
def test_an_offered_version_is_sent_the_location_in_an_interim_response(version):
    answer = Resumable("POST", sent(version), LIMITS).interim(HALF)
    age = "expires" if version <= 6 else "max-age"
    assert answer.status == 104
    assert dict(answer.headers) == {
        VERSION: str(version), "Location": "/u/k", "Upload-Limit": f"{SIZES}, {age}=60",
    }  # fmt: skip


@pytest.mark.parametrize("version", [None, "3", "4", "7", "11", "x", "-6", "6.0"])
def test_other_versions_are_sent_no_interim_response(version):
    request = Resumable("POST", sent(version), LIMITS)
    assert request.interim(HALF) is None
    assert request.progress(3) is None


def test_the_offered_versions_are_a_setting():
    assert Resumable("POST", sent(10), LIMITS, (6,)).interim(HALF) is None
    assert Resumable("POST", sent(11), LIMITS, (11,)).interim(HALF) is not None


def test_progress_is_sent_without_a_location():
    assert Resumable("POST", sent(8), LIMITS).progress(3) == (104, [(VERSION, "8"), ("Upload-Offset", "3")], False)
    assert Resumable("POST", sent(6), LIMITS).progress(3) is None


@pytest.mark.parametrize(
    ("limits", "said"),
    [
        (LIMITS, f"{SIZES}, max-age=60"),
        (Limits(file_bytes=1000), "max-size=1000"),
        (Limits(), "min-size=0"),
        (Limits(file_bytes=10**15 - 1, request_bytes=10**15), "max-size=999999999999999"),
    ],
)
def test_options_name_the_limits_that_the_version_has(limits, said):
    assert options(limits) == [("Upload-Limit", said)]


# Whatever comes

ANY = st.text(st.characters(codec="latin-1"), max_size=40)
# What a structured field is made of, so that its parser sees more than its first error.
FIELD = st.text(st.sampled_from('?01;="\\:@%(), aé-._'), max_size=20)
NUMBERS = st.integers(-1, 2**64).map(str)
FIELDS = st.fixed_dictionaries(
    {},
    optional={
        VERSION: st.integers(3, 11).map(str) | FIELD,
        "Upload-Complete": st.sampled_from(["?0", "?1"]) | FIELD | ANY,
        "Upload-Incomplete": st.sampled_from(["?0", "?1"]) | FIELD,
        "Upload-Length": NUMBERS | FIELD | ANY,
        "Upload-Offset": NUMBERS | FIELD | ANY,
        "Content-Type": st.sampled_from([CHUNK, "multipart/form-data"]) | ANY,
        "Content-Length": NUMBERS | ANY,
        "Content-Disposition": st.just("inline; filename=a") | ANY,
        "Upload-Metadata": st.just("filename YQ==") | ANY,
        "Repr-Digest": st.just(WHOLE) | FIELD | ANY,
        "Content-Digest": st.just(WHOLE) | FIELD | ANY,
        "Content-Range": ANY,
    },
)


def outcome(verb, headers):
    try:
        detect(verb, headers)
        return Resumable(verb, headers, LIMITS).read()
    except UploadError as refusal:
        return refusal


@given(
    verb=st.sampled_from(["POST", "PUT", "PATCH", "HEAD", "GET", "DELETE", "TRACE"]), fields=FIELDS, twice=st.booleans()
)
def test_any_request_is_an_intent_or_a_refusal(verb, fields, twice):
    raw = [(name.lower().encode(), value.encode("latin-1")) for name, value in fields.items()]
    headers = RequestHeaders(raw + raw[:1] * twice)
    match outcome(verb, headers):
        case UploadError() as refusal:
            assert str(refusal).isascii()
            said = Resumable(verb, headers, LIMITS, (10,)).refusal(refusal) if not twice else []
            assert all(value.isascii() for _, value in said)
        case Create(length=length, ends=ends):
            assert ends is not None
            assert length is None or 0 <= length <= LIMITS.file_bytes
        case Append(offset=offset, length=length, ends=ends):
            assert ends is not None
            assert 0 <= offset <= LIMITS.file_bytes
            assert length is None or offset <= length <= LIMITS.file_bytes
        case intent:
            assert not isinstance(intent, Concatenate)
            assert intent in {Ask(), Cancel()}


@given(verb=st.sampled_from(["POST", "PUT"]), fields=FIELDS)
def test_a_part_of_a_file_is_never_taken_for_the_whole(verb, fields):
    headers = sent(**{**fields, "Upload-Complete": "?0"})
    try:
        assert detect(verb, headers) is Protocol.RESUMABLE
        intent = Resumable(verb, headers, LIMITS).read()
    except UploadError:
        return
    assert intent.ends is False


@pytest.mark.parametrize("piece", ["?1", ";a", ";a=1", "(", ":AA", '"\\', "1", ", ", "%", "a,", "a YQ==,"])
@pytest.mark.parametrize(
    "field", ["upload_complete", "upload_offset", "content_digest", VERSION, "content_disposition", "upload_metadata"]
)
def test_a_long_header_is_read_in_linear_time(field, piece):
    # Ten times what a head may hold: anything worse than linear would take minutes here.
    fields = {"upload_complete": "?1", field: "?1" + piece * (640 * 1024 // len(piece))}
    assert isinstance(outcome("POST", sent(**fields)), UploadError | Create)
    assert isinstance(outcome("PATCH", sent(**fields)), UploadError)
