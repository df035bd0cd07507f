"""The workers are restarted one after the other, or all is, under steady load: nobody behind the proxy notices."""

import asyncio
import os
import signal

import psutil
import pytest

from tests.faults.test_shutdown import staged, stalled_upload
from tests.faults.test_workers import one_client_each
from tests.support.load import Load
from tests.support.proxy import proxy
from tests.support.service import PATIENCE, UPLOADS, service
from tests.support.tally import TORTURE

__all__ = ["proxy", "service"]

pytestmark = pytest.mark.slow

WORKERS = 2
TIMES = 10 if TORTURE else 1
BOTH = ["sqlite", "postgresql"]
WAYS = ["behind the proxy", "without a proxy"]


def restarted(running):
    """Return when every worker is another one."""
    before = [psutil.Process(pid) for pid in running.pids]
    running.send(signal.SIGHUP)
    _, alive = psutil.wait_procs(before, 2 * PATIENCE)
    assert alive == []
    running.look_for_workers()
    assert len(running.pids) == WORKERS


@pytest.mark.parametrize("way", WAYS if TORTURE else WAYS[:1])
@pytest.mark.parametrize("database_url", BOTH if TORTURE else BOTH[:1], indirect=True)
def test_a_rolling_restart_of_workers_fails_no_request(service, proxy, database_url, way):
    """Files in every way, on new connections and on kept ones. Without a proxy the service closes what was kept."""
    running = service(database_url=database_url, workers=WORKERS, trusted_proxies="127.0.0.1")
    headers = running.session()
    port = proxy(running.port) if way == "behind the proxy" else running.port

    async def run():
        async with Load(port, headers) as load:
            for _ in range(TIMES):
                await load.rounds(2)
                await asyncio.to_thread(restarted, running)
            await load.rounds(2)
        return load

    load = asyncio.run(run())
    assert load.cut == []
    assert load.refused == []
    load.all_landed(running)
    assert running.said("error") == []
    assert running.stop() == 0


def test_a_stop_in_the_middle_of_a_restart_is_obeyed(service):
    """The replacement is still being started, and an old worker has a client that sends no more."""
    running = service(workers=WORKERS, shutdown_timeout="1s")
    family = psutil.Process(running.pid).children()
    headers = running.session()

    async def run():
        async with stalled_upload(running.port, headers):
            await staged(running)
            running.send(signal.SIGHUP)
            await asyncio.to_thread(running.wait_for, "workers restarting")
            running.send(signal.SIGTERM)
            return await asyncio.to_thread(running.wait)

    assert asyncio.run(run()) == 0
    assert psutil.wait_procs(family, PATIENCE)[1] == []
    assert list((running.store / "staging").iterdir()) == []


@pytest.mark.torture
def test_a_new_worker_that_cannot_start_leaves_the_old_ones(service, tmp_path):
    running = service(workers=WORKERS, database_url=f"sqlite:///{tmp_path}/waybill.db")
    before = running.pids
    (tmp_path / "waybill.db").rename(tmp_path / "moved.db")
    (tmp_path / "waybill.db").mkdir()
    running.send(signal.SIGHUP)
    running.wait_for("new worker not started")
    (tmp_path / "waybill.db").rmdir()
    (tmp_path / "moved.db").rename(tmp_path / "waybill.db")
    running.look_for_workers()
    assert running.pids == before
    restarted(running)
    assert running.stop() == 0


@pytest.mark.torture
def test_a_worker_that_hangs_does_not_keep_the_others_from_being_restarted(service):
    """It stops where it stands when it has been told to end: it is killed after its time, and the next has its turn."""
    change = "from app import server\nserver.LAST_SECONDS = 0.1"
    running = service(workers=WORKERS, shutdown_timeout="1s", change=change)
    before = [psutil.Process(pid) for pid in running.pids]
    with one_client_each(running):  # their connections keep the workers for a moment
        running.send(signal.SIGHUP)
        running.wait_for("Shutting down")
        before[0].suspend()
        assert psutil.wait_procs(before, PATIENCE)[1] == []
    running.wait_for("worker killed")
    with running.client() as client:
        assert client.get("/health/ready").status_code == 200
    assert running.stop() == 0


@pytest.mark.parametrize("workers", [1, WORKERS] if TORTURE else [1])
def test_a_hangup_of_the_terminal_stops_or_restarts_the_service_in_order(service, workers):
    """Every process of the terminal gets SIGHUP: one that serves alone stops, and workers leave it to their parent."""
    running = service(workers=workers)
    headers = running.session()
    with running.client(headers=headers) as client:
        assert client.put(f"{UPLOADS}/a", content=b"hello").status_code == 201
    if workers == 1:
        assert running.stop(signal.SIGHUP) == 0
        return
    for pid in running.pids:
        os.kill(pid, signal.SIGHUP)
    restarted(running)
    assert running.stop() == 0
    assert [event for event in running.events if "died" in event["event"]] == []


@pytest.mark.parametrize("database_url", BOTH if TORTURE else BOTH[1:], indirect=True)
def test_services_that_are_restarted_one_by_one_are_one_service(service, proxy, database_url, tmp_path):
    """Two on one store and database, as the proxy's upstreams: what one does not take goes to the other.

    Only who connects while a listening socket is just being closed, some microseconds, is told to come back.
    """
    shared = {"database_url": database_url, "storage_dir": tmp_path / "store", "trusted_proxies": "127.0.0.1"}
    running = [service(**shared), service(**shared)]
    for each in running:
        each.settings["port"] = each.port
    headers = running[0].session()
    port = proxy(*(each.port for each in running))

    async def run():
        async with Load(port, headers) as load:
            for _ in range(TIMES):
                for each in running:
                    await load.rounds(2)
                    assert await asyncio.to_thread(each.stop) == 0
                    await asyncio.to_thread(each.start)
            await load.rounds(2)
        return load

    load = asyncio.run(run())
    assert load.cut == []
    assert len(load.refused) <= len(running) * TIMES
    assert {(answer.status, answer.headers["retry-after"]) for answer in load.refused} <= {(503, "2")}
    load.all_landed(running[0])
    assert [each.stop() for each in running] == [0, 0]
