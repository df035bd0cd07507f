"""tus 1.0.0: the codec of its requests and answers.

All extensions are supported but checksum-trailer, since no trailer of a request reaches the application.
A broken header is refused, never skipped.
"""

import base64
import re
from collections.abc import Mapping
from typing import Final, NamedTuple

from app.annotations import Annotations
from app.errors import (
    BadRequest,
    ChunkDigestMismatch,
    Forbidden,
    OffsetMismatch,
    TooLarge,
    UnsupportedMediaType,
    UnsupportedVersion,
    UploadError,
)
from app.model import MAX_SIZE, Digests
from app.protocols import filenames
from app.protocols import headers as grammar
from app.protocols.annotations import of_request
from app.protocols.intents import (
    ALGORITHMS,
    DIGEST_BYTES,
    Answer,
    Append,
    Ask,
    Cancel,
    Checksum,
    Concatenate,
    Create,
    HeaderPairs,
    Headers,
    Intent,
    Limits,
    State,
    checksums,
    media_type,
    refuse_unless_of_nothing,
    single,
    whole_number,
)

VERSION: Final = "1.0.0"
EXTENSIONS: Final = (
    "creation",
    "creation-with-upload",
    "creation-defer-length",
    "expiration",
    "checksum",
    "termination",
    "concatenation",
    "concatenation-unfinished",
)
CHUNK: Final = "application/offset+octet-stream"
"""The media type of a body of file bytes."""
MAX_METADATA_CHARACTERS: Final = 8192
MAX_CONCAT_CHARACTERS: Final = 48 * 1024
MAX_PARTS: Final = 500

RESPONSE_HEADERS: Final = (
    "Link", "Location", "Repr-Digest", "Tus-Checksum-Algorithm", "Tus-Extension", "Tus-Max-Size", "Tus-Resumable",
    "Tus-Version", "Upload-Concat", "Upload-Defer-Length", "Upload-Expires", "Upload-Length", "Upload-Metadata",
    "Upload-Offset",
)  # fmt: skip
"""The headers of an answer that a page of another origin must be allowed to read (CORS)."""

_OURS = ("Tus-Resumable", VERSION)
_FRESH = ("Cache-Control", "no-store")
_PART = re.compile(r"(?:[!-~]*/)?([A-Za-z0-9_-]{22,64})")
_PAIR = re.compile(r"[ \t]*+([!-+\--~]++)(?: ++([A-Za-z0-9+/]*+={0,2}))?[ \t]*+(?:,|\Z)")


def method(sent: str, headers: Headers) -> str:
    """The method a request means: a POST may stand for a PATCH or a DELETE that a proxy would block."""
    override = single(headers, "x-http-method-override") if sent == "POST" else None
    return override if override in {"PATCH", "DELETE"} else sent


def options(limits: Limits) -> HeaderPairs:
    """The headers by which OPTIONS announces tus."""
    offered = [
        _OURS,
        ("Tus-Version", VERSION),
        ("Tus-Extension", ",".join(EXTENSIONS)),
        ("Tus-Checksum-Algorithm", ",".join(ALGORITHMS)),
    ]
    if limits.file_bytes < MAX_SIZE:
        offered.append(("Tus-Max-Size", str(limits.file_bytes)))
    return offered


class Tus:
    """One request in tus 1.0.0. See `Codec`; `method` is what the request means, see `method` above."""

    def __init__(self, method: str, headers: Headers, limits: Limits) -> None:
        self._method = method
        self._headers = headers
        self._limits = limits

    def read(self) -> Intent:
        """Read the request's intent.

        Raises:
            UnsupportedVersion: Tus-Resumable is absent or names another version. OPTIONS is
            answered nevertheless.
            BadRequest: a header is missing, malformed or contradicts another; or the method is unknown to tus.
            BadFilename: the metadata name the file in a way that cannot be shown.
            TooLarge: the file is, or the body makes it, longer than allowed.
            UnsupportedMediaType: the body of a PATCH is not declared as a chunk.
            Forbidden: a concatenation brings bytes of its own.
        """
        if self._method in {"HEAD", "GET"}:
            return Ask()
        if single(self._headers, "tus-resumable") != VERSION:
            raise UnsupportedVersion(VERSION)
        if self._headers.getlist("content-range"):
            raise BadRequest(
                "tus says by Upload-Offset and Upload-Length where a body belongs, and has no Content-Range"
            )
        match self._method:
            case "POST" if (concat := single(self._headers, "upload-concat")) not in {None, "partial"}:
                return self._concatenate(concat or "")
            case "POST":
                return self._create()
            case "PATCH":
                return self._append()
            case "DELETE":
                return Cancel()
            case _:
                raise BadRequest("tus has POST, HEAD, PATCH and DELETE, and no other method")

    def _create(self) -> Create:
        concat = single(self._headers, "upload-concat")
        length = self._number("upload-length")
        deferred = single(self._headers, "upload-defer-length")
        if deferred not in {None, "1"}:
            raise BadRequest("Upload-Defer-Length can only be 1")
        if (length is None) == (deferred is None):
            raise BadRequest("a new upload needs either Upload-Length or Upload-Defer-Length")
        self._refuse_longer_than_allowed(length)
        file = described(self._headers)
        brings_bytes = media_type(self._headers) == CHUNK
        checks = self._checks()
        if brings_bytes:
            self._refuse_overrun(0, length)
        else:
            refuse_unless_of_nothing(self._digests("Content-Digest"))
        return Create(
            length,
            None,
            file.name,
            file.content_type,
            file.metadata,
            concat,
            is_part=concat is not None,
            brings_bytes=brings_bytes,
            checks=checks if brings_bytes else (),
            digests=self._digests("Repr-Digest"),
            annotations=file.annotations,
        )

    def _concatenate(self, concat: str) -> Concatenate:
        kind, _, listed = concat.partition(";")
        if kind != "final":
            raise BadRequest("Upload-Concat is partial, or final; and the URLs of the parts")
        if self._headers.getlist("upload-length") or self._headers.getlist("upload-defer-length"):
            raise BadRequest("a concatenation is as long as its parts and takes no length")
        if self._headers.getlist("transfer-encoding") or self._content_length():
            raise Forbidden("a concatenation consists of its parts and takes no bytes of its own")
        if len(concat) > MAX_CONCAT_CHARACTERS:
            raise BadRequest(f"Upload-Concat has at most {MAX_CONCAT_CHARACTERS} characters")
        urls = [url for url in listed.split(" ") if url]
        if not 1 <= len(urls) <= MAX_PARTS:
            raise BadRequest(f"a concatenation has 1 to {MAX_PARTS} parts")
        # Their last path elements alone: what stands before depends on the proxies between client and service.
        parts = [_PART.fullmatch(url) for url in urls]
        keys = tuple(part.group(1) for part in parts if part is not None)
        if len(keys) < len(parts):
            raise BadRequest("Upload-Concat names something that is no upload's URL")
        file = described(self._headers)
        refuse_unless_of_nothing(self._digests("Content-Digest"))
        digests = self._digests("Repr-Digest")
        return Concatenate(keys, file.name, file.content_type, file.metadata, concat, digests, file.annotations)

    def _append(self) -> Append:
        if media_type(self._headers) != CHUNK:
            raise UnsupportedMediaType(f"the body of a PATCH has the Content-Type {CHUNK}")
        offset = self._number("upload-offset")
        if offset is None:
            raise BadRequest("a PATCH needs Upload-Offset")
        length = self._number("upload-length")
        self._refuse_longer_than_allowed(length)
        if length is not None and length < offset:
            raise BadRequest("Upload-Length is less than Upload-Offset")
        self._refuse_overrun(offset, length)
        return Append(offset, length, None, self._checks(), self._digests("Repr-Digest"))

    def _number(self, name: str) -> int | None:
        text = single(self._headers, name)
        return None if text is None else whole_number(name.title(), text)

    def _content_length(self) -> int | None:
        return grammar.content_length(self._headers.getlist("content-length"))

    def _refuse_longer_than_allowed(self, length: int | None) -> None:
        if length is not None and length > self._limits.file_bytes:
            raise TooLarge(length, self._limits.file_bytes)

    def _refuse_overrun(self, offset: int, length: int | None) -> None:
        """Refuse a body whose own length takes it past the end of the file, or past the limit for any file."""
        end = offset + (self._content_length() or 0)
        most = self._limits.file_bytes if length is None else length
        if end > most:
            raise TooLarge(end, most)

    def _digests(self, field: str) -> Digests:
        return grammar.declared_digests(field, self._headers.getlist(field.lower()))

    def _checks(self) -> tuple[Checksum, ...]:
        """The checksums of this request's body, by tus' own header and by HTTP's."""
        checks = checksums(self._digests("Content-Digest"), ChunkDigestMismatch)
        own = self._checksum()
        return checks if own is None else (own, *checks)

    def _checksum(self) -> Checksum | None:
        raw = single(self._headers, "upload-checksum")
        if raw is None:
            return None
        algorithm, _, text = raw.partition(" ")
        if algorithm not in DIGEST_BYTES:
            raise BadRequest(f"Upload-Checksum can be made with {', '.join(ALGORITHMS)}")
        digest = _decoded(text) if len(text) <= 128 else None
        if digest is None or len(digest) != DIGEST_BYTES[algorithm]:
            raise BadRequest(f"an Upload-Checksum of {algorithm} has {DIGEST_BYTES[algorithm]} bytes, in base64")
        return Checksum.of_chunk(algorithm, digest)

    def answer(self, intent: Intent, state: State) -> Answer:
        said = [_OURS]
        match intent:
            case Cancel():
                return Answer(204, said)
            case Create() | Concatenate():
                status = 201
                said.append(("Location", state.location))
            case Append():
                status = 204
            case Ask():
                status = 200
                said += [_FRESH, *_shape(state)]
        if state.offset is not None:
            said.append(("Upload-Offset", str(state.offset)))
        if state.completed:
            said += _finished(state)
        elif state.expires_at_us is not None:
            said.append(("Upload-Expires", grammar.http_date(state.expires_at_us)))
        return Answer(status, said)

    def refusal(self, error: UploadError, *, location: str | None = None) -> HeaderPairs:
        # Without the last, a cache may keep a 404 or 410 by its own heuristics.
        said = [_OURS, _FRESH]
        if location is not None:
            said.append(("Location", location))
        if isinstance(error, OffsetMismatch):  # saves the client a request for the offset
            said.append(("Upload-Offset", str(error.expected)))
        return said

    @property
    def accepts_interim(self) -> bool:
        return False

    def interim(self, state: State) -> Answer | None:
        return None

    def progress(self, offset: int) -> Answer | None:
        return None


class Described(NamedTuple):
    """The raw metadata, and from them the file's clean name and Content-Type, and its annotations."""

    metadata: str | None
    name: str | None
    content_type: str
    annotations: Annotations


def described(headers: Headers) -> Described:
    """Read what a request's Upload-Metadata says about the file, by the keys that clients have agreed on.

    Raises:
        BadRequest: see `metadata`.
        BadFilename, BadMetadata: see `safe_filename`, `of_request`.
    """
    # One field in several lines means the same as one line with commas (RFC 9110 §5.3).
    raw = ",".join(headers.getlist("upload-metadata")).strip(" \t")
    found = metadata(raw)
    kind = found.get("filetype") or found.get("type") or b""
    name = found.get("filename") or found.get("name") or None
    annotations = of_request(headers, found)
    filename = None if name is None else filenames.safe_filename(name)
    if annotations.path is not None:
        filename = annotations.path.rpartition("/")[2]
    return Described(raw or None, filename, grammar.content_type(kind.decode("latin-1")), annotations)


def metadata(raw: str) -> dict[str, bytes]:
    """The pairs of an Upload-Metadata: `filename d29ybGQ=,private`. An empty one has none.

    Raises:
        BadRequest: the header is over 8 KiB, breaks the grammar, or names a key twice.
    """
    if len(raw) > MAX_METADATA_CHARACTERS:
        raise BadRequest(f"Upload-Metadata has at most {MAX_METADATA_CHARACTERS} characters")
    found: dict[str, bytes] = {}
    at = 0
    while at < len(raw) or (raw and raw[at - 1] == ","):
        pair = _PAIR.match(raw, at)
        value = _decoded(pair.group(2) or "") if pair else None
        if pair is None or value is None:
            raise BadRequest("Upload-Metadata holds pairs of a key and a value in base64, with commas between")
        if pair.group(1) in found:
            raise BadRequest("Upload-Metadata names a key twice")
        found[pair.group(1)] = value
        at = pair.end()
    return found


def metadata_field(pairs: Mapping[str, bytes]) -> str:
    """The Upload-Metadata that says these pairs; see `metadata`."""
    return ",".join(f"{name} {base64.b64encode(value).decode()}".rstrip() for name, value in pairs.items())


def _decoded(text: str) -> bytes | None:
    try:
        return base64.b64decode(text, validate=True)
    except ValueError:
        return None


def _shape(state: State) -> HeaderPairs:
    """The headers of a HEAD answer beside the offset: the client's own declarations, unchanged."""
    said = []
    if state.length is not None:
        said.append(("Upload-Length", str(state.length)))
    elif state.offset is not None:  # a concatenation gets its length from its parts, not from the client
        said.append(("Upload-Defer-Length", "1"))
    if state.metadata is not None:
        said.append(("Upload-Metadata", state.metadata))
    if state.concat is not None:
        said.append(("Upload-Concat", state.concat))
    return said


def _finished(state: State) -> HeaderPairs:
    """The headers that lead to the file of a finished upload; tus has no bodies to name it in."""
    said = []
    if state.record is not None:
        said.append(("Link", f'<{state.record}>; rel="describedby"'))
    if state.sha256 is not None:
        said.append(("Repr-Digest", grammar.digest_field(state.sha256)))
    return said
