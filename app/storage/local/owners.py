"""Owners of the store that ended: an owner is a process, and one without the lock on its staging directory is dead."""

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress

import structlog

from app.storage import is_key
from app.storage.local.layout import DIRECTORY, Directories, is_file, listing

log = structlog.stdlib.get_logger("waybill.storage")


def left_by_the_dead(directories: Directories, suffix: str) -> Iterator[tuple[str, int]]:
    """Iterate over files in the root that dead owners left: name, and a descriptor that is open for that step.

    A name begins with the owner, up to the first full stop.
    """
    with listing(directories.root_fd) as entries:
        names = [entry.name for entry in entries if entry.name.endswith(suffix) and is_file(entry)]
    for name in names:
        owner = name.partition(".")[0]
        if owner == directories.owner or not is_key(owner) or _lives(directories, owner):
            continue
        with suppress(FileNotFoundError):
            fd = os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=directories.root_fd)
            try:
                yield name, fd
            finally:
                os.close(fd)


def _lives(directories: Directories, owner: str) -> bool:
    try:
        with _dead(directories, owner):
            return False
    except FileNotFoundError:
        return False
    except OSError:
        return True


def remove_stale(directories: Directories) -> int:
    """Remove files that dead owners left staged, and return how many; an owner without its lock is dead."""
    with listing(directories.staging_fd) as entries:
        owners = [entry.name for entry in entries if entry.name != directories.owner]
    return sum(_remove_stale(directories, owner) for owner in owners)


def _remove_stale(directories: Directories, owner: str) -> int:
    removed = 0
    try:
        if not is_key(owner):
            raise NotADirectoryError(owner)
        with _dead(directories, owner) as fd:
            for name in os.listdir(fd):
                os.unlink(name, dir_fd=fd)
                removed += 1
            os.rmdir(owner, dir_fd=directories.staging_fd)
    except NotADirectoryError:
        log.warning("something foreign lies in staging", name=owner)
    except (BlockingIOError, FileNotFoundError):
        pass  # its owner lives, or another sweeper has locked it
    except OSError as error:
        log.warning("stale staging could not be removed", owner=owner, error=error.strerror)
    if removed:
        log.info("removed stale staging", owner=owner, files=removed)
    return removed


@contextmanager
def _dead(directories: Directories, owner: str) -> Iterator[int]:
    """Open and lock the staging directory of a dead owner; raises OSError if it is locked, by owner or sweeper."""
    fd = os.open(owner, DIRECTORY | os.O_NOFOLLOW, dir_fd=directories.staging_fd)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield fd
    finally:
        os.close(fd)
