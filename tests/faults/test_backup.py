"""A backup of a service that serves is restored elsewhere, and everything that it names is there, byte for byte."""

import hashlib
import json
import os
import resource
import signal
import subprocess
import threading
from contextlib import closing
from functools import partial
from pathlib import Path

import pytest

from tests.support.postgres import program
from tests.support.service import COMMAND, HISTORY, PATIENCE, UPLOADS, Service, environment, service

__all__ = ["service"]

pytestmark = pytest.mark.slow

TUS = {"Tus-Resumable": "1.0.0"}
PART = {**TUS, "Content-Type": "application/offset+octet-stream"}


class Site:
    """A store and a database, the service on them, and the commands of its operator."""

    def __init__(self, directory, url):
        self.directory, self.settings = directory, {"database_url": url}
        directory.mkdir()
        self.service = Service(directory, **self.settings)

    def command(self, *arguments, **options):
        variables = environment(self.directory, **self.settings)
        if self.settings["database_url"].startswith("postgresql"):
            variables["PATH"] = f"{program('pg_dump').parent}{os.pathsep}{variables['PATH']}"
        return subprocess.Popen(
            [*COMMAND, *arguments], cwd=self.directory, env=variables, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
            text=True, **options,
        )  # fmt: skip

    def run(self, *arguments, status=0, **options):
        """What the command prints as JSON, or what it complains of."""
        with self.command(*arguments, "--json", **options) as running:
            printed, complaint = running.communicate(timeout=PATIENCE)
        assert running.returncode == status, complaint
        return json.loads(printed) if printed else complaint


@pytest.fixture
def site(tmp_path, database_url):
    site = Site(tmp_path / "site", database_url)
    with closing(site.service):
        site.service.start()
        yield site


@pytest.fixture
def elsewhere(tmp_path, request, database_url):
    """Another place, with a database of the same kind, empty."""
    if database_url.startswith("sqlite"):
        yield Site(tmp_path / "elsewhere", f"sqlite:///{tmp_path}/elsewhere/waybill.db")
        return
    server = request.getfixturevalue("postgres")
    url = server.create_database()
    place = Site(tmp_path / "elsewhere", url)
    with closing(place.service):
        yield place
    server.drop_database(url)


@pytest.fixture
def client(site):
    with site.service.client() as http:
        yield Client(http)


@pytest.fixture
def others(site):
    with site.service.client() as http:
        yield Client(http)


class Client:
    """One session, what it was told is stored, and what it deleted."""

    def __init__(self, http):
        self.http = http
        self.kept, self.deleted = {}, set()
        self._stop = threading.Event()
        self._work = threading.Thread(target=self._load)

    def upload(self, content):
        answer = self.http.put(f"{UPLOADS}/a.bin", content=content)
        assert answer.status_code == 201
        self.kept[answer.json()["id"]] = hashlib.sha256(content).hexdigest()
        return answer.json()["id"]

    def delete(self, upload_id):
        assert self.http.delete(f"/api/ingestion/files/{upload_id}").status_code == 204
        del self.kept[upload_id]
        self.deleted.add(upload_id)

    def _load(self):
        number = 0
        while not self._stop.is_set():
            number += 1
            upload_id = self.upload(b"under load %d " % number * number)
            if number % 3 == 0:
                self.delete(upload_id)

    def __enter__(self):
        self._work.start()
        return self

    def __exit__(self, *error):
        self._stop.set()
        self._work.join()


def test_uploads_acknowledged_before_a_backup_are_there_after_its_restoration(
    site, client, others, elsewhere, tmp_path
):
    backups = str(tmp_path / "backups")
    for size in (0, 1, 300_000, 5_000_000):
        client.upload(os.urandom(size))
    doomed = client.upload(b"deleted between the two")
    body = os.urandom(700_000)
    created = client.http.post(UPLOADS, headers={**TUS, "Upload-Length": str(len(body))}).headers["location"]
    client.http.patch(created, headers={**PART, "Upload-Offset": "0"}, content=body[:500_000])
    with others:
        first = site.run("backup", backups)
        client.delete(doomed)
        client.upload(b"between the two")
        before, gone = dict(others.kept), set(others.deleted)
        second = site.run("backup", backups)
        assert first["lost"] == second["lost"] == []
        assert first["unfinished"] == second["unfinished"] == 1
        assert second["copied"] < second["files"]  # what the first had was not copied again
    late = client.upload(b"after the second")
    client.http.patch(created, headers={**PART, "Upload-Offset": "500000"}, content=body[500_000:600_000])
    assert site.run("backup", backups, "--verify") == {"sound": True, "damaged": []}
    assert site.service.stop() == 0

    restored = elsewhere.run("restore", backups)
    assert restored["lost"] == []
    assert elsewhere.run("sweep") | {"sessions_ended": 0, "records": 0, "files": 0} == elsewhere.run("sweep") | {
        "sessions_ended": 0, "records": 0, "files": 0, "files_set_aside": 0, "records_lost": 0, "stopped": None
    }  # fmt: skip
    assert elsewhere.run("verify")["sound"]
    running = elsewhere.service.start()
    client.http.base_url = others.http.base_url = running.url
    for holder, kept in ((client, {**client.kept}), (others, before)):
        kept.pop(late, None)
        for upload_id, sha256 in kept.items():
            if upload_id in holder.deleted:
                continue  # while the second was made
            content = holder.http.get(f"/api/ingestion/files/{upload_id}").content
            assert hashlib.sha256(content).hexdigest() == sha256
        listed = {item["id"]: item for item in _history(holder.http)}
        for item in listed.values():
            if item["status"] == "completed":
                content = holder.http.get(item["links"]["content"]).content
                assert hashlib.sha256(content).hexdigest() == item["sha256"]
        assert {item["status"] for item in listed.values()} <= {"completed", "deleted", "uploading"}
        assert late not in listed
    assert {_history_status(others.http, upload_id) for upload_id in gone} <= {"deleted"}
    # The unfinished upload goes on where the backup has it.
    offset = int(client.http.head(created, headers=TUS).headers["upload-offset"])
    assert offset == 500_000
    done = client.http.patch(created, headers={**PART, "Upload-Offset": str(offset)}, content=body[offset:])
    assert done.status_code == 204
    [item] = [item for item in _history(client.http) if item["protocol"] == "tus"]
    assert item["sha256"] == hashlib.sha256(body).hexdigest()
    assert running.stop() == 0


def _history(http):
    return [json.loads(line) for line in http.get(HISTORY, params={"format": "ndjson"}).text.splitlines()]


def _history_status(http, upload_id):
    return http.get(f"{HISTORY}/{upload_id}").json()["status"]


def test_a_backup_that_is_killed_leaves_the_one_before_as_it_was(site, client, elsewhere, tmp_path):
    backups = tmp_path / "backups"
    client.upload(b"in the first")
    first = site.run("backup", str(backups))
    client.upload(bytes(3_000_000))
    (backups / "snapshots" / ".draft").mkdir()  # as one that was killed leaves it
    (backups / "files" / "ff").mkdir(exist_ok=True)
    (backups / "files" / "ff" / ".half").write_bytes(b"half of a file")
    assert elsewhere.run("restore", str(backups))["snapshot"] == first["name"]
    second = site.run("backup", str(backups), "--keep", "1")
    assert second["files"] == 2
    assert second["copied"] == 1
    assert not (backups / "files" / "ff" / ".half").exists()
    assert os.listdir(backups / "snapshots") == [second["name"]]
    assert site.run("backup", str(backups), "--verify")["sound"]


def test_a_backup_without_space_harms_none_before(site, client, tmp_path):
    backups = tmp_path / "backups"
    client.upload(b"in the first")
    first = site.run("backup", str(backups))
    client.upload(bytes(3_000_000))
    short = partial(resource.setrlimit, resource.RLIMIT_FSIZE, (2_000_000, 2_000_000))  # as a disk that is full
    assert "File too large" in site.run("backup", str(backups), status=74, preexec_fn=short)
    assert os.listdir(backups / "snapshots") == [first["name"]]
    assert site.run("backup", str(backups), "--verify")["sound"]


def test_a_backup_that_is_killed_anywhere_harms_none_before(site, client, tmp_path):
    backups = tmp_path / "backups"
    for _ in range(20):
        client.upload(os.urandom(200_000))
    site.run("backup", str(backups))
    for tenth in range(5):
        client.upload(os.urandom(3_000_000))
        running = site.command("backup", str(backups))
        with running:
            try:
                running.wait(0.4 + tenth / 10)
            except subprocess.TimeoutExpired:
                running.send_signal(signal.SIGKILL)
            running.communicate()
        assert site.run("backup", str(backups), "--verify")["sound"]
    last = site.run("backup", str(backups))
    assert last["files"] == len(client.kept)
    assert site.run("backup", str(backups), "--verify")["sound"]


def test_a_file_that_is_deleted_while_a_backup_is_made_is_restored_as_deleted(site, client, elsewhere, tmp_path):
    backups = tmp_path / "backups"
    doomed, stays = client.upload(b"goes"), client.upload(b"stays")
    site.run("backup", str(backups))
    # As if the deletion had come between the copy of the database and that of the file.
    [snapshot] = (backups / "snapshots").iterdir()
    about = json.loads((snapshot / "snapshot.json").read_text())
    (snapshot / "snapshot.json").write_text(json.dumps({**about, "deleted": [doomed]}))
    sums = (snapshot / "SHA256SUMS").read_text().splitlines(keepends=True)
    (snapshot / "SHA256SUMS").write_text("".join(line for line in sums if doomed not in line))
    restored = elsewhere.run("restore", str(backups))
    assert restored["deleted"] == [doomed]
    with closing(elsewhere.service):
        client.http.base_url = elsewhere.service.start().url
        assert _history_status(client.http, doomed) == "deleted"
        assert client.http.get(f"/api/ingestion/files/{stays}").content == b"stays"


def test_a_damaged_file_is_reported_by_the_backup_and_by_the_restoration(site, client, elsewhere, tmp_path):
    backups = tmp_path / "backups"
    damaged, rotten, whole = (client.upload(content) for content in (b"damaged", b"rotten", b"whole"))
    file = site.service.store / "files" / damaged[-2:] / damaged
    file.chmod(0o600)
    file.write_bytes(b"changed")
    assert site.run("backup", str(backups), status=1)["lost"] == [damaged]
    pooled = backups / "files" / rotten[-2:] / rotten
    pooled.chmod(0o600)
    pooled.write_bytes(b"r0tten")
    assert site.run("backup", str(backups), "--verify", status=1)["damaged"] == [f"files/{rotten[-2:]}/{rotten}"]
    assert sorted(elsewhere.run("restore", str(backups), status=1)["lost"]) == sorted([damaged, rotten])
    with closing(elsewhere.service):
        client.http.base_url = elsewhere.service.start().url
        assert client.http.get(f"/api/ingestion/files/{damaged}").status_code == 410
        assert client.http.get(f"/api/ingestion/files/{whole}").content == b"whole"


def test_a_backup_is_restored_into_nothing_that_holds_something(site, client, elsewhere, tmp_path):
    backups = str(tmp_path / "backups")
    client.upload(b"content")
    assert "holds no backup of Waybill" in site.run("restore", str(tmp_path), status=78)
    site.run("backup", backups)
    assert "is not empty" in site.run("restore", backups, status=78)
    elsewhere.run("migrate")
    elsewhere.settings["storage_dir"] = elsewhere.directory / "empty"
    assert "is there already" in elsewhere.run("restore", backups, status=78)
    (tmp_path / "others").mkdir()
    (tmp_path / "others" / "letter").touch()
    assert "is not empty, and holds no backup" in site.run("backup", str(tmp_path / "others"), status=78)
    assert "lie within one another" in site.run("backup", str(site.service.store / "backups"), status=78)


@pytest.mark.parametrize("database_url", ["postgresql"], indirect=True)
def test_programs_of_postgresql_that_are_missing_or_too_old_are_named(site, tmp_path):
    backups = str(tmp_path / "backups")
    old = tmp_path / "old"
    old.mkdir()
    (old / "pg_dump").write_text("#!/bin/sh\necho 'pg_dump (PostgreSQL) 11.4'\n")
    (old / "pg_dump").chmod(0o755)
    for path, reason in (("/nowhere", "pg_dump is not in PATH"), (str(old), "pg_dump is of PostgreSQL 11")):
        variables = {**environment(site.directory, **site.settings), "PATH": path}
        done = subprocess.run(
            [*COMMAND, "backup", backups],
            cwd=site.directory,
            env=variables,
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 78
        assert reason in done.stderr
        assert not any(Path(backups, "snapshots").iterdir())
