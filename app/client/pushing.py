"""Pushing of many files at once: each is sent, found to have been sent, or reported as failed."""

import asyncio
import os
from collections.abc import Iterable, Iterator, Mapping
from typing import Final

from app.client.display import Audience
from app.client.failures import SourceChanged, TransferFailed
from app.client.outcomes import Fate, Outcome
from app.client.sending import send
from app.client.sent import Arrived, Sent
from app.client.sources import SMALL, OpenSource, SourceFile
from app.client.wire import Wire

_MOST_CHANGES: Final = 5
SMALL_FOR_EACH: Final = 16
"""How many small files are on their way for each large one: the service makes those durable together."""


class Push:
    """A push to one server. `parallel` is how many large files are on their way at once."""

    def __init__(
        self,
        wire: Wire,
        sent: Sent,
        audience: Audience,
        *,
        parallel: int,
        again: bool,
        delete_after: bool,
        dry_run: bool,
    ) -> None:
        self._wire, self._sent, self._audience = wire, sent, audience
        self._parallel = parallel
        self._again = os.urandom(8).hex() if again else ""
        self._delete_after, self._dry_run = delete_after, dry_run

    async def all(self, files: Iterable[SourceFile]) -> list[Outcome]:
        """Push the files; the outcomes of those that failed, or changed all the while.

        Raises AccessDenied or Unreachable when nothing can go on.
        """
        small: list[SourceFile] = []
        large: list[SourceFile] = []
        for file in files:
            (small if file.size <= SMALL else large).append(file)
        self._audience.planned(len(small) + len(large), sum(file.size for kind in (small, large) for file in kind))
        failed: list[Outcome] = []
        lanes = [iter(small)] * (self._parallel * SMALL_FOR_EACH) + [iter(large)] * self._parallel
        try:
            async with asyncio.TaskGroup() as group:
                for lane in lanes:
                    group.create_task(self._lane(lane, failed))
        except BaseExceptionGroup as errors:
            raise first(errors) from None
        return failed

    async def _lane(self, files: Iterator[SourceFile], failed: list[Outcome]) -> None:
        for file in files:
            outcome = await self.one(file)
            if outcome.fate == "failed":
                failed.append(outcome)
            self._audience.ended(outcome)

    async def one(self, file: SourceFile, *, as_found: bool = False) -> Outcome:
        """Push one file. Unless it has to be sent `as_found`, one that changes meanwhile is sent as it is then."""
        await self._sent.hold(file.path)
        try:
            self._audience.begun(file.shown, file.size)
            for _ in range(1 if as_found else _MOST_CHANGES):
                try:
                    return await self._attempt(file, as_found=as_found)
                except SourceChanged as error:
                    changed = str(error)
            return _failed(file, "changed", changed)
        except TransferFailed as error:
            return _failed(file, error.code, str(error))
        except OSError as error:
            return _failed(file, "unreadable", error.strerror or str(error))
        finally:
            self._sent.release(file.path)

    async def _attempt(self, file: SourceFile, *, as_found: bool) -> Outcome:
        known = {} if self._again else self._sent.all_of(file.path)
        if not self._delete_after and file.identity in known:
            return _of(file, "unchanged", known[file.identity])
        source = await asyncio.to_thread(OpenSource.open, file)
        try:
            found = source.file
            if as_found and found.identity != file.identity:
                raise SourceChanged("it was changed before it was sent")
            if arrived := await self._arrived(source, known):
                fate: Fate = "unchanged"
            elif self._dry_run:
                return Outcome(found.shown, "would_send", found.size)
            else:
                fate = "sent"
                arrived = await send(
                    self._wire, self._sent, source, lambda at: self._audience.moved(found.shown, at), again=self._again
                )
            if self._delete_after and not self._dry_run:
                await asyncio.to_thread(source.delete)
            return _of(found, fate, arrived)
        finally:
            source.close()

    async def _arrived(self, source: OpenSource, known: Mapping[str, Arrived]) -> Arrived | None:
        """Return what the service has of this file, if it need not be sent."""
        file = source.file
        arrived = known.get(file.identity)
        if arrived is None and known:
            arrived = self._sent.equal(file.path, await asyncio.to_thread(source.digest), file.identity)
        if arrived is not None and self._delete_after and not await self._wire.holds(arrived):
            return None  # what is to be deleted here must be there
        return arrived


def _of(file: SourceFile, fate: Fate, arrived: Arrived) -> Outcome:
    return Outcome(file.shown, fate, file.size, arrived.id, arrived.digest)


def _failed(file: SourceFile, code: str, detail: str) -> Outcome:
    return Outcome(file.shown, "failed", file.size, code=code, detail=detail)


def first(errors: BaseExceptionGroup[BaseException]) -> BaseException:
    """The first failure of several lanes: the others end for the same reason."""
    error = errors.exceptions[0]
    return first(error) if isinstance(error, BaseExceptionGroup) else error
