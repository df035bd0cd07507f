"""The types of settings: how each is written, and what each text means.

Every type below reads a text, or a value that is already of its kind, and refuses all that is not written exactly so.
The text of an error completes the sentence "WAYBILL_NAME is 'found', …"; for the two secrets it completes
"WAYBILL_NAME: …", and never repeats any part of the value.
"""

import json
import re
from collections.abc import Sequence
from datetime import timedelta
from ipaddress import ip_address, ip_network
from pathlib import Path
from typing import Annotated, Any, Final, get_args
from urllib.parse import unquote, urlsplit

from pydantic import BeforeValidator, SecretStr

from app.config import postgresql_url
from app.durations import duration, parted
from app.model import MAX_SIZE

MIN_KEY_CHARACTERS: Final = 32

KiB: Final = 1024
MiB: Final = 1024 * KiB
GiB: Final = 1024 * MiB
TiB: Final = 1024 * GiB

_SIZES = {"": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "TB": 10**12, "KiB": KiB, "MiB": MiB, "GiB": GiB, "TiB": TiB}
_LABEL = r"[a-z0-9](?:[a-z0-9-]{0,61}[a-z0-9])?"
_HOST_NAME = re.compile(rf"(?=.{{1,253}}\Z)(?:{_LABEL}\.)*(?=[a-z]){_LABEL}")  # the last label begins with a letter
# The origin of an app in a web view, or of a browser extension: a scheme of its own, and no host name.
_APP_ORIGIN = re.compile(
    r"(?!(?:https?|wss?|ftp|file|data|blob|about|javascript):)[a-z][a-z0-9+.-]*://[a-z0-9](?:[a-z0-9.-]*[a-z0-9])?"
)
_BASE_PATH = re.compile(r"(?:/(?!\.{1,2}(?:/|\Z))[A-Za-z0-9._~-]+)+")
_NOT_IN_URL = re.compile(r"[\x00-\x20\x7f-\xa0#\ud800-\udfff]")
_OLDEST_INTEROP: Final = 5  # before it, fields had other names and meanings
_ORDINALS = ("first", "second", "third")
_SQLITE = "sqlite:///path/to/file.db"


def whole_number(least: int, most: int) -> BeforeValidator:
    def read(value: object) -> int:
        number, unit = parted(value)
        if number is None or unit or not least <= number <= most:
            raise ValueError(f"expected a whole number from {least} to {most}")
        return number

    return BeforeValidator(read)


def one_of(words: Any) -> BeforeValidator:
    """A validator that takes exactly one of the texts of a `Literal`."""

    def read(value: object) -> object:
        if value not in get_args(words):
            raise ValueError(f"expected {' or '.join(get_args(words))}")
        return value

    return BeforeValidator(read)


def _size(least: int) -> BeforeValidator:
    def read(value: object) -> int:
        number, unit = parted(value)
        if number is None or unit not in _SIZES or not least <= (size := number * _SIZES[unit]) <= MAX_SIZE:
            allowed = "a size above 0" if least else "a size, or 0"
            raise ValueError(f"expected {allowed}, such as 10MiB, 10MB or a plain number of bytes")
        return size

    return BeforeValidator(read)


def _yes_or_no(value: object) -> bool:
    words = {"true": True, "false": False, True: True, False: False}
    if not isinstance(value, str | bool) or value not in words:
        raise ValueError("expected true or false")
    return words[value]


def _entries(value: object) -> tuple[str, ...]:
    """The entries of `a, b` or `["a", "b"]`; none of an empty text."""
    entries: object = value
    if isinstance(value, str) and value.startswith("["):
        try:
            entries = json.loads(value)
        except (ValueError, RecursionError):
            raise ValueError("expected a JSON list after the opening bracket") from None
    elif isinstance(value, str):
        entries = [entry.strip() for entry in value.split(",")] if value.strip() else []
    if not isinstance(entries, Sequence) or isinstance(entries, str) or not all(isinstance(e, str) for e in entries):
        raise ValueError("expected a list of texts")
    return tuple(entries)


def _versions(value: object) -> tuple[int, ...]:
    entries = [str(entry) if type(entry) is int else entry for entry in value] if isinstance(value, tuple) else value
    numbers = [number if not unit else None for number, unit in map(parted, _entries(entries))]
    if not all(number is not None and _OLDEST_INTEROP <= number < 100 for number in numbers):
        raise ValueError(f"expected versions from {_OLDEST_INTEROP} on, such as 6, 10")
    return tuple(number for number in numbers if number is not None)


def _path(value: object) -> Path:
    text = str(value) if isinstance(value, Path) else value
    if not isinstance(text, str) or not text.isprintable() or text != text.strip() or text[:1] in {"", "~"}:
        raise ValueError("expected a path such as /var/lib/waybill (~ is not expanded)")
    return Path(text)


def _image_path(value: object) -> Path | None:
    return None if value is None else _path(value)


def _title(value: object) -> str:
    if not isinstance(value, str) or not value.isprintable() or value != value.strip() or not 0 < len(value) <= 100:
        raise ValueError("expected 1 to 100 printable characters, without spaces around them")
    return value


def _keys(value: object) -> tuple[str, ...]:
    if isinstance(value, Sequence) and not isinstance(value, str):
        value = [key.get_secret_value() if isinstance(key, SecretStr) else key for key in value]
    keys = _entries(value)
    faults = []
    for at, key in enumerate(keys):
        name = _ORDINALS[at] if at < len(_ORDINALS) else f"{at + 1}th"
        if len(key) < MIN_KEY_CHARACTERS:
            faults.append(f"the {name} key has {len(key)} characters, needs {MIN_KEY_CHARACTERS} or more")
        elif re.search(r"[\ud800-\udfff]", key):
            faults.append(f"the {name} key is not UTF-8 text")
    if faults:
        raise ValueError("; ".join(faults))
    return keys


def _database_url(value: object) -> str:
    """Check a database URL: every part of it will be used as it is written."""
    text = value.get_secret_value() if isinstance(value, SecretStr) else value
    if not isinstance(text, str) or not text:
        raise ValueError(f"is empty, expected {_SQLITE} or {postgresql_url.EXAMPLE}")
    if _NOT_IN_URL.search(text):
        raise ValueError("has a space, a control character or a # in it, expected them as %20, %0A or %23")
    try:
        is_text = "\0" not in unquote(text, errors="strict")
    except ValueError:  # its own text repeats parts of the URL
        is_text = False
    if text.startswith("sqlite:///") and is_text:
        _check_sqlite(unquote(urlsplit(text).path)[1:], options="?" in text)
    elif text.startswith("postgresql://") and is_text:
        postgresql_url.parse(text)
    elif not is_text:
        raise postgresql_url.MalformedUrl
    else:
        scheme = re.match(r"([A-Za-z][A-Za-z0-9+.-]{0,19}):/", text)
        found = f"the scheme is {scheme[1]!r}" if scheme else "there is no scheme"
        raise ValueError(f"{found}, expected {_SQLITE} or {postgresql_url.EXAMPLE}")
    return text


def _schema_name(value: object) -> str:
    if isinstance(value, str) and re.fullmatch(r"(?!pg_|information_schema$)[a-z_][a-z0-9_]{0,62}|", value):
        return value
    raise ValueError("expected a name of lower-case letters, digits and _, such as waybill")


def _check_sqlite(path: str, *, options: bool) -> None:
    if options:  # the driver would append them to the file's name
        raise ValueError("has options, expected none with sqlite; a ? in the path is written %3F")
    if path == ":memory:" or path.startswith("file:"):
        raise ValueError(f"names a database that keeps nothing, or a second URL, expected {_SQLITE}")
    if not path or path.endswith("/"):
        raise ValueError(f"names no file, expected {_SQLITE}")


def _host(value: object) -> str:
    if isinstance(value, str) and (_is_address(value) or _HOST_NAME.fullmatch(value.lower())):
        return value
    raise ValueError("expected an address or a host name without a port, such as 127.0.0.1")


def _base_path(value: object) -> str:
    if isinstance(value, str) and (not value or (len(value) <= 200 and _BASE_PATH.fullmatch(value))):
        return value
    raise ValueError("expected a path such as /uploads: letters, digits, - . _ ~ between slashes, none at its end")


def _listen(value: object) -> str | None:
    if value is None:
        return None
    if isinstance(value, str) and (
        value == "systemd"
        or re.fullmatch(r"fd:(0|[1-9][0-9]{0,5})", value)
        or (value.startswith("unix:") and value.isprintable() and value == value.strip() and 5 < len(value) <= 105)
    ):
        return value
    raise ValueError("expected unix:/path/of/a/socket (100 characters at most), fd:N or systemd")


def _origins(value: object) -> tuple[str, ...]:
    """Origins exactly as browsers write them, because they are compared as text."""
    origins = _entries(value)
    for origin in origins:
        match = re.fullmatch(r"(https?)://(\[[0-9a-f:.]+\]|[a-z0-9.-]+)(?::([1-9][0-9]{0,4}))?", origin)
        is_web = match and _is_authority(match[2]) and _is_port(match[3], of=match[1])
        if not is_web and not _APP_ORIGIN.fullmatch(origin):
            raise ValueError(
                "expected origins as browsers write them, such as https://example.com, http://localhost:3000 or "
                "capacitor://localhost: lower case, no path, no port that the scheme implies"
            )
    return origins


def _is_authority(host: str) -> bool:
    if host.startswith("["):
        return _is_address(host[1:-1]) and str(ip_address(host[1:-1])) == host[1:-1]
    return bool(_HOST_NAME.fullmatch(host)) or _is_address(host)


def _is_port(port: str | None, *, of: str) -> bool:
    return port is None or (int(port) < 65_536 and port != {"http": "80", "https": "443"}[of])


def _proxies(value: object) -> tuple[str, ...]:
    proxies = _entries(value)
    try:
        for proxy in proxies if proxies != ("*",) else ():
            if proxy != "unix":
                ip_network(proxy)
    except ValueError:
        raise ValueError(
            "expected addresses or networks such as 10.0.0.0/8, unix for a socket file, or * alone for any"
        ) from None
    return proxies


def _is_address(text: str) -> bool:
    try:
        ip_address(text)
    except ValueError:
        return False
    return True


Size = Annotated[int, _size(least=0)]
"""Bytes."""
SizeAboveZero = Annotated[int, _size(least=1)]
"""Bytes."""
Duration = Annotated[timedelta, BeforeValidator(duration)]
YesOrNo = Annotated[bool, BeforeValidator(_yes_or_no)]
Versions = Annotated[tuple[int, ...], BeforeValidator(_versions)]
Directory = Annotated[Path, BeforeValidator(_path)]
ImagePath = Annotated[Path | None, BeforeValidator(_image_path)]
Title = Annotated[str, BeforeValidator(_title)]
DatabaseUrl = Annotated[SecretStr, BeforeValidator(_database_url)]
"""Secret for its password. sqlite with a file, or postgresql with a host and a database."""
SchemaName = Annotated[str, BeforeValidator(_schema_name)]
Keys = Annotated[tuple[SecretStr, ...], BeforeValidator(_keys)]
Host = Annotated[str, BeforeValidator(_host)]
BasePath = Annotated[str, BeforeValidator(_base_path)]
Listen = Annotated[str | None, BeforeValidator(_listen)]
Origins = Annotated[tuple[str, ...], BeforeValidator(_origins)]
Proxies = Annotated[tuple[str, ...], BeforeValidator(_proxies)]
