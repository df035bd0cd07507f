"""GET and POST /api/ingestion/files.zip: many files in one archive, streamed."""

import asyncio
import hashlib
from collections.abc import Iterable
from typing import Final, NamedTuple
from urllib.parse import parse_qsl

import structlog
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from app.errors import BadQuery, BadRequest, TooManyFiles, Unavailable, UnsupportedMediaType
from app.history import HistoryQuery
from app.model import Status, Upload, is_upload_id
from app.protocols.archive import MEDIA_TYPE, Archive
from app.protocols.headers import attachment
from app.protocols.intents import media_type
from app.protocols.multipart import FormDecoder, PartBegin, PartData
from app.storage import NotStored, Storage
from app.uploads import records as upload_records
from app.web.body import Body
from app.web.downloads import INERT, hang_up
from app.web.history import parse
from app.web.services import Services
from app.web.session import caller_of

log = structlog.stdlib.get_logger("waybill.web")

_PAGE_SIZE: Final = 500
_BLOCK_BYTES: Final = 256 * 1024
_AT_HAND_BYTES: Final = 16 * 1024
"""A block up to this size is digested in the event loop, which takes less than a call into a thread."""
_ID_BYTES: Final = 256
"""The bytes that a form may take for one id, its part's headers included."""
_ARCHIVES_AT_ONCE: Final = 16
"""How many archives of the allowed size each process keeps the entries of."""


class _Entry(NamedTuple):
    """A file of the archive, and what its bytes must be."""

    id: str
    size: int
    sha256: str


async def download(request: Request[Services]) -> Response:
    """GET, HEAD /api/ingestion/files.zip: every file whose record matches the history's filters."""
    session_id = caller_of(request).session.id
    asked = parse(request, session_id)
    for name, is_given in (
        ("limit", "limit" in request.query_params),
        ("cursor", asked.after is not None),
        ("count", "count" in request.query_params),
        ("format", "format" in request.query_params),
        ("bom", asked.with_bom),
    ):
        if is_given:
            raise BadQuery(name, "none with an archive, which holds everything that matches")
    return await _answer(request, await _matching(request, session_id, asked.query))


async def download_selection(request: Request[Services]) -> Response:
    """POST /api/ingestion/files.zip: the files that a form's fields `id` name."""
    session_id = caller_of(request).session.id
    ids = await _selected(request)
    uploads: list[Upload] = []
    find = request.state["lookup"].find
    for at in range(0, len(ids), _PAGE_SIZE):
        found = await asyncio.gather(*(find(session_id, upload_id) for upload_id in ids[at : at + _PAGE_SIZE]))
        uploads += [upload for upload in found if upload is not None and upload.status is Status.COMPLETED]
    return await _answer(request, uploads)


async def _matching(request: Request[Services], session_id: str, query: HistoryQuery) -> list[Upload]:
    """Find the completed uploads that match, or refuse too many; in slices, so that no query takes long."""
    most = request.state["settings"].max_zip_files
    if query.statuses and Status.COMPLETED not in query.statuses:
        return []
    query = query.model_copy(update={"statuses": (Status.COMPLETED,)})
    uploads: list[Upload] = []
    after = None
    while True:
        page = await upload_records.list_uploads(
            request.state["db"].reading, session_id, query, after=after, page_size=_PAGE_SIZE
        )
        request.state["metrics"].broken_records.add(page.skipped)
        uploads += page.uploads
        if len(uploads) > most:
            raise TooManyFiles(len(uploads), most, "the archive")
        if page.end is None:
            return uploads
        after = page.end


async def _selected(request: Request[Services]) -> list[str]:
    """The ids in a form of either kind, each once, in their order."""
    settings = request.state["settings"]
    most = settings.max_zip_files
    kind = media_type(request.headers)
    if kind not in {"application/x-www-form-urlencoded", "multipart/form-data"}:
        raise UnsupportedMediaType("a selection is a form with fields named id")
    timeout = settings.request_timeout.total_seconds()
    with Body(request, limit=(most + 1) * _ID_BYTES, min_rate=settings.min_upload_rate, timeout=timeout) as body:
        if kind == "multipart/form-data":
            values = await _fields(FormDecoder(request.headers["content-type"], max_parts=most), body)
        else:
            values = _pairs(b"".join([block async for block in body]))
    if len(values) > most:
        raise TooManyFiles(len(values), most, "the archive")
    return list(dict.fromkeys(value for value in values if is_upload_id(value)))


def _pairs(text: bytes) -> list[str]:
    try:
        pairs = parse_qsl(text.decode("ascii"), keep_blank_values=True, strict_parsing=bool(text))
    except ValueError:
        raise BadRequest("the body is no form of fields, percent-encoded") from None
    return _of_ids(pairs)


async def _fields(decoder: FormDecoder, body: Body) -> list[str]:
    fields: list[tuple[str, bytearray]] = []
    async for block in body:
        for event in decoder.feed(block):
            match event:
                case PartBegin(filename=None, name=name):
                    fields.append((name, bytearray()))
                case PartBegin():
                    raise BadRequest("a selection has no files, only fields named id")
                case PartData(data):
                    fields[-1][1].extend(data)
    decoder.finish()
    return _of_ids((name, value.decode("latin-1")) for name, value in fields)


def _of_ids(fields: Iterable[tuple[str, str]]) -> list[str]:
    values = []
    for name, value in fields:
        if name != "id":
            raise BadRequest("a selection has fields named id, and no others")
        values.append(value)
    return values


async def _answer(request: Request[Services], uploads: list[Upload]) -> Response:
    settings, storage = request.state["settings"], request.state["storage"]
    if _Archived.entries + len(uploads) > _ARCHIVES_AT_ONCE * settings.max_zip_files:
        raise Unavailable("too many archives are being sent")
    archive = Archive()
    entries = []
    for upload in uploads:
        assert upload.sha256 is not None
        archive.add(upload.path or upload.filename, upload.size)
        entries.append(_Entry(upload.id, upload.size, upload.sha256))
        if len(entries) % _PAGE_SIZE == 0:
            await asyncio.sleep(0)
    return _Archived(archive, entries, storage)


class _Archived(Response):
    """An answer of stored files in an archive. One that differs from its record ends it before the directory."""

    entries = 0  # of all archives that this process is sending

    def __init__(self, archive: Archive, entries: list[_Entry], storage: Storage) -> None:
        super().__init__(
            None,
            200,
            {
                **INERT,
                "Content-Type": MEDIA_TYPE,
                "Content-Disposition": attachment("files.zip"),
                "Content-Length": str(archive.length),
            },
        )
        self._archive = archive
        self._entries = entries
        self._storage = storage

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
        if scope["method"] == "HEAD":
            await send({"type": "http.response.body", "body": b""})
            return
        listening = asyncio.create_task(hang_up(receive))
        _Archived.entries += len(self._entries)
        try:
            for entry in self._entries:
                await self._send_file(entry, listening, send)
                if listening.done():
                    return  # the client has left
            directory = b"".join(self._archive.directory())
            for at in range(0, len(directory), _BLOCK_BYTES):
                await _send_block(send, directory[at : at + _BLOCK_BYTES])
            await send({"type": "http.response.body", "body": b""})
        finally:
            _Archived.entries -= len(self._entries)
            listening.cancel()

    async def _send_file(self, entry: _Entry, listening: "asyncio.Task[None]", send: Send) -> None:
        try:
            stored = await self._storage.open(entry.id)
        except NotStored:
            raise Unavailable(f"the file of upload {entry.id} is not in the store") from None
        try:
            if stored.size != entry.size:
                raise Unavailable(f"the file of upload {entry.id} has another length than was received")
            digest, offset = hashlib.sha256(), 0
            head = self._archive.header()
            while offset < entry.size and not listening.done():
                block = await stored.read(offset, min(_BLOCK_BYTES, entry.size - offset))
                if not block:
                    raise Unavailable(f"the file of upload {entry.id} became shorter while it was read")
                offset += len(block)
                if len(block) <= _AT_HAND_BYTES:
                    digest.update(block)
                else:
                    await asyncio.to_thread(digest.update, block)
                if offset == entry.size and digest.hexdigest() != entry.sha256:
                    raise Unavailable(f"the file of upload {entry.id} has other bytes than were received")
                await _send_block(send, head + self._archive.block(block))
                head = b""
            if offset == entry.size:
                await _send_block(send, head + self._archive.trailer())
        finally:
            await stored.close()


async def _send_block(send: Send, block: bytes) -> None:
    await send({"type": "http.response.body", "body": block, "more_body": True})
