"""Directories in memory, for what no test takes from there to a disk: a store has 256 directories, and flushes."""

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

_MEMORY = "/dev/shm"
_PLENTY = 4 * 1024**3


def memory() -> str | None:
    """A directory in memory where there is plenty of it, else None."""
    there = os.access(_MEMORY, os.W_OK) and shutil.disk_usage(_MEMORY).free > _PLENTY
    return _MEMORY if there else None


@contextmanager
def quick_directory() -> Iterator[Path]:
    """A directory that is removed in the end; on a disk only where memory is short."""
    with tempfile.TemporaryDirectory(prefix="waybill-test-", dir=memory()) as directory:
        yield Path(directory)
