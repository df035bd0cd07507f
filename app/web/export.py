"""Exports: all matching records, streamed in constant memory, as CSV for tables or NDJSON for programs."""

import codecs
import csv
import io
import re
from collections.abc import AsyncIterator, Callable, Sequence
from typing import Any, Final, NamedTuple

from app.annotations import metadata_json
from app.db.queryable import Queryable
from app.history import HistoryQuery, Page
from app.model import Upload
from app.uploads import records as upload_records
from app.web.base_path import as_json

_PAGE_SIZE: Final = 500
_FORMULA = re.compile(r"[\s\"']*[=+\-@\uff1d\uff0b\uff0d\uff20|%]")
_COLUMNS: Final = (
    "id", "filename", "content_type", "size", "sha256", "status", "protocol", "created_at", "completed_at",
    "error_code", "error_detail", "metadata", "path", "expires_at",
)  # fmt: skip


class Export(NamedTuple):
    """A format in which all of a history is exported."""

    name: str
    media_type: str
    head: bytes
    lines: Callable[[Sequence[Upload], str], bytes]
    takes_bom: bool = False

    async def stream(
        self,
        db: Queryable,
        session_id: str,
        query: HistoryQuery,
        left_out: Callable[[int], None],
        *,
        base: str = "",
        with_bom: bool = False,
    ) -> AsyncIterator[bytes]:
        """Stream all matching records, page by page: memory and each query stay small however many there are.

        The first page is fetched when this returns: an earlier error is still a refusal, and
        not a broken stream. `left_out` is called with the number of broken rows. The records'
        links lie below `base`. With a byte order mark Excel takes the text for UTF-8.
        """
        page = await upload_records.list_uploads(db, session_id, query, after=None, page_size=_PAGE_SIZE)
        left_out(page.skipped)
        head = (codecs.BOM_UTF8 if with_bom else b"") + self.head

        async def rest(page: Page) -> AsyncIterator[bytes]:
            yield head + self.lines(page.uploads, base)
            while page.end is not None:
                page = await upload_records.list_uploads(db, session_id, query, after=page.end, page_size=_PAGE_SIZE)
                left_out(page.skipped)
                yield self.lines(page.uploads, base)

        return rest(page)


def _ndjson(uploads: Sequence[Upload], base: str) -> bytes:
    return b"".join(as_json(upload, base) + b"\n" for upload in uploads)


def _csv(uploads: Sequence[Upload], base: str) -> bytes:
    return _table([_cells(upload) for upload in uploads])


def _table(rows: Sequence[Sequence[Any]]) -> bytes:
    text = io.StringIO(newline="")
    csv.writer(text).writerows(rows)
    return text.getvalue().encode()


def _cells(upload: Upload) -> list[Any]:
    record = upload.model_dump(mode="json")
    error = record["error"] or {"code": None, "detail": None}
    record |= {"error_code": error["code"], "error_detail": error["detail"], "metadata": metadata_json(upload.metadata)}
    values = [record[column] for column in _COLUMNS]
    return [_inert(value) if isinstance(value, str) else value for value in values]


def _inert(text: str) -> str:
    """The text, behind an apostrophe if a spreadsheet could take it for a formula."""
    return f"'{text}" if _FORMULA.match(text) else text


EXPORTS: Final = {
    export.name: export
    for export in (
        Export("csv", "text/csv; charset=utf-8; header=present", _table([_COLUMNS]), _csv, takes_bom=True),
        Export("ndjson", "application/x-ndjson", b"", _ndjson),
    )
}
