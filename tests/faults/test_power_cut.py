"""The power fails, at any moment: what a client was told is there when the service starts again, whole; no part shows.

F20, F21. Store and database lie on the same disk, as they do for most who run the service.
"""

import asyncio
import hashlib
import os
import random
import signal
import subprocess
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field

import pytest

from app import ids, main, secret_key
from app.db import migrate
from app.errors import UploadError
from app.history import HistoryQuery
from app.model import Status
from app.resumables import Appended
from app.sessions import records as session_records
from app.storage import NotStored
from app.uploads import records as upload_records
from tests.faults.disk import Disk, mounted
from tests.faults.ledger import PROTOCOLS, RESUMABLE, Ledger, content_of, name_of, new_session, settings_of
from tests.faults.storm import Storm
from tests.support.memory import quick_directory
from tests.support.postgres import Postgres
from tests.support.sender import Sender
from tests.support.service import Service
from tests.support.stores import cut_power, needs_root
from tests.support.tally import TORTURE
from tests.support.tools import tool

pytestmark = [pytest.mark.slow, needs_root]

SMALL, LARGE, PIECES = 3_000, 2_400_000, 2_200_000  # of a large one the second block is written beside its digest
MOMENTS = 4  # with TORTURE=1, all
FILE_SYSTEMS = ["ext4", "xfs"] if TORTURE else ["ext4"]
CUTS = {"sqlite": 40, "postgresql": 15} if TORTURE else {"sqlite": 1}


class Enough(Exception):
    """It has come as far as it should."""


@dataclass
class Story:
    """What was told, and when."""

    disk: Disk
    begun: int = 0
    keys: list[str] = field(default_factory=list)
    files: dict[str, int] = field(default_factory=dict)
    """By name, when it was acknowledged."""
    offsets: list[tuple[int, str, str, int]] = field(default_factory=list)
    """When, of which name, with which key, how far."""


async def send_everything(running, ledger, story, protocol):
    """One small, one large, and several at once, which are flushed together; of a resumable one a beginning, too."""
    headers = await new_session(running.port)
    story.begun = story.disk.now()

    async def port():
        return running.port

    async def send(number, size, *, until=None):
        name = name_of(protocol, number, size)
        if protocol not in RESUMABLE:
            await ledger.send(port, headers, name, random.Random(0))
        else:

            def told(offset):
                key = sender.path.rpartition("/")[2]
                story.offsets.append((story.disk.now(), name, key, offset))
                if until is not None and offset >= until:
                    raise Enough

            chance = random.Random(number)
            sender = Sender(name, content_of(name), headers, RESUMABLE[protocol], port, told, chance, PIECES)
            await sender.run()
            ledger.acknowledge(headers, name, hashlib.sha256(content_of(name)).hexdigest())
        story.files[name] = story.disk.now()

    await send(1, SMALL)
    await send(2, LARGE)
    async with asyncio.TaskGroup() as group:
        for number in range(3, 7):
            group.create_task(send(number, SMALL * number))
    if protocol in RESUMABLE:
        with suppress(Enough):
            await send(7, LARGE, until=PIECES)


async def recover(settings, row, story, moment):
    """Start as the service does, sweep, go on with what was begun, and see that every promise is kept."""
    async with main.stores(settings) as (storage, db):
        await migrate.migrate(db, now_us=ids.now_us())
        keys = secret_key.secret_keys(settings)
        row.lost += moment >= story.begun and keys != story.keys  # with it every session is
        async with main.receiving(settings, storage, db) as ways_in:
            swept = await ways_in.sweeper.once()
            row.lost += swept.records_lost
            told = {name: (key, offset) for when, name, key, offset in story.offsets if when <= moment}
            for name, (key, offset) in told.items():
                await go_on(ways_in.resumes, row, name, key, offset)
        shown = {}
        for session in await session_records.list_sessions(db, 10):
            page = await upload_records.list_uploads(db, session.id, HistoryQuery(), after=None, page_size=100)
            completed = [upload for upload in page.uploads if upload.status is Status.COMPLETED]
            row.wrong += len(completed) - len({upload.filename for upload in completed})
            shown |= {upload.filename: upload.sha256 for upload in completed}
        for stored in await upload_records.list_stored(db, "", 100):
            try:
                row.partial += (stored.size, stored.sha256) != await storage.digest(stored.id)
            except NotStored:
                row.partial += 1
        row.files += len(await storage.strays()) + len(list((settings.storage_dir / "staging").glob("*/*")))
    row.wrong += sum(digest != hashlib.sha256(content_of(name)).hexdigest() for name, digest in shown.items())
    promised = {name for name, when in story.files.items() if when <= moment} | told.keys()
    row.lost += len(promised - shown.keys())


async def go_on(resumes, row, name, key, offset):
    """An offset that was told holds; what is missing after it comes, and then it is whole."""
    content = content_of(name)
    try:
        resource = await resumes.find(key, None, newest=True)
        row.lost += resource.offset < offset
        if not resource.completed:
            async with resumes.append(key, None, Appended(resource.offset, length=len(content))) as appending:
                await appending.write(content[resource.offset :])
                await appending.keep()
    except UploadError:
        row.lost += 1


@pytest.fixture
def place():
    with quick_directory() as directory:
        directory.chmod(0o755)  # PostgreSQL runs as nobody
        yield directory


@pytest.mark.parametrize("protocol", PROTOCOLS if TORTURE else ["form", "tus"])
def test_a_power_cut_at_every_moment_leaves_acknowledged_uploads(place, tally, protocol):
    disk = Disk(place)
    ledger = Ledger.of(tally, "power cut at each write", "sqlite", (protocol,))
    row, story = ledger.rows[protocol], Story(disk)
    with disk.remembering() as volume:
        running = Service(volume, database_url=f"sqlite:///{volume}/waybill.db")
        try:
            running.start()
            asyncio.run(send_everything(running, ledger, story, protocol))
            assert running.said("error") == []
        finally:
            running.close()
        settings = settings_of(running)
        story.keys = secret_key.secret_keys(settings)
    moments = disk.moments()
    chance = random.Random(0)
    for _, moment in disk.images(moments if TORTURE else chance.sample(moments, MOMENTS), torn=1, chance=chance):
        asyncio.run(recover(settings, row, story, moment))
        row.injected += 1
    row.is_clean()


@pytest.fixture(params=FILE_SYSTEMS)
def image(request, place):
    """A disk with a file system on it."""
    image = place / request.param
    image.touch()
    os.truncate(image, 1 << 30)
    subprocess.run([tool(f"mkfs.{request.param}"), "-q", str(image)], check=True)
    return image


@pytest.mark.parametrize("database", CUTS)
def test_a_power_cut_at_a_random_time_leaves_acknowledged_uploads(image, place, tally, database):
    ledger = Ledger.of(tally, f"power cut, {image.name}", database)
    volume = place / "volume"
    volume.mkdir()
    with ExitStack() as stack:
        disk = stack.enter_context(ExitStack())
        disk.enter_context(mounted(image, volume))
        volume.chmod(0o755)
        url, postgres = f"sqlite:///{volume}/waybill.db", None
        if database == "postgresql":
            postgres = Postgres(volume)
            stack.callback(postgres.close)
            url = postgres.create_database()
        running = Service(volume, database_url=url)
        stack.callback(running.close)
        os.sync()
        running.start()

        def cut():
            running.send(signal.SIGSTOP)  # nobody is told anything afterwards
            cut_power(volume)
            running.kill()
            if postgres:
                postgres.kill()
            disk.close()
            disk.enter_context(mounted(image, volume))
            if postgres:
                postgres.start()

        async def die():
            await asyncio.to_thread(cut)

        asyncio.run(Storm(running, ledger, die).rage(CUTS[database]))
    ledger.is_clean()
