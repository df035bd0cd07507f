"""The trash: files that were set aside. A walk of the store skips them; access by name finds them.

A file is set aside on suspicion, and a suspicion can be wrong: an older database was in use, and the right one is back.
So a file never counts as missing while it is here, and nothing is removed from here unless a caller that has asked
the database requests it.
"""

import os
import stat
from collections.abc import Collection, Sequence
from contextlib import suppress

import structlog

from app.storage import Aside, is_key
from app.storage.local import syscalls
from app.storage.local.layout import Directories, is_ours_aside, listing, unfinished_name, unfinished_of

log = structlog.stdlib.get_logger("waybill.storage")


def set_aside(directories: Directories, keys: Sequence[str]) -> None:
    """Move published files into the trash; absent ones are skipped."""
    for key in keys:
        if is_key(key):
            _set_aside(directories, key, directories.shard_fd(key))


def set_unfinished_aside(directories: Directories, names: Sequence[tuple[str, int]]) -> None:
    """Move unfinished files into the trash; absent ones are skipped."""
    for name in names:
        _set_aside(directories, unfinished_name(*name), directories.unfinished_fd)


def remove(directories: Directories, keys: Sequence[str]) -> None:
    """Remove published files for good, also from the trash; absent ones are skipped."""
    for key in keys:
        directories.remove(key)
        if is_key(key):
            _remove_here(directories, key)


def remove_unfinished(directories: Directories, names: Sequence[tuple[str, int]]) -> None:
    """Remove unfinished files for good, also from the trash; absent ones are skipped."""
    for name in names:
        directories.remove_unfinished_file(unfinished_name(*name))
        _remove_here(directories, unfinished_name(*name))


def _remove_here(directories: Directories, name: str) -> bool:
    try:
        os.unlink(name, dir_fd=directories.trash_fd)
    except (FileNotFoundError, IsADirectoryError):
        return False
    log.info("removed a file that was set aside", name=name)
    return True


def end_unfinished(directories: Directories, name: tuple[str, int], offset: int) -> None:
    """Remove an unfinished file, or set it aside if it is longer than the offset; an absent one is skipped."""
    with suppress(FileNotFoundError):
        if os.stat(unfinished_name(*name), dir_fd=directories.unfinished_fd, follow_symlinks=False).st_size > offset:
            set_unfinished_aside(directories, [name])
        else:
            directories.remove_unfinished_file(unfinished_name(*name))


def _set_aside(directories: Directories, name: str, where: int) -> None:
    try:
        # Not every file system counts a rename as a change, and the file's time in the trash begins now.
        os.utime(name, dir_fd=where, follow_symlinks=False)
        os.rename(name, name, src_dir_fd=where, dst_dir_fd=directories.trash_fd)
    except FileNotFoundError:
        return
    log.warning("set aside a file", name=name, path=str(directories.root / "trash" / name))


def put_back(directories: Directories, key: str) -> int | None:
    """Put a published file back under its key; return its size, or None if it was not set aside or the key is taken.

    Nothing needs to be flushed: after a power cut the file is in one place or the other, and it counts in both.
    """
    return _put_back(directories, key, directories.shard_fd(key)) if is_key(key) else None


def put_all_back(directories: Directories, keys: Sequence[str]) -> dict[str, int]:
    """Put back those of these published files that were set aside; return their sizes."""
    sizes = {key: put_back(directories, key) for key in keys}
    return {key: size for key, size in sizes.items() if size is not None}


def put_unfinished_back(directories: Directories, name: str) -> bool:
    """Put an unfinished file back under its name; False if it was not set aside or the name is taken."""
    return _put_back(directories, name, directories.unfinished_fd) is not None


def _put_back(directories: Directories, name: str, where: int) -> int | None:
    try:
        state = os.stat(name, dir_fd=directories.trash_fd, follow_symlinks=False)
        if not stat.S_ISREG(state.st_mode):
            return None
        syscalls.rename_new(name, name, old_dir_fd=directories.trash_fd, new_dir_fd=where)
    except (FileNotFoundError, FileExistsError):
        return None
    log.warning("put back a file that had been set aside", name=name)
    return state.st_size


def missing(directories: Directories, keys: Sequence[str]) -> list[str]:
    """List the keys that have no regular file, in the trash neither."""
    return [key for key in keys if not directories.holds_file(key) and put_back(directories, key) is None]


def list_aside(directories: Directories, left: Collection[str]) -> list[Aside]:
    """List all files that were set aside."""
    now = directories.now()
    found = []
    with listing(directories.trash_fd) as entries:
        for entry in entries:
            if not is_ours_aside(entry):
                continue
            try:
                age = now - entry.stat(follow_symlinks=False).st_ctime
            except FileNotFoundError:
                continue  # another process has just put it back
            key, fence = unfinished_of(entry.name) or (entry.name, None)
            found.append(Aside(key, fence, age, entry.name in left))
    return found


def remove_aside(directories: Directories, files: Sequence[Aside]) -> int:
    """Remove files that were set aside; return how many. One that was put back meanwhile stays."""
    return sum(
        _remove_here(directories, file.key if file.fence is None else unfinished_name(file.key, file.fence))
        for file in files
    )
