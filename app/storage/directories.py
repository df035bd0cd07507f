"""The tree of the local store: made, checked, opened once, and cleared of what crashes leave.

    staging/<owner>/<key>     received, not visible; one directory a process, held by a lock; that of a dead one
                              is emptied and tells by its time, for days, when it died
    partial/<key>.<fence>     received in part, not visible; of any process, who writes it holds a lock on it
    files/<last two>/<key>    published
    trash/<key>               set aside, to be rescued for days

Directories are opened without following links and every file is reached through their
descriptors, so no name and no link leads out of the root.
"""

import errno
import fcntl
import os
import re
import stat
from bisect import bisect_left
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Final

import structlog

from app.errors import Unusable
from app.storage import Found, FoundPartial, Work, is_key, kernel

log = structlog.stdlib.get_logger("waybill.storage")

LAST_SECONDS: Final = 30.0
"""So long before a process dies it may have published a file whose record it had yet to write."""
_CLOCK_SECONDS: Final = 1.0
SHARDS: Final = [f"{number:02x}" for number in range(256)]
_PARTIAL = re.compile(r"([0-9a-f-]{36})\.(0|[1-9][0-9]{0,18})", re.ASCII)
_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC


def shard_of(key: str) -> str:
    """Keys begin with the time and end with chance: the end spreads them evenly."""
    return key[-2:]


def partial_name(key: str, fence: int) -> str:
    if not is_key(key) or fence < 0:
        raise ValueError("a partial file is named by a UUID in canonical text and a number")
    return f"{key}.{fence}"


class Directories:
    """The open directories of one store. `owner`, a key, names this process's staging directory."""

    def __init__(self, root: Path, owner: str) -> None:
        if not is_key(owner):
            raise ValueError("an owner is a UUID in canonical text")
        self.root = root
        self.owner = owner
        self.root_fd = self.own_fd = self.partial_fd = -1
        self._staging_fd = self._files_fd = self._trash_fd = -1
        self._shard_fds: dict[str, int] = {}
        self._open: list[int] = []

    def open(self) -> bool:
        """Make what is missing and open everything; False if it was open.

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
            self.root_fd = self._keep(os.open(self.root, _DIRECTORY))
        except OSError as error:
            raise Unusable(f"{error.filename or self.root} cannot be used: {error.strerror}") from error
        _check_writable(self.root, self.root_fd)
        self._staging_fd = self._enter("staging", self.root_fd, self.root)
        self.partial_fd = self._enter("partial", self.root_fd, self.root)
        self._files_fd = self._enter("files", self.root_fd, self.root)
        self._trash_fd = self._enter("trash", self.root_fd, self.root)
        for shard in SHARDS:
            self._shard_fds[shard] = self._enter(shard, self._files_fd, self.root / "files")
        kernel.syncfs(self.root_fd)  # the names of all these, also of those that another process has just made
        self.own_fd = self._own_staging()

    def _enter(self, name: str, parent_fd: int, parent: Path) -> int:
        """Open a directory of the tree, which is made if it is not there."""
        path = parent / name
        while True:
            try:
                os.mkdir(name, 0o700, dir_fd=parent_fd)
            except FileExistsError:
                pass  # what it is, opening it will show
            except OSError as error:
                raise Unusable(f"{path} cannot be made: {error.strerror}") from error
            try:
                fd = self._keep(os.open(name, _DIRECTORY | os.O_NOFOLLOW, dir_fd=parent_fd))
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
        """A staging directory of this process alone, locked before anyone could take it for stale."""
        path = self.root / "staging" / self.owner
        while True:
            fd = self._enter(self.owner, self._staging_fd, path.parent)
            try:
                fcntl.flock(fd, fcntl.LOCK_EX)
            except OSError as error:
                raise Unusable(f"{path} cannot be locked: {error.strerror}") from error
            try:
                there = os.stat(self.owner, dir_fd=self._staging_fd, follow_symlinks=False)
            except FileNotFoundError:
                continue  # a sweeper was faster than the lock
            if os.path.samestat(there, os.fstat(fd)):
                return fd

    def close(self) -> None:
        """Close everything. What is still staged is left, and without its lock from now on."""
        if self.own_fd >= 0:
            try:
                os.rmdir(self.owner, dir_fd=self._staging_fd)
            except OSError as error:
                log.warning("staged files are left for the sweeper", error=error.strerror)
        while self._open:
            os.close(self._open.pop())
        self.root_fd = self.own_fd = self.partial_fd = self._staging_fd = self._files_fd = self._trash_fd = -1
        self._shard_fds.clear()

    def shard_fd(self, key: str) -> int:
        """The directory that holds, or would hold, the published file."""
        return self._shard_fds[shard_of(key)]

    def publish(self, key: str) -> None:
        """Give a staged file its final name; FileExistsError rather than replace another."""
        kernel.rename_new(key, key, old_dir_fd=self.own_fd, new_dir_fd=self.shard_fd(key))

    def now(self) -> float:
        """The file system's own clock, in seconds, which the times of files can be compared with."""
        os.utime(self.own_fd)
        return os.fstat(self.own_fd).st_ctime

    # --- looking over everything

    def crashes(self) -> list[float]:
        """The last moments of owners that did not end in good order, as far as they are remembered, oldest first."""
        with _listing(self._staging_fd) as entries:
            owners = [entry.name for entry in entries if entry.name != self.owner and is_key(entry.name)]
        ended = []
        for owner in owners:
            with suppress(OSError), self._dead(owner) as fd:
                ended.append(os.fstat(fd).st_mtime)
        return sorted(ended)

    def found_in(self, shard: str, before: float, crashes: Sequence[float] = ()) -> list[Found]:
        """The published files of one shard; those not changed since `before` are settled.

        `crashes` are in order. One that came within `LAST_SECONDS` of a file explains it.
        """
        found = []
        for name in self._entries(shard, files=True):
            try:
                state = os.stat(name, dir_fd=self._shard_fds[shard], follow_symlinks=False)
            except FileNotFoundError:
                continue  # deleted since it was listed
            at = bisect_left(crashes, state.st_ctime - _CLOCK_SECONDS)
            left = crashes[at] if at < len(crashes) and crashes[at] <= state.st_ctime + LAST_SECONDS else None
            found.append(Found(name, state.st_size, state.st_ctime <= before, left))
        return found

    def partials(self) -> list[tuple[str, int]]:
        """Key and fence of every partial file."""
        with _listing(self.partial_fd) as entries:
            names = [entry.name for entry in entries if _is_partial(entry.name) and _is_file(entry)]
        return [(key, int(fence)) for key, _, fence in (name.partition(".") for name in names)]

    def found_partials(self, names: Sequence[tuple[str, int]], before: float) -> list[FoundPartial]:
        """Those of the partial files that are still there; the ones not changed since `before` are settled."""
        found = []
        for key, fence in names:
            try:
                state = os.stat(partial_name(key, fence), dir_fd=self.partial_fd, follow_symlinks=False)
            except FileNotFoundError:
                continue  # published or removed since it was listed
            found.append(FoundPartial(key, fence, state.st_size, state.st_ctime <= before))
        return found

    def strays(self) -> list[str]:
        """Names that are none of ours: foreign ones, and what is not of the kind that the name stands for."""
        found = [f"files/{shard}/{name}" for shard in SHARDS for name in self._entries(shard, files=False)]
        for directory, fd, is_ours in (
            ("files", self._files_fd, lambda entry: entry.name in self._shard_fds),
            ("staging", self._staging_fd, lambda entry: is_key(entry.name) and entry.is_dir(follow_symlinks=False)),
            ("partial", self.partial_fd, lambda entry: _is_partial(entry.name) and _is_file(entry)),
            ("trash", self._trash_fd, lambda entry: is_key(entry.name) and _is_file(entry)),
        ):
            with _listing(fd) as entries:
                found += [f"{directory}/{entry.name}" for entry in entries if not is_ours(entry)]
        return found

    def _entries(self, shard: str, *, files: bool) -> list[str]:
        """The names in one shard that are published files, or those that are not."""
        with _listing(self._shard_fds[shard]) as entries:
            return [
                entry.name
                for entry in entries
                if files == (is_key(entry.name) and shard_of(entry.name) == shard and _is_file(entry))
            ]

    def missing(self, keys: Sequence[str]) -> list[str]:
        """Those of `keys` under which no regular file lies."""
        return [key for key in keys if not (is_key(key) and self._holds_file(key))]

    def _holds_file(self, key: str) -> bool:
        shard_fd = self.shard_fd(key)
        try:
            return stat.S_ISREG(os.stat(key, dir_fd=shard_fd, follow_symlinks=False).st_mode)
        except FileNotFoundError:
            require(shard_fd)
            return False

    @contextmanager
    def alone_at(self, work: Work) -> Iterator[bool]:
        """Whether no other process does this work now; if so, none will until this ends."""
        flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC
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

    # --- what is removed, and when

    def remove(self, key: str) -> None:
        """Remove a published file; an absent one is passed over."""
        if is_key(key):
            with suppress(FileNotFoundError, IsADirectoryError):
                os.unlink(key, dir_fd=self.shard_fd(key))

    def remove_partial(self, name: str) -> None:
        """Remove a partial file; an absent one is passed over."""
        with suppress(FileNotFoundError):
            os.unlink(name, dir_fd=self.partial_fd)

    def set_aside(self, key: str) -> None:
        """Move a published file to the trash; an absent one is passed over."""
        if not is_key(key):
            return
        try:
            # Not every file system counts a rename as a change, and the days begin now.
            os.utime(key, dir_fd=self.shard_fd(key), follow_symlinks=False)
            os.rename(key, key, src_dir_fd=self.shard_fd(key), dst_dir_fd=self._trash_fd)
        except FileNotFoundError:
            return
        log.warning("set aside a file without a record", key=key, path=str(self.root / "trash" / key))

    def empty_trash(self, older_than_seconds: float) -> int:
        """Remove what was set aside longer ago; return how many files."""
        before = self.now() - older_than_seconds
        removed = 0
        with _listing(self._trash_fd) as entries:
            for entry in entries:
                if not (is_key(entry.name) and _is_file(entry)):
                    continue
                with suppress(FileNotFoundError):  # somebody has just rescued it
                    if entry.stat(follow_symlinks=False).st_ctime <= before:
                        os.unlink(entry.name, dir_fd=self._trash_fd)
                        log.info("removed a file that was set aside", key=entry.name)
                        removed += 1
        return removed

    def remove_stale(self, remember_seconds: float) -> int:
        """Remove what dead owners left staged, and return how many files; whether one is dead, its lock tells.

        Its directory tells when it died, by its time, and stays for as long as that is to be remembered.
        """
        forget_before = self.now() - remember_seconds
        with _listing(self._staging_fd) as entries:
            owners = [entry.name for entry in entries if entry.name != self.owner]
        return sum(self._remove_stale(owner, forget_before) for owner in owners)

    def _remove_stale(self, owner: str, forget_before: float) -> int:
        removed = 0
        try:
            if not is_key(owner):
                raise NotADirectoryError(owner)
            with self._dead(owner) as fd:
                state = os.fstat(fd)
                for name in os.listdir(fd):
                    os.unlink(name, dir_fd=fd)
                    removed += 1
                if state.st_mtime <= forget_before:
                    os.rmdir(owner, dir_fd=self._staging_fd)
                elif removed:
                    os.utime(fd, ns=(state.st_atime_ns, state.st_mtime_ns))
        except NotADirectoryError:
            log.warning("something foreign lies in staging", name=owner)
        except (BlockingIOError, FileNotFoundError):
            pass  # its owner lives; or another sweeper is at it
        except OSError as error:
            log.warning("stale staging could not be removed", owner=owner, error=error.strerror)
        if removed:
            log.info("removed stale staging", owner=owner, files=removed)
        return removed

    @contextmanager
    def _dead(self, owner: str) -> Iterator[int]:
        """The staging directory of an owner that is dead, which nobody else looks at meanwhile; else OSError."""
        fd = os.open(owner, _DIRECTORY | os.O_NOFOLLOW, dir_fd=self._staging_fd)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            yield fd
        finally:
            os.close(fd)


@contextmanager
def _listing(directory: int) -> "Iterator[Iterator[os.DirEntry[str]]]":
    """What lies in the directory. Opened anew: listings of one descriptor share its position."""
    require(directory)
    fd = os.open(".", _DIRECTORY, dir_fd=directory)
    try:
        with os.scandir(fd) as entries:
            yield entries
    finally:
        os.close(fd)


def _is_file(entry: "os.DirEntry[str]") -> bool:
    return entry.is_file(follow_symlinks=False)


def _is_partial(name: str) -> bool:
    match = _PARTIAL.fullmatch(name)
    return match is not None and is_key(match[1])


def require(directory: int) -> None:
    """Raise FileNotFoundError if the directory itself was removed: that it looks empty says nothing about files."""
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
        fd = os.open(directory.parent, _DIRECTORY)
        try:
            os.fsync(fd)
        finally:
            os.close(fd)
