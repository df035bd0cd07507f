"""File names as clients give them: cleaned for display, never a path."""

import re
import unicodedata
from typing import Final

from app.errors import BadFilename
from app.model import MAX_FILENAME_BYTES, MAX_PATH_BYTES

UNNAMED: Final = "unnamed"

# Bidi and zero-width controls, but for the two joiners, which are spelling in Persian, Hindi and emoji.
_INVISIBLE = re.compile("[\u061c\u180e\u200b\u200e\u200f\u202a-\u202e\u2060-\u206f\ufeff]")
_JOINERS = "\u200c\u200d"
_REFUSED = re.compile(r"[\x00-\x1f\x7f-\x9f\ud800-\udfff]")
_SEPARATOR = re.compile(r"[/\\]")
_SLASH = re.compile("/")
_DRIVE = re.compile(r"[A-Za-z]:")
_SPACES = " \u00a0\u1680\u2000\u2001\u2002\u2003\u2004\u2005\u2006\u2007\u2008\u2009\u200a\u202f\u205f\u3000"
# Most names match this, and need none of the work below.
_CLEAN = re.compile(rf"(?!\.{{1,2}}\Z)[!-.0-\[\]-~](?:[ -.0-\[\]-~]{{0,{MAX_FILENAME_BYTES - 2}}}[!-.0-\[\]-~])?")
# No composed character has less than a quarter of its parts' bytes, so NFC makes no name shorter than that.
_MAX_BYTES_BEFORE_NFC = 4 * MAX_FILENAME_BYTES


def safe_filename(raw: str | bytes) -> str:
    r"""Clean the name a client gave a file, as data for display; never a path.

    Strict UTF-8, in NFC, the last path element only (`/` and `\` both separate), without
    bidi and zero-width controls (the joiners U+200C and U+200D stay) and without surrounding
    spaces; what is then empty, `.` or `..` becomes `unnamed`. Cleaning a clean name changes nothing.

    Raises:
        BadFilename: control characters, broken UTF-8 or lone surrogates, more than 255 bytes.
    """
    name = _decoded(raw)
    return name if _CLEAN.fullmatch(name) else _cleaned(_SEPARATOR.split(name)[-1]) or UNNAMED


def relative_path(raw: str | bytes, *, backslash: bool = True) -> str | None:
    r"""Clean the path that a client gave a file in a folder, as data for display; None if it names no folder.

    Its elements are cleaned like filenames; empty ones, `.`, `..` and a drive (`C:`) are dropped.
    `\` separates like `/` unless that is switched off. The path's last element is the filename.

    Raises:
        BadFilename: as in `safe_filename`, or more than 1,024 bytes.
    """
    elements = (_SEPARATOR if backslash else _SLASH).split(_decoded(raw))
    if len(elements) < 2:
        return None
    if _DRIVE.fullmatch(elements[0]):
        del elements[0]
    cleaned = [name for element in elements if (name := _cleaned(_SEPARATOR.split(element)[-1]))]
    path = "/".join(cleaned)
    if len(path.encode()) > MAX_PATH_BYTES:
        raise BadFilename(f"a path has at most {MAX_PATH_BYTES} bytes of UTF-8")
    return path if len(cleaned) > 1 else None


def _decoded(raw: str | bytes) -> str:
    try:
        text = raw.decode() if isinstance(raw, bytes) else raw
    except UnicodeDecodeError:
        raise BadFilename("a filename must be well-formed UTF-8") from None
    if _REFUSED.search(text):
        raise BadFilename("a filename must be well-formed UTF-8 without control characters")
    return text


def _cleaned(element: str) -> str:
    """The clean form of a path's element; empty if nothing of it is left."""
    name = _INVISIBLE.sub("", element).strip(_SPACES)
    # Normalised only now, since the removed characters may have separated two others; and only
    # when short, since a long run of combining marks takes quadratic time to put in order.
    if len(name.encode()) <= _MAX_BYTES_BEFORE_NFC:
        name = unicodedata.normalize("NFC", name)
    if len(name.encode()) > MAX_FILENAME_BYTES:
        raise BadFilename(f"a filename has at most {MAX_FILENAME_BYTES} bytes of UTF-8")
    return "" if name.strip(_JOINERS) in {"", ".", ".."} else name


def searched_name(text: str) -> str:
    """The part of a clean name that a search for `text` looks for: cleaned as `safe_filename` cleans a name.

    A text of which nothing would remain is looked for unchanged.
    """
    shown = _INVISIBLE.sub("", _SEPARATOR.split(text)[-1]).strip(_SPACES)
    return unicodedata.normalize("NFC", shown) or text
