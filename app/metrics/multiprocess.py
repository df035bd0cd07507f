"""Memory in which all worker processes of one service count, each in a seat of its own."""

import fcntl
import mmap
import os
from collections.abc import Iterator
from multiprocessing import reduction
from typing import Any, Final, NamedTuple, Protocol

SEAT_CELLS: Final = 512
_SEATS: Final = 512
"""More than there can be workers; what is not used is never touched, and takes no memory."""
_CELL_BYTES: Final = 8


class Cells(Protocol):
    """Numbers, in a list or in shared memory."""

    def __len__(self) -> int: ...

    def __getitem__(self, at: int, /) -> float: ...

    def __setitem__(self, at: int, value: float, /) -> None: ...


class WorkerSlot(NamedTuple):
    """What one process counted. Nobody sits there any more if it is not `taken`."""

    cells: Cells
    taken: bool


class WorkerSlots(Protocol):
    """Where a process counts, and where the figures of all are read."""

    def take(self) -> Cells:
        """The cells of this process, from now on; each is a number that this process alone changes."""

    def all(self) -> Iterator[WorkerSlot]:
        """Every seat that was ever taken, this process's among them."""


class OwnSlot:
    """For a process that serves alone."""

    def __init__(self) -> None:
        self._cells = [0.0] * SEAT_CELLS

    def take(self) -> Cells:
        return self._cells

    def all(self) -> Iterator[WorkerSlot]:
        yield WorkerSlot(self._cells, taken=True)


class SharedWorkerSlots:
    """For several: made by their parent, handed to each with the arguments of its process.

    A seat is held by a lock on a byte of the memory's file, which the kernel lets go when
    its process ends, however it ends. Who takes the seat next goes on counting where the
    last one stopped: nothing that was counted vanishes, and nothing is counted twice.
    """

    def __init__(self, file: int | None = None) -> None:
        if file is None:
            file = os.memfd_create("waybill-metrics")
            os.ftruncate(file, _SEATS * SEAT_CELLS * _CELL_BYTES)
        self._file = file  # open for life: the locks end when this process closes it
        self._cells = memoryview(mmap.mmap(file, 0)).cast("d")
        self._own: int | None = None

    def __reduce__(self) -> tuple[Any, ...]:
        return _received, (reduction.DupFd(self._file),)

    def take(self) -> Cells:
        assert self._own is None
        # One that somebody is just asking about looks held; then the next does as well.
        self._own = next(number for number in range(_SEATS) if self._lock(number, fcntl.LOCK_EX))
        cells = self._seat(self._own)
        cells[0] = 1.0
        return cells[1:]

    def all(self) -> Iterator[WorkerSlot]:
        for number in range(_SEATS):
            cells = self._seat(number)
            if cells[0]:
                yield WorkerSlot(cells[1:], number == self._own or self._is_held(number))

    def _seat(self, number: int) -> "memoryview[float]":
        return self._cells[number * SEAT_CELLS : (number + 1) * SEAT_CELLS]

    def _is_held(self, number: int) -> bool:
        if not self._lock(number, fcntl.LOCK_SH):
            return True
        fcntl.lockf(self._file, fcntl.LOCK_UN, 1, number)
        return False

    def _lock(self, number: int, kind: int) -> bool:
        try:
            fcntl.lockf(self._file, kind | fcntl.LOCK_NB, 1, number)
        except (BlockingIOError, PermissionError):  # POSIX lets a system say either
            return False
        return True


def _received(file: Any) -> SharedWorkerSlots:
    return SharedWorkerSlots(file.detach())
