"""Where bytes live: the contract that every backend keeps.

A *staged* file is received but not visible. Publishing gives it its key, whole and
durable; from then on it never changes. A *partial* file is staged too, but comes in several
requests and stays when its process ends. Refusals are `errors.StorageFull` (no room above the floor of
free space, or for so large a file) and `errors.Unavailable` (the store cannot be used or
trusted now); any method that waits may raise the last.
"""

import re
from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Literal, NamedTuple, Protocol

from app.errors import Unavailable, UploadError

_KEY = re.compile(r"[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}")


def is_key(name: str) -> bool:
    """Whether `name` can be a key: a UUID in canonical text, so never a path."""
    return _KEY.fullmatch(name) is not None


class NotStored(Exception):
    """The key holds no whole file: it is absent, or what lies there is not a regular file."""


class Replaced(NotStored):
    """What lies under the key is no file of this store's own: a link, a directory, somebody else's file."""


class Unreadable(Unavailable):
    """The file is there, but the disk does not give its bytes."""


class Withheld(Unavailable):
    """The file is there, but this process is not allowed to read it, which says nothing against its bytes."""


Pace = Callable[[int], Awaitable[None]]
"""Is told of bytes that were read, and returns when the next may be."""


class InUse(Exception):
    """Somebody, perhaps another process, has the partial file and may still write into it."""


class Reservation(Protocol):
    """Space promised to one request for bytes that are still to come; it shrinks as they are written."""

    def release(self) -> None:
        """Give back what was not used. Harmless when repeated."""


class Staged(Protocol):
    """A file on its way in. Publishing ends it, or `abort` does; after an error nothing but `abort` helps."""

    key: str
    size: int

    async def write(self, block: bytes | memoryview) -> None:
        """Take the next bytes. They may be kept in memory until the file is published.

        Raises StorageFull or Unavailable, the last also when the file is finished or has ended.
        """

    async def finish(self) -> None:
        """No more bytes come; from here on `sha256` is known. Raises what `write` raises."""

    @property
    def sha256(self) -> str:
        """The digest of all bytes, lower-case hex."""

    async def abort(self) -> None:
        """Leave nothing behind, and wait for whatever is under way.

        Harmless when repeated, and once the file is being published: it is published then.
        """


class Mark(NamedTuple):
    """A place in a partial file; with `digest_state` the digest of what lies before can be taken up there."""

    offset: int
    digest_state: str | None = None


class Partial(Staged, Protocol):
    """A file that comes in several requests, open for appending. One call at a time, but for `detach`.

    It outlives this object and its process: only publishing ends it, or `Storage.remove_partials`.
    What has a mark, and no more than that, is sure to be there when it is opened again. After
    an error nothing but `detach` helps; the file can then be opened again at its last mark.
    """

    async def checkpoint(self) -> Mark:
        """Make all bytes written so far durable; after a `write` that was cancelled, as many as it took.

        `size` is the mark's offset then. Raises what `write` raises.
        """

    async def back_to(self, mark: Mark) -> None:
        """Give up every byte behind the mark, which this object returned or began with. Raises what `write` raises."""

    async def digest(self, algorithm: str) -> str:
        """The digest in hex of the bytes up to the last mark; any but sha256 reads them all again.

        Raises:
            NotStored, Unavailable: they cannot be read.
        """

    async def detach(self) -> None:
        """Let go of the file, for somebody else to open, and wait for whatever is under way.

        What has no mark may stay or not. Harmless when repeated, and once the file is being
        published. `abort` does the same.
        """


class StoredFile(Protocol):
    """A published file, open for reading."""

    size: int

    async def read(self, offset: int, length: int) -> bytes:
        """Up to `length` bytes from `offset`; fewer only at the end of the file."""

    async def close(self) -> None: ...


class Found(NamedTuple):
    """What a walk met under a key.

    `settled` is true once it is as old as the grace that was asked for. `left` is true when the
    process that published it ended before it heard of a committed record (`Storage.recorded`):
    that crash explains why there is none.
    """

    key: str
    size: int
    settled: bool
    left: bool = False


class FoundPartial(NamedTuple):
    """A partial file, open or not. `settled` is true once nobody has changed it for the grace that was asked for."""

    key: str
    fence: int
    size: int
    settled: bool


class Aside(NamedTuple):
    """A file that was set aside `age` seconds ago: a published one or, with a fence, a partial one.

    `left` as in `Found`.
    """

    key: str
    fence: int | None
    age: float
    left: bool


Work = Literal["sweep", "scrub", "complete", "merges"]
"""What looks over the whole store, and is done by one process at a time."""


class Storage(Protocol):
    async def prepare(self) -> None:
        """Make the store usable, or raise `errors.Unusable` naming what is wrong. Any number of times."""

    async def close(self) -> None:
        """Give up what is still on its way in, and let go of everything. Harmless when repeated."""

    def reserve(self, size: int) -> Reservation:
        """Promise `size` bytes, which no other upload of this process then takes.

        Raises StorageFull when they would pass the floor of free space.
        """

    def stage(self, key: str, reservation: Reservation | None = None) -> Staged:
        """Begin a file, whose bytes come out of the reservation as far as it goes.

        Raises Unavailable while the store cannot be trusted, and ValueError when `key` is none.
        """

    async def publish(self, batch: Sequence[Staged]) -> Mapping[str, UploadError]:
        """Give every finished file of the batch its key, durably.

        Returns the files it refused, by key; of those nothing is left, but a partial file
        stays what it was and is let go. All others are there whole, and their bytes and
        names would survive a power cut. No file is ever replaced. A cancelled caller does
        not stop it.
        """

    async def recorded(self, keys: Collection[str]) -> None:
        """Take note that these published files have committed records: no crash explains any more that one has none.

        To be awaited before anybody is told that they have. Partial files need no such note, since they had records
        from the beginning.
        """

    async def partial(
        self,
        key: str,
        fence: int,
        mark: Mark,
        reservation: Reservation | None = None,
        *,
        confirm: Callable[[], Awaitable[None]] | None = None,
    ) -> Partial:
        """Open the partial file that is named by `key` and `fence`, for appending at the mark.

        It is made when the mark stands at 0 and there is none. What lies behind the mark is
        cut off, after `confirm` has been asked whether it still counts for nobody: by then no
        other can open the file. What that raises is passed on, and nothing is cut off. Raises
        NotStored when the file is absent or ends before the mark, InUse when somebody has it
        open, ValueError when `key` is none, and Unavailable as `stage` does.
        """

    async def assemble(
        self, key: str, fence: int, parts: Sequence[tuple[str, int, Mark]], reservation: Reservation | None = None
    ) -> Mark:
        """Make a partial file from other ones, each up to its mark, in this order; all of it is durable then.

        The others stay, and may be in use. A part whose mark stands at 0 needs no file. Raises
        InUse when something lies under the name, which is left alone; NotStored when a part is
        absent or ends before its mark, and what `Staged.write` raises; nothing is left then. A
        cancelled caller stops it.
        """

    async def remove_partials(self, names: Sequence[tuple[str, int]]) -> None:
        """Remove partial files, given as key and fence; absent ones are passed over.

        Who has one open may go on, but what it writes is lost, and publishing refuses it.
        """

    async def set_partials_aside(self, names: Sequence[tuple[str, int]]) -> None:
        """Move partial files where `partials` does not meet them; `partial` and `assemble` put them back."""

    async def end_partial(self, key: str, fence: int, offset: int) -> None:
        """Remove a partial file that ended at the offset. One that is longer is set aside: some database knows more."""

    def partials(self, grace_seconds: float) -> AsyncIterator[list[FoundPartial]]:
        """Every partial file, in slices."""

    async def open(self, key: str) -> StoredFile:
        """Open a published file; raises NotStored."""

    async def digest(self, key: str, pace: Pace | None = None) -> tuple[int, str]:
        """Size and SHA-256 of what is stored under the key now, read from the disk, and as slowly as `pace` says.

        What others have read often, and is at hand for that, stays at hand. Raises NotStored,
        also as Replaced, Unreadable and Withheld; Unavailable when the reason is not this file.
        """

    async def make_durable(self, key: str) -> None:
        """Make sure of a published file, bytes and name, that a process left before `publish` told so.

        Raises NotStored.
        """

    async def remove(self, keys: Sequence[str]) -> None:
        """Remove published files, also where they were set aside; absent ones are passed over."""

    async def set_aside(self, keys: Sequence[str]) -> None:
        """Move published files where `walk` does not meet them.

        Whoever asks for one by its key, through `open`, `digest`, `missing` or `make_durable`, puts it back.
        """

    async def put_back(self, keys: Sequence[str]) -> Mapping[str, int]:
        """Put back what was set aside of these published files; the sizes of those that were."""

    async def aside(self) -> Sequence[Aside]:
        """Everything that was set aside."""

    async def remove_aside(self, files: Sequence[Aside]) -> int:
        """Remove files that were set aside; how many. One that was put back meanwhile stays."""

    def walk(self, grace_seconds: float) -> AsyncIterator[list[Found]]:
        """Every published file, in slices; a file is settled when it is at least `grace_seconds` old."""

    async def missing(self, keys: Sequence[str]) -> list[str]:
        """Those of `keys` under which no regular file lies, nor was set aside."""

    async def strays(self) -> list[str]:
        """Names in the store that are none of its own: under no key, or not what such a name stands for."""

    async def sweep(self) -> int:
        """Remove what dead owners left staged; return how many files. What was staged was never acknowledged."""

    async def forget_left(self, after_seconds: float) -> None:
        """Forget what processes left that ended longer ago, but for files that are still set aside."""

    def alone_at(self, work: Work) -> AbstractContextManager[bool]:
        """Whether the caller alone, of all who use this store, does this work now; no other can until it ends."""

    async def free_bytes(self) -> int | None:
        """Bytes an upload could still use above the floor, or None where the store has no such limit.

        The number is stale when you read it: use it to refuse early, never to promise.
        """

    def staged_bytes(self) -> int:
        """Bytes of the files that this process has on their way in."""

    async def test(self) -> None:
        """Write, sync, publish and remove a file of its own; raises Unavailable or StorageFull.

        Passing it restores trust after an I/O error.
        """
