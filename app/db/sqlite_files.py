"""The files of an SQLite database, and whether what lies at their paths is what is open."""

import os
import sqlite3
import threading
from typing import Final
from weakref import WeakSet

_MOVED: Final = "the file of the database is not the one that was opened; put that back, or restart the service"
_LOST: Final = "the write-ahead log of the database was removed while it was open; restart the service"


class Moved(Exception):
    """What this process commits would be gone at the next start, since that would open other files."""


class Files:
    """The files that the connections of this process have open: the database, its log, and its index with the locks.

    SQLite goes on with what it has opened when somebody puts other files in their place, or takes some
    away, and says nothing. While a connection is open nobody removes the log but by mistake: SQLite
    does so itself, when the last connection of all processes closes. Every method is called in a
    connection's own thread.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._connections: WeakSet[sqlite3.Connection] = WeakSet()
        self._paths: tuple[str, ...] = ()
        self._known: list[tuple[int, int] | None] = []
        self._log_is_lost = False

    def opening(self) -> None:
        """Raise Moved instead of opening, and so making, a database or a log beside those that are open."""
        with self._lock:
            others = set(self._connections)
        found = self._identities()
        with self._lock:
            if self._log_is_lost:
                raise Moved(_LOST)
            if self._known and found[0] != self._known[0]:
                raise Moved(_MOVED)
            if not others.isdisjoint(self._connections):  # of those that have been closed the log may be gone
                self._compare(found)

    def opened(self, connection: sqlite3.Connection, path: str) -> None:
        """Take note of a connection that has read, so that its files stay until it closes.

        Raises:
            Moved: they are others than those of the connections before.
        """
        with self._lock:
            if not self._paths:
                [[resolved]] = connection.execute("SELECT file FROM pragma_database_list WHERE name = 'main'")
                self._paths = (os.path.abspath(path), f"{resolved}-wal", f"{resolved}-shm")
            found = self._identities()
            if self._connections:
                self._compare(found)
            elif self._known and found[0] != self._known[0]:
                raise Moved(_MOVED)
            elif None in found:
                raise Moved(_LOST)
            self._known = found
            self._connections.add(connection)

    def closing(self, connection: sqlite3.Connection) -> None:
        """Take note that a connection is about to close; with the last one the log may go."""
        with self._lock:
            self._connections.discard(connection)

    def check(self) -> None:
        """Raise Moved when the files are not those that the connection has open in whose thread this is called."""
        self._compare(self._identities())

    def _compare(self, found: list[tuple[int, int] | None]) -> None:
        if found != self._known:
            if found[0] != self._known[0]:
                raise Moved(_MOVED)
            # Connections that opened another log now would not see what stands in the lost one. When all that
            # have that one are closed, SQLite has brought its contents into the database's file.
            self._log_is_lost = True
            raise Moved(_LOST)

    def _identities(self) -> list[tuple[int, int] | None]:
        return [_identity(path) for path in self._paths]


def _identity(path: str) -> tuple[int, int] | None:
    try:
        found = os.stat(path)
    except OSError:  # at the next start it could not be opened either
        return None
    return found.st_dev, found.st_ino
