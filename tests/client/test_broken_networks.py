"""waybill push through what networks and machines do: each file lands once, whole, and none is sent twice in vain."""

import hashlib
import json
import random
import signal
import subprocess
import sys
from contextlib import closing, contextmanager, suppress
from pathlib import Path

import pytest

from tests.client.running import User
from tests.interop.clients import everything
from tests.support.cutting_proxy import CuttingProxy
from tests.support.service import PATIENCE, Service
from tests.support.tools import tool

pytestmark = pytest.mark.slow

KILLS = 10
INTEROP = Path(__file__).parents[1] / "interop"
TUS_SERVER = """
import { FileStore } from "@tus/file-store";
import { Server } from "@tus/server";
const server = new Server({ path: "/files", datastore: new FileStore({ directory: process.argv[1] }) });
const listening = server.listen({ host: "127.0.0.1", port: 0 }, () => console.log(listening.address().port));
"""


def made(user, count, seed):
    """Files of all orders of magnitude, most of them small; their digests by path."""
    chance = random.Random(seed)
    digests = {}
    for number in range(count):
        size = chance.randrange(300_000, 2_000_000) if number % 10 == 0 else round(200_000 ** chance.random())
        content = chance.randbytes(size)
        digests[str(user.file(f"folder/{number % 7}/{number}.bin", content))] = hashlib.sha256(content).hexdigest()
    return digests


def pushed_and_killed(user, digests):
    """Push until all is done, with KILLS deaths on the way. Every line that any of the commands printed."""
    lines = []
    for number in range(KILLS):
        process = user.start("push", "folder")
        sent = 0
        while sent < len(digests) // (2 * KILLS):
            lines.append(process.stdout.readline())
            sent += b'"sent"' in lines[-1]
        process.send_signal(signal.SIGKILL)
        lines += process.communicate(timeout=PATIENCE)[0].splitlines()
        assert process.returncode == -signal.SIGKILL, f"it ended before kill {number}"
    process = user.start("push", "folder")
    out, err = process.communicate(timeout=10 * PATIENCE)
    assert (process.returncode, err) == (0, b"")
    found = []
    for line in lines + out.splitlines():
        with suppress(ValueError):  # a line that was cut by a kill
            found.append(json.loads(line))
    return found


def test_a_thousand_files_land_once_through_cuts_and_kills(tmp_path):
    with closing(Service(tmp_path / "service", workers=2)) as running:
        running.start()
        with CuttingProxy(running.port, seed=17, reach=4_000_000, pause=0.05) as proxy:
            user = User(tmp_path, proxy.url)
            digests = made(user, 1000, seed=1)
            lines = pushed_and_killed(user, digests)
            assert sum(proxy.met.values()) > 20
        with running.client(headers={"Authorization": f"Bearer {user.token}"}) as client:
            records = everything(client)
        landed = [record for record in records if record["status"] == "completed"]
        assert len(landed) == len(digests)
        assert sorted(record["sha256"] for record in landed) == sorted(digests.values())
        sent = [line["path"] for line in lines if line["status"] == "sent"]
        assert len(sent) == len(set(sent)), "a file was sent again that had been acknowledged"
        assert {line["path"]: line["sha256"] for line in lines} == digests
        assert running.said("error") == []


@contextmanager
def tus_server(directory):
    """@tus/server on a free port: the URL of its collection."""
    directory.mkdir()
    process = subprocess.Popen(
        [tool("node"), "--input-type=module", "-e", TUS_SERVER, directory], cwd=INTEROP, stdout=subprocess.PIPE
    )
    try:
        yield int(process.stdout.readline())
    finally:
        process.kill()
        process.communicate(timeout=PATIENCE)


def test_files_land_once_on_another_tus_server_through_cuts_and_kills(tmp_path):
    with tus_server(tmp_path / "files") as port, CuttingProxy(port, seed=18, reach=1_000_000, pause=0.05) as proxy:
        user = User(tmp_path, f"{proxy.url}/files")
        digests = made(user, 200, seed=2)
        lines = pushed_and_killed(user, digests)
        assert sum(proxy.met.values()) > 20
    whole = []
    for info in (tmp_path / "files").glob("*.json"):
        content = info.with_suffix("").read_bytes()
        if len(content) == json.loads(info.read_text())["size"]:
            whole.append(hashlib.sha256(content).hexdigest())
    assert sorted(whole) == sorted(digests.values())
    sent = [line["path"] for line in lines if line["status"] == "sent"]
    assert len(sent) == len(set(sent))
    assert {line["path"]: line["sha256"] for line in lines} == digests


def test_standard_input_arrives_on_another_tus_server(tmp_path):
    with tus_server(tmp_path / "files") as port:
        user = User(tmp_path, f"http://127.0.0.1:{port}/files")
        content = random.Random(3).randbytes(20_000_000)
        [line] = user.lines("push", "-", "--name", "x", given=content)
        assert line["sha256"] == hashlib.sha256(content).hexdigest()
        [info] = (tmp_path / "files").glob("*.json")
        assert info.with_suffix("").read_bytes() == content


def test_a_large_file_goes_on_where_it_was_after_a_kill_at_another_address(tmp_path):
    with closing(Service(tmp_path / "service")) as running:
        running.start()
        content = random.Random(4).randbytes(64 * 1024 * 1024)
        with CuttingProxy(running.port, seed=0, reach=None) as proxy:
            user = User(tmp_path, proxy.url)
            user.file("large.bin", content)
            proxy.hold_after = 16 * 1024 * 1024
            process = user.start("push", "large.bin")
            assert proxy.held.wait(PATIENCE)
            process.kill()
            process.communicate(timeout=PATIENCE)
            proxy.released.set()
        token = user.token
        moved = User(tmp_path, running.url, WAYBILL_TOKEN=token)
        before = running.metric("waybill_received_bytes_total")
        [line] = moved.lines("push", "large.bin")
        assert line["sha256"] == hashlib.sha256(content).hexdigest()
        assert running.metric("waybill_received_bytes_total") - before < len(content) - 8 * 1024 * 1024


def test_memory_stays_flat_for_a_gigabyte(tmp_path):
    with closing(Service(tmp_path / "service")) as running:
        running.start()
        user = User(tmp_path, running.url)
        with user.file("large.bin", b"").open("r+b") as file:
            file.truncate(1024**3)
        script = (
            "import resource, sys; from app.cli import main\n"
            "try: main(sys.argv[1:])\n"
            "finally: print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, file=sys.stderr)"
        )
        peaks = []
        small = user.file("small.bin", b"x" * 300_000)
        for path in (small, "large.bin"):
            done = subprocess.run(
                [sys.executable, "-c", script, "push", path],
                cwd=user.here,
                env=user.variables,
                capture_output=True,
                timeout=PATIENCE,
                check=True,
            )
            peaks.append(int(done.stderr))
        assert peaks[1] - peaks[0] < 32 * 1024, f"{peaks} KiB"


@pytest.mark.parametrize("how", ["rewritten", "replaced", "longer", "shorter", "deleted"])
def test_a_file_that_changes_while_it_is_sent_is_sent_anew_and_never_half(user, running, history, how):
    """The proxy holds the upload when half of it has passed; then the file changes."""
    content, later = random.Random(5).randbytes(8_000_000), random.Random(6).randbytes(8_000_000)
    path = user.file("large.bin", content)
    with CuttingProxy(running.port, seed=0, reach=None) as proxy:
        user.variables["WAYBILL_URL"] = proxy.url
        proxy.hold_after = 4_000_000
        process = user.start("push", path)
        assert proxy.held.wait(PATIENCE)
        if how == "rewritten":
            path.write_bytes(later)
        elif how == "replaced":
            user.file("new.bin", later).rename(path)
        elif how == "longer":
            path.write_bytes(content + b"more")
        elif how == "shorter":
            path.write_bytes(content[:5_000_000])
        else:
            path.unlink()
        proxy.released.set()
        out, err = process.communicate(timeout=PATIENCE)
    assert err == b""
    [line] = map(json.loads, out.splitlines())
    completed = history(status="completed")
    if how == "deleted":
        assert (process.returncode, line["status"], line["error"]["code"]) == (1, "failed", "changed")
        assert completed == []
    else:
        assert (process.returncode, line["status"]) == (0, "sent")
        assert [record["sha256"] for record in completed] == [hashlib.sha256(path.read_bytes()).hexdigest()]


def test_a_service_that_takes_one_upload_of_a_session_at_a_time_gets_all(tmp_path):
    with closing(Service(tmp_path / "service", session_concurrent_uploads=1)) as running:
        running.start()
        user = User(tmp_path, running.url)
        digests = made(user, 60, seed=7)
        lines = user.lines("push", "folder")
        assert {line["path"]: line["sha256"] for line in lines} == digests
        assert {line["status"] for line in lines} == {"sent"}


def test_an_interrupted_push_says_that_it_goes_on_and_does(user, running, history):
    content = random.Random(8).randbytes(8_000_000)
    path = user.file("large.bin", content)
    with CuttingProxy(running.port, seed=0, reach=None) as proxy:
        user.variables["WAYBILL_URL"] = proxy.url
        proxy.hold_after = 4_000_000
        process = user.start("push", path)
        assert proxy.held.wait(PATIENCE)
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=PATIENCE)
        proxy.released.set()
        assert (process.returncode, out) == (130, b"")
        assert err == b"interrupted; the same command goes on from here\n"
        assert [line["status"] for line in user.lines("push", path)] == ["sent"]
    [record] = history()  # the one that was begun
    assert record["sha256"] == hashlib.sha256(content).hexdigest()
