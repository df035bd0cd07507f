"""Downloads: complete or in ranges, under conditions, and never in a form that a browser runs."""

import asyncio
import re
from collections.abc import Awaitable, Callable, Mapping, Sequence
from functools import partial
from typing import Annotated, Any, Final

import structlog
from pydantic import BaseModel, ConfigDict, Field
from pydantic_core import to_json
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import Message, Receive, Scope, Send

from app.cancellation import run_to_completion
from app.db.queryable import Transaction
from app.errors import Gone, NotFound, PreconditionFailed, Unavailable
from app.maintenance import trash
from app.model import Status, Upload, is_upload_id
from app.protocols.headers import attachment, byte_ranges, digest_field, etag, http_date, matches, parse_http_date
from app.sessions.opening import opened
from app.storage import NotStored, StoredFile
from app.uploads import records as upload_records
from app.web.json_body import json_body
from app.web.services import Services
from app.web.session import caller_of

log = structlog.stdlib.get_logger("waybill.web")

_BLOCK_BYTES: Final = 256 * 1024
_LARGE_BLOCK_BYTES: Final = 1024 * 1024
"""Measured: 0.64 CPU seconds a GiB with the small block, 0.40 with this one."""
_LARGE_BLOCKS: Final = 32
"""How many downloads may have large blocks, since each keeps up to two in memory while its client is slow."""
MAX_SELECTED: Final = 1000
"""How many files one request may delete."""
_REMOVED_AT_ONCE: Final = 100
_BYTES: Final = "application/octet-stream"
INERT: Final = {
    "Content-Security-Policy": "sandbox; default-src 'none'; frame-ancestors 'none'",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "private, no-store",
}
_MEDIA_TYPE = re.compile(r'([a-z]+)/([a-z0-9.+_-]+)(?:[ \t]*;[ \t]*charset="?([a-z0-9_-]+)"?)?[ \t]*(?:;.*)?')
_HARMLESS_FAMILIES: Final = frozenset({"image", "audio", "video"})
_HARMLESS: Final = frozenset({"application/pdf", "application/zip", "text/plain", "text/csv"})
GiveBack = Callable[[int], Awaitable[None]]
_Part = tuple[bytes, int, int]
"""The bytes before a part, and the part's range of the file: start, and stop exclusive."""


async def download(request: Request[Services]) -> Response:
    """GET, HEAD /api/ingestion/files/{id}: the bytes, or the requested ranges of them."""
    return await answer(request, await completed(request), partial(completed, request))


async def answer(
    request: Request[Services],
    upload: Upload,
    find_again: Callable[[], Awaitable[object]],
    take: "Callable[[int], Awaitable[GiveBack]] | None" = None,
) -> Response:
    """The answer with the bytes of a completed upload, or the requested ranges of them.

    `find_again` raises the refusal if the upload was deleted meanwhile. `take` is told how many bytes will be
    sent; what it returns is told in the end how many of them were not.
    """
    assert upload.sha256 is not None
    assert upload.completed_at is not None
    tag = etag(upload.sha256)
    headers = {
        "Accept-Ranges": "bytes",
        "ETag": tag,
        "Last-Modified": http_date(upload.completed_at),
        "Repr-Digest": digest_field(upload.sha256),
        "Content-Disposition": attachment(upload.filename),
        **INERT,
    }
    if _not_modified(request, tag, upload.completed_at):
        return Response(status_code=304, headers=headers)
    ranges = None
    if request.method == "GET" and _ranges_count(request, tag, upload):  # RFC 9110 §14.2: a Range is for GET alone
        ranges = byte_ranges(request.headers.get("range"), upload.size)
    stored = await _open(request, upload, find_again)
    give_back = None
    if take is not None and request.method == "GET":
        try:
            give_back = await take(sum(stop - start for start, stop in ranges or [(0, upload.size)]))
        except BaseException:
            await stored.close()
            raise
    parts, kind, end = _arranged(upload, ranges, headers)
    return _FileAnswer(stored, parts, 200 if ranges is None else 206, headers, kind, end, give_back)


def _arranged(
    upload: Upload, ranges: Sequence[tuple[int, int]] | None, headers: dict[str, str]
) -> tuple[list[_Part], str, bytes]:
    """The parts of an answer with these ranges of the file, its type, and the bytes behind; completes its headers."""
    kind = _media_type(upload)
    if ranges is None:
        headers["Content-Length"] = str(upload.size)
        return [(b"", 0, upload.size)], kind, b""
    if len(ranges) == 1:
        start, stop = ranges[0]
        headers["Content-Range"] = f"bytes {start}-{stop - 1}/{upload.size}"
        headers["Content-Length"] = str(stop - start)
        return [(b"", start, stop)], kind, b""
    assert upload.sha256 is not None
    boundary = upload.sha256[:32]
    parts = [
        (
            f"\r\n--{boundary}\r\nContent-Type: {kind}\r\n"
            f"Content-Range: bytes {start}-{stop - 1}/{upload.size}\r\n\r\n".encode("ascii"),
            start,
            stop,
        )
        for start, stop in ranges
    ]
    end = f"\r\n--{boundary}--\r\n".encode("ascii")
    headers["Content-Length"] = str(sum(len(head) + stop - start for head, start, stop in parts) + len(end))
    return parts, f"multipart/byteranges; boundary={boundary}", end


async def delete(request: Request[Services]) -> Response:
    """DELETE /api/ingestion/files/{id}: remove the bytes, keep the record. Can be repeated within a day."""
    if not await delete_these(request, [request.path_params["id"]]):
        raise NotFound
    return Response(status_code=204)


class _Selection(BaseModel):
    model_config = ConfigDict(strict=True, extra="forbid")

    ids: Annotated[list[str], Field(min_length=1, max_length=MAX_SELECTED)]


async def delete_many(request: Request[Services]) -> Response:
    """POST /api/ingestion/files/delete: the same for many files at once, with an outcome for each."""
    caller_of(request).living()
    selection = await json_body(request, _Selection, f'{{"ids": ["0193a1f0-…"]}}, of {MAX_SELECTED} ids at most')
    deleted = await delete_these(request, selection.ids)
    items = [
        {"id": upload_id, "outcome": "deleted" if upload_id in deleted else "not_found"}
        for upload_id in dict.fromkeys(selection.ids)
    ]
    return Response(to_json({"items": items}), media_type="application/json", headers={"Cache-Control": "no-store"})


async def delete_these(request: Request[Services], ids: Sequence[str]) -> set[str]:
    """Delete those of these files that are the caller's; return their ids."""
    known = [upload_id for upload_id in ids if is_upload_id(upload_id)]
    token, now_us = caller_of(request).living().token, request.state["now_us"]

    async def run(transaction: Transaction) -> set[str]:
        session = await opened(transaction, token, now_us())
        return await upload_records.delete_session_uploads(transaction, session.id, known, now_us())

    if not known:
        return set()
    # The records first: once that is committed no record needs the files, and a crash before their
    # removal leaves them to the sweep. The other order could lose bytes that a row promises.
    deleted = await request.state["db"].transaction_that_frees(run)
    storage, keys = request.state["storage"], sorted(deleted)
    for at in range(0, len(keys), _REMOVED_AT_ONCE):  # also when repeated: the first one may have failed
        await storage.remove(keys[at : at + _REMOVED_AT_ONCE])
    return deleted


async def completed(request: Request[Services]) -> Upload:
    """Find the caller's upload; raises Gone if its file was found to be damaged."""
    upload = await _kept(request)
    if upload.error is not None and await trash.find_again(request.state["storage"], request.state["db"], [upload]):
        upload = await _kept(request)
    if upload.error is not None:
        raise Gone(f"{upload.error.detail}; nothing of it is sent")
    return upload


async def _kept(request: Request[Services]) -> Upload:
    """Find the caller's completed upload; foreign, absent and deleted ones are NotFound alike."""
    upload_id = request.path_params["id"]
    if not is_upload_id(upload_id):
        raise NotFound
    upload = await request.state["lookup"].find(caller_of(request).session.id, upload_id)
    if upload is None or not (upload.status is Status.COMPLETED or upload.damaged):
        raise NotFound
    return upload


async def _open(request: Request[Services], upload: Upload, find_again: Callable[[], Awaitable[object]]) -> StoredFile:
    """Open the stored file, if it agrees with the record. Damage is an error, never a 200."""
    try:
        stored = await request.state["storage"].open(upload.id)
    except NotStored:
        await find_again()  # the upload may have been deleted meanwhile
        log.error("a file is missing from the store", upload=upload.id)
        raise Unavailable("the file cannot be read now") from None
    if stored.size != upload.size:
        await stored.close()
        log.error("a file has changed in the store", upload=upload.id, size=stored.size, recorded=upload.size)
        raise Unavailable("the file cannot be read now")
    return stored


def _not_modified(request: Request[Any], tag: str, changed_at_us: int) -> bool:
    """Whether the client has the file already (RFC 9110 §13.2.2); raises PreconditionFailed."""
    headers = request.headers
    changed_at = changed_at_us // 1_000_000
    if wanted := headers.getlist("if-match"):
        if not matches(", ".join(wanted), tag, weak=False):
            raise PreconditionFailed
    elif (since := parse_http_date(headers.get("if-unmodified-since", ""))) is not None and changed_at > since:
        raise PreconditionFailed
    if known := headers.getlist("if-none-match"):
        return matches(", ".join(known), tag, weak=True)
    since = parse_http_date(headers.get("if-modified-since", ""))
    return since is not None and changed_at <= since


def _ranges_count(request: Request[Any], tag: str, upload: Upload) -> bool:
    """Whether Range applies: If-Range, if sent, must name exactly this file."""
    condition = request.headers.get("if-range")
    if condition is None:
        return True
    if condition.startswith(('"', "W/")):
        return matches(condition, tag, weak=False)
    assert upload.completed_at is not None
    return condition == http_date(upload.completed_at)


def _media_type(upload: Upload) -> str:
    """The type that the client gave, if no browser could ever run it; else application/octet-stream."""
    match = _MEDIA_TYPE.fullmatch((upload.content_type or _BYTES).lower())
    if match is None:
        return _BYTES  # a list of types, for example, of which browsers take the last
    family, kind, charset = match.groups()
    drawn = family in _HARMLESS_FAMILIES and "svg" not in kind and "xml" not in kind
    if not drawn and f"{family}/{kind}" not in _HARMLESS:
        return _BYTES
    return f"{family}/{kind}" + (f"; charset={charset}" if charset else "")


class _FileAnswer(Response):
    """An answer of the parts of a stored file, each behind its head, then `end`; the file is closed in any case."""

    large_blocks = _LARGE_BLOCKS  # those that are free, in this process

    def __init__(
        self,
        stored: StoredFile,
        parts: Sequence[_Part],
        status_code: int,
        headers: Mapping[str, str],
        media_type: str,
        end: bytes = b"",
        give_back: GiveBack | None = None,
    ) -> None:
        # Not as Starlette's media_type, which would declare a text to be UTF-8.
        super().__init__(None, status_code, {**headers, "Content-Type": media_type})
        self._stored = stored
        self._parts = parts
        self._end = end
        self._give_back = give_back
        self._unsent = sum(stop - start for _, start, stop in parts)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        listening: asyncio.Task[None] | None = None
        block_bytes = _BLOCK_BYTES
        if self._stored.size > _LARGE_BLOCK_BYTES and _FileAnswer.large_blocks:
            _FileAnswer.large_blocks -= 1
            block_bytes = _LARGE_BLOCK_BYTES
        try:
            await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
            for head, start, stop in self._parts if scope["method"] != "HEAD" else ():
                if head:
                    await send(_body(head))
                while start < stop:
                    block = await self._stored.read(start, min(block_bytes, stop - start))
                    if not block:
                        raise Unavailable("the file became shorter while it was read")
                    await send(_body(block))
                    start += len(block)
                    self._unsent -= len(block)
                    if start < stop and listening is None:
                        listening = asyncio.create_task(hang_up(receive))
                    if listening is not None and listening.done():
                        return  # else the server would go on taking blocks for a client that has left
            await send(_body(self._end, more=False))
        finally:
            if block_bytes == _LARGE_BLOCK_BYTES:
                _FileAnswer.large_blocks += 1
            if listening is not None:
                listening.cancel()
            await self._stored.close()
            if self._give_back is not None and self._unsent:
                await run_to_completion(self._give_back(self._unsent))


def _body(block: bytes, *, more: bool = True) -> Message:
    return {"type": "http.response.body", "body": block, "more_body": more}


async def hang_up(receive: Receive) -> None:
    """Return when the client has left."""
    while (await receive())["type"] != "http.disconnect":
        continue
