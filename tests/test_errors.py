"""Codes are API: once released they mean the same for ever."""

import json
import re

import pytest

from app.errors import (
    AmbiguousSession,
    BadCursor,
    BadMetadata,
    BadQuery,
    ChecksumMismatch,
    ChunkDigestMismatch,
    CrossOrigin,
    DigestMismatch,
    Gone,
    IncompleteBody,
    InconsistentUploadLength,
    InProgress,
    Internal,
    MethodNotAllowed,
    NoFile,
    NoSession,
    NotFound,
    OffsetMismatch,
    OutcomeUnknown,
    PreconditionFailed,
    QuotaExceeded,
    RangeNotSatisfiable,
    RateLimited,
    RequestTooLarge,
    StorageFull,
    TookTooLong,
    TooLarge,
    TooManyFiles,
    TooSlow,
    Unavailable,
    UnsupportedVersion,
    UploadError,
    problem_codes,
)
from app.web.problems import problem

RELEASED = {
    "ambiguous_session": 400,
    "bad_cursor": 400,
    "bad_filename": 400,
    "bad_query": 400,
    "bad_request": 400,
    "digest_mismatch": 400,
    "incomplete_body": 400,
    "inconsistent_upload_length": 400,
    "malformed_form": 400,
    "no_file": 400,
    "no_session": 401,
    "cross_origin": 403,
    "forbidden": 403,
    "not_found": 404,
    "method_not_allowed": 405,
    "too_slow": 408,
    "in_progress": 409,
    "offset_mismatch": 409,
    "gone": 410,
    "precondition_failed": 412,
    "unsupported_version": 412,
    "request_too_large": 413,
    "too_large": 413,
    "too_many_files": 413,
    "unsupported_media_type": 415,
    "bad_metadata": 400,
    "range_not_satisfiable": 416,
    "idempotency_mismatch": 422,
    "quota_exceeded": 413,
    "rate_limited": 429,
    "checksum_mismatch": 460,
    "internal": 500,
    "unavailable": 503,
    "storage_full": 507,
}

EXAMPLES = [
    AmbiguousSession(), BadCursor(), BadMetadata("too many"), BadQuery("limit", "1 to 500"),
    ChecksumMismatch("sha1", "a", "b"),
    ChunkDigestMismatch("a", "b"), CrossOrigin(), DigestMismatch("a", "b"), Gone(), IncompleteBody(5, 10),
    IncompleteBody(5, None), InconsistentUploadLength(5, 6), InProgress(), Internal(),
    MethodNotAllowed("PUT", "GET, HEAD"), NoFile(), NoSession(), NotFound(), OffsetMismatch(5, 6), PreconditionFailed(),
    QuotaExceeded(5, 6, 10, "bytes"), RateLimited(4), TookTooLong(5),
    RangeNotSatisfiable(5), RequestTooLarge(11, 10), StorageFull(), TooLarge(11, 10), TooManyFiles(11, 10),
    TooSlow(30, 1024), Unavailable(), UnsupportedVersion("1.0.0"), OutcomeUnknown(),
]  # fmt: skip


def test_codes_and_their_status_never_change():
    assert RELEASED.items() <= {code: kind.status for code, kind in problem_codes().items()}.items()


def test_a_new_code_is_released_on_purpose():
    assert problem_codes().keys() == RELEASED.keys()


def test_a_code_is_that_of_the_refusal_and_not_of_a_kind_of_it():
    assert problem_codes()["unavailable"] is Unavailable
    assert problem_codes()["digest_mismatch"] is DigestMismatch


def test_every_code_has_a_title_of_its_own():
    titles = [kind.title for kind in problem_codes().values()]
    assert all(re.fullmatch(r"[A-Z].+[^.]", title) for title in titles)
    assert len(set(titles)) == len(titles)


@pytest.mark.parametrize("error", EXAMPLES, ids=lambda error: type(error).__name__)
def test_a_refusal_can_be_sent(error):
    assert isinstance(error, UploadError)
    assert 400 <= error.status < 600
    assert str(error)
    assert all(value.isascii() and value.isprintable() for value in error.headers.values())
    assert not re.search(r"Traceback|SELECT|INSERT|/[a-z]+/|\.py\b", str(error).replace("/api/session", ""))


@pytest.mark.parametrize("kind", [TooLarge, RequestTooLarge, TooManyFiles])
def test_a_limit_names_what_came_and_what_is_allowed(kind):
    assert kind(11, 10).members == {"received": 11, "limit": 10}
    assert "11" in str(kind(11, 10))
    assert "10" in str(kind(11, 10))


def test_a_temporary_refusal_says_when_to_retry():
    assert int(Unavailable().headers["Retry-After"]) > 0
    assert Unavailable(retry_after=7).headers == {"Retry-After": "7"}
    assert int(OutcomeUnknown().headers["Retry-After"]) > 0


def test_refusals_carry_the_fields_that_the_protocols_demand():
    assert NoSession().headers["WWW-Authenticate"].startswith("Bearer")
    assert MethodNotAllowed("PUT", "GET, HEAD").headers == {"Allow": "GET, HEAD"}
    assert RangeNotSatisfiable(5).headers == {"Content-Range": "bytes */5"}
    assert UnsupportedVersion("1.0.0").headers == {"Tus-Version": "1.0.0"}
    assert OffsetMismatch(5, 6).members == {"expected-offset": 5, "provided-offset": 6}
    base = "https://iana.org/assignments/http-problem-types#"
    assert OffsetMismatch.registered == f"{base}mismatching-upload-offset"
    assert InconsistentUploadLength.registered == f"{base}inconsistent-upload-length"
    assert {kind.registered for kind in problem_codes().values()} == {
        None, OffsetMismatch.registered, InconsistentUploadLength.registered,
    }  # fmt: skip


def test_a_type_that_a_standard_gives_goes_before_our_own():
    def sent(error):
        return json.loads(problem(error, "r").body)

    mismatch = sent(OffsetMismatch(5, 6))
    assert mismatch["type"] == "https://iana.org/assignments/http-problem-types#mismatching-upload-offset"
    assert (mismatch["code"], mismatch["expected-offset"], mismatch["provided-offset"]) == ("offset_mismatch", 5, 6)
    assert sent(InProgress())["type"] == "urn:waybill:problem:in_progress"


def test_refusals_share_nothing_with_each_other():
    Unavailable().headers["X"] = "y"
    assert "X" not in Unavailable().headers
