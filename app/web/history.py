"""GET /api/ingestion/history: pages, single records, summaries, and streams of all matching records."""

import hashlib
import re
from collections.abc import AsyncIterator, Callable, Iterable
from datetime import UTC, datetime
from typing import Any, Final, NamedTuple, TypeVar, cast, get_args
from urllib.parse import parse_qsl, quote, unquote, urlencode

from pydantic_core import to_json
from starlette.requests import Request
from starlette.responses import Response, StreamingResponse

from app.annotations import is_metadata_name, sendable
from app.errors import BadCursor, BadQuery, NotFound
from app.history import HistoryQuery, Order, Place, Position
from app.model import (
    MAX_FILENAME_BYTES,
    MAX_PATH_BYTES,
    MAX_SIZE,
    MAX_TIME_US,
    Protocol,
    Status,
    is_upload_id,
    microseconds,
    rfc3339,
)
from app.protocols.filenames import searched_name
from app.protocols.headers import attachment
from app.protocols.preferences import Preference, preferences
from app.sessions import totals_records
from app.sessions.totals_records import Totals
from app.signing import Signer
from app.uploads import records as upload_records
from app.web.base_path import record_json, shown
from app.web.export import EXPORTS, Export
from app.web.services import Services
from app.web.session import caller_of

HISTORY: Final = "/api/ingestion/history"
DEFAULT_LIMIT: Final = 50
MAX_LIMIT: Final = 500
MAX_IDS: Final = 1000
_MAX_FILTER_CHARACTERS: Final = 1024  # a client may use a whole path as the name of its file
_NO_STORE: Final = {"Cache-Control": "no-store"}
_JSON: Final = "application/json"

_MOMENT = re.compile(r"\d{4}-\d{2}-\d{2}(?:[Tt ]\d{2}:\d{2}:\d{2}(?:\.\d{1,9})?(?:[Zz]|[+-]\d{2}:\d{2}))?", re.ASCII)
_SPACED_ZONE = re.compile(r" (?=\d{2}:\d{2}\Z)")
_NUMBER = re.compile(r"[0-9]{1,19}")
_MEDIA_TYPE = re.compile(r"[!#$&^_.+\-0-9A-Za-z]{1,127}/(?:\*|[!#$&^_.+\-0-9A-Za-z]{1,127})")
_ORDERS: Final = get_args(Order)
_DIGEST = re.compile(r"[0-9a-fA-F]{64}")
T = TypeVar("T")


class HistoryRequest(NamedTuple):
    """A parsed history request."""

    query: HistoryQuery
    limit: int
    after: Position | Place | None
    with_total: bool
    export: Export | None
    with_bom: bool


async def list_page(request: Request[Services]) -> Response:
    """GET /api/ingestion/history: one page, newest first; or all matching records, as CSV or NDJSON."""
    db = request.state["db"].reading
    left_out = request.state["metrics"].broken_records.add
    session_id = caller_of(request).session.id
    base = request.state["settings"].base_path
    asked = parse(request, session_id)
    headers = {**_NO_STORE, "Vary": "Accept"}
    if asked.export is not None:
        headers["Content-Disposition"] = attachment(f"history.{asked.export.name}")
        lines = (
            _nothing()
            if request.method == "HEAD"
            else await asked.export.stream(db, session_id, asked.query, left_out, base=base, with_bom=asked.with_bom)
        )
        return StreamingResponse(lines, headers=headers, media_type=asked.export.media_type)
    page = await upload_records.list_uploads(db, session_id, asked.query, after=asked.after, page_size=asked.limit)
    left_out(page.skipped)
    cursor = None if page.end is None else cursor_behind(request.state["cursors"], page.end, asked.query, session_id)
    answer: dict[str, Any] = {
        "items": [shown(upload, base) for upload in page.uploads],
        "next_cursor": cursor,
        "limit": asked.limit,
        "skipped": page.skipped,
    }
    if asked.with_total:
        answer["total"] = await upload_records.count_uploads(db, session_id, asked.query)
    if cursor is not None:
        others = [(name, value) for name, value in _parameters(request) if name != "cursor"]
        headers["Link"] = f'<{base}{HISTORY}?{urlencode([*others, ("cursor", cursor)])}>; rel="next"'
    return Response(to_json(answer), media_type=_JSON, headers=headers)


async def _nothing() -> AsyncIterator[bytes]:
    return
    yield b""


async def show(request: Request[Services]) -> Response:
    """GET /api/ingestion/history/{id}: one of the caller's records."""
    session_id = caller_of(request).session.id
    upload_id = request.path_params["id"]
    upload = await request.state["lookup"].find(session_id, upload_id) if is_upload_id(upload_id) else None
    if upload is None:
        raise NotFound
    return Response(record_json(request, upload), media_type=_JSON, headers=_NO_STORE)


async def summarize(request: Request[Services]) -> Response:
    """GET /api/ingestion/history/summary: counts and bytes by status, and the span of time."""
    session_id = caller_of(request).session.id
    db = request.state["db"]
    has, span = await totals_records.find(db, session_id), await upload_records.find_span(db, session_id)
    by_status = {status: has.of(status) for status in Status}
    answer = {
        "uploads": sum(total.uploads for total in by_status.values()),
        "bytes": sum(total.size for total in by_status.values()),
        "by_status": {status: {"uploads": total.uploads, "bytes": total.size} for status, total in by_status.items()},
        "first_created_at": rfc3339(span[0]) if span else None,
        "last_created_at": rfc3339(span[1]) if span else None,
        "quota": quota(request, has),
    }
    return Response(to_json(answer), media_type=_JSON, headers=_NO_STORE)


def quota(request: Request[Services], has: Totals) -> dict[str, Any]:
    """The quota of a session, in bytes and in uploads: what is used of it, and what is left."""
    quotas = request.state["ingest"].quotas
    uploads, size = (None, None) if quotas is None else quotas.limits
    used = has.of(Status.COMPLETED) if quotas is None else has.used
    return {**_quota(used.size, size), "uploads": _quota(used.uploads, uploads)}


def _quota(used: int, limit: int | None) -> dict[str, int | None]:
    return {"used": used, "limit": limit, "left": None if limit is None else max(0, limit - used)}


def parse(request: Request[Any], session_id: str) -> HistoryRequest:
    """Parse the whole query or refuse it, naming the parameter and the expected values.

    Raises:
        BadQuery: unknown, repeated, malformed or contradictory parameters.
        BadCursor: the cursor is not one of this query of this session.
    """
    given = _Parameters(_parameters(request))
    query = HistoryQuery(
        statuses=given.several("status", Status, f"one or more of {', '.join(Status)}"),
        filename=given.one("filename", _filename, "1 to 255 characters without NUL"),
        from_us=given.one("from", _moment, "an RFC 3339 time or a date such as 2026-11-22"),
        to_us=given.one("to", _moment, "an RFC 3339 time or a date such as 2026-11-22"),
        sha256=given.one("sha256", _digest, "64 hexadecimal digits"),
        protocol=given.one("protocol", Protocol, f"one of {', '.join(Protocol)}"),
        min_size=given.one("min_size", _size, "a whole number of bytes"),
        max_size=given.one("max_size", _size, "a whole number of bytes"),
        ids=given.several("id", _id, f"1 to {MAX_IDS} ids of uploads"),
        content_types=given.several("content_type", _media_type, "media types such as text/plain or image/*"),
        path=given.one("path", _path, f"1 to {MAX_PATH_BYTES} bytes without NUL"),
        metadata=given.pairs("metadata."),
        order=given.one("order", _order, f"one of {', '.join(_ORDERS)}") or "newest",
    )
    limit = given.one("limit", _limit, f"a whole number from 1 to {MAX_LIMIT}") or DEFAULT_LIMIT
    with_total = given.one("count", _flag, "true or false") or False
    format_ = given.one("format", _format, f"json or {' or '.join(EXPORTS)}")
    with_bom = given.one("bom", _flag, "true or false") or False
    cursor = given.one("cursor", str, "the next_cursor of the page before")
    given.refuse_others()
    if query.from_us is not None and query.to_us is not None and query.from_us >= query.to_us:
        raise BadQuery("to", "a time after from")
    if query.min_size is not None and query.max_size is not None and query.min_size > query.max_size:
        raise BadQuery("max_size", "a size not below min_size")
    after = None
    if cursor is not None:
        after = position_of(request.scope["state"]["cursors"], cursor, query, session_id)
    export = EXPORTS.get(format_) if format_ is not None else _accepted(request)
    if export is not None and cursor is not None:
        raise BadQuery("cursor", f"no cursor with {export.name}, which holds everything that matches")
    if with_bom and (export is None or not export.takes_bom):
        raise BadQuery("bom", "a byte order mark for format=csv alone")
    return HistoryRequest(query, limit, after, with_total, export, with_bom)


def _parameters(request: Request[Any]) -> list[tuple[str, str]]:
    """The query string's pairs. Starlette's own parser would replace what is not UTF-8 by U+FFFD."""
    try:
        return parse_qsl(request.scope["query_string"].decode("ascii"), keep_blank_values=True, errors="strict")
    except UnicodeDecodeError:
        raise BadQuery("a parameter", "percent-encoded UTF-8") from None


class _Parameters:
    """The query string, taken piece by piece; parameters that are left in the end are unknown."""

    def __init__(self, given: Iterable[tuple[str, str]]) -> None:
        self._given: dict[str, list[str]] = {}
        for name, value in given:
            self._given.setdefault(name, []).append(value)

    def one(self, name: str, read: Callable[[str], T], expected: str) -> T | None:
        values = self._given.pop(name, [])
        if len(values) > 1:
            raise BadQuery(name, "the parameter once")
        try:
            return read(values[0]) if values else None
        except ValueError:
            raise BadQuery(name, expected) from None

    def several(self, name: str, read: Callable[[str], T], expected: str) -> tuple[T, ...]:
        """The distinct values of a parameter that may be repeated, or hold several with commas between them."""
        values = [value for text in self._given.pop(name, []) for value in text.split(",")]
        try:
            found = tuple(dict.fromkeys(read(value) for value in values))
        except ValueError:
            raise BadQuery(name, expected) from None
        if len(found) > MAX_IDS:
            raise BadQuery(name, expected)
        return found

    def pairs(self, prefix: str) -> tuple[tuple[str, str], ...]:
        """The pairs of parameters whose names begin with the prefix."""
        names = [name for name in self._given if name.startswith(prefix)]
        return tuple((name.removeprefix(prefix), self._value(name, prefix)) for name in names)

    def _value(self, name: str, prefix: str) -> str:
        if not is_metadata_name(name.removeprefix(prefix)):
            raise BadQuery(f"{prefix}NAME", "a name of 1 to 64 of the characters A-Z a-z 0-9 . _ -")
        return self.one(name, sendable, "a value without NUL, once") or ""

    def refuse_others(self) -> None:
        for name in self._given:
            shown = name if name.isascii() and name.isprintable() and len(name) <= 40 else "a parameter"
            raise BadQuery(shown, "only parameters that are documented")


def _moment(text: str) -> int:
    if len(text) > len("2026-11-22T"):
        text = _SPACED_ZONE.sub("+", text)  # an unescaped `+`, the only possible meaning
    if _MOMENT.fullmatch(text) is None:
        raise ValueError
    fraction = re.search(r"\.(\d+)", text)
    if fraction:  # Python reads three or six digits; RFC 3339 allows any number
        text = text.replace(fraction[0], f".{fraction[1][:6].ljust(6, '0')}")
    moment = datetime.fromisoformat(text.upper())
    moment_us = microseconds(moment if moment.tzinfo else moment.replace(tzinfo=UTC))
    if not 0 <= moment_us <= MAX_TIME_US:
        raise ValueError
    return moment_us


def _filename(text: str) -> str:
    text = searched_name(text) if len(text) <= _MAX_FILTER_CHARACTERS else text
    if not 0 < len(text) <= MAX_FILENAME_BYTES or "\0" in text:
        raise ValueError
    return text


def _digest(text: str) -> str:
    if _DIGEST.fullmatch(text) is None:
        raise ValueError
    return text.lower()


def _size(text: str) -> int:
    if _NUMBER.fullmatch(text) is None or int(text) > MAX_SIZE:
        raise ValueError
    return int(text)


def _limit(text: str) -> int:
    limit = _size(text)
    if not 1 <= limit <= MAX_LIMIT:
        raise ValueError
    return limit


def _flag(text: str) -> bool:
    if text not in {"true", "false"}:
        raise ValueError
    return text == "true"


def _order(text: str) -> Order:
    if text not in _ORDERS:
        raise ValueError
    return cast("Order", text)


def _id(text: str) -> str:
    if not is_upload_id(text):
        raise ValueError
    return text


def _media_type(text: str) -> str:
    if not _MEDIA_TYPE.fullmatch(text):
        raise ValueError
    return text


def _path(text: str) -> str:
    if not 0 < len(text.encode()) <= MAX_PATH_BYTES or "\0" in text:
        raise ValueError
    return text


def _format(text: str) -> str:
    if text not in {"json", *EXPORTS}:
        raise ValueError
    return text


def _accepted(request: Request[Any]) -> Export | None:
    """The export that Accept names, with no lower weight than JSON; None for a page."""
    named = preferences(request.headers.getlist("accept"))
    other, _ = named.get("application/*") or named.get("*/*") or (0.0, 0)
    best, wanted = named.get(_JSON, Preference(other, -len(named))), None
    for export in EXPORTS.values():
        found = named.get(export.media_type.partition(";")[0], Preference(0.0, 0))
        if found.weight > 0 and found >= best:
            best, wanted = found, export
    return wanted


def cursor_behind(signer: Signer, end: Position | Place, query: HistoryQuery, session_id: str) -> str:
    """The cursor of the page that begins behind this end."""
    # The last row may be a broken one, with any text as its id or name.
    key = f"{end.created_at_us:x}" if isinstance(end, Position) else _quoted(end.key)
    return signer.sign(f"{key}_{_fingerprint(query, session_id)}_{_quoted(end.id)}")


def _quoted(text: str) -> str:
    return quote(text, safe="").replace("_", "%5F")


def position_of(signer: Signer, cursor: str, query: HistoryQuery, session_id: str) -> Position | Place:
    """The end of a page that a cursor stands for; raises BadCursor."""
    text = signer.verify(cursor)
    if text is None:
        raise BadCursor
    key, fingerprint, upload_id = text.split("_", 2)
    if fingerprint != _fingerprint(query, session_id):
        raise BadCursor
    return Place(unquote(key), unquote(upload_id)) if query.is_search else Position(int(key, 16), unquote(upload_id))


def _fingerprint(query: HistoryQuery, session_id: str) -> str:
    """The fingerprint of a session and its filters, to which a cursor belongs."""
    return hashlib.sha256(to_json([session_id, query.model_dump(mode="python")])).hexdigest()[:32]
