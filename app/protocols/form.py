"""Form bodies, `multipart/form-data`, as events.

The push parser of the `multipart` package finds the parts; this module decides what is a
form (RFC 7578, and what browsers, curl and other clients make of it) and refuses the rest.
"""

import base64
import re
from collections.abc import Iterator
from typing import Final, NamedTuple

from multipart import MultipartError, PushMultipartParser

from app.errors import BadRequest, MalformedForm, RequestTooLarge, TooManyFiles, UnsupportedMediaType
from app.protocols.headers import UNNAMED, content_type, extended_value, parameters, safe_filename, unquoted

MAX_PREAMBLE_BYTES: Final = 64
MAX_PART_HEADERS: Final = 8
MAX_PART_HEADER_BYTES: Final = 4096

_BOUNDARY = re.compile(r"[0-9A-Za-z'()+_,./:=? -]{0,69}[0-9A-Za-z'()+_,./:=?-]")
_HEADER_LINE = re.compile(rb"[!#$%&'*+.^_`|~0-9A-Za-z-]++:[\t\x20-\x7e\x80-\xff]*+")
_KNOWN_HEADERS = frozenset({"Content-Disposition", "Content-Type", "Content-Transfer-Encoding"})
_IDENTITY_ENCODINGS = frozenset({"7bit", "8bit", "binary"})


class PartBegin(NamedTuple):
    """A part begins: a file under its clean name, or a plain field when `filename` is None."""

    filename: str | None
    content_type: str
    name: str


class PartData(NamedTuple):
    """The next bytes of the part; never none."""

    data: bytes


class PartEnd(NamedTuple):
    """The part is complete: its closing boundary was seen."""


Event = PartBegin | PartData | PartEnd


class FormDecoder:
    """Turn the body of one form into events.

    Each part gives a PartBegin, any number of PartData and a PartEnd. Where the body was cut
    into blocks changes nothing but where PartData is cut. A block of a part is handed on
    without being copied while no boundary is near. A part with `filename=""`, a browser's
    empty field, is a file (`unnamed`) if it holds a byte, and a plain field if not.

    A refusal ends the form: what was fed cannot be continued.
    """

    def __init__(self, content_type: str, *, max_parts: int = 1000, max_field_bytes: int = 1 << 20) -> None:
        """Read a form whose request has this Content-Type.

        `max_parts` counts fields and files; `max_field_bytes` bounds each plain field.

        Raises:
            UnsupportedMediaType: it is not `multipart/form-data`.
            MalformedForm: it has no boundary of 1 to 70 characters as RFC 2046 wants it.
        """
        boundary = _boundary(content_type)
        self._first = b"--" + boundary
        self._parser = _Parser(
            boundary,
            max_header_count=MAX_PART_HEADERS,
            max_header_size=MAX_PART_HEADER_BYTES + 1,  # it counts the CR of a line cut before its LF
            header_charset="latin-1",  # only names must be UTF-8, and who reads them checks it
            # Its strict mode refuses a sound body whose last CRLF comes in a block of its own.
            strict=False,
        )
        self._max_parts = max_parts
        self._max_field_bytes = max_field_bytes
        self._parts = 0
        self._before: bytes | None = b""  # what came so far of the preamble; None behind it
        self._unnamed: _Part | None = None  # a part with `filename=""` of which no byte has come yet
        self._field_bytes_left: int | None = None  # None in a file

    def feed(self, data: bytes) -> Iterator[Event]:
        """The events in the next block of the body. Take them all before the next block.

        Raises:
            MalformedForm: the body is not a form.
            BadFilename: a file's name is not acceptable.
            TooManyFiles: there are more parts than allowed.
            RequestTooLarge: a plain field is larger than allowed.
        """
        if self._before is not None:
            data = self._behind_preamble(self._before + data)
        if not data:  # to the parser it would mean the end
            return
        try:
            for found in self._parser.parse(data):
                if isinstance(found, bytes):
                    if self._unnamed is not None:
                        yield self._unnamed.begin(UNNAMED)
                        self._unnamed = None
                    if self._field_bytes_left is not None:
                        self._field_bytes_left -= len(found)
                        if self._field_bytes_left < 0:
                            raise RequestTooLarge(self._max_field_bytes + 1, self._max_field_bytes)
                    yield PartData(found)
                elif found is not None:
                    self._parts += 1
                    if self._parts > self._max_parts:
                        raise TooManyFiles(self._parts, self._max_parts)
                    self._field_bytes_left = self._max_field_bytes if found.filename is None else None
                    if found.filename == "":
                        self._unnamed = found
                    else:
                        yield found.begin(found.filename)
                else:
                    if self._unnamed is not None:
                        yield self._unnamed.begin(None)
                        self._unnamed = None
                    yield PartEnd()
        except MultipartError as error:
            raise MalformedForm(f"the body breaks the grammar of forms: {error}") from error

    def finish(self) -> None:
        """The body has ended.

        Raises:
            MalformedForm: its closing boundary was not seen.
        """
        try:
            self._parser.close()
        except MultipartError as error:
            raise MalformedForm("the body ends before its closing boundary") from error

    def _behind_preamble(self, seen: bytes) -> bytes:
        """The body from its first boundary on; nothing while that has yet to come.

        The parser would skip a preamble of any length, and reads it differently as it is cut.
        """
        at = 0
        if not seen.startswith(self._first):
            at = seen.find(b"\r\n" + self._first, 0, MAX_PREAMBLE_BYTES + len(self._first)) + 2
            if at == 1:
                if len(seen) >= MAX_PREAMBLE_BYTES + len(self._first):
                    raise MalformedForm(f"the boundary does not occur in the first {MAX_PREAMBLE_BYTES} bytes")
                self._before = seen
                return b""
        self._before = None
        return seen[at:]


class _Parser(PushMultipartParser):  # type: ignore[misc]  # the package carries no types
    """The package's parser, with part headers read our way."""

    def _on_segment_headerline(self, line: bytes) -> None:
        # Strict, since what the parser lets pass here (lone CR and LF, folded lines) it reads differently as it is cut.
        if len(line) > MAX_PART_HEADER_BYTES or _HEADER_LINE.fullmatch(line) is None:
            raise MalformedForm(f"a part's header is one line, name: value, of at most {MAX_PART_HEADER_BYTES} bytes")
        super()._on_segment_headerline(line)

    def _create_segment(self, headerlist: list[tuple[str, str]]) -> "_Part":
        return _Part(headerlist)


class _Part:
    """A part's headers, understood. The parser keeps its count of the part's bytes here."""

    __slots__ = ("bytes_received", "complete", "content_type", "filename", "name")

    def __init__(self, headers: list[tuple[str, str]]) -> None:
        self.bytes_received = 0
        self.complete = False
        known: dict[str, str] = {}
        for name, value in headers:
            if name in _KNOWN_HEADERS:
                if name in known:
                    raise MalformedForm(f"a part has more than one {name}")
                known[name] = value
        if known.get("Content-Transfer-Encoding", "binary").strip(" \t").lower() not in _IDENTITY_ENCODINGS:
            raise MalformedForm("a part has a Content-Transfer-Encoding; its bytes must come as they are")
        if "Content-Disposition" not in known:
            raise MalformedForm("a part has no Content-Disposition")
        try:
            kind, found = parameters(known["Content-Disposition"])
            self.filename = _filename(found)
            self.name = _form_value(found.get("name", '""')).decode()
        except BadRequest as error:
            raise MalformedForm(f"a part's Content-Disposition cannot be read: {error}") from error
        except UnicodeDecodeError:
            raise MalformedForm("a part's name must be well-formed UTF-8") from None
        if kind != "form-data" or not self.name:
            raise MalformedForm('a part\'s Content-Disposition must be form-data with a name="…" that is not empty')
        self.content_type = content_type(known.get("Content-Type"))

    def begin(self, filename: str | None) -> PartBegin:
        return PartBegin(filename, self.content_type, self.name)


def _filename(found: dict[str, str]) -> str | None:
    """The clean name of a part's file, None for a plain field, empty for `filename=""`."""
    plain = _form_value(found["filename"]) if "filename" in found else None
    if "filename*" in found:
        # RFC 7578 §4.2 forbids it, and two readers could see two names. But .NET's HttpClient always sends both,
        # the plain one as an encoded word when it is not ASCII; so it may stay where it says the same.
        name = extended_value(found["filename*"])
        if plain not in (name, b"=?utf-8?B?" + base64.b64encode(name) + b"?="):
            raise BadRequest("filename* is not for forms, unless filename says the same")
        plain = name
    if plain is None:
        return None
    return safe_filename(plain) if plain else ""


def _form_value(text: str) -> bytes:
    r"""The bytes of a name or a filename, as the clients that are in use write it.

    * Browsers, and what follows the HTML standard (curl since 7.81, undici, urllib3 2): `"` is
      `%22`, and nothing else is escaped; a `%22` in the name itself looks the same, so it
      comes out as `"`. CR and LF are `%0D` and `%0A`, which stay: they could only be refused.
    * Older curl, Go, Apache's client: `\"` is `"` and `\\` is `\`. No browser sends `\"`
      except at the very end, so it tells the two apart.
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
