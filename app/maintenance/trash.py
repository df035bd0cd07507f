"""The trash, compared with the database: files are put back if a record names them, removed if none ever did."""

from collections.abc import Collection
from typing import Final, NamedTuple

import structlog

from app.db.database import Db
from app.errors import UploadError
from app.model import DAMAGED, LOST, Status, Upload
from app.resumables import records as resumable_records
from app.storage import Aside, Storage
from app.uploads import records as upload_records

log = structlog.stdlib.get_logger("waybill.trash")

_AT_ONCE: Final = 500
_NAMING: Final = {Status.COMPLETED, Status.PROCESSING, Status.UPLOADING}
"""The statuses of a record that promises bytes, now or soon."""


class LookedOver(NamedTuple):
    """The findings and actions of one look over the trash.

    `unknown` published files have no record, and no crash explains that; `unneeded` files may go.
    """

    unknown: int = 0
    unneeded: tuple[Aside, ...] = ()
    put_back: int = 0
    repaired: int = 0


async def look_over(storage: Storage, db: Db, *, keep_seconds: float, keep_unfinished_seconds: float) -> LookedOver:
    """Put back every file that a record names, and find out which of the others may be removed.

    A published file may go when its record says that it was deleted or refused, or when it
    has no record and the process that published it died before there could be one. One that
    has no record for another reason was known to another database: it stays until an operator
    decides. An unfinished file may go when its upload has ended, goes on in another file, or is
    unknown and would have expired.
    """
    found = LookedOver()
    files = await storage.aside()
    for at in range(0, len(files), _AT_ONCE):
        these = files[at : at + _AT_ONCE]
        published = await _look_at_published(storage, db, [file for file in these if file.fence is None], keep_seconds)
        partials = [file for file in these if file.fence is not None]
        known = await resumable_records.list_files(db, [file.key for file in partials])
        unneeded = [
            file
            for file in partials
            if file.age >= (keep_seconds if file.key in known else keep_unfinished_seconds)
            and not (file.key in known and known[file.key].fence == file.fence)
        ]
        found = LookedOver(
            found.unknown + published.unknown,
            (*found.unneeded, *published.unneeded, *unneeded),
            found.put_back + published.put_back,
            found.repaired + published.repaired,
        )
    return found


async def _look_at_published(storage: Storage, db: Db, files: list[Aside], keep_seconds: float) -> LookedOver:
    statuses = await upload_records.statuses_of(db, [file.key for file in files])
    failed = await upload_records.list_these(db, [key for key, status in statuses.items() if status == Status.FAILED])
    put_back = await storage.put_back([key for key, status in statuses.items() if status in _NAMING])
    try:
        repaired = await find_again(storage, db, failed.values())
    except UploadError as error:  # a full disk, above all: removals, which make room, must go on
        log.warning("lost uploads not repaired", reason=str(error))
        repaired = []
    unknown = 0
    unneeded = []
    for file in files:
        status, is_old = statuses.get(file.key), file.age >= keep_seconds
        if status is None:
            unknown += not file.left and not is_old
            may_go = file.left and is_old
        elif status == Status.FAILED:
            may_go = is_old and file.key in failed and not _means_bytes(failed[file.key])
        else:
            may_go = status == Status.DELETED
        if may_go:
            unneeded.append(file)
    return LookedOver(unknown, tuple(unneeded), len(put_back) + len(repaired), len(repaired))


def _means_bytes(failed: Upload) -> bool:
    """Whether the bytes of a failed upload may still be wanted: it was not refused, but lost or damaged."""
    return failed.error is not None and failed.error.code in {LOST, DAMAGED}


async def find_again(storage: Storage, db: Db, uploads: Collection[Upload]) -> list[str]:
    """Repair the records of lost uploads whose files had only been set aside; return their ids."""
    lost = {
        upload.id: upload.size for upload in uploads if upload.damaged and upload.error and upload.error.code == LOST
    }
    sizes = await storage.put_back(list(lost)) if lost else {}
    intact = [upload_id for upload_id, size in sizes.items() if size == lost[upload_id]]
    if not intact:
        return []
    try:
        repaired = await upload_records.repair_uploads(db, intact)
    except BaseException:
        await storage.set_aside(intact)  # the next attempt finds them there
        raise
    log.warning("lost uploads repaired", uploads=repaired)
    return repaired
