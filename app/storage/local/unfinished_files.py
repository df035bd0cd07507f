"""The local store's door to unfinished files: they are opened, assembled, and removed."""

from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from typing import Final

from app.storage import FoundPartial, Mark, Reservation, digest_state
from app.storage.local import trash, walk
from app.storage.local.concatenate import assemble
from app.storage.local.free_space import Reserved
from app.storage.local.parts import LocalParts
from app.storage.local.unfinished import LocalPartial

_SLICE: Final = 1000


class LocalUnfinishedFiles(LocalParts):
    """The contract of `storage.UnfinishedFiles`, kept by a directory."""

    async def partial(
        self,
        key: str,
        fence: int,
        mark: Mark,
        reservation: Reservation | None = None,
        *,
        confirm: Callable[[], Awaitable[None]] | None = None,
    ) -> LocalPartial:
        assert reservation is None or isinstance(reservation, Reserved)
        self._trust.require()
        partial = LocalPartial(self._staging, key, fence, reservation)
        at_hand = digest_state.resumed(mark.digest_state, mark.offset) is not None
        with self._asked("partial"):
            self._staging.live.add(partial)
            try:
                await partial.open(mark, self._threads if at_hand else self._copying, confirm)
            except BaseException:
                await partial.detach()
                raise
        return partial

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

    async def remove_partials(self, names: Sequence[tuple[str, int]]) -> None:
        await self._ask(trash.remove_partials, self._directories, names)

    async def set_partials_aside(self, names: Sequence[tuple[str, int]]) -> None:
        await self._ask(trash.set_partials_aside, self._directories, names)

    async def end_partial(self, key: str, fence: int, offset: int) -> None:
        await self._ask(trash.end_partial, self._directories, (key, fence), offset)

    async def partials(self, grace_seconds: float) -> AsyncIterator[list[FoundPartial]]:
        before = await self._ask(self._directories.now) - grace_seconds
        names = await self._ask(walk.partials, self._directories)
        for at in range(0, len(names), _SLICE):
            yield await self._ask(walk.found_partials, self._directories, names[at : at + _SLICE], before)
