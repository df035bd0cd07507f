"""The operations of the description about what is stored: the history and the files."""

from collections.abc import Sequence
from typing import Final, get_args

from app.history import Order
from app.model import MAX_PATH_BYTES, MAX_SIZE, Protocol, Status
from app.web.export import EXPORTS
from app.web.history import DEFAULT_LIMIT, HISTORY, MAX_IDS, MAX_LIMIT
from app.web.openapi.words import (
    ANY,
    BINARY,
    JSON,
    NO_STORE,
    OF_ANY_SESSION,
    OF_BODIES,
    OF_CHANGES,
    SESSION,
    Json,
    answer,
    header,
    in_path,
    operation,
    query,
    ref,
)

_FILES: Final = "/api/ingestion/files"
_FLAG: Final[Json] = {"enum": ["true", "false"]}
_BYTES: Final[Json] = {"type": "integer", "minimum": 0, "maximum": MAX_SIZE}
_MOMENT: Final[Json] = {"type": "string", "anyOf": [{"format": "date-time"}, {"format": "date"}]}
_IDS: Final[Json] = {"type": "array", "items": {"type": "string", "format": "uuid"}, "minItems": 1, "maxItems": MAX_IDS}
_TYPES: Final[Json] = {"type": "array", "items": {"type": "string", "pattern": "^[^/,]+/[^/,]+$"}, "minItems": 1}
_PATH: Final[Json] = {"type": "string", "minLength": 1, "maxLength": MAX_PATH_BYTES}
_ARCHIVED: Final = ("Content-Disposition", *NO_STORE)
_INERT: Final = ("Content-Security-Policy", "Cross-Origin-Resource-Policy", "Referrer-Policy")
_OF_FILE: Final = (
    "ETag", "Last-Modified", "Repr-Digest", "Accept-Ranges", "Content-Disposition", "Cache-Control", *_INERT,
)  # fmt: skip
_RANGES: Final = [
    header("Range", "One range of bytes, or several."),
    header("If-Range", "The ETag or date that the ranges are of."),
    header("If-Match", "ETags, one of which it must have."),
    header("If-None-Match", "ETags of what the client has."),
    header("If-Modified-Since", "When the client got it."),
    header("If-Unmodified-Since", "When it must have been there."),
]
_ID: Final = in_path("id", "An upload's id. A foreign one, one of a deleted file and one that never was are all 404.")


def _filters() -> list[Json]:
    statuses = {"type": "array", "items": {"enum": list(Status)}, "minItems": 1}
    name = {"type": "string", "minLength": 1, "maxLength": 255}
    return [
        query("status", "One or more, with commas between.", statuses),
        query("filename", "Contained in the name, without regard to case; with * and ? the whole name's shape.", name),
        query("from", "Created then or later: an RFC 3339 time, or a date, which is its midnight in UTC.", _MOMENT),
        query("to", "Created before.", _MOMENT),
        query("sha256", "Exactly this digest.", {"type": "string", "pattern": "^[0-9a-fA-F]{64}$"}),
        query("protocol", "Exactly this way of sending.", {"enum": list(Protocol)}),
        query("min_size", "Bytes, inclusive.", _BYTES),
        query("max_size", "Bytes, inclusive.", _BYTES),
        query("id", f"One of these uploads, {MAX_IDS} at most, with commas between.", _IDS),
        query("content_type", "One of these types, with commas between; image/* means all of a kind.", _TYPES),
        query("path", "The whole path, without regard to case; * and ? are wildcards, and * crosses /.", _PATH),
        query("metadata.NAME", "Exactly this value of the pair NAME. Any number of them."),
        query("order", "The first of them; - turns an order around.", {"enum": list(get_args(Order))}),
    ]


def history() -> list[tuple[str, str, Json]]:
    streams = {export.media_type.partition(";")[0]: {"type": "string"} for export in EXPORTS.values()}
    parameters = [
        query(
            "limit", f"Records on a page; {DEFAULT_LIMIT} if not given.", {**_BYTES, "minimum": 1, "maximum": MAX_LIMIT}
        ),
        query("cursor", "The `next_cursor` of the page before, with the same filters."),
        *_filters(),
        query("count", "true adds `total`, the number of matches over all pages.", _FLAG),
        query("format", "csv or ndjson streams every match, as Accept can ask, too.", {"enum": ["json", *EXPORTS]}),
        query("bom", "true begins a CSV with a byte order mark, by which Excel knows UTF-8.", _FLAG),
    ]
    codes = (*OF_ANY_SESSION, "no_session")
    page = answer(
        "A page; or everything, as a stream.",
        {JSON: ref("Page"), **streams},
        (*SESSION, "Cache-Control", "Vary", "Link", "Content-Disposition"),
    )
    one = answer("The record.", {JSON: ref("Upload")}, (*SESSION, *NO_STORE))
    sums = answer("The sums.", {JSON: ref("Summary")}, (*SESSION, *NO_STORE))
    return [
        (
            HISTORY,
            "get",
            operation(
                "What the session sent.", {"200": page}, (*codes, "bad_query", "bad_cursor"), parameters=parameters
            ),
        ),
        (f"{HISTORY}/summary", "get", operation("Counts and bytes by status.", {"200": sums}, codes)),
        (f"{HISTORY}/{{id}}", "get", operation("One record.", {"200": one}, (*codes, "not_found"), parameters=[_ID])),
    ]


def files() -> list[tuple[str, str, Json]]:
    return [*_single_files(), *_many_files()]


def _single_files() -> list[tuple[str, str, Json]]:
    said = (*SESSION, *_OF_FILE)
    download = operation(
        "The file, or ranges of it.",
        _sent(said),
        (*OF_ANY_SESSION, "no_session", "not_found", "gone", "precondition_failed", "range_not_satisfiable"),
        parameters=[_ID, *_RANGES],
    )
    delete = operation(
        "The bytes go, the record stays; once more within a day.",
        {"204": answer("The file is gone.", None, SESSION)},
        (*OF_CHANGES, "no_session", "not_found"),
        parameters=[_ID],
    )
    return [(f"{_FILES}/{{id}}", "get", download), (f"{_FILES}/{{id}}", "delete", delete)]


def _sent(headers: Sequence[str]) -> dict[str, Json]:
    return {
        "200": answer("All of it.", {ANY: {}}, headers),
        "206": answer("What was asked for.", {ANY: {}}, (*headers, "Content-Range")),
        "304": answer("The client has it already.", None, headers),
    }


def events() -> list[tuple[str, str, Json]]:
    """The stream of events, with its path and method."""
    position = {"type": "string", "maxLength": 64}
    described = operation(
        "Hear what happens to the session's uploads, as it happens.",
        {
            "200": answer(
                "Server-sent events, for as long as the session lives: upload.created, upload.progress, "
                "upload.processing, upload.completed, upload.failed, upload.expired, upload.deleted, each with the "
                "record as data; or reset: read the history again.",
                {"text/event-stream": {"schema": {"type": "string"}}},
                (*NO_STORE, "X-Accel-Buffering"),
            )
        },
        (*OF_ANY_SESSION, "no_session", "bad_query", "rate_limited"),
        parameters=[
            header("Last-Event-ID", "The position behind which to go on; comes before `after`."),
            query("after", "The position behind which to go on.", position),
        ],
    )
    return [("/api/ingestion/events", "get", described)]


def links() -> list[tuple[str, str, Json]]:
    of_file = f"{_FILES}/{{id}}/links"
    create = operation(
        "Make a URL that gives the file to whoever has it.",
        {
            "201": answer(
                "The link; its URL is shown this once.", {JSON: ref("ShareLink")}, (*SESSION, *NO_STORE, "Location")
            )
        },
        (*OF_CHANGES, *OF_BODIES, "no_session", "not_found", "gone", "in_progress"),
        parameters=[_ID],
        body={"required": True, "content": {JSON: {"schema": ref("LinkBounds")}}},
    )
    listed = operation(
        "The file's links, the newest first, without their URLs.",
        {"200": answer("At most 1,000 of them.", {JSON: ref("ShareLinks")}, (*SESSION, *NO_STORE))},
        (*OF_ANY_SESSION, "no_session", "not_found"),
        parameters=[_ID],
    )
    revoke = operation(
        "Revoke a link.",
        {"204": answer("Its URL is unknown from now on.", None, SESSION)},
        (*OF_CHANGES, "no_session", "not_found"),
        parameters=[_ID, in_path("link", "The link's id.")],
    )
    opened = operation(
        "The file of a link, or ranges of it.",
        _sent((*SESSION, *_OF_FILE)),
        (*OF_ANY_SESSION, "not_found", "gone", "precondition_failed", "range_not_satisfiable"),
        parameters=[in_path("secret", "The key in a link's URL."), *_RANGES],
    )
    return [
        (of_file, "post", create),
        (of_file, "get", listed),
        (f"{of_file}/{{link}}", "delete", revoke),
        ("/d/{secret}", "get", opened),
    ]


def _many_files() -> list[tuple[str, str, Json]]:
    archived = {
        "200": answer("A ZIP, without compression.", {"application/zip": BINARY}, (*SESSION, *_INERT, *_ARCHIVED)),
    }
    refused = (*OF_ANY_SESSION, "no_session", "too_many_files")
    ids = {"type": "object", "properties": {"id": {"type": "array", "items": {"type": "string"}}}}
    archive = operation(
        "Every file that matches, in one archive.",
        archived,
        (*refused, "bad_query", "bad_cursor"),
        parameters=_filters(),
    )
    selection = operation(
        "The files of these ids, in one archive.",
        archived,
        (*refused, *OF_CHANGES, *OF_BODIES, "malformed_form", "bad_filename"),
        body={
            "content": {
                "application/x-www-form-urlencoded": {"schema": ids},
                "multipart/form-data": {"schema": ids},
            }
        },
    )
    delete_many = operation(
        "The same for many files.",
        {"200": answer("The outcome for each.", {JSON: ref("Outcomes")}, (*SESSION, *NO_STORE))},
        (*OF_CHANGES, *OF_BODIES, "no_session"),
        body={"required": True, "content": {JSON: {"schema": ref("Selection")}}},
    )
    return [
        (f"{_FILES}/delete", "post", delete_many),
        (f"{_FILES}.zip", "get", archive),
        (f"{_FILES}.zip", "post", selection),
    ]
