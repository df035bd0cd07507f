"""The workers are restarted one after the other, or all is, under steady load: nobody behind the proxy notices."""

import asyncio
import signal

import psutil
import pytest

from tests.interop.clients import TORTURE
from tests.load import Load
from tests.proxy import proxy
from tests.service import PATIENCE, service

__all__ = ["proxy", "service"]

WORKERS = 2
TIMES = 10 if TORTURE else 1


def restarted(running):
    """Return when every worker is another one."""
    before = [psutil.Process(pid) for pid in running.pids]
    running.send(signal.SIGHUP)
    _, alive = psutil.wait_procs(before, 2 * PATIENCE)
    assert alive == []
    running.look_for_workers()
    assert len(running.pids) == WORKERS


@pytest.mark.parametrize("way", ["behind the proxy", "without a proxy"])
def test_workers_that_are_restarted_in_turn_fail_no_request(service, proxy, database_url, way):
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
