"""Local stores for tests, file systems to put them on, and ways to make a system call late or wrong."""

import asyncio
import fcntl
import os
import struct
import subprocess
import threading
import time
from contextlib import contextmanager
from pathlib import Path

import pytest

from app.storage.local import LocalStorage, aio
from tests.contracts.storage import new_key
from tests.support.tools import tool

ROOT = os.geteuid() == 0
_SHUTDOWN = 0x8004587D  # FS_IOC_SHUTDOWN: every later call fails, and what was not flushed is never written
_WITHOUT_FLUSH = struct.pack("I", 2)
_IN_USE_SECONDS = 2.0
needs_root = pytest.mark.skipif(not ROOT, reason="only root can mount")


def local(root: Path, *, min_free: int = 0, durability: str = "full", owner: str | None = None) -> LocalStorage:
    return LocalStorage(root, owner=owner or new_key(), min_free=min_free, durability=durability)


def files_in(root: Path) -> list[str]:
    """Every file below a store's root, its own files aside."""
    return sorted(str(path.relative_to(root)) for path in root.rglob("*") if not path.is_dir() and path.parent != root)


def descriptors() -> dict[str, str]:
    """What this process has open, the event loop's own aside."""
    found = {}
    for fd in os.listdir("/proc/self/fd"):
        try:
            found[fd] = os.readlink(f"/proc/self/fd/{fd}")
        except FileNotFoundError:
            continue  # the one that listed them
    return found


def limit(monkeypatch: pytest.MonkeyPatch, root: Path, capacity: int, *, inodes: bool = True) -> None:
    """Let the file system below `root` seem to hold `capacity` bytes, to the byte."""

    def look(fd: int) -> os.statvfs_result:
        used = sum(bytes_of((root / name).lstat()) for name in files_in(root))
        free = capacity - used
        return os.statvfs_result((1, 1, capacity, free, free, 1000, 10, 10 if inodes else 0, 0, 255))

    monkeypatch.setattr(os, "fstatvfs", look)


def bytes_of(state: os.stat_result) -> int:
    """What a file takes, to the byte; one that was made longer ahead of its bytes does not take that length."""
    return min(state.st_size, state.st_blocks * 512)


def write_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """What the kernel would write while a thread digests passes through `os.write`, for tests that get in its way."""

    class Written:
        def __init__(self, count: int) -> None:
            self.wait = lambda: count

    def begin_write(fd: int, view: memoryview, offset: int) -> Written:
        assert os.lseek(fd, 0, os.SEEK_CUR) == offset
        count = os.write(fd, view)
        os.lseek(fd, offset, os.SEEK_SET)
        return Written(count)

    monkeypatch.setattr(aio, "begin_write", begin_write)


class Gate:
    """A call that stops, in its thread, until it is let through.

    >>> gate = Gate(monkeypatch, os, "fsync")
    >>> await gate.reached()
    >>> gate.open()
    """

    def __init__(self, monkeypatch: pytest.MonkeyPatch, owner, name: str, *, when=lambda *arguments: True) -> None:
        self._entered = threading.Event()
        self._open = threading.Event()
        real = getattr(owner, name)

        def call(*arguments, **named):
            if when(*arguments):
                self._entered.set()
                assert self._open.wait(30), "nobody opened the gate"
            return real(*arguments, **named)

        monkeypatch.setattr(owner, name, call)

    async def reached(self) -> None:
        assert await asyncio.to_thread(self._entered.wait, 30), "nobody came to the gate"

    def open(self) -> None:
        self._open.set()


@contextmanager
def mounted(at: Path, *options: str, source: str = "tmpfs"):
    """A file system at `at`, which is made if it is not there."""
    at.mkdir(parents=True, exist_ok=True)
    mount = subprocess.run([tool("mount"), *options, source, str(at)], capture_output=True, text=True)
    if mount.returncode:
        pytest.skip(f"cannot mount here: {mount.stderr.strip()}")
    try:
        yield at
    finally:
        # At once, or what is mounted again may be the one that is still going. Lazily only what a test has left open.
        if not _unmounted(at):
            subprocess.run([tool("umount"), "--lazy", str(at)], check=True)


def tmpfs(at: Path, size: str, *options: str):
    return mounted(at, "-t", "tmpfs", "-o", ",".join([f"size={size}", *options]))


@contextmanager
def thin_disk(at: Path):
    """An ext4 file system that believes in 200 MiB, on a disk that has 24: what is written to it may get lost."""
    with tmpfs(at / "disk", "24m") as disk:
        image = disk / "image"
        image.touch()
        os.truncate(image, 200 << 20)
        subprocess.run([tool("mkfs.ext4"), "-q", "-J", "size=4", str(image)], check=True)
        with mounted(at / "volume", "-o", "loop", source=str(image)) as root:
            yield root


def remount(at: Path, how: str) -> None:
    subprocess.run([tool("mount"), "-o", f"remount,{how}", str(at)], check=True)


def _unmounted(at: Path) -> bool:
    """Whether it could be unmounted, within the moment for which others may look at it."""
    deadline = time.monotonic() + _IN_USE_SECONDS
    while subprocess.run([tool("umount"), str(at)], capture_output=True).returncode:
        if time.monotonic() > deadline:
            return False
        time.sleep(0.02)
    return True


def cut_power(root: Path) -> None:
    """From here on the file system at `root` is as its disk was at this moment."""
    fd = os.open(root, os.O_RDONLY)
    try:
        fcntl.ioctl(fd, _SHUTDOWN, _WITHOUT_FLUSH)
    finally:
        os.close(fd)
