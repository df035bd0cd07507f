"""The files of an SQLite database: whether those at their paths are the ones that are open."""

import os
import sqlite3
import threading
from typing import Final
from weakref import WeakSet

_MOVED: Final = "the file of the database is not the one that was opened; put that back, or restart the service"
_LOST: Final = "the write-ahead log of the database was removed while it was open; restart the service"


class Moved(Exception):
    """The database's files were moved: the next start would open others, without this process's commits."""


class Files:
    """The files that the connections of this process have open: the database, its log, and its index with the locks.

    SQLite silently goes on with its open files when others are put in their place, or some are removed.
    While a connection is open, the log is removed only by mistake: SQLite removes it
    itself, when the last connection of all processes closes. Every method is called in a
    connection's own thread.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._connections: WeakSet[sqlite3.Connection] = WeakSet()
        self._paths: tuple[str, ...] = ()
        self._known: list[tuple[int, int] | None] = []
        self.log_is_lost = False

    def opening(self) -> None:
        """Raise Moved instead of opening, and so creating, a database or a log beside those that are open."""
        with self._lock:
            others = set(self._connections)
        found = self._identities()
        with self._lock:
            if self.log_is_lost:
                raise Moved(_LOST)
            if self._known and found[0] != self._known[0]:
                raise Moved(_MOVED)
            if not others.isdisjoint(self._connections):  # the log may go once all of its connections are closed
                self._compare(found)

    def opened(self, connection: sqlite3.Connection, path: str) -> None:
        """Register a connection that has read, so that its files stay until it closes.

        Raises:
            Moved: its files differ from those of the connections before.
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
        """Unregister a connection that is about to close; with the last one the log may go."""
        with self._lock:
            self._connections.discard(connection)

    def check(self) -> None:
        """Raise Moved when the files differ from those that the connection of the calling thread has open."""
        self._compare(self._identities())

    def _compare(self, found: list[tuple[int, int] | None]) -> None:
        if found != self._known:
            if found[0] != self._known[0]:
                raise Moved(_MOVED)
            # Connections that opened another log now would miss the contents of the lost one. Those that have that
            # one open bring its contents into the database's file now, or when the last of them closes.
            self.log_is_lost = True
            raise Moved(_LOST)

    def _identities(self) -> list[tuple[int, int] | None]:
        return [_identity(path) for path in self._paths]


def _identity(path: str) -> tuple[int, int] | None:
    try:
        found = os.stat(path)
    except OSError:  # the next start could not open the file either
        return None
    return found.st_dev, found.st_ino
