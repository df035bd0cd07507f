"""Form bodies, `multipart/form-data`, decoded into events.

Accepted are forms as RFC 7578 defines them, and as browsers, curl and other clients write
them. All else is refused; nothing is read leniently, since two readers could read it differently.
"""

import base64
import re
from collections.abc import Iterator
from typing import Final, Literal, NamedTuple

from app.errors import BadRequest, MalformedForm, RequestTooLarge, TooManyFiles, UnsupportedMediaType
from app.model import UNDECLARED, Digests
from app.protocols.filenames import UNNAMED, relative_path, safe_filename
from app.protocols.headers import content_type, declared_digests, extended_value, parameters, unquoted

MAX_PREAMBLE_BYTES: Final = 64
MAX_EPILOGUE_BYTES: Final = 64
MAX_PART_HEADERS: Final = 8
MAX_PART_HEADER_BYTES: Final = 4096

_BOUNDARY = re.compile(r"[0-9A-Za-z'()+_,./:=? -]{0,69}[0-9A-Za-z'()+_,./:=?-]")
_HEADER_LINE = re.compile(rb"([!#$%&'*+.^_`|~0-9A-Za-z-]++):([\t\x20-\x7e\x80-\xff]*+)")
_MAX_HEAD_BYTES = MAX_PART_HEADERS * (MAX_PART_HEADER_BYTES + 2)
_ENCODING, _DISPOSITION, _TYPE, _LENGTH = (
    b"content-transfer-encoding",
    b"content-disposition",
    b"content-type",
    b"content-length",
)
_DIGESTS = (b"repr-digest", b"content-digest")
_KNOWN_HEADERS = frozenset({_ENCODING, _DISPOSITION, _TYPE, _LENGTH, *_DIGESTS})
_IDENTITY_ENCODINGS = frozenset({"7bit", "8bit", "binary"})


class PartBegin(NamedTuple):
    """A part begins: a file under its clean name, or a plain field when `filename` is None.

    `digests` are those that its own headers declare. `path` is that of a file in a folder.
    """

    filename: str | None
    content_type: str
    name: str
    digests: Digests = UNDECLARED
    path: str | None = None


class PartData(NamedTuple):
    """The next bytes of the part, at least one. They may be a view of the block that was fed."""

    data: bytes | memoryview


class PartEnd(NamedTuple):
    """The part is complete: its closing boundary was seen."""


Event = PartBegin | PartData | PartEnd


class FormDecoder:
    """A decoder that turns the body of one form into events.

    Each part gives a PartBegin, any number of PartData and a PartEnd. Where the body was cut
    into blocks only changes where PartData is cut. A block of a part is handed on
    without being copied while no boundary is near. A part with `filename=""`, a browser's
    empty field, is a file (`unnamed`) if it holds a byte, and a plain field if not.

    A refusal ends the form: no more can be fed.
    """

    def __init__(self, content_type: str, *, max_parts: int = 1000, max_field_bytes: int = 1 << 20) -> None:
        """Read a form whose request has this Content-Type.

        `max_parts` counts fields and files; `max_field_bytes` bounds each plain field.

        Raises:
            UnsupportedMediaType: the type is not `multipart/form-data`.
            MalformedForm: the type has no boundary of 1 to 70 characters as RFC 2046 wants it.
        """
        self._delimiter = b"\r\n--" + _boundary(content_type)
        self._max_parts = max_parts
        self._max_field_bytes = max_field_bytes
        self._place: Literal["preamble", "boundary", "head", "start", "content", "epilogue", "refused"] = "preamble"
        self._kept = b""  # fed bytes that cannot be decoded without the next ones
        self._parts = 0
        self._part: _Part | None = None
        self._part_bytes = 0
        self._epilogue_bytes = 0

    @property
    def boundary_bytes(self) -> int:
        """The length of the boundary in the header."""
        return len(self._delimiter) - len(b"\r\n--")

    def feed(self, data: bytes) -> Iterator[Event]:
        """Yield the events in the next block of the body. Take them all before feeding the next block.

        Raises:
            MalformedForm: the body is not a form.
            BadFilename: a file's name is not acceptable.
            TooManyFiles: there are more parts than allowed.
            RequestTooLarge: a plain field is larger than allowed.
        """
        place, self._place = self._place, "refused"  # until all has gone well
        if self._kept:
            data = self._kept + data
        at = 0
        while True:
            if place == "content":
                part = self._part
                assert part is not None
                end = data.find(self._delimiter, at)
                stop = self._undecided(data, at) if end < 0 else end
                if stop > at:
                    if part.filename == "" and not self._part_bytes:
                        yield part.begin(UNNAMED)
                    self._part_bytes += stop - at
                    if part.filename is None and self._part_bytes > self._max_field_bytes:
                        raise RequestTooLarge(self._max_field_bytes + 1, self._max_field_bytes)
                    yield PartData(_part_of(data, at, stop))
                if end < 0:
                    at = stop
                    break
                if part.length is not None and part.length != str(self._part_bytes):
                    raise MalformedForm("a part has another length than its Content-Length says")
                if part.filename == "" and not self._part_bytes:
                    yield part.begin(None)
                yield _END
                at = end + len(self._delimiter)
                place = "boundary"
            elif place == "boundary":
                behind = data[at : at + 2]
                if behind == b"\r\n":
                    place = "head"
                elif behind == b"--":
                    place = "epilogue"
                elif len(behind) == 2:
                    raise MalformedForm("something else than a line end stands behind a boundary")
                else:
                    break
                at += 2
            elif place == "head":
                end = data.find(b"\r\n\r\n", at)
                if end < 0:
                    if len(data) - at > _MAX_HEAD_BYTES:
                        raise MalformedForm(f"the headers of a part have more than {_MAX_HEAD_BYTES} bytes")
                    break
                if self._delimiter in b"\r\n" + data[at:end]:
                    raise MalformedForm("a boundary stands among the headers of a part")
                self._part, self._part_bytes = _Part(data[at:end]), 0
                self._parts += 1
                if self._parts > self._max_parts:
                    raise TooManyFiles(self._parts, self._max_parts)
                if self._part.filename != "":
                    yield self._part.begin(self._part.filename)
                at = end + 4
                place = "start"
            elif place == "start":
                # With the empty line's own CRLF this is a delimiter: some read an empty part here, others bytes.
                behind = data[at : at + len(self._delimiter) - 2]
                if self._delimiter == b"\r\n" + behind:
                    raise MalformedForm("a boundary stands where the bytes of a part begin")
                if self._delimiter.startswith(b"\r\n" + behind):
                    break
                place = "content"
            elif place == "preamble":
                at = self._behind_preamble(data)
                if at < 0:
                    at = 0
                    break
                place = "boundary"
            elif place == "epilogue":
                self._epilogue_bytes += len(data) - at
                if self._epilogue_bytes > MAX_EPILOGUE_BYTES:  # other readers could find a second form in it
                    raise MalformedForm(f"more than {MAX_EPILOGUE_BYTES} bytes stand behind the closing boundary")
                at = len(data)
                break
            else:
                raise MalformedForm("the form was refused before")
        self._kept = data[at:]
        self._place = place

    def finish(self) -> None:
        """End the body.

        Raises:
            MalformedForm: its closing boundary was not seen.
        """
        if self._place != "epilogue":
            raise MalformedForm("the body ends before its closing boundary")

    def _behind_preamble(self, seen: bytes) -> int:
        """The end of the first boundary, which may be at the very start; -1 while it has yet to come."""
        first = self._delimiter[2:]
        at = 0 if seen.startswith(first) else seen.find(self._delimiter, 0, MAX_PREAMBLE_BYTES + len(first)) + 2
        if at == 1:
            if len(seen) >= MAX_PREAMBLE_BYTES + len(first):
                raise MalformedForm(f"the boundary does not occur in the first {MAX_PREAMBLE_BYTES} bytes")
            return -1
        return at + len(first)

    def _undecided(self, data: bytes, at: int) -> int:
        """The position, at the end of `data`, of what may be the beginning of a delimiter."""
        start = data.rfind(b"\r", max(at, len(data) - len(self._delimiter) + 1))
        return start if start >= 0 and self._delimiter.startswith(data[start:]) else len(data)


_END: Final = PartEnd()


def _part_of(data: bytes, start: int, stop: int) -> bytes | memoryview:
    """The bytes from `start` to `stop`; a copy unless they are most of the block, which a view keeps in memory."""
    if stop - start == len(data):
        return data
    return memoryview(data)[start:stop] if stop - start > len(data) // 2 else data[start:stop]


class _Part:
    """A part, as its headers describe it."""

    __slots__ = ("content_type", "digests", "filename", "length", "name", "path")

    def __init__(self, head: bytes) -> None:
        known = _known_headers(head)
        if _ENCODING in known and known[_ENCODING].strip(" \t").lower() not in _IDENTITY_ENCODINGS:
            raise MalformedForm("a part has a Content-Transfer-Encoding; its bytes must come as they are")
        if _DISPOSITION not in known:
            raise MalformedForm("a part has no Content-Disposition")
        try:
            kind, found = parameters(known[_DISPOSITION])
            given = _given_filename(found)
            self.path = relative_path(given, backslash=False) if given and b"/" in given else None
            if self.path is not None:
                self.filename: str | None = self.path.rpartition("/")[2]
            else:
                self.filename = safe_filename(given) if given else None if given is None else ""
            self.name = _form_value(found.get("name", '""')).decode()
        except BadRequest as error:
            raise MalformedForm(f"a part's Content-Disposition cannot be read: {error}") from error
        except UnicodeDecodeError:
            raise MalformedForm("a part's name must be well-formed UTF-8") from None
        if kind != "form-data" or not self.name:
            raise MalformedForm('a part\'s Content-Disposition must be form-data with a name="…" that is not empty')
        self.content_type = content_type(known.get(_TYPE))
        self.length = known.get(_LENGTH)
        self.digests = _digests(known)

    def begin(self, filename: str | None) -> PartBegin:
        return PartBegin(filename, self.content_type, self.name, self.digests, self.path)


def _known_headers(head: bytes) -> dict[bytes, str]:
    """The headers of a part that are used here; names in lower case, values as latin-1 text."""
    lines = head.split(b"\r\n")
    if len(lines) > MAX_PART_HEADERS:
        raise MalformedForm(f"a part has more than {MAX_PART_HEADERS} headers")
    known: dict[bytes, str] = {}
    for line in lines:
        found = _HEADER_LINE.fullmatch(line)
        if found is None or len(line) > MAX_PART_HEADER_BYTES:
            raise MalformedForm(f"a part's header is one line, name: value, of at most {MAX_PART_HEADER_BYTES} bytes")
        name = found[1].lower()
        if name in _KNOWN_HEADERS:
            if name in known:
                raise MalformedForm(f"a part has more than one {name.decode().title()}")
            known[name] = found[2].decode("latin-1").lstrip(" \t")
    return known


def _digests(known: dict[bytes, str]) -> Digests:
    """The digests that a part's own fields declare; both are about the same bytes."""
    declared = UNDECLARED
    for name in _DIGESTS:
        if name in known:
            one = declared_digests(name.decode().title(), [known[name]])
            if not declared.agrees_with(one):
                raise BadRequest("a part's Repr-Digest and Content-Digest name different digests for the same bytes")
            declared = declared.joined_with(one)
    return declared


def _given_filename(found: dict[str, str]) -> bytes | None:
    """The name that a part gives its file, maybe a path; None for a plain field, empty for `filename=""`."""
    plain = _form_value(found["filename"]) if "filename" in found else None
    if "filename*" in found:
        # RFC 7578 §4.2 forbids it, and two readers could see two names. But .NET's HttpClient always sends both,
        # the plain one as an encoded word when it is not ASCII, and Apache's one with question marks; so it may
        # stay where both names agree.
        name = extended_value(found["filename*"])
        if plain not in (name, b"=?utf-8?B?" + base64.b64encode(name) + b"?=") and not _stands_in(plain, name):
            raise BadRequest("filename* is not for forms, unless filename says the same")
        plain = name
    return plain


def _stands_in(plain: bytes | None, name: bytes) -> bool:
    """Whether `plain` is `name` with `?` or `_` for what is not ASCII: for each character, UTF-16 unit or byte."""
    try:
        text = name.decode()
    except UnicodeDecodeError:
        return False
    shown = "" if plain is None else plain.decode("latin-1")
    pairs = "".join("\ufffd\ufffd" if character > "\uffff" else character for character in text)
    return any(
        len(shown) == len(units)
        and all(one == other or (one >= "\x80" and other in "?_") for one, other in zip(units, shown, strict=True))
        for units in (text, pairs, name.decode("latin-1"))
    )


def _form_value(text: str) -> bytes:
    r"""Decode a name or a filename to bytes, as the clients in use encode it.

    * Browsers, and clients that follow the HTML standard (curl since 7.81, undici, urllib3 2): `"` is
      `%22`, and nothing else is escaped; a `%22` in the name itself looks the same, so it
      comes out as `"`. CR and LF are `%0D` and `%0A`, which stay: they could only be refused.
    * Older curl, Go, Apache's client: `\"` is `"` and `\\` is `\`. No browser sends `\"`
      except at the very end, which distinguishes the two.
    """
    if text[0] != '"':
        return text.encode("latin-1")
    text = text[1:-1]
    if '\\"' in text:  # NUL, which no part header holds, stands in for a backslash
        text = text.replace("\\\\", "\0").replace('\\"', '"').replace("\0", "\\")
    else:
        text = text.replace("%22", '"')
    return text.encode("latin-1")


def _boundary(content_type: str) -> bytes:
    try:
        kind, found = parameters(content_type)
    except BadRequest as error:
        raise MalformedForm(f"the request's Content-Type cannot be read: {error}") from error
    if kind != "multipart/form-data":
        raise UnsupportedMediaType("a form comes as multipart/form-data")
    boundary = unquoted(found.get("boundary", '""'))
    if _BOUNDARY.fullmatch(boundary) is None:
        raise MalformedForm("the request's Content-Type must name a boundary of 1 to 70 characters (RFC 2046)")
    return boundary.encode()
