"""How much may still be written: the floor of free space, what is spoken for, and memory for small files."""

import asyncio
import errno
import os
from typing import Final

from app.errors import StorageFull

HELD_BYTES_IN_ALL: Final = 64 * 1024 * 1024
"""Memory for files that are still small enough to wait for their batch there."""
_FREE_SPACE_AGE: Final = 0.05  # seconds for which one look at the file system is good enough


class Reserved:
    """A part of the free space that is spoken for; it shrinks as its bytes are written."""

    def __init__(self, space: "Space", size: int) -> None:
        self._space = space
        self._left = size
        space.reserved += size

    def used(self, size: int) -> None:
        size = min(size, self._left)
        self._left -= size
        self._space.reserved -= size

    def release(self) -> None:
        self.used(self._left)


class Space:
    """What one process may still use of a file system, `min_free` bytes of which stay free."""

    def __init__(self, min_free: int) -> None:
        self._min_free = min_free
        self._root_fd = -1
        self._held = 0
        self._free = 0
        self._looked_at = float("-inf")
        self.reserved = 0

    def watch(self, root_fd: int) -> None:
        """Look at the file system of this directory from now on."""
        self._root_fd = root_fd

    def reserve(self, size: int) -> Reserved:
        """Set `size` bytes aside; raises StorageFull when they are not there."""
        if self.recent() - self.reserved < size:
            raise StorageFull
        return Reserved(self, size)

    def recent(self) -> int:
        """Bytes above the floor, at most a moment ago; for the event loop."""
        now = asyncio.get_running_loop().time()
        if now - self._looked_at > _FREE_SPACE_AGE:
            self._looked_at, self._free = now, self._now()
        return self._free

    def keep_floor(self, size: int) -> None:
        """Refuse to write `size` bytes into the space that is kept free: ENOSPC, as a full disk would."""
        if self._now() < size:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    def _now(self) -> int:
        state = os.fstatvfs(self._root_fd)
        if state.f_files and not state.f_favail:
            return 0  # no file can be made, however many bytes are free
        return max(0, state.f_bavail * state.f_frsize - self._min_free)

    def hold(self, size: int) -> bool:
        """Take memory for a small file; False when all of it is in use."""
        if self._held + size > HELD_BYTES_IN_ALL:
            return False
        self._held += size
        return True

    def let_go(self, size: int) -> None:
        self._held -= size
