"""Display of what a command does: bars on a terminal, a JSON object a line for programs."""

import json
import sys
from typing import Protocol, Self

from app.client.outcomes import Outcome


class Audience(Protocol):
    """A reader of how the work goes on: a person at a terminal, or a program that takes JSON lines."""

    def __enter__(self) -> Self: ...
    def __exit__(self, kind: object, error: object, trace: object, /) -> None: ...
    def planned(self, files: int, size: int) -> None: ...
    def begun(self, file: str, size: int) -> None: ...
    def moved(self, file: str, offset: int) -> None: ...
    def ended(self, outcome: Outcome) -> None: ...
    def note(self, text: str) -> None: ...


def printed(document: object) -> None:
    """Print a document as one line of JSON, at once."""
    sys.stdout.write(json.dumps(document, ensure_ascii=False) + "\n")
    sys.stdout.flush()


def readable(size: float) -> str:
    """A size as people read it: 1.5 MiB."""
    for unit in ("B", "KiB", "MiB", "GiB"):
        if size < 1024:
            return f"{size:.0f} {unit}" if unit == "B" else f"{size:.1f} {unit}"
        size /= 1024
    return f"{size:.1f} TiB"


def plain(text: str) -> str:
    """The text, escaped so that it can neither end the line nor move the terminal's cursor."""
    return "".join(char if char.isprintable() else char.encode("unicode_escape").decode("ascii") for char in text)


class Lines:
    """One JSON object for each file that has ended."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: object, error: object, trace: object, /) -> None: ...

    def planned(self, files: int, size: int) -> None: ...
    def begun(self, file: str, size: int) -> None: ...
    def moved(self, file: str, offset: int) -> None: ...

    def ended(self, outcome: Outcome) -> None:
        printed(outcome.as_dict())

    def note(self, text: str) -> None:
        sys.stderr.write(f"{plain(text)}\n")
        sys.stderr.flush()


def audience(*, as_json: bool) -> Audience:
    """The bars where a person looks, JSON lines elsewhere."""
    if as_json or not sys.stdout.isatty():
        return Lines()
    from app.client.bars import Bars  # its library takes longer to load than many a file to send

    return Bars()
