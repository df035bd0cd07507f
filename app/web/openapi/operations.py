"""The operations of the description: for every URL and method its parameters, answers and refusals."""

from collections.abc import Iterable
from typing import Final

from app.config import Settings
from app.model import MAX_SIZE, Protocol, Status
from app.web.export import EXPORTS
from app.web.history import DEFAULT_LIMIT, HISTORY, MAX_LIMIT
from app.web.openapi.words import (
    ANY,
    BYTES,
    EXAMPLE,
    JSON,
    RESUMABLE,
    SESSION,
    Json,
    answer,
    header,
    in_path,
    query,
    record,
    ref,
    refusals,
)
from app.web.uploads import UPLOADS

_FILES: Final = "/api/ingestion/files"
_BINARY: Final[Json] = {"type": "string", "format": "binary"}
_FLAG: Final[Json] = {"enum": ["true", "false"]}
_BYTES: Final[Json] = {"type": "integer", "minimum": 0, "maximum": MAX_SIZE}
_MOMENT: Final[Json] = {"type": "string", "anyOf": [{"format": "date-time"}, {"format": "date"}]}
_NO_STORE: Final = ("Cache-Control",)
_ARCHIVED: Final = ("Content-Disposition", *_NO_STORE)

# Refusals of any request; of any with a session; of any that changes something.
_ANY: Final = ("bad_request", "internal", "unavailable")
_API: Final = (*_ANY, "ambiguous_session")
_CHANGE: Final = (*_API, "cross_origin")
_BODY: Final = ("incomplete_body", "request_too_large", "too_slow", "unsupported_media_type")
_FILE: Final = (
    *_CHANGE, *_BODY, "bad_filename", "digest_mismatch", "no_session", "quota_exceeded", "rate_limited",
    "storage_full", "too_large",
)  # fmt: skip
_IN_SEVERAL: Final = (
    "checksum_mismatch", "gone", "in_progress", "inconsistent_upload_length", "not_found", "offset_mismatch",
    "unsupported_version",
)  # fmt: skip

_DIGEST: Final = [
    header("Repr-Digest", "The SHA-256 or SHA-512, or both, that the file must have (RFC 9530)."),
    header("Content-Digest", "What the body of this request must have."),
]
_KEY: Final = header(
    "Idempotency-Key", "Sent again with the same key, by the same session within a day, an upload lands once."
)
_ONCE: Final = ("Idempotent-Replayed",)
_TUS: Final = header("Tus-Resumable", "1.0.0 makes it a request of tus.")
_BEGIN: Final = [
    header("Upload-Complete", "Makes it an upload in several requests: ?1 if this is all of it, ?0 if not."),
    header("Upload-Length", "How many bytes there will be."),
    header("Upload-Draft-Interop-Version", "The client's interop version; it is told by a 104 where it could go on."),
]
_PLACE: Final = header("Upload-Offset", "Where the bytes of this request begin.")
_CHECKSUM: Final = header("Upload-Checksum", "tus: algorithm and checksum of this request's bytes, in base64.")
_OVERRIDE: Final = header("X-HTTP-Method-Override", "PATCH or DELETE, where these methods do not get through.")
_ID: Final = in_path("id", "An upload's id. A foreign one, one of a deleted file and one that never was are all 404.")


def operations(settings: Settings) -> dict[str, dict[str, Json]]:
    """The operations, by path and method."""
    largest = f"At most {settings.max_file_size} bytes a file and {settings.max_request_size} a request."
    found: dict[str, dict[str, Json]] = {}

    def add(path: str, method: str, operation: Json) -> None:
        found.setdefault(path, {})[method] = operation

    for path in (UPLOADS, f"{UPLOADS}/"):
        add(path, "post", _post(largest, settings.max_files_per_request))
    add(UPLOADS, "options", _options())
    here = f"{UPLOADS}/{{name}}"
    add(here, "put", _put(largest))
    for method, operation in _resource().items():
        add(here, method, operation)
    for path, method, operation in (*_history(), *_files(), *_session(), *_itself()):
        add(path, method, operation)
    for methods in found.values():
        if "get" in methods:
            methods["head"] = _head(methods["get"])
    return found


def _operation(
    summary: str,
    answers: dict[str, Json],
    codes: Iterable[str],
    *,
    parameters: Iterable[Json] = (),
    body: Json | None = None,
    headers: Iterable[str] = SESSION,
) -> Json:
    refused = refusals(codes, headers)
    operation: Json = {"summary": summary, "responses": {**refused, **answers}}
    if both := refused.keys() & answers.keys():
        for status in both:  # one status for both, distinguished by the media type
            content = {**answers[status]["content"], **refused[status]["content"]}
            fields = {**answers[status]["headers"], **refused[status]["headers"]}
            operation["responses"][status] = {**answers[status], "content": content, "headers": fields}
    if parameters:
        operation["parameters"] = list(parameters)
    if body is not None:
        operation["requestBody"] = body
    return operation


def _head(get: Json) -> Json:
    """The operation HEAD: the same as GET, without the bytes."""
    bare = {
        status: {name: value for name, value in given.items() if name != "content"}
        for status, given in get["responses"].items()
    }
    return {**get, "summary": f"{get['summary']} Without the body.", "responses": bare}


def _bytes(description: str, *kinds: str) -> Json:
    return {"description": description, "content": {kind: {"schema": _BINARY} for kind in kinds}}


def _post(largest: str, most_files: int) -> Json:
    files = {"type": "array", "items": _BINARY, "minItems": 1}
    form = {"type": "object", "properties": {"file": files}}
    return _operation(
        "Send the files of a form, which land together or not at all; or a file as the body; or begin one in several "
        "requests.",
        {
            "201": answer(
                "Everything is stored, durably; or an upload in several requests has begun.",
                {JSON: {"anyOf": [ref("Uploads"), ref("Upload")]}},
                (*SESSION, *_ONCE, *RESUMABLE),
            )
        },
        (
            *_FILE,
            *_IN_SEVERAL,
            "forbidden",
            "idempotency_mismatch",
            "malformed_form",
            "method_not_allowed",
            "no_file",
            "too_many_files",
        ),
        headers=(*SESSION, *RESUMABLE),
        parameters=[
            header("Content-Disposition", "Names the file that the body is."),
            _KEY,
            *_DIGEST,
            *_BEGIN,
            _TUS,
            header("Upload-Metadata", "tus: filename and filetype, in base64."),
            header("Upload-Defer-Length", "tus: 1 if the length is told later."),
            header("Upload-Concat", "tus: partial, or final; and the URLs of the parts."),
            _CHECKSUM,
            _OVERRIDE,
        ],
        body={
            "description": f"Every part of a form that has a filename is a file, up to {most_files}; any other type is "
            f"the file itself. {largest}",
            "content": {"multipart/form-data": {"schema": form}, ANY: {"schema": _BINARY}},
        },
    )


def _options() -> Json:
    offered = ("Allow", "Accept-Post", "Waybill-Limits", "Tus-Resumable", "Tus-Version", "Tus-Extension")
    return _operation(
        "What is spoken here, and its limits.",
        {"204": answer("It is in the headers.", None, (*SESSION, *offered, *RESUMABLE))},
        _API,
    )


def _put(largest: str) -> Json:
    return _operation(
        "Send a file as the body, under the name in the URL.",
        {
            "201": answer(
                "The file is stored, durably; or an upload in several requests has begun, and there is no body.",
                {JSON: ref("Upload")},
                (*SESSION, *_ONCE, *RESUMABLE),
                EXAMPLE,
            )
        },
        (*_FILE, *_IN_SEVERAL, "forbidden", "idempotency_mismatch"),
        headers=(*SESSION, *RESUMABLE),
        parameters=[
            in_path("name", "The file's name, percent-encoded; none makes it `unnamed`, of a path the end counts."),
            _KEY,
            *_DIGEST,
            *_BEGIN,
            _TUS,
        ],
        body=_bytes(f"The file. {largest}", BYTES, ANY),
    )


def _resource() -> dict[str, Json]:
    key = in_path("name", "The key in the URL that an upload in several requests was given.")
    mine = ("no_session",)  # where WAYBILL_UPLOAD_URL_NEEDS_SESSION is set
    asked = (*mine, "gone", "in_progress", "not_found", "unsupported_version")
    said = (*SESSION, *RESUMABLE)
    grown = {
        "201": answer("The upload is complete.", {JSON: ref("Upload")}, said),
        "204": answer("What came is durable.", None, said),
    }
    appends = (*_FILE, *_IN_SEVERAL, *mine, "forbidden", "method_not_allowed")
    more = [key, _TUS, _PLACE, *_BEGIN, _CHECKSUM]
    body = _bytes("The bytes that follow.", "application/offset+octet-stream", "application/partial-upload")
    return {
        "get": _operation(
            "How far an upload has come.",
            {"200": answer("In the headers.", None, said), "204": answer("In the headers.", None, said)},
            (*_API, *asked, "digest_mismatch", "storage_full", "too_large"),
            parameters=[key, _TUS],
            headers=said,
        ),
        "patch": _operation("Go on with an upload.", grown, appends, parameters=more, body=body, headers=said),
        "post": _operation(
            "PATCH or DELETE, as X-HTTP-Method-Override says.",
            grown,
            appends,
            parameters=[*more, {**_OVERRIDE, "required": True}],
            body=body,
            headers=said,
        ),
        "delete": _operation(
            "Give an upload up; of a complete one only this URL goes.",
            {"204": answer("It is gone.", None, said)},
            (*_CHANGE, *asked),
            parameters=[key, _TUS],
            headers=said,
        ),
        "options": {**_options(), "parameters": [key]},
    }


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
        query("order", "The newest first, or the oldest.", {"enum": ["newest", "oldest"]}),
    ]


def _history() -> list[tuple[str, str, Json]]:
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
    codes = (*_API, "no_session")
    page = answer(
        "A page; or everything, as a stream.",
        {JSON: ref("Page"), **streams},
        (*SESSION, "Cache-Control", "Vary", "Link", "Content-Disposition"),
    )
    one = answer("The record.", {JSON: ref("Upload")}, (*SESSION, *_NO_STORE))
    sums = answer("The sums.", {JSON: ref("Summary")}, (*SESSION, *_NO_STORE))
    return [
        (
            HISTORY,
            "get",
            _operation(
                "What the session sent.", {"200": page}, (*codes, "bad_query", "bad_cursor"), parameters=parameters
            ),
        ),
        (f"{HISTORY}/summary", "get", _operation("Counts and bytes by status.", {"200": sums}, codes)),
        (f"{HISTORY}/{{id}}", "get", _operation("One record.", {"200": one}, (*codes, "not_found"), parameters=[_ID])),
    ]


def _files() -> list[tuple[str, str, Json]]:
    kept = ("ETag", "Last-Modified", "Repr-Digest", "Accept-Ranges", "Content-Disposition", "Cache-Control")
    inert = ("Content-Security-Policy", "Cross-Origin-Resource-Policy", "Referrer-Policy")
    said = (*SESSION, *kept, *inert)
    download = _operation(
        "The file, or ranges of it.",
        {
            "200": answer("All of it.", {ANY: {}}, said),
            "206": answer("What was asked for.", {ANY: {}}, (*said, "Content-Range")),
            "304": answer("The client has it already.", None, said),
        },
        (*_API, "no_session", "not_found", "gone", "precondition_failed", "range_not_satisfiable"),
        parameters=[
            _ID,
            header("Range", "One range of bytes, or several."),
            header("If-Range", "The ETag or date that the ranges are of."),
            header("If-Match", "ETags, one of which it must have."),
            header("If-None-Match", "ETags of what the client has."),
            header("If-Modified-Since", "When the client got it."),
            header("If-Unmodified-Since", "When it must have been there."),
        ],
    )
    delete = _operation(
        "The bytes go, the record stays; once more within a day.",
        {"204": answer("The file is gone.", None, SESSION)},
        (*_CHANGE, "no_session", "not_found"),
        parameters=[_ID],
    )
    archived = {
        "200": answer("A ZIP, without compression.", {"application/zip": _BINARY}, (*SESSION, *inert, *_ARCHIVED)),
    }
    refused = (*_API, "no_session", "too_many_files")
    ids = {"type": "object", "properties": {"id": {"type": "array", "items": {"type": "string"}}}}
    archive = _operation(
        "Every file that matches, in one archive.",
        archived,
        (*refused, "bad_query", "bad_cursor"),
        parameters=_filters(),
    )
    selection = _operation(
        "The files of these ids, in one archive.",
        archived,
        (*refused, *_CHANGE, *_BODY, "malformed_form", "bad_filename"),
        body={
            "content": {
                "application/x-www-form-urlencoded": {"schema": ids},
                "multipart/form-data": {"schema": ids},
            }
        },
    )
    delete_many = _operation(
        "The same for many files.",
        {"200": answer("The outcome for each.", {JSON: ref("Outcomes")}, (*SESSION, *_NO_STORE))},
        (*_CHANGE, *_BODY, "no_session"),
        body={"required": True, "content": {JSON: {"schema": ref("Selection")}}},
    )
    return [
        (f"{_FILES}/{{id}}", "get", download),
        (f"{_FILES}/{{id}}", "delete", delete),
        (f"{_FILES}/delete", "post", delete_many),
        (f"{_FILES}.zip", "get", archive),
        (f"{_FILES}.zip", "post", selection),
    ]


def _session() -> list[tuple[str, str, Json]]:
    here = "/api/session"
    known = answer("The session.", {JSON: ref("Session")}, (*SESSION, *_NO_STORE))
    code = answer("A code, good once and for ten minutes.", {JSON: ref("Invitation")}, SESSION)
    ended = answer("It has ended.", None, SESSION)
    body = {"required": True, "content": {JSON: {"schema": ref("Code")}}}
    own = (*_CHANGE, "no_session")
    asks = [
        header(
            "Waybill-Token",
            "true gives a caller without cookies its token; one with a bearer token always gets it.",
        )
    ]
    return [
        (here, "get", _operation("The session.", {"200": known}, (*_API, "no_session"))),
        (
            here,
            "post",
            _operation(
                "The session, started if there is none.", {"200": known}, (*own, "storage_full"), parameters=asks
            ),
        ),
        (here, "delete", _operation("End it, for all who share it.", {"204": ended}, own)),
        (
            f"{here}/rotate",
            "post",
            _operation(
                "A new token; the old one ends when it is used, an hour later at most.",
                {"200": known},
                own,
                parameters=asks,
            ),
        ),
        (f"{here}/link", "post", _operation("A code for a second browser.", {"201": code}, own)),
        (
            f"{here}/join",
            "post",
            _operation(
                "Share a session; by the same token and code once more.",
                {"200": known},
                (*own, *_BODY, "forbidden"),
                parameters=asks,
                body=body,
            ),
        ),
    ]


def _itself() -> list[tuple[str, str, Json]]:
    live = answer("It does.", {JSON: record({"status": {"const": "live"}})}, _NO_STORE)
    ready = answer("It would.", {JSON: ref("Readiness")}, _NO_STORE)
    not_ready = answer("It would not, and why.", {JSON: ref("Readiness")}, _NO_STORE)
    figures = answer("Prometheus' text format.", {"text/plain": {"type": "string"}}, _NO_STORE)
    this = answer("This document.", {JSON: {"type": "object"}}, ("ETag", "Cache-Control"))
    same = answer("The client has it already.", None, ("ETag", "Cache-Control"))
    known = [header("If-None-Match", "The ETag of the document that the client has.")]
    return [
        ("/health/live", "get", _operation("Whether the process serves.", {"200": live}, _ANY, headers=())),
        (
            "/health/ready",
            "get",
            _operation("Whether an upload would be taken.", {"200": ready, "503": not_ready}, _ANY, headers=()),
        ),
        ("/metrics", "get", _operation("What all processes counted.", {"200": figures}, _ANY, headers=())),
        ("/openapi.json", "get", _operation("This.", {"200": this, "304": same}, _ANY, parameters=known, headers=())),
    ]
