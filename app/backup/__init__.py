"""Backups: the database at one moment, and every file that it names, in a directory that keeps several snapshots.

    the database's moment → its copy → unfinished files → published files → all durable → the snapshot's name

The database comes first: a file is there before its row, and stays until its row says that it is deleted, so what
is copied after the database holds all that the copy names. Uploads deleted since are noted, and restored as deleted.
"""

import asyncio
import json
import shutil
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Final, TextIO

import structlog

from app.backup.snapshots import ABOUT, KEY_FILE, SUMS, About, Backups, Torn, copy_file, digest_of
from app.cancellation import run_to_completion
from app.db import dump
from app.db.database import Db
from app.db.queryable import Queryable
from app.maintenance.verify import pages
from app.model import Status, rfc3339
from app.resumables import records as resumable_records
from app.resumables.records import AcknowledgedFile
from app.storage import digest_state
from app.storage.local.layout import shard_of, unfinished_name
from app.uploads import records as upload_records

log = structlog.stdlib.get_logger("waybill.backup")

_AT_ONCE: Final = 500


async def back_up(store: Path, db: Db, url: str, backups: Backups, *, now_us: int, keep: int) -> About:
    """Add a snapshot of the database at `url` and of the store, which are in use; remove all but the `keep` newest."""
    backups.require_apart_from(store)
    with backups.open():
        making = _Making(store, backups, About(_name(now_us), rfc3339(now_us), db.dialect))
        try:
            about = await making.run(db, url)
        except BaseException:
            await run_to_completion(asyncio.to_thread(shutil.rmtree, making.draft, ignore_errors=True))
            raise
        await asyncio.to_thread(backups.prune, keep)
        return about


def _name(now_us: int) -> str:
    return rfc3339(now_us).replace(":", "").replace("-", "")


class _Making:
    """A snapshot that is being made."""

    def __init__(self, store: Path, backups: Backups, about: About) -> None:
        self._store, self._backups, self._about = store, backups, about
        self._known = {path: sha256 for each in backups.snapshots() for path, sha256 in each.sums()}
        self._missing: list[str] = []
        self.draft = backups.begin(about.name)

    async def run(self, db: Db, url: str) -> About:
        database, listed = self.draft / dump.filename(db.dialect), self.draft / "listed"
        async with dump.reader(db, url) as reader:
            await reader.copy(database)
            unfinished = await _unfinished(reader.connection)
            with listed.open("w", encoding="ascii") as rows:
                async for page in pages(upload_records.list_stored, reader.connection):
                    rows.writelines(f"{row.id} {row.size} {row.sha256}\n" for row in page)
        with (self.draft / SUMS).open("w", encoding="ascii") as sums:
            await self._step(partial(self._copy_unnamed, sums, database, unfinished))
            with listed.open(encoding="ascii") as rows:
                while some := list(islice(rows, _AT_ONCE)):
                    await self._step(partial(self._copy_published, sums, some))
        listed.unlink()
        await self._explain(db)
        (self.draft / ABOUT).write_text(json.dumps(self._about.as_dict(), indent=2) + "\n", encoding="utf-8")
        await self._step(partial(self._backups.finish, self._about.name))
        return self._about

    async def _step(self, work: Callable[[], object]) -> None:
        await run_to_completion(asyncio.to_thread(work))

    def _copy_unnamed(self, sums: TextIO, database: Path, unfinished: list[AcknowledgedFile]) -> None:
        """Copy unfinished files and the key into the snapshot itself, and list them and the database in `sums`."""
        digests = {database.name: digest_of(database)}
        for file in unfinished:
            digest = self._copy_unfinished(file)
            if digest is not None:
                digests[f"partial/{unfinished_name(file.upload_id, file.fence)}"] = digest
                self._about.unfinished += 1
        with suppress(FileNotFoundError):
            digests[KEY_FILE] = copy_file(self._store / KEY_FILE, self.draft / KEY_FILE, sha256=None, mode=0o600)
            self._about.secret_key = True
        sums.writelines(f"{digest}  snapshots/{self._about.name}/{path}\n" for path, digest in digests.items())

    def _copy_unfinished(self, file: AcknowledgedFile) -> str | None:
        """Copy what had been received of an upload; None if the upload has ended meanwhile, and its bytes are gone."""
        name, shard = unfinished_name(file.upload_id, file.fence), shard_of(file.upload_id)
        running = digest_state.resumed(file.digest_state, file.offset)
        wanted = None if running is None else running.hexdigest()
        # Since the database was copied the file may have been published, or the upload continued in a copy.
        others = sorted((self._store / "partial").glob(f"{file.upload_id}.*"))
        for source in (self._store / "partial" / name, self._store / "files" / shard / file.upload_id, *others):
            with suppress(FileNotFoundError, Torn):
                return copy_file(source, self.draft / "partial" / name, sha256=wanted, size=file.offset, mode=0o600)
        log.warning("unfinished upload ended during backup", upload=file.upload_id)
        return None

    def _copy_published(self, sums: TextIO, rows: list[str]) -> None:
        for row in rows:
            key, size, sha256 = row.split()
            if self._has(key, int(size), sha256):
                self._about.files += 1
                self._about.bytes += int(size)
                sums.write(f"{sha256}  files/{shard_of(key)}/{key}\n")
            else:
                self._missing.append(key)

    def _has(self, key: str, size: int, sha256: str) -> bool:
        """Copy a file into the pool; False if that is impossible. A file of an earlier snapshot is not read again."""
        path = f"files/{shard_of(key)}/{key}"
        target = self._backups.root / path
        there = target.is_file() and target.stat().st_size == size
        if there and (self._known.get(path) == sha256 or digest_of(target) == sha256):
            return True
        for source in (self._store / path, self._store / "trash" / key):  # a sweep may have set it aside by mistake
            with suppress(FileNotFoundError, Torn):
                copy_file(source, target, sha256=sha256)
                self._about.copied += 1
                return True
        return False

    async def _explain(self, db: Db) -> None:
        """Sort the files that could not be copied: deleted if their records say so by now, lost otherwise."""
        for at in range(0, len(self._missing), _AT_ONCE):
            keys = self._missing[at : at + _AT_ONCE]
            statuses = await upload_records.statuses_of(db, keys)
            for key in keys:
                gone = statuses.get(key, Status.DELETED) == Status.DELETED
                (self._about.deleted if gone else self._about.lost).append(key)


async def _unfinished(db: Queryable) -> list[AcknowledgedFile]:
    found: list[AcknowledgedFile] = []
    while page := await resumable_records.list_unfinished_files(db, found[-1].upload_id if found else "", _AT_ONCE):
        found += page
    return found
