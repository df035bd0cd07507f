"""The ballast: space set aside beside an SQLite file, so that deletions can be recorded on a full disk.

A deletion writes first: the row records it before the file may go. Without ballast a disk that
is full to the last byte would stay so.
"""

import errno
import os
from pathlib import Path
from typing import Final

import structlog

log = structlog.stdlib.get_logger("waybill.db")

RESERVE_BYTES: Final = 1024 * 1024
_SLICE_BYTES: Final = 128 * 1024
"""The bytes released at a time: more than one deletion writes, even if the write-ahead log has to be recreated."""
_FULL: Final = {errno.ENOSPC, errno.EDQUOT}


class Ballast:
    """A file that only takes up space. Several processes may share it. All calls may wait for the disk."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self.is_whole = False

    def fill(self) -> None:
        """Allocate the space that is missing, as far as the disk has it."""
        try:
            fd = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
            try:
                self.is_whole = _grown(fd)
            finally:
                os.close(fd)
        except OSError as error:
            log.warning("ballast not filled", error=error.strerror)

    def give(self) -> bool:
        """Release a slice; False when nothing is left."""
        try:
            size = self._path.stat().st_size
            if not size:
                return False
            self.is_whole = False
            os.truncate(self._path, max(0, size - _SLICE_BYTES))
        except OSError as error:
            log.warning("ballast not released", error=error.strerror)
            return False
        return True


def _grown(fd: int) -> bool:
    """Grow the file to its full size and return True; else by as many slices as the disk has space for, and False."""
    for size in range(os.fstat(fd).st_size + _SLICE_BYTES, RESERVE_BYTES + 1, _SLICE_BYTES):
        try:
            os.posix_fallocate(fd, 0, size)
        except OSError as error:
            if error.errno not in _FULL:
                raise
            os.ftruncate(fd, size - _SLICE_BYTES)  # some file systems allocate a part before they fail
            return False
    return True
