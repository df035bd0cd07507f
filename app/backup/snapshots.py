"""The directory of backups: snapshots of the database, over one pool of files.

    DIR/waybill-backup.json        says that the directory is ours
    DIR/files/<last two>/<key>     published files, which never change: one pool for all snapshots
    DIR/snapshots/<time>/          waybill.db or waybill.dump, partial/, secret.key, snapshot.json, SHA256SUMS

A snapshot gets its name when all of it is durable; whatever ends a backup before that leaves those before it as they
were. Nothing but standard tools is needed to look into it: `sha256sum --check snapshots/<time>/SHA256SUMS`.
"""

import fcntl
import hashlib
import json
import os
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, BinaryIO, Final

from app.errors import Unusable
from app.storage.local import syscalls

FORMAT: Final = 1
SUMS: Final = "SHA256SUMS"
ABOUT: Final = "snapshot.json"
KEY_FILE: Final = "secret.key"
_OURS: Final = "waybill-backup.json"
_DRAFT: Final = ".draft"
_BLOCK_BYTES: Final = 1024 * 1024
_LINE = re.compile(r"([0-9a-f]{64})  (\S+)\n", re.ASCII)
_READ = os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC


class Torn(Exception):
    """The bytes differ from their digest."""


@dataclass(slots=True)
class About:
    """The contents of a snapshot. Files of `deleted` uploads went before they were copied; `lost` ones were missing."""

    name: str
    at: str
    dialect: str
    files: int = 0
    bytes: int = 0
    copied: int = 0
    unfinished: int = 0
    secret_key: bool = False
    deleted: list[str] = field(default_factory=list)
    lost: list[str] = field(default_factory=list)

    def as_dict(self) -> dict[str, Any]:
        return {"format": FORMAT, **asdict(self)}


class Snapshot:
    """A complete snapshot."""

    def __init__(self, root: Path, name: str) -> None:
        self.root, self.name = root, name
        self.path = root / "snapshots" / name

    def about(self) -> About:
        try:
            about = json.loads((self.path / ABOUT).read_text(encoding="utf-8"))
            if about.pop("format") != FORMAT:
                raise Unusable(f"{self.path} is of another version of Waybill, which can restore it")
            return About(**about)
        except (OSError, ValueError, TypeError, KeyError) as error:
            raise Unusable(f"{self.path / ABOUT} cannot be read: {error}") from error

    def sums(self) -> Iterator[tuple[str, str]]:
        """The path of each file, from the root, and its SHA-256."""
        with (self.path / SUMS).open(encoding="ascii") as lines:
            for line in lines:
                match = _LINE.fullmatch(line)
                if match is None:
                    raise Unusable(f"{self.path / SUMS} is damaged")
                yield match[2], match[1]


class Backups:
    """The directory of backups."""

    def __init__(self, root: Path) -> None:
        self.root = root.absolute()

    def snapshots(self) -> list[Snapshot]:
        """The complete snapshots, the oldest first.

        Raises:
            Unusable: the directory is no directory of backups.
        """
        if not (self.root / _OURS).is_file():
            raise Unusable(f"{self.root} holds no backup of Waybill")
        return [Snapshot(self.root, name) for name in self._names()]

    def require_apart_from(self, store: Path) -> None:
        """Raise Unusable if one of the two lies within the other."""
        if self.root.is_relative_to(store.absolute()) or store.absolute().is_relative_to(self.root):
            raise Unusable(f"{self.root} and the store {store} lie within one another")

    def _names(self) -> list[str]:
        return sorted(name for name in os.listdir(self.root / "snapshots") if not name.startswith("."))

    @contextmanager
    def open(self) -> Iterator[None]:
        """Make the directory if need be, lock it against other backups, and remove the drafts of interrupted ones.

        Raises:
            Unusable: the directory holds something else, or another backup uses it.
        """
        try:
            self.root.mkdir(mode=0o700, parents=True, exist_ok=True)
            if not (self.root / _OURS).exists():
                if any(name != "lost+found" for name in os.listdir(self.root)):
                    raise Unusable(f"{self.root} is not empty, and holds no backup of Waybill")
                (self.root / _OURS).write_text(json.dumps({"format": FORMAT}) + "\n", encoding="utf-8")
            for name in ("files", "snapshots"):
                (self.root / name).mkdir(mode=0o700, exist_ok=True)
        except OSError as error:
            raise Unusable(f"{self.root} cannot be used: {error.strerror}") from error
        fd = os.open(self.root, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            try:
                fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise Unusable(f"another process is at work in {self.root}") from None
            for name in os.listdir(self.root / "snapshots"):
                if name.startswith("."):
                    shutil.rmtree(self.root / "snapshots" / name)
            yield
        finally:
            os.close(fd)

    def begin(self, name: str) -> Path:
        """Make the directory of a draft: a snapshot that is not complete yet."""
        draft = self.root / "snapshots" / _DRAFT
        draft.mkdir(mode=0o700)
        (draft / "partial").mkdir(mode=0o700)
        return draft

    def finish(self, name: str) -> None:
        """Make everything durable, then rename the draft to the snapshot's name."""
        self._flush()
        os.rename(self.root / "snapshots" / _DRAFT, self.root / "snapshots" / name)
        self._flush()

    def _flush(self) -> None:
        fd = os.open(self.root, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            syscalls.syncfs(fd)
        finally:
            os.close(fd)

    def prune(self, keep: int) -> list[str]:
        """Remove all but the `keep` newest snapshots, then files that none of these names; return the removed names."""
        snapshots = self.snapshots()
        gone = snapshots[:-keep]
        for snapshot in gone:
            hidden = snapshot.path.with_name(f".{snapshot.name}")
            os.rename(snapshot.path, hidden)
            shutil.rmtree(hidden)
        named = {path for snapshot in snapshots[-keep:] for path, _ in snapshot.sums()}
        for shard in os.listdir(self.root / "files"):
            for name in os.listdir(self.root / "files" / shard):
                if f"files/{shard}/{name}" not in named:
                    (self.root / "files" / shard / name).unlink()
        return [snapshot.name for snapshot in gone]

    def damaged(self) -> list[str]:
        """Read every file of every snapshot again; return the paths of those whose bytes have changed."""
        seen: set[str] = set()
        damaged = []
        for snapshot in self.snapshots():
            for path, sha256 in snapshot.sums():
                if path not in seen:
                    seen.add(path)
                    if digest_of(self.root / path) != sha256:
                        damaged.append(path)
        return damaged


def digest_of(path: Path) -> str | None:
    """The SHA-256 of a file; None if it cannot be read."""
    digest = hashlib.sha256()
    try:
        with open(os.open(path, _READ), "rb", buffering=0) as file:
            while block := file.read(_BLOCK_BYTES):
                digest.update(block)
                os.posix_fadvise(file.fileno(), 0, file.tell(), os.POSIX_FADV_DONTNEED)
    except OSError:
        return None
    return digest.hexdigest()


def copy_file(source: Path, target: Path, *, sha256: str | None, size: int | None = None, mode: int = 0o400) -> str:
    """Copy a file, or its first `size` bytes, and return the digest; the target appears complete or not at all.

    Raises:
        FileNotFoundError: the source does not exist.
        Torn: the source cannot be read, is shorter, or has another digest.
        OSError: the target cannot be written.
    """
    try:
        opened = os.open(source, _READ)
    except FileNotFoundError:
        raise
    except OSError as error:
        raise Torn(f"{source.name} cannot be read: {error.strerror}") from error
    with open(opened, "rb", buffering=0) as file:
        part = target.with_name(f".{target.name}")
        part.unlink(missing_ok=True)
        for directory in (target.parent.parent, target.parent):
            directory.mkdir(mode=0o700, exist_ok=True)
        try:
            with open(os.open(part, os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_CLOEXEC, mode), "wb") as copy:
                digest = _copy(file, copy, size)
            if sha256 not in {None, digest}:
                raise Torn(f"{source.name} has another digest")
            os.rename(part, target)
        finally:
            part.unlink(missing_ok=True)
    return digest


def _copy(source: Any, target: BinaryIO, size: int | None) -> str:
    digest, left = hashlib.sha256(), size
    while left is None or left:
        try:
            block = source.read(_BLOCK_BYTES if left is None else min(left, _BLOCK_BYTES))
        except OSError as error:
            raise Torn(f"the file cannot be read: {error.strerror}") from error
        if not block:
            break
        digest.update(block)
        target.write(block)
        os.posix_fadvise(source.fileno(), 0, source.tell(), os.POSIX_FADV_DONTNEED)
        left = None if left is None else left - len(block)
    if left:
        raise Torn("the file is shorter than it was")
    return digest.hexdigest()
