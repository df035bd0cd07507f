"""A start that cannot succeed ends with a status and one line that names the reason, and leaves nothing behind."""

import signal
import socket
import subprocess

import pytest

from tests.support.service import PATIENCE, changed, environment, service

__all__ = ["service"]

pytestmark = pytest.mark.slow

NOT_CHECKED = """
from app import checks

async def nothing(settings):
    return []

checks.run = nothing  # as if the store had been lost just after it was checked
"""


def start(directory, *, change="", **settings):
    done = subprocess.run(
        changed(change, "serve"),
        cwd=directory,
        env=environment(directory, **settings),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        check=False,
    )
    assert done.stdout == ""
    assert "Traceback" not in done.stderr
    return done.returncode, done.stderr


def nothing_left(directory):
    """No staging directory, whose lock would be held."""
    return list(directory.glob("waybill-data/staging/*")) == []


@pytest.fixture
def taken():
    """A port that somebody else listens on."""
    with socket.create_server(("127.0.0.1", 0)) as other:
        yield other.getsockname()[1]


def test_malformed_settings_are_reported_before_a_socket_is_opened(tmp_path, taken):
    status, said = start(tmp_path, port=taken, max_file_size="-1", workers="many", sekret="x")
    assert status == 78
    assert "WAYBILL_MAX_FILE_SIZE" in said
    assert "WAYBILL_WORKERS" in said
    assert "WAYBILL_SEKRET" in said
    assert str(taken) not in said
    assert list(tmp_path.iterdir()) == []


def test_a_directory_that_cannot_be_used_is_named(tmp_path, taken):
    (tmp_path / "file").write_text("in the way")
    status, said = start(tmp_path, port=taken, storage_dir=tmp_path / "file", database_url=f"sqlite:///{tmp_path}/w.db")
    assert status == 78
    assert f"storage: {tmp_path}/file" in said
    assert "address" not in said


def test_a_file_that_is_no_database_is_named(tmp_path):
    (tmp_path / "w.db").write_text("certainly not a database, but long enough to be looked at " * 20)
    status, said = start(tmp_path, database_url=f"sqlite:///{tmp_path}/w.db")
    assert status == 78
    assert f"database: sqlite:///{tmp_path}/w.db: " in said
    assert nothing_left(tmp_path)


def test_a_database_that_is_away_may_come_back(tmp_path):
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
    status, said = start(tmp_path, database_url=f"postgresql://waybill:topsecret@127.0.0.1:{port}/waybill")
    assert status == 69
    assert f"database: postgresql://127.0.0.1:{port}/waybill: " in said
    assert "topsecret" not in said
    assert nothing_left(tmp_path)


@pytest.mark.parametrize("key", ["", "too short"])
def test_a_file_that_holds_no_key_is_named(tmp_path, key):
    (tmp_path / "waybill-data").mkdir()
    (tmp_path / "waybill-data" / "secret.key").write_text(key)
    status, said = start(tmp_path)
    assert status == 78
    assert "waybill-data/secret.key" in said


@pytest.mark.parametrize("workers", [1, 2])
def test_a_port_that_is_taken_is_named(tmp_path, taken, service, workers):
    status, said = start(tmp_path, port=taken, workers=workers)
    assert status == 69
    assert "address already in use" in said.lower()
    assert nothing_left(tmp_path)


@pytest.mark.parametrize("workers", [1, 2])
def test_a_failure_after_the_checks_is_reported_in_one_line(tmp_path, workers):
    """Also where every worker meets it: the parent gives up and does not start them for ever."""
    (tmp_path / "file").write_text("in the way")
    status, said = start(
        tmp_path,
        change=NOT_CHECKED,
        storage_dir=tmp_path / "file",
        database_url=f"sqlite:///{tmp_path}/w.db",
        workers=workers,
    )
    assert status == 69
    reasons = [line for line in said.splitlines() if "service not started" in line]
    assert 1 <= len(reasons) <= workers
    assert all(str(tmp_path / "file") in reason for reason in reasons)


def test_a_start_that_failed_does_not_hinder_the_next(tmp_path, service, taken):
    running = service()
    running.stop()
    assert start(running.directory, port=taken)[0] == 69
    running.start()
    assert running.stop(signal.SIGINT) == 0
    assert nothing_left(running.directory)
