"""Refusals, one class each. `code` and `status` are API and never change once released."""

from typing import ClassVar, Final, Self

_REGISTRY: Final = "https://iana.org/assignments/http-problem-types#"


class UploadError(Exception):
    """A request the service refuses.

    `code` is for programs, the text is for people; it names what was seen and what was
    allowed, with units, and never a path, a statement or another inner detail.
    `headers` go out with the answer, `members` into the problem document (RFC 9457 §3.2).
    """

    code: ClassVar[str]
    status: ClassVar[int]
    title: ClassVar[str]
    registered: ClassVar[str | None] = None
    """The problem type that a standard defines for this refusal; where there is none, ours is made of `code`."""

    def __init__(self, detail: str) -> None:
        super().__init__(detail)
        self.headers: dict[str, str] = {}
        self.members: dict[str, int | str] = {}

    def copy(self) -> Self:
        """The same refusal for another request, whose headers are its own."""
        other = self.__class__.__new__(self.__class__, *self.args)
        other.headers, other.members = dict(self.headers), dict(self.members)
        other.__cause__ = self.__cause__
        return other


class BadRequest(UploadError):
    code, status, title = "bad_request", 400, "The request cannot be understood"


class BadQuery(UploadError):
    code, status, title = "bad_query", 400, "A query parameter is not valid"

    def __init__(self, parameter: str, expected: str) -> None:
        super().__init__(f"{parameter}: expected {expected}")
        self.members = {"parameter": parameter}


class BadCursor(UploadError):
    code, status, title = "bad_cursor", 400, "The cursor does not belong to this query"

    def __init__(self) -> None:
        super().__init__("start again without a cursor, or repeat the query that the cursor came from")


class MalformedForm(UploadError):
    code, status, title = "malformed_form", 400, "The form body is not well-formed multipart/form-data"


class NoFile(UploadError):
    code, status, title = "no_file", 400, "The form holds no file"

    def __init__(self) -> None:
        super().__init__("at least one part with a filename is needed")


class BadFilename(UploadError):
    code, status, title = "bad_filename", 400, "The filename is not acceptable"


class BadMetadata(UploadError):
    code, status, title = "bad_metadata", 400, "The metadata is not acceptable"


class DigestMismatch(UploadError):
    code, status, title = "digest_mismatch", 400, "The bytes do not have the digest that was declared"

    def __init__(self, expected: str, actual: str, algorithm: str = "sha-256") -> None:
        super().__init__("the digest of the received bytes differs from the one declared")
        self.members = {"algorithm": algorithm, "expected": expected, "actual": actual}


class UncheckedDigest(BadRequest):
    """A declared digest cannot be checked, and is refused rather than ignored (RFC 9530 §5)."""

    def __init__(self, field: str) -> None:
        super().__init__(f"{field} names neither a sha-256 nor a sha-512 digest, and no other is checked here")
        self.headers = {"Want-Repr-Digest": "sha-256=10, sha-512=5"}


class ChunkDigestMismatch(DigestMismatch):
    """The bytes of one request of several have another digest: none of them counts, and the upload can go on."""


class IncompleteBody(UploadError):
    code, status, title = "incomplete_body", 400, "The body is not as long as was declared"

    def __init__(self, received: int, declared: int | None) -> None:
        whole = "the declared end" if declared is None else f"the declared {declared} bytes"
        super().__init__(f"received {received} bytes, the body did not reach {whole}")
        self.members = {"received": received} if declared is None else {"received": received, "declared": declared}


class InconsistentUploadLength(UploadError):
    """Two declarations of an upload's length differ."""

    code, status, title = "inconsistent_upload_length", 400, "The request tells another length than the upload has"
    registered = f"{_REGISTRY}inconsistent-upload-length"

    def __init__(self, known: int, given: int) -> None:
        super().__init__(f"the upload has {known} bytes by what was said before, and {given} by this")
        self.members = {"known": known, "given": given}


class AmbiguousSession(UploadError):
    code, status, title = "ambiguous_session", 400, "The request names two different sessions"

    def __init__(self) -> None:
        super().__init__("send one session: a single cookie, or a single bearer token")


class NoSession(UploadError):
    code, status, title = "no_session", 401, "A session is needed"

    def __init__(self) -> None:
        super().__init__("the request carries no valid session; POST /api/session starts one")
        self.headers = {"WWW-Authenticate": 'Bearer realm="waybill"'}


class Forbidden(UploadError):
    code, status, title = "forbidden", 403, "This is not allowed"


class CrossOrigin(UploadError):
    code, status, title = "cross_origin", 403, "The request comes from another site"

    def __init__(self) -> None:
        super().__init__("a page of another origin may not change anything with this session")


class NotFound(UploadError):
    code, status, title = "not_found", 404, "There is nothing here"

    def __init__(self) -> None:
        super().__init__("nothing with this address is visible to this session")


class MethodNotAllowed(UploadError):
    code, status, title = "method_not_allowed", 405, "The method is not possible here"

    def __init__(self, method: str, allowed: str) -> None:
        super().__init__(f"{method} is not possible here; possible: {allowed}")
        self.headers = {"Allow": allowed}


class TooSlow(UploadError):
    code, status, title = "too_slow", 408, "The body arrives too slowly"

    def __init__(self, seconds: float, rate: int) -> None:
        super().__init__(f"fewer than {rate} bytes a second arrived for {seconds:.0f} seconds")
        self.members = {"limit": rate}


class TookTooLong(TooSlow):
    """The body did not arrive within the time limit, whatever its rate."""

    def __init__(self, seconds: float) -> None:
        UploadError.__init__(self, f"the body had not arrived after {seconds:.0f} seconds")
        self.members = {"limit": int(seconds)}


class OffsetMismatch(UploadError):
    code, status, title = "offset_mismatch", 409, "The upload is at another offset"
    registered = f"{_REGISTRY}mismatching-upload-offset"

    def __init__(self, expected: int, provided: int) -> None:
        super().__init__(f"the upload goes on at byte {expected}, and the request begins at byte {provided}")
        self.expected = expected
        self.members = {"expected-offset": expected, "provided-offset": provided}  # names that the type prescribes


class InProgress(UploadError):
    code, status, title = "in_progress", 409, "Another request is at work on this upload"

    def __init__(self, detail: str = "a newer request took the upload over; ask for its offset and go on") -> None:
        super().__init__(detail)


class KeyInUse(InProgress):
    """The first request with this Idempotency-Key has yet to be answered."""

    def __init__(self) -> None:
        super().__init__("another request with this Idempotency-Key is still at work; ask again for its answer")
        self.headers = {"Retry-After": "2"}


class Gone(UploadError):
    code, status, title = "gone", 410, "This upload has ended"

    def __init__(self, detail: str = "the upload was cancelled, failed or ran out of time; begin a new one") -> None:
        super().__init__(detail)


class UnsupportedVersion(UploadError):
    code, status, title = "unsupported_version", 412, "This version of the protocol is not spoken here"

    def __init__(self, spoken: str) -> None:
        super().__init__(f"tus is spoken here in version {spoken}; Tus-Resumable must say so")
        self.headers = {"Tus-Version": spoken}


class PreconditionFailed(UploadError):
    code, status, title = "precondition_failed", 412, "A condition of the request does not hold"

    def __init__(self) -> None:
        super().__init__("the stored file is not the one the condition names")


class _OverLimit(UploadError):
    """A number is above its limit; both stand in the problem document."""

    unit: ClassVar[str] = "bytes"
    of: ClassVar[str]

    def __init__(self, received: int, limit: int) -> None:
        super().__init__(f"{self.of} has {received} {self.unit} or more, the limit is {limit} {self.unit}")
        self.members = {"received": received, "limit": limit}


class TooLarge(_OverLimit):
    code, status, title = "too_large", 413, "The file is larger than this server accepts"
    of = "the file"


class RequestTooLarge(_OverLimit):
    code, status, title = "request_too_large", 413, "The request is larger than this server accepts"
    of = "the request"


class TooManyFiles(_OverLimit):
    code, status, title = "too_many_files", 413, "There are more files than this server accepts at once"
    unit = "files"

    def __init__(self, received: int, limit: int, of: str = "the form") -> None:
        self.of = of  # type: ignore[misc]  # a form that brings files, or an archive that holds them
        super().__init__(received, limit)


class QuotaExceeded(UploadError):
    """The session's quota is used up, uploads that are under way included."""

    code, status, title = "quota_exceeded", 413, "The session's quota does not hold this upload"

    def __init__(self, used: int, asked: int, limit: int, unit: str) -> None:
        super().__init__(f"the session has {used} {unit}, this needs {asked} more, the limit is {limit} {unit}")
        self.members = {"used": used, "asked": asked, "limit": limit, "unit": unit}


class UnsupportedMediaType(UploadError):
    code, status, title = "unsupported_media_type", 415, "The body comes in a form that is not taken here"


class RangeNotSatisfiable(UploadError):
    code, status, title = "range_not_satisfiable", 416, "The range lies outside the file"

    def __init__(self, size: int) -> None:
        super().__init__(f"the file has {size} bytes")
        self.headers = {"Content-Range": f"bytes */{size}"}


class IdempotencyMismatch(UploadError):
    code, status, title = "idempotency_mismatch", 422, "The Idempotency-Key stands for another request"

    def __init__(self) -> None:
        super().__init__(
            "the first request with this Idempotency-Key had another length, content type or filename; "
            "take a new key for a new upload"
        )


class ChecksumMismatch(UploadError):
    """The bytes of one tus request arrived altered; none of them counts. The status is the protocol's own."""

    code, status, title = "checksum_mismatch", 460, "The bytes do not have the checksum of the request"

    def __init__(self, algorithm: str, expected: str, actual: str) -> None:
        super().__init__("the checksum of the received bytes differs from the one declared; send them again")
        self.members = {"algorithm": algorithm, "expected": expected, "actual": actual}


class RateLimited(UploadError):
    code, status, title = "rate_limited", 429, "The session sends too much at once"

    def __init__(self, limit: int, detail: str = "") -> None:
        super().__init__(detail or f"{limit} uploads of this session are under way; wait for one of them to end")
        self.headers = {"Retry-After": "1"}
        self.members = {"limit": limit}


class TooManyStreams(RateLimited):
    def __init__(self, limit: int) -> None:
        super().__init__(limit, f"{limit} streams of events of this session are open; close one of them")


class Internal(UploadError):
    code, status, title = "internal", 500, "Something went wrong here"

    def __init__(self) -> None:
        super().__init__("the request could not be completed; the request id finds the reason in the server's log")


class Unavailable(UploadError):
    """The database or the store cannot be used now, the service stops, or too much runs at once."""

    code, status, title = "unavailable", 503, "The service cannot take this now"

    def __init__(self, detail: str = "try again shortly", *, retry_after: int = 2) -> None:
        super().__init__(detail)
        self.headers = {"Retry-After": str(retry_after)}


class Locked(Unavailable):
    """Another transaction holds a lock for longer than this one waits; nothing of it was done."""

    def __init__(self) -> None:
        super().__init__("somebody else is changing the same records now")


class OutcomeUnknown(Unavailable):
    """The files are durable; whether their rows are committed was not known in time.

    The outcome is settled when the database answers again, or the session's lock is released: the
    uploads stand in the history, as completed if they were recorded after all, else as failed.
    """

    def __init__(self) -> None:
        super().__init__("the upload could not be recorded in time; the history will tell its outcome")


class StorageFull(UploadError):
    code, status, title = "storage_full", 507, "There is not enough space for this upload"

    def __init__(self, detail: str = "the upload would use space that this server keeps free") -> None:
        super().__init__(detail)


class Unusable(Exception):
    """The service cannot start: a setting, a directory or a database is not fit. The text names what and why."""


def root_reason(error: BaseException) -> str:
    """The text and code of the first cause of an error: for logs, not for clients."""
    while error.__cause__ is not None:
        error = error.__cause__
    code = getattr(error, "sqlstate", None) or getattr(error, "sqlite_errorname", None)
    return f"{code or type(error).__name__}: {error}"


def problem_codes() -> dict[str, type[UploadError]]:
    """Every code the service can answer with, and the first class that has it."""
    found: dict[str, type[UploadError]] = {}
    pending = [UploadError]
    while pending:
        for kind in pending.pop().__subclasses__():
            pending.append(kind)
            if hasattr(kind, "code"):
                found.setdefault(kind.code, kind)
    return found
