"""The notes of published files without a committed record, which tell leftovers of a crash from files of others.

Each process keeps its own in the root of the store. A key is noted before its file gets its name, and the note is
removed when its record is committed, before the upload is acknowledged. So a file without a record that a dead
process has noted was never acknowledged; one that is noted nowhere was known to some database.

A note must survive the power cut that its file survives, and no flush is made for it. Keys of a group that one flush
of the file system makes durable are lines of the list `<owner>.unrecorded`. The keys of a smaller group, whose
files are flushed one by one, are names of empty files, `<owner>.<key>.unrecorded`: a file system with one
journal makes a name durable with whatever is flushed after it, but not what is written in a file.
"""

import os
import stat
import threading
from collections.abc import Collection
from contextlib import suppress
from itertools import takewhile
from typing import Final

import structlog

from app.storage import is_key
from app.storage.local.io_errors import reason
from app.storage.local.layout import Directories
from app.storage.local.owners import left_by_the_dead

log = structlog.stdlib.get_logger("waybill.storage")

_SUFFIX: Final = ".unrecorded"
_MOST_BYTES: Final = 64 * 1024 * 1024


class UnderWay:
    """The notes of this process. `begin` and `end` are called in threads."""

    def __init__(self, directories: Directories) -> None:
        self._directories = directories
        self._listed: set[str] = set()
        self._named: set[str] = set()
        self._writing = threading.Lock()
        self._is_there = False
        self._fails = False

    def begin(self, keys: Collection[str], *, flushed_together: bool) -> None:
        """Note keys before their files get them."""
        if keys and flushed_together:
            with self._writing:
                self._listed.update(keys)
                self._write_list()
        else:
            for key in keys:
                self._named.add(key)
                self._make_name(key)

    def end(self, keys: Collection[str]) -> None:
        """Remove the notes: a crash would not explain any more if the files of these keys had no records."""
        for key in self._named.intersection(keys):
            with suppress(OSError):  # one that stays is about a file with a record
                os.unlink(self._name(key), dir_fd=self._directories.root_fd)
            self._named.remove(key)
        if not self._listed.isdisjoint(keys):
            with self._writing:
                self._listed.difference_update(keys)
                self._write_list()

    def holds(self, keys: Collection[str]) -> bool:
        """Whether one of the keys is noted. No lock is needed: only the caller adds or removes its own keys."""
        return not (self._named.isdisjoint(keys) and self._listed.isdisjoint(keys))

    def close(self) -> None:
        """Remove the list if it is empty. No thread may be in a method any more."""
        if self._is_there:
            self._write_list()
            if not self._listed:
                with suppress(OSError):
                    os.unlink(self._directories.owner + _SUFFIX, dir_fd=self._directories.root_fd)

    def _name(self, key: str) -> str:
        return f"{self._directories.owner}.{key}{_SUFFIX}"

    def _make_name(self, key: str) -> None:
        try:
            os.mknod(self._name(key), stat.S_IFREG | 0o600, dir_fd=self._directories.root_fd)
        except OSError as error:
            self._failed(error)
        else:
            self._fails = False

    def _failed(self, error: OSError) -> None:
        """Report the first of several failures: no reason to refuse a file, since the sweep will set aside less."""
        if not self._fails:
            log.warning("what is under way could not be listed", error=reason(error))
        self._fails = True

    def _write_list(self) -> None:
        """Write the whole list, up to an empty line; text behind that is left from a longer one before.

        The file is not kept open: while one is open for writing a file system cannot be made read-only.
        """
        flags = os.O_CREAT | os.O_WRONLY | os.O_NOFOLLOW | os.O_CLOEXEC
        try:
            fd = os.open(self._directories.owner + _SUFFIX, flags, 0o600, dir_fd=self._directories.root_fd)
            self._is_there = True
            try:
                os.pwrite(fd, "\n".join([*self._listed, "\n"]).encode("ascii"), 0)
            finally:
                os.close(fd)
        except OSError as error:
            self._failed(error)
        else:
            self._fails = False


def left_under_way(directories: Directories) -> set[str]:
    """Read the keys that dead processes have noted."""
    return {key for name, fd in left_by_the_dead(directories, _SUFFIX) for key in _noted(name, fd)}


def forget_left(directories: Directories, older_than_seconds: float) -> None:
    """Remove old notes of dead processes, unless a file that one is about is still set aside."""
    before = directories.now() - older_than_seconds
    for name, fd in left_by_the_dead(directories, _SUFFIX):
        if os.fstat(fd).st_mtime <= before and not any(directories.is_aside(key) for key in _noted(name, fd)):
            with suppress(FileNotFoundError):
                os.unlink(name, dir_fd=directories.root_fd)


def _noted(name: str, fd: int) -> list[str]:
    if key := name.removesuffix(_SUFFIX).partition(".")[2]:
        return [key] if is_key(key) else []
    lines = os.pread(fd, _MOST_BYTES, 0).decode("ascii", "replace").split("\n")
    return [line for line in takewhile(bool, lines) if is_key(line)]
