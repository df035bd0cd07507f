"""Annotations as requests carry them: in headers, in the metadata of tus, in the fields of a form."""

from collections.abc import Mapping
from contextlib import suppress
from datetime import timedelta
from typing import Any, Final, cast

import http_sf

from app.annotations import (
    MAX_METADATA_BYTES,
    NO_ANNOTATIONS,
    Annotations,
    checked_metadata,
    is_metadata_name,
    sendable,
)
from app.durations import duration
from app.errors import BadMetadata, BadRequest
from app.protocols.filenames import relative_path
from app.protocols.intents import Headers, single

FIELD: Final = "metadata."
"""The names of a form's fields with metadata begin so."""
EXPIRES_IN: Final = "expires_in"
"""The form field, and the key in the metadata of tus, that say how long to keep a completed upload."""

_MOST_CHARACTERS = 48 * 1024
_PATHS = ("relativePath", "webkitRelativePath")
NOT_METADATA = frozenset({"filename", "name", "filetype", "type", EXPIRES_IN, *_PATHS})
_MICROSECOND = timedelta(microseconds=1)


def of_request(headers: Headers, pairs: Mapping[str, bytes]) -> Annotations:
    """The annotations of a request whose body is a file: in its headers, and in the `pairs` of its Upload-Metadata.

    Waybill-Metadata is a dictionary of texts (RFC 9651 §3.2). Pairs that cannot be metadata are left out, as other
    servers of tus do. Where both say something, the headers count.

    Raises:
        BadFilename: the path cannot be shown.
        BadMetadata: Waybill-Metadata is no such dictionary; there are too many pairs, or too many bytes in them.
        BadRequest: the duration cannot be read.
    """
    if not pairs and "waybill-metadata" not in headers and "waybill-expires-in" not in headers:
        return NO_ANNOTATIONS
    field = ", ".join(headers.getlist("waybill-metadata")).strip(" \t")
    expires_in = single(headers, "waybill-expires-in")
    if expires_in is None and EXPIRES_IN in pairs:
        expires_in = pairs[EXPIRES_IN].decode("latin-1")
    path = next((pairs[name] for name in _PATHS if pairs.get(name)), b"")
    return Annotations(
        _checked({**_of_pairs(pairs), **_of_field(field)}),
        None if path == b"null" else relative_path(path),
        _keep_us(expires_in),
    )


def _of_field(field: str) -> dict[str, str]:
    if len(field) > _MOST_CHARACTERS:
        raise BadMetadata(f"Waybill-Metadata has at most {_MOST_CHARACTERS} characters")
    try:
        parsed = http_sf.parse(field.encode("latin-1"), tltype="dictionary") if field else {}
    except http_sf.StructuredFieldError:
        raise BadMetadata('Waybill-Metadata looks like name="value", other=token') from None
    found: dict[str, str] = {}
    for name, (value, _) in cast("dict[str, tuple[object, object]]", parsed).items():
        if not isinstance(value, str | http_sf.Token | http_sf.DisplayString):
            raise BadMetadata(f"the value of {name} in Waybill-Metadata is no string, token or display string")
        found[name] = str(value)
    return found


def _of_pairs(pairs: Mapping[str, bytes]) -> dict[str, str]:
    found: dict[str, str] = {}
    for name, value in pairs.items():
        if name not in NOT_METADATA and is_metadata_name(name):
            with suppress(ValueError):
                found[name] = sendable(value.decode())
    return found


def metadata_field(pairs: Mapping[str, str]) -> str:
    """The Waybill-Metadata that says these pairs, whose names are in lower case."""
    items: Any = {name: _item(value) for name, value in pairs.items()}
    return http_sf.ser(items)


def _item(text: str) -> str | http_sf.DisplayString:
    return text if text.isascii() and text.isprintable() else http_sf.DisplayString(text)


class FormAnnotations:
    """The annotations in the fields of a form, which count for all of its files. Feed it the fields."""

    def __init__(self) -> None:
        self._fields: dict[str, bytearray] = {}
        self._value: bytearray | None = None
        self._size = 0

    def begin(self, name: str) -> None:
        """Begin a plain field.

        Raises:
            BadMetadata: its name cannot be that of metadata, or is repeated.
        """
        self._value = None
        if name == EXPIRES_IN or name.startswith(FIELD):
            if name in self._fields or not (name == EXPIRES_IN or is_metadata_name(name.removeprefix(FIELD))):
                raise BadMetadata("a form names each pair once, in a field metadata.NAME")
            self._value = self._fields[name] = bytearray()

    def write(self, data: bytes | memoryview) -> None:
        """Take the next bytes of the field that was begun; raises BadMetadata once there are too many in all."""
        if self._value is not None:
            self._size += len(data)
            if self._size > MAX_METADATA_BYTES:  # now, not in the end: a form may have many fields
                raise BadMetadata(f"metadata has at most {MAX_METADATA_BYTES} bytes, names and values together")
            self._value += data

    def read(self, expires_in: str | None) -> Annotations:
        """The annotations, once all fields are there; `expires_in` counts where no field says it.

        Raises:
            BadMetadata: a value is not UTF-8, or there are too many.
            BadRequest: the duration cannot be read.
        """
        if not self._fields and expires_in is None:
            return NO_ANNOTATIONS
        wanted = self._fields.pop(EXPIRES_IN, None)
        try:
            pairs = {name.removeprefix(FIELD): value.decode() for name, value in self._fields.items()}
        except UnicodeDecodeError:
            raise BadMetadata("the values of metadata are UTF-8") from None
        return Annotations(_checked(pairs), None, _keep_us(wanted.decode("latin-1") if wanted else expires_in))


def _keep_us(expires_in: str | None) -> int | None:
    """How long to keep a completed upload, in microseconds; None if nothing is said; raises BadRequest."""
    if not expires_in:
        return None
    try:
        return duration(expires_in) // _MICROSECOND
    except ValueError as error:
        raise BadRequest(f"of the time after which an upload expires: {error}") from None


def _checked(pairs: dict[str, str]) -> dict[str, str]:
    try:
        return checked_metadata(pairs)
    except ValueError as error:
        raise BadMetadata(str(error)) from None
