"""kill -9 in the middle of resumable uploads: what was acknowledged is there, and what is there is what was sent."""

import asyncio
import hashlib
import random

from tests.interop.clients import TORTURE, everything
from tests.sender import Resumable, Sender, Tus
from tests.service import service

__all__ = ["service"]

COUNT, KILLS = (200, 40) if TORTURE else (30, 3)
LARGEST = 2_000_000 if TORTURE else 600_000


class Address:
    """Where the service is, which ends and starts again elsewhere."""

    def __init__(self, running):
        self.running = running
        self.is_there = asyncio.Event()
        self.is_there.set()

    async def port(self):
        await self.is_there.wait()
        return self.running.port

    async def kill_and_start(self):
        self.is_there.clear()
        await asyncio.to_thread(self.running.kill)
        await asyncio.to_thread(self.running.start)
        self.is_there.set()


async def send_all_and_kill(running, headers, contents, chance):
    """Kill the service whenever that many more bytes were acknowledged; returns the senders."""
    address = Address(running)
    news = asyncio.Event()
    whole = sum(map(len, contents.values()))
    senders = [
        Sender(name, content, headers, chance.choice([Tus, Resumable]), address.port, lambda _: news.set(), chance)
        for name, content in contents.items()
    ]
    deaths = sorted(chance.randrange(1, whole * 9 // 10) for _ in range(KILLS))

    async def kill():
        for death in deaths:
            while sum(sender.acknowledged for sender in senders) < death:
                news.clear()
                await news.wait()
            await address.kill_and_start()

    async with asyncio.TaskGroup() as group:
        group.create_task(kill())
        for sender in senders:
            group.create_task(sender.run())
    return senders


def test_no_offset_is_taken_back_and_all_go_on_to_their_end(service, database_url):
    running = service(database_url=database_url)
    headers = running.session()
    chance = random.Random(KILLS)
    contents = {f"{number}.bin": chance.randbytes(chance.randrange(LARGEST)) for number in range(COUNT)}
    senders = asyncio.run(send_all_and_kill(running, headers, contents, chance))
    assert sum(sender.breaks for sender in senders) >= KILLS
    with running.client(headers=headers) as client:
        records = everything(client)
        # One whose creation was never acknowledged was created again.
        assert {record["status"] for record in records if record["size"] == 0} <= {"completed", "uploading"}
        landed = {record["filename"]: record for record in records if record["status"] == "completed"}
        assert len(landed) == len([record for record in records if record["status"] == "completed"])
        assert landed.keys() == contents.keys()
        for name, record in landed.items():
            digest = hashlib.sha256(contents[name]).hexdigest()
            assert record["sha256"] == digest
            assert hashlib.sha256(client.get(record["links"]["content"]).content).hexdigest() == digest
        for sender in senders:
            assert landed[sender.filename]["protocol"] == sender.protocol.name
    assert running.said("error") == []
    assert running.stop() == 0
