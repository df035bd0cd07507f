"""Completion tasks: a process completes each upload once at a time, however many requests ask for it."""

import asyncio
import functools
from collections.abc import Coroutine
from typing import Any

import structlog

from app.db.database import Db
from app.errors import Unavailable, UploadError
from app.model import Holder, Resource
from app.resumables import records
from app.resumables.completion import PATIENCE_SECONDS, Completion
from app.resumables.transitions import Holding
from app.storage import Unfinished

log = structlog.stdlib.get_logger("waybill.completion")


class Completions:
    """Completes uploads, each once at a time in this process."""

    def __init__(self, db: Db, holding: Holding, completion: Completion) -> None:
        self._db = db
        self._holding = holding
        self._completion = completion
        self._running: dict[str, asyncio.Task[Resource]] = {}
        self.owed = completion.owed
        """The key hashes of uploads that this process could not complete, for a passing reason; see `recovery`."""

    def begin(self, resource: Resource, *, asked: bool = True, dead: Holder | None = None) -> "asyncio.Task[Resource]":
        """Begin to complete an upload; assemble a concatenation that has all its parts, leave one that waits for some.

        Another process at work on it is left alone, or waited for where that is a matter of seconds,
        except a holder that is known to be `dead`. When no client `asked`, there is no need to wait, and
        no upload is given up as lost: the store may be the wrong one.
        """
        running = self._running.get(resource.key_hash)
        if running is not None:
            return running
        work = self._completion.complete if resource.fully_received else self._completion.assemble
        return self._start(resource, work(resource, asked=asked, dead=dead))

    def owe(self, resource: Resource) -> None:
        """Have an upload that is, or may be, fully received completed as soon as possible, without a request for it."""
        self.owed.add(resource.key_hash)

    def is_at(self, key_hash: str) -> bool:
        """Whether this process is completing the upload."""
        return key_hash in self._running

    async def of(self, resource: Resource, *, asked: bool = True, dead: Holder | None = None) -> Resource:
        """Complete an upload as `begin` does, and wait for it.

        Raises:
            Unavailable: completion takes longer, and goes on.
            UploadError: it failed, for now or for good.
        """
        task = self.begin(resource, asked=asked, dead=dead)
        await asyncio.wait((task,), timeout=PATIENCE_SECONDS)
        if not task.done():
            raise Unavailable("the upload is being completed; ask again")
        return task.result()

    async def part_is_whole(self, part: Resource) -> None:
        """Begin to complete the concatenations that waited only for this part, without waiting for them."""
        try:
            for waiting in await records.list_waiting(self._db, part):
                running = self._running.get(waiting.key_hash)
                if running is not None:  # it may have looked before this part was fully received
                    running.add_done_callback(functools.partial(self._begin_after, waiting))
                self.begin(waiting)
        except UploadError as error:
            log.warning("concatenations of a part not begun", upload=part.upload_id, reason=str(error))
            self.owe(part)

    def _begin_after(self, resource: Resource, _: "asyncio.Task[Resource]") -> None:
        self.begin(resource)

    async def last_bytes(self, resource: Resource, held_by: Holder, file: Unfinished) -> Resource:
        """Commit the last bytes of the `resource`, and complete it. A cancelled caller does not stop that.

        Raises:
            Preempted: another request holds the writer lock now.
            UploadError: it failed, for now or for good.
        """
        task = self._start(resource, self._completion.commit_and_publish(resource, held_by, file))
        await asyncio.wait((task,))
        return task.result()

    async def close(self, grace_seconds: float) -> None:
        """Wait for completions that are under way, but no longer than the grace."""
        clock = asyncio.get_running_loop().time
        deadline = clock() + grace_seconds
        while self._running and clock() < deadline:
            await asyncio.wait(self._running.values(), timeout=deadline - clock())
        if late := list(self._running.values()):
            log.warning("completions unfinished at the end of the grace", uploads=len(late))
            for task in late:
                task.cancel()
            await asyncio.wait(late)

    def _start(self, resource: Resource, work: Coroutine[Any, Any, Resource]) -> "asyncio.Task[Resource]":
        task = asyncio.create_task(work, name=f"waybill-complete-{resource.upload_id}")
        self._running[resource.key_hash] = task

        def ended(task: "asyncio.Task[Resource]") -> None:
            if self._running.get(resource.key_hash) is task:
                del self._running[resource.key_hash]
            error = None if task.cancelled() else task.exception()
            if error is not None and not isinstance(error, UploadError):
                log.error("completion failed", upload=resource.upload_id, exc_info=error)
            if error is None or (isinstance(error, UploadError) and error.status < 500):
                self._holding.forget(resource)
            else:
                self.owe(resource)

        task.add_done_callback(ended)
        return task
