"""The local store, a directory: files are staged, flushed, renamed, and read again.

Everything lies on one file system (`layout.py`), so that a rename publishes.
"""

import asyncio
import errno
import mmap
import os

import structlog

from app.cancellation import run_to_completion
from app.errors import StorageFull, Unavailable, Unusable
from app.storage.local.block_writer import ALIGNMENT
from app.storage.local.files import LocalFiles
from app.storage.local.io_errors import FULL, reason
from app.storage.local.threads import in_thread
from app.storage.local.unfinished_files import LocalUnfinishedFiles
from app.storage.local.upkeep import LocalUpkeep

log = structlog.stdlib.get_logger("waybill.storage")


class LocalStorage(LocalFiles, LocalUnfinishedFiles, LocalUpkeep):
    """The local directory as a storage backend.

    `min_free` bytes of its file system are never used. With `durability="fast"` nothing is
    flushed: files are still complete or absent after a crash of the service, and unfinished files
    keep their bytes up to the mark, but not so after a power cut. `owner`, a key, names this process's
    staging directory and is locked for life, so that no other process sweeps it.
    """

    async def prepare(self) -> None:
        await run_to_completion(in_thread(self._testing, self._prepare))

    def _prepare(self) -> None:
        opened = False
        try:
            opened = self._directories.open()
            self.space.watch(self._directories.root_fd)
            self._staging.direct = self._takes_direct_writes()
            self._test()
        except StorageFull:
            log.warning("no space is left above the floor; uploads are refused until there is")
        except (OSError, Unavailable) as error:
            if opened:
                self._directories.close()
            what = reason(error) if isinstance(error, OSError) else error
            raise Unusable(f"{self._directories.root} cannot be used: {what}") from error

    def _takes_direct_writes(self) -> bool:
        """Whether large files may bypass the page cache; some file systems refuse only the write itself."""
        try:
            with self._scratch("direct", direct=True) as file, mmap.mmap(-1, ALIGNMENT) as block:
                os.write(file.fileno(), block)
        except OSError as error:
            if error.errno not in {errno.EINVAL, errno.EOPNOTSUPP, *FULL}:
                raise
            log.info("large files go through the page cache", reason=reason(error))
            return False
        return True

    async def close(self) -> None:
        self._closed = True
        self._staging.closing.set()
        await run_to_completion(self._close())

    async def _close(self) -> None:
        for staged in list(self._staging.live):
            await staged.abort()

        def run() -> None:
            for threads in (self._threads, self._publishing, self._testing, self._listing, self._copying):
                threads.shutdown()
            self._under_way.close()
            self._directories.close()  # last, since a descriptor may be in use

        await asyncio.to_thread(run)
