"""The operations of the description: for every URL and method its parameters, answers and refusals."""

from collections.abc import Iterable
from typing import Final

from app.config import Settings
from app.web.openapi.files import events, files, history, links
from app.web.openapi.words import (
    ANY,
    BINARY,
    BYTES,
    EXAMPLE,
    JSON,
    NO_STORE,
    OF_ANY,
    OF_ANY_SESSION,
    OF_BODIES,
    OF_CHANGES,
    OF_FILES,
    OF_RESUMABLES,
    RESUMABLE,
    SESSION,
    Json,
    answer,
    header,
    in_path,
    operation,
    record,
    ref,
)
from app.web.uploads import UPLOADS

_DIGEST: Final = [
    header("Repr-Digest", "The SHA-256 or SHA-512, or both, that the file must have (RFC 9530)."),
    header("Content-Digest", "What the body of this request must have."),
]
_KEY: Final = header(
    "Idempotency-Key", "Sent again with the same key, by the same session within a day, an upload lands once."
)
_ANNOTATIONS: Final = [
    header("Waybill-Metadata", 'Pairs for the record: a dictionary (RFC 9651) of texts, as in album="Summer 2026".'),
    header("Waybill-Expires-In", "How long to keep the completed file: 7d, 12h, 30min, 90s."),
]
_ONCE: Final = ("Idempotent-Replayed",)
_TUS: Final = header("Tus-Resumable", "1.0.0 makes it a request of tus.")
_BEGIN: Final = [
    header("Upload-Complete", "Makes it an upload in several requests: ?1 if this is all of it, ?0 if not."),
    header("Upload-Length", "How many bytes there will be."),
    header("Upload-Draft-Interop-Version", "The client's interop version; a 104 reports where it could go on."),
]
_PLACE: Final = header("Upload-Offset", "Where the bytes of this request begin.")
_CHECKSUM: Final = header("Upload-Checksum", "tus: algorithm and checksum of this request's bytes, in base64.")
_OVERRIDE: Final = header("X-HTTP-Method-Override", "PATCH or DELETE, where these methods do not get through.")


def operations(settings: Settings) -> dict[str, dict[str, Json]]:
    """The operations, by path and method."""
    largest = f"At most {settings.max_file_size} bytes a file and {settings.max_request_size} a request."
    found: dict[str, dict[str, Json]] = {}

    def add(path: str, method: str, described: Json) -> None:
        found.setdefault(path, {})[method] = described

    for path in (UPLOADS, f"{UPLOADS}/"):
        add(path, "post", _post(largest, settings.max_files_per_request))
    add(UPLOADS, "options", _options())
    here = f"{UPLOADS}/{{name}}"
    add(here, "put", _put(largest))
    for method, described in _resource().items():
        add(here, method, described)
    for path, method, described in (*history(), *events(), *files(), *links(), *_session(), *_itself()):
        add(path, method, described)
    for methods in found.values():
        if "get" in methods:
            methods["head"] = _head(methods["get"])
    return found


def _head(get: Json) -> Json:
    """The operation HEAD: the same as GET, without the bytes."""
    bare = {
        status: {name: value for name, value in given.items() if name != "content"}
        for status, given in get["responses"].items()
    }
    return {**get, "summary": f"{get['summary']} Without the body.", "responses": bare}


def _bytes(description: str, *kinds: str) -> Json:
    return {"description": description, "content": {kind: {"schema": BINARY} for kind in kinds}}


def _post(largest: str, most_files: int) -> Json:
    files = {"type": "array", "items": BINARY, "minItems": 1}
    form = {"type": "object", "properties": {"file": files}}
    return operation(
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
            *OF_FILES,
            *OF_RESUMABLES,
            "bad_metadata",
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
            *_ANNOTATIONS,
            *_BEGIN,
            _TUS,
            header("Upload-Metadata", "tus: filename, filetype, relativePath, expires_in and pairs, in base64."),
            header("Upload-Defer-Length", "tus: 1 if the length is declared later."),
            header("Upload-Concat", "tus: partial, or final; and the URLs of the parts."),
            _CHECKSUM,
            _OVERRIDE,
        ],
        body={
            "description": f"Every part of a form that has a filename is a file, up to {most_files}; the fields "
            "`metadata.NAME` and `expires_in` are about all of them. Any other type is the file itself. "
            f"{largest}",
            "content": {"multipart/form-data": {"schema": form}, ANY: {"schema": BINARY}},
        },
    )


def _options() -> Json:
    offered = ("Allow", "Accept-Post", "Waybill-Limits", "Tus-Resumable", "Tus-Version", "Tus-Extension")
    return operation(
        "What is spoken here, and its limits.",
        {"204": answer("It is in the headers.", None, (*SESSION, *offered, *RESUMABLE))},
        OF_ANY_SESSION,
    )


def _put(largest: str) -> Json:
    return operation(
        "Send a file as the body, under the name in the URL.",
        {
            "201": answer(
                "The file is stored, durably; or an upload in several requests has begun, and there is no body.",
                {JSON: ref("Upload")},
                (*SESSION, *_ONCE, *RESUMABLE),
                EXAMPLE,
            )
        },
        (*OF_FILES, *OF_RESUMABLES, "bad_metadata", "forbidden", "idempotency_mismatch"),
        headers=(*SESSION, *RESUMABLE),
        parameters=[
            in_path("name", "The file's name, percent-encoded; none makes it `unnamed`, of a path the end."),
            _KEY,
            *_DIGEST,
            *_ANNOTATIONS,
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
    appends = (*OF_FILES, *OF_RESUMABLES, *mine, "forbidden", "method_not_allowed")
    more = [key, _TUS, _PLACE, *_BEGIN, _CHECKSUM]
    body = _bytes("The bytes that follow.", "application/offset+octet-stream", "application/partial-upload")
    return {
        "get": operation(
            "How far an upload has come.",
            {"200": answer("In the headers.", None, said), "204": answer("In the headers.", None, said)},
            (*OF_ANY_SESSION, *asked, "digest_mismatch", "storage_full", "too_large"),
            parameters=[key, _TUS],
            headers=said,
        ),
        "patch": operation("Go on with an upload.", grown, appends, parameters=more, body=body, headers=said),
        "post": operation(
            "PATCH or DELETE, as X-HTTP-Method-Override says.",
            grown,
            appends,
            parameters=[*more, {**_OVERRIDE, "required": True}],
            body=body,
            headers=said,
        ),
        "delete": operation(
            "Give an upload up; of a complete one only this URL goes.",
            {"204": answer("It is gone.", None, said)},
            (*OF_CHANGES, *asked),
            parameters=[key, _TUS],
            headers=said,
        ),
        "options": {**_options(), "parameters": [key]},
    }


def _session() -> list[tuple[str, str, Json]]:
    here = "/api/session"
    known = answer("The session.", {JSON: ref("Session")}, (*SESSION, *NO_STORE))
    ended = answer("It has ended.", None, SESSION)
    body = {"required": True, "content": {JSON: {"schema": ref("Code")}}}
    own = (*OF_CHANGES, "no_session")
    asks = [
        header(
            "Waybill-Token",
            "true gives a caller without cookies its token; one with a bearer token always gets it.",
        )
    ]
    return [
        (here, "get", operation("The session.", {"200": known}, (*OF_ANY_SESSION, "no_session"))),
        (
            here,
            "post",
            operation(
                "The session, started if there is none.", {"200": known}, (*own, "storage_full"), parameters=asks
            ),
        ),
        (here, "delete", operation("End it, for all who share it.", {"204": ended}, own)),
        (
            f"{here}/rotate",
            "post",
            operation(
                "A new token; the old one ends when it is used, an hour later at most.",
                {"200": known},
                own,
                parameters=asks,
            ),
        ),
        (f"{here}/link", "post", _invite((*own, *OF_BODIES))),
        (
            f"{here}/join",
            "post",
            operation(
                "Share a session; by the same token and code once more.",
                {"200": known},
                (*own, *OF_BODIES, "forbidden"),
                parameters=asks,
                body=body,
            ),
        ),
    ]


def _invite(codes: Iterable[str]) -> Json:
    return operation(
        "A code for a second browser; with the URL of our own page, `page`, its QR code as SVG, too.",
        {"201": answer("A code, good once and for ten minutes.", {JSON: ref("Invitation")}, SESSION)},
        codes,
        body={"content": {JSON: {"schema": ref("JoiningPage")}}},
    )


def _itself() -> list[tuple[str, str, Json]]:
    live = answer("It does.", {JSON: record({"status": {"const": "live"}})}, NO_STORE)
    ready = answer("It would.", {JSON: ref("Readiness")}, NO_STORE)
    not_ready = answer("It would not, and why.", {JSON: ref("Readiness")}, NO_STORE)
    figures = answer("Prometheus' text format.", {"text/plain": {"type": "string"}}, NO_STORE)
    kept = ("ETag", "Cache-Control", "Vary")
    this = answer("This document.", {JSON: {"type": "object"}}, (*kept, "Content-Encoding"))
    same = answer("The client has it already.", None, kept)
    known = [header("If-None-Match", "The ETag of the document that the client has.")]
    return [
        ("/health/live", "get", operation("Whether the process serves.", {"200": live}, OF_ANY, headers=())),
        (
            "/health/ready",
            "get",
            operation("Whether an upload would be taken.", {"200": ready, "503": not_ready}, OF_ANY, headers=()),
        ),
        ("/metrics", "get", operation("What all processes counted.", {"200": figures}, OF_ANY, headers=())),
        ("/openapi.json", "get", operation("This.", {"200": this, "304": same}, OF_ANY, parameters=known, headers=())),
    ]
