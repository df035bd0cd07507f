"""Outcomes: what became of each file that a command was to send or fetch."""

from typing import Any, Literal, NamedTuple

Fate = Literal["sent", "fetched", "unchanged", "would_send", "failed"]


class Outcome(NamedTuple):
    """Result for one file. `known` was sent or fetched before, and is unchanged."""

    path: str
    fate: Fate
    size: int | None = None
    id: str | None = None
    sha256: str | None = None
    code: str | None = None
    detail: str = ""

    def as_dict(self) -> dict[str, Any]:
        """The outcome as it is printed in JSON."""
        return {
            "path": self.path.encode("utf-8", "surrogateescape").decode("utf-8", "replace"),
            "status": self.fate,
            "id": self.id,
            "sha256": self.sha256,
            "size": self.size,
            "error": None if self.code is None else {"code": self.code, "detail": self.detail},
        }
