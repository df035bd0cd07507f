"""Shared memory for the metrics of all worker processes of one service, each in a slot of its own."""

import fcntl
import mmap
import os
from collections.abc import Iterator
from multiprocessing import reduction
from typing import Any, Final, NamedTuple, Protocol

SLOT_CELLS: Final = 512
_SLOTS: Final = 512
"""The number of slots, more than there can be workers; unused ones are never touched, and take no memory."""
_CELL_BYTES: Final = 8


class Cells(Protocol):
    """An array of numbers, in a list or in shared memory."""

    def __len__(self) -> int: ...

    def __getitem__(self, at: int, /) -> float: ...

    def __setitem__(self, at: int, value: float, /) -> None: ...


class WorkerSlot(NamedTuple):
    """The cells of one process; if the slot is not `taken`, of one that has ended."""

    cells: Cells
    taken: bool


class WorkerSlots(Protocol):
    """The slots in which processes count, and from which the metrics of all are read."""

    def take(self) -> Cells:
        """Take a slot and return its cells, numbers that from now on this process alone changes."""

    def all(self) -> Iterator[WorkerSlot]:
        """Every slot that was ever taken, this process's among them."""


class OwnSlot:
    """The slot of a process that serves alone."""

    def __init__(self) -> None:
        self._cells = [0.0] * SLOT_CELLS

    def take(self) -> Cells:
        return self._cells

    def all(self) -> Iterator[WorkerSlot]:
        yield WorkerSlot(self._cells, taken=True)


class SharedWorkerSlots:
    """The slots of several workers: made by their parent, handed to each with the arguments of its process.

    A slot is held by a lock on a byte of the memory's file, which the kernel releases when
    its process ends, however it ends. The next process in the slot goes on counting where the
    last one stopped: nothing that was counted vanishes, and nothing is counted twice.
    """

    def __init__(self, file: int | None = None) -> None:
        if file is None:
            file = os.memfd_create("waybill-metrics")
            os.ftruncate(file, _SLOTS * SLOT_CELLS * _CELL_BYTES)
        self._file = file  # never closed: that would end the locks
        self._cells = memoryview(mmap.mmap(file, 0)).cast("d")
        self._own: int | None = None

    def __reduce__(self) -> tuple[Any, ...]:
        return _received, (reduction.DupFd(self._file),)

    def take(self) -> Cells:
        assert self._own is None
        # A slot that another process is just testing looks held; then the next one will do.
        self._own = next(number for number in range(_SLOTS) if self._lock(number, fcntl.LOCK_EX))
        cells = self._slot_cells(self._own)
        cells[0] = 1.0
        return cells[1:]

    def all(self) -> Iterator[WorkerSlot]:
        for number in range(_SLOTS):
            cells = self._slot_cells(number)
            if cells[0]:
                yield WorkerSlot(cells[1:], number == self._own or self._is_held(number))

    def _slot_cells(self, number: int) -> "memoryview[float]":
        return self._cells[number * SLOT_CELLS : (number + 1) * SLOT_CELLS]

    def _is_held(self, number: int) -> bool:
        if not self._lock(number, fcntl.LOCK_SH):
            return True
        fcntl.lockf(self._file, fcntl.LOCK_UN, 1, number)
        return False

    def _lock(self, number: int, kind: int) -> bool:
        try:
            fcntl.lockf(self._file, kind | fcntl.LOCK_NB, 1, number)
        except (BlockingIOError, PermissionError):  # POSIX allows either error
            return False
        return True


def _received(file: Any) -> SharedWorkerSlots:
    return SharedWorkerSlots(file.detach())
