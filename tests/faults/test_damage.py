"""The store or the database is not what it was: it is told, answered with errors, and nothing is destroyed."""

import json
import os
import shutil
import sqlite3
import subprocess
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from functools import partial
from pathlib import Path

import psutil
import pytest

from tests.support.service import PATIENCE, UPLOADS, changed, environment, service

__all__ = ["service"]

pytestmark = pytest.mark.slow

QUICKLY = """
from app.maintenance import scrub, sweep, verify
scrub.LOOK_SECONDS = 0.05
scrub.PASS_SECONDS = scrub.AGAIN_SECONDS = 0
verify._GRACE_SECONDS = -60  # what has just been put there is looked at, too
sweep.Sweeper.__init__.__kwdefaults__["grace_seconds"] = -60
"""


def send(client, names):
    """Files by their names, as they were recorded."""
    return {name: client.put(f"{UPLOADS}/{name}", content=content_of(name)).raise_for_status().json() for name in names}


def content_of(name):
    return name.encode() * 1000


def answers(client, items):
    """What is answered to who asks for the files: by name, the status."""
    found = {}
    for name, item in items.items():
        answer = client.get(f"/api/ingestion/files/{item['id']}")
        assert answer.status_code != 200 or answer.content == content_of(name)
        found[name] = answer.status_code
    return found


def every(status, items):
    return dict.fromkeys(items, status)


def path_of(running, item):
    return running.store / "files" / item["id"][-2:] / item["id"]


def contents(running):
    return {path: path.read_bytes() for path in (running.store / "files").rglob("*") if path.is_file()}


def verified(running):
    """What `waybill verify` says of the store while it is in use."""
    done = subprocess.run(
        changed(running.change, "verify", "--json"),
        cwd=running.directory,
        env=environment(running.directory, **running.settings),
        capture_output=True,
        timeout=PATIENCE,
        check=False,
    )
    found = json.loads(done.stdout)
    assert done.returncode == (0 if found["sound"] else 1)
    return found


def warnings(client):
    answer = client.get("/health/ready")
    assert (answer.status_code, answer.json()["status"]) == (200, "ready")
    return answer.json()["warnings"]


def wait_until(so):
    deadline = time.monotonic() + PATIENCE
    while not so():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def figures(client):
    lines = client.get("/metrics").text.splitlines()
    return {name: float(value) for name, value in (line.rsplit(" ", 1) for line in lines if not line.startswith("#"))}


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def cut(path: Path) -> None:
    os.truncate(path, 10)


def link(path: Path) -> None:
    path.rename(path.parents[2] / "moved")
    path.symlink_to(path.parents[2] / "moved")


def pipe(path: Path) -> None:
    path.unlink()
    os.mkfifo(path)


def directory(path: Path) -> None:
    path.unlink()
    path.mkdir()


def other_file(path: Path) -> None:
    """A second name of a file that holds something else, as long as the right one."""
    (path.parents[2] / "other").write_bytes(b"x" * path.stat().st_size)
    path.unlink()
    path.hardlink_to(path.parents[2] / "other")


HOW = {
    "flip": (flip, "altered"), "cut": (cut, "resized"), "gone": (Path.unlink, "missing"), "link": (link, "replaced"),
    "pipe": (pipe, "replaced"), "directory": (directory, "replaced"), "other": (other_file, "altered"),
}  # fmt: skip


def test_damage_is_found_and_reported_and_ends_when_the_file_is_back(service):
    """F31: a stored file is flipped, cut, deleted, or replaced by a link, a pipe, a directory, another file."""
    running = service(change=QUICKLY, scrub_rate="1GiB")
    with running.client() as client:
        items = send(client, [*HOW, *(f"sound-{number}" for number in range(5))])
        sound = {name: item for name, item in items.items() if name not in HOW}
        process = psutil.Process(running.pid)
        process.suspend()  # so that nobody sees a file that is half-way from one to the other
        for name, (damage, _) in HOW.items():
            path = path_of(running, items[name])
            path.chmod(0o600)
            damage(path)
        process.resume()
        wait_until(lambda: figures(client)["waybill_damaged_uploads"] == len(HOW))
        assert answers(client, items) == every(410, HOW) | every(200, sound)
        told = {event["upload"]: event["damage"] for event in running.events if event["event"] == "stored file damaged"}
        assert told.keys() == {items[name]["id"] for name in HOW}
        assert all(told[items[name]["id"]] == damage for name, (_, damage) in HOW.items())
        history = {item["filename"]: item for item in client.get("/api/ingestion/history").json()["items"]}
        assert {name for name, item in history.items() if item["status"] == "failed"} == HOW.keys()
        assert history["flip"]["error"]["code"] == "damaged"
        assert warnings(client) == {"stored_files": "lost or damaged: 7; waybill verify names them"}

        found = verified(running)
        for kind in ("altered", "resized", "missing", "replaced"):
            expected = {items[name]["id"] for name, (_, damage) in HOW.items() if damage == kind}
            assert set(found[kind]) == expected
        assert len(found["foreign"]) == 3  # under a key lies what is no file

        path = path_of(running, items["flip"])
        assert len(path.read_bytes()) == len(content_of("flip"))  # a damaged file is never deleted
        path.write_bytes(content_of("flip"))
        path_of(running, items["gone"]).write_bytes(content_of("gone"))
        wait_until(lambda: answers(client, items)["flip"] == answers(client, items)["gone"] == 200)
        assert figures(client)["waybill_mended_total"] == 2


def test_foreign_files_are_reported_and_left_alone(service):
    """F32: garbage in the directories of the store."""
    running = service(change=QUICKLY, scrub_rate="1GiB")
    with running.client() as client:
        items = send(client, ["a", "b", "c"])
        key = items["a"]["id"]
        foreign = [f"{where}/README" for where in ("files", "files/00", "staging", "partial", "trash")]
        foreign += [f"partial/{key}.x", f"staging/{key[:-1]}"]
        for name in foreign:
            (running.store / name).write_bytes(b"garbage")
        strange = running.store / "files" / "00" / f"{key[:-2]}00"
        strange.symlink_to("/etc/hostname")
        foreign.append(f"files/00/{strange.name}")
        running.stop()
        running.start()
        running.wait_for("scrubbed", files=3, damaged=0)
        told = running.wait_for("foreign names in the store")
        assert sorted(told["among_them"]) == sorted(foreign)
        found = verified(running)
        assert (sorted(found["foreign"]), found["files"]) == (sorted(foreign), 3)
    with running.client() as client:
        client.headers.update(running.session())
        answers(client, send(client, ["d"]))
    assert all((running.store / name).is_symlink() or (running.store / name).read_bytes() for name in foreign)


def test_an_old_database_over_newer_files_destroys_none_of_them(service, snapshot, database_url):
    """F33: a backup of the database was restored, and the store is newer."""
    running = service(change=QUICKLY, scrub_rate="1GiB", database_url=database_url)
    with running.client() as client:
        old = send(client, ["old-1", "old-2", "old-3"])
        cookies = client.cookies
    running.stop()
    copy = snapshot()
    running.start()
    with running.client(cookies=cookies) as client:
        new = send(client, [f"new-{number}" for number in range(12)])
    running.stop()
    before = contents(running)

    running.settings["database_url"] = copy
    running.start()
    left_alone = running.wait_for("sweep of files stopped")
    assert left_alone["reason"] == "12 of 15 files have no record; is this their database?"
    assert running.wait_for("files without record")["files"] == 12
    running.wait_for("scrubbed", files=3, damaged=0)
    with running.client(cookies=cookies) as client:
        assert answers(client, old | new) == every(200, old) | every(404, new)
        assert figures(client)["waybill_files_without_record"] == 12
    assert sorted(verified(running)["without_record"]) == sorted(item["id"] for item in new.values())
    running.stop()
    assert contents(running) == before
    assert list((running.store / "trash").iterdir()) == []


def send_alone(running, cookies, name):
    """An upload by a client of its own: threads that share one close each other's connections now and then."""
    with running.client(cookies=cookies) as client:
        return send(client, [name])[name]


@pytest.mark.parametrize("how", ["one by one", "at the same time"])
def test_a_crash_does_not_hide_that_the_database_is_an_older_one(service, snapshot, database_url, how):
    """F33: the machine died, and a standby was promoted that lagged behind. Then the right database is back."""
    running = service(change=QUICKLY, scrub_rate="1GiB", database_url=database_url)
    with running.client() as client:
        old = send(client, [f"old-{number}" for number in range(40)])
        cookies = client.cookies
    running.stop()
    copy = snapshot()
    running.start()
    names = [f"new-{number}" for number in range(80)]
    with running.client(cookies=cookies) as client:
        if how == "one by one":
            new = send(client, names)
        else:
            with ThreadPoolExecutor(40) as threads:
                new = dict(zip(names, threads.map(partial(send_alone, running, cookies), names), strict=True))
    running.kill()

    running.settings["database_url"] = copy
    running.start()
    left_alone = running.wait_for("sweep of files stopped")
    assert left_alone["reason"] == "80 of 120 files have no record; is this their database?"
    assert list((running.store / "trash").iterdir()) == []
    running.stop()

    running.settings["database_url"] = database_url
    running.start()
    with running.client(cookies=cookies) as client:
        assert answers(client, old | new) == every(200, old | new)


@pytest.mark.parametrize("by", ["download", "sweep", "scrub", "verify"])
def test_a_file_that_was_set_aside_is_put_back_when_it_is_missed(service, snapshot, database_url, by):
    """F33: few enough files are unknown to the older database that it sets them aside."""
    running = service(change=QUICKLY, database_url=database_url, sweep_interval="1h")
    with running.client() as client:
        old = send(client, [f"old-{number}" for number in range(20)])
        cookies = client.cookies
    running.stop()
    copy = snapshot()
    running.start()
    with running.client(cookies=cookies) as client:
        new = send(client, [f"new-{number}" for number in range(8)])
    running.stop()
    running.settings["database_url"] = copy
    running.start()
    running.wait_for("swept", files_set_aside=8)
    with running.client(cookies=cookies) as client:
        assert answers(client, old | new) == every(200, old) | every(404, new)
    running.stop()

    running.settings["database_url"] = database_url
    if by != "sweep":
        running.change = QUICKLY + "\nasync def rest(*_): pass\nsweep.Sweeper.run = rest"
    if by == "scrub":
        running.settings["scrub_rate"] = "1GiB"
    running.start()
    if by == "sweep":
        assert running.wait_for("swept", files_put_back=8)["records_lost"] == 0
    if by == "scrub":
        running.wait_for("scrubbed", files=28, damaged=0)
    if by == "verify":
        assert verified(running)["sound"]
    if by != "download":
        assert list((running.store / "trash").iterdir()) == []
    with running.client(cookies=cookies) as client:
        assert answers(client, old | new) == every(200, old | new)
        assert list((running.store / "trash").iterdir()) == []


def test_a_download_repairs_a_record_that_was_taken_for_lost(service):
    running = service(change=QUICKLY, sweep_interval="1h")
    with running.client() as client:
        items = send(client, ["a", "b", "c"])
        path = path_of(running, items["a"])
        path.rename(running.store / "trash" / path.name)
        with closing(sqlite3.connect(running.store / "waybill.db")) as db:
            lost = "status = 'failed', error_code = 'lost', error_detail = 'missing'"
            assert db.execute(f"UPDATE uploads SET {lost} WHERE id = ?", [items["a"]["id"]]).rowcount == 1
            db.commit()
        assert answers(client, items) == every(200, items)
        assert client.get(f"/api/ingestion/history/{items['a']['id']}").json() == items["a"]


def test_old_files_under_a_newer_database_are_reported_and_none_is_served_for_another(service, database_url, tmp_path):
    """F33: a backup of the store was restored, and the database is newer."""
    running = service(change=QUICKLY, scrub_rate="1GiB", database_url=database_url)
    with running.client() as client:
        old = send(client, [f"old-{number}" for number in range(5)])
        cookies = client.cookies
        shutil.copytree(running.store / "files", tmp_path / "backup")
        new = send(client, [f"new-{number}" for number in range(12)])
    running.stop()
    (running.store / "files").rename(tmp_path / "newest")
    shutil.copytree(tmp_path / "backup", running.store / "files")

    running.start()
    many = "12 of 17 records have no file; is this their directory?"
    running.wait_for("sweep of records stopped", reason=many)
    running.wait_for("scrub stopped", reason=many)
    with running.client(cookies=cookies) as client:
        wait_until(lambda: warnings(client) == {"scrub": many})
        assert figures(client)["waybill_damaged_uploads"] == 0
        assert answers(client, old | new) == every(200, old) | every(503, new)

        def put_back(name):
            shutil.copyfile(tmp_path / "newest" / path_of(running, new[name]).relative_to(running.store / "files"),
                            path_of(running, new[name]))  # fmt: skip

        *most, last = new
        for name in most:
            put_back(name)
        wait_until(lambda: warnings(client) == {"stored_files": "lost or damaged: 1; waybill verify names them"})
        assert answers(client, old | new) == every(200, [*old, *most]) | every(410, [last])
        put_back(last)
        wait_until(lambda: warnings(client) == {})
        assert answers(client, old | new) == every(200, old | new)
