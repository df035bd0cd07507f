"""Header grammar: the meaning of a header, or the reason why it cannot be read.

A header value is text as HTTP servers give it: its bytes, decoded as latin-1. Every
function here takes time linear in what it is given, and refuses or ignores what it does
not understand; nothing is guessed.
"""

import re
from binascii import b2a_base64
from collections.abc import Mapping, Sequence
from datetime import UTC
from email.utils import formatdate, parsedate_to_datetime
from itertools import pairwise
from typing import Final, cast
from urllib.parse import quote, unquote_to_bytes

import http_sf

from app.errors import BadRequest, RangeNotSatisfiable, UncheckedDigest
from app.model import (
    DEFAULT_CONTENT_TYPE,
    MAX_CONTENT_TYPE_CHARACTERS,
    MAX_SIZE,
    UNDECLARED,
    Digests,
    microseconds,
)
from app.protocols.filenames import safe_filename

MAX_RANGES: Final = 5

_MAX_DIGEST_FIELD_CHARACTERS = 4096
_MAX_KEY_CHARACTERS = 255
_MAX_RANGE_CHARACTERS = 256  # five ranges of 19-digit positions, with room for spaces
_MAX_DATE_CHARACTERS = 64

_WORD = r"[!#$%&'*+.^_`|~0-9A-Za-z-]++"
# A backslash escapes what follows it. Only in front of the very last quote it is a character of its own: browsers and
# curl escape no backslash, and a file may be named `notes\`.
_QUOTED = r'"(?:[^"\\]++|\\(?:(?="\Z)|.))*+"'
_HEAD = re.compile(rf"{_WORD}(?:/{_WORD})?")
# The characters of a `filename*`, with the four that RFC 8187 wants escaped and clients do not escape.
_ENCODED = r"[!#$%&'()*+.^_`|~0-9A-Za-z-]++"
_PARAMETER = re.compile(rf"[ \t]*+;[ \t]*+(?:({_WORD})=((?<=\*=){_ENCODED}|{_WORD}|{_QUOTED}))?")
_ESCAPED = re.compile(r"\\(.)")
_EXTENDED = re.compile(r"(?i:utf-8)'[0-9A-Za-z-]*'((?:[!#$&'()*+.^_`|~0-9A-Za-z-]|%[0-9A-Fa-f]{2})*+)")
_ATTRIBUTE_CHARACTERS = "!#$&+-.^_`|~"  # RFC 8187 §3.2.1, beside letters and digits
_NOT_FOR_THE_FALLBACK = re.compile(r"[^ !#$&'()+,.0-9=@A-Z\[\]^_`a-z{}~-]")


def parameters(value: str) -> tuple[str, dict[str, str]]:
    """A header's leading word and its parameters, as in `attachment; filename="a.txt"`.

    The word and the parameters' names are in lower case; the values are as they were sent,
    in their quotes: only the reader of a value knows how it was escaped.

    Raises:
        BadRequest: the header breaks the grammar of RFC 9110 §5.6.6, or repeats a parameter.
    """
    value = value.strip(" \t")
    head = _HEAD.match(value)
    if head is None:
        raise BadRequest("a header starts with a word, and does not here")
    found: dict[str, str] = {}
    at, stop = head.end(), len(value)
    while at < stop:
        match = _PARAMETER.match(value, at)
        if match is None:
            raise BadRequest('a header has parameters like ; name=value or ; name="value", and something else here')
        at = match.end()
        if match[1] is None:  # empty, between two semicolons or after the last one
            continue
        name = match[1].lower()
        if name in found:
            raise BadRequest("a header names a parameter twice")
        found[name] = match[2]
    return head[0].lower(), found


def unquoted(text: str) -> str:
    r"""A parameter's value without its quotes; in them `\x` stands for `x`."""
    return _ESCAPED.sub(r"\1", text[1:-1]) if text[0] == '"' else text


def extended_value(text: str) -> bytes:
    """The bytes of a `filename*`, which is `UTF-8'language'percent-encoded` (RFC 8187).

    `(`, `)`, `'` and `*` may be left unescaped: they are unambiguous.

    Raises:
        BadRequest: the text is none, or names another character set.
    """
    match = _EXTENDED.fullmatch(text)
    if match is None:
        raise BadRequest("filename* must look like UTF-8''percent-encoded")
    return unquote_to_bytes(match.group(1))


def disposition_filename(value: str) -> str | None:
    """The clean name that a request's Content-Disposition gives its body, None when it gives none.

    `filename*` goes before `filename` (RFC 6266 §4.3); the bytes of either are UTF-8. The
    disposition itself (`attachment`, `inline`, anything) does not matter.

    Raises:
        BadRequest: the header cannot be read, or repeats a parameter.
        BadFilename: see `safe_filename`.
    """
    _, found = parameters(value)
    if "filename*" in found:
        return safe_filename(extended_value(found["filename*"]))
    if "filename" in found:
        return safe_filename(unquoted(found["filename"]).encode("latin-1"))
    return None


def attachment(filename: str) -> str:
    """A Content-Disposition that offers a download under `filename`, a clean name.

    In ASCII, whatever the name holds. `filename*` carries the name exactly, `filename` is
    a fallback for old clients: `disposition_filename` returns the name again.
    """
    fallback = _NOT_FOR_THE_FALLBACK.sub("_", filename)
    return f"attachment; filename=\"{fallback}\"; filename*=UTF-8''{quote(filename, safe=_ATTRIBUTE_CHARACTERS)}"


_PRINTABLE = re.compile(rf"[ -~]{{1,{MAX_CONTENT_TYPE_CHARACTERS}}}")
_LENGTH = re.compile(r"0*+([0-9]{1,19})|0++")
_REQUEST_ID = re.compile(r"[A-Za-z0-9._-]{1,64}")


def content_type(raw: str | None) -> str:
    """The Content-Type a client gave a file, kept as data.

    The type is a label: stored as it was sent, even when it means nothing or names something
    dangerous, and never trusted for serving. A value that cannot be a label (empty, more than
    255 characters, not printable ASCII) becomes `application/octet-stream`.
    """
    text = "" if raw is None else raw.strip(" \t")
    return text if _PRINTABLE.fullmatch(text) else DEFAULT_CONTENT_TYPE


def content_length(values: Sequence[str]) -> int | None:
    """The bytes that a request's Content-Length headers declare, None when there is none.

    Raises:
        BadRequest: several of them, even if equal; not digits alone; above 2**63 - 1.
    """
    if not values:
        return None
    match = _LENGTH.fullmatch(values[0]) if len(values) == 1 else None
    length = int(match[1] or "0") if match else MAX_SIZE + 1
    if length > MAX_SIZE:
        raise BadRequest(f"Content-Length must be a single whole number, at most {MAX_SIZE}")
    return length


def request_id(raw: str | None) -> str | None:
    """The client's own name for its request, None unless it is 1 to 64 characters of `A-Za-z0-9._-`."""
    return raw if raw is not None and _REQUEST_ID.fullmatch(raw) else None


def declared_digests(name: str, values: Sequence[str]) -> Digests:
    """The digests that the fields `name`, a Repr-Digest or Content-Digest, declare; none if there is no field.

    Several fields of the same name are one, joined by commas. As in every structured
    dictionary, the last of two equal keys counts (RFC 9651 §3.2). Other algorithms beside
    the two that are checked are ignored.

    Raises:
        UncheckedDigest: neither sha-256 nor sha-512 is among them, so nothing could be checked.
        BadRequest: the field is no structured dictionary, or a digest has another length than its algorithm's.
    """
    value = ", ".join(values).strip(" \t") if values else ""
    if not value:  # an empty dictionary is written as no field
        return UNDECLARED
    if len(value) > _MAX_DIGEST_FIELD_CHARACTERS:
        raise BadRequest(f"a digest field has at most {_MAX_DIGEST_FIELD_CHARACTERS} characters")
    try:
        fields = http_sf.parse(value.encode("latin-1"), tltype="dictionary")
    except http_sf.StructuredFieldError:
        raise BadRequest("a digest field looks like sha-256=:base64:") from None
    digests = cast("dict[str, tuple[object, object]]", fields)  # each with its parameters, which have no meaning here
    found = Digests(_digest(digests, "sha-256", 32), _digest(digests, "sha-512", 64))
    if found == UNDECLARED:
        raise UncheckedDigest(name)
    return found


def _digest(digests: Mapping[str, tuple[object, object]], algorithm: str, size: int) -> str | None:
    if algorithm not in digests:
        return None
    digest, _ = digests[algorithm]
    if not isinstance(digest, bytes) or len(digest) != size:
        raise BadRequest(f"a {algorithm} digest has {size} bytes, as {algorithm}=:base64:")
    return digest.hex()


_BARE_KEY = re.compile(r"[!#-+\-.-:<-\[\]-~]+")  # printable, without quotes, commas, semicolons and backslashes


def idempotency_key(value: str) -> str:
    """The key in an Idempotency-Key: a structured string, or the same without its quotes, as many clients send it.

    Raises:
        BadRequest: the value is neither, or has no characters or more than 255.
    """
    value = value.strip(" \t")
    key: object = value if _BARE_KEY.fullmatch(value) else None
    if key is None and len(value) <= 2 * _MAX_KEY_CHARACTERS + len('""'):  # twice as long if every character is escaped
        try:
            key, _ = cast("tuple[object, object]", http_sf.parse(value.encode("latin-1"), tltype="item"))
        except http_sf.StructuredFieldError:
            key = None
    if not isinstance(key, str) or not 1 <= len(key) <= _MAX_KEY_CHARACTERS:
        raise BadRequest(f"an Idempotency-Key is 1 to {_MAX_KEY_CHARACTERS} characters of ASCII, in quotes or without")
    return key


def digest_field(sha256: str) -> str:
    """A Repr-Digest or Content-Digest that declares `sha256`, given in hex."""
    return f"sha-256=:{b2a_base64(bytes.fromhex(sha256), newline=False).decode()}:"


_CONTENT_RANGE = re.compile(r"bytes[ \t]+0-([0-9]{1,19})/([0-9]{1,19})", re.IGNORECASE)


def whole_range(value: str) -> int:
    """The size of a file whose request has a Content-Range that covers all of it.

    Raises:
        BadRequest: the body is a fragment, or the header cannot be read; `0-5/*` and `*/0` do not mean a whole file.
    """
    match = _CONTENT_RANGE.fullmatch(value.strip(" \t"))
    if match is None or int(match[1]) + 1 != int(match[2]):
        raise BadRequest("a Content-Range makes the body a fragment, which is no file; send the whole file")
    return int(match[2])


_RANGE = re.compile(r"([0-9]*)-([0-9]*)")


def byte_ranges(value: str | None, size: int) -> list[tuple[int, int]] | None:
    """The parts of a file of `size` bytes that a Range header asks for; None to serve the whole file.

    Each is (start, stop), stop exclusive, never empty, in the order they were asked for; those
    that lie outside the file are left out. The whole file is the answer to an invalid range
    of bytes, to more than five ranges, to overlapping ones (RFC 9110 §14.2 lets a server
    ignore any Range), and to the end of an empty file (`-5`), which has no other form.

    Raises:
        RangeNotSatisfiable: every range lies outside the file.
    """
    if value is None or len(value) > _MAX_RANGE_CHARACTERS:
        return None
    unit, _, listed = value.partition("=")
    if unit.lower() != "bytes":
        return None
    asked = [text for element in listed.split(",") if (text := element.strip(" \t"))]
    if not 1 <= len(asked) <= MAX_RANGES:
        return None
    found: list[tuple[int, int]] = []
    for text in asked:
        match = _RANGE.fullmatch(text)
        if match is None or text == "-":
            return None
        first, last = match.groups()
        if not first:
            start, stop = max(0, size - int(last)), size
            if size == 0 and int(last) > 0:
                return None
        else:
            start, stop = int(first), min(size, int(last) + 1) if last else size
            if last and int(last) < start:
                return None
        if start < stop:
            found.append((start, stop))
    if not found:
        raise RangeNotSatisfiable(size)
    if any(stop > following for (_, stop), (following, _) in pairwise(sorted(found))):
        return None
    return found


_ENTITY_TAG = re.compile(r'[ \t]*+(?:(W/)?("[\x21\x23-\x7e\x80-\xff]*+")[ \t]*+)?(?:,|\Z)')


def etag(sha256: str) -> str:
    """The strong entity tag of the file with this digest, in hex."""
    return f'"sha256-{sha256}"'


def matches(value: str, tag: str, *, weak: bool) -> bool:
    """Whether an If-Match or If-None-Match names `tag`: in its list, or by `*`.

    `weak` compares as If-None-Match does: `W/"x"` is `"x"`. Otherwise, as for If-Match and
    If-Range, a weak tag matches nothing. A list that breaks the grammar names nothing.
    """
    if value.strip(" \t") == "*":
        return True
    named = False
    at = 0
    while at < len(value):
        match = _ENTITY_TAG.match(value, at)
        if match is None:
            return False
        at = match.end()
        named |= match.group(2) == tag and (weak or match.group(1) is None)
    return named


def http_date(time_us: int) -> str:
    """The time, microseconds since 1970 UTC, as `Sun, 06 Nov 1994 08:49:37 GMT`; parts of a second are cut off."""
    return formatdate(time_us // 1_000_000, usegmt=True)


def parse_http_date(value: str) -> int | None:
    """Seconds since 1970 UTC of a date in any of HTTP's three forms, None when it is not a date."""
    if len(value) > _MAX_DATE_CHARACTERS:
        return None
    try:
        moment = parsedate_to_datetime(value)
        if moment.tzinfo is None:  # asctime's form has no zone; in HTTP it means UTC
            moment = moment.replace(tzinfo=UTC)
        return microseconds(moment) // 1_000_000
    except (ValueError, OverflowError):
        return None
