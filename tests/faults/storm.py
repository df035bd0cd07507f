"""Clients that send by every way without a pause, one that looks, and somebody who ends the service again and again."""

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import suppress
from random import Random

from tests.faults.ledger import PROTOCOLS, SIZES, Address, Headers, Ledger, name_of, new_session, nothing_is_left
from tests.support.service import Cut, Service

CLIENTS = 2  # by each protocol
MOST = {"form": 12, "raw": 12, "tus": 4, "resumable": 4}
"""Files or offsets that are acknowledged from one death to the next, or a little more; each protocol has its turn."""
LATEST = 0.05  # seconds after the last of them


class Storm:
    """`die` ends the service where it stands; whatever ran beside it must be ready for its next start then."""

    def __init__(self, running: Service, ledger: Ledger, die: Callable[[], Awaitable[None]]) -> None:
        self.running, self.ledger = running, ledger
        self._die = die
        self._address = Address(running)
        self._chance = Random(0)
        self._session: Headers = {}
        self._sessions: list[Headers] = []
        self._over = False
        self._read: set[str] = set()  # by whom looks; whoever checks reads all again

    async def rage(self, deaths: int) -> None:
        """Return when every upload that can be resumed has come to its end, and every promise was found kept or not."""
        before = self.running.memory()
        await self._begin()
        async with asyncio.TaskGroup() as group:
            for number, protocol in enumerate(PROTOCOLS * CLIENTS):
                group.create_task(self._send(protocol, Random(number), number))
            group.create_task(self._look())
            for number in range(deaths):
                protocol = PROTOCOLS[number % len(PROTOCOLS)]
                await self.ledger.acknowledges(protocol, self._chance.randrange(MOST[protocol]))
                await asyncio.sleep(self._chance.uniform(0, LATEST))
                await self._end_and_start()
            self._over = True
        for session in self._sessions:
            await self.ledger.check(self.running.port, session, read=False)
        for row in self.ledger.rows.values():
            row.memory_before, row.memory_after = before, self.running.memory()
        assert self.running.said("error") == []
        await nothing_is_left(self.running, self.ledger)

    async def _begin(self) -> None:
        """A session for what comes now, so that nobody who looks has to look at everything."""
        self._session = await new_session(self.running.port)
        self._sessions.append(self._session)
        self._read = set()

    async def _end_and_start(self) -> None:
        async with self._address.closed():
            await self._die()
            self.ledger.injected()
            await asyncio.to_thread(self.running.start)
            await self.ledger.check(self.running.port, self._session)
            await self._begin()

    async def _send(self, protocol: str, chance: Random, lane: int) -> None:
        number = 0
        while not self._over:
            number += 1
            name = name_of(protocol, f"{lane}-{number}", chance.randrange(1, chance.choice(SIZES)))
            await self._address.port()  # so that a session is there
            with suppress(Cut):
                await self.ledger.send(self._address.port, self._session, name, chance)

    async def _look(self) -> None:
        while not self._over:
            port, session, read = await self._address.port(), self._session, self._read
            with suppress(Cut):
                await self.ledger.look(port, session, read)
