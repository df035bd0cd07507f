"""Whose turn it is: of all requests that want the same upload, the newest has it, in whatever process they are.

Each draws a number from the upload's row (`fence`). Who appends has its number there as
`holder`, with a random id of its own beside it, and whatever it commits counts only as long as
both are so: a fail-over that loses the last commits lets a number be drawn twice. A newer
request of the same process tells it to stop; those of other processes are noticed by asking
for the row. Who does not let go in time is passed over: it may go on writing, into a file that
is nobody's any more, and commits nothing.
"""

import asyncio
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Final

import structlog

from app.db.database import Db
from app.db.queryable import Transaction
from app.errors import InProgress, NotFound, UploadError
from app.model import Clock, Resource
from app.resumables import records

log = structlog.stdlib.get_logger("waybill.turns")

PATIENCE_SECONDS: Final = 0.8
"""So long a newer request waits for the one before it to write down what has come, and to let go."""
_POLL_SECONDS: Final = 0.05
_WATCH_SECONDS: Final = 0.2


class Preempted(InProgress):
    """A newer request has taken the upload over."""


Admitted = Callable[[Resource | None], Resource]
"""Gives back what it is given, if the caller may have it; else it raises the refusal."""


class WriterLock:
    """One request's time as the holder of an upload: from `WriterLocks.begin` to `WriterLocks.leave`."""

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
        """Tell the request to stop: at once where it waits for its client, else after what it is just doing.

        Its task is cancelled, as by `asyncio.timeout`; `stopped` tells such a cancellation from others.
        """
        if self.reason is None and not self.gone.is_set():
            self.reason = reason
            if not self._undisturbed:
                self._cancelled = True
                self._task.cancel()

    def open(self) -> None:
        """From here on the request may be stopped at once."""
        self._undisturbed -= 1

    def shut(self) -> None:
        """From here on it is about to leave anyway, and is let do so."""
        self._undisturbed += 1

    @contextmanager
    def undisturbed(self) -> Iterator[None]:
        """What is done in here is done to its end; whether `reason` was given meanwhile is for the caller to see."""
        self.shut()
        try:
            yield
        finally:
            self.open()

    def stopped(self, error: BaseException | None) -> UploadError | None:
        """The refusal that `error` stands for, if it is the cancellation by `end`. To be asked once, in the end."""
        if not self._cancelled:
            return None
        alone = self._task.uncancel() <= self._cancelling
        return self.reason if alone and isinstance(error, asyncio.CancelledError) else None


class WriterLocks:
    """The turns of one process, beside those of others in the same database."""

    def __init__(self, db: Db, *, now_us: Clock, new_id: Callable[[], str]) -> None:
        self._db = db
        self._now_us = now_us
        self._new_id = new_id
        self._live: dict[str, WriterLock] = {}
        self._watching: asyncio.Task[None] | None = None

    async def claim(self, key_hash: str, admitted: Admitted, *, holds: bool) -> Resource:
        """Be the newest that wants an upload: whoever has it ends, and has written down how far it came.

        With `holds` the caller holds it when this returns. There is nothing to hold, and
        nobody to wait for, when it is completed or has all the bytes it will ever have; and
        without `holds` the work on one that is made of parts is left alone.

        Raises:
            InProgress: an even newer request came.
            UploadError: what `admitted` raises; nobody was disturbed then.
        """
        holder_id = self._new_id() if holds else None

        async def take_number(transaction: Transaction) -> Resource:
            await records.claim(transaction, key_hash, holder_id=holder_id, now_us=self._now_us())
            return admitted(await records.find(transaction, key_hash))

        # Who only asks, or cancels, is answered on a full disk too.
        transaction = self._db.transaction if holds else self._db.transaction_that_frees
        claimed = await transaction(take_number)
        mine = holder_id is not None and claimed.holder is not None and claimed.holder.id == holder_id
        if claimed.holder is None or mine or _settled(claimed) or (claimed.is_final and not holds):
            return claimed
        return await self._wait(claimed, admitted, holder_id)

    async def _wait(self, claimed: Resource, admitted: Admitted, holder_id: str | None) -> Resource:
        clock = asyncio.get_running_loop().time
        deadline = clock() + PATIENCE_SECONDS
        while True:
            await self._ask_to_leave(claimed)
            found = admitted(await records.find(self._db, claimed.key_hash))
            if _settled(found):
                return found
            if found.fence != claimed.fence:
                raise InProgress
            if found.holder is None:
                if holder_id is None:
                    return found
                break
            if clock() >= deadline:
                writer = found.holder.fence
                log.warning("a writer did not let go and is passed over", upload=found.upload_id, writer=writer)
                break

        async def take(transaction: Transaction) -> Resource:
            passed = await records.pass_on(
                transaction, claimed.key_hash, claimed.fence, holder_id=holder_id, now_us=self._now_us()
            )
            found = admitted(await records.find(transaction, claimed.key_hash))
            if not passed and not _settled(found):
                raise InProgress
            return found

        return await self._db.transaction(take)

    async def _ask_to_leave(self, claimed: Resource) -> None:
        writer_lock = self._live.get(claimed.key_hash)
        if writer_lock is None or writer_lock.holder.fence > claimed.fence:
            await asyncio.sleep(_POLL_SECONDS)
            return
        writer_lock.end(Preempted())
        with suppress(TimeoutError):
            async with asyncio.timeout(_POLL_SECONDS):
                await writer_lock.gone.wait()

    def begin(self, resource: Resource) -> WriterLock:
        """The calling task is the holder that `resource` names. It must `leave`."""
        task = asyncio.current_task()
        assert task is not None
        writer_lock = WriterLock(resource, task)
        before = self._live.get(writer_lock.key_hash)
        self._live[writer_lock.key_hash] = writer_lock
        if before is not None:  # of a time that the database has lost: else it would have left
            before.end(Preempted())
        if self._watching is None or self._watching.done():
            self._watching = asyncio.create_task(self._watch(), name="waybill-turns")
        return writer_lock

    def leave(self, writer_lock: WriterLock) -> None:
        """The turn is over: the row names another holder, or none. Harmless when repeated."""
        if self._live.get(writer_lock.key_hash) is writer_lock:
            del self._live[writer_lock.key_hash]
        writer_lock.gone.set()

    async def close(self, reason: UploadError) -> None:
        """End every turn of this process, and wait until they have. Bounded by the caller."""
        writer_locks = list(self._live.values())
        for writer_lock in writer_locks:
            writer_lock.end(reason)
        for writer_lock in writer_locks:
            await writer_lock.gone.wait()
        if self._watching is not None:
            self._watching.cancel()
            await asyncio.wait((self._watching,))

    async def _watch(self) -> None:
        """Look, as long as anybody here writes, whether somebody in another process wants its turn."""
        while self._live:
            await asyncio.sleep(_WATCH_SECONDS)
            writer_locks = list(self._live.values())
            try:
                found = await records.list_these(self._db, [writer_lock.key_hash for writer_lock in writer_locks])
            except UploadError as error:
                log.warning("whether others want these uploads is asked again", reason=str(error))
                continue
            except Exception:
                log.exception("asking whether others want these uploads failed")
                continue
            for writer_lock in writer_locks:
                resource = found.get(writer_lock.key_hash)
                if resource is None:
                    writer_lock.end(NotFound())
                elif resource.fence != writer_lock.holder.fence or resource.holder != writer_lock.holder:
                    writer_lock.end(Preempted())


def _settled(resource: Resource) -> bool:
    """Whether nobody can or need append any more."""
    return resource.completed or (resource.whole and not resource.is_part)
