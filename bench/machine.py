"""Where it runs: the machine described, its cores given out, and a journalled file system for the data."""

# ruff: noqa: S603  # every command that is run here is written here

import ctypes
import mmap
import os
import platform
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final, NamedTuple

KiB: Final = 1024
MiB: Final = 1024 * KiB
GiB: Final = 1024 * MiB
_JOURNALLED: Final = {"xfs", "btrfs", "zfs", "f2fs", "ext3"}
_libc: Final = ctypes.CDLL(None, use_errno=True)
_SBIN: Final = os.pathsep.join((os.environ.get("PATH", ""), "/usr/sbin", "/sbin"))


class Cores(NamedTuple):
    """Who may run where. With one core only, server and load share it, and the report says so."""

    server: frozenset[int]
    load: frozenset[int]
    everyone: frozenset[int]

    def for_server(self, count: int) -> frozenset[int]:
        """Cores for a server that uses `count` of them, the load's own last."""
        ordered = sorted(self.everyone, key=lambda core: (core not in self.server, core in self.load, core))
        return frozenset(ordered[:count])


def cores() -> Cores:
    available = sorted(os.sched_getaffinity(0))
    return Cores(frozenset(available[:1]), frozenset(available[-1:]), frozenset(available))


class Volume(NamedTuple):
    """The directory for all data, and what lies beneath it, in words."""

    path: Path
    description: str


@contextmanager
def volume(directory: Path, size: int) -> Iterator[Volume]:
    """A directory on a journalled file system, so that a flush costs what it costs users.

    Where `directory` has no journal and we are root, an ext4 in a file of `size` bytes is
    mounted there, and taken away again in the end. Otherwise `directory` is used as it is.
    """
    directory.mkdir(parents=True, exist_ok=True)
    kind, device = _file_system(directory)
    journal = kind in _JOURNALLED or (kind == "ext4" and _has_journal(device))
    if journal or os.geteuid() != 0:
        # Without one an ext4 flushes for less, but passes every inode that was freed lately before it gives one out.
        note = "" if journal else "; NOT journalled: a flush costs less than it costs most users, a new file more"
        with _emptied(directory / "data") as data:
            yield Volume(data, f"{kind} of the machine{note}")
        return
    with _loop(directory, size) as (mounted, direct):
        yield Volume(mounted, f"ext4 with journal in a loop file on {kind}{', direct I/O' if direct else ''}")


@contextmanager
def _emptied(directory: Path) -> Iterator[Path]:
    directory.mkdir()
    try:
        yield directory
    finally:
        shutil.rmtree(directory)


@contextmanager
def _loop(directory: Path, size: int) -> Iterator[tuple[Path, bool]]:
    image = directory / "volume.img"
    if shutil.disk_usage(directory).free < size + GiB:
        raise SystemExit(
            f"{directory} needs {(size + GiB) / GiB:.0f} GiB free for the data; choose another with --data"
        )
    try:
        _write_zeros(image, size)
        _run("mkfs.ext4", "-q", "-F", "-E", "lazy_itable_init=0,lazy_journal_init=0", str(image))
        device, direct = _attach(image)
        try:
            mounted = Path(tempfile.mkdtemp(prefix="waybill-bench-"))  # a place that every user can reach
            _run("mount", device, str(mounted))
            try:
                mounted.chmod(0o755)
                yield mounted, direct
            finally:
                _unmount(mounted)
                mounted.rmdir()
        finally:
            _run("losetup", "--detach", device)
    finally:
        image.unlink(missing_ok=True)


def _write_zeros(image: Path, size: int) -> None:
    """Really written, past the cache: a block that is written for the first time would cost more than later ones."""
    with mmap.mmap(-1, 4 * MiB) as zeros:
        flags = os.O_CREAT | os.O_TRUNC | os.O_WRONLY | os.O_CLOEXEC
        try:
            fd = os.open(image, flags | os.O_DIRECT, 0o600)
        except OSError:
            fd = os.open(image, flags, 0o600)
        try:
            for _ in range(0, size, len(zeros)):
                os.write(fd, zeros)
            os.fsync(fd)
        finally:
            os.close(fd)


def _attach(image: Path) -> tuple[str, bool]:
    try:
        return _run("losetup", "--find", "--show", "--direct-io=on", str(image)), True
    except subprocess.CalledProcessError:
        return _run("losetup", "--find", "--show", str(image)), False


def _unmount(mounted: Path) -> None:
    for _ in range(40):  # a server that was just ended may still be letting go
        if subprocess.run([_program("umount"), str(mounted)], check=False, stderr=subprocess.DEVNULL).returncode == 0:
            return
        time.sleep(0.25)
    _run("umount", str(mounted))


def _file_system(path: Path) -> tuple[str, str]:
    """Type and device of the file system that `path` lies on."""
    found: tuple[int, str, str] = (-1, "unknown", "")
    real = str(path.resolve())
    for line in Path("/proc/self/mounts").read_text().splitlines():
        device, mount, kind = line.split()[:3]
        mount = mount.replace("\\040", " ")
        if (real == mount or real.startswith(mount.rstrip("/") + "/")) and len(mount) >= found[0]:
            found = len(mount), kind, device
    return found[1:]


def _has_journal(device: str) -> bool:
    """Every mounted ext4 with a journal has an entry DEVICE-INODE here."""
    journals = Path("/proc/fs/jbd2")
    name = Path(device).resolve().name
    return journals.is_dir() and any(entry.name.rpartition("-")[0] == name for entry in journals.iterdir())


def _program(name: str) -> str:
    found = shutil.which(name, path=_SBIN)
    if found is None:
        raise SystemExit(f"{name} is not installed")
    return found


def _run(name: str, *arguments: str) -> str:
    return subprocess.run([_program(name), *arguments], check=True, stdout=subprocess.PIPE, text=True).stdout.strip()


def flush(path: Path) -> float:
    """Write out what is left in the cache of the file system that `path` lies on; how many seconds it took."""
    began = time.monotonic()
    fd = os.open(path, os.O_RDONLY)
    try:
        if _libc.syncfs(fd):
            code = ctypes.get_errno()
            raise OSError(code, os.strerror(code))
    finally:
        os.close(fd)
    return time.monotonic() - began


def settle(memory: int) -> None:
    """Before a measurement: nothing left to be written for others, and `memory` bytes that were touched before.

    Memory that a virtual machine's host took back is dear to touch the first time; who
    came first would pay for all.
    """
    os.sync()
    with mmap.mmap(-1, memory, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | mmap.MAP_POPULATE):
        pass


def describe(data: Volume, given: Cores) -> dict[str, str]:
    """The machine in a few lines, for the report."""
    model = next((line for line in _cpuinfo() if line.startswith("model name")), "").partition(":")[2].strip()
    pages = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return {
        "CPU": f"{model or platform.processor() or platform.machine()}, {os.cpu_count()} cores"
        + (", SHA extensions" if any("sha_ni" in line or "sha2" in line for line in _cpuinfo()) else ""),
        "virtual": "yes" if any("hypervisor" in line for line in _cpuinfo()) else "no",
        "memory": f"{pages / GiB:.0f} GiB",
        "kernel": f"{platform.system()} {platform.release()}",
        "data": data.description,
        "cores": f"server on {_named(given.server)}, load on {_named(given.load)}"
        + ("; THEY SHARE ONE, figures are of little use" if given.server == given.load else ""),
    }


def _cpuinfo() -> list[str]:
    return Path("/proc/cpuinfo").read_text().splitlines()


def _named(some: frozenset[int]) -> str:
    return ", ".join(map(str, sorted(some)))
