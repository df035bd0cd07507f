"""The few system calls that Python does not offer, through libc."""

import ctypes
import errno
import os

_libc = ctypes.CDLL(None, use_errno=True)
_RENAME_NOREPLACE = 1
_SYNC_FILE_RANGE_WRITE = 2


def _call(name: str, *arguments: int | bytes | ctypes.c_long) -> None:
    try:
        function = getattr(_libc, name)
    except AttributeError:
        raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS)) from None
    if function(*arguments) == -1:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code))


def syncfs(fd: int) -> None:
    """Make everything written so far on the file system of `fd` durable, data and names."""
    _call("syncfs", fd)


def start_writeback(fd: int, offset: int, length: int) -> None:
    """Begin to write dirty pages out, without waiting; no promise of durability (sync_file_range)."""
    _call("sync_file_range", fd, ctypes.c_long(offset), ctypes.c_long(length), _SYNC_FILE_RANGE_WRITE)


def rename_new(old: str, new: str, *, old_dir_fd: int, new_dir_fd: int) -> None:
    """Rename without ever replacing: FileExistsError when `new` is taken.

    Where the file system has no such rename (NFS), a hard link takes its place: it never
    replaces either, and a crash before the unlink leaves a second, staged name to sweep.
    """
    try:
        _call("renameat2", old_dir_fd, os.fsencode(old), new_dir_fd, os.fsencode(new), _RENAME_NOREPLACE)
    except OSError as error:
        if error.errno not in {errno.ENOSYS, errno.EINVAL}:
            raise
        os.link(old, new, src_dir_fd=old_dir_fd, dst_dir_fd=new_dir_fd)
        os.unlink(old, dir_fd=old_dir_fd)
