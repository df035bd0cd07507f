"""The units of systemd, held true without systemd as process 1: it reads them, and the service runs as they say."""

import os
import re
import shlex
import subprocess
import sys
from contextlib import suppress
from datetime import timedelta
from functools import cache
from pathlib import Path

import httpx
import psutil
import pytest

from app.config import Settings, load
from tests.support.proxy import DEPLOY, PATIENCE
from tests.support.service import COMMAND, UPLOADS, environment
from tests.support.tools import tool

NO_ENV_FILE = Path("/nonexistent/.env")
LAST_SECONDS = timedelta(seconds=15)  # README: it ends within the shutdown timeout and fifteen seconds


def directives(unit):
    """Every value of every directive of a unit, in their order."""
    found = {}
    for name, value in re.findall(r"^(\w+)=(.*)$", (DEPLOY / unit).read_text(encoding="utf-8"), re.MULTILINE):
        found.setdefault(name, []).append(value)
    return found


SERVICE, SOCKET = directives("waybill.service"), directives("waybill.socket")


def variables():
    return dict(pair.split("=", 1) for line in SERVICE["Environment"] for pair in shlex.split(line))


def seconds(text):
    return timedelta(seconds=int(text.removesuffix("s")))


class TestUnits:
    def test_systemd_understands_them(self, tmp_path):
        for unit in ("waybill.service", "waybill.socket"):
            text = (DEPLOY / unit).read_text(encoding="utf-8")
            # The program is not installed on the machine of the tests; that the package brings it, another test says.
            (tmp_path / unit).write_text(text.replace("/opt/waybill/bin/waybill serve", f"{sys.executable} serve"))
        command = [tool("systemd-analyze"), "verify", "--man=no", "--generators=no", "--recursive-errors=no"]
        done = subprocess.run(
            [*command, tmp_path / "waybill.service", tmp_path / "waybill.socket"],
            capture_output=True,
            text=True,
            timeout=PATIENCE,
        )
        assert (done.returncode, done.stdout + done.stderr) == (0, "")

    def test_the_units_leave_the_service_little_to_do_harm_with(self):
        command = [tool("systemd-analyze"), "security", "--offline=yes", "--threshold=20", "--no-pager"]
        done = subprocess.run([*command, DEPLOY / "waybill.service"], capture_output=True, text=True, timeout=PATIENCE)
        assert done.returncode == 0, done.stdout

    def test_every_setting_is_understood(self):
        settings = load(variables(), NO_ENV_FILE)
        assert settings.listen == "systemd"
        assert all(name.startswith("WAYBILL_") for name in variables())
        named = {name for unit in DEPLOY.iterdir() for name in re.findall(r"WAYBILL_\w+", unit.read_text("utf-8"))}
        assert named <= {f"WAYBILL_{name.upper()}" for name in Settings.model_fields}

    def test_the_unit_writes_to_its_own_directory_alone(self):
        [name] = SERVICE["StateDirectory"]
        assert load(variables(), NO_ENV_FILE).storage_dir == Path("/var/lib") / name
        assert SERVICE["ProtectSystem"] == ["strict"]
        assert SERVICE.keys().isdisjoint({"ReadWritePaths", "DynamicUser"})

    def test_uploads_may_end_before_the_process_is_killed(self):
        [stopping] = SERVICE["TimeoutStopSec"]
        assert seconds(stopping) >= load(variables(), NO_ENV_FILE).shutdown_timeout + LAST_SECONDS
        assert SERVICE["KillMode"] == ["mixed"]

    def test_every_connection_may_have_a_file_open(self):
        [allowed] = SERVICE["LimitNOFILE"]
        assert int(allowed) >= 2 * Settings().max_connections + 1000

    def test_the_socket_is_where_the_proxies_look_for_it(self):
        [listened] = SOCKET["ListenStream"]
        for file, words in [
            ("nginx-site.conf", f"server {listened} max_fails=0;"),
            ("haproxy.cfg", f"server waybill-1 {listened}\n"),
            ("Caddyfile", f"reverse_proxy {listened} {{"),
        ]:
            assert words in (DEPLOY / file).read_text(encoding="utf-8")
        assert load(variables(), NO_ENV_FILE).trusted_proxies == (listened.partition(":")[0],)

    def test_a_configuration_that_is_not_usable_is_not_tried_again(self):
        assert SERVICE["RestartPreventExitStatus"] == ["2 78"]
        assert SERVICE["Restart"] == ["on-failure"]


def started(directory, path, **settings):
    """The service as systemd starts it: its unit's variables and words, and a socket at `path` that is open already."""
    [command] = SERVICE["ExecStart"]
    program, *words = shlex.split(command)
    assert program == "/opt/waybill/bin/waybill"
    ours = {
        **environment(directory, listen="systemd"),
        **variables(),
        "WAYBILL_STORAGE_DIR": str(directory / "data"),
        **{f"WAYBILL_{name.upper()}": str(value) for name, value in settings.items()},
    }
    given = [f"--setenv={name}={value}" for name, value in ours.items()]
    return [tool("systemd-socket-activate"), f"--listen={path}", *given, *COMMAND, *words]


def test_the_service_takes_the_socket_that_systemd_opens(tmp_path):
    path = tmp_path / "waybill.sock"
    process = subprocess.Popen(started(tmp_path, path, trusted_proxies="unix"), cwd=tmp_path, stderr=subprocess.PIPE)
    try:
        assert process.stderr is not None
        assert b"Listening on" in process.stderr.readline()
        headers = {"X-Forwarded-For": "192.0.2.1", "X-Forwarded-Proto": "https"}
        transport = httpx.HTTPTransport(uds=str(path))
        with httpx.Client(transport=transport, base_url="http://waybill", timeout=PATIENCE) as client:
            made = client.put(f"{UPLOADS}/a.txt", content=b"hello", headers=headers)
        assert made.status_code == 201
        assert "; Secure" in made.headers["set-cookie"]
        process.terminate()
        _, said = process.communicate(timeout=PATIENCE)
        assert process.returncode == 0, said
    finally:
        end_with_children(process)
    assert path.exists(), "the socket is systemd's"


# What the service is made to do while its system calls are watched.
def use(client):
    tus = {"Tus-Resumable": "1.0.0"}
    chunk = {**tus, "Content-Type": "application/offset+octet-stream", "Upload-Offset": "0"}
    large = bytes(24 * 1024 * 1024)
    assert client.post(UPLOADS, files={"file": ("a.txt", b"hello")}).status_code == 201
    made = client.put(f"{UPLOADS}/large.bin", content=large)
    assert made.status_code == 201
    content = made.json()["links"]["content"]
    assert client.get(content).content == large
    assert client.get(content, headers={"Range": "bytes=2-4"}).status_code == 206
    assert client.delete(content).status_code == 204
    parts = []
    for _ in range(2):
        begun = client.post(UPLOADS, headers={**tus, "Upload-Length": str(len(large)), "Upload-Concat": "partial"})
        parts.append(begun.headers["location"])
        assert client.patch(parts[-1], headers=chunk, content=large).status_code == 204
    final = client.post(UPLOADS, headers={**tus, "Upload-Concat": f"final;{' '.join(parts)}"})
    assert final.status_code == 201
    assert client.get("/health/ready").status_code == 200


@pytest.mark.slow
@pytest.mark.parametrize("workers", [1, 2])
def test_the_sandbox_lets_everything_through_that_the_service_asks_of_the_kernel(tmp_path, workers):
    path, trace = tmp_path / "waybill.sock", tmp_path / "trace"
    process = subprocess.Popen(
        [tool("strace"), "--follow-forks", "--output", trace, *COMMAND, "serve"],
        cwd=tmp_path,
        env=environment(tmp_path, listen=f"unix:{path}", workers=workers),
        stderr=subprocess.PIPE,
    )
    assert process.stderr is not None
    try:
        ready = 0
        while ready < workers:
            ready += b"Application startup complete." in process.stderr.readline()
        transport = httpx.HTTPTransport(uds=str(path), retries=5)
        with httpx.Client(transport=transport, base_url="http://waybill", timeout=PATIENCE) as client:
            use(client)
        psutil.Process(process.pid).children()[0].terminate()
        process.communicate(timeout=PATIENCE)
        assert process.returncode == 0
    finally:
        end_with_children(process)
    story = trace.read_text(encoding="utf-8", errors="replace")
    called = set(re.findall(r"^\d+ +(\w+)\(", story, re.MULTILINE))
    assert {"io_submit", "openat2", "renameat2"} <= called
    if os.geteuid() == 0:
        called -= {"fchown"}  # SQLite keeps the owner of its files, when root runs it
    assert called - allowed_calls() == set()
    [families] = SERVICE["RestrictAddressFamilies"]
    assert set(re.findall(r" socket\((\w+),", story)) <= set(families.split())
    # MemoryDenyWriteExecute: memory is never made executable, nor mapped to be written and executed.
    assert re.findall(r" (?:pkey_)?mprotect\(.*PROT_EXEC.*", story) == []
    assert re.findall(r" mmap\(.*PROT_WRITE\|PROT_EXEC.*", story) == []


def allowed_calls():
    """What the unit's filter lets through, with the groups of systemd written out."""
    allowed = set()
    for entry in SERVICE["SystemCallFilter"]:
        names = expanded(entry.removeprefix("~"))
        allowed = allowed - names if entry.startswith("~") else allowed | names
    return allowed


@cache
def expanded(group):
    assert group.startswith("@")
    command = [tool("systemd-analyze"), "syscall-filter", "--no-pager", group]
    said = subprocess.run(command, capture_output=True, text=True, check=True, timeout=PATIENCE).stdout
    found = set()
    for name in re.findall(r"^ +(@?[\w-]+)$", said, re.MULTILINE):
        found |= expanded(name) if name.startswith("@") else {name}
    return found


def end_with_children(process):
    """End a process and those that it started; the descriptors that were its output are closed."""
    with suppress(psutil.NoSuchProcess):
        for child in psutil.Process(process.pid).children(recursive=True):
            with suppress(psutil.NoSuchProcess):
                child.kill()
    process.kill()
    process.wait()
    process.stderr.close()
