"""I/O errors: their consequences for the upload that met one, and for the whole store."""

import errno
import os
import resource
from typing import Final

import structlog

from app.errors import StorageFull, Unavailable, UploadError
from app.storage.local.free_space import FloorReached

log = structlog.stdlib.get_logger("waybill.storage")

FULL: Final = {
    errno.ENOSPC: "this server's disk is full",
    errno.EDQUOT: "this server has used up the space that it may use of its disk",
}
_OUT_OF: Final = {errno.EMFILE, errno.ENFILE, errno.ENOMEM}


class Trust:
    """The trust in the store, without which no uploads are taken. `fault` is the error that ended it, or None."""

    def __init__(self) -> None:
        self.fault: OSError | None = None

    def require(self) -> None:
        """Raise Unavailable while the store cannot be trusted."""
        if self.fault is not None:
            raise Unavailable

    def restore(self, fault: OSError | None) -> None:
        """Restore the trust that ended with `fault`, unless another fault has ended it since."""
        if fault is not None and self.fault is fault:
            log.info("the store passed its test and is trusted again")
            self.fault = None

    def refusal(self, error: Exception, key: str, size: int) -> UploadError:
        """The refusal of an upload that met an error.

        A full disk, a file beyond the limit of the process or the file system, and the lack of
        descriptors concern this upload alone; any other I/O error ends the trust in the store.
        """
        if isinstance(error, UploadError):
            return error
        if not isinstance(error, OSError):
            log.error("an upload met a fault of the service", key=key, exc_info=error)
            return Unavailable()
        if isinstance(error, FloorReached):
            return StorageFull()
        if error.errno in FULL:
            log.warning("no space for an upload", key=key, reason=reason(error))
            return StorageFull(FULL[error.errno])
        limit, _ = resource.getrlimit(resource.RLIMIT_FSIZE)
        limited = 0 <= limit <= size
        # A direct write that the kernel cuts at the limit is no longer aligned.
        if error.errno == errno.EFBIG or (limited and error.errno == errno.EINVAL):
            by = f"ulimit -f, {limit} bytes" if limited else "the file system"  # whose limit cannot be queried
            log.error("no file of this size can be written", key=key, size=size, limited_by=by)
            return StorageFull(f"this server cannot store a file of {size} bytes or more")
        if error.errno == errno.EEXIST:
            log.error("a key was given out twice", key=key)
            return Unavailable()
        if error.errno in _OUT_OF:
            log.error("the process is out of descriptors or memory", key=key, error=error.strerror)
            return Unavailable()
        if self.fault is None:
            self.fault = error
            log.error("the store failed; no upload is taken until a test passes", error=reason(error))
        return Unavailable()


def reason(error: OSError) -> str:
    return error.strerror or os.strerror(error.errno or errno.EIO)
