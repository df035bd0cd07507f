"""The local store's door for maintenance: files are walked over, set aside and put back, and the store is tested."""

import os
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from contextlib import ExitStack, closing, contextmanager

from app.cancellation import run_to_completion
from app.errors import StorageFull, Unavailable
from app.storage import Aside, Found, Work
from app.storage.local import owners, syscalls, trash, walk
from app.storage.local.block_writer import DigestingFile
from app.storage.local.io_errors import FULL, reason
from app.storage.local.layout import SHARDS
from app.storage.local.parts import LocalParts
from app.storage.local.threads import in_thread
from app.storage.local.unrecorded import forget_left, left_under_way


class LocalUpkeep(LocalParts):
    """The contract of `storage.Upkeep`, kept by a directory."""

    async def set_aside(self, keys: Sequence[str]) -> None:
        await self._ask(trash.set_aside, self._directories, keys)
        await self.recorded(keys)

    async def put_back(self, keys: Sequence[str]) -> Mapping[str, int]:
        return await self._ask(trash.put_all_back, self._directories, keys)

    async def aside(self) -> Sequence[Aside]:
        return await self._ask(trash.list_aside, self._directories, await self._left())

    async def remove_aside(self, files: Sequence[Aside]) -> int:
        return await self._ask(trash.remove_aside, self._directories, files)

    async def _left(self) -> set[str]:
        return await self._ask(left_under_way, self._directories)

    async def walk(self, grace_seconds: float) -> AsyncIterator[list[Found]]:
        before = await self._ask(self._directories.now) - grace_seconds
        left = await self._left()
        for shard in SHARDS:
            yield await self._ask(walk.found_in, self._directories, shard, before, left)

    async def strays(self) -> list[str]:
        return await self._ask(walk.strays, self._directories)

    async def sweep(self) -> int:
        return await self._ask(owners.remove_stale, self._directories)

    async def forget_left(self, after_seconds: float) -> None:
        await self._ask(forget_left, self._directories, after_seconds)

    @contextmanager
    def alone_at(self, work: Work) -> Iterator[bool]:
        with ExitStack() as stack:
            with self._asked("alone_at"):
                alone = stack.enter_context(self._directories.alone_at(work))
            yield alone

    async def test(self) -> None:
        with self._asked("test"):
            await run_to_completion(in_thread(self._testing, self._test))

    def _test(self) -> None:
        fault = self._trust.fault
        try:
            if fault is not None:
                # The kernel may have yet to report an error of the old fault: here, and not to the next commit group.
                syscalls.syncfs(self._directories.root_fd)
            self._try_out()
        except OSError as error:
            if error.errno in FULL:
                raise StorageFull from error
            raise Unavailable(f"the store failed its test: {reason(error)}") from error
        self._trust.restore(fault)

    def _try_out(self) -> None:
        """Try out, without a trace, all operations that uploads rely on."""
        name = self._directories.owner  # no other process tests with the same name
        shard_fd = self._directories.shard_fd(name)
        with self._scratch(name) as file:
            file.write(b"waybill")
            os.fsync(file.fileno())
            self._directories.remove(name)
            try:
                self._directories.publish(name)
                os.fsync(shard_fd)
            finally:
                self._directories.remove(name)
            os.fsync(shard_fd)  # else a power cut could restore it, as a file without a record

    @contextmanager
    def _scratch(self, name: str, *, direct: bool = False) -> Iterator[DigestingFile]:
        """Open a staged file for the store's own tests, removed on exit."""
        self._staging.unlink(name)
        try:
            with closing(self._staging.create(name, None, direct=direct)) as file:
                yield file
        finally:
            self._staging.unlink(name)
