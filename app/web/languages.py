"""Languages: the texts of the page, and how numbers, sizes and times are written in each of them."""

import json
from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime
from functools import cache
from math import floor
from pathlib import Path
from string import Formatter
from typing import Final

from app.protocols.preferences import Preference, preferences

DEFAULT: Final = "en"
_DIRECTORY: Final = Path(__file__).parent / "static/languages"
_DECIMAL: Final = ("kB", "MB", "GB", "TB", "PB", "EB")
_BINARY: Final = ("MiB", "GiB", "TiB", "PiB")
_MIB: Final = 1024 * 1024
_SIZES: Final = {
    "incomplete_body": {"received", "declared"},
    "inconsistent_upload_length": {"known", "given"},
    "offset_mismatch": {"expected-offset", "provided-offset"},
    "quota_exceeded": {"used", "asked", "limit"},
    "request_too_large": {"received", "limit"},
    "too_large": {"received", "limit"},
}
"""The members of problems that are sizes in bytes, unless their `unit` says otherwise."""


class Language:
    """One language: its texts by key, `{name}` in them standing for a value."""

    def __init__(self, code: str, texts: Mapping[str, str]) -> None:
        self.code = code
        self.texts = texts
        self.direction = texts["direction"]

    def text(self, key: str, **values: object) -> str:
        """The text of a key with these values; `count` chooses between the key's plural forms."""
        if "count" in values:
            key = f"{key}.{plural(values['count'])}"
        return self.texts[key].format_map({name: self._shown(value) for name, value in values.items()})

    def refusal(self, code: str, members: Mapping[str, int | str]) -> str:
        """The sentence for a problem: with its members, as far as they are known."""
        unit = members.get("unit", "bytes")
        sizes = _SIZES.get(code, set()) if unit == "bytes" else set()
        values = {
            name: self.size(value) if name in sizes and isinstance(value, int) else self._shown(value)
            for name, value in members.items()
        }
        keys = [f"problem.{code}.{unit}", f"problem.{code}", f"problem.{code}.short"]
        known = [key for key in keys if key in self.texts and placeholders(self.texts[key]) <= values.keys()]
        return self.texts[known[0] if known else "problem.unknown"].format_map(values)

    def size(self, size: int) -> str:
        """A size as people say it: `4.1 MB`; one that is so many MiB or GiB exactly, as limits are, as `5 GiB`."""
        if size >= _MIB and size % _MIB == 0:
            number, unit = size // _MIB, 0
            while number % 1024 == 0 and unit < len(_BINARY) - 1:
                number, unit = number // 1024, unit + 1
            if number < 10_000:
                return f"{self._number(number)}\N{NO-BREAK SPACE}{_BINARY[unit]}"
        if size < 1000:
            return self.text("bytes", count=size)
        value, unit = size / 1000, 0
        while value >= 999.5 and unit < len(_DECIMAL) - 1:
            value, unit = value / 1000, unit + 1
        value = floor(value * 10 + 0.5) / 10 if value < 9.95 else floor(value + 0.5)
        return f"{self._number(value, 0 if value == int(value) else 1)}\N{NO-BREAK SPACE}{_DECIMAL[unit]}"

    def moment(self, text: str) -> str:
        """A time of the API in this language. It is UTC: the server does not know where its reader is."""
        moment = datetime.fromisoformat(text).astimezone(UTC)
        month = self.texts["months"].split(" ")[moment.month - 1]
        return self.texts["moment"].format(day=moment.day, month=month, year=moment.year, time=f"{moment:%H:%M}")

    def _shown(self, value: object) -> str:
        return self._number(value) if isinstance(value, int) else str(value)

    def _number(self, number: float, digits: int = 0) -> str:
        mark = self.texts["decimal"]
        english = f"{number:,.{digits}f}"
        return english if mark == "." else english.translate({ord(","): ".", ord("."): mark})


def placeholders(text: str) -> set[str]:
    """The names that stand in a text's braces."""
    return {name for _, name, _, _ in Formatter().parse(text) if name is not None}


def plural(count: object) -> str:
    """The plural category of a whole number, which is the same in all our languages: of English, of German."""
    return "one" if count == 1 else "other"


@cache
def languages() -> dict[str, Language]:
    """All languages by their codes, each read from its file once."""
    texts = {path.stem: json.loads(path.read_text(encoding="utf-8")) for path in sorted(_DIRECTORY.glob("*.json"))}
    return {code: Language(code, found) for code, found in texts.items()}


def preferred(accept_language: Sequence[str]) -> Language:
    """The language that a client would rather read than any other that we have (RFC 4647 §3.4, lookup)."""
    known = languages()
    wanted: dict[str, Preference] = {}
    for name, preference in preferences(accept_language).items():
        code = _code(name, known)
        if code is not None and preference.weight > 0:
            wanted[code] = max(preference, wanted.get(code, preference))
    best = max(wanted, key=lambda code: wanted[code], default=DEFAULT)
    return known[best]


def _code(name: str, known: Iterable[str]) -> str | None:
    """Our language for a client's `de-at`; the default one for `*`."""
    primary = name.partition("-")[0]
    return DEFAULT if primary == "*" else primary if primary in known else None
