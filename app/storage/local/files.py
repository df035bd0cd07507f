"""The local store's door to files: they are staged, published, and read again."""

import asyncio
from collections.abc import Mapping, Sequence
from typing import cast

from app.cancellation import run_to_completion
from app.errors import Unavailable, UploadError
from app.storage import Pace, Reservation, Staged
from app.storage.local import trash
from app.storage.local.free_space import Reserved
from app.storage.local.parts import LocalParts
from app.storage.local.reader import Inspection, LocalStored, make_durable, open_at_hand, open_stored
from app.storage.local.staged import LocalStaged
from app.storage.local.threads import in_thread


class LocalFiles(LocalParts):
    """The contract of `storage.PublishedFiles`, kept by a directory."""

    def reserve(self, size: int) -> Reservation:
        with self._asked("reserve"):
            return self.space.reserve(size)

    async def free_bytes(self) -> int | None:
        with self._asked("free_bytes"):
            return self.space.free_bytes()

    def has_memory(self, size: int) -> bool:
        return self.space.has_memory(size)

    def staged_bytes(self) -> int:
        return sum(staged.size for staged in self._staging.live)

    def stage(self, key: str, reservation: Reservation | None = None, *, has_record: bool = False) -> LocalStaged:
        assert reservation is None or isinstance(reservation, Reserved)
        self._require()
        return self._staging.stage(key, reservation, has_record=has_record)

    async def publish(self, group: Sequence[Staged]) -> Mapping[str, UploadError]:
        files = cast("Sequence[LocalStaged]", group)  # made by `stage`
        whole = [staged for staged in files if staged.finished and not staged.ended]
        refused: dict[str, UploadError] = {}
        if len(whole) < len(files):
            for staged in set(files).difference(whole):
                refused[staged.key] = Unavailable()
                await staged.abort()
        if whole:
            publishing = asyncio.ensure_future(self._publish_and_forget(whole))
            for staged in whole:
                staged.end_with(publishing)
            refused.update(await run_to_completion(publishing))
        return refused

    async def _publish_and_forget(self, group: Sequence[LocalStaged]) -> Mapping[str, UploadError]:
        refused = await in_thread(self._publishing, self._publisher.publish, group)
        for staged in group:
            staged.forget()
        return refused

    async def open(self, key: str) -> LocalStored:
        with self._asked("open"):
            at_hand = open_at_hand(key, self._directories, self._threads)
        return at_hand if at_hand is not None else await self._ask(open_stored, key, self._directories, self._threads)

    async def digest(self, key: str, pace: Pace | None = None) -> tuple[int, str]:
        inspection = Inspection(key, self._directories)
        try:
            while not inspection.ended:
                with self._asked("digest"):
                    count = await run_to_completion(in_thread(self._copying, inspection.step))
                if pace is not None:
                    await pace(count)
        finally:
            inspection.close()
        return inspection.size, inspection.sha256

    async def make_durable(self, key: str) -> None:
        try:
            await self._ask(make_durable, key, self._directories, self._staging.durable)
        except Unavailable as error:
            if isinstance(error.__cause__, OSError):
                raise self._trust.refusal(error.__cause__, key, 0) from error
            raise

    async def remove(self, keys: Sequence[str]) -> None:
        await self._ask(trash.remove, self._directories, keys)
        await self.recorded(keys)

    async def missing(self, keys: Sequence[str]) -> list[str]:
        return await self._ask(trash.missing, self._directories, keys)
