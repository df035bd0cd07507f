"""Transitions of a resumable upload's file and row by the holder of its writer lock: commit, release, move, end.

A commit succeeds only as long as the row names the holder; see `writer_lock`.
"""

import hashlib
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Final, Literal, NoReturn

import structlog

from app.db.database import Db
from app.db.queryable import Transaction
from app.errors import DigestMismatch, Gone, Unavailable, UploadError
from app.metrics import Metrics, Outcome
from app.model import Clock, Digests, Failure, Holder, Resource
from app.resumables import records
from app.resumables.writer_lock import Preempted
from app.storage import InUse, Mark, NotStored, Reservation, Staged, Storage, Unfinished, digest_state

log = structlog.stdlib.get_logger("waybill.holding")

REMEMBERED_US: Final = 7 * 86_400_000_000
"""How long an ended upload is remembered, for clients that missed the answer."""
_READ_BYTES: Final = 1024 * 1024
_LOST: Final = Failure(code="lost", detail="bytes that had been acknowledged are missing")


class Holding:
    """The transitions that a holder can make; `idle_us` is how long an upload waits for its next bytes."""

    def __init__(
        self,
        storage: Storage,
        db: Db,
        metrics: Metrics,
        *,
        idle_us: int,
        now_us: Clock,
        new_id: Callable[[], str],
    ) -> None:
        self._storage = storage
        self._db = db
        self._metrics = metrics
        self._idle_us = idle_us
        self._now_us = now_us
        self._new_id = new_id
        self._taken: dict[str, Holder] = {}

    async def take(self, resource: Resource, over: Holder | None) -> tuple[Resource, bool]:
        """Acquire the lock of an upload that is free or held by `over`; return the upload and whether that succeeded.

        A lock that is held by an earlier call here counts as free, since the caller is the only one of
        this process.
        """
        holder_id = self._new_id()
        dead = {over, self._taken.get(resource.key_hash)}

        async def run(transaction: Transaction) -> Resource:
            now_us = self._now_us()
            fence = await records.acquire(transaction, resource.key_hash, holder_id=holder_id, now_us=now_us)
            found = _there(await records.find(transaction, resource.key_hash))
            if fence is not None and found.holder is not None and found.holder in dead:
                await records.preempt(transaction, resource.key_hash, fence, holder_id=holder_id, now_us=now_us)
                found = _there(await records.find(transaction, resource.key_hash))
            return found

        taken = await self._db.transaction(run)
        if taken.holder is None or taken.holder.id != holder_id:
            return taken, False
        self._taken[resource.key_hash] = taken.holder
        return taken, True

    def forget(self, resource: Resource) -> None:
        """Forget the holder of an upload that has ended."""
        self._taken.pop(resource.key_hash, None)

    async def opened(self, resource: Resource, reservation: Reservation | None = None) -> Unfinished:
        """Open the file of an upload, without cutting off bytes that others acknowledged since its row was read.

        A process may be suspended for long between acquiring the lock and this.

        Raises:
            Preempted: others have gone on with the upload.
            NotStored, InUse, Unavailable: see `Storage.open_unfinished`.
        """

        async def confirm() -> None:
            found = await records.find(self._db, resource.key_hash)
            if found is None or found.ended_as is not None or _place(found) != _place(resource):
                raise Preempted

        return await self._storage.open_unfinished(
            resource.upload_id, resource.file_fence, mark_of(resource), reservation, confirm=confirm
        )

    def held(self, resource: Resource, reservation: Reservation) -> Staged:
        """Begin a file in memory for an upload without bytes, apart from the one that others may have open."""
        return self._storage.stage(resource.upload_id, reservation, has_record=True)

    def has_memory(self, size: int) -> bool:
        """Whether so many bytes more can wait in memory."""
        return self._storage.has_memory(size)

    async def copied(self, resource: Resource) -> tuple[Resource, Unfinished]:
        """Move the upload to a copy of its file. The old file is left to the sweep: a fail-over may undo the move."""
        assert resource.holder is not None
        new = resource.upload_id, resource.holder.fence
        try:
            mark, file = await self.made(new, [(resource.upload_id, resource.file_fence, mark_of(resource))])
        except NotStored:
            await self.lose(resource)
        moved = replace(resource, file_fence=new[1], digest_state=mark.digest_state)
        try:
            await self.commit_open(moved, resource.holder, file)
        except Unavailable:
            raise  # the copy stays: the commit may have succeeded after all
        except BaseException:
            await self._storage.remove_unfinished([new])
            raise
        return moved, file

    async def made(self, name: tuple[str, int], parts: list[tuple[str, int, Mark]]) -> tuple[Mark, Unfinished]:
        """Assemble the file of that name from others, for the holder of the upload; return its end and the open file.

        Raises:
            NotStored: acknowledged bytes of the others are missing.
            Unavailable: such a file exists, from a time that the database has lost: the next token will do.
        """
        try:
            mark = await self._storage.assemble(*name, parts)
        except InUse:
            raise Unavailable("another file has the name", retry_after=1) from None
        try:
            return mark, await self._storage.open_unfinished(*name, mark)
        except (InUse, NotStored) as error:
            raise Unavailable("the file that was made is somebody else's", retry_after=1) from error

    async def commit_open(self, resource: Resource, held_by: Holder, file: Unfinished) -> None:
        try:
            await self.commit(resource, held_by)
        except BaseException:
            await file.detach()
            raise

    async def commit(self, resource: Resource, held_by: Holder) -> None:
        """Commit offset, digest, length, file, holder and expiry of `resource`; raises Preempted if that fails."""

        async def run(transaction: Transaction) -> bool:
            return await records.commit(transaction, resource, held_by)

        if not await self._db.transaction(run):
            raise Preempted

    async def release(self, resource: Resource) -> None:
        """Release the lock, after everything was committed. If that fails, the holder is preempted later."""
        if resource.holder is not None:
            try:
                await records.release(self._db, resource.key_hash, resource.holder)
            except UploadError as error:
                log.warning("writer lock not released", upload=resource.upload_id, reason=str(error))

    async def fail(self, resource: Resource, failure: Failure) -> None:
        """Fail an upload for good, for a reason that lies in the state `resource`; its bytes are removed.

        Raises:
            Preempted: others have gone on with the upload, which may still be completed.
        """
        if not await self.end(resource, "failed", failure, seen=True):
            raise Preempted

    async def end(
        self, resource: Resource, ended_as: Literal["failed", "cancelled"], failure: Failure, *, seen: bool = False
    ) -> bool:
        """End an upload: no request finds it any more. If it was not completed, its bytes are removed.

        With `seen`, only if its state still is `resource`; False if not.
        """

        async def run(transaction: Transaction) -> tuple[bool, bool]:
            if seen and not await records.lock(transaction, resource):
                return False, False
            ended = await records.end(
                transaction, resource, ended_as, remembered_until_us=self.remembered_until, error=failure
            )
            found = await records.find(transaction, resource.key_hash)
            return True, ended and found is not None and not found.completed

        still, never_completed = await self._db.transaction_that_frees(run)
        if never_completed:
            self.count(resource, ended_as)
            await self._storage.remove_unfinished([(resource.upload_id, resource.file_fence)])
            # A process that died may have published the file: the row now says for good that it is not kept.
            if not resource.is_part:
                discard = self._storage.set_aside if failure is _LOST else self._storage.remove
                await discard([resource.upload_id])
        return still

    async def lose(self, resource: Resource) -> NoReturn:
        """Fail an upload whose acknowledged bytes are missing; its reported offset never goes back.

        Raises:
            Gone: always, unless preempted.
            Preempted: others have gone on with the upload, in another file.
        """
        await self.fail(resource, _LOST)
        log.error("unfinished upload lost: file missing or too short", upload=resource.upload_id)
        raise Gone

    def count(self, resource: Resource, outcome: Outcome) -> None:
        """Count an upload that ended without completion. Parts are not counted, nor uploads that were completed."""
        if not resource.is_part and not resource.completed:
            self._metrics.ended(resource.protocol, outcome)

    @property
    def remembered_until(self) -> int:
        return self._now_us() + REMEMBERED_US

    def expiry(self, resource: Resource) -> int:
        """The time at which the upload expires if no more bytes arrive."""
        return min(self._now_us() + self._idle_us, resource.last_expires_at)


async def verify(digests: Digests, file: Unfinished) -> None:
    """Compare the bytes of a file with the declared digests; raises DigestMismatch."""
    for algorithm, name, expected in _declared(digests):
        if (actual := await file.digest(algorithm)) != expected:
            raise DigestMismatch(expected, actual, name)


def _declared(digests: Digests) -> Iterator[tuple[str, str, str]]:
    for algorithm, name, expected in (("sha256", "sha-256", digests.sha256), ("sha512", "sha-512", digests.sha512)):
        if expected is not None:
            yield algorithm, name, expected


def verify_held(digests: Digests, file: Staged) -> None:
    """Compare the bytes of a small file with the declared digests; raises DigestMismatch."""
    for algorithm, name, expected in _declared(digests):
        actual = hashlib.new(algorithm)
        for block in file.held() or ():
            actual.update(block)
        if actual.hexdigest() != expected:
            raise DigestMismatch(expected, actual.hexdigest(), name)


async def begins_as_acknowledged(storage: Storage, resource: Resource) -> bool:
    """Whether a published file begins with the acknowledged bytes, as far as their digest is known.

    One that does not is the file of a preempted writer, which published it and could not record it, or
    one whose completion the database has lost, before the client sent other bytes.
    """
    digest = digest_state.resumed(resource.digest_state, resource.offset)
    file = await storage.open(resource.upload_id)
    try:
        if digest is None or file.size < resource.offset:
            return file.size >= resource.offset
        published, count = digest_state.begun(), 0
        while block := await file.read(count, min(_READ_BYTES, resource.offset - count)):
            published.update(block)
            count += len(block)
    finally:
        await file.close()
    return published.hexdigest() == digest.hexdigest()


def mark_of(resource: Resource) -> Mark:
    """The end of the upload's bytes according to its row, and their digest up to there."""
    return Mark(resource.offset, resource.digest_state)


def _place(resource: Resource) -> tuple[Holder | None, int, int]:
    """The values of a row that change when others go on with the upload."""
    return resource.holder, resource.file_fence, resource.offset


def _there(resource: Resource | None) -> Resource:
    """The row of an upload that is being completed, which must exist."""
    if resource is None or resource.ended_as not in {None, "completed"}:
        raise Gone
    return resource
