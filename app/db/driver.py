"""What `Db` needs to know of a database to use it safely: one class per dialect keeps these promises."""

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
"""How long a lock is waited for in one turn: whoever is blocked must not hold up those who share its transaction."""


class Driver(ABC):
    """The ways of one database. `raw` is always the driver's own connection below `databases`.

    Statements go to `raw` and not through `databases`' fetch_all, which compiles each one anew on
    every call, wraps every row twice, and on SQLite visits the connection's thread three times and
    leaves a cursor open when it is cancelled between the visits: 3 to 5 times the cost of this.
    """

    dialect: ClassVar[Dialect]
    one_writer: ClassVar[bool]
    """Whether writers exclude each other anyway, so that they had better queue than meet."""
    longest_idle: ClassVar[float] = inf
    """How long, in seconds, a connection may be idle before it is better opened anew."""

    @abstractmethod
    def options(self, *, schema: str | None, pool_size: int, timeout: float) -> dict[str, Any]:
        """The keyword options with which `databases` opens connections."""

    async def connect(self, connection: Connection) -> None:
        """Open the connection, or leave nothing of it."""
        await connection.__aenter__()

    @abstractmethod
    async def look(self, raw: Any) -> bool:
        """Make the connection durable, as far as that is ours, and see what it is fit for: True when it takes writes.

        Asked of every new connection, and of each one that is in use again after a while.

        Raises:
            Unusable: the database could lose what it acknowledges.
            Exception: the connection is of no use now; `refusal` says what that amounts to.
        """

    def concerns_all(self, error: BaseException) -> bool:
        """Whether idle connections would meet what one met that had to be given up."""
        return False

    def is_crowded(self, error: BaseException | None) -> bool:
        """Whether no further connection is let in, though those that are open serve on."""
        return False

    @abstractmethod
    async def inspect(self, raw: Any) -> dict[str, str]:
        """What the database is and how durable, by name.

        Raises:
            Unusable: it could never be used as it is.
        """

    @property
    def doubts(self) -> bool:
        """Whether something that looks committed may not be durable, so that nothing may build on it."""
        return False

    async def settle(self, raw: Any) -> None:
        """Make it durable, or raise what speaks against it."""
        return

    @property
    def lacks_room(self) -> bool:
        """Whether space that should be set aside, for a disk that is full, is not."""
        return False

    async def keep_room(self, raw: Any) -> None:
        """Set it aside, where that is ours to do."""
        return

    def make_room(self) -> bool:
        """Give some of it back; False when there is none. It may wait for the disk."""
        return False

    @abstractmethod
    async def fetch(self, raw: Any, query: Query, arguments: Mapping[str, Any]) -> list[Row]: ...

    @abstractmethod
    async def execute(self, raw: Any, statement: str) -> None: ...

    @abstractmethod
    async def begin(self, raw: Any, timeout: float | None, lock_timeout: float | None = None) -> None:
        """Start a transaction that may write; in seconds, how long it may take and wait for a lock if not as usual."""

    async def lift_limits(self, raw: Any) -> None:
        """Let statements on this connection take as long as they need."""
        return

    @abstractmethod
    async def commit(self, raw: Any) -> None:
        """Return only when the transaction is durable."""

    @abstractmethod
    async def recover(self, raw: Any, error: Exception) -> bool:
        """Undo what `error` left unfinished; whether the connection is as good as new."""

    @abstractmethod
    def is_open(self, raw: Any) -> bool:
        """Whether the connection lives, as far as can be told without asking the database."""

    @abstractmethod
    async def abandon(self, raw: Any) -> "Future[Any] | None":
        """Give the connection up at once, whatever it is doing; never waits.

        The future, if there is one, is done when the connection holds nothing any more.
        """

    @abstractmethod
    async def close(self, raw: Any) -> None:
        """Close an idle connection in good order."""

    @abstractmethod
    def refusal(self, error: Exception) -> UploadError | None:
        """The refusal that a failure of the database amounts to; None for a mistake of ours."""

    @abstractmethod
    def is_conflict(self, error: BaseException | None) -> bool:
        """Whether the transaction was certainly undone and may well succeed if tried again."""

    @abstractmethod
    def misfit(self, error: BaseException | None) -> str | None:
        """Why the database can never be used as it is set up, if that is what `error` says."""
