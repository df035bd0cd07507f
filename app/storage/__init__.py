"""The storage of bytes: the contract that every backend keeps.

A *staged* file is received but not visible. Publishing gives it its key, complete and
durable; from then on it never changes. An *unfinished* file (`Unfinished`) is staged too, but comes in
several requests and stays when its process ends. Refusals are `errors.StorageFull` (no space above
the minimum of free space, or for so large a file) and `errors.Unavailable` (the store cannot be used
or trusted now); any method that waits may raise the last.
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
    """The key has no complete file: it is absent, or not a regular file."""


class Replaced(NotStored):
    """The key has something that is no file of this store's own: a link, a directory, another owner's file."""


class Unreadable(Unavailable):
    """The file is there, but the disk fails to read its bytes."""


class Withheld(Unavailable):
    """The file is there, but this process is not allowed to read it; its bytes may be intact."""


Pace = Callable[[int], Awaitable[None]]
"""Called with the number of bytes that were read; returns when more may be read."""


class InUse(Exception):
    """The unfinished file is open, perhaps in another process, and may still be written to."""


class Reservation(Protocol):
    """Space reserved for the bytes that one request is still to bring; it shrinks as they are written."""

    def release(self) -> None:
        """Release the space that was not used. Harmless when repeated."""


class Staged(Protocol):
    """A file that is being received. It ends by publishing, or by `abort`, the only call allowed after an error."""

    key: str
    size: int

    async def write(self, block: bytes | memoryview) -> None:
        """Take the next bytes. They may be kept in memory until the file is published.

        Raises StorageFull or Unavailable, the last also when the file is finished or has ended.
        """

    async def finish(self) -> None:
        """Finish the file: no more bytes come, and `sha256` is known. Raises what `write` raises."""

    @property
    def sha256(self) -> str:
        """The digest of all bytes, lower-case hex."""

    def held(self) -> Sequence[bytes | memoryview] | None:
        """The bytes so far, in blocks, as long as they are all in memory; None after that."""

    async def abort(self) -> None:
        """Discard the file, and wait for calls that are under way.

        Harmless when repeated, and without effect once the file is being published.
        """


class Mark(NamedTuple):
    """An offset in an unfinished file, and with `digest_state` the running digest of the bytes before it."""

    offset: int
    digest_state: str | None = None


class Unfinished(Staged, Protocol):
    """An unfinished file, open for appending. One call at a time, except `detach`.

    The file outlives this object and its process: it ends only by publishing, or by `Storage.remove_unfinished`.
    Bytes before a mark, and no others, are sure to be there when it is opened again. After an
    error only `detach` is allowed; the file can then be opened again at its last mark.
    """

    async def checkpoint(self) -> Mark:
        """Make all bytes written so far durable; after a `write` that was cancelled, as many as it took.

        `size` is the mark's offset then. Raises what `write` raises.
        """

    async def back_to(self, mark: Mark) -> None:
        """Discard all bytes behind the mark, which this object returned or began with. Raises what `write` raises."""

    async def digest(self, algorithm: str) -> str:
        """The digest in hex of the bytes up to the last mark; any but sha256 reads them all again.

        Raises:
            NotStored, Unavailable: they cannot be read.
        """

    async def detach(self) -> None:
        """Release the file, for others to open, and wait for calls that are under way.

        Bytes behind the last mark may stay or not. Harmless when repeated, and once the file is being
        published. `abort` does the same.
        """


class StoredFile(Protocol):
    """A published file, open for reading."""

    size: int

    async def read(self, offset: int, length: int) -> bytes:
        """Up to `length` bytes from `offset`; fewer only at the end of the file."""

    async def close(self) -> None: ...


class Found(NamedTuple):
    """A published file that a walk found.

    `settled` is true once the file is as old as the requested grace. `left` is true when the
    process that published it ended before it was notified of a committed record (`Storage.recorded`):
    that crash explains why there is none.
    """

    key: str
    size: int
    settled: bool
    left: bool = False


class FoundUnfinished(NamedTuple):
    """An unfinished file, open or not. `settled` is true once it has not changed for the requested grace."""

    key: str
    fence: int
    size: int
    settled: bool


class Aside(NamedTuple):
    """A file that was set aside `age` seconds ago: a published one or, with a fence, an unfinished one.

    `left` as in `Found`.
    """

    key: str
    fence: int | None
    age: float
    left: bool


Work = Literal["sweep", "scrub", "complete", "merges"]
"""Background work on the whole store, done by one process at a time."""


class PublishedFiles(Protocol):
    """Files that are received in one request, published, and read again."""

    def stage(self, key: str, reservation: Reservation | None = None, *, has_record: bool = False) -> Staged:
        """Begin a file, whose bytes use up the reservation first. One that `has_record` needs no `recorded`.

        Raises Unavailable while the store cannot be trusted, and ValueError for an invalid `key`.
        """

    async def publish(self, group: Sequence[Staged]) -> Mapping[str, UploadError]:
        """Give every finished file of the commit group its key, durably.

        Returns the refused files, by key; nothing of them is left, except that an unfinished file
        stays as it was and is released. All others are complete, and their bytes and names would
        survive a power cut. No file is ever replaced. A cancelled caller does not stop it.
        """

    async def recorded(self, keys: Collection[str]) -> None:
        """Note that these published files have committed records: a crash would not explain any more if one had none.

        To be awaited before the uploads are acknowledged. Unfinished files need no such note, since they have
        records from the beginning.
        """

    async def open(self, key: str) -> StoredFile:
        """Open a published file; raises NotStored."""

    async def digest(self, key: str, pace: Pace | None = None) -> tuple[int, str]:
        """Size and SHA-256 of the file now stored under the key, read from the disk, as slowly as `pace` makes it.

        Pages that are cached because clients read them stay cached. Raises NotStored, also as
        Replaced, Unreadable and Withheld; Unavailable when the reason is not this file.
        """

    async def make_durable(self, key: str) -> None:
        """Make bytes and name of a published file durable, whose process ended before `publish` returned.

        Raises NotStored.
        """

    async def remove(self, keys: Sequence[str]) -> None:
        """Remove published files, also those that were set aside; absent ones are skipped."""

    async def missing(self, keys: Sequence[str]) -> list[str]:
        """List those of `keys` that have no regular file, nor one that was set aside."""

    def reserve(self, size: int) -> Reservation:
        """Reserve `size` bytes, which no other upload of this process then takes.

        Raises StorageFull when they do not fit above the minimum of free space.
        """

    async def free_bytes(self) -> int | None:
        """Bytes that uploads could still use above the minimum of free space; None for a store without such a limit.

        The number is stale when you read it: use it to refuse early, never to guarantee space.
        """

    def has_memory(self, size: int) -> bool:
        """Whether so many bytes more of small files would stay in memory now."""

    def staged_bytes(self) -> int:
        """The bytes of the files that this process is receiving."""


class UnfinishedFiles(Protocol):
    """Unfinished files, which come in several requests: each is named by the key of its upload and a fence."""

    async def open_unfinished(
        self,
        key: str,
        fence: int,
        mark: Mark,
        reservation: Reservation | None = None,
        *,
        confirm: Callable[[], Awaitable[None]] | None = None,
    ) -> Unfinished:
        """Open the unfinished file of `key` and `fence`, for appending at the mark.

        An absent file is created when the mark is at 0. Bytes behind the mark are cut off, after
        `confirm` has checked that they do not count: by then no other can open the file. An
        exception of `confirm` is passed on, and nothing is cut off. Raises NotStored when the file
        is absent or ends before the mark, InUse when it is open elsewhere, ValueError for an
        invalid `key`, and Unavailable as `stage` does.
        """

    async def assemble(
        self, key: str, fence: int, parts: Sequence[tuple[str, int, Mark]], reservation: Reservation | None = None
    ) -> Mark:
        """Assemble an unfinished file from others, each up to its mark, in this order; it is durable on return.

        The others stay, and may be in use. A part whose mark is at 0 needs no file. Raises InUse
        when the name is taken, by a file that is left alone; NotStored when a part is absent or
        ends before its mark, and what `Staged.write` raises; nothing is left then. Cancelling the
        caller stops it.
        """

    async def remove_unfinished(self, names: Sequence[tuple[str, int]]) -> None:
        """Remove unfinished files, given as key and fence; absent ones are skipped.

        A process that has one open may go on, but its bytes are lost, and publishing refuses the file.
        """

    async def end_unfinished(self, key: str, fence: int, offset: int) -> None:
        """Remove an unfinished file that ended at the offset; set aside a longer one, which another database knows."""

    async def set_unfinished_aside(self, names: Sequence[tuple[str, int]]) -> None:
        """Move unfinished files to where a walk does not find them; `open_unfinished` and `assemble` put them back."""

    def walk_unfinished(self, grace_seconds: float) -> AsyncIterator[list[FoundUnfinished]]:
        """Iterate over every unfinished file, in slices."""


class Upkeep(Protocol):
    """The work of maintenance on the whole store: to find what no record knows, and to set it aside."""

    def walk(self, grace_seconds: float) -> AsyncIterator[list[Found]]:
        """Iterate over every published file, in slices; a file is settled when it is at least `grace_seconds` old."""

    async def strays(self) -> list[str]:
        """List unknown names in the store: those that are no key, or not the kind of file that the name stands for."""

    async def set_aside(self, keys: Sequence[str]) -> None:
        """Move published files to where `walk` does not find them.

        Access to one by its key, through `open`, `digest`, `missing` or `make_durable`, puts it back.
        """

    async def put_back(self, keys: Sequence[str]) -> Mapping[str, int]:
        """Put back those of these published files that were set aside; return their sizes."""

    async def aside(self) -> Sequence[Aside]:
        """List all files that were set aside."""

    async def remove_aside(self, files: Sequence[Aside]) -> int:
        """Remove files that were set aside; return how many. One that was put back meanwhile stays."""

    async def sweep(self) -> int:
        """Remove files that dead owners left staged; return how many. Staged files were never acknowledged."""

    async def forget_left(self, after_seconds: float) -> None:
        """Delete the notes of processes that ended longer ago, except those about files that are still set aside."""

    def alone_at(self, work: Work) -> AbstractContextManager[bool]:
        """Lock this work against all other users of the store until the block ends; False if another has locked it."""

    async def test(self) -> None:
        """Test the store: write, sync, publish and remove a file of its own; raises Unavailable or StorageFull.

        Passing it restores trust after an I/O error.
        """


class Storage(PublishedFiles, UnfinishedFiles, Upkeep, Protocol):
    """A whole store: one object, of which each caller needs a part."""

    async def prepare(self) -> None:
        """Make the store usable, or raise `errors.Unusable` with the reason. Can be repeated."""

    async def close(self) -> None:
        """Discard files that are being received, and release everything. Harmless when repeated."""
