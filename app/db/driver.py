"""Drivers: the promises that `Db` relies on to use a database safely, kept by one class per dialect."""

from abc import ABC, abstractmethod
from asyncio import Future
from collections.abc import Mapping
from math import inf
from typing import Any, ClassVar, Final

from databases.core import Connection

from app.db.queries import Dialect, Query
from app.errors import UploadError

Row = Mapping[str, Any]

LOCK_SECONDS: Final = 0.1
"""How long one try waits for a lock: a blocked caller must not hold up those who share its transaction."""


class Driver(ABC):
    """The behaviour of one database. `raw` is always the driver's own connection below `databases`.

    Statements go to `raw` and not through `databases`' fetch_all, which compiles each one anew on
    every call, wraps every row twice, and on SQLite visits the connection's thread three times and
    leaves a cursor open when it is cancelled between the visits: 3 to 5 times the cost of this.
    """

    dialect: ClassVar[Dialect]
    one_writer: ClassVar[bool]
    """Whether the database has one writer at a time, so that writers queue here instead of colliding."""
    longest_idle: ClassVar[float] = inf
    """How long, in seconds, a connection may be idle before it is replaced by a new one."""

    @abstractmethod
    def options(self, *, schema: str | None, pool_size: int, timeout: float) -> dict[str, Any]:
        """The keyword options with which `databases` opens connections."""

    async def connect(self, connection: Connection) -> None:
        """Open the connection, or leave nothing of it."""
        await connection.__aenter__()

    @abstractmethod
    async def look(self, raw: Any) -> bool:
        """Make the connection durable, as far as we can, and check its fitness: True when it takes writes.

        Called for every new connection, and for each one that is used again after a while.

        Raises:
            Unusable: the database could lose what it acknowledges.
            Exception: the connection is unusable now; `refusal` translates the error.
        """

    def concerns_all(self, error: BaseException) -> bool:
        """Whether the error that made one connection unusable would affect idle connections, too."""
        return False

    def is_crowded(self, error: BaseException | None) -> bool:
        """Whether the server refuses further connections, while the open ones go on working."""
        return False

    @abstractmethod
    async def inspect(self, raw: Any) -> dict[str, str]:
        """Describe the database and its durability, by name.

        Raises:
            Unusable: the database could never be used as it is set up.
        """

    @property
    def doubts(self) -> bool:
        """Whether a commit that looks done may not be durable, so that nothing may rely on it."""
        return False

    async def settle(self, raw: Any) -> None:
        """Make doubtful commits durable, or raise the reason why that fails."""
        return

    @property
    def lacks_room(self) -> bool:
        """Whether the ballast is not full."""
        return False

    async def keep_room(self, raw: Any) -> None:
        """Fill the ballast, for databases that have one."""
        return

    def make_room(self) -> bool:
        """Release a slice of the ballast; False when nothing is left. May wait for the disk."""
        return False

    @abstractmethod
    async def fetch(self, raw: Any, query: Query, arguments: Mapping[str, Any]) -> list[Row]: ...

    @abstractmethod
    async def execute(self, raw: Any, statement: str) -> None: ...

    @abstractmethod
    async def begin(self, raw: Any, timeout: float | None, lock_timeout: float | None = None) -> None:
        """Start a transaction that may write; the timeouts, in seconds, replace the usual ones."""

    async def lift_limits(self, raw: Any) -> None:
        """Let statements on this connection take as long as they need."""
        return

    @abstractmethod
    async def commit(self, raw: Any) -> None:
        """Return only when the transaction is durable."""

    @abstractmethod
    async def recover(self, raw: Any, error: Exception) -> bool:
        """Undo what `error` left unfinished; return whether the connection is as good as new."""

    @abstractmethod
    def is_open(self, raw: Any) -> bool:
        """Whether the connection is open, as far as is known without asking the database."""

    @abstractmethod
    async def abandon(self, raw: Any) -> "Future[Any] | None":
        """Abandon the connection at once, whatever it is doing; never waits.

        The future, if there is one, is done when the connection has released everything.
        """

    @abstractmethod
    async def close(self, raw: Any) -> None:
        """Close an idle connection in good order."""

    @abstractmethod
    def refusal(self, error: Exception) -> UploadError | None:
        """Translate an error of the database into a refusal; None for a mistake of ours."""

    @abstractmethod
    def is_conflict(self, error: BaseException | None) -> bool:
        """Whether the transaction was certainly undone and may well succeed if tried again."""

    @abstractmethod
    def misfit(self, error: BaseException | None) -> str | None:
        """The reason why the database can never be used as it is set up, if `error` says so."""
