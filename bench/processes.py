"""Processes that are measured: started on their own cores, watched with all their children, ended by pid."""

# ruff: noqa: S603  # every command that is run here is written here

import ctypes
import os
import signal
import socket
import subprocess
import time
from collections.abc import Iterator, Mapping, Sequence, Set
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Final

_PATIENCE: Final = 20.0  # seconds for a start or a stop on a machine under load
_PR_SET_PDEATHSIG: Final = 1
_TICKS: Final = os.sysconf("SC_CLK_TCK")
_libc = ctypes.CDLL(None)


class Failed(Exception):
    """A server did not start, died, or did not do its work; the text says what was seen."""


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def start(
    command: Sequence[str],
    cores: Set[int],
    *,
    environment: Mapping[str, str] | None = None,
    directory: Path | None = None,
    user: int | None = None,
    log: Path | None = None,
    stdin: int = subprocess.DEVNULL,
    stdout: int | None = None,
) -> subprocess.Popen[bytes]:
    """Start a process on `cores`. It gets SIGTERM when the benchmark ends, however that ends.

    Settings of a Waybill that the environment may hold are not for the measured ones.
    """
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("WAYBILL_")}

    def in_child() -> None:
        _libc.prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
        os.sched_setaffinity(0, cores)

    with open(log or os.devnull, "ab") as output:
        return subprocess.Popen(
            command,
            stdin=stdin,
            stdout=output if stdout is None else stdout,
            stderr=output,
            env={**inherited, **(environment or {})},
            cwd=directory,
            user=user,
            group=user,
            extra_groups=None if user is None else [],
            start_new_session=True,
            preexec_fn=in_child,
        )


def stop(process: subprocess.Popen[bytes], order: signal.Signals = signal.SIGTERM) -> None:
    """Ask the process to end; after a while, end it and its children."""
    if process.poll() is not None:
        return
    process.send_signal(order)
    try:
        process.wait(_PATIENCE)
    except subprocess.TimeoutExpired:
        for pid in family(process.pid):
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        process.wait()


@contextmanager
def running(
    command: Sequence[str], cores: Set[int], *, port: int, log: Path, environment: Mapping[str, str], directory: Path
) -> Iterator[tuple[int, float]]:
    """The pid of a server that accepts connections on `port`, and after how many seconds it did.

    It has ended when the block is left.
    """
    began = time.monotonic()
    process = start(command, cores, environment=environment, directory=directory, log=log)
    try:
        _await_port(process, port, log)
        yield process.pid, time.monotonic() - began
    finally:
        stop(process)


def _await_port(process: subprocess.Popen[bytes], port: int, log: Path) -> None:
    deadline = time.monotonic() + _PATIENCE
    while True:
        if process.poll() is not None:
            raise Failed(f"it ended at once: {last_line(log)}")
        try:
            socket.create_connection(("127.0.0.1", port), 1).close()
        except OSError:
            if time.monotonic() > deadline:
                raise Failed(f"it did not listen within {_PATIENCE:.0f} s: {last_line(log)}") from None
            time.sleep(0.01)
        else:
            return


def last_line(log: Path) -> str:
    lines = log.read_text(errors="replace").strip().splitlines() if log.exists() else []
    return lines[-1][:300] if lines else "(it said nothing)"


# --- what they use


def family(*roots: int) -> list[int]:
    """The pids of `roots` and of all their living descendants."""
    children: dict[int, list[int]] = {}
    for entry in os.listdir("/proc"):
        if entry.isdigit() and (fields := _stat(int(entry))):
            children.setdefault(int(fields[1]), []).append(int(entry))
    found = list(roots)
    for pid in found:  # grows while it is walked
        found += children.get(pid, ())
    return found


def cpu_seconds(*roots: int) -> float:
    """CPU time of all threads of `roots` and their descendants so far, ended ones included."""
    total = 0.0
    for pid in family(*roots):
        with suppress(OSError):
            # The kernel's clock of another process, in nanoseconds; /proc counts in ticks of 10 ms.
            total += time.clock_gettime((~pid << 3) | 2)
        if fields := _stat(pid):
            total += (int(fields[13]) + int(fields[14])) / _TICKS  # children that have ended
    return total


def forget_peak(*roots: int) -> None:
    """Let the peak of resident memory begin anew."""
    for pid in family(*roots):
        with suppress(OSError):
            Path(f"/proc/{pid}/clear_refs").write_text("5")


def peak_rss(*roots: int) -> int:
    """Peak resident memory in bytes, summed over the processes; what they share counts for each."""
    total = 0
    for pid in family(*roots):
        with suppress(OSError):
            for line in Path(f"/proc/{pid}/status").read_text().splitlines():
                if line.startswith("VmHWM:"):
                    total += int(line.split()[1]) * 1024
    return total


def machine_busy_seconds() -> float:
    """CPU time that anything on the machine has used, kernel threads and the host's share included."""
    user, nice, system, _idle, _iowait, irq, softirq, steal = map(
        int, Path("/proc/stat").read_text().split("\n", 1)[0].split()[1:9]
    )
    return (user + nice + system + irq + softirq + steal) / _TICKS


def _stat(pid: int) -> list[str]:
    """Fields of /proc/PID/stat from the third on, so that [1] is the parent; none when it has ended."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return []
