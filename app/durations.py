"""Durations as people write them: `30d`, `12h`, `10min`, `90s`."""

import re
from datetime import timedelta

_NUMBER = re.compile(r"(0|[1-9][0-9]{0,18})([A-Za-z]*)")
_DURATIONS = {
    "ms": timedelta(milliseconds=1),
    "s": timedelta(seconds=1),
    "min": timedelta(minutes=1),
    "h": timedelta(hours=1),
    "d": timedelta(days=1),
}
_SHORTEST, _LONGEST = timedelta(seconds=1), timedelta(days=36_500)  # a century still fits behind any date


def duration(value: object) -> timedelta:
    """The duration that a text such as `30d` names; raises ValueError."""
    found = value if isinstance(value, timedelta) else None
    number, unit = parted(value)
    if number is not None and unit in _DURATIONS and number <= _LONGEST // _DURATIONS[unit]:
        found = number * _DURATIONS[unit]
    if found is None or not _SHORTEST <= found <= _LONGEST:
        raise ValueError("expected a duration from 1s to 36500d, such as 30d, 12h, 10min, 90s or 1500ms")
    return found


def parted(value: object) -> tuple[int | None, str]:
    """Split `10MiB` into number and unit; the number is None when the text is not written exactly so."""
    if type(value) is int:  # not a bool, which is an int, too
        return value, ""
    match = _NUMBER.fullmatch(value) if isinstance(value, str) else None
    return (int(match[1]), match[2]) if match else (None, "")
