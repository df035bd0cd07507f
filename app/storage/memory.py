"""The memory store, which keeps the contract in a dict: the reference for tests, and for trials without a disk.

Here "durable" means: as long as the process lives.
"""

import hashlib
from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import cast

from app.errors import StorageFull, Unavailable, UploadError
from app.storage import (
    Aside,
    Found,
    FoundUnfinished,
    InUse,
    Mark,
    NotStored,
    Pace,
    Reservation,
    Staged,
    Work,
    digest_state,
    is_key,
)


class MemorySpace:
    """The space of a memory store: `free` bytes, of which `reserved` ones are for uploads that are under way."""

    def __init__(self, capacity: int) -> None:
        self.free = capacity
        self.reserved = 0

    def reserve(self, size: int) -> "_Reserved":
        if size > self.free - self.reserved:
            raise StorageFull
        self.reserved += size
        return _Reserved(self, size)

    def take(self, size: int, reservation: Reservation | None) -> None:
        """Use space: first what is reserved for this upload, then unreserved space."""
        assert reservation is None or isinstance(reservation, _Reserved)
        promised = min(size, reservation.left) if reservation else 0
        if size > self.free - self.reserved + promised:
            raise StorageFull
        self.free -= size
        self.reserved -= promised
        if reservation:
            reservation.left -= promised

    def release(self, size: int) -> None:
        self.free += size


class _Reserved:
    def __init__(self, space: MemorySpace, size: int) -> None:
        self._space = space
        self.left = size

    def release(self) -> None:
        self._space.reserved -= self.left
        self.left = 0


class MemoryStaged:
    def __init__(self, storage: "MemoryStorage", key: str, reservation: Reservation | None) -> None:
        self.key = key
        self.size = 0
        self.finished = False
        self.ended = False
        self._storage = storage
        self._reservation = reservation
        self._digest = digest_state.begun()
        self._content = bytearray()
        storage.staged.add(self)

    async def write(self, block: bytes | memoryview) -> None:
        self._require()
        self.size += len(block)
        self._storage.space.take(len(block), self._reservation)
        self._content += block
        self._digest.update(block)

    async def finish(self) -> None:
        self._require()
        self.finished = True

    def _require(self) -> None:
        if self.finished or self.ended:
            raise Unavailable

    @property
    def sha256(self) -> str:
        return self._digest.hexdigest()

    def held(self) -> Sequence[bytes | memoryview] | None:
        return None if self.ended else [bytes(self._content)]

    async def abort(self) -> None:
        if not self.ended:
            self._storage.space.release(len(self.end()))

    def end(self) -> bytes:
        self.ended = True
        self._storage.staged.discard(self)
        return bytes(self._content)


class MemoryUnfinished(MemoryStaged):
    """An unfinished file in memory. Bytes behind its last mark are lost when it is released."""

    def __init__(
        self, storage: "MemoryStorage", name: tuple[str, int], mark: Mark, reservation: Reservation | None
    ) -> None:
        super().__init__(storage, name[0], reservation)
        self.name = name
        self._kept = storage.unfinished_files.setdefault(name, bytearray())
        self._broken = False
        self.size = mark.offset
        self.behind = len(self._kept) - mark.offset

    def begin(self) -> None:
        self._storage.space.release(self.behind)
        del self._kept[self.size :]
        self._content += self._kept
        self._digest = _digest_of(self._content)

    async def write(self, block: bytes | memoryview) -> None:
        try:
            await super().write(block)
        except UploadError:
            self._broken = True
            raise

    def _require(self) -> None:
        super()._require()
        if self._broken:
            raise Unavailable

    @property
    def there(self) -> bool:
        """Whether the file still exists, and was not removed meanwhile."""
        return self._storage.unfinished_files.get(self.name) is self._kept

    async def checkpoint(self) -> Mark:
        self._require()
        self.size = len(self._content)
        if self.there:
            self._kept += self._content[len(self._kept) :]
        return Mark(self.size, self._digest.state())

    async def digest(self, algorithm: str) -> str:
        self._require()
        return hashlib.new(algorithm, self._kept).hexdigest()

    async def back_to(self, mark: Mark) -> None:
        self._require()
        self._storage.space.release(len(self._content) - mark.offset)
        del self._content[mark.offset :]
        if self.there:
            del self._kept[mark.offset :]
        self._digest = _digest_of(self._content)
        self.size = mark.offset

    async def detach(self) -> None:
        if not self.ended:
            self._storage.space.release(len(self.end()) - len(self._kept))

    abort = detach


def _digest_of(content: bytearray) -> digest_state.RunningDigest:
    digest = digest_state.begun()
    digest.update(content)
    return digest


class MemoryStored:
    def __init__(self, content: bytes) -> None:
        self.size = len(content)
        self._content = content

    async def read(self, offset: int, length: int) -> bytes:
        return self._content[offset : offset + length]

    async def close(self) -> None:
        return


def _require_key(key: str) -> None:
    if not is_key(key):
        raise ValueError("a key is a UUID in canonical text")


class MemoryStorage:
    """A store of at most `capacity` bytes, staged and published together."""

    def __init__(self, capacity: int = 2**63) -> None:
        self.space = MemorySpace(capacity)
        self._files: dict[str, bytes] = {}
        self._aside: dict[str, bytes] = {}
        self._unfinished_aside: dict[tuple[str, int], bytearray] = {}
        self.unfinished_files: dict[tuple[str, int], bytearray] = {}
        self._works: set[Work] = set()
        self.staged: set[MemoryStaged] = set()

    async def prepare(self) -> None:
        return

    async def close(self) -> None:
        for staged in list(self.staged):
            await staged.abort()

    def reserve(self, size: int) -> Reservation:
        return self.space.reserve(size)

    def stage(self, key: str, reservation: Reservation | None = None, *, has_record: bool = False) -> MemoryStaged:
        _require_key(key)
        return MemoryStaged(self, key, reservation)

    async def publish(self, group: Sequence[Staged]) -> Mapping[str, UploadError]:
        refused: dict[str, UploadError] = {}
        for staged in cast("Sequence[MemoryStaged]", group):  # made by `stage`
            removed = isinstance(staged, MemoryUnfinished) and not staged.there
            if not staged.finished or staged.ended or staged.key in self._files or removed:
                refused[staged.key] = Unavailable()
                await staged.abort()
            else:
                self._files[staged.key] = staged.end()
                if isinstance(staged, MemoryUnfinished):
                    del self.unfinished_files[staged.name]
        return refused

    async def recorded(self, keys: Collection[str]) -> None:
        return  # nothing here outlives a crash

    def _holds(self, key: str) -> bool:
        """Whether the key has a file, which is put back if it was set aside."""
        if key in self._aside and key not in self._files:
            self._files[key] = self._aside.pop(key)
        return key in self._files

    def _unfinished(self, name: tuple[str, int], mark: Mark) -> bytearray:
        """The bytes of an unfinished file; raises NotStored when they end before the mark."""
        if name in self._unfinished_aside and name not in self.unfinished_files:
            self.unfinished_files[name] = self._unfinished_aside.pop(name)
        content = self.unfinished_files.get(name, bytearray())
        if len(content) < mark.offset:
            raise NotStored(name[0])
        return content

    async def open_unfinished(
        self,
        key: str,
        fence: int,
        mark: Mark,
        reservation: Reservation | None = None,
        *,
        confirm: Callable[[], Awaitable[None]] | None = None,
    ) -> MemoryUnfinished:
        _require_key(key)
        name = key, fence
        self._unfinished(name, mark)
        if any(isinstance(staged, MemoryUnfinished) and staged.name == name for staged in self.staged):
            raise InUse(key)
        unfinished = MemoryUnfinished(self, name, mark, reservation)
        try:
            if unfinished.behind and confirm is not None:
                await confirm()
        except BaseException:
            unfinished.end()
            raise
        unfinished.begin()
        return unfinished

    async def assemble(
        self, key: str, fence: int, parts: Sequence[tuple[str, int, Mark]], reservation: Reservation | None = None
    ) -> Mark:
        _require_key(key)
        if (key, fence) in self.unfinished_files:
            raise InUse(key)
        content = bytearray()
        for part_key, part_fence, mark in parts:
            content += self._unfinished((part_key, part_fence), mark)[: mark.offset]
        self.space.take(len(content), reservation)
        self.unfinished_files[key, fence] = content
        return Mark(len(content), _digest_of(content).state())

    async def remove_unfinished(self, names: Sequence[tuple[str, int]]) -> None:
        for name in names:
            for files in (self.unfinished_files, self._unfinished_aside):
                self.space.release(len(files.pop(name, b"")))

    async def set_unfinished_aside(self, names: Sequence[tuple[str, int]]) -> None:
        for name in names:
            if name in self.unfinished_files:
                self._unfinished_aside[name] = self.unfinished_files.pop(name)

    async def end_unfinished(self, key: str, fence: int, offset: int) -> None:
        is_longer = len(self.unfinished_files.get((key, fence), b"")) > offset
        await (self.set_unfinished_aside if is_longer else self.remove_unfinished)([(key, fence)])

    async def walk_unfinished(self, grace_seconds: float) -> AsyncIterator[list[FoundUnfinished]]:
        yield [
            FoundUnfinished(key, fence, len(content), grace_seconds == 0)
            for (key, fence), content in self.unfinished_files.items()
        ]

    async def open(self, key: str) -> MemoryStored:
        if not self._holds(key):
            raise NotStored(key)
        return MemoryStored(self._files[key])

    async def digest(self, key: str, pace: Pace | None = None) -> tuple[int, str]:
        if not self._holds(key):
            raise NotStored(key)
        if pace is not None:
            await pace(len(self._files[key]))
            if not self._holds(key):
                raise NotStored(key)
        return len(self._files[key]), hashlib.sha256(self._files[key]).hexdigest()

    async def make_durable(self, key: str) -> None:
        if not self._holds(key):
            raise NotStored(key)

    async def remove(self, keys: Sequence[str]) -> None:
        for key in keys:
            for files in (self._files, self._aside):
                self.space.release(len(files.pop(key, b"")))

    async def set_aside(self, keys: Sequence[str]) -> None:
        for key in keys:
            if key in self._files:
                self._aside[key] = self._files.pop(key)

    async def put_back(self, keys: Sequence[str]) -> Mapping[str, int]:
        return {key: len(self._files[key]) for key in keys if key in self._aside and self._holds(key)}

    async def aside(self) -> Sequence[Aside]:
        found = [Aside(key, None, 0.0, False) for key in self._aside]
        return found + [Aside(*name, 0.0, False) for name in self._unfinished_aside]

    async def remove_aside(self, files: Sequence[Aside]) -> int:
        before = len(self._aside) + len(self._unfinished_aside)
        for key, fence, *_ in files:
            gone = self._aside.pop(key, b"") if fence is None else self._unfinished_aside.pop((key, fence), b"")
            self.space.release(len(gone))
        return before - len(self._aside) - len(self._unfinished_aside)

    async def walk(self, grace_seconds: float) -> AsyncIterator[list[Found]]:
        yield [Found(key, len(content), grace_seconds == 0) for key, content in self._files.items()]

    async def missing(self, keys: Sequence[str]) -> list[str]:
        return [key for key in keys if not self._holds(key)]

    async def strays(self) -> list[str]:
        return []

    async def sweep(self) -> int:
        return 0

    async def forget_left(self, after_seconds: float) -> None:
        return

    @contextmanager
    def alone_at(self, work: Work) -> Iterator[bool]:
        if work in self._works:
            yield False
            return
        self._works.add(work)
        try:
            yield True
        finally:
            self._works.remove(work)

    async def free_bytes(self) -> int | None:
        return self.space.free

    def has_memory(self, size: int) -> bool:
        return True

    def staged_bytes(self) -> int:
        return sum(staged.size for staged in self.staged)

    async def test(self) -> None:
        return
