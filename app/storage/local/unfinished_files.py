"""The local store's door to unfinished files: they are opened, assembled, and removed."""

from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from typing import Final

from app.storage import FoundUnfinished, Mark, Reservation, digest_state
from app.storage.local import trash, walk
from app.storage.local.concatenate import assemble
from app.storage.local.free_space import Reserved
from app.storage.local.parts import LocalParts
from app.storage.local.unfinished import LocalUnfinished

_SLICE: Final = 1000


class LocalUnfinishedFiles(LocalParts):
    """The contract of `storage.UnfinishedFiles`, kept by a directory."""

    async def open_unfinished(
        self,
        key: str,
        fence: int,
        mark: Mark,
        reservation: Reservation | None = None,
        *,
        confirm: Callable[[], Awaitable[None]] | None = None,
    ) -> LocalUnfinished:
        assert reservation is None or isinstance(reservation, Reserved)
        self._trust.require()
        unfinished = LocalUnfinished(self._staging, key, fence, reservation)
        at_hand = digest_state.resumed(mark.digest_state, mark.offset) is not None
        with self._asked("open_unfinished"):
            self._staging.live.add(unfinished)
            try:
                await unfinished.open(mark, self._threads if at_hand else self._copying, confirm)
            except BaseException:
                await unfinished.detach()
                raise
        return unfinished

    async def assemble(
        self, key: str, fence: int, parts: Sequence[tuple[str, int, Mark]], reservation: Reservation | None = None
    ) -> Mark:
        assert reservation is None or isinstance(reservation, Reserved)
        self._trust.require()
        with self._asked("assemble"):
            try:
                return await assemble(self._staging, self._copying, (key, fence), parts, reservation)
            except OSError as error:
                raise self._trust.refusal(error, key, sum(mark.offset for _, _, mark in parts)) from error

    async def remove_unfinished(self, names: Sequence[tuple[str, int]]) -> None:
        await self._ask(trash.remove_unfinished, self._directories, names)

    async def set_unfinished_aside(self, names: Sequence[tuple[str, int]]) -> None:
        await self._ask(trash.set_unfinished_aside, self._directories, names)

    async def end_unfinished(self, key: str, fence: int, offset: int) -> None:
        await self._ask(trash.end_unfinished, self._directories, (key, fence), offset)

    async def walk_unfinished(self, grace_seconds: float) -> AsyncIterator[list[FoundUnfinished]]:
        before = await self._ask(self._directories.now) - grace_seconds
        names = await self._ask(walk.unfinished, self._directories)
        for at in range(0, len(names), _SLICE):
            yield await self._ask(walk.found_unfinished, self._directories, names[at : at + _SLICE], before)
