"""Exactly once: with a key, one upload, whoever dies, hangs up or goes away, and however often it is sent again."""

import asyncio
import hashlib
import random
import signal
from collections import Counter

import pytest

from tests.interop.clients import everything
from tests.support.cutting_proxy import CuttingProxy
from tests.support.postgres import Postgres
from tests.support.service import UPLOADS, Cut, ask, service
from tests.support.tally import TORTURE

__all__ = ["service"]

pytestmark = pytest.mark.slow

PAUSE = 0.05  # seconds between two attempts
AT_ONCE = 50
UPLOADERS, KILLS = (100, 20) if TORTURE else (12, 1)
OUTAGES = 5 if TORTURE else 1

# A process that dies where a file of that name says so, which it takes away; and whose claims soon run out.
QUICK = "import app.idempotency as keys\nkeys.LEASE_SECONDS = 1.0\n"
HASTY = f"{QUICK}from app.web import body\nbody.PACE_SECONDS = 1.0\n"  # and that soon sees that a client has vanished
MORTAL = f"""{QUICK}
import os, signal
from app.idempotency import records as claims
from app.uploads.ingest import Ingestion
from app.uploads.recording import Recorder
from app.storage.local import LocalStorage

def die(place):
    try:
        os.unlink(place)
    except FileNotFoundError:
        return
    os.kill(os.getpid(), signal.SIGKILL)

def mortal(owner, name):
    call = getattr(owner, name)
    async def called(*arguments, **named):
        die("before " + name)
        result = await call(*arguments, **named)
        die("after " + name)
        return result
    setattr(owner, name, called)

for owner, name in [
    (claims, "take"), (Ingestion, "write"), (LocalStorage, "publish"), (claims, "answer"), (Recorder, "_commit"),
]:
    mortal(owner, name)
"""
PLACES = ["after take", "after write", "before publish", "after publish", "after answer", "after _commit"]
QUICK_PLACES = {"sqlite": ["after publish", "after _commit"], "postgresql": ["after take", "after answer"]}


def keyed(name, headers):
    return {**headers, "Idempotency-Key": f'"{hashlib.sha256(name.encode()).hexdigest()}"'}


async def put(port, name, content, headers):
    return await ask(port, "PUT", f"{UPLOADS}/{name}", keyed(name, headers), content)


async def put_until_answered(port, name, content, headers):
    """Send it until somebody says that it is there. Returns the answer, and what came of the attempts before."""
    met = Counter()
    while True:
        try:
            answer = await put(await port(), name, content, headers)
        except Cut:
            met["cut"] += 1
        else:
            if answer.status == 201:
                return answer, met
            code = answer.json()["code"]
            assert code in {"in_progress", "unavailable", "incomplete_body", "too_slow"}, answer
            assert code not in {"in_progress", "unavailable"} or int(answer.headers["retry-after"]) <= 5
            met[code] += 1
        await asyncio.sleep(PAUSE)


def landed_once(running, headers, answers, contents):
    """Each is there once and whole, and everybody was told so."""
    with running.client(headers=headers) as client:
        completed = [record for record in everything(client) if record["status"] == "completed"]
        assert Counter(record["filename"] for record in completed) == dict.fromkeys(contents, 1)
        for record in completed:
            content = contents[record["filename"]]
            assert record["sha256"] == hashlib.sha256(content).hexdigest()
            assert client.get(record["links"]["content"]).content == content
    ids = {record["filename"]: record["id"] for record in completed}
    assert {name: answer.json()["id"] for name, answer in answers.items()} == ids


async def here(running):
    return running.port


def test_a_worker_killed_anywhere_leaves_an_upload_that_another_answers_or_does_once(service, database_url):
    """Two services over one store and one database, as two workers are; one of them dies, again and again."""
    kind = database_url.partition(":")[0]
    mortal = service(change=MORTAL, database_url=database_url)
    other = service(change=QUICK, database_url=database_url, storage_dir=mortal.store)
    headers, contents, answers = mortal.session(), {}, {}

    async def die_and_send_again(name, place):
        with pytest.raises(Cut):
            await put(mortal.port, name, contents[name], headers)
        return await put_until_answered(lambda: here(other), name, contents[name], headers)

    for number, place in enumerate(PLACES if TORTURE else QUICK_PLACES[kind]):
        if number:
            mortal.start()
        name = f"{place.replace(' ', '-')}.bin"
        contents[name] = place.encode() * (50_000 if place in {"after write", "before publish"} else 1)
        (mortal.directory / place).touch()
        answers[name], met = asyncio.run(die_and_send_again(name, place))
        assert mortal.wait() == -signal.SIGKILL
        assert ("idempotent-replayed" in answers[name].headers) == (place == "after _commit")
        assert (met["in_progress"] > 0) == (place != "after _commit")
        again = asyncio.run(put(other.port, name, contents[name], headers))
        assert (again.body, again.headers["idempotent-replayed"]) == (answers[name].body, "true")
    landed_once(other, headers, answers, contents)
    assert other.stop() == 0


def test_simultaneous_retries_on_two_workers_land_once(service, database_url):
    running = service(workers=2, database_url=database_url)
    headers = running.session()
    contents = {f"{number}.bin": random.Random(number).randbytes(100_000 * number) for number in range(4)}

    async def all_at_once(name, content):
        answers = await asyncio.gather(*(put(running.port, name, content, headers) for _ in range(AT_ONCE)))
        told = [answer for answer in answers if answer.status == 201]
        assert len([answer for answer in told if "idempotent-replayed" not in answer.headers]) == 1
        assert {answer.body for answer in told} == {told[0].body}
        assert {answer.json()["code"] for answer in answers if answer.status != 201} <= {"in_progress"}
        again, _ = await put_until_answered(lambda: here(running), name, content, headers)
        assert again.body == told[0].body
        return again

    answers = {name: asyncio.run(all_at_once(name, content)) for name, content in contents.items()}
    landed_once(running, headers, answers, contents)
    assert running.stop() == 0


def test_a_client_that_hangs_up_after_the_body_gets_its_answer_later(service, database_url):
    running = service(database_url=database_url)
    headers = running.session()
    contents = {f"{number}.bin": random.Random(number).randbytes(number * 20_000) for number in range(1, 21)}

    async def hang_up(name, content):
        lines = "".join(f"{each}: {value}\r\n" for each, value in keyed(name, headers).items())
        _, writer = await asyncio.open_connection("127.0.0.1", running.port)
        writer.write(
            f"PUT {UPLOADS}/{name} HTTP/1.1\r\nHost: x\r\nContent-Length: {len(content)}\r\n{lines}\r\n".encode()
        )
        writer.write(content)
        await writer.drain()
        writer.close()
        answer, _ = await put_until_answered(lambda: here(running), name, content, headers)
        return name, answer

    async def run():
        return dict(await asyncio.gather(*(hang_up(name, content) for name, content in contents.items())))

    landed_once(running, headers, asyncio.run(run()), contents)
    assert running.stop() == 0


def test_retries_land_once_through_cut_connections_and_killed_services(service, database_url):
    running = service(database_url=database_url, change=HASTY)
    headers = running.session()
    chance = random.Random(KILLS)
    contents = {f"{number}.bin": chance.randbytes(chance.randrange(400_000)) for number in range(UPLOADERS)}
    met, answers, news = Counter(), {}, asyncio.Event()

    async def send(name, content, port):
        answers[name], these = await put_until_answered(port, name, content, headers)
        met.update(these)
        news.set()

    async def run():
        with CuttingProxy(running.port, seed=KILLS, reach=500_000) as proxy:

            async def there():
                return proxy.port

            async with asyncio.TaskGroup() as group:
                for name, content in contents.items():
                    group.create_task(send(name, content, there))
                for number in range(KILLS):
                    while len(answers) < UPLOADERS * (number + 1) // (KILLS + 2):
                        news.clear()
                        await news.wait()
                    await asyncio.to_thread(running.kill)
                    await asyncio.to_thread(running.start)
                    proxy.upstream_port = running.port

    asyncio.run(run())
    assert met["cut"] >= UPLOADERS // 2
    landed_once(running, headers, answers, contents)
    assert running.stop() == 0


def test_retries_land_once_through_a_database_lost_while_rows_are_committed(service):
    """PostgreSQL is stopped under load, and comes back: nobody knows of some rows whether they were committed."""
    database = Postgres()
    try:
        running = service(database_url=database.create_database(), database_pool_size=3, change=QUICK)
        headers, contents, answers, met = running.session(), {}, {}, Counter()
        news = asyncio.Event()

        async def keep_sending(client, enough):
            for number in range(10_000):
                if enough.is_set():
                    return
                name = f"{client}-{number}"
                contents[name] = name.encode()
                answers[name], these = await put_until_answered(lambda: here(running), name, contents[name], headers)
                met.update(these)
                news.set()

        async def more(number):
            seen = len(answers)
            while len(answers) < seen + number:
                news.clear()
                await news.wait()

        async def run():
            enough = asyncio.Event()
            async with asyncio.TaskGroup() as group:
                for client in range(6):
                    group.create_task(keep_sending(client, enough))
                for _ in range(OUTAGES):
                    await more(12)
                    refused = len([event for event in running.events if event.get("status") == 503])
                    await asyncio.to_thread(database.stop, "immediate")
                    await asyncio.to_thread(running.wait_for, "answered", count=refused + 1, status=503)
                    await asyncio.to_thread(database.start)
                await more(12)
                enough.set()

        asyncio.run(run())
        assert met["unavailable"]
        landed_once(running, headers, answers, contents)
        assert running.stop() == 0
    finally:
        database.close()
