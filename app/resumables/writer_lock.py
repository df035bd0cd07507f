"""The writer lock of an upload: of all requests for it, in whatever process, the newest acquires the lock.

Each request draws a fencing token from the upload's row (`fence`). The holder's token stands
there as `holder`, with a random id beside it, and a commit succeeds only as long as both match:
a fail-over that loses the last commits lets a token be drawn twice. A newer request of the same
process stops the holder directly; those of other processes are noticed by polling the row.
A holder that does not release the lock in time is preempted: it may go on writing, into a file
that is no longer the upload's, and commits nothing.
"""

import asyncio
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Final

import structlog

from app.db.database import Db
from app.db.queryable import Transaction
from app.db.shared import SharedTransactions
from app.errors import InProgress, NotFound, UploadError
from app.model import Clock, Resource
from app.resumables import records

log = structlog.stdlib.get_logger("waybill.turns")

PATIENCE_SECONDS: Final = 0.8
"""How long a newer request waits for the holder to commit its offset and release the lock."""
_POLL_SECONDS: Final = 0.05
_WATCH_SECONDS: Final = 0.2


class Preempted(InProgress):
    """A newer request has acquired the writer lock."""


Admitted = Callable[[Resource | None], Resource]
"""Returns its argument, if the caller may access it; else it raises the refusal."""


class WriterLock:
    """The writer lock as held by one request: from `WriterLocks.begin` to `WriterLocks.leave`."""

    def __init__(self, resource: Resource, task: "asyncio.Task[object]") -> None:
        assert resource.holder is not None
        self.key_hash = resource.key_hash
        self.holder = resource.holder
        self.reason: UploadError | None = None
        self.gone = asyncio.Event()
        self._task = task
        self._cancelling = task.cancelling()
        self._undisturbed = 1
        self._cancelled = False

    def end(self, reason: UploadError) -> None:
        """Stop the request: at once where it waits for its client, else after its current step.

        Its task is cancelled, as by `asyncio.timeout`; `stopped` distinguishes such a cancellation from others.
        """
        if self.reason is None and not self.gone.is_set():
            self.reason = reason
            if not self._undisturbed:
                self._cancelled = True
                self._task.cancel()

    def open(self) -> None:
        """Allow the request to be stopped at once from here on."""
        self._undisturbed -= 1

    def shut(self) -> None:
        """Keep the request from being stopped from here on, since it is about to leave anyway."""
        self._undisturbed += 1

    @contextmanager
    def undisturbed(self) -> Iterator[None]:
        """Run the block to completion; the caller checks whether a `reason` to stop was given meanwhile."""
        self.shut()
        try:
            yield
        finally:
            self.open()

    def stopped(self, error: BaseException | None) -> UploadError | None:
        """The refusal behind `error`, if that is the cancellation by `end`. To be called once, at the end."""
        if not self._cancelled:
            return None
        alone = self._task.uncancel() <= self._cancelling
        return self.reason if alone and isinstance(error, asyncio.CancelledError) else None


@dataclass(frozen=True, slots=True, eq=False)
class _Request:
    """A request for a writer lock."""

    key_hash: str
    admitted: Admitted
    holder_id: str


def _admit(
    requests: Sequence[_Request], found: Mapping[str, Resource], answers: dict[_Request, Resource | Exception]
) -> list[_Request]:
    """Answer each request by the upload that was found, or by its refusal; return the requests that are admitted."""
    admitted = []
    for each in requests:
        try:
            answers[each] = each.admitted(found.get(each.key_hash))
            admitted.append(each)
        except UploadError as error:
            answers[each] = error.with_traceback(None)  # which holds this frame, and so the answers: a reference cycle
    return admitted


class WriterLocks:
    """The writer locks of one process, which shares the database with others."""

    def __init__(self, db: Db, *, now_us: Clock, new_id: Callable[[], str]) -> None:
        self._db = db
        self._now_us = now_us
        self._new_id = new_id
        self._live: dict[str, WriterLock] = {}
        self._watching: asyncio.Task[None] | None = None
        self._drawing = SharedTransactions(db, self._draw_all)

    async def acquire(self, key_hash: str, admitted: Admitted, *, holds: bool) -> Resource:
        """Acquire the writer lock, preempting its holder, which commits its offset first.

        Only with `holds` does the caller hold the lock when this returns; else the holder is just preempted.
        An upload that is completed, or has all the bytes it will ever have, has no lock to acquire; and
        without `holds`, the assembly of a concatenation is left alone.

        Raises:
            InProgress: an even newer request has arrived.
            UploadError: raised by `admitted`; no holder was preempted then.
        """
        holder_id = self._new_id() if holds else None

        async def draw(transaction: Transaction) -> Resource:
            await records.acquire(transaction, key_hash, holder_id=None, now_us=self._now_us())
            return admitted(await records.find(transaction, key_hash))

        if holder_id is not None:
            drawn = await self._drawing.ask(_Request(key_hash, admitted, holder_id))
        else:  # a query or a cancellation is answered on a full disk, too
            drawn = await self._db.transaction_that_frees(draw)
        mine = holder_id is not None and drawn.holder is not None and drawn.holder.id == holder_id
        if drawn.holder is None or mine or _settled(drawn) or (drawn.is_final and not holds):
            return drawn
        return await self._wait(drawn, admitted, holder_id)

    async def _draw_all(self, transaction: Transaction, requests: Sequence["_Request"]) -> list[Resource | Exception]:
        """Draw a token for each request that is admitted, in their order; the others have no effect on the upload."""
        answers: dict[_Request, Resource | Exception] = {}
        waiting = _admit(requests, await records.list_these(transaction, [each.key_hash for each in requests]), answers)
        while waiting:
            first = {each.key_hash: each for each in reversed(waiting)}
            holder_ids = {key_hash: each.holder_id for key_hash, each in first.items()}
            await records.acquire_these(transaction, holder_ids, self._now_us())
            _admit(list(first.values()), await records.list_these(transaction, list(first)), answers)
            waiting = [each for each in waiting if first[each.key_hash] is not each]
        return [answers[each] for each in requests]

    async def _wait(self, drawn: Resource, admitted: Admitted, holder_id: str | None) -> Resource:
        clock = asyncio.get_running_loop().time
        deadline = clock() + PATIENCE_SECONDS
        while True:
            await self._ask_to_leave(drawn)
            found = admitted(await records.find(self._db, drawn.key_hash))
            if _settled(found):
                return found
            if found.fence != drawn.fence:
                raise InProgress
            if found.holder is None:
                if holder_id is None:
                    return found
                break
            if clock() >= deadline:
                writer = found.holder.fence
                log.warning("writer preempted", upload=found.upload_id, writer=writer)
                break

        async def take(transaction: Transaction) -> Resource:
            passed = await records.preempt(
                transaction, drawn.key_hash, drawn.fence, holder_id=holder_id, now_us=self._now_us()
            )
            found = admitted(await records.find(transaction, drawn.key_hash))
            if not passed and not _settled(found):
                raise InProgress
            return found

        return await self._db.transaction(take)

    async def _ask_to_leave(self, drawn: Resource) -> None:
        writer_lock = self._live.get(drawn.key_hash)
        if writer_lock is None or writer_lock.holder.fence > drawn.fence:
            await asyncio.sleep(_POLL_SECONDS)
            return
        writer_lock.end(Preempted())
        with suppress(TimeoutError):
            async with asyncio.timeout(_POLL_SECONDS):
                await writer_lock.gone.wait()

    def begin(self, resource: Resource) -> WriterLock:
        """Register the calling task as the holder that `resource` names. It must `leave`."""
        task = asyncio.current_task()
        assert task is not None
        writer_lock = WriterLock(resource, task)
        before = self._live.get(writer_lock.key_hash)
        self._live[writer_lock.key_hash] = writer_lock
        if before is not None:  # a holder from a time that the database has lost: else it would have left
            before.end(Preempted())
        if self._watching is None or self._watching.done():
            self._watching = asyncio.create_task(self._watch(), name="waybill-writer-locks")
        return writer_lock

    def leave(self, writer_lock: WriterLock) -> None:
        """Unregister a holder, once the row names another one, or none. Harmless when repeated."""
        if self._live.get(writer_lock.key_hash) is writer_lock:
            del self._live[writer_lock.key_hash]
        writer_lock.gone.set()

    async def close(self, reason: UploadError) -> None:
        """Stop every holder of this process, and wait until all have left. Bounded by the caller."""
        writer_locks = list(self._live.values())
        for writer_lock in writer_locks:
            writer_lock.end(reason)
        for writer_lock in writer_locks:
            await writer_lock.gone.wait()
        if self._watching is not None:
            self._watching.cancel()
            await asyncio.wait((self._watching,))

    async def _watch(self) -> None:
        """Poll, as long as this process has holders, whether another process wants one of their locks."""
        while self._live:
            await asyncio.sleep(_WATCH_SECONDS)
            writer_locks = list(self._live.values())
            try:
                found = await records.list_these(self._db, [writer_lock.key_hash for writer_lock in writer_locks])
            except UploadError as error:
                log.warning("writer locks not polled", reason=str(error))
                continue
            except Exception:
                log.exception("polling of writer locks failed")
                continue
            for writer_lock in writer_locks:
                resource = found.get(writer_lock.key_hash)
                if resource is None:
                    writer_lock.end(NotFound())
                elif resource.fence != writer_lock.holder.fence or resource.holder != writer_lock.holder:
                    writer_lock.end(Preempted())


def _settled(resource: Resource) -> bool:
    """Whether no more bytes can or need be appended."""
    return resource.completed or (resource.fully_received and not resource.is_part)
