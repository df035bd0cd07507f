"""The tree of the local store: made, checked, opened once, and cleared of what crashes leave.

    staging/<owner>/<key>     received, not visible; one directory a process, held by a lock
    files/<last two>/<key>    published
    trash/<key>               set aside, to be rescued for days

Directories are opened without following links and every file is reached through their
descriptors, so no name and no link leads out of the root.
"""

import errno
import fcntl
import os
import stat
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Final

import structlog

from app.errors import Unusable
from app.storage import Found, is_key, kernel

log = structlog.stdlib.get_logger("waybill.storage")

SHARDS: Final = [f"{number:02x}" for number in range(256)]
_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC


def shard_of(key: str) -> str:
    """Keys begin with the time and end with chance: the end spreads them evenly."""
    return key[-2:]


class Directories:
    """The open directories of one store. `owner`, a key, names this process's staging directory."""

    def __init__(self, root: Path, owner: str) -> None:
        self.root = root
        self.owner = owner
        self.root_fd = self.own_fd = -1
        self._staging_fd = self._files_fd = self._trash_fd = -1
        self._shard_fds: dict[str, int] = {}
        self._open: list[int] = []

    def open(self) -> None:
        """Make what is missing and open everything; raises Unusable or OSError naming the path. Idempotent."""
        if self._open:
            return
        try:
            self._open_tree()
        except BaseException:
            self.close()
            raise

    def _open_tree(self) -> None:
        _make_root(self.root)
        self.root_fd = self._keep(os.open(self.root, _DIRECTORY))
        made = [self._make(name, self.root_fd, self.root) for name in ("staging", "files", "trash")]
        self._staging_fd = self._enter("staging", self.root_fd, self.root)
        self._files_fd = self._enter("files", self.root_fd, self.root)
        self._trash_fd = self._enter("trash", self.root_fd, self.root)
        for shard in SHARDS:
            made.append(self._make(shard, self._files_fd, self.root / "files"))
            self._shard_fds[shard] = self._enter(shard, self._files_fd, self.root / "files")
        if any(made):
            log.info("made directories", root=str(self.root), count=sum(made))
            kernel.syncfs(self.root_fd)
        self.own_fd = self._own_staging()

    def _make(self, name: str, parent_fd: int, parent: Path) -> bool:
        try:
            os.mkdir(name, 0o700, dir_fd=parent_fd)
        except FileExistsError:
            return False
        except OSError as error:
            raise Unusable(f"{parent / name} cannot be made: {error.strerror}") from error
        return True

    def _enter(self, name: str, parent_fd: int, parent: Path) -> int:
        path = parent / name
        try:
            fd = self._keep(os.open(name, _DIRECTORY | os.O_NOFOLLOW, dir_fd=parent_fd))
        except OSError as error:
            if error.errno == errno.ENOTDIR:
                raise Unusable(f"{path} is not a directory (a symbolic link is not followed here)") from error
            raise Unusable(f"{path} cannot be opened: {error.strerror}") from error
        if not os.access(name, os.R_OK | os.W_OK | os.X_OK, dir_fd=parent_fd):
            raise Unusable(f"{path} cannot be written by this user")
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
        """A staging directory of this process alone, locked before anyone could take it for stale."""
        while True:
            self._make(self.owner, self._staging_fd, self.root / "staging")
            fd = self._enter(self.owner, self._staging_fd, self.root / "staging")
            fcntl.flock(fd, fcntl.LOCK_EX)
            try:
                there = os.stat(self.owner, dir_fd=self._staging_fd, follow_symlinks=False)
            except FileNotFoundError:
                continue  # a sweeper was faster than the lock
            if there.st_ino == os.fstat(fd).st_ino:
                return fd

    def close(self) -> None:
        if self.own_fd >= 0:
            try:
                os.rmdir(self.owner, dir_fd=self._staging_fd)
            except OSError as error:
                log.warning("staged files are left for the sweeper", error=error.strerror)
        while self._open:
            os.close(self._open.pop())
        self.own_fd = -1

    def shard_fd(self, key: str) -> int:
        """The directory that holds, or would hold, the published file."""
        return self._shard_fds[shard_of(key)]

    def now(self) -> float:
        """The file system's own clock, in seconds, which the times of files can be compared with."""
        os.utime(self.own_fd)
        return os.fstat(self.own_fd).st_ctime

    # --- looking over everything

    def found_in(self, shard: str, before: float) -> list[Found]:
        """The published files of one shard; those last changed before `before` are settled."""
        found = []
        for name in os.listdir(self._shard_fds[shard]):
            if not is_key(name):
                continue
            try:
                state = os.stat(name, dir_fd=self._shard_fds[shard], follow_symlinks=False)
            except FileNotFoundError:
                continue  # deleted since it was listed
            found.append(Found(name, state.st_size, state.st_ctime < before))
        return found

    def missing(self, keys: Sequence[str]) -> list[str]:
        """Those of `keys` under which no regular file lies."""
        return [key for key in keys if not self._holds_file(key)]

    def _holds_file(self, key: str) -> bool:
        try:
            return stat.S_ISREG(os.stat(key, dir_fd=self.shard_fd(key), follow_symlinks=False).st_mode)
        except FileNotFoundError:
            return False

    @contextmanager
    def sole_sweeper(self) -> Iterator[bool]:
        """Whether no other process looks over the store now; if so, none will until this ends."""
        fd = os.open(self.root / "sweep.lock", os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
        try:
            try:
                fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                yield False
            else:
                yield True
        finally:
            os.close(fd)

    def strays(self) -> list[str]:
        """Names among the published files that cannot be theirs."""
        return [
            f"files/{shard}/{name}"
            for shard in SHARDS
            for name in os.listdir(self._shard_fds[shard])
            if not (is_key(name) and shard_of(name) == shard)
        ]

    # --- what is removed, and when

    def set_aside(self, key: str) -> None:
        """Move a published file to the trash; absent ones are passed over."""
        try:
            os.rename(key, key, src_dir_fd=self.shard_fd(key), dst_dir_fd=self._trash_fd)
        except FileNotFoundError:
            return
        log.warning("set aside a file without a record", key=key, path=str(self.root / "trash" / key))

    def empty_trash(self, older_than_seconds: float) -> int:
        before = self.now() - older_than_seconds
        removed = 0
        for name in filter(is_key, os.listdir(self._trash_fd)):
            if os.stat(name, dir_fd=self._trash_fd, follow_symlinks=False).st_ctime < before:
                os.unlink(name, dir_fd=self._trash_fd)
                log.info("removed a file that was set aside", key=name)
                removed += 1
        return removed

    def remove_stale(self) -> int:
        """Remove what dead owners left staged; whether one is dead, its lock tells."""
        return sum(self._remove_stale(owner) for owner in os.listdir(self._staging_fd) if owner != self.owner)

    def _remove_stale(self, owner: str) -> int:
        try:
            fd = os.open(owner, _DIRECTORY | os.O_NOFOLLOW, dir_fd=self._staging_fd)
        except FileNotFoundError:
            return 0  # another sweeper was faster
        except NotADirectoryError:
            log.warning("something foreign lies in staging", name=owner)
            return 0
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            names = os.listdir(fd)
            for name in names:
                os.unlink(name, dir_fd=fd)
            os.rmdir(owner, dir_fd=self._staging_fd)
        except BlockingIOError:
            return 0  # its owner lives
        except OSError as error:
            if error.errno != errno.ENOENT:  # another sweeper may be at it
                log.warning("stale staging could not be removed", owner=owner, error=error.strerror)
            return 0
        finally:
            os.close(fd)
        log.info("removed stale staging", owner=owner, files=len(names))
        return len(names)


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
        fd = os.open(directory.parent, _DIRECTORY)
        try:
            os.fsync(fd)
        finally:
            os.close(fd)
