"""The proxies of `deploy/`, run for real: each by its file there, on loopback, in its own directory.

with running(directory, service.port, kind="caddy") as port:
    httpx.get(f"http://127.0.0.1:{port}/")
"""

import os
import re
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path

import psutil
import pytest

from tests.support.tools import tool

DEPLOY = Path(__file__).parents[2] / "deploy"
CONFIGURATION = DEPLOY / "nginx.conf"
PATIENCE = 60.0  # seconds; a bound for a machine under load, not a measure

# What Debian's nginx.conf says around a site, where that could change what becomes of an upload or a download; its
# line for gzip_types is a comment there, which operators take away.
AROUND_A_SITE = """
worker_processes 1;
pid {directory}/nginx.pid;
error_log {directory}/error.log;
events {{ worker_connections 768; }}
http {{
    sendfile on;
    tcp_nopush on;
    default_type application/octet-stream;
    access_log {directory}/others.log;
    gzip on;
    gzip_types text/plain;
    client_body_temp_path {directory}/client_body;
    proxy_temp_path {directory}/proxy;
    fastcgi_temp_path {directory}/fastcgi;
    uwsgi_temp_path {directory}/uwsgi;
    scgi_temp_path {directory}/scgi;
    include {site};
}}
"""


def exchanged(file: Path, *pairs: tuple[str, str]) -> str:
    """The text of a file with its names, ports and places exchanged for those of this machine."""
    text = file.read_text(encoding="utf-8")
    for there, here in pairs:
        assert there in text, f"{file} no longer says {there!r}"
        text = text.replace(there, here)
    return text


def localised(directory: Path, port: int, *upstream_ports: int) -> Path:
    """The stack's configuration for this machine."""
    text = exchanged(
        CONFIGURATION,
        (" /tmp/", f" {directory}/"),
        # A worker that is told to stop while it still starts does not hear it, and nginx waits for seconds before it
        # insists. The only worker has started once it has answered.
        ("worker_processes auto;", "worker_processes 1;"),
        ("listen 8080;", f"listen 127.0.0.1:{port};"),
        ("server waybill:8000 max_fails=0;", _nginx_servers(upstream_ports)),
        ("access_log /dev/stdout cut;", f"access_log {directory}/access.log cut;"),
    )
    path = directory / "nginx.conf"
    path.write_text(text, encoding="utf-8")
    return path


def _site(directory: Path, port: int, *upstream_ports: int) -> Path:
    """A main configuration as Debian's, with the site of `deploy/` for this machine."""
    text = exchanged(
        DEPLOY / "nginx-site.conf",
        ("    listen 80;", f"    listen 127.0.0.1:{port};"),
        ("    server 127.0.0.1:8000 max_fails=0;", _nginx_servers(upstream_ports)),
        ("/var/log/nginx/waybill.log", f"{directory}/access.log"),
        ("/var/log/nginx/error.log", f"{directory}/error.log"),
    )
    site = directory / "site.conf"
    site.write_text(text, encoding="utf-8")
    path = directory / "nginx.conf"
    path.write_text(AROUND_A_SITE.format(directory=directory, site=site), encoding="utf-8")
    return path


def _nginx_servers(ports: Sequence[int]) -> str:
    return "".join(f"server 127.0.0.1:{port} max_fails=0;" for port in ports)


def _haproxy(directory: Path, listening: int, *upstream_ports: int) -> Path:
    text = exchanged(
        DEPLOY / "haproxy.cfg",
        ("log /dev/log local0", "log stdout format raw local0"),
        ("    chroot /var/lib/haproxy\n    user haproxy\n    group haproxy\n", ""),
        ("    bind :80\n", f"    bind fd@{listening}\n"),
        (
            "    server waybill-1 127.0.0.1:8000\n",
            "".join(f"    server waybill-{port} 127.0.0.1:{port}\n" for port in upstream_ports),
        ),
    )
    path = directory / "haproxy.cfg"
    path.write_text(text, encoding="utf-8")
    return path


def _caddy(directory: Path, *upstream_ports: int) -> Path:
    text = exchanged(
        DEPLOY / "Caddyfile",
        ("\n{\n", "\n{\n\tadmin off\n"),
        ("\n:80 {\n", "\nhttp://:0 {\n\tbind 127.0.0.1\n"),
        ("reverse_proxy 127.0.0.1:8000 {", f"reverse_proxy {' '.join(f'127.0.0.1:{p}' for p in upstream_ports)} {{"),
    )
    path = directory / "Caddyfile"
    path.write_text(text, encoding="utf-8")
    return path


@contextmanager
def running(directory: Path, *upstream_ports: int, kind: str = "nginx") -> Iterator[int]:
    """Run a proxy in front of these ports of loopback and give the port that it listens on.

    nginx and HAProxy get a socket that is opened here: no other process can take the port meanwhile, and a connection
    made at once waits until it is accepted. Caddy takes a port that is free.
    """
    directory.mkdir(parents=True, exist_ok=True)
    environ = {**os.environ, "HOME": str(directory)}
    with ExitStack() as opened:
        if kind == "caddy":
            descriptors, port = [], 0
            command = [tool("caddy"), "run", "--adapter", "caddyfile", "--config", _caddy(directory, *upstream_ports)]
        else:
            listening = opened.enter_context(socket.create_server(("127.0.0.1", 0), backlog=512))
            descriptors, port = [listening.fileno()], listening.getsockname()[1]
            if kind == "haproxy":
                command = [tool("haproxy"), "-db", "-f", _haproxy(directory, listening.fileno(), *upstream_ports)]
            else:
                # Handed over as one nginx hands its sockets to its successor. Started by root its workers would become
                # another user, who may not enter this directory.
                environ["NGINX"] = f"{listening.fileno()};"
                globals_ = "daemon off;" + (" user root;" if os.geteuid() == 0 else "")
                made = {"nginx": localised, "nginx-site": _site}[kind](directory, port, *upstream_ports)
                command = [tool("nginx"), "-p", directory, "-c", made, "-g", globals_]
        with (directory / "error.log").open("ab") as output:
            process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                pass_fds=descriptors,
                env=environ,
            )
    try:
        yield port or _port_of(process, directory)
    finally:
        process.send_signal(signal.SIGTERM)
        # HAProxy ends as one that was killed by the signal.
        assert process.wait(20) == (-signal.SIGTERM if kind == "haproxy" else 0), logged(directory)


def _port_of(process: "subprocess.Popen[bytes]", directory: Path) -> int:
    """The port that a process has begun to listen on."""
    for _ in range(round(PATIENCE / 0.01)):
        assert process.poll() is None, logged(directory)
        for connection in psutil.Process(process.pid).net_connections("tcp"):
            if connection.status == psutil.CONN_LISTEN:
                return int(connection.laddr.port)
        time.sleep(0.01)
    raise AssertionError(f"it does not listen: {logged(directory)}")


def logged(directory: Path) -> str:
    """All that the proxy in this directory has written, about requests and about itself."""
    return "".join(path.read_text(encoding="utf-8") for path in sorted(directory.glob("*.log")))


def said_of(directory: Path, pattern: str) -> str:
    """All that the proxy has written, once this stands in it: it writes a line when an answer has left already."""
    for _ in range(round(PATIENCE / 0.01)):
        if re.search(pattern, text := logged(directory)):
            return text
        time.sleep(0.01)
    raise AssertionError(f"no {pattern!r} in {logged(directory)}")


@pytest.fixture
def proxy(tmp_path: Path) -> Iterator[Callable[..., int]]:
    """`proxy(upstream_port, …)` starts the stack's nginx in front of these ports of loopback and returns its port."""
    with ExitStack() as started:
        directories = (tmp_path / f"nginx-{number}" for number in range(1_000))
        yield lambda *upstream_ports: started.enter_context(running(next(directories), *upstream_ports))
