"""Ordinary uploads, complete files in one request: form POST, raw PUT and POST."""

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, Final
from urllib.parse import unquote_to_bytes

from starlette.requests import Request
from starlette.responses import Response

from app.annotations import NO_ANNOTATIONS, Annotations
from app.errors import BadRequest, DigestMismatch, NotFound, TooLarge, UnsupportedMediaType
from app.idempotency.records import KeyedRequest
from app.model import Digests, Protocol, Upload
from app.protocols.annotations import FormAnnotations, of_request
from app.protocols.filenames import relative_path, safe_filename
from app.protocols.headers import (
    content_type,
    declared_digests,
    digest_field,
    disposition_filename,
    idempotency_key,
    whole_range,
)
from app.protocols.intents import Checksum, checksums, declared_of_body, media_type
from app.protocols.multipart import FormDecoder, PartBegin, PartData
from app.web import ratelimit
from app.web.base_path import here, record_json
from app.web.body import Body, BodyBlocks
from app.web.exchange import exchange_of
from app.web.request import JsonResponse
from app.web.services import Services
from app.web.session import caller_of

_RECORDS_A_TURN: Final = 256
"""How many records are serialised before other tasks run."""
_FORM: Final = "multipart/form-data"
_URLENCODED: Final = "application/x-www-form-urlencoded"
_PLAIN_FORMS: Final = {_URLENCODED, "text/plain"}
"""The media types of forms without enctype, or with this one: browsers send names without their files."""
UPLOADS: Final = "/api/ingestion/uploads"
_BELOW: Final = f"{UPLOADS}/".encode()
MAX_FIELDS: Final = 1000
"""How many parts of a form may be plain fields, beside its files."""


async def post(request: Request[Services]) -> Response:
    """POST /api/ingestion/uploads: a form with files, or a body that is the file."""
    ratelimit.tell(request)
    kind = _single(request, "content-type") or ""
    essence = kind.partition(";")[0].strip().lower()
    if essence == _FORM:
        most = request.state["settings"].max_files_per_request + MAX_FIELDS
        decoder = FormDecoder(kind, max_parts=most)
        with form_body(request) as body:
            uploads = await receive_form(request, decoder, body)
        return _created(request, uploads, b'{"items":[%b]}' % await _records(request, uploads))
    disposition = _single(request, "content-disposition")
    if essence in _PLAIN_FORMS and disposition is None and _is_navigation(request, essence):
        raise UnsupportedMediaType('a form that sends files needs enctype="multipart/form-data"')
    filename = disposition_filename(disposition) if disposition is not None else None
    return await _receive_raw(request, safe_filename(filename or ""))


async def put_file(request: Request[Services]) -> Response:
    """PUT /api/ingestion/uploads/{filename}: the body is the file."""
    ratelimit.tell(request)
    if media_type(request.headers) == _FORM:
        raise UnsupportedMediaType("a form goes by POST to the collection; a PUT's body is the file itself")
    return await _receive_raw(request, *named(request))


def _is_navigation(request: Request[Any], essence: str) -> bool:
    """Whether a browser sends its page's own form, by Sec-Fetch-Mode or, of an old browser, by Accept."""
    mode = request.headers.get("sec-fetch-mode")
    if mode is not None or essence != _URLENCODED:
        return bool(mode == "navigate")
    return not any(name.startswith("sec-fetch-") for name in request.headers) and bool(
        request.headers.get("accept", "").lstrip(" \t").lower().startswith("text/html")
    )


def named(request: Request[Any]) -> tuple[str, str | None]:
    """The clean name that the path of a PUT gives its file, and its path in a folder, if it has one."""
    # From the raw path: the decoded one has lost bytes that are not UTF-8.
    _, here, raw_name = request.scope["raw_path"].partition(_BELOW)
    if not here:
        raise NotFound  # our own path was escaped, which no client does, so the name's beginning is unclear
    name = unquote_to_bytes(raw_name)
    path = relative_path(name) if b"/" in name or b"\\" in name else None
    return safe_filename(name) if path is None else path.rpartition("/")[2], path


async def options(request: Request[Services]) -> Response:
    """OPTIONS /api/ingestion/uploads: the supported protocols, and their limits."""
    settings = request.state["settings"]
    offered = (
        f"max-file-size={settings.max_file_size}, max-request-size={settings.max_request_size}, "
        f"max-files={settings.max_files_per_request}"
    )
    headers = {"Allow": "OPTIONS, POST, PUT", "Accept-Post": "multipart/form-data, */*", "Waybill-Limits": offered}
    return Response(status_code=204, headers=headers)


def form_body(request: Request[Services]) -> Body:
    """The body of a form, which must have the digest that the request declares; see Body for its refusals."""
    if "repr-digest" in request.headers:
        raise BadRequest("a form's Repr-Digest would be that of no file; a part's own headers may have one")
    digests = declared_digests("Content-Digest", request.headers.getlist("content-digest"))
    return body_of(request, checks=checksums(digests, DigestMismatch))


async def receive_form(request: Request[Services], decoder: FormDecoder, body: BodyBlocks) -> list[Upload]:
    """Receive the files of a form, which land together; once, if the request has an Idempotency-Key."""
    whole = _whole_size(request) if "content-range" in request.headers else None
    return await _once(
        request,
        lambda: KeyedRequest(Protocol.FORM, _FORM, None, body.declared, decoder.boundary_bytes),
        lambda claim: _land_form(request, decoder, body, claim, whole),
    )


async def _records(request: Request[Services], uploads: list[Upload]) -> bytes:
    """The records as JSON, one after the other; other tasks run in between when there are many."""
    records = []
    for count, upload in enumerate(uploads, 1):
        records.append(record_json(request, upload))
        if count % _RECORDS_A_TURN == 0:
            await asyncio.sleep(0)
    return b",".join(records)


async def _land_form(
    request: Request[Services], decoder: FormDecoder, body: BodyBlocks, claim: str | None, whole: int | None
) -> list[Upload]:
    landing = request.state["ingest"].request(
        visitor=caller_of(request).visitor(), protocol=Protocol.FORM, declared=body.declared, claim=claim
    )
    fields = FormAnnotations()
    async with landing:
        async for block in body:
            for event in decoder.feed(block):
                if isinstance(event, PartBegin):
                    if event.filename is None:
                        fields.begin(event.name)
                    else:
                        path = NO_ANNOTATIONS if event.path is None else Annotations(path=event.path)
                        await landing.begin_file(
                            event.filename, event.content_type, digests=event.digests, annotations=path
                        )
                elif not landing.receiving:
                    if isinstance(event, PartData):
                        fields.write(event.data)
                elif isinstance(event, PartData):
                    await landing.write(event.data)
                else:
                    await landing.end_file()
        decoder.finish()
        landing.annotate(fields.read(_single(request, "waybill-expires-in")))
        if whole is not None:
            _refuse_fragment(whole, landing.sizes)
        return await landing.publish()


async def _receive_raw(request: Request[Services], filename: str, path: str | None = None) -> Response:
    digests = declared_of_body(request.headers)
    kind = content_type(_single(request, "content-type"))
    annotations = of_request(request.headers, {})
    if path is not None:
        annotations = annotations._replace(path=path)
    upload = await receive(request, filename, kind, digests=digests, annotations=annotations)
    return _created(request, [upload], record_json(request, upload))


async def receive(
    request: Request[Services], filename: str, kind: str, *, digests: Digests, annotations: Annotations
) -> Upload:
    """Receive the body as a file, which must have these digests; once, if the request has an Idempotency-Key."""
    whole = _whole_size(request)
    with body_of(request) as body:
        limit = request.state["settings"].max_file_size
        if body.declared is not None and body.declared > limit:
            raise TooLarge(body.declared, limit)
        if whole is not None and body.declared is not None:
            _refuse_fragment(whole, [body.declared])
        [upload] = await _once(
            request,
            lambda: KeyedRequest(Protocol.RAW, kind, filename, body.declared, sha256=digests.sha256),
            lambda claim: _land_raw(request, body, claim, filename, kind, digests, annotations, whole),
        )
    return upload


async def _land_raw(
    request: Request[Services],
    body: Body,
    claim: str | None,
    filename: str,
    kind: str,
    digests: Digests,
    annotations: Annotations,
    whole: int | None,
) -> list[Upload]:
    landing = request.state["ingest"].request(
        visitor=caller_of(request).visitor(), protocol=Protocol.RAW, declared=body.declared, claim=claim
    )
    async with landing:
        await landing.begin_file(filename, kind, digests=digests, annotations=annotations)
        async for block in body:
            await landing.write(block)
        await landing.end_file()
        if whole is not None:
            _refuse_fragment(whole, landing.sizes)
        return await landing.publish()


async def _once(
    request: Request[Services], asked: Callable[[], KeyedRequest], land: Callable[[str | None], Awaitable[list[Upload]]]
) -> list[Upload]:
    """Receive uploads; with an Idempotency-Key, return those that landed under the key before, if any did."""
    key = _single(request, "idempotency-key")
    if key is None:
        return await land(None)
    session_id = caller_of(request).visitor().session_id
    begun = await request.state["once"].begin(session_id, idempotency_key(key), asked())
    if isinstance(begun, list):
        exchange = exchange_of(request.scope)
        exchange.notes["replayed"] = True
        others = exchange.more_headers
        exchange.more_headers = lambda: (*others(), (b"idempotent-replayed", b"true"))
        return begun
    async with begun:
        return await land(begun.id)


def body_of(request: Request[Services], checks: Sequence[Checksum] = ()) -> Body:
    """The request's body under the service's limits; see Body for its refusals."""
    settings = request.state["settings"]
    timeout = settings.request_timeout.total_seconds()
    return Body(
        request, limit=settings.max_request_size, min_rate=settings.min_upload_rate, timeout=timeout, checks=checks
    )


def _whole_size(request: Request[Any]) -> int | None:
    """The size that a Content-Range gives the file of this request; None when there is none."""
    value = _single(request, "content-range")
    return None if value is None else whole_range(value)


def _refuse_fragment(whole: int, sizes: list[int]) -> None:
    """Refuse a body that is not exactly the one complete file of its request's Content-Range."""
    if sizes != [whole]:
        raise BadRequest(f"the Content-Range speaks of one file of {whole} bytes, and the request has another content")


def _single(request: Request[Any], name: str) -> str | None:
    """The value of a header that must not be repeated, since two readers could take two values."""
    if name not in request.headers:
        return None
    values = request.headers.getlist(name)
    if len(values) > 1:
        raise BadRequest(f"the request has more than one {name.title()}")
    return values[0]


def _created(request: Request[Any], uploads: list[Upload], body: bytes) -> Response:
    exchange_of(request.scope).notes["uploads"] = [upload.id for upload in uploads]
    headers = []
    if len(uploads) == 1:
        headers.append((b"location", here(request, uploads[0].links["self"]).encode("ascii")))
        if uploads[0].sha256 is not None:
            headers.append((b"repr-digest", digest_field(uploads[0].sha256).encode("ascii")))
    return JsonResponse(body, 201, headers)
