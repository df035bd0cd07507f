"""History queries: their filters, their orders, and the pages that answer them."""

import re
from typing import Annotated, Literal, NamedTuple

from pydantic import BaseModel, ConfigDict, Field

from app.annotations import metadata_json
from app.model import MAX_FILENAME_BYTES, Digest, Protocol, Size, Status, Text, Timestamp, Upload, UploadId, folded


class Position(NamedTuple):
    """The end of a page of history: the sort key of its last row."""

    created_at_us: int
    id: str


class Place(NamedTuple):
    """The same in a search: a sort key as text, and the id behind it."""

    key: str
    id: str


Order = Literal["newest", "oldest", "name", "-name", "size", "-size"]


class HistoryQuery(BaseModel):
    """The filters of a history query. None means: no such filter; neither does an empty tuple filter."""

    model_config = ConfigDict(frozen=True, strict=True, extra="forbid")

    statuses: tuple[Status, ...] = ()
    filename: Annotated[Text, Field(min_length=1, max_length=MAX_FILENAME_BYTES)] | None = None
    from_us: Timestamp | None = None
    to_us: Timestamp | None = None
    sha256: Digest | None = None
    protocol: Protocol | None = None
    min_size: Size | None = None
    max_size: Size | None = None
    ids: tuple[UploadId, ...] = ()
    content_types: tuple[Annotated[Text, Field(min_length=1)], ...] = ()
    """Media types, exact, or all of one kind: `image/*`."""
    path: Annotated[Text, Field(min_length=1)] | None = None
    metadata: tuple[tuple[str, Text], ...] = ()
    """Pairs of a name and a value, all of which an upload must have."""
    order: Order = "newest"

    @property
    def is_search(self) -> bool:
        """Whether no index answers the query, so that all of a session's records are looked at."""
        return bool(self.ids or self.content_types or self.path or self.metadata) or self.order not in {
            "newest",
            "oldest",
        }

    @property
    def filename_pattern(self) -> str | None:
        r"""The filter as a LIKE pattern over folded names, with `\` as its escape.

        Without `*` and `?` the text is looked for anywhere in the name; with them it must
        match the whole name. `%` and `_` are ordinary characters.
        """
        if self.filename is None:
            return None
        pattern = _pattern(self.filename)
        return pattern if "*" in self.filename or "?" in self.filename else f"%{pattern}%"

    @property
    def path_pattern(self) -> str | None:
        """The filter of paths as such a pattern. It must match the whole path; `*` matches `/` as well."""
        return None if self.path is None else _pattern(self.path)

    @property
    def content_type_patterns(self) -> list[str]:
        """The media types as such patterns, over types in lower case, which may have parameters."""
        patterns: list[str] = []
        for kind in [_literal(kind.lower()) for kind in self.content_types]:
            patterns += [f"{kind[:-1]}%"] if kind.endswith("/*") else [kind, f"{kind};%", f"{kind} %"]
        return patterns

    @property
    def metadata_texts(self) -> list[str]:
        """The pairs as texts that stand in the metadata of every upload that has them."""
        return [metadata_json({name: value})[1:-1] for name, value in self.metadata]


def _pattern(text: str) -> str:
    return _literal(folded(text)).replace("*", "%").replace("?", "_")


def _literal(text: str) -> str:
    return re.sub(r"([\\%_])", r"\\\1", text)


class Page(NamedTuple):
    """A page of history. `end` is None when it is the last one; `skipped` counts broken rows."""

    uploads: list[Upload]
    end: Position | Place | None
    skipped: int
