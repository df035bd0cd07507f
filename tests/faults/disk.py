"""A disk that remembers every write and every flush, so that the power can fail at any moment of its past, many times.

It is one file in a FUSE file system, under a loop device, with ext4 on it. What a real disk has cached may or may not
be there after a power cut: `images` gives what may be left.

    disk = Disk(directory)
    with disk.remembering() as volume:
        ...  # and at some moment: promised = disk.now()
    for volume, moment in disk.images(disk.moments(), torn=1, chance=Random(0)):
        ...  # what was promised before the moment is there
"""

import errno
import os
import stat
import struct
import subprocess
import sys
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from random import Random
from typing import NamedTuple

import pytest

from tests.support.tools import tool

_ENTRY = struct.Struct("<cQI")  # a write or a flush, where, how many bytes follow
_WRITE, _FLUSH = b"W", b"F"
_SIZE = 48 << 20
_PATIENCE = 60.0  # seconds
_ROOT = Path(__file__).parents[2]


class _Op(NamedTuple):
    flush: bool
    at: int
    data: bytes
    end: int
    """The length of the log with it."""


class Disk:
    """An empty disk. `volume` is where it is mounted, and where each image of it can be."""

    def __init__(self, directory: Path) -> None:
        tool("fusermount3")
        if not os.access("/dev/fuse", os.W_OK):
            pytest.skip("needs FUSE, and to be root (Debian: apt-get install fuse3)")
        self.volume = directory / "volume"
        self._fuse = directory / "fuse"
        self._log = directory / "log"
        self._empty, self._backing, self._flushed, self._image = (
            directory / name for name in ("empty", "backing", "flushed", "image")
        )
        for made in (self.volume, self._fuse):
            made.mkdir()
        self._empty.touch()
        os.truncate(self._empty, _SIZE)
        subprocess.run([tool("mkfs.ext4"), "-q", "-b", "4096", "-J", "size=4", str(self._empty)], check=True)
        _copy(self._empty, self._backing)

    @contextmanager
    def remembering(self) -> Iterator[Path]:
        """Its volume, of which everything is remembered."""
        command = [sys.executable, "-m", "tests.faults.disk", str(self._backing), str(self._fuse), str(self._log)]
        with subprocess.Popen(command, cwd=_ROOT, stdin=subprocess.DEVNULL) as serving:
            try:
                deadline = time.monotonic() + _PATIENCE
                while not (self._fuse / "image").exists():
                    assert serving.poll() is None
                    assert time.monotonic() < deadline
                    time.sleep(0.01)
                with mounted(self._fuse / "image", self.volume):
                    yield self.volume
            finally:
                subprocess.run([tool("umount"), str(self._fuse)], check=True)

    def now(self) -> int:
        """The moment: what has been written so far is older."""
        return self._log.stat().st_size

    def moments(self) -> list[int]:
        """Every moment at which the power may fail: after each write and each flush."""
        return [op.end for op in self._ops()]

    def images(self, moments: Iterable[int], *, torn: int, chance: Random) -> Iterator[tuple[Path, int]]:
        """Mount what the power may leave when it fails at these moments: yields the volume, and which moment it is.

        Everything that was flushed is there; of what was written since, everything, or `torn` times a part by chance.
        """
        wanted = set(moments)
        _copy(self._empty, self._flushed)
        pending: list[_Op] = []
        for op in self._ops():
            if op.flush:
                _write(self._flushed, pending)
                pending = []
            else:
                pending.append(op)
            if op.end in wanted:
                parts = [[each for each in pending if chance.random() < 0.5] for _ in range(torn if pending else 0)]
                for part in [pending, *parts]:
                    _copy(self._flushed, self._image)
                    _write(self._image, part)
                    with mounted(self._image, self.volume):
                        yield self.volume, op.end

    def _ops(self) -> Iterator[_Op]:
        with self._log.open("rb") as log:
            while head := log.read(_ENTRY.size):
                kind, at, length = _ENTRY.unpack(head)
                yield _Op(kind == _FLUSH, at, log.read(length), log.tell())


@contextmanager
def mounted(image: Path, at: Path) -> Iterator[None]:
    """The image's file system at `at`; in the end it is unmounted, which nobody may be using any more."""
    done = subprocess.run([tool("mount"), "-o", "loop", str(image), str(at)], capture_output=True, text=True)
    if done.returncode:
        pytest.skip(f"cannot mount here: {done.stderr.strip()}")
    try:
        yield
    finally:
        subprocess.run([tool("umount"), str(at)], check=True)


def _copy(old: Path, new: Path) -> None:
    subprocess.run([tool("cp"), "--sparse=auto", str(old), str(new)], check=True)


def _write(image: Path, ops: Iterable[_Op]) -> None:
    with image.open("r+b") as file:
        for op in ops:
            file.seek(op.at)
            file.write(op.data)


def serve(backing: str, at: str, log: str) -> None:
    """Be the disk, until it is unmounted."""
    import mfusepy

    image = os.open(backing, os.O_RDWR)
    size = os.fstat(image).st_size
    told = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)

    class Files(mfusepy.Operations):
        use_ns = True

        def getattr(self, path, fh=None):
            if path == "/":
                return {"st_mode": stat.S_IFDIR | 0o755, "st_nlink": 2}
            if path == "/image":
                return {"st_mode": stat.S_IFREG | 0o600, "st_nlink": 1, "st_size": size}
            raise mfusepy.FuseOSError(errno.ENOENT)

        def readdir(self, path, fh):
            return [".", "..", "image"]

        def open(self, path, flags):
            return 0

        def read(self, path, length, offset, fh):
            return os.pread(image, length, offset)

        def write(self, path, data, offset, fh):
            os.write(told, _ENTRY.pack(_WRITE, offset, len(data)) + data)
            return os.pwrite(image, data, offset)

        def fsync(self, path, datasync, fh):
            os.write(told, _ENTRY.pack(_FLUSH, 0, 0))
            return 0

        def flush(self, path, fh):
            return 0

    # One thread: what is in the log is in the order in which it was asked for.
    mfusepy.FUSE(Files(), at, foreground=True, nothreads=True)


if __name__ == "__main__":
    serve(*sys.argv[1:])
