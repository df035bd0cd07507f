"""The lists of published files without a committed record, which tell leftovers of a crash from files of others.

Each process keeps one, `<owner>.unrecorded` in the root of the store. A key is added before its file gets its name,
and removed when its record is committed, before the upload is acknowledged. So a file without a record that is on the
list of a dead process was never acknowledged; one that is on no list was known to some database.
"""

import os
import threading
from collections.abc import Collection
from contextlib import suppress
from itertools import takewhile
from typing import Final

import structlog

from app.storage import is_key
from app.storage.local.io_errors import reason
from app.storage.local.layout import Directories

log = structlog.stdlib.get_logger("waybill.storage")

_SUFFIX: Final = ".unrecorded"
_MOST_BYTES: Final = 64 * 1024 * 1024


class UnderWay:
    """The list of this process. `begin` and `end` are called in threads."""

    def __init__(self, directories: Directories) -> None:
        self._directories = directories
        self._keys: set[str] = set()
        self._writing = threading.Lock()
        self._is_there = False
        self._fails = False

    def begin(self, keys: Collection[str]) -> None:
        """Add keys before their files get them. One flush for many files makes the list durable with them."""
        if keys:
            with self._writing:
                self._keys.update(keys)
                self._write()

    def end(self, keys: Collection[str]) -> None:
        """Remove keys: a crash would not explain any more if their files had no records."""
        if self.holds(keys):
            with self._writing:
                self._keys.difference_update(keys)
                self._write()

    def holds(self, keys: Collection[str]) -> bool:
        """Whether one of the keys is on the list. No lock is needed: only the caller adds or removes its own keys."""
        return not self._keys.isdisjoint(keys)

    def close(self) -> None:
        """Remove the list if it is empty. No thread may be in a method any more."""
        if self._is_there:
            self._write()
            if not self._keys:
                with suppress(OSError):
                    os.unlink(self._directories.owner + _SUFFIX, dir_fd=self._directories.root_fd)

    def _write(self) -> None:
        """Write the whole list, up to an empty line; text behind that is left from a longer one before.

        The file is not kept open: while one is open for writing a file system cannot be made read-only.
        """
        flags = os.O_CREAT | os.O_WRONLY | os.O_NOFOLLOW | os.O_CLOEXEC
        try:
            fd = os.open(self._directories.owner + _SUFFIX, flags, 0o600, dir_fd=self._directories.root_fd)
            self._is_there = True
            try:
                os.pwrite(fd, "\n".join([*self._keys, "\n"]).encode("ascii"), 0)
            finally:
                os.close(fd)
        except OSError as error:  # no reason to refuse a file: the sweep will remove fewer files, not more
            if not self._fails:
                log.warning("what is under way could not be listed", error=reason(error))
            self._fails = True
        else:
            self._fails = False


def left_under_way(directories: Directories) -> set[str]:
    """Read the keys on the lists of dead processes."""
    return {key for _, fd in directories.left_by_the_dead(_SUFFIX) for key in _keys_on(fd)}


def forget_left(directories: Directories, older_than_seconds: float) -> None:
    """Remove old lists of dead processes, unless a file on one is still set aside."""
    before = directories.now() - older_than_seconds
    for name, fd in directories.left_by_the_dead(_SUFFIX):
        if os.fstat(fd).st_mtime <= before and not any(directories.is_aside(key) for key in _keys_on(fd)):
            with suppress(FileNotFoundError):
                os.unlink(name, dir_fd=directories.root_fd)


def _keys_on(fd: int) -> list[str]:
    lines = os.pread(fd, _MOST_BYTES, 0).decode("ascii", "replace").split("\n")
    return [line for line in takewhile(bool, lines) if is_key(line)]
