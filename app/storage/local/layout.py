"""The layout of the local store: its directories are made, checked, opened once, and cleared of leftovers of crashes.

    staging/<owner>/<key>     received, not visible; one directory a process, which locks it
    partial/<key>.<fence>     unfinished, not visible; of any process, the writer holds a lock on it
    files/<last two>/<key>    published
    trash/                    set aside, under the former name (`trash.py`)
    <owner>.unrecorded        the published files without a committed record (`unrecorded.py`),
    <owner>.<key>.unrecorded  and one of a small commit group

Directories are opened without following links and every file is reached through their
descriptors, so no name and no link leads out of the root.
"""

import errno
import fcntl
import os
import re
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Final

import structlog

from app.errors import Unusable
from app.storage import Work, is_key
from app.storage.local import syscalls

log = structlog.stdlib.get_logger("waybill.storage")

SHARDS: Final = [f"{number:02x}" for number in range(256)]
_PARTIAL = re.compile(r"([0-9a-f-]{36})\.(0|[1-9][0-9]{0,18})", re.ASCII)
DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC


def shard_of(key: str) -> str:
    """The shard of a key: its last two characters, which are random and spread the files evenly."""
    return key[-2:]


def unfinished_name(key: str, fence: int) -> str:
    if not is_key(key) or fence < 0:
        raise ValueError("a unfinished file is named by a UUID in canonical text and a number")
    return f"{key}.{fence}"


def unfinished_of(name: str) -> tuple[str, int] | None:
    """Parse the name of an unfinished file into key and fence; None for any other name."""
    match = _PARTIAL.fullmatch(name)
    return (match[1], int(match[2])) if match is not None and is_key(match[1]) else None


class Directories:
    """The open directories of one store. `owner`, a key, names this process's staging directory."""

    def __init__(self, root: Path, owner: str) -> None:
        if not is_key(owner):
            raise ValueError("an owner is a UUID in canonical text")
        self.root = root
        self.owner = owner
        self.root_fd = self.staging_fd = self.own_fd = self.unfinished_fd = self.files_fd = self.trash_fd = -1
        self._shard_fds: dict[str, int] = {}
        self._open: list[int] = []

    def open(self) -> bool:
        """Make missing directories and open all; False if they were open.

        Raises Unusable, naming the path, or OSError; nothing is open then.
        """
        if self._open:
            return False
        try:
            self._open_tree()
        except BaseException:
            self.close()
            raise
        return True

    def _open_tree(self) -> None:
        try:
            _make_root(self.root)
            self.root_fd = self._keep(os.open(self.root, DIRECTORY))
        except OSError as error:
            raise Unusable(f"{error.filename or self.root} cannot be used: {error.strerror}") from error
        _check_writable(self.root, self.root_fd)
        self.staging_fd = self._enter("staging", self.root_fd, self.root)
        self.unfinished_fd = self._enter("partial", self.root_fd, self.root)
        self.files_fd = self._enter("files", self.root_fd, self.root)
        self.trash_fd = self._enter("trash", self.root_fd, self.root)
        for shard in SHARDS:
            self._shard_fds[shard] = self._enter(shard, self.files_fd, self.root / "files")
        syscalls.syncfs(self.root_fd)  # makes all these names durable, also those of another process
        self.own_fd = self._own_staging()

    def _enter(self, name: str, parent_fd: int, parent: Path) -> int:
        """Open a directory of the tree, and make it if it is missing."""
        path = parent / name
        while True:
            try:
                os.mkdir(name, 0o700, dir_fd=parent_fd)
            except FileExistsError:
                pass  # opening it will show what it is
            except OSError as error:
                raise Unusable(f"{path} cannot be made: {error.strerror}") from error
            try:
                fd = self._keep(os.open(name, DIRECTORY | os.O_NOFOLLOW, dir_fd=parent_fd))
            except FileNotFoundError:
                continue  # a sweeper was faster
            except OSError as error:
                if error.errno in {errno.ENOTDIR, errno.ELOOP}:
                    raise Unusable(f"{path} is not a directory (a symbolic link is not followed here)") from error
                raise Unusable(f"{path} cannot be opened: {error.strerror}") from error
            break
        _check_writable(path, fd)
        if os.fstat(fd).st_dev != os.fstat(self.root_fd).st_dev:
            raise Unusable(
                f"{path} lies on another file system than {self.root}; "
                "files are published by renaming, so all of it must lie on one"
            )
        return fd

    def _keep(self, fd: int) -> int:
        self._open.append(fd)
        return fd

    def _own_staging(self) -> int:
        """Make this process's own staging directory, locked before another process could take it for stale."""
        path = self.root / "staging" / self.owner
        while True:
            fd = self._enter(self.owner, self.staging_fd, path.parent)
            try:
                fcntl.flock(fd, fcntl.LOCK_EX)
            except OSError as error:
                raise Unusable(f"{path} cannot be locked: {error.strerror}") from error
            try:
                there = os.stat(self.owner, dir_fd=self.staging_fd, follow_symlinks=False)
            except FileNotFoundError:
                continue  # a sweeper was faster than the lock
            if os.path.samestat(there, os.fstat(fd)):
                return fd

    def close(self) -> None:
        """Close everything. Files that are still staged stay behind, without a lock."""
        if self.own_fd >= 0:
            try:
                os.rmdir(self.owner, dir_fd=self.staging_fd)
            except OSError as error:
                log.warning("staged files are left for the sweeper", error=error.strerror)
        while self._open:
            os.close(self._open.pop())
        self.root_fd = self.staging_fd = self.own_fd = self.unfinished_fd = self.files_fd = self.trash_fd = -1
        self._shard_fds.clear()

    def shard_fd(self, key: str) -> int:
        """The descriptor of the directory for the published file of a key."""
        return self._shard_fds[shard_of(key)]

    def publish(self, key: str) -> None:
        """Give a staged file its final name; FileExistsError rather than replace another."""
        syscalls.rename_new(key, key, old_dir_fd=self.own_fd, new_dir_fd=self.shard_fd(key))

    def now(self) -> float:
        """The file system's own clock, in seconds, which the times of files can be compared with."""
        os.utime(self.own_fd)
        return os.fstat(self.own_fd).st_ctime

    def holds_file(self, key: str) -> bool:
        """Whether the key has a regular file."""
        if not is_key(key):
            return False
        shard_fd = self.shard_fd(key)
        try:
            return stat.S_ISREG(os.stat(key, dir_fd=shard_fd, follow_symlinks=False).st_mode)
        except FileNotFoundError:
            require(shard_fd)
            return False

    def is_aside(self, key: str) -> bool:
        """Whether a published file was set aside."""
        return os.access(key, os.F_OK, dir_fd=self.trash_fd, follow_symlinks=False)

    @contextmanager
    def alone_at(self, work: Work) -> Iterator[bool]:
        """Lock this work against other processes until the block ends; False if another has locked it."""
        # Not opened for writing: the lock is held for long, and must not keep a file system from becoming read-only.
        flags = os.O_RDONLY | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC
        fd = os.open(f"{work}.lock", flags, 0o600, dir_fd=self.root_fd)
        try:
            try:
                fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                yield False
            else:
                yield True
        finally:
            os.close(fd)

    def remove(self, key: str) -> None:
        """Remove a published file; an absent one is skipped."""
        if is_key(key):
            with suppress(FileNotFoundError, IsADirectoryError):
                os.unlink(key, dir_fd=self.shard_fd(key))

    def remove_unfinished_file(self, name: str) -> None:
        """Remove an unfinished file; an absent one is skipped."""
        with suppress(FileNotFoundError):
            os.unlink(name, dir_fd=self.unfinished_fd)


@contextmanager
def listing(directory: int) -> "Iterator[Iterator[os.DirEntry[str]]]":
    """List a directory through a new descriptor, since listings through one descriptor share its position."""
    require(directory)
    fd = os.open(".", DIRECTORY, dir_fd=directory)
    try:
        with os.scandir(fd) as entries:
            yield entries
    finally:
        os.close(fd)


def is_file(entry: "os.DirEntry[str]") -> bool:
    return entry.is_file(follow_symlinks=False)


def is_ours_aside(entry: "os.DirEntry[str]") -> bool:
    """Whether an entry of the trash is a file of ours, under its former name."""
    return (is_key(entry.name) or unfinished_of(entry.name) is not None) and is_file(entry)


def require(directory: int) -> None:
    """Raise FileNotFoundError if the directory itself was removed: then its looking empty proves nothing."""
    if os.fstat(directory).st_nlink == 0:
        raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT))


def _check_writable(path: Path, fd: int) -> None:
    if not os.access(".", os.R_OK | os.W_OK | os.X_OK, dir_fd=fd):
        raise Unusable(f"{path} cannot be written by this user")


def _make_root(root: Path) -> None:
    """Make the root and its missing parents, each with a durable name."""
    missing: list[Path] = []
    while not os.path.lexists(root):
        missing.append(root)
        root = root.parent
    for directory in reversed(missing):
        try:
            os.mkdir(directory, 0o700)
        except FileExistsError:
            continue  # another process prepares the same store
        log.info("made directory", path=str(directory))
        fd = os.open(directory.parent, DIRECTORY)
        try:
            os.fsync(fd)
        finally:
            os.close(fd)
