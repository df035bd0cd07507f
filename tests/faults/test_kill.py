"""kill -9 in the middle of uploads: what was acknowledged is there and whole, and of the rest nothing shows."""

import asyncio
import hashlib
import random
import subprocess

import pytest

from tests.support.service import HISTORY, UPLOADS, Cut, ask, service
from tests.support.tools import tool

__all__ = ["service"]

pytestmark = pytest.mark.slow

AT_ONCE = 200
SMALL, LARGE = 3_000, 600_000  # kept in memory until they are published, and staged in a file
STALLED = 3


def contents(count, *, seed):
    """Names and bytes; one in ten too large to wait in memory."""
    chance = random.Random(seed)
    return {
        f"{seed}-{number}.bin": chance.randbytes(chance.randrange(LARGE if number % 10 == 0 else SMALL))
        for number in range(count)
    }


async def put_all(port, headers, files, acknowledged, enough=None):
    """Send all files at once; those that are acknowledged are noted, with the digest they were told to have."""

    async def put(name):
        try:
            answer = await ask(port, "PUT", f"{UPLOADS}/{name}", headers, files[name])
        except Cut:
            return
        assert answer.status == 201
        acknowledged[name] = answer.json()
        if enough is not None and len(acknowledged) >= enough[0]:
            enough[1].set()

    async with asyncio.TaskGroup() as group:
        for name in files:
            group.create_task(put(name))


async def get_all(port, headers, links):
    answers = await asyncio.gather(*(ask(port, "GET", link, headers) for link in links.values()))
    assert {answer.status for answer in answers} == {200}
    return {name: answer.body for name, answer in zip(links, answers, strict=True)}


async def stall(port, headers, staging):
    """Uploads that have sent enough to lie in staging, and then nothing more; returns how to hang up."""
    writers = []
    for number in range(STALLED):
        _, writer = await asyncio.open_connection("127.0.0.1", port)
        lines = "".join(f"{name}: {value}\r\n" for name, value in headers.items())
        head = f"PUT {UPLOADS}/stalled-{number} HTTP/1.1\r\nHost: x\r\nContent-Length: {2 * LARGE}\r\n{lines}\r\n"
        writer.write(head.encode() + bytes(LARGE))
        await writer.drain()
        writers.append(writer)
    while len(list(staging.glob("*/*"))) < STALLED:  # noqa: ASYNC110  # another process makes them
        await asyncio.sleep(0.01)
    return lambda: [writer.close() for writer in writers]


def everything(client):
    """All records of the session, over all pages."""
    items, page = [], client.get(HISTORY, params={"limit": 500})
    while True:
        assert page.status_code == 200
        items += page.json()["items"]
        if "next" not in page.links:
            return items
        page = client.get(page.links["next"]["url"])


def test_acknowledged_uploads_survive_and_nothing_else_shows(service, database_url):
    running = service(database_url=database_url)
    headers = running.session()
    first, second = contents(AT_ONCE, seed=1), contents(AT_ONCE, seed=2)
    acknowledged = {}

    async def load_and_kill():
        await put_all(running.port, headers, first, acknowledged)
        assert acknowledged.keys() == first.keys()
        hang_up = await stall(running.port, headers, running.store / "staging")
        enough = (AT_ONCE + AT_ONCE // 4, asyncio.Event())
        sending = asyncio.create_task(put_all(running.port, headers, second, acknowledged, enough))
        await enough[1].wait()
        running.kill()
        await sending
        hang_up()

    asyncio.run(load_and_kill())
    assert len(list((running.store / "staging").glob("*/*"))) >= STALLED
    [dead] = [owner.name for owner in (running.store / "staging").iterdir()]

    running.start()
    swept = running.wait_for("swept")
    assert swept["staged_removed"] >= STALLED
    assert [owner.name for owner in (running.store / "staging").iterdir()] != [dead]
    assert list((running.store / "staging").glob("*/*")) == []

    sent = first | second
    with running.client(headers=headers) as client:
        listed = {item["filename"]: item for item in everything(client)}
        assert listed.keys() >= acknowledged.keys()
        assert listed.keys() <= sent.keys()
        for name, item in listed.items():
            assert item == acknowledged.get(name, item)
            assert item["status"] == "completed"
            assert item["sha256"] == hashlib.sha256(sent[name]).hexdigest()
    links = {name: item["links"]["content"] for name, item in listed.items()}
    assert asyncio.run(get_all(running.port, headers, links)) == {name: sent[name] for name in listed}
    assert running.stop() == 0


def test_uploads_acknowledged_to_curl_survive(service, tmp_path):
    """The same with `curl --parallel`, a client that is nobody's own."""
    running = service()
    headers = running.session()
    sent = contents(AT_ONCE, seed=3)
    for name, content in sent.items():
        (tmp_path / name).write_bytes(content)
    jobs = [
        f'url = "{running.url}{UPLOADS}/{name}"\nupload-file = "{tmp_path / name}"\noutput = "/dev/null"\nsilent\n'
        f'header = "Cookie: {headers["Cookie"]}"\nwrite-out = "%{{stderr}}done %{{http_code}} {name}\\n"\n'
        for name in sent
    ]
    (tmp_path / "jobs").write_text("next\n".join(jobs))
    options = ["--parallel", "--parallel-immediate", "--parallel-max", "50", "--config", tmp_path / "jobs"]
    lines = []
    command = [tool("curl"), *options]
    with subprocess.Popen(command, stdin=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True) as curl:
        for line in curl.stderr:  # its standard output would be buffered
            if line.startswith("done "):
                lines.append(line.split()[1:])
                if len(lines) == AT_ONCE // 4:
                    running.kill()
    acknowledged = {name for status, name in lines if status == "201"}
    assert AT_ONCE // 4 <= len(acknowledged) < AT_ONCE
    assert {status for status, _ in lines} <= {"201", "100", "000"}  # done; told to go on; never answered

    running.start()
    with running.client(headers=headers) as client:
        listed = {item["filename"]: item["sha256"] for item in everything(client)}
    assert listed.keys() >= acknowledged
    assert listed == {name: hashlib.sha256(sent[name]).hexdigest() for name in listed}
    assert running.stop() == 0
