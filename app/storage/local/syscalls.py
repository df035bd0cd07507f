"""System calls that Python does not offer, through libc."""

import ctypes
import errno
import os

_libc = ctypes.CDLL(None, use_errno=True)
_at_once = ctypes.PyDLL(None, use_errno=True)  # calls that never wait keep the interpreter's lock
_RENAME_NOREPLACE = 1
_SYNC_FILE_RANGE_WAIT_BEFORE = 1
_SYNC_FILE_RANGE_WRITE = 2
_OPENAT2 = 437  # the number on every architecture
_RESOLVE_NO_SYMLINKS = 0x04
_RESOLVE_BENEATH = 0x08
_RESOLVE_CACHED = 0x20


def _call(name: str, *arguments: int | bytes | ctypes.c_int64, waits: bool = True) -> None:
    try:
        function = getattr(_libc if waits else _at_once, name)
    except AttributeError:
        raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS)) from None
    while function(*arguments) == -1:
        code = ctypes.get_errno()
        if code != errno.EINTR:  # as Python does for the calls it has (PEP 475)
            raise OSError(code, os.strerror(code))


def syncfs(fd: int) -> None:
    """Make everything written so far on the file system of `fd` durable, data and names.

    An error anywhere on the file system is reported once to each descriptor, and before
    Linux 5.8 to none: to rely on a file, call `written_back` for it, too.
    """
    _call("syncfs", fd)


def written_back(fd: int) -> None:
    """Raise the error, if any, that the kernel met while writing this file out since `fd` was opened.

    To be called behind a flush: there is nothing left to wait for, so the interpreter's lock is kept.
    """
    _call("sync_file_range", fd, ctypes.c_int64(0), ctypes.c_int64(0), _SYNC_FILE_RANGE_WAIT_BEFORE, waits=False)


def start_writeback(fd: int, offset: int, length: int) -> None:
    """Begin to write dirty pages out, without waiting; no promise of durability."""
    _call("sync_file_range", fd, ctypes.c_int64(offset), ctypes.c_int64(length), _SYNC_FILE_RANGE_WRITE)


def rename_new(old: str, new: str, *, old_dir_fd: int, new_dir_fd: int) -> None:
    """Rename without ever replacing; raises FileExistsError when `new` is taken.

    Where the file system has no such rename (NFS), a hard link takes its place: it never
    replaces either, and a crash before the unlink leaves a second, staged name to sweep.
    """
    try:
        _call("renameat2", old_dir_fd, os.fsencode(old), new_dir_fd, os.fsencode(new), _RENAME_NOREPLACE)
    except OSError as error:
        if error.errno not in {errno.ENOSYS, errno.EINVAL}:
            raise
        _link_and_unlink(old, new, old_dir_fd, new_dir_fd)


def open_cached(name: str, flags: int, *, dir_fd: int) -> int:
    """Open a file without following symbolic links; raises BlockingIOError if that would wait for the disk.

    Linux 5.12; before that, and elsewhere, OSError.
    """
    how = _OpenHow(flags, 0, _RESOLVE_CACHED | _RESOLVE_NO_SYMLINKS | _RESOLVE_BENEATH)
    fd: int = _at_once.syscall(_OPENAT2, dir_fd, os.fsencode(name), ctypes.byref(how), ctypes.sizeof(how))
    if fd < 0:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code))
    return fd


class _OpenHow(ctypes.Structure):
    _fields_ = [("flags", ctypes.c_uint64), ("mode", ctypes.c_uint64), ("resolve", ctypes.c_uint64)]


def _link_and_unlink(old: str, new: str, old_dir_fd: int, new_dir_fd: int) -> None:
    try:
        os.link(old, new, src_dir_fd=old_dir_fd, dst_dir_fd=new_dir_fd)
    except FileExistsError:
        # The answer to a successful link can get lost, and the client of a network file
        # system then repeats the call: the inode shows whether the name is ours.
        ours = os.stat(old, dir_fd=old_dir_fd, follow_symlinks=False)
        there = os.stat(new, dir_fd=new_dir_fd, follow_symlinks=False)
        if not os.path.samestat(ours, there):
            raise
    try:
        os.unlink(old, dir_fd=old_dir_fd)
    except OSError:
        os.unlink(new, dir_fd=new_dir_fd)  # after an error nothing must have the new name
        raise
