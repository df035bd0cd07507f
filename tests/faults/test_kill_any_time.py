"""kill -9 at any time, under uploads by every way at once: what was acknowledged is there, nothing else shows. F19."""

import asyncio
import random

import pytest

from tests.faults.ledger import Ledger
from tests.faults.storm import Storm
from tests.support.service import seed, service
from tests.support.tally import TORTURE

__all__ = ["seed", "service"]

pytestmark = pytest.mark.slow

KILLS = 500 if TORTURE else 1  # on each database
STARTING = 0.1  # so often it is killed once more while it starts
A_START = 0.9  # seconds, or so


def test_acknowledged_uploads_survive_and_nothing_else_shows(service, seed, database_url, tally):
    running = service(database_url=database_url, seed=seed)
    ledger = Ledger.of(tally, "kill -9 at any time", database_url)
    chance = random.Random(0)

    async def die():
        await asyncio.to_thread(running.kill)
        if chance.random() < STARTING:
            running.launch()
            await asyncio.sleep(chance.uniform(0, A_START))
            await asyncio.to_thread(running.kill)
            ledger.injected()

    asyncio.run(Storm(running, ledger, die).rage(KILLS))
    ledger.is_clean()
    assert all(row.acknowledged for row in ledger.rows.values())
