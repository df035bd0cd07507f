"""Writing: the holder of an upload's writer lock stages bytes, commits checkpoints, and releases the lock."""

import asyncio
from collections.abc import Sequence
from dataclasses import replace
from typing import Final

import structlog

from app.errors import DigestMismatch, OutcomeUnknown, Unavailable, UploadError
from app.model import Digests, Failure, Holder, Resource
from app.resumables.completion import Completion
from app.resumables.completion_tasks import Completions
from app.resumables.small import SmallLandings
from app.resumables.transitions import Holding, verify
from app.resumables.writer_lock import Preempted, WriterLocks
from app.storage import InUse, Mark, NotStored, Reservation, Staged, Unfinished

log = structlog.stdlib.get_logger("waybill.appending")

CHECKPOINT_BYTES: Final = 64 * 1024 * 1024
CHECKPOINT_SECONDS: Final = 5.0
"""A crash loses no more than this of a request; a flush is cheap, since the blocks are on the disk already."""


class Writer:
    """The holder of a writer lock, which it registers. `open` the file, `write`, `keep`, and `leave` in any case.

    `resource` is the upload as last committed, `offset` counts the bytes that were written.
    """

    def __init__(
        self,
        holding: Holding,
        locks: WriterLocks,
        completions: Completions,
        completion: Completion,
        small: SmallLandings,
        resource: Resource,
    ) -> None:
        self.lock = locks.begin(resource)
        self.resource = resource
        self.offset = resource.offset
        self._holding = holding
        self._locks = locks
        self._completions = completions
        self._completion = completion
        self._small = small
        self._reservation: Reservation | None = None
        self._held: Staged | None = None
        """The bytes of a small upload that this request may complete, in memory, instead of a file."""
        self._file: Unfinished | None = None
        self._began: Mark | None = None
        self._checkpointed_at = 0.0

    async def open(self, reservation: Reservation, digests: Digests, *, brings_all: bool) -> None:
        """Open the upload's file. The complete file must have these digests, too.

        When the request `brings_all` bytes of a small upload, they stay in memory as long as possible.

        Raises:
            Gone: acknowledged bytes are missing; the upload has failed.
            Preempted: we do not hold the lock any more.
            Unavailable: the file was published, which the database, older than the files, did not know.
        """
        self._reservation = reservation
        if brings_all:
            self._held = self._holding.held(self.resource, reservation)
        else:
            await self._open_file()
        self.resource = replace(self.resource, digests=self.resource.digests.joined_with(digests))
        if self.lock.reason is not None:
            raise self.lock.reason
        self._checkpointed_at = asyncio.get_running_loop().time()
        self.lock.open()

    async def _open_file(self) -> None:
        self.resource, self._file = await self._opened(self.resource)
        self._began = Mark(self.resource.offset, self.resource.digest_state)

    async def _opened(self, resource: Resource) -> tuple[Resource, Unfinished]:
        """Open the file of the upload, or a copy of it if another may still write there."""
        try:
            return resource, await self._holding.opened(resource, self._reservation)
        except InUse:
            log.warning("unfinished file in use, upload moved to a copy", upload=resource.upload_id)
        except NotStored:
            if await self._completion.published_before(resource) is None:
                await self._holding.lose(resource)
            raise Unavailable("the upload is complete; ask for its offset", retry_after=1) from None
        return await self._holding.copied(resource)

    async def write(self, block: bytes | memoryview, *, checkpoints: bool) -> None:
        """Take the next bytes; with `checkpoints`, commit them when that is due."""
        if self._held is not None and self._holding.has_memory(len(block)):
            await self._held.write(block)
        else:
            await (await self._on_disk()).write(block)
        self.offset += len(block)
        if checkpoints and self._is_due():
            await self._checkpoint(await self._on_disk())

    def _is_due(self) -> bool:
        late = asyncio.get_running_loop().time() - self._checkpointed_at >= CHECKPOINT_SECONDS
        return late or self.offset - self.resource.offset >= CHECKPOINT_BYTES

    async def _on_disk(self) -> Unfinished:
        """The upload's file, into which the bytes in memory are written first."""
        if self._held is not None:
            held, self._held = self._held, None
            blocks = held.held() or ()
            await held.abort()
            await self._write_again(blocks)
        assert self._file is not None
        return self._file

    async def _write_again(self, blocks: Sequence[bytes | memoryview]) -> None:
        self.offset = self.resource.offset
        await self._open_file()
        assert self._file is not None
        for block in blocks:
            await self._file.write(block)
            self.offset += len(block)

    async def _land(self, held: Staged) -> bool:
        """Complete the upload by the bytes in memory; False if they could not land, and are in its file now."""
        self._held, blocks = None, held.held() or ()
        assert self.resource.holder is not None
        try:
            self.resource = await self._small.land(
                replace(self.resource, offset=self.offset, length=self.offset), self.resource.holder, held
            )
        except DigestMismatch as error:
            await held.abort()
            await self._holding.fail(self.resource, Failure(code=error.code, detail=str(error)))
            raise
        except (OutcomeUnknown, Preempted):
            raise
        except UploadError as error:
            await held.abort()
            log.warning("small upload not landed at once", upload=self.resource.upload_id, reason=str(error))
            await self._write_again(blocks)
            return False
        return True

    async def _checkpoint(self, file: Unfinished) -> None:
        resource = self._at(await file.checkpoint())
        assert resource.holder is not None
        try:
            await self._holding.commit(resource, resource.holder)
        except Unavailable as error:
            log.warning("checkpoint not committed", upload=resource.upload_id, reason=str(error))
            self._began = None  # the commit may have succeeded after all: nothing may be cut off any more
        else:
            self.resource = resource
            self._began = Mark(resource.offset, resource.digest_state)
        self._checkpointed_at = asyncio.get_running_loop().time()

    async def keep(self, length: int | None) -> None:
        """Commit the bytes and release the upload, in this order; or hand it over to be completed."""
        if self._held is not None and self.offset == length and await self._land(self._held):
            self._locks.leave(self.lock)
            return
        file = await self._on_disk()
        mark = await file.checkpoint()
        resource = replace(self._at(mark), holder=None, length=length)
        self._file = None
        held_by = self.resource.holder
        assert held_by is not None
        if resource.fully_received and not resource.is_part:
            self.resource = await self._completions.last_bytes(resource, held_by, file)
            self._locks.leave(self.lock)
            return
        if resource.is_part and resource.fully_received:
            await _verify_part(self._holding, self.resource, resource.digests, file)
        await file.detach()  # first: the next holder of the lock opens the file
        await self._commit_last(resource, held_by)
        self._locks.leave(self.lock)
        if resource.is_part and resource.fully_received:
            await self._completions.part_is_whole(resource)

    async def _commit_last(self, resource: Resource, held_by: Holder) -> None:
        try:
            await self._holding.commit(resource, held_by)
        except Unavailable:
            if resource.fully_received:  # the commit may have succeeded after all, so the client may not come back
                self._completions.owe(resource)
            raise
        self.resource = resource

    def _at(self, mark: Mark) -> Resource:
        """The upload as it is once all bytes up to the mark count."""
        upload = self.resource.upload
        return replace(
            self.resource,
            offset=mark.offset,
            digest_state=mark.digest_state,
            expires_at=self._holding.expiry(self.resource),
            upload=None if upload is None else upload.model_copy(update={"size": mark.offset}),
        )

    async def leave(self, *, keep: bool) -> None:
        """Release file and lock. With `keep`, commit the bytes as far as possible; without, discard them."""
        try:
            if self._held is not None or self._file is not None:
                await self._settle(keep=keep)
        finally:
            await self._holding.release(self.resource)
            self.resource = replace(self.resource, holder=None)
            self._locks.leave(self.lock)

    async def _settle(self, *, keep: bool) -> None:
        try:
            if self._held is not None and not (keep and self._held.size):
                await self._held.abort()
            elif keep:
                await self.keep(self.resource.length)
            elif self._file is not None and self._began is not None and self.offset != self._began.offset:
                await self._file.back_to(self._began)
        except UploadError as error:
            log.warning("last bytes not kept", upload=self.resource.upload_id, reason=str(error))
        finally:
            file, self._file, self._held = self._file, None, None
            if file is not None:
                await file.detach()


async def _verify_part(holding: Holding, part: Resource, digests: Digests, file: Unfinished) -> None:
    """Compare a fully received part with its declared digests; a part that differs has failed for good."""
    try:
        await verify(digests, file)
    except BaseException as error:
        await file.detach()
        if isinstance(error, DigestMismatch):
            await holding.fail(part, Failure(code=error.code, detail=str(error)))
        raise
