"""Sources of files: what the arguments of a command name, and the reading of one file.

A file that changes while it is read is noticed by its identity, its size and times, before and after.
"""

import glob
import os
import stat
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from fnmatch import fnmatchcase
from hashlib import sha256
from pathlib import PurePath
from typing import Final, NamedTuple, Self

from app.client.failures import Misused, SourceChanged

BLOCK: Final = 1024 * 1024
SMALL: Final = 256 * 1024
"""Bytes up to which a file is read at once, when it is opened, and sent in one request."""
_FRESH: Final = 0.02
"""Seconds within which a further change may leave a file's times as they are: clocks of file systems tick slowly."""

# Told of what was passed over or cannot be read: the path, and why.
Report = Callable[[str, str], None]


class SourceFile(NamedTuple):
    """A file to send. `path` names it here, as an absolute path; `name` is its path at the service."""

    path: bytes
    name: str
    size: int
    identity: str

    @property
    def shown(self) -> str:
        return os.fsdecode(self.path)


def identity(status: os.stat_result) -> str:
    """The identity of a file's content, as far as the file system knows it."""
    return f"{status.st_size} {status.st_mtime_ns} {status.st_ctime_ns}"


class Walk(NamedTuple):
    """A walk below folders: which names and paths it leaves out, and who is told of what it passes over.

    A pattern without a slash is for names of files and folders, one with a slash for whole paths at the service.
    """

    exclude: tuple[str, ...]
    passed_over: Report
    unreadable: Report

    def leaves_out(self, name: str) -> bool:
        last = name.rpartition("/")[2]
        return any(fnmatchcase(name if "/" in pattern else last, pattern) for pattern in self.exclude)


def named(arguments: Iterable[str], walk: Walk) -> Iterator[SourceFile]:
    """The files that arguments name: themselves, below folders, or by a pattern; each once.

    A folder's files keep their path, from the folder's own name on. Those of a pattern keep it from below the last
    folder before the first wildcard. Links to files are followed, those to folders are not. Raises Misused if an
    argument names nothing.
    """
    known: set[bytes] = set()
    for argument in arguments:
        for path, name in matches(argument):
            for file in below(path, name, walk):
                if file.path not in known:
                    known.add(file.path)
                    yield file


def matches(argument: str) -> list[tuple[bytes, str]]:
    """The files and folders that an argument names, and their paths at the service; raises Misused if there is none."""
    whole = os.path.abspath(argument)
    if os.path.lexists(whole):
        return [(os.fsencode(whole), PurePath(whole).name)]
    if not glob.has_magic(argument):
        raise Misused(f"there is no file or folder {argument}")
    found = sorted(glob.glob(whole, recursive=True))
    if not found:
        raise Misused(f"nothing matches {argument}")
    plain = whole[: next(at for at, char in enumerate(whole) if char in "*?[")].rpartition("/")[0]
    return [(os.fsencode(each), os.path.relpath(each, plain or "/")) for each in found]


def below(path: bytes, name: str, walk: Walk) -> Iterator[SourceFile]:
    """The file at a path, or all files below it if it is a folder."""
    if walk.leaves_out(name):
        return
    try:
        status = os.stat(path)
        if stat.S_ISDIR(status.st_mode):
            with os.scandir(path) as entries:
                inside = sorted(entries, key=lambda entry: entry.name)
    except OSError as error:
        walk.unreadable(os.fsdecode(path), error.strerror or str(error))
        return
    if stat.S_ISREG(status.st_mode):
        yield SourceFile(path, name, status.st_size, identity(status))
    elif not stat.S_ISDIR(status.st_mode):
        walk.passed_over(os.fsdecode(path), "neither a file nor a folder")
    else:
        for entry in inside:
            if entry.is_symlink() and entry.is_dir():
                walk.passed_over(os.fsdecode(entry.path), "a link to a folder")
            else:
                yield from below(entry.path, f"{name}/{os.fsdecode(entry.name)}", walk)


class OpenSource:
    """A file that is open to be sent; its digest grows with what is read, in whatever pieces and however often.

    `file` may differ from what was found before: it is the file as it was opened. `content` is all of a small one.
    """

    def __init__(self, file: SourceFile) -> None:
        self._handle = os.open(file.path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
        try:
            status = os.fstat(self._handle)
            if not stat.S_ISREG(status.st_mode):
                raise SourceChanged("it is no file any more")
            if -_FRESH < time.time() - max(status.st_mtime, status.st_ctime) < _FRESH:
                time.sleep(_FRESH)
                status = os.fstat(self._handle)
        except BaseException:
            os.close(self._handle)
            raise
        self.file = file._replace(size=status.st_size, identity=identity(status))
        self._inode = (status.st_dev, status.st_ino)
        self._lock = threading.Lock()
        self._digest = sha256()
        self._digested = 0
        self.content: bytes | None = None

    @classmethod
    def open(cls, file: SourceFile) -> Self:
        """Open a file, and read it if it is small. Raises SourceChanged if it changes meanwhile, or is gone."""
        try:
            source = cls(file)
        except FileNotFoundError:
            raise SourceChanged("it was deleted or renamed") from None
        if source.file.size <= SMALL:
            try:
                source.content = source.read(0, source.file.size)
                source.check()
            except BaseException:
                source.close()
                raise
        return source

    def close(self) -> None:
        with self._lock:
            os.close(self._handle)
            self._handle = -1

    def read(self, offset: int, size: int) -> bytes:
        """These bytes of the file; raises SourceChanged if they are not there any more.

        Threads may read at once: a read whose request has broken off ends some time later.
        """
        with self._lock:
            block = os.pread(self._handle, size, offset)
            if len(block) != size:
                raise SourceChanged("it became shorter while it was sent")
            if offset <= self._digested < offset + size:
                self._digest.update(memoryview(block)[self._digested - offset :])
                self._digested = offset + size
        return block

    def digest(self) -> str:
        """The SHA-256 of the whole file, of which it reads what is missing."""
        while self._digested < self.file.size:
            self.read(self._digested, min(BLOCK, self.file.size - self._digested))
        return self._digest.hexdigest()

    def check(self) -> None:
        """Raise SourceChanged unless the file is what it was when it was opened, and still stands at its path."""
        try:
            status = os.stat(self.file.path)
        except FileNotFoundError:
            raise SourceChanged("it was deleted or renamed while it was sent") from None
        if (status.st_dev, status.st_ino) != self._inode or identity(status) != self.file.identity:
            raise SourceChanged("it was changed while it was sent")

    def delete(self) -> None:
        """Delete the file from its folder, if it is still what was sent."""
        self.check()
        os.unlink(self.file.path)
