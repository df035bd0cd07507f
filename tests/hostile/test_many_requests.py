"""Damaged requests by the hundred thousand, many at once: no 5xx, no stall, no byte stored that was not sent.

A case is a good request that met with accidents, or a resumable upload whose every further request did, on connections
of their own. Everything about it follows from its number, so a case that fails can be sent again by itself.
`make fuzz` sends FUZZ_REQUESTS of them, or as many as come to their end in FUZZ_SECONDS, and prints what came of it;
every run sends a few.
"""

import asyncio
import json
import os
import re
import sys
import time
from collections import Counter
from contextlib import nullcontext, suppress
from random import Random

import psutil
import pytest

from tests.hostile.damage import PLACE, RESOURCE, SEQUENCES, cut_up, damaged, good_requests, good_sequels, was_sent
from tests.hostile.wire import Visitor
from tests.support.service import PATIENCE, UPLOADS

COUNT = int(os.environ.get("FUZZ_REQUESTS", "600"))
FIRST = int(os.environ.get("FUZZ_FIRST", "0"))
SECONDS = int(os.environ.get("FUZZ_SECONDS", "600"))
AT_ONCE = 64
ROUND = 2_000  # cases after which everything is looked at
QUIET_SECONDS = 0.1  # who has said all he has to say listens so long for more
STALL_SECONDS = 0.05
CHANGE = """
import json, time, types
import app.db.database, app.uploads.group_commit, app.server.connection, app.web.exchange
app.web.exchange._LINGER_SECONDS = 0.05
# A disk that others keep busy is not the subject: it would be a 503, and rightly so.
app.db.database.Db.__init__.__kwdefaults__["timeout"] = 60.0
app.uploads.group_commit.Publisher.__init__.__kwdefaults__["patience_seconds"] = 60.0
slowest = 0.0

def timed(work, *arguments, who):
    # CPU of the loop's thread in one step, which nobody can interrupt. Others' load is not in it, collecting is.
    global slowest
    began = time.thread_time()
    try:
        return work(*arguments)
    finally:
        took = time.thread_time() - began
        if took > slowest:
            slowest = took
            with open("slowest", "w") as file:
                json.dump({"seconds": took, "case": who()}, file)

@types.coroutine
def in_steps(coroutine, who):
    work, given = coroutine.send, None
    while True:
        try:
            awaited = timed(work, given, who=who)
        except StopIteration as end:
            return end.value
        finally:
            given = None  # an error that is held here would hold this
        try:
            work, given = coroutine.send, (yield awaited)
        except BaseException as error:
            work, given = coroutine.throw, error

Exchanges, Connection = app.web.exchange.ExchangeMiddleware, app.server.connection.Connection
answer, receive = Exchanges.__call__, Connection.data_received

async def in_timed_steps(self, scope, *both):
    if scope["type"] != "http":
        return await answer(self, scope, *both)
    await in_steps(answer(self, scope, *both), lambda: f"{scope['method']} {scope['raw_path']}")

def in_timed_pieces(self, data):
    timed(receive, self, data, who=lambda: repr(bytes(data[:200])))

Exchanges.__call__, Connection.data_received = in_timed_steps, in_timed_pieces
"""


class Sent:
    """What was sent of late, and what came back."""

    def __init__(self, running):
        self.running = running
        self.bytes = {}
        self.statuses = Counter()
        self.unexpected = []
        self.stored = set()
        self.cases = 0

    async def say(self, number, pieces, quiet=QUIET_SECONDS):
        """Send these pieces and listen until the service has nothing more to say; the answers as they came."""
        self.bytes[number] = self.bytes.get(number, b"") + b"".join(pieces)
        received = bytearray()
        reader, writer = await asyncio.open_connection("127.0.0.1", self.running.port)
        try:
            with suppress(ConnectionError):
                for piece in pieces:
                    writer.write(piece)
                    await asyncio.sleep(0)  # so that each may be read by itself
                ended = False
                while True:
                    try:
                        async with asyncio.timeout(PATIENCE if ended else quiet):
                            block = await reader.read(65536)
                    except TimeoutError:
                        assert not ended, f"case {number} was never answered"
                        with suppress(OSError):  # the service has hung up meanwhile; the next look finds that
                            writer.write_eof()
                        ended = True
                        continue
                    if not block:
                        break
                    received += block
        finally:
            writer.close()
        said = [int(status) for status in re.findall(rb"(?m)^HTTP/1\.1 ([0-9]{3}) ", received)]
        self.statuses.update(said)
        if any(status >= 500 for status in said):
            self.unexpected.append((number, bytes(received[:500])))
        return bytes(received)

    async def case(self, number, good, sequels):
        chance = Random(number)
        place = b"%08d" % number
        if chance.randrange(3):
            request = chance.choice(good).replace(PLACE, place)
            await self.say(number, cut_up(chance, damaged(chance, request)))
            return
        lines = chance.choice(list(SEQUENCES.values()))
        begin = f"POST {UPLOADS} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n" + "".join(
            f"{line}\r\n" for line in lines
        )
        answered = await self.say(number, [f"{begin}\r\n".encode()], quiet=PATIENCE)
        key = re.search(rb"(?i)\r\nlocation: ([^\r]+)", answered)
        assert key, answered
        for _ in range(chance.randint(1, 4)):
            request = chance.choice(sequels).replace(PLACE, place).replace(RESOURCE.encode(), key[1])
            await self.say(number, cut_up(chance, damaged(chance, request) if chance.randrange(4) else request))

    def look(self):
        """Every new file of the store is one that was sent. They stay: the sweep and the scrub would miss them."""
        for path in (self.running.store / "files").rglob("*"):
            if path in self.stored or not path.is_file():
                continue
            content = path.read_bytes()
            named = re.search(rb"case (\d{8})", content)
            likely = self.bytes.get(int(named[1]), b"") if named else b"hello"
            if not was_sent(content, likely):
                assert any(was_sent(content, one) for one in self.bytes.values()), (path, content)
            self.stored.add(path)

    def overheard(self):
        """The log holds no error, no line that is none, no control character; then it is forgotten."""
        with self.running._news:
            assert [line for line in self.running.lines if re.search(r"[\x00-\x09\x0b-\x1f\x7f-\x9f]", line)] == []
            assert self.running.said("error") + self.running.said("critical") + self.running.said("none") == []
            self.running.lines.clear()
            self.running.events.clear()


async def send_all(running, sent):
    until = time.monotonic() + SECONDS
    for first in range(FIRST, FIRST + COUNT, ROUND):
        if time.monotonic() > until:
            break
        # What was cut off late may land late: the round before is kept in mind.
        sent.bytes = {number: one for number, one in sent.bytes.items() if number >= first - ROUND}
        visitor = await asyncio.to_thread(Visitor, running)  # some cases end the session, or delete the file
        good, sequels = await asyncio.to_thread(good_requests, visitor), good_sequels(visitor)
        numbers = iter(range(first, min(first + ROUND, FIRST + COUNT)))

        async def one_after_another(numbers=numbers, good=good, sequels=sequels):
            for number in numbers:
                await sent.case(number, good, sequels)

        async with asyncio.TaskGroup() as group:
            for _ in range(AT_ONCE):
                group.create_task(one_after_another())
        sent.look()
        sent.overheard()
        assert sent.unexpected == []
        sent.cases = min(first + ROUND, FIRST + COUNT) - FIRST


def loop_lag(metrics):
    """How often the event loop was looked at, and how often it was more than 50 ms late, by everybody's clock."""
    counted = dict(
        re.findall(r'^waybill_event_loop_lag_seconds_(count|bucket{le="0.05"})\S* ([0-9.e+]+)$', metrics, re.M)
    )
    looks = float(counted["count"])
    return int(looks), int(looks - float(counted['bucket{le="0.05"}']))


@pytest.mark.slow
def test_no_request_brings_a_5xx_a_stall_or_a_wrong_byte(running, capsys):
    sent = Sent(running)
    began = time.monotonic()
    asyncio.run(send_all(running, sent))
    took = time.monotonic() - began
    with running.client() as client:
        answer = client.put(f"{UPLOADS}/last", content=b"hello")
        assert answer.json()["status"] == "completed"
        looks, late = loop_lag(client.get("/metrics").text)
    times = psutil.Process(running.pid).cpu_times()
    slowest = json.loads((running.directory / "slowest").read_text())
    assert running.stop() == 0
    assert [path for path in (running.store / "staging").rglob("*") if path.is_file() and path.name != "lock"] == []
    with capsys.disabled() if "FUZZ_REQUESTS" in os.environ else nullcontext():
        requests = sum(sent.statuses.values())
        sys.stdout.write(f"""
requests: cases                {sent.cases:>10,}   in {took:,.0f} s, {sent.cases / took:,.0f}/s
  answers                      {requests:>10,}   of them 5xx: {sum(n for s, n in sent.statuses.items() if s >= 500)}
  files stored, all compared   {len(sent.stored):>10,}
  loop later than 50 ms        {late:>10,}   of {looks:,} looks, by the clock of a machine that others use too
  longest step of the loop     {slowest["seconds"] * 1000:>10.1f} ms of CPU: {slowest["case"][:100]}
  CPU of the service           {times.user + times.system:>10,.0f} s
  {", ".join(f"{status}: {count:,}" for status, count in sorted(sent.statuses.items()))}
""")
    assert slowest["seconds"] <= STALL_SECONDS, slowest
