"""Restoring a backup: into an empty store and an empty database, and nowhere else.

    every file → the key → all durable → the database → its rows are marked whose files the backup lacks

The database comes last: as long as it is empty no missing file is promised, and a service that is started too early
takes the store for that of another database and leaves it alone.
"""

import asyncio
import os
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Final

import structlog

from app.backup.snapshots import KEY_FILE, Snapshot, Torn, copy_file, digest_of
from app.cancellation import run_to_completion
from app.db import dump
from app.db.database import Db
from app.errors import Unusable
from app.model import Damage
from app.storage.local import syscalls
from app.storage.local.staged import FILE_MODE
from app.uploads import records as upload_records

log = structlog.stdlib.get_logger("waybill.backup")

_AT_ONCE: Final = 500
_FOREIGN: Final = {"lost+found"}


@dataclass(slots=True)
class Restored:
    """The outcome of a restore; `lost` are the uploads whose files the backup lacks, or holds damaged."""

    snapshot: str
    files: int = 0
    unfinished: int = 0
    secret_key: bool = False
    deleted: list[str] = field(default_factory=list)
    lost: list[str] = field(default_factory=list)

    def as_dict(self) -> dict[str, object]:
        return asdict(self)


async def restore(
    snapshot: Snapshot, store: Path, open_database: Callable[[], Db], url: str, schema: str | None, *, now_us: int
) -> Restored:
    """Restore the snapshot into the store and the database at `url`, which `open_database` opens once it is loaded.

    Raises:
        Unusable: one of them is not empty, the snapshot is incomplete, or of another kind of database.
        Unavailable: the database could not be filled; the store has all its files then.
    """
    about = snapshot.about()
    restored = Restored(about.name, deleted=about.deleted, lost=about.lost)
    copy = snapshot.path / dump.filename(about.dialect)
    _require_empty(store)
    await dump.require_empty(url, schema, copy)
    await run_to_completion(asyncio.to_thread(_copy_all, snapshot, copy, store, restored))
    await dump.put(url, schema, copy)
    db = open_database()
    try:
        await db.open()
        await _mark(db, restored, now_us)
    finally:
        await db.close()
    return restored


async def _mark(db: Db, restored: Restored, now_us: int) -> None:
    """Record what became of the uploads whose files the backup lacks."""
    missing = Damage.MISSING.failure
    for at in range(0, max(len(restored.deleted), len(restored.lost)), _AT_ONCE):
        await upload_records.delete_uploads(db, restored.deleted[at : at + _AT_ONCE], now_us)
        await upload_records.fail_uploads(db, restored.lost[at : at + _AT_ONCE], missing.code, missing.detail)


def _require_empty(store: Path) -> None:
    try:
        store.mkdir(mode=0o700, parents=True, exist_ok=True)
        there = sorted(set(os.listdir(store)) - _FOREIGN)
    except OSError as error:
        raise Unusable(f"{store} cannot be used: {error.strerror}") from error
    if there:
        raise Unusable(f"{store} is not empty ({there[0]} is in it); a backup is restored into an empty store only")


def _copy_all(snapshot: Snapshot, database: Path, store: Path, restored: Restored) -> None:
    """Copy every file but the database's, which is only checked, and make the copies durable."""
    own = f"snapshots/{snapshot.name}/"
    for path, sha256 in snapshot.sums():
        source = snapshot.root / path
        if source == database:
            if digest_of(source) != sha256:
                raise Unusable(f"{source} is damaged")
            continue
        place = path.removeprefix(own)
        target = store / place
        try:
            copy_file(source, target, sha256=sha256, mode=FILE_MODE if place.startswith("files/") else 0o600)
        except (FileNotFoundError, Torn):
            log.error("file of the backup missing or damaged", path=path)
            if place.startswith("files/"):
                restored.lost.append(target.name)
            continue
        restored.files += place.startswith("files/")
        restored.unfinished += place.startswith("partial/")
        restored.secret_key |= place == KEY_FILE
    fd = os.open(store, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        syscalls.syncfs(fd)
    finally:
        os.close(fd)
