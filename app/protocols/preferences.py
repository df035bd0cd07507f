"""Preferences: what a client accepts, and which of it it would rather have (RFC 9110 §12.4)."""

import re
from collections.abc import Sequence
from typing import Final, NamedTuple

_MOST_NAMES: Final = 100
"""How many names of a client count: nobody means more, and reading 64 KiB of commas takes long."""
_WEIGHT = re.compile(r"[Qq]=(0(?:\.[0-9]{0,3})?|1(?:\.0{0,3})?)")


class Preference(NamedTuple):
    """A weight from 0, not acceptable, to 1; of equal weights the one that stands first, which is the larger one."""

    weight: float
    place: int


def preferences(fields: Sequence[str]) -> dict[str, Preference]:
    """The preference for each name, in lower case, in all fields of an Accept header; the first of a name counts."""
    found: dict[str, Preference] = {}
    for place, element in enumerate(",".join(fields).split(",", _MOST_NAMES)[:_MOST_NAMES]):
        name, *parameters = (text.strip(" \t") for text in element.split(";"))
        weight = next((float(match[1]) for text in parameters if (match := _WEIGHT.fullmatch(text))), 1.0)
        if name:
            found.setdefault(name.lower(), Preference(weight, -place))
    return found
