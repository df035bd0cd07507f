"""Share links: made, listed and revoked by the session that has the file, opened by whoever has the URL."""

from functools import partial
from typing import Annotated, Any, Final

from pydantic import BaseModel, ConfigDict, Field
from pydantic_core import to_json
from starlette.requests import Request
from starlette.responses import Response

from app.config.types import Duration
from app.errors import InProgress, NotFound
from app.links import Wanted
from app.links.records import ShareLink
from app.maintenance import trash
from app.model import MAX_SIZE, Status, Text, Upload, is_upload_id, rfc3339
from app.uploads import records as upload_records
from app.web import downloads
from app.web.base_path import here
from app.web.json_body import json_body
from app.web.services import Services
from app.web.session import caller_of

LINKS: Final = "/d/"
_NO_STORE: Final = {"Cache-Control": "no-store"}
_JSON: Final = "application/json"


class _Wanted(BaseModel):
    model_config = ConfigDict(extra="forbid")

    expires_in: Duration | None = None
    max_downloads: Annotated[int, Field(strict=True, ge=1, le=MAX_SIZE)] | None = None
    label: Annotated[Text, Field(min_length=1, max_length=200)] | None = None


async def create(request: Request[Services]) -> Response:
    """POST /api/ingestion/files/{id}/links: a URL that gives the file's bytes to whoever has it."""
    caller_of(request).living()
    example = '{"expires_in": "7d", "max_downloads": 10, "label": "for Ann"}'
    wanted = await json_body(request, _Wanted, example)
    upload = await _own(request)
    if upload.status is Status.PROCESSING:
        raise InProgress("the upload is still processed; make a link when it is completed")
    upload = await downloads.completed(request)
    link, key = await request.state["links"].create(
        upload, Wanted(wanted.expires_in, wanted.max_downloads, wanted.label)
    )
    url = here(request, f"{LINKS}{key}")
    body = {**_shown(link, upload), "url": url}
    return Response(to_json(body), 201, media_type=_JSON, headers={**_NO_STORE, "Location": url})


async def show_all(request: Request[Services]) -> Response:
    """GET /api/ingestion/files/{id}/links: the links of a file, without their URLs, which are known nowhere."""
    upload = await _own(request)
    items = [_shown(link, upload) for link in await request.state["links"].list(upload)]
    return Response(to_json({"items": items}), media_type=_JSON, headers=_NO_STORE)


async def revoke(request: Request[Services]) -> Response:
    """DELETE /api/ingestion/files/{id}/links/{link}: from now on its URL is unknown."""
    caller_of(request).living()
    await request.state["links"].revoke(await _own(request), request.path_params["link"])
    return Response(status_code=204)


async def open_link(request: Request[Services]) -> Response:
    """GET, HEAD /d/{secret}: the bytes, as under /api/ingestion/files/{id}."""
    links = request.state["links"]
    link = await links.find(request.path_params["secret"])
    find = partial(_linked, request, link)
    upload = await find()
    links.require_living(link)

    async def take(size: int) -> downloads.GiveBack:
        await links.take(link, size if upload.size else 1)
        return partial(links.give_back, link)

    return await downloads.answer(request, upload, find, take)


async def _own(request: Request[Services]) -> Upload:
    """Find the caller's upload, whatever its state; raises NotFound."""
    upload_id = request.path_params["id"]
    session_id = caller_of(request).session.id
    upload = await request.state["lookup"].find(session_id, upload_id) if is_upload_id(upload_id) else None
    if upload is None:
        raise NotFound
    return upload


async def _linked(request: Request[Services], link: ShareLink) -> Upload:
    """Find the completed upload of a link; raises NotFound if its bytes are not there."""
    db = request.state["db"]
    upload = (await upload_records.list_these(db, [link.upload_id])).get(link.upload_id)
    if upload is not None and upload.damaged and await trash.find_again(request.state["storage"], db, [upload]):
        upload = (await upload_records.list_these(db, [link.upload_id])).get(link.upload_id)
    if upload is None or upload.status is not Status.COMPLETED:
        raise NotFound
    return upload


def _shown(link: ShareLink, upload: Upload) -> dict[str, Any]:
    return {
        "id": link.id,
        "label": link.label,
        "created_at": rfc3339(link.created_at),
        "expires_at": None if link.expires_at is None else rfc3339(link.expires_at),
        "max_downloads": link.max_downloads,
        "downloads": link.downloads(upload.size),
    }
