"""kill -9 whenever it comes, under uploads by every way at once: what was acknowledged is there, and nothing else shows."""

import asyncio
import random
from contextlib import suppress

from tests.faults.ledger import PROTOCOLS, SIZES, Address, Ledger, name_of, new_session, nothing_is_left
from tests.service import Cut, service
from tests.tally import TORTURE

__all__ = ["service"]

KILLS = 500 if TORTURE else 3  # on each database
CLIENTS = 2  # by each protocol
LATEST = 0.3  # seconds after the service was found sound again
STARTING = 0.1  # so often it is killed once more while it starts


class Storm:
    """Clients that send without a pause, one that looks, and one that kills."""

    def __init__(self, running, ledger):
        self.running, self.ledger = running, ledger
        self.address = Address(running)
        self.chance = random.Random(KILLS)
        self.session = {}
        self.sessions = []
        self.over = False
        self.read = set()  # by whom looks; whoever checks reads all again

    async def rage(self):
        """Return when every upload that can be resumed has come to its end."""
        await self.begin()
        async with asyncio.TaskGroup() as group:
            for number, protocol in enumerate(PROTOCOLS * CLIENTS):
                group.create_task(self.send(protocol, random.Random(number), number))
            group.create_task(self.look())
            await self.kill()

    async def begin(self):
        """A session for what comes now, so that nobody who looks has to look at everything."""
        self.session = await new_session(self.running.port)
        self.sessions.append(self.session)
        self.read = set()

    async def send(self, protocol, chance, lane):
        number = 0
        while not self.over:
            number += 1
            name = name_of(protocol, f"{lane}-{number}", chance.randrange(1, chance.choice(SIZES)))
            await self.address.port()  # so that a session is there
            with suppress(Cut):
                await self.ledger.send(self.address.port, self.session, name, chance)

    async def look(self):
        while not self.over:
            port, session, read = await self.address.port(), self.session, self.read
            with suppress(Cut):
                await self.ledger.look(port, session, read)

    async def kill(self):
        for _ in range(KILLS):
            await asyncio.sleep(self.chance.uniform(0, LATEST))
            async with self.address.closed():
                await self.die()
                await asyncio.to_thread(self.running.start)
                await self.ledger.check(self.running.port, self.session)
                await self.begin()
        self.over = True

    async def die(self):
        await asyncio.to_thread(self.running.kill)
        self.ledger.injected()
        if self.chance.random() < STARTING:
            self.running.launch()
            await asyncio.sleep(self.chance.uniform(0, LATEST * 3))
            await asyncio.to_thread(self.running.kill)
            self.ledger.injected()


def test_what_was_acknowledged_survives_and_nothing_else_shows(service, database_url, tally):
    running = service(database_url=database_url)
    ledger = Ledger.of(tally, "kill -9 at any time", database_url)
    storm = Storm(running, ledger)
    before = running.memory()

    async def run():
        await storm.rage()
        for session in storm.sessions:
            await ledger.check(running.port, session, read=False)
        after = running.memory()
        for row in ledger.rows.values():
            row.memory_before, row.memory_after = before, after
        assert running.said("error") == []
        await nothing_is_left(running, ledger)

    asyncio.run(run())
    ledger.is_clean()
    assert all(row.acknowledged for row in ledger.rows.values())
