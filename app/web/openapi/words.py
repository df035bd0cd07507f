"""The vocabulary of the description's operations: schemas from the model, problems from the errors, headers."""

from collections.abc import Iterable
from typing import Any, Final

from app.errors import problem_codes
from app.model import MAX_SIZE, Session, Status, Upload
from app.web.downloads import MAX_SELECTED

Json = dict[str, Any]

JSON: Final = "application/json"
PROBLEM: Final = "application/problem+json"
BYTES: Final = "application/octet-stream"
ANY: Final = "*/*"


def nullable(schema: Json) -> Json:
    return {"anyOf": [schema, {"type": "null"}]}


_TEXT: Final[Json] = {"type": "string"}
_COUNT: Final[Json] = {"type": "integer", "minimum": 0}
_QUOTA: Final[Json] = {"used": _COUNT, "limit": nullable(_COUNT), "left": nullable(_COUNT)}
_MOMENT: Final[Json] = {"type": "string", "format": "date-time"}
_WARNINGS: Final = ("stored_files", "scrub")


def ref(name: str, kind: str = "schemas") -> Json:
    return {"$ref": f"#/components/{kind}/{name}"}


def record(properties: Json, *, optional: Iterable[str] = (), more: bool = False) -> Json:
    """The schema of an object; every key is required except the optional ones."""
    required = [name for name in properties if name not in set(optional)]
    return {"type": "object", "properties": properties, "required": required, "additionalProperties": more}


def header(name: str, description: str, *, schema: Json = _TEXT, required: bool = False) -> Json:
    return {"name": name, "in": "header", "description": description, "schema": schema, "required": required}


def query(name: str, description: str, schema: Json = _TEXT) -> Json:
    # No parameter may be repeated: an array is one value with commas.
    return {"name": name, "in": "query", "description": description, "schema": schema, "explode": False}


def in_path(name: str, description: str, schema: Json = _TEXT) -> Json:
    return {"name": name, "in": "path", "description": description, "schema": schema, "required": True}


_HEADERS: Final = {
    "X-Request-Id": "The request's id: the client's own, if it is 1 to 64 characters of A-Za-z0-9._-",
    "Set-Cookie": "The session's cookie, when it is new, renewed or taken away.",
    "Location": "The record's URL; of an upload in several requests the URL to go on with.",
    "Repr-Digest": "The SHA-256 of the file (RFC 9530).",
    "Want-Repr-Digest": "The digests that are checked, when the request declared none of them.",
    "Idempotent-Replayed": "true: this is the answer to an earlier request with the same Idempotency-Key.",
    "Link": "The next page; or the record of an upload that is complete.",
    "Allow": "The methods that are possible here.",
    "Accept-Post": "What a POST may bring.",
    "Waybill-Limits": "The largest file, the largest request, the most files of a form.",
    "WWW-Authenticate": "How a session is shown.",
    "Retry-After": "Seconds until it makes sense to try again.",
    "RateLimit-Policy": "What a session may send and keep, of what is limited.",
    "RateLimit": "What is left of it.",
    "Cache-Control": "What may be kept: nothing that can change.",
    "Vary": "What the answer depends on.",
    "ETag": "Changes with the content.",
    "Last-Modified": "When the file was completed.",
    "Accept-Ranges": "bytes: ranges can be asked for.",
    "Content-Encoding": "gzip, if the client takes it.",
    "Content-Range": "Which bytes these are, and of how many.",
    "Content-Disposition": "attachment, with the file's name.",
    "X-Content-Type-Options": "nosniff",
    "Content-Security-Policy": "Nothing in a file may run.",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Referrer-Policy": "no-referrer",
    "Tus-Resumable": "The version of tus that is spoken.",
    "Tus-Version": "The versions of tus that are spoken.",
    "Tus-Extension": "The extensions of tus that are spoken.",
    "Tus-Checksum-Algorithm": "What an Upload-Checksum can be made with.",
    "Tus-Max-Size": "The largest file.",
    "Upload-Offset": "How many bytes are durable.",
    "Upload-Length": "How many there will be.",
    "Upload-Defer-Length": "1: that is not known yet.",
    "Upload-Metadata": "What was said of the file when the upload began.",
    "Upload-Concat": "Whether it is a part, or of which parts it is made.",
    "Upload-Expires": "When it is given up if nothing comes.",
    "Upload-Complete": "?1 if the upload is complete, ?0 if more is expected.",
    "Upload-Limit": "What one request and the whole may have, and how long it is kept.",
    "Upload-Draft-Interop-Version": "The interop version that is spoken, as the client's.",
    "X-Accel-Buffering": "no: a proxy is to pass each event on at once.",
    "Connection": "close, when the answer came before the end of the body.",
}
EVERYWHERE: Final = ("X-Request-Id", "X-Content-Type-Options", "Connection")
SESSION: Final = ("Set-Cookie",)
RESUMABLE: Final = (
    "Location",
    "Repr-Digest",
    "RateLimit-Policy",
    "RateLimit",
    "Link",
    "Cache-Control",
    *(name for name in _HEADERS if name.startswith(("Tus-", "Upload-"))),
)


def answer(
    description: str, content: dict[str, Json] | None = None, headers: Iterable[str] = (), example: Any = None
) -> Json:
    """An answer with one schema for each media type."""
    found: Json = {
        "description": description,
        "headers": {name: ref(name, "headers") for name in (*EVERYWHERE, *headers) if name != "Content-Type"},
    }
    if content:
        found["content"] = {kind: {"schema": schema} for kind, schema in content.items()}
        if example is not None:
            found["content"][next(iter(content))]["example"] = example
    return found


def refusals(codes: Iterable[str], headers: Iterable[str]) -> dict[str, Json]:
    """The answers for these problem codes, by status."""
    known, by_status = problem_codes(), dict[int, list[str]]()
    for code in codes:
        by_status.setdefault(known[code].status, []).append(code)
    found = {}
    for status, those in sorted(by_status.items()):
        schema = {"allOf": [ref("Problem"), {"properties": {"code": {"enum": sorted(those)}}}]}
        text = "; ".join(known[code].title for code in those)
        found[str(status)] = answer(
            f"{text}.", {PROBLEM: schema}, (*headers, "Cache-Control", *_OF_STATUS.get(status, ()))
        )
    return found


_OF_STATUS: Final[dict[int, tuple[str, ...]]] = {
    400: ("Want-Repr-Digest",),
    401: ("WWW-Authenticate",),
    405: ("Allow",),
    409: ("Retry-After",),
    412: ("Tus-Version",),
    416: ("Content-Range",),
    503: ("Retry-After",),
}

EXAMPLE_ID: Final = "01a2072b-436b-72c0-93cc-cad2c7aed296"
EXAMPLE: Final[Json] = {
    "id": EXAMPLE_ID,
    "filename": "hello.txt",
    "content_type": "text/plain",
    "size": 15,
    "sha256": "2450a2bea17818772472cf112e2d73543428477ea7f4c8c878929c146e8713cb",
    "status": "completed",
    "protocol": "raw",
    "created_at": "2026-11-23T06:50:05.547261Z",
    "completed_at": "2026-11-23T06:50:05.548852Z",
    "error": None,
    "metadata": {},
    "path": None,
    "expires_at": None,
    "links": {
        "self": f"/api/ingestion/history/{EXAMPLE_ID}",
        "content": f"/api/ingestion/files/{EXAMPLE_ID}",
    },
}
_LINK: Final[Json] = {
    "id": _TEXT,
    "label": nullable(_TEXT),
    "created_at": _MOMENT,
    "expires_at": nullable(_MOMENT),
    "max_downloads": nullable(_COUNT),
    "downloads": _COUNT,
}
_TOTAL: Final = record({"uploads": _COUNT, "bytes": _COUNT})
_OUTCOME: Final = record({"id": _TEXT, "outcome": {"enum": ["deleted", "not_found"]}})


BINARY: Final[Json] = {"type": "string", "format": "binary"}
NO_STORE: Final = ("Cache-Control",)

# Refusals of any request; of any with a session; of any that changes something.
OF_ANY: Final = ("bad_request", "internal", "unavailable")
OF_ANY_SESSION: Final = (*OF_ANY, "ambiguous_session")
OF_CHANGES: Final = (*OF_ANY_SESSION, "cross_origin")
OF_BODIES: Final = ("incomplete_body", "request_too_large", "too_slow", "unsupported_media_type")
OF_FILES: Final = (
    *OF_CHANGES, *OF_BODIES, "bad_filename", "digest_mismatch", "no_session", "quota_exceeded", "rate_limited",
    "storage_full", "too_large",
)  # fmt: skip
OF_RESUMABLES: Final = (
    "checksum_mismatch", "gone", "in_progress", "inconsistent_upload_length", "not_found", "offset_mismatch",
    "unsupported_version",
)  # fmt: skip


def operation(
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


def _link_schemas() -> dict[str, Json]:
    return {
        "ShareLink": record({**_LINK, "url": _TEXT}),
        "ShareLinks": record({"items": {"type": "array", "items": record(_LINK)}}),
        "LinkBounds": record(
            {
                "expires_in": nullable({"type": "string", "examples": ["7d"]}),
                "max_downloads": nullable({"type": "integer", "minimum": 1, "maximum": MAX_SIZE}),
                "label": nullable({"type": "string", "minLength": 1, "maxLength": 200}),
            },
            optional=["expires_in", "max_downloads", "label"],
        ),
    }


def schemas() -> dict[str, Json]:
    upload = Upload.model_json_schema(mode="serialization", ref_template="#/components/schemas/{model}")
    parts = upload.pop("$defs")
    session = Session.model_json_schema(mode="serialization")
    session["properties"]["token"] = {"type": "string", "description": "For callers that keep no cookies."}
    session["properties"] |= {"uploads": _COUNT, "bytes": _COUNT, "devices": _COUNT}
    session["required"] += ["uploads", "bytes", "devices"]
    page = {"items": {"type": "array", "items": ref("Upload")}, "next_cursor": nullable(_TEXT), "limit": _COUNT}
    return {
        **parts,
        "Upload": {**upload, "description": "One upload's record. Every key is always present.", "examples": [EXAMPLE]},
        "Uploads": record({"items": {"type": "array", "items": ref("Upload"), "minItems": 1}}),
        "Page": record({**page, "skipped": _COUNT, "total": _COUNT}, optional=["total"]),
        "Summary": record(
            {
                "uploads": _COUNT,
                "bytes": _COUNT,
                "by_status": record({status.value: _TOTAL for status in Status}),
                "first_created_at": nullable(_MOMENT),
                "last_created_at": nullable(_MOMENT),
                "quota": record({**_QUOTA, "uploads": record(_QUOTA)}),
            }
        ),
        "Session": session,
        "Selection": record({"ids": {"type": "array", "items": _TEXT, "minItems": 1, "maxItems": MAX_SELECTED}}),
        "Outcomes": record({"items": {"type": "array", "items": _OUTCOME}}),
        **_link_schemas(),
        "Code": record({"code": {"type": "string", "examples": ["ABCD-EFGH-JKMN"]}}),
        "Invitation": record({"code": _TEXT, "expires_at": _MOMENT, "qr": _TEXT}, optional=["qr"]),
        "JoiningPage": record({"page": nullable({"type": "string", "format": "uri"})}, optional=["page"]),
        "Readiness": record(
            {
                "status": {"enum": ["ready", "not ready"]},
                "failing": {"type": "array", "items": _TEXT},
                "checks": record(dict.fromkeys(("database", "schema", "store", "free_space"), _TEXT)),
                "warnings": record(dict.fromkeys(_WARNINGS, _TEXT), optional=_WARNINGS),
            }
        ),
        "Problem": record(
            {
                "type": {"type": "string", "format": "uri"},
                "title": _TEXT,
                "status": {"type": "integer"},
                "detail": _TEXT,
                "code": {"enum": sorted(problem_codes())},
                "request_id": _TEXT,
            },
            more=True,
        ),
    }


def headers() -> dict[str, Json]:
    return {name: {"description": text, "schema": _TEXT} for name, text in _HEADERS.items()}
