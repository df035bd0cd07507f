"""Intents of requests for resumable uploads, and the states of their answers: the words both protocols share.

A resource is one upload that comes in several requests, under a URL of its own. Offsets and
lengths are bytes, times are microseconds since 1970 UTC, digests are as they were sent.
"""

import hashlib
import re
import zlib
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Final, NamedTuple, Protocol

from app.annotations import NO_ANNOTATIONS, Annotations
from app.errors import BadRequest, ChecksumMismatch, DigestMismatch, UploadError
from app.model import MAX_SIZE, UNDECLARED, Digests
from app.protocols.headers import declared_digests

_WHOLE = re.compile(r"[0-9]{1,19}")


class Headers(Protocol):
    """The headers of a request: names in lower case, values as text whose bytes were decoded as latin-1."""

    def getlist(self, key: str, /) -> list[str]: ...

    def keys(self) -> Iterable[str]: ...

    def __contains__(self, key: object, /) -> bool: ...


class Hasher(Protocol):
    def update(self, data: bytes | memoryview, /) -> None: ...
    def digest(self) -> bytes: ...


class _Crc32:
    def __init__(self) -> None:
        self._sum = 0

    def update(self, data: bytes | memoryview, /) -> None:
        self._sum = zlib.crc32(data, self._sum)

    def digest(self) -> bytes:
        return self._sum.to_bytes(4, "big")


# These detect accidental corruption; no security depends on them.
_HASHERS: Final[dict[str, Callable[[], Hasher]]] = {
    "sha1": lambda: hashlib.sha1(usedforsecurity=False),
    "sha256": hashlib.sha256,
    "sha512": hashlib.sha512,
    "md5": lambda: hashlib.md5(usedforsecurity=False),
    "crc32": _Crc32,
}
ALGORITHMS: Final = tuple(_HASHERS)
_HTTP: Final = {"sha256": "sha-256", "sha512": "sha-512"}  # their names in Content-Digest
DIGEST_BYTES: Final = {name: len(hasher().digest()) for name, hasher in _HASHERS.items()}


@dataclass(frozen=True, slots=True)
class Checksum:
    """The digest that the bytes of one request must have, or none of them counts.

    `algorithm` is one of ALGORITHMS, `mismatch` the refusal of the request's protocol.
    """

    algorithm: str
    digest: bytes
    mismatch: Callable[[str, str, str], UploadError]

    def hasher(self) -> Hasher:
        """A new hash for the bytes of the request."""
        return _HASHERS[self.algorithm]()

    def check(self, hasher: Hasher) -> None:
        """Compare the digest with that of the bytes that arrived.

        Raises:
            ChecksumMismatch, ChunkDigestMismatch: they differ.
        """
        actual = hasher.digest()
        if actual != self.digest:
            raise self.mismatch(self.algorithm, self.digest.hex(), actual.hex())

    @classmethod
    def of_chunk(cls, algorithm: str, digest: bytes) -> "Checksum":
        """Make a checksum of tus, whose mismatch is answered by 460."""
        return cls(algorithm, digest, ChecksumMismatch)


_NOTHING: Final = Digests(hashlib.sha256().hexdigest(), hashlib.sha512().hexdigest())


def refuse_unless_of_nothing(digests: Digests) -> None:
    """Check the Content-Digest of a request that brings no bytes; raises DigestMismatch."""
    for expected, actual, algorithm in zip(digests, _NOTHING, _HTTP.values(), strict=True):
        if expected not in {None, actual}:
            raise DigestMismatch(str(expected), str(actual), algorithm)


def checksums(digests: Digests, mismatch: Callable[[str, str, str], UploadError]) -> tuple[Checksum, ...]:
    """The checksums of a body with these digests; `mismatch` makes the refusal of expected, actual and algorithm."""
    if digests is UNDECLARED:
        return ()
    return tuple(
        Checksum(
            name,
            bytes.fromhex(digest),
            lambda algorithm, expected, actual: mismatch(expected, actual, _HTTP[algorithm]),
        )
        for name, digest in zip(("sha256", "sha512"), digests, strict=True)
        if digest is not None
    )


@dataclass(frozen=True, slots=True)
class Create:
    """Begin an upload. The request's body, if it `brings_bytes`, is the beginning of the file.

    `ends` is whether the file ends with this request; None when only the length determines that.
    `filename` is clean, None when the request names none; `metadata` and `concat` are raw.
    `digests` are those that the complete file must have; `checks` those of this body.
    With `is_part` the upload is a part, which only serves a later Concatenate.
    """

    length: int | None
    ends: bool | None
    filename: str | None
    content_type: str
    metadata: str | None = None
    concat: str | None = None
    is_part: bool = False
    brings_bytes: bool = False
    checks: tuple[Checksum, ...] = ()
    digests: Digests = UNDECLARED
    annotations: Annotations = NO_ANNOTATIONS


@dataclass(frozen=True, slots=True)
class Concatenate:
    """Make an upload of others, its parts, in the order of their `keys`, in which one may be repeated.

    `digests` are those that the complete file must have.
    """

    keys: tuple[str, ...]
    filename: str | None
    content_type: str
    metadata: str | None
    concat: str
    digests: Digests = UNDECLARED
    annotations: Annotations = NO_ANNOTATIONS


@dataclass(frozen=True, slots=True)
class Append:
    """Append the body at `offset`.

    `length` is the file's, if this request states it; `ends`, `checks` and `digests` as in Create.
    """

    offset: int
    length: int | None = None
    ends: bool | None = None
    checks: tuple[Checksum, ...] = ()
    digests: Digests = UNDECLARED


@dataclass(frozen=True, slots=True)
class Ask:
    """Report the upload's offset."""


@dataclass(frozen=True, slots=True)
class Cancel:
    """End the upload and discard its bytes."""


Intent = Create | Concatenate | Append | Ask | Cancel


@dataclass(frozen=True, slots=True)
class State:
    """The state of a resource when its answer is made, at `at_us`.

    `location` is its URL. `offset` is None while parts are still awaited. `record` is the URL
    of the upload's record, `sha256` the digest of the finished file; both None if there is none.
    `metadata` and `concat` are as the client sent them.
    """

    location: str
    offset: int | None
    length: int | None
    completed: bool
    at_us: int
    expires_at_us: int | None = None
    metadata: str | None = None
    concat: str | None = None
    record: str | None = None
    sha256: str | None = None


@dataclass(frozen=True, slots=True)
class Limits:
    """The limits: bytes of a file, bytes of one request, seconds a new resource lives. None is no limit."""

    file_bytes: int = MAX_SIZE
    request_bytes: int | None = None
    idle_seconds: int | None = None


HeaderPairs = list[tuple[str, str]]


class Answer(NamedTuple):
    """A status and headers; `with_record` when the upload's record is the body, otherwise there is no body."""

    status: int
    headers: HeaderPairs
    with_record: bool = False


class Codec(Protocol):
    """A protocol's codec for one request and its answer."""

    def read(self) -> Intent:
        """Read the request's intent from its headers alone. Raises an UploadError for one that is not allowed."""
        ...

    def answer(self, intent: Intent, state: State) -> Answer:
        """The answer to an intent that was carried out; `state` is the result."""
        ...

    def refusal(self, error: UploadError, *, location: str | None = None) -> HeaderPairs:
        """The headers that a refusal carries beside its own; `location` when a resource was created nevertheless."""
        ...

    @property
    def accepts_interim(self) -> bool:
        """Whether this client accepts an `interim` response with a new resource's URL before its body has arrived."""
        ...

    def interim(self, state: State) -> Answer | None:
        """The interim response with a new resource's URL; None if this client accepts none."""
        ...

    def progress(self, offset: int) -> Answer | None:
        """The interim response that reports the durable offset; None if this client accepts none."""
        ...


def single(headers: Headers, name: str) -> str | None:
    """The value of a header that must not be repeated, since two readers could take two values; None if absent.

    Raises:
        BadRequest: the header is repeated.
    """
    if name not in headers:
        return None
    values = headers.getlist(name)
    if len(values) > 1:
        raise BadRequest(f"the request has more than one {name.title()}")
    return values[0].strip(" \t")


def declared_of_body(headers: Headers) -> Digests:
    """The digests of a body that is the whole file, so that both fields are about the same bytes.

    Raises:
        UncheckedDigest, BadRequest: see `declared_digests`; or the two do not agree.
    """
    whole_fields, body_fields = headers.getlist("repr-digest"), headers.getlist("content-digest")
    if not (whole_fields or body_fields):
        return UNDECLARED
    whole = declared_digests("Repr-Digest", whole_fields)
    body = declared_digests("Content-Digest", body_fields)
    if not whole.agrees_with(body):
        raise BadRequest("Repr-Digest and Content-Digest name different digests for the same bytes")
    return whole.joined_with(body)


def media_type(headers: Headers) -> str:
    """The Content-Type in lower case and without parameters, which some clients cannot help adding; `""` for none."""
    return (single(headers, "content-type") or "").partition(";")[0].strip(" \t").lower()


def whole_number(name: str, text: str) -> int:
    """A header's number, in digits alone.

    Raises:
        BadRequest: the text is something else, or above 2**63 - 1.
    """
    if _WHOLE.fullmatch(text) is None or int(text) > MAX_SIZE:
        raise BadRequest(f"{name} must be a whole number, at most {MAX_SIZE}")
    return int(text)
