"""Where the service listens: an address of either kind, a socket file, or what somebody else has opened."""

import os
import signal
import socket
import stat
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import httpx
import pytest

from app.config import Settings
from app.errors import Unusable
from app.server.listening import close_sockets, open_sockets, shown
from tests.support.service import COMMAND, PATIENCE, UPLOADS, Service, environment, service

__all__ = ["service"]


def test_an_ipv6_wildcard_takes_ipv4_as_well() -> None:
    [listening] = sockets = open_sockets(Settings(host="::", port=0))
    with closing(listening):
        listening.listen()
        port = listening.getsockname()[1]
        for address in ("127.0.0.1", "::1"):
            socket.create_connection((address, port), timeout=PATIENCE).close()
        assert shown(listening, "::") == f"http://[::]:{port}"
    close_sockets(sockets)


def test_a_name_is_bound_at_each_of_its_addresses_with_one_port() -> None:
    sockets = open_sockets(Settings(host="localhost", port=0))
    try:
        assert len({listening.getsockname()[1] for listening in sockets}) == 1
        found = {info[4][0] for info in socket.getaddrinfo("localhost", 0, type=socket.SOCK_STREAM)}
        assert {listening.getsockname()[0] for listening in sockets} <= found
    finally:
        close_sockets(sockets)


@pytest.mark.parametrize("workers", [1, 2])
@pytest.mark.slow
def test_a_service_of_any_number_of_workers_is_reached_by_both_kinds(
    service: Callable[..., Service], workers: int
) -> None:
    running = service(host="::", workers=workers, trusted_proxies="127.0.0.1")
    port = int(running.url.rpartition(":")[2])
    for address in ("127.0.0.1", "[::1]"):
        headers = {"X-Forwarded-For": "192.0.2.1", "X-Request-Id": f"by-{len(address)}"}
        assert httpx.get(f"http://{address}:{port}/health/live", headers=headers).status_code == 200
    assert running.wait_for("answered", request_id="by-9")["client"] == "192.0.2.1"  # 127.0.0.1, and not as IPv6
    assert running.wait_for("answered", request_id="by-5")["client"] == "::1"


def test_an_address_in_use_is_reported_in_one_line(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        taken = other.getsockname()[1]
        done = subprocess.run(
            [*COMMAND, "serve"],
            env=environment(tmp_path, port=taken),
            cwd=tmp_path,
            capture_output=True,
            timeout=PATIENCE,
        )
    assert done.returncode == 69
    assert b"socket not opened" in done.stderr
    assert b"Traceback" not in done.stderr


class _Listens:
    """`waybill serve` at some place that is no address."""

    def __init__(self, directory: Path, **settings: Any) -> None:
        self.running = Service(directory, **settings)
        self.running.launch()
        self.running.wait_for("Uvicorn running on")
        self.running.wait_for("Application startup complete.", count=int(settings.get("workers", 1)))


@pytest.fixture
def at_file(tmp_path: Path) -> Iterator[Callable[..., Service]]:
    made: list[Service] = []

    def start(name: str = "service", **settings: Any) -> Service:
        found = _Listens(tmp_path / name, listen=f"unix:{tmp_path}/a.sock", **settings).running
        made.append(found)
        return found

    yield start
    for each in made:
        each.close()


@pytest.mark.parametrize("workers", [1, 2])
@pytest.mark.slow
def test_a_socket_file_is_for_its_group_and_goes_with_the_service(
    at_file: Callable[..., Service], tmp_path: Path, workers: int
) -> None:
    path = tmp_path / "a.sock"
    left = socket.socket(socket.AF_UNIX)
    left.bind(str(path))
    left.close()  # as a service that was killed leaves it
    running = at_file(workers=workers, trusted_proxies="unix")
    assert stat.S_IMODE(path.stat().st_mode) == 0o660
    with httpx.Client(transport=httpx.HTTPTransport(uds=str(path), retries=5), base_url="http://waybill") as client:
        headers = {"X-Forwarded-For": "192.0.2.1", "X-Forwarded-Proto": "https", "X-Request-Id": "by-file"}
        made = client.put(f"{UPLOADS}/a.txt", content=b"hello", headers=headers)
    assert made.status_code == 201
    assert "; Secure" in made.headers["set-cookie"]
    assert running.wait_for("answered", request_id="by-file")["client"] == "192.0.2.1"
    running.stop()
    assert not path.exists()


def test_a_socket_file_at_which_somebody_listens_stays(tmp_path: Path) -> None:
    path = tmp_path / "a.sock"
    with socket.socket(socket.AF_UNIX) as other:
        other.bind(str(path))
        other.listen()
        with pytest.raises(OSError, match="in use"):
            open_sockets(Settings(listen=f"unix:{path}"))
    assert path.exists()


def test_a_file_that_is_no_socket_is_never_removed(tmp_path: Path) -> None:
    path = tmp_path / "a.sock"
    path.write_text("mine")
    with pytest.raises(Unusable, match="is no socket"):
        open_sockets(Settings(listen=f"unix:{path}"))
    assert path.read_text() == "mine"


START = """
import os, sys
os.dup2(int(sys.argv[1]), 3)
os.set_inheritable(3, True)
os.environ.update(LISTEN_PID=str(os.getpid()), LISTEN_FDS="1")
os.execv(sys.executable, [sys.executable, "-m", "app", "serve"])
"""


@pytest.mark.parametrize("listen", ["systemd", "fd:3"])
def test_a_socket_that_was_opened_for_the_service_is_used(tmp_path: Path, listen: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as opened:
        port = opened.getsockname()[1]
        process = subprocess.Popen(
            [sys.executable, "-c", START, str(opened.fileno())],
            env=environment(tmp_path, listen=listen),
            cwd=tmp_path,
            stderr=subprocess.DEVNULL,
            pass_fds=[opened.fileno()],
        )
    try:
        # It was connected to before the service was there: whoever opened it keeps clients waiting, not refused.
        assert httpx.get(f"http://127.0.0.1:{port}/health/live", timeout=PATIENCE).status_code == 200
    finally:
        process.send_signal(signal.SIGTERM)
        assert process.wait(PATIENCE) == 0


@pytest.mark.parametrize(("listen", "words"), [("systemd", "no socket"), (f"fd:{os.dup(0)}", "is no")])
def test_an_inherited_socket_that_is_not_open_is_refused(
    monkeypatch: pytest.MonkeyPatch, listen: str, words: str
) -> None:
    monkeypatch.delenv("LISTEN_PID", raising=False)
    with pytest.raises(Unusable, match=words):
        open_sockets(Settings(listen=listen))
