"""Free space: the minimum that stays free, the reserved bytes, and the memory for small files."""

import errno
import os
import threading
import time
from typing import Final

from app.errors import StorageFull

HELD_BYTES_IN_ALL: Final = 64 * 1024 * 1024
"""The memory for files that are small enough to wait there for their commit group."""
_PLENTY: Final = 1024 * 1024 * 1024
_PLENTY_SECONDS: Final = 0.05
"""With plenty of space, no disk is fast enough to come near the minimum in this time: no need to look again."""


class FloorReached(OSError):
    """The write needs space that is kept free."""

    def __init__(self) -> None:
        super().__init__(errno.ENOSPC, os.strerror(errno.ENOSPC))


class Reserved:
    """A reserved part of the free space; it shrinks as its bytes are written."""

    def __init__(self, space: "Space", size: int) -> None:
        self._space = space
        self.left = size

    def release(self) -> None:
        self._space.release(self)


class Space:
    """The space that one process may still use of a file system, `min_free` bytes of which stay free.

    Bytes are reserved on the event loop (`reserve`), may be kept in memory for a while
    (`hold`, `release_memory`), and are written by threads, each write between `begin_write` and
    `end_write`: so threads that write at the same moment cannot pass the minimum together,
    and no upload takes the bytes reserved for another.
    """

    def __init__(self, min_free: int) -> None:
        self._min_free = min_free
        self._root_fd = -1
        self._lock = threading.Lock()
        self._writing = 0
        self._seen: os.statvfs_result | None = None
        self._seen_room = 0
        self._seen_until = 0.0
        self.reserved = 0
        self.held = 0

    def watch(self, root_fd: int) -> None:
        """Use the file system of this directory from now on."""
        self._root_fd = root_fd

    # Called on the event loop:

    def reserve(self, size: int) -> Reserved:
        """Reserve `size` bytes; raises StorageFull when they are not free."""
        with self._lock:
            state, room = self._look(size)
            if room - self.reserved < size or _is_without_inodes(state):
                raise StorageFull
            self.reserved += size
        return Reserved(self, size)

    def release(self, reservation: Reserved) -> None:
        """Release the rest of a reservation."""
        with self._lock:
            self.reserved -= reservation.left
            reservation.left = 0

    def free_bytes(self) -> int:
        """The free bytes above the minimum; 0 when no file can be created."""
        state = os.fstatvfs(self._root_fd)
        return 0 if _is_without_inodes(state) else max(0, self._above_floor(state))

    def hold(self, size: int) -> bool:
        """Take memory for a small file; False when all of it is in use."""
        if not self.has_memory(size):
            return False
        self.held += size
        return True

    def has_memory(self, size: int) -> bool:
        return self.held + size <= HELD_BYTES_IN_ALL

    def release_memory(self, size: int) -> None:
        self.held -= size

    # Called in threads:

    def begin_write(self, size: int, reservation: Reserved | None) -> int:
        """Claim space for one write, or raise FloorReached; the result is for `end_write`."""
        with self._lock:
            state, room = self._look(size)
            claimed = -(-size // state.f_frsize) * state.f_frsize  # in full blocks
            promised = min(size, reservation.left) if reservation else 0
            if claimed > max(0, room) or (size > promised and claimed - promised > room - self.reserved):
                raise FloorReached
            if reservation:
                reservation.left -= promised
            self.reserved -= promised
            self._writing += claimed
            self._seen_room -= claimed
            return claimed

    def end_write(self, claimed: int) -> None:
        with self._lock:
            self._writing -= claimed

    # Called under the lock:

    def _look(self, size: int) -> tuple[os.statvfs_result, int]:
        """The file system's state, and the unclaimed bytes above the minimum; cached for a moment if that will do."""
        spare = self._seen_room - self.reserved - size
        if self._seen is not None and spare > _PLENTY and time.monotonic() < self._seen_until:
            return self._seen, self._seen_room
        self._seen = os.fstatvfs(self._root_fd)
        self._seen_room = self._above_floor(self._seen) - self._writing
        self._seen_until = time.monotonic() + _PLENTY_SECONDS
        return self._seen, self._seen_room

    def _above_floor(self, state: os.statvfs_result) -> int:
        return state.f_bavail * state.f_frsize - self._min_free


def _is_without_inodes(state: os.statvfs_result) -> bool:
    return bool(state.f_files) and not state.f_favail
