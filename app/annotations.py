"""Annotations: what a client adds to a file beside its name and type."""

import re
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, Final, NamedTuple

from pydantic_core import from_json, to_json

MAX_METADATA_PAIRS: Final = 64
MAX_METADATA_BYTES: Final = 8192

_METADATA_NAME = re.compile(r"[A-Za-z0-9._-]{1,64}")
_UNSENDABLE = re.compile(r"[\x00\ud800-\udfff]")


class Annotations(NamedTuple):
    """Additions of a client to a file: pairs of texts, its path in a folder, how long to keep it once completed."""

    metadata: Mapping[str, str] = MappingProxyType({})
    path: str | None = None
    keep_us: int | None = None


NO_ANNOTATIONS: Final = Annotations()


def sendable(text: str) -> str:
    """Return the text, which can be stored and sent; raises ValueError if it cannot."""
    if _UNSENDABLE.search(text):
        raise ValueError("text must be free of NUL and lone surrogates")
    return text


def is_metadata_name(name: str) -> bool:
    """Whether `name` can name a pair of an upload's metadata."""
    return _METADATA_NAME.fullmatch(name) is not None


def checked_metadata(pairs: dict[str, str]) -> dict[str, str]:
    """Return the pairs; raises ValueError for a bad name or text, more than 64 pairs, or more than 8 KiB in all."""
    if not pairs:
        return pairs
    for name, value in pairs.items():
        if not is_metadata_name(name):
            raise ValueError("a name in metadata is 1 to 64 of the characters A-Z a-z 0-9 . _ -")
        sendable(value)
    if len(pairs) > MAX_METADATA_PAIRS:
        raise ValueError(f"metadata has at most {MAX_METADATA_PAIRS} pairs")
    if sum(len(name) + len(value.encode()) for name, value in pairs.items()) > MAX_METADATA_BYTES:
        raise ValueError(f"metadata has at most {MAX_METADATA_BYTES} bytes, names and values together")
    return pairs


def metadata_json(pairs: Mapping[str, str]) -> str:
    """The pairs as they are stored: a JSON object without spaces, so that a pair can be found in it as text."""
    return to_json(dict(pairs)).decode()


def stored_pairs(text: str | None) -> Any:
    """The stored pairs; what cannot be read is returned as it is, for the model to refuse."""
    if text is None:
        return {}
    try:
        return from_json(text)
    except ValueError:
        return text
