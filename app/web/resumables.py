"""Resumable uploads, many requests for one file: tus and HTTP's own protocol, by one driver.

A codec turns headers into an intent, and the resulting state into headers. The work between
the two is the same for both.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any, Final

from starlette.requests import Request
from starlette.responses import Response

from app.config import Settings
from app.errors import InProgress, MethodNotAllowed, NotFound, RateLimited, TooLarge, TooSlow, Unavailable, UploadError
from app.model import Protocol, Resource
from app.protocols import ietf, tus
from app.protocols.detect import codec_for, detect
from app.protocols.filenames import UNNAMED
from app.protocols.intents import Answer, Append, Ask, Codec, Concatenate, Create, Intent, Limits, State
from app.resumables import WHOLE_BYTES, Appended, Description, Interrupted
from app.web import ratelimit, uploads
from app.web.base_path import here, record_json
from app.web.body import Body, Rest
from app.web.exchange import exchange_of
from app.web.services import Services
from app.web.session import caller_of

INTERIM: Final = "waybill.interim"
"""The scope's extension that sends an interim response of a status and headers; not every server has it."""

_MOST_REPORTS: Final = 3
"""Most offsets that one request is sent while its body comes. Go's HTTP client, and Caddy by it, fails a request at the
sixth interim response: 100, the offer to resume and these are five."""
_REPORTS_APART: Final = 8
"""Each report needs this many times the bytes of the one before."""

_HERE: Final = "OPTIONS, POST, PUT"
_AT_RESOURCE: Final = "DELETE, GET, HEAD, OPTIONS, PATCH, PUT"


async def post(request: Request[Services]) -> Response:
    """POST /api/ingestion/uploads: a form, a file, or the beginning of a file, as the headers declare."""
    if (method := tus.method("POST", request.headers)) != "POST":
        raise MethodNotAllowed(method, _HERE)
    protocol = detect("POST", request.headers)
    return await (uploads.post(request) if protocol is None else _begin(request, protocol))


async def put(request: Request[Services]) -> Response:
    """PUT /api/ingestion/uploads/{filename}: a file, or the beginning of a file."""
    protocol = detect("PUT", request.headers)
    return await (uploads.put_file(request) if protocol is None else _begin(request, protocol))


async def resource(request: Request[Services]) -> Response:
    """GET, HEAD, PATCH, DELETE /api/ingestion/uploads/{key}: query the offset, append, cancel.

    Where a proxy blocks PATCH or DELETE, a POST with X-HTTP-Method-Override stands for it.
    """
    method = tus.method(request.method, request.headers)
    if method == "POST":
        raise MethodNotAllowed(method, _AT_RESOURCE)
    try:
        return await _at_resource(request, method, _opener)
    except NotFound:
        # For a tus client a 404 ends its upload, so this does not rely on a session recognised a second ago.
        opener = _opener(request)
        if opener is None or not await request.state["resumes"].belongs(request.path_params["key"], opener):
            raise
        return await _at_resource(request, method, lambda request: None)


async def _at_resource(
    request: Request[Services], method: str, opener_of: Callable[[Request[Services]], str | None]
) -> Response:
    protocol = detect(method, request.headers)
    if protocol is None:
        with _refusing_as(_codec(request, Protocol.RESUMABLE, method)):
            found = await request.state["resumes"].find(request.path_params["key"], opener_of(request))
        protocol = found.protocol
    codec = _codec(request, protocol, method)
    with _refusing_as(codec):
        intent, opener = codec.read(), opener_of(request)
        if isinstance(intent, Append):
            return await _append(request, codec, intent, opener)
        if isinstance(intent, Ask):
            return await _ask(request, codec, intent, opener)
        return await _cancel(request, codec, intent, opener)


async def options(request: Request[Services]) -> Response:
    """OPTIONS /api/ingestion/uploads, and below: the supported protocols, and their limits."""
    answer = await uploads.options(request)
    answer.headers.update(offers(request.state["settings"]))
    if "key" in request.path_params:
        answer.headers["Allow"] = _AT_RESOURCE
    return answer


def offers(settings: Settings) -> dict[str, str]:
    """The headers that announce the supported protocols, and their limits."""
    limits = _limits(settings)
    return dict((*tus.options(limits), *ietf.options(limits)))


async def _begin(request: Request[Services], protocol: Protocol) -> Response:
    ratelimit.tell(request)
    codec = _codec(request, protocol, request.method)
    with _refusing_as(codec):
        intent = codec.read()
        if isinstance(intent, Concatenate):
            return await _concatenate(request, codec, intent)
        assert isinstance(intent, Create)
        if request.method == "PUT":
            filename, path = uploads.named(request)
            intent = replace(intent, filename=filename, annotations=intent.annotations._replace(path=path))
        if _is_ordinary(request, codec, intent):
            return await _receive_whole(request, codec, intent)
        return await _create(request, codec, intent, protocol)


def _is_ordinary(request: Request[Services], codec: Codec, intent: Create) -> bool:
    """Whether the request brings the complete file, and is not offered to resume it.

    The client would not learn the upload's URL in time; or the file is so small that it is sent again sooner.
    """
    has_length = "content-length" in request.headers
    is_small = has_length and intent.length is not None and intent.length <= WHOLE_BYTES
    resumes = codec.accepts_interim and not is_small
    return intent.ends is True and (intent.length is None or has_length) and not intent.checks and not resumes


async def _receive_whole(request: Request[Services], codec: Codec, intent: Create) -> Response:
    """Receive an ordinary upload, with the protocol's headers on its answer."""
    upload = await uploads.receive(
        request,
        intent.filename or UNNAMED,
        intent.content_type,
        digests=intent.digests,
        annotations=intent.annotations,
    )
    where, now_us = here(request, upload.links["self"] or ""), request.state["now_us"]()
    state = State(where, upload.size, upload.size, completed=True, at_us=now_us, record=where, sha256=upload.sha256)
    exchange_of(request.scope).notes["uploads"] = [upload.id]
    return _response(codec.answer(intent, state), record_json(request, upload), "application/json")


async def _create(request: Request[Services], codec: Codec, intent: Create, protocol: Protocol) -> Response:
    body: Body | Rest | None = uploads.body_of(request, intent.checks) if intent.brings_bytes else None
    resumes, visitor = request.state["resumes"], caller_of(request).visitor()
    description = Description(
        protocol=protocol,
        filename=intent.filename or UNNAMED,
        content_type=intent.content_type,
        length=intent.length,
        metadata=intent.metadata,
        concat=intent.concat,
        is_part=intent.is_part,
        digests=intent.digests,
        annotations=intent.annotations,
    )
    if isinstance(body, Body) and _is_whole(intent, body):
        try:
            with body:
                made, key = await resumes.create_whole(visitor, description, body)
            return _answer(request, codec, intent, made, key)
        except Interrupted as interrupted:
            body = Rest(interrupted.blocks, interrupted.reason, body.declared)
    made, key = await resumes.create(visitor, description)
    # From here on the client can resume, whatever happens to the body.
    with _refusing_as(codec, location=_url_of(request, key)):
        if body is not None and body.declared != 0:
            _send_interim(request, codec.interim(_state(request, made, key)))
            made = await _receive(request, codec, intent, body, key, None)  # the creator may append without a session
    return _answer(request, codec, intent, made, key)


def _is_whole(intent: Create, body: Body) -> bool:
    """Whether the request brings a small file that is complete, so that it need not be created before its bytes."""
    is_small = 0 < (intent.length or 0) <= WHOLE_BYTES
    return is_small and intent.length == body.declared and intent.ends is None and not intent.is_part


async def _concatenate(request: Request[Services], codec: Codec, intent: Concatenate) -> Response:
    made, key = await request.state["resumes"].concatenate(
        caller_of(request).visitor(),
        Description(
            protocol=Protocol.TUS,
            filename=intent.filename or UNNAMED,
            content_type=intent.content_type,
            metadata=intent.metadata,
            concat=intent.concat,
            digests=intent.digests,
            annotations=intent.annotations,
        ),
        intent.keys,
    )
    return _answer(request, codec, intent, made, key)


async def _append(request: Request[Services], codec: Codec, intent: Append, opener: str | None) -> Response:
    if caller_of(request).recognised is not None:
        ratelimit.tell(request)
    key = request.path_params["key"]
    grown = await _receive(request, codec, intent, uploads.body_of(request, intent.checks), key, opener)
    return _answer(request, codec, intent, grown, key)


async def _receive(
    request: Request[Services], codec: Codec, intent: Create | Append, body: Body | Rest, key: str, opener: str | None
) -> Resource:
    """Append the body to the resource, which is completed if that was its end.

    The bytes of a body that breaks off are kept, unless it has a checksum, which cannot be compared then.
    """
    resumes = request.state["resumes"]
    offset = intent.offset if isinstance(intent, Append) else 0
    appended = Appended(
        offset=offset,
        declared=body.declared,
        length=intent.length,
        checked=bool(intent.checks),
        digests=intent.digests,
    )
    appending = resumes.append(key, opener, appended)
    try:
        async with appending:
            with body:
                reports, due = 0, 1
                async for block in body:
                    await appending.write(block)
                    if reports < _MOST_REPORTS and appending.durable - offset >= due:
                        reports, due = reports + 1, (appending.durable - offset) * _REPORTS_APART
                        _send_interim(request, codec.progress(appending.durable))
            # Unless the request states whether it ends the file, the length does, in `keep`.
            return await (appending.complete() if intent.ends else appending.keep())
    except (TooSlow, RateLimited) as error:
        # A 4xx would be final for these clients, although their bytes are kept.
        raise Unavailable(f"{error}; go on from what arrived", retry_after=1) from error
    except TooLarge as error:
        if intent.ends is not None:  # a client whose declaration is wrong cannot correct it by going on
            await resumes.fail(key, opener, error)
        raise


async def _ask(request: Request[Services], codec: Codec, intent: Ask, opener: str | None) -> Response:
    key = request.path_params["key"]
    try:
        found = await request.state["resumes"].find(key, opener, newest=True)
    except InProgress as error:
        # Clients abandon an upload at any 4xx to this query, and this state is temporary.
        raise Unavailable(str(error), retry_after=1) from error
    return _answer(request, codec, intent, found, key)


async def _cancel(request: Request[Services], codec: Codec, intent: Intent, opener: str | None) -> Response:
    key = request.path_params["key"]
    await request.state["resumes"].cancel(key, opener)
    gone = State(_url_of(request, key), None, None, completed=False, at_us=request.state["now_us"]())
    return _response(codec.answer(intent, gone))


def _opener(request: Request[Services]) -> str | None:
    """The id of the caller's session; None where possession of the URL is enough."""
    caller = caller_of(request)
    if caller.is_nobody and not request.state["settings"].upload_url_needs_session:
        return None
    return caller.session.id


def _codec(request: Request[Services], protocol: Protocol, method: str) -> Codec:
    settings = request.state["settings"]
    offers = settings.interim_responses and INTERIM in request.scope.get("extensions", ())
    versions = settings.interop_versions if offers else ()
    return codec_for(protocol, method, request.headers, _limits(settings), versions)


def _limits(settings: Settings) -> Limits:
    return Limits(file_bytes=settings.max_file_size, idle_seconds=int(settings.upload_idle_time.total_seconds()))


@contextmanager
def _refusing_as(codec: Codec, location: str | None = None) -> Iterator[None]:
    """Add the protocol's headers to a refusal raised in the block."""
    try:
        yield
    except UploadError as error:
        for name, value in codec.refusal(error, location=location):
            error.headers.setdefault(name, value)
        raise


def _send_interim(request: Request[Any], answer: Answer | None) -> None:
    if answer is not None:
        say = request.scope["extensions"][INTERIM]
        say(answer.status, [(name.lower().encode("ascii"), value.encode("latin-1")) for name, value in answer.headers])


def _url_of(request: Request[Any], key: str) -> str:
    return here(request, f"{uploads.UPLOADS}/{key}")


def _state(request: Request[Services], found: Resource, key: str) -> State:
    upload = found.upload if found.completed else None
    return State(
        location=_url_of(request, key),
        offset=None if found.is_final and not found.completed else found.offset,
        length=found.length,
        completed=found.completed,
        at_us=request.state["now_us"](),
        expires_at_us=None if found.completed else found.expires_at,
        metadata=found.metadata,
        concat=found.concat,
        record=here(request, upload.links["self"] or "") if upload else None,
        sha256=upload.sha256 if upload else None,
    )


def _answer(request: Request[Services], codec: Codec, intent: Intent, found: Resource, key: str) -> Response:
    exchange_of(request.scope).notes["uploads"] = [found.upload_id]
    answer = codec.answer(intent, _state(request, found, key))
    if not answer.with_record:
        return _response(answer)
    assert found.upload is not None  # only parts have no record, and their answers name none
    return _response(answer, record_json(request, found.upload), "application/json")


def _response(answer: Answer, body: bytes = b"", kind: str | None = None) -> Response:
    response = Response(body, answer.status, media_type=kind)
    for name, value in answer.headers:
        response.headers.append(name, value)
    return response
