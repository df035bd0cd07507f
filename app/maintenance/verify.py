"""Verification: every stored file is compared with its record, and every record with its file.

The comparison serves both `waybill verify`, which is fast, and the scrub (`scrub.py`), which is slow.
"""

from collections.abc import AsyncIterator, Awaitable, Callable, Collection
from dataclasses import asdict, dataclass, field
from typing import Final

import structlog

from app.db.database import Db
from app.db.queryable import Queryable
from app.model import Damage, Status
from app.plausibility import too_many
from app.sessions import totals_records
from app.storage import NotStored, Pace, Replaced, Storage, Unreadable, Withheld
from app.uploads import records as upload_records
from app.uploads.records import StoredRecord

log = structlog.stdlib.get_logger("waybill.verify")

_AT_ONCE: Final = 500
DOUBTFUL: Final = {Damage.MISSING, Damage.REPLACED, Damage.UNREADABLE, Damage.WITHHELD}
"""The kinds of damage that a wrong directory, a wrong user or a broken connection to the disk shows as well."""
_READ: Final = {None, Damage.RESIZED, Damage.ALTERED}
_GRACE_SECONDS: Final = 60.0  # a commit group may be between its files and its rows
# After a crash between the two, the file of a resumable upload has a record that is not complete yet; the next sweep
# completes it.
_OWNING: Final = {Status.COMPLETED, Status.UPLOADING, Status.PROCESSING}


@dataclass(slots=True)
class Verified:
    """The result of a verification: what was read and, by id, every mismatch; damaged uploads by kind of damage.

    `recounted` are sessions whose totals were wrong, and have been corrected.
    """

    files: int = 0
    bytes: int = 0
    missing: list[str] = field(default_factory=list)
    replaced: list[str] = field(default_factory=list)
    resized: list[str] = field(default_factory=list)
    altered: list[str] = field(default_factory=list)
    unreadable: list[str] = field(default_factory=list)
    withheld: list[str] = field(default_factory=list)
    without_record: list[str] = field(default_factory=list)
    foreign: list[str] = field(default_factory=list)
    mended: list[str] = field(default_factory=list)
    recounted: list[str] = field(default_factory=list)

    @property
    def sound(self) -> bool:
        return not (any(getattr(self, damage) for damage in Damage) or self.without_record or self.foreign)

    @property
    def doubt(self) -> str | None:
        """The reason to suspect a wrong database, directory or user, rather than damage."""
        not_had = sum(len(getattr(self, damage)) for damage in DOUBTFUL)
        records_, files = self.files + not_had, self.files + len(self.without_record)
        if too_many(not_had, records_):
            return (
                f"{not_had} of {records_} records have no file that can be read; is this their directory, and our user?"
            )
        if too_many(len(self.without_record), files):
            return f"{len(self.without_record)} of {files} files have no record; is this their database?"
        return None

    def as_dict(self) -> dict[str, object]:
        return {"sound": self.sound, "doubt": self.doubt, **asdict(self)}


async def verify(storage: Storage, db: Db, *, on_file: Callable[[], None] = lambda: None) -> Verified:
    """Read and digest every completed upload; then look for files that no completed upload owns.

    `on_file` is called after each upload. Damage is reported and not marked: that is for
    the scrub, which considers all of the store before it marks anything. Marked records whose files are
    intact are repaired. Uploads that are deleted meanwhile are no damage.
    """
    found = Verified()

    async def count(read: int) -> None:
        found.bytes += read

    async for rows in pages(upload_records.list_stored, db):
        damaged = {}
        for row in rows:
            damage = await examine(storage, row, count)
            found.files += damage in _READ
            if damage is not None:
                damaged[row.id] = damage
            on_file()
        for upload_id in await still_completed(db, damaged):
            getattr(found, damaged[upload_id]).append(upload_id)
    async for row, damage in look_again(storage, db, count):
        found.files += damage in _READ
        (found.mended if damage is None else getattr(found, damage)).append(row.id)
        on_file()
    async for keys in unowned(storage, db):
        found.without_record += keys
    found.foreign = await storage.strays()
    async for session_id in totals_records.recount(db):
        log.error("session totals corrected", session=session_id)
        found.recounted.append(session_id)
    return found


async def examine(storage: Storage, row: StoredRecord, pace: Pace | None = None) -> Damage | None:
    """Compare a stored file with its record; return how it differs, None if it does not.

    A file that differs is read twice: the second reading tells a fault of the disk from one in
    transmission.
    """
    return await _difference(storage, row, pace) and await _difference(storage, row, pace)


async def _difference(storage: Storage, row: StoredRecord, pace: Pace | None) -> Damage | None:
    try:
        size, sha256 = await storage.digest(row.id, pace)
    except Replaced:
        return Damage.REPLACED
    except NotStored:
        return Damage.MISSING
    except Unreadable:
        return Damage.UNREADABLE
    except Withheld:
        return Damage.WITHHELD
    if size != row.size:
        return Damage.RESIZED
    return None if sha256 == row.sha256 else Damage.ALTERED


async def still_completed(db: Queryable, ids: Collection[str]) -> list[str]:
    """The uploads among these that have been neither deleted nor marked meanwhile."""
    statuses = await upload_records.statuses_of(db, list(ids)) if ids else {}
    return [upload_id for upload_id in ids if statuses.get(upload_id) == Status.COMPLETED]


async def look_again(storage: Storage, db: Db, pace: Pace) -> AsyncIterator[tuple[StoredRecord, Damage | None]]:
    """Examine damaged uploads again; yield each with the damage that remains. Records of intact files are repaired."""
    async for rows in pages(upload_records.list_damaged, db):
        for row in rows:
            damage = await examine(storage, row, pace)
            if damage is None:
                marked = bool(await upload_records.repair_uploads(db, [row.id]))
                log.info("damaged upload repaired", upload=row.id)
            else:
                upload = (await upload_records.list_these(db, [row.id])).get(row.id)
                marked = upload is not None and upload.damaged
            if marked:  # else the upload was deleted meanwhile
                yield row, damage


async def unowned(storage: Storage, db: Db) -> AsyncIterator[list[str]]:
    """Find files that no record owns, in slices. Only the sweep moves or removes them."""
    async for files in storage.walk(_GRACE_SECONDS):
        keys = [file.key for file in files if file.settled]
        statuses = await upload_records.statuses_of(db, keys)
        unowned_keys = [key for key in keys if statuses.get(key) not in _OWNING]
        failed = await upload_records.list_these(
            db, [key for key in unowned_keys if statuses.get(key) == Status.FAILED]
        )
        gone = await storage.missing([key for key in unowned_keys if statuses.get(key) == Status.DELETED])
        damaged = {upload.id for upload in failed.values() if upload.damaged}
        yield [key for key in unowned_keys if key not in damaged and key not in gone]


async def pages(
    of: Callable[[Queryable, str, int], Awaitable[list[StoredRecord]]], db: Queryable, after_id: str = ""
) -> AsyncIterator[list[StoredRecord]]:
    """Iterate over a listing by id from behind `after_id`, page by page."""
    while rows := await of(db, after_id, _AT_ONCE):
        yield rows
        after_id = rows[-1].id
