"""The proxy of the local stack, run for real: nginx with `deploy/nginx.conf`, on loopback, in its own directory."""

import os
import signal
import socket
import subprocess
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest

from tests.support.tools import tool

CONFIGURATION = Path(__file__).parents[2] / "deploy" / "nginx.conf"


def localised(directory: Path, port: int, *upstream_ports: int) -> Path:
    """The stack's configuration with its names, ports and places exchanged for those of this machine."""
    text = CONFIGURATION.read_text(encoding="utf-8")
    for there, here in [
        (" /tmp/", f" {directory}/"),
        # A worker that is told to stop while it still starts does not hear it, and nginx waits for seconds before it
        # insists. The only worker has started once it has answered.
        ("worker_processes auto;", "worker_processes 1;"),
        ("listen 8080;", f"listen 127.0.0.1:{port};"),
        (
            "server waybill:8000 max_fails=0;",
            "".join(f"server 127.0.0.1:{upstream_port} max_fails=0;" for upstream_port in upstream_ports),
        ),
        ("access_log /dev/stdout cut;", f"access_log {directory}/access.log cut;"),
    ]:
        assert there in text, f"{CONFIGURATION} no longer says {there!r}"
        text = text.replace(there, here)
    path = directory / "nginx.conf"
    path.write_text(text, encoding="utf-8")
    return path


@contextmanager
def running(directory: Path, *upstream_ports: int) -> Iterator[int]:
    """Run the proxy in front of these ports of loopback and give the port that it listens on.

    The socket is opened here and handed over as one nginx hands its own to its successor: no other process can take
    the port meanwhile, and a connection made at once waits until nginx accepts it.
    """
    directory.mkdir(parents=True, exist_ok=True)
    with socket.create_server(("127.0.0.1", 0), backlog=512) as listening:
        port = listening.getsockname()[1]
        # Started by root its workers would become another user, who may not enter this directory.
        globals_ = "daemon off;" + (" user root;" if os.geteuid() == 0 else "")
        with (directory / "error.log").open("wb") as errors:
            process = subprocess.Popen(
                [tool("nginx"), "-p", directory, "-c", localised(directory, port, *upstream_ports), "-g", globals_],
                stdin=subprocess.DEVNULL,
                stdout=errors,
                stderr=errors,
                pass_fds=[listening.fileno()],
                env={**os.environ, "NGINX": f"{listening.fileno()};"},
            )
    try:
        yield port
    finally:
        process.send_signal(signal.SIGTERM)
        assert process.wait(20) == 0, (directory / "error.log").read_text()


@pytest.fixture
def proxy(tmp_path: Path) -> Iterator[Callable[..., int]]:
    """`proxy(upstream_port, …)` starts the proxy in front of these ports of loopback and returns its own port."""
    with ExitStack() as started:
        directories = (tmp_path / f"nginx-{number}" for number in range(1_000))
        yield lambda *upstream_ports: started.enter_context(running(next(directories), *upstream_ports))
