"""Resumable uploads of the HTTP working group (draft-ietf-httpbis-resumable-upload): the codec.

Its drafts differ by an interop version. Where they do, the request's own version decides; a
request that names none, or an unknown one, is read by the newest rules.
"""

from collections.abc import Collection
from typing import Final, cast

import http_sf

from app.errors import (
    BadFilename,
    BadRequest,
    ChunkDigestMismatch,
    CrossOrigin,
    DigestMismatch,
    Forbidden,
    InconsistentUploadLength,
    NoSession,
    OffsetMismatch,
    TooLarge,
    UnsupportedMediaType,
    UploadError,
)
from app.model import Digests
from app.protocols import headers as grammar
from app.protocols import tus
from app.protocols.intents import (
    Answer,
    Append,
    Ask,
    Cancel,
    Concatenate,
    Create,
    HeaderPairs,
    Headers,
    Intent,
    Limits,
    State,
    checksums,
    declared_of_body,
    media_type,
    single,
)

VERSIONS: Final = (5, 6, 8, 9, 10)
"""The interop versions that are implemented: of drafts 03, 04 to 05, 09 to 11, 12, and 13 on."""
CHUNK: Final = "application/partial-upload"
"""The media type of a body that continues an upload."""
OFFER: Final = 104
"""The status of interim responses: upload resumption supported."""

RESPONSE_HEADERS: Final = (
    "Location", "Repr-Digest", "Upload-Complete", "Upload-Draft-Interop-Version", "Upload-Length", "Upload-Limit",
    "Upload-Offset",
)  # fmt: skip
"""The headers of an answer that a page of another origin must be allowed to read (CORS)."""

_VERSION_FIELD = "Upload-Draft-Interop-Version"
_MAX_FIELD_CHARACTERS = 1024
_MAX_INTEGER = 10**15 - 1  # the largest that a structured field can hold
_MORE = ("Upload-Complete", "?0")
_DONE = ("Upload-Complete", "?1")
_FRESH = ("Cache-Control", "no-store")
_CREATING = frozenset({"POST", "PUT"})
_FOR_GOOD = (BadFilename, CrossOrigin, Forbidden, NoSession, UnsupportedMediaType)


def boolean(headers: Headers, name: str) -> bool | None:
    """The field's truth value; None when the field is absent, or ignored because it holds anything else."""
    value = _item(headers, name)
    return value if isinstance(value, bool) else None


def integer(headers: Headers, name: str) -> int | None:
    """The field's number from 0 on; None when the field is absent, or ignored because it holds anything else."""
    value = _item(headers, name)
    return value if isinstance(value, int) and not isinstance(value, bool) and value >= 0 else None


def options(limits: Limits) -> HeaderPairs:
    """The headers by which OPTIONS announces resumable uploads and their limits."""
    return [("Upload-Limit", _limit(limits, limits.idle_seconds, "max-age"))]


class Resumable:
    """One request of a resumable upload. See `Codec`.

    `versions` are the interop versions that are offered, by interim responses.

    Raises:
        BadRequest: the request names its interop version twice.
    """

    def __init__(self, method: str, headers: Headers, limits: Limits, versions: Collection[int] = VERSIONS) -> None:
        self._method = method
        self._headers = headers
        self._limits = limits
        self._version = integer(headers, _VERSION_FIELD)
        self._older = self._version is not None and self._version <= 6
        self._offered = self._version if self._version in versions else None

    def read(self) -> Intent:
        """Read the request's intent.

        Raises:
            BadRequest: a field is missing, or meaningless here; or the method is unknown.
            InconsistentUploadLength: Upload-Length and the body's own length differ.
            BadFilename: the file's name cannot be shown.
            TooLarge: the file is, or the body makes it, longer than allowed.
            UnsupportedMediaType: a form is to come in several requests, or a PATCH brings
                something else than a chunk.
        """
        if self._headers.getlist("upload-incomplete"):
            raise BadRequest("Upload-Incomplete belongs to drafts that are not spoken here; send Upload-Complete")
        match self._method:
            case "POST" | "PUT":
                return self._create()
            case "PATCH":
                return self._append()
            case "HEAD" | "GET":
                return self._ask()
            case "DELETE":
                return Cancel()
            case _:
                raise BadRequest("a resumable upload has POST, PUT, HEAD, GET, PATCH and DELETE, and no other method")

    def _ask(self) -> Ask:
        # Apple's clients, of the older versions, repeat on every request how the first one described the file.
        for name in () if self._older else ("Upload-Offset", "Upload-Complete", "Upload-Length"):
            if self._headers.getlist(name.lower()):
                raise BadRequest(f"a request that asks for the offset carries no {name}")
        return Ask()

    def _create(self) -> Create:
        ends = boolean(self._headers, "Upload-Complete")
        if ends is None:
            raise BadRequest("a new upload needs Upload-Complete, ?0 or ?1")
        if self._headers.getlist("upload-offset"):
            raise BadRequest("a new upload begins at its beginning and takes no Upload-Offset")
        if self._headers.getlist("content-range"):
            raise BadRequest("a Content-Range makes the body a fragment; leave it out")
        if media_type(self._headers) == "multipart/form-data" and not ends:
            raise UnsupportedMediaType("a form cannot come in several requests; send the file itself")
        length = self._length(0, ends)
        # tus clients that speak this protocol describe the file by Upload-Metadata.
        described = tus.described(self._headers)
        disposition = single(self._headers, "content-disposition")
        filename = None if disposition is None else grammar.disposition_filename(disposition)
        if filename is None:
            filename = described.name
        kind = described.content_type
        if media_type(self._headers) not in {"", CHUNK}:
            kind = grammar.content_type(single(self._headers, "content-type"))
        # The digest of a body that is the whole file is both the body's and the file's. Taken as the file's, it keeps
        # the bytes of a broken request usable.
        digests = declared_of_body(self._headers) if ends else self._digests("Repr-Digest")
        checks = () if ends else checksums(self._digests("Content-Digest"), ChunkDigestMismatch)
        return Create(
            length,
            ends,
            filename,
            kind,
            brings_bytes=True,
            checks=checks,
            digests=digests,
            annotations=described.annotations,
        )

    def _append(self) -> Append:
        # The drafts up to version 5 had no media type of their own.
        untyped = self._version is not None and self._version <= 5
        if not untyped and media_type(self._headers) != CHUNK:
            raise UnsupportedMediaType(f"the body of a PATCH has the Content-Type {CHUNK}")
        offset = integer(self._headers, "Upload-Offset")
        if offset is None:
            raise BadRequest("a PATCH needs Upload-Offset")
        ends = boolean(self._headers, "Upload-Complete")
        if self._version == 6 and not self._headers.getlist("upload-complete"):
            ends = True  # the drafts of this version let the last request omit it
        if ends is None:
            raise BadRequest("a PATCH needs Upload-Complete, ?0 or ?1")
        if self._headers.getlist("content-range"):
            raise BadRequest("Upload-Offset says where the body belongs; leave the Content-Range out")
        # Apple's clients, of the older versions, repeat the Content-Digest of the first body, which was
        # the whole file.
        digests = declared_of_body(self._headers) if self._older else self._digests("Repr-Digest")
        checks = () if self._older else checksums(self._digests("Content-Digest"), ChunkDigestMismatch)
        return Append(offset, self._length(offset, ends), ends, checks, digests)

    def _length(self, offset: int, ends: bool) -> int | None:
        """The file's length, by its own field or by the end of the last body; both must agree."""
        length = integer(self._headers, "Upload-Length")
        body = grammar.content_length(self._headers.getlist("content-length"))
        end = offset + (body or 0)
        if ends and body is not None:
            if length is not None and length != end:
                raise InconsistentUploadLength(length, end)
            length = end
        if max(end, length or 0) > self._limits.file_bytes:
            raise TooLarge(max(end, length or 0), self._limits.file_bytes)
        if length is not None and end > length:
            raise TooLarge(end, length)
        return length

    def _digests(self, field: str) -> Digests:
        return grammar.declared_digests(field, self._headers.getlist(field.lower()))

    def answer(self, intent: Intent, state: State) -> Answer:
        said = self._echo()
        if isinstance(intent, Cancel):
            return Answer(204, said)
        said.append(_DONE if state.completed else _MORE)
        if state.offset is not None:
            said.append(("Upload-Offset", str(state.offset)))
        said.append(("Upload-Limit", self._limit_now(state)))
        match intent:
            case Ask():
                if state.length is not None:
                    said.append(("Upload-Length", str(state.length)))
                return Answer(204, [*said, _FRESH])
            case Append() if not state.completed or state.record is None:  # a part has no record
                return Answer(204, said)
            case Create() | Concatenate() if not state.completed:
                return Answer(201, [*said, ("Location", state.location)])
        if state.sha256 is not None:
            said.append(("Repr-Digest", grammar.digest_field(state.sha256)))
        # The final answer is about the target, which is the record. Clients of the older drafts
        # take any Location for the upload's URL.
        said.append(("Location", state.location if self._older or state.record is None else state.record))
        return Answer(201, said, with_record=state.record is not None)

    def refusal(self, error: UploadError, *, location: str | None = None) -> HeaderPairs:
        said = [*self._echo(), _FRESH]
        if isinstance(error, OffsetMismatch):
            said.append(("Upload-Offset", str(error.expected)))
        if self._method in {"POST", "PUT", "PATCH"} and error.status not in {404, 410}:
            said.append(_DONE if self._is_the_last_word(error) else _MORE)
        if error.status in {400, 413}:
            said.append(("Upload-Limit", _limit(self._limits, self._limits.idle_seconds, self._age_key)))
        if location is not None:
            said.append(("Location", location))
        return said

    def _is_the_last_word(self, error: UploadError) -> bool:
        """Whether no further bytes of this file could change the refusal."""
        if isinstance(error, DigestMismatch):
            return not isinstance(error, ChunkDigestMismatch)
        return self._method in _CREATING and isinstance(error, _FOR_GOOD)

    @property
    def accepts_interim(self) -> bool:
        return self._offered is not None

    def interim(self, state: State) -> Answer | None:
        """The offer to resume, for clients of an offered version; others would misread it."""
        if self._offered is None:
            return None
        return Answer(OFFER, [*self._echo(), ("Location", state.location), ("Upload-Limit", self._limit_now(state))])

    def progress(self, offset: int) -> Answer | None:
        # It is optional, and the clients of the older versions, in phones that nobody updates, make no use of it.
        if self._offered is None or self._older:
            return None
        return Answer(OFFER, [*self._echo(), ("Upload-Offset", str(offset))])

    def _echo(self) -> HeaderPairs:
        return [] if self._offered is None else [(_VERSION_FIELD, str(self._offered))]

    @property
    def _age_key(self) -> str:
        return "expires" if self._older else "max-age"

    def _limit_now(self, state: State) -> str:
        left = None if state.expires_at_us is None else max(0, (state.expires_at_us - state.at_us) // 1_000_000)
        return _limit(self._limits, left, self._age_key)


def _item(headers: Headers, name: str) -> object:
    """The field's value without its parameters; None when the field is absent or no structured item."""
    text = single(headers, name.lower())
    if text is None:
        return None
    if len(text) > _MAX_FIELD_CHARACTERS:
        raise BadRequest(f"{name} has at most {_MAX_FIELD_CHARACTERS} characters")
    try:
        value, _ = cast("tuple[object, object]", http_sf.parse(text.encode("latin-1"), tltype="item"))
    except http_sf.StructuredFieldError:
        return None
    return value


def _limit(limits: Limits, seconds_left: int | None, age_key: str) -> str:
    """An Upload-Limit. The field must not be empty, so without a limit it states a minimum size of 0."""
    known = {"max-size": limits.file_bytes, "max-append-size": limits.request_bytes, age_key: seconds_left}
    said = [f"{key}={value}" for key, value in known.items() if value is not None and value <= _MAX_INTEGER]
    return ", ".join(said) or "min-size=0"
