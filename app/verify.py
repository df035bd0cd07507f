"""Every stored file against its row, and every row against its file: is what is kept what was sent?"""

from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from typing import Final

import structlog

from app import records
from app.db import Db
from app.errors import UploadError
from app.model import Status
from app.storage import NotStored, Storage

log = structlog.stdlib.get_logger("waybill.verify")

_AT_ONCE: Final = 500
_GRACE_SECONDS: Final = 60.0  # a batch may be between its files and its rows
# After a crash between the two, the file of a resumable upload has a record that is not complete yet; the next sweep
# completes it.
_OWNING: Final = {Status.COMPLETED, Status.UPLOADING, Status.PROCESSING}


@dataclass(slots=True)
class Verified:
    """What was read, and by id what is not as it should be."""

    files: int = 0
    bytes: int = 0
    missing: list[str] = field(default_factory=list)
    damaged: list[str] = field(default_factory=list)
    without_record: list[str] = field(default_factory=list)
    foreign: list[str] = field(default_factory=list)

    @property
    def sound(self) -> bool:
        return not (self.missing or self.damaged or self.without_record or self.foreign)

    def as_dict(self) -> dict[str, object]:
        return {"sound": self.sound, **asdict(self)}


async def verify(storage: Storage, db: Db, *, on_file: Callable[[], None] = lambda: None) -> Verified:
    """Read and digest every completed upload; then look for files that no completed upload owns.

    `on_file` is called after each upload. Uploads that are deleted meanwhile are no damage;
    a file that cannot be read to its end is.
    """
    found = Verified()
    after_id = ""
    while stored := await records.list_stored(db, after_id, _AT_ONCE):
        missing = []
        for row in stored:
            try:
                size, sha256 = await storage.digest(row.id)
            except NotStored:
                missing.append(row.id)
            except (OSError, UploadError) as error:
                log.error("a file cannot be read", upload=row.id, reason=repr(error))
                found.damaged.append(row.id)
            else:
                found.files += 1
                found.bytes += size
                if (size, sha256) != (row.size, row.sha256):
                    found.damaged.append(row.id)
            on_file()
        statuses = await records.statuses_of(db, missing)
        found.missing += [upload_id for upload_id in missing if statuses.get(upload_id) == Status.COMPLETED]
        after_id = stored[-1].id
    async for files in storage.walk(_GRACE_SECONDS):
        keys = [file.key for file in files if file.settled]
        statuses = await records.statuses_of(db, keys)
        gone = await storage.missing([key for key in keys if statuses.get(key) == Status.DELETED])
        found.without_record += [key for key in keys if statuses.get(key) not in _OWNING and key not in gone]
    found.foreign = await storage.strays()
    return found
