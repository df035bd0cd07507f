"""Two workers are one service: they show the same, end together, and one that dies is replaced."""

import signal
import socket
import time
from contextlib import ExitStack, closing, contextmanager

import httpx
import psutil
import pytest

from tests.support.service import HISTORY, PATIENCE, UPLOADS, Service, service

__all__ = ["service"]

pytestmark = pytest.mark.slow

ENDS_WITHIN = 5.0  # seconds; a second is promised, and this machine may be busy


@contextmanager
def one_client_each(running):
    """For every worker a client whose one connection it holds."""
    with ExitStack() as opened:
        workers = [psutil.Process(pid) for pid in running.pids]
        clients = []
        for chosen in workers:
            others = [worker for worker in workers if worker != chosen]
            limits = httpx.Limits(max_connections=1, keepalive_expiry=PATIENCE)
            client = opened.enter_context(running.client(limits=limits))
            for other in others:
                other.suspend()  # so that nobody else takes the connection
            try:
                assert client.get("/health/live").status_code == 200
            finally:
                for other in others:
                    other.resume()
            clients.append(client)
        yield clients


def test_an_upload_taken_by_one_worker_is_shown_by_all(service, database_url):
    running = service(workers=2, database_url=database_url)
    headers = running.session()
    with one_client_each(running) as clients:
        for number in range(6):
            sender, reader = clients[number % 2], clients[1 - number % 2]
            content = bytes([number]) * (number * 100_000)
            made = sender.put(f"{UPLOADS}/{number}.bin", content=content, headers=headers)
            assert made.status_code == 201
            pages = [client.get(HISTORY, headers=headers).json() for client in (reader, sender)]
            assert pages[0]["items"] == pages[1]["items"]
            assert len(pages[0]["items"]) == number + 1
            assert pages[0]["items"][0] == made.json()
            assert reader.get(made.json()["links"]["content"], headers=headers).content == content
    family = psutil.Process(running.pid).children()
    assert running.stop() == 0
    assert len([event for event in running.events if event["event"] == "stopped"]) == 2
    have_ended(running, family)


def test_a_session_that_ends_on_one_worker_ends_on_the_other(service):
    running = service(workers=2)
    old = running.session()
    with one_client_each(running) as (one, other):
        assert other.get("/api/session", headers=old).status_code == 200
        rotated = one.post("/api/session/rotate", headers=old)
        new = {"Cookie": f"waybill_session={rotated.cookies['waybill_session']}"}
        one.cookies.clear()
        for client in (one, other):
            assert client.get("/api/session", headers=old).status_code == 200
        assert one.get("/api/session", headers=new).status_code == 200
        assert one.get("/api/session", headers=old).status_code == 401
        wait_until_ended(other, old)
        assert other.get("/api/session", headers=new).status_code == 200
        assert one.delete("/api/session", headers=new).status_code == 204
        assert one.get("/api/session", headers=new).status_code == 401
        wait_until_ended(other, new)


def wait_until_ended(client, headers):
    client.cookies.clear()
    deadline = time.monotonic() + ENDS_WITHIN
    while client.get("/api/session", headers=headers).status_code != 401:
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_a_worker_that_was_killed_is_replaced_with_the_settings_that_were_checked(tmp_path):
    """Settings come from the environment and from `.env`, which may be another by then."""
    with closing(Service(tmp_path, workers=2)) as running:
        (tmp_path / ".env").write_text("WAYBILL_MAX_FILE_SIZE=10\n")
        running.start()
        (tmp_path / ".env").write_text("nonsense\n")
        killed, left = running.pids
        psutil.Process(killed).kill()
        running.wait_for("Application startup complete.", count=3)
        running.look_for_workers()
        assert left in running.pids
        assert killed not in running.pids
        with one_client_each(running) as clients:
            for client in clients:
                assert client.put(f"{UPLOADS}/a", content=b"0123456789").status_code == 201
                assert client.put(f"{UPLOADS}/a", content=b"0123456789+").status_code == 413
        assert running.stop() == 0


@pytest.mark.parametrize("becomes", ["removed", "replaced"])
def test_workers_that_replace_others_know_the_same_sessions_whatever_became_of_the_key(service, becomes):
    """The key is read once, at the start: a volume may be mounted over the directory, or a backup restored into it."""
    running = service(workers=2)
    headers, key = running.session(), running.store / "secret.key"
    key.unlink()
    if becomes == "replaced":
        key.write_text("k" * 64)
    psutil.Process(running.pids[0]).kill()
    running.wait_for("Application startup complete.", count=3)
    running.look_for_workers()
    all_know(running, headers)
    before = [psutil.Process(pid) for pid in running.pids]
    running.send(signal.SIGHUP)
    assert psutil.wait_procs(before, 2 * PATIENCE)[1] == []
    running.look_for_workers()
    all_know(running, headers)
    assert key.exists() == (becomes == "replaced")
    assert running.stop() == 0


def all_know(running, headers):
    with one_client_each(running) as clients:
        assert [client.get(HISTORY, headers=headers).status_code for client in clients] == [200] * len(clients)
        for client in clients:
            client.cookies.clear()
            made = {"Cookie": f"waybill_session={client.post('/api/session').cookies['waybill_session']}"}
            for other in clients:
                other.cookies.clear()
                assert other.get(HISTORY, headers=made).status_code == 200


def test_a_worker_that_hangs_is_replaced(service):
    running = service(workers=2, change="from app.server import workers\nworkers._SILENT_SECONDS = 1.0")
    hanging = psutil.Process(running.pids[0])
    hanging.suspend()
    running.wait_for("Application startup complete.", count=3)
    assert not hanging.is_running() or hanging.status() == psutil.STATUS_ZOMBIE
    running.look_for_workers()
    assert len(running.pids) == 2
    assert running.stop() == 0


def figures(client):
    lines = client.get("/metrics").text.splitlines()
    return {name: float(value) for name, value in (line.rsplit(" ", 1) for line in lines if not line.startswith("#"))}


def test_metrics_of_any_worker_count_all_workers_and_dead_ones(service):
    running = service(workers=2, database_pool_size=3)
    with one_client_each(running) as clients:
        for number, client in enumerate(clients):
            assert client.put(f"{UPLOADS}/{number}", content=b"x" * 10).status_code == 201
        for client in clients:
            found = figures(client)
            assert found['waybill_uploads_total{outcome="completed",protocol="raw"}'] == 2
            assert found['waybill_received_bytes_total{protocol="raw"}'] == 20
            assert found['waybill_stage_seconds_count{stage="rows_commit"}'] == 2
            assert found["waybill_workers"] == 2
            assert found["waybill_database_slots"] == 6
    killed, _ = running.pids
    psutil.Process(killed).kill()
    running.wait_for("Application startup complete.", count=3)
    running.look_for_workers()
    with one_client_each(running) as clients:
        for client in clients:
            assert client.put(f"{UPLOADS}/again", content=b"x").status_code == 201
        for client in clients:
            found = figures(client)
            assert found['waybill_uploads_total{outcome="completed",protocol="raw"}'] == 4
            assert found["waybill_workers"] == 2
            assert found["waybill_database_slots"] == 6
    assert running.stop() == 0


def test_workers_whose_parent_was_killed_end_too(service):
    """They would hold the port, and nobody would restart them."""
    running = service(workers=2)
    family = psutil.Process(running.pid).children()
    assert running.stop(signal.SIGKILL) == -signal.SIGKILL
    have_ended(running, family)


def have_ended(running, family):
    _, alive = psutil.wait_procs(family, PATIENCE)
    assert alive == []
    assert list((running.store / "staging").iterdir()) == []
    with socket.create_server(("127.0.0.1", running.port)):
        pass  # nobody holds the port


def test_a_worker_that_hangs_does_not_keep_the_service_from_ending(service):
    running = service(workers=2, shutdown_timeout="1s", change="from app import server\nserver.LAST_SECONDS = 0.1")
    hanging = psutil.Process(running.pids[0])
    hanging.suspend()
    running.send(signal.SIGTERM)
    assert running.wait() == 0
    assert not hanging.is_running()
