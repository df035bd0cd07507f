"""Watching of folders: every new and changed file is sent once, when nobody writes to it any more.

A scan decides, not an event of the kernel: folders on a network have none, and events are lost when there are many. A
file is due when its identity has stayed the same for a while and, as far as the kernel says, no process has it open for
writing.
"""

import asyncio
import fcntl
import os
import signal
import time
from collections.abc import Iterable
from typing import Final, NamedTuple

from app.client.display import Audience
from app.client.outcomes import Outcome
from app.client.pushing import SMALL_FOR_EACH, Push, first
from app.client.sources import SMALL, SourceFile, Walk, below

SETTLED: Final = 2.0
"""Seconds for which a file must stay as it is."""
_PAUSE: Final = 1.0
_SHARE: Final = 20
"""A scan takes at most this part of the time, however many files there are."""
_RETRY: Final = 300.0
"""Seconds after which a file that could not be sent is tried again."""


class _Seen(NamedTuple):
    """State of a file at a scan: its identity, since when, and when it may be sent again, None if it need not be."""

    identity: str
    since: float
    due_at: float | None


class Watch:
    """A watch over folders, each given by its path and its name at the service."""

    def __init__(
        self,
        push: Push,
        audience: Audience,
        folders: Iterable[tuple[bytes, str]],
        *,
        exclude: tuple[str, ...],
        parallel: int,
    ) -> None:
        self._push, self._audience = push, audience
        self._folders, self._exclude = list(folders), exclude
        self._large = asyncio.Semaphore(parallel)
        self._small = asyncio.Semaphore(parallel * SMALL_FOR_EACH)
        self._seen: dict[bytes, _Seen] = {}
        self._busy: set[bytes] = set()
        self._reported: set[str] = set()

    async def until_stopped(self) -> None:
        """Watch until SIGTERM or SIGINT. What is under way then goes on at the next start."""
        stopped = asyncio.Event()
        for number in (signal.SIGTERM, signal.SIGINT):
            asyncio.get_running_loop().add_signal_handler(number, stopped.set)
        signal.signal(signal.SIGIO, signal.SIG_IGN)  # a writer that comes while `_is_written` looks
        for path, _ in self._folders:
            self._audience.note(f"watching {os.fsdecode(path)}")
        looking = asyncio.create_task(self._look())
        stopping = asyncio.create_task(stopped.wait())
        try:
            await asyncio.wait([looking, stopping], return_when=asyncio.FIRST_COMPLETED)
            if looking.done():
                await looking
        finally:
            looking.cancel()
            stopping.cancel()
            await asyncio.gather(looking, stopping, return_exceptions=True)

    async def _look(self) -> None:
        try:
            async with asyncio.TaskGroup() as group:
                while True:
                    began = time.monotonic()
                    files = await asyncio.to_thread(self._scan)
                    took = time.monotonic() - began
                    for file in self._due(files):
                        self._busy.add(file.path)
                        group.create_task(self._send(file))
                    await asyncio.sleep(max(_PAUSE, took * _SHARE))
        except BaseExceptionGroup as errors:
            raise first(errors) from None

    def _scan(self) -> list[SourceFile]:
        unreadable: set[str] = set()
        walk = Walk(self._exclude, lambda *_: None, lambda path, why: unreadable.add(f"{path}: {why}"))
        found = [file for path, name in self._folders for file in below(path, name, walk)]
        for line in sorted(unreadable - self._reported):
            self._audience.note(f"unreadable: {line}")
        self._reported = unreadable
        return found

    def _due(self, files: Iterable[SourceFile]) -> list[SourceFile]:
        """The files to send now; what is there no more is forgotten."""
        now = time.monotonic()
        before, self._seen = self._seen, {}
        due = []
        for file in files:
            seen = before.get(file.path)
            if seen is None or seen.identity != file.identity:
                seen = _Seen(file.identity, now, now + SETTLED)
            self._seen[file.path] = seen
            if seen.due_at is not None and seen.due_at <= now and file.path not in self._busy:
                if is_written(file.path):
                    self._seen[file.path] = seen._replace(due_at=now + SETTLED)
                else:
                    due.append(file)
        return due

    async def _send(self, file: SourceFile) -> None:
        try:
            async with self._small if file.size <= SMALL else self._large:
                outcome = await self._push.one(file, as_found=True)
        finally:
            self._busy.discard(file.path)
        self._note(file, outcome)
        if outcome.fate != "unchanged" and outcome.code != "changed":
            self._audience.planned(1, file.size)
            self._audience.ended(outcome)

    def _note(self, file: SourceFile, outcome: Outcome) -> None:
        seen = self._seen.get(file.path)
        if seen is not None and seen.identity == file.identity and outcome.code != "changed":
            due_at = time.monotonic() + _RETRY if outcome.fate == "failed" else None
            self._seen[file.path] = seen._replace(due_at=due_at)


def is_written(path: bytes) -> bool:
    """Whether a process has the file open for writing; False where the file system or its owner does not let us know.

    The kernel grants a lease for reading only while nobody can write. It is given back at once.
    """
    try:
        handle = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    except OSError:
        return False
    try:
        fcntl.fcntl(handle, fcntl.F_SETLEASE, fcntl.F_RDLCK)
        fcntl.fcntl(handle, fcntl.F_SETLEASE, fcntl.F_UNLCK)
    except BlockingIOError:
        return True
    except OSError:
        return False
    finally:
        os.close(handle)
    return False
