"""Asynchronous writes, done by the kernel while the thread that began them goes on: Linux's io_submit(2).

Python does not offer it, and a library would be a dependency for four calls. Only direct writes
into a file that is long enough already are asynchronous; other writes are correct as well, but
done before `begin_write` returns.
"""

import ctypes
import errno
import os
import platform
import threading
from typing import Any, Final

import structlog

from app.storage.local.io_errors import reason

log = structlog.stdlib.get_logger("waybill.storage")

_CALLS: Final = {"x86_64": (206, 207, 208, 209), "aarch64": (0, 1, 4, 2)}
_SETUP, _DESTROY, _GETEVENTS, _SUBMIT = _CALLS.get(platform.machine(), (None,) * 4)
_PWRITE: Final = 1
_libc = ctypes.CDLL(None, use_errno=True)
_own = threading.local()


class PendingWrite:
    """A write under way. The kernel reads the memory until `wait` returns or raises."""

    def __init__(self, context: "_Context") -> None:
        self._context = context

    def wait(self) -> int:
        """Wait for the write; return how many bytes were written, perhaps not all; raises OSError."""
        return self._context.wait()


def begin_write(fd: int, view: memoryview, offset: int) -> PendingWrite | None:
    """Begin to write `view`, a writable buffer; None where that cannot be done now.

    A thread waits for one write before it begins the next.
    """
    context = _context()
    if context is None:
        return None
    try:
        context.submit(fd, view, offset)
    except OSError:
        return None  # the ordinary write that follows reports the error, if there is one
    return PendingWrite(context)


def _context() -> "_Context | None":
    """The queue of this thread, which keeps it; None where the kernel offers none."""
    if not hasattr(_own, "context"):
        try:
            _own.context = _Context()
        except OSError as error:
            log.info("large files are written between two digests, not beside one", reason=reason(error))
            _own.context = None
    context: _Context | None = _own.context
    return context


class _Request(ctypes.Structure):
    """The kernel's struct iocb, little-endian."""

    _fields_ = (
        ("data", ctypes.c_uint64),
        ("key", ctypes.c_uint32),
        ("rw_flags", ctypes.c_uint32),
        ("opcode", ctypes.c_uint16),
        ("priority", ctypes.c_int16),
        ("fd", ctypes.c_uint32),
        ("buffer", ctypes.c_uint64),
        ("length", ctypes.c_uint64),
        ("offset", ctypes.c_int64),
        ("reserved", ctypes.c_uint64),
        ("flags", ctypes.c_uint32),
        ("event_fd", ctypes.c_uint32),
    )


class _Event(ctypes.Structure):
    """The kernel's struct io_event."""

    _fields_ = (
        ("data", ctypes.c_uint64),
        ("request", ctypes.c_uint64),
        ("result", ctypes.c_int64),
        ("result_2", ctypes.c_int64),
    )


class _Context:
    """One thread's queue, for one write at a time. Raises OSError where the kernel offers none."""

    def __init__(self) -> None:
        self._id = ctypes.c_ulong(0)
        _call(_SETUP, ctypes.c_uint(1), ctypes.byref(self._id))
        self._request = _Request(opcode=_PWRITE)
        self._requests = (ctypes.c_void_p * 1)(ctypes.addressof(self._request))
        self._event = _Event()

    def submit(self, fd: int, view: memoryview, offset: int) -> None:
        request = self._request
        request.fd, request.offset, request.length = fd, offset, view.nbytes
        request.buffer = ctypes.addressof(ctypes.c_char.from_buffer(view))
        _call(_SUBMIT, self._id, ctypes.c_long(1), self._requests)

    def wait(self) -> int:
        try:
            _call(_GETEVENTS, self._id, ctypes.c_long(1), ctypes.c_long(1), ctypes.byref(self._event), None)
        except OSError:
            self._end()  # waits for a write that is under way
            raise
        result: int = self._event.result
        if result < 0:
            raise OSError(-result, os.strerror(-result))
        return result

    def _end(self) -> None:
        if self._id:
            context_id, self._id = self._id, ctypes.c_ulong(0)
            del _own.context
            _call(_DESTROY, context_id)

    def __del__(self, syscall: Any = _libc.syscall, destroy: int | None = _DESTROY) -> None:
        if self._id:  # bound above, since at the interpreter's end the module's names may be gone
            syscall(destroy, self._id)


def _call(number: int | None, *arguments: object) -> None:
    if number is None or ctypes.sizeof(ctypes.c_void_p) != 8:
        raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS))
    while _libc.syscall(ctypes.c_long(number), *arguments) < 0:
        code = ctypes.get_errno()
        if code != errno.EINTR:
            raise OSError(code, os.strerror(code))
