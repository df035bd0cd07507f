"""The page at `/`, its assets, and what it does for people without JavaScript."""

import gzip
from collections.abc import AsyncIterator, Mapping
from typing import Any, Final
from urllib.parse import parse_qs, urlencode

from starlette.requests import Request
from starlette.responses import Response
from starlette.types import Scope

from app.errors import NotFound, UnsupportedMediaType, UploadError
from app.history import HistoryQuery
from app.model import Session, Status
from app.protocols.intents import media_type
from app.protocols.multipart import FormDecoder, PartBegin, PartData
from app.sessions import totals_records
from app.uploads import records as upload_records
from app.web import downloads, history, uploads
from app.web.assets import PAGE_POLICY, takes_gzip
from app.web.base_path import here, shown
from app.web.body import Body, BodyBlocks
from app.web.exchange import exchange_of
from app.web.languages import Language, preferred
from app.web.logo import LOGO_POLICY
from app.web.problems import problem
from app.web.request import Request as OwnRequest
from app.web.services import Services
from app.web.session import PAGE, Caller, caller_of, described
from app.web.templates import HTML, LOGO_NAME

_SHOWN: Final = tuple(status for status in Status if status is not Status.DELETED)
_METHODS: Final = {"GET", "HEAD", "POST"}
_FORM: Final = "multipart/form-data"
_DELETE: Final = "delete"
_ID_BYTES: Final = 36
_SAFE: Final = {
    "Content-Security-Policy": PAGE_POLICY,
    "Cross-Origin-Resource-Policy": "same-origin",
    "Referrer-Policy": "same-origin",
}
"""Headers of the page and its assets. With another Referrer-Policy browsers would not tell a form's origin."""
_COMPRESSION: Final = 6


async def show(request: Request[Services]) -> Response:
    """GET, HEAD /: the page, with the newest of the caller's uploads, or those behind a cursor."""
    caller = caller_of(request)
    session = None if caller.recognised is None else caller.recognised.session
    cursor = parse_qs(request.scope["query_string"].decode("latin-1")).get("cursor", [None])[0]
    return await _page(request, session, cursor=cursor)


async def act(request: Request[Services]) -> Response:
    """POST /: upload the files of a form, or delete those that its fields `delete` name; then show the page."""
    if media_type(request.headers) != _FORM:
        raise UnsupportedMediaType(f'the page\'s forms need enctype="{_FORM}"')
    kind, most = request.headers["content-type"], request.state["settings"].max_files_per_request + uploads.MAX_FIELDS
    with uploads.form_body(request) as body:
        blocks, first = await _beginning(body, FormDecoder(kind, max_parts=most))
        whole = _Resumed(blocks, body)
        if first is not None and first.filename is None and first.name == _DELETE:
            fields = FormDecoder(kind, max_parts=downloads.MAX_SELECTED, max_field_bytes=_ID_BYTES)
            await _delete(request, fields, whole)
        else:
            landed = await uploads.receive_form(request, FormDecoder(kind, max_parts=most), whole)
            exchange_of(request.scope).notes["uploads"] = [upload.id for upload in landed]
    return Response(status_code=303, headers={"Location": here(request, PAGE), "Cache-Control": "no-store"})


async def docs(request: Request[Services]) -> Response:
    """GET /docs: the description of the API, to read and to try."""
    return request.state["templates"].docs.answer(request, _SAFE)


async def asset(request: Request[Services]) -> Response:
    """GET /static/{name}: one of the files that the page is made of, or the operator's logo."""
    name, templates = request.path_params["name"], request.state["templates"]
    if name == LOGO_NAME and templates.logo is not None:
        return templates.logo.answer(request, {**_SAFE, "Content-Security-Policy": LOGO_POLICY})
    found = templates.assets.get(name)
    if found is None:
        raise NotFound
    return found.answer(request, _SAFE)


async def refused(scope: Scope, refusal: UploadError) -> Response:
    """The page with a refusal in words, for a method that the page has; else the problem document."""
    exchange = exchange_of(scope)
    if scope["method"] not in _METHODS:
        return problem(refusal, exchange.id)
    request = OwnRequest(scope, exchange.receive)
    caller: Caller | None = scope.get("caller")
    session = None if caller is None or caller.recognised is None else caller.recognised.session
    try:
        return await _page(request, session, refusal=refusal)
    except UploadError:  # the database is away: the page is shown without the session
        return await _page(request, None, refusal=refusal)


async def _page(
    request: Request[Services],
    session: Session | None,
    *,
    cursor: str | None = None,
    refusal: UploadError | None = None,
) -> Response:
    state = request.state
    language = preferred(request.headers.getlist("accept-language"))
    context: dict[str, Any] = {
        "limits": {"file_bytes": state["settings"].max_file_size, "files": state["settings"].max_files_per_request},
        "session": None,
        "quota": None,
        "records": None,
        "first_url": None,
        "next_url": None,
        "notice": None if refusal is None else _notice(language, refusal, exchange_of(request.scope).id),
        "undo": None,
    }
    if session is not None:
        has = await totals_records.find(state["db"], session.id)
        context["session"] = await described(request, session, has)
        context["quota"] = history.quota(request, has)
        context |= await _records(request, session.id, cursor)
    body = state["templates"].page(language, context)
    headers = {
        **_SAFE,
        "Content-Language": language.code,
        "Cache-Control": "no-store",
        "Vary": "Accept-Language, Accept-Encoding",
        **({} if refusal is None else refusal.headers),
    }
    if takes_gzip(request.headers.getlist("accept-encoding")):
        body, headers["Content-Encoding"] = gzip.compress(body, _COMPRESSION, mtime=0), "gzip"
    return Response(body, 200 if refusal is None else refusal.status, headers, HTML)


def _notice(language: Language, refusal: UploadError, request_id: str) -> dict[str, str]:
    text = language.refusal(refusal.code, refusal.members)
    return {"kind": "refused", "text": text, "detail": str(refusal), "request_id": request_id}


async def _records(request: Request[Services], session_id: str, cursor: str | None) -> Mapping[str, Any]:
    """The records of one page of the history, and the URLs of the page behind it and of the first one."""
    state, query = request.state, HistoryQuery(statuses=_SHOWN)
    after = None if cursor is None else history.position_of(state["cursors"], cursor, query, session_id)
    page = await upload_records.list_uploads(
        state["db"].reading, session_id, query, after=after, page_size=history.DEFAULT_LIMIT
    )
    state["metrics"].broken_records.add(page.skipped)
    root, base = here(request, PAGE), state["settings"].base_path
    following = None if page.end is None else history.cursor_behind(state["cursors"], page.end, query, session_id)
    return {
        "records": [upload.model_dump(mode="json") if not base else shown(upload, base) for upload in page.uploads],
        "first_url": None if cursor is None else root,
        "next_url": None if following is None else f"{root}?{urlencode({'cursor': following})}",
    }


async def _beginning(body: Body, decoder: FormDecoder) -> tuple[list[bytes], PartBegin | None]:
    """The blocks of a form up to the beginning of its first part, and that part; None if there is none.

    They are few: the decoder refuses a form that has not begun after some kilobytes.
    """
    blocks: list[bytes] = []
    async for block in body:
        blocks.append(block)
        for event in decoder.feed(block):
            if isinstance(event, PartBegin):
                return blocks, event
    return blocks, None


class _Resumed:
    """A body of which some blocks were read already: these once more, then the others."""

    def __init__(self, blocks: list[bytes], rest: Body) -> None:
        self.declared = rest.declared
        self._blocks = blocks
        self._rest = rest

    async def __aiter__(self) -> AsyncIterator[bytes]:
        for block in self._blocks:
            yield block
        async for block in self._rest:
            yield block


async def _delete(request: Request[Services], decoder: FormDecoder, body: BodyBlocks) -> None:
    """Delete the files that the fields `delete` of a form name."""
    caller_of(request).living()
    ids: list[bytearray] = []
    naming = False
    async for block in body:
        for event in decoder.feed(block):
            if isinstance(event, PartBegin):
                naming = event.name == _DELETE
                ids += [bytearray()] if naming else []
            elif naming and isinstance(event, PartData):
                ids[-1].extend(event.data)
    decoder.finish()
    if not await downloads.delete_these(request, [value.decode("latin-1") for value in ids]):
        raise NotFound
