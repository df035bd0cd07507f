"""History queries: their filters, their orders, and the pages that answer them."""

import re
from typing import Annotated, Literal, NamedTuple

from pydantic import BaseModel, ConfigDict, Field

from app.model import MAX_FILENAME_BYTES, Digest, Protocol, Size, Status, Text, Timestamp, Upload, folded


class Position(NamedTuple):
    """The end of a page of history: the sort key of its last row."""

    created_at_us: int
    id: str


class HistoryQuery(BaseModel):
    """The filters of a history query. None means: no such filter."""

    model_config = ConfigDict(frozen=True, strict=True, extra="forbid")

    statuses: tuple[Status, ...] = ()
    filename: Annotated[Text, Field(min_length=1, max_length=MAX_FILENAME_BYTES)] | None = None
    from_us: Timestamp | None = None
    to_us: Timestamp | None = None
    sha256: Digest | None = None
    protocol: Protocol | None = None
    min_size: Size | None = None
    max_size: Size | None = None
    order: Literal["newest", "oldest"] = "newest"

    @property
    def filename_pattern(self) -> str | None:
        r"""The filter as a LIKE pattern over folded names, with `\` as its escape.

        Without `*` and `?` the text is looked for anywhere in the name; with them it must
        match the whole name. `%` and `_` are ordinary characters.
        """
        if self.filename is None:
            return None
        text = folded(self.filename)
        literal = re.sub(r"([\\%_])", r"\\\1", text)
        if "*" in text or "?" in text:
            return literal.replace("*", "%").replace("?", "_")
        return f"%{literal}%"


class Page(NamedTuple):
    """A page of history. `end` is None when it is the last one; `skipped` counts broken rows."""

    uploads: list[Upload]
    end: Position | None
    skipped: int
