"""Walks over the local store: its published and unfinished files, and what is neither."""

import os
from collections.abc import Collection, Sequence

from app.storage import Found, FoundUnfinished, is_key
from app.storage.local.layout import (
    SHARDS,
    Directories,
    is_file,
    is_ours_aside,
    listing,
    shard_of,
    unfinished_name,
    unfinished_of,
)


def found_in(directories: Directories, shard: str, before: float, left: Collection[str]) -> list[Found]:
    """List the published files of one shard; those not changed since `before` are settled."""
    found = []
    for name in _entries(directories, shard, files=True):
        try:
            state = os.stat(name, dir_fd=directories.shard_fd(shard), follow_symlinks=False)
        except FileNotFoundError:
            continue  # deleted since it was listed
        found.append(Found(name, state.st_size, state.st_ctime <= before, name in left))
    return found


def unfinished(directories: Directories) -> list[tuple[str, int]]:
    """List key and fence of every unfinished file."""
    with listing(directories.unfinished_fd) as entries:
        return [name for entry in entries if is_file(entry) and (name := unfinished_of(entry.name)) is not None]


def found_unfinished(
    directories: Directories, names: Sequence[tuple[str, int]], before: float
) -> list[FoundUnfinished]:
    """List those of the unfinished files that still exist; the ones not changed since `before` are settled."""
    found = []
    for key, fence in names:
        try:
            state = os.stat(unfinished_name(key, fence), dir_fd=directories.unfinished_fd, follow_symlinks=False)
        except FileNotFoundError:
            continue  # published or removed since it was listed
        found.append(FoundUnfinished(key, fence, state.st_size, state.st_ctime <= before))
    return found


def strays(directories: Directories) -> list[str]:
    """List unknown names, and those of files that are not of the kind that the name stands for."""
    found = [f"files/{shard}/{name}" for shard in SHARDS for name in _entries(directories, shard, files=False)]
    for directory, fd, is_ours in (
        ("files", directories.files_fd, lambda entry: entry.name in SHARDS),
        ("staging", directories.staging_fd, lambda entry: is_key(entry.name) and entry.is_dir(follow_symlinks=False)),
        ("partial", directories.unfinished_fd, lambda entry: unfinished_of(entry.name) is not None and is_file(entry)),
        ("trash", directories.trash_fd, is_ours_aside),
    ):
        with listing(fd) as entries:
            found += [f"{directory}/{entry.name}" for entry in entries if not is_ours(entry)]
    return found


def _entries(directories: Directories, shard: str, *, files: bool) -> list[str]:
    """List the names in one shard that are published files, or those that are not."""
    with listing(directories.shard_fd(shard)) as entries:
        return [
            entry.name
            for entry in entries
            if files == (is_key(entry.name) and shard_of(entry.name) == shard and is_file(entry))
        ]
