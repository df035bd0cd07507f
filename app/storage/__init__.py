"""Where bytes live: the contract that every backend keeps.

A *staged* file is received but not visible. Publishing gives it its key, whole and
durable; from then on it never changes. Refusals are `errors.StorageFull` (no room above
the floor of free space), `errors.TooLarge` (the file system cannot hold such a file) and
`errors.Unavailable` (the store cannot be used or trusted now); any method that waits may
raise the last.
"""

import re
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import AbstractContextManager
from typing import NamedTuple, Protocol

from app.errors import UploadError

_KEY = re.compile(r"[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}")


def is_key(name: str) -> bool:
    """Whether `name` can be a key: a UUID in canonical text, so never a path."""
    return _KEY.fullmatch(name) is not None


class NotStored(Exception):
    """The key holds no whole file: it is absent, or what lies there is not a regular file."""


class Reservation(Protocol):
    """Space promised to one request for bytes that are still to come; it shrinks as they are written."""

    def release(self) -> None:
        """Give back what was not used. Harmless when repeated."""


class Staged(Protocol):
    """A file on its way in. Publishing ends it, or `abort` does; after an error nothing but `abort` helps."""

    key: str
    size: int

    async def write(self, block: bytes) -> None:
        """Take the next bytes. They may be kept in memory until the file is published.

        Raises StorageFull, TooLarge or Unavailable, the last also when the file is finished or has ended.
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


class Stored(Protocol):
    """A published file, open for reading."""

    size: int

    async def read(self, offset: int, length: int) -> bytes:
        """Up to `length` bytes from `offset`; fewer only at the end of the file."""

    async def close(self) -> None: ...


class Found(NamedTuple):
    """What a walk met under a key. `settled` is true once it is as old as the grace that was asked for."""

    key: str
    size: int
    settled: bool


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

        Returns the files it refused, by key; of those nothing is left. All others are
        there whole, and their bytes and names would survive a power cut. No file is ever
        replaced. A cancelled caller does not stop it.
        """

    async def open(self, key: str) -> Stored:
        """Open a published file; raises NotStored."""

    async def digest(self, key: str) -> tuple[int, str]:
        """Size and SHA-256 of what is stored under the key now, read from the store; raises NotStored."""

    async def remove(self, keys: Sequence[str]) -> None:
        """Remove published files; absent ones are passed over."""

    async def set_aside(self, keys: Sequence[str]) -> None:
        """Move published files where no key finds them and where they can be rescued for days."""

    def walk(self, grace_seconds: float) -> AsyncIterator[list[Found]]:
        """Every published file, in slices; a file is settled when it is at least `grace_seconds` old."""

    async def missing(self, keys: Sequence[str]) -> list[str]:
        """Those of `keys` under which no regular file lies."""

    async def strays(self) -> list[str]:
        """Names among the published files that are none: no key, or no regular file."""

    async def sweep(self, keep_aside_seconds: float) -> int:
        """Remove what dead owners left staged, and what was set aside longer ago; return how many files."""

    def sole_sweeper(self) -> AbstractContextManager[bool]:
        """Whether the caller alone, of all who use this store, looks over all of it now; no other can until it ends."""

    async def free_bytes(self) -> int | None:
        """Bytes an upload could still use above the floor, or None where the store has no such limit.

        The number is stale when you read it: use it to refuse early, never to promise.
        """

    async def test(self) -> None:
        """Write, sync, publish and remove a file of its own; raises Unavailable or StorageFull.

        Passing it restores trust after an I/O error.
        """
