"""Queryables: whatever runs named queries, be it a database, one transaction, or a separate connection."""

from abc import ABC, abstractmethod
from collections.abc import Awaitable, Coroutine, Mapping
from typing import Any, Final, Protocol, TypeVar

import pydantic_core
import structlog

from app.db import queries
from app.db.driver import Driver, Row
from app.errors import StorageFull

log = structlog.stdlib.get_logger("waybill.db")
T = TypeVar("T")

LAST_ID: Final = "\U0010ffff"
"""An id behind every other one, where a walk over ids ends."""


class Queryable(Protocol):
    """An object that runs named queries: the database itself, or one transaction in it."""

    async def one(self, name: str, /, **params: Any) -> Row | None: ...

    async def many(self, name: str, /, **params: Any) -> list[Row]: ...

    async def run(self, name: str, /, **params: Any) -> None: ...


class NamedQueries(ABC):
    """Runs queries by name; subclasses define how."""

    _queries: Mapping[str, queries.Query]

    @abstractmethod
    async def _ask(self, query: queries.Query, arguments: Mapping[str, Any]) -> list[Row]: ...

    async def one(self, name: str, /, **params: Any) -> Row | None:
        """The row of a query of kind :one, or None."""
        rows = await self._rows(name, "one", params)
        return rows[0] if rows else None

    async def many(self, name: str, /, **params: Any) -> list[Row]:
        """The rows of a query of kind :many."""
        return await self._rows(name, "many", params)

    async def run(self, name: str, /, **params: Any) -> None:
        """Run a query of kind :run."""
        await self._rows(name, "run", params)

    async def _rows(self, name: str, kind: queries.Kind, params: dict[str, Any]) -> list[Row]:
        query = self._queries[name]
        if query.kind != kind:
            raise TypeError(f"{name} is a query of kind :{query.kind}, not :{kind}")
        return await self._ask(query, query.arguments(params))


class Transaction(NamedQueries):
    """One transaction. It ends with the function that it was given to.

    After a statement has failed nothing of the transaction is kept, whether or not the function
    lets the error pass: PostgreSQL could not go on, so neither does SQLite.
    """

    def __init__(self, driver: Driver, raw: Any, known: Mapping[str, queries.Query]) -> None:
        self._driver, self._raw, self._queries = driver, raw, known
        self.failure: Exception | None = None
        self.ended = False

    async def execute(self, statement: str) -> None:
        """Run one statement as it stands: for migrations."""
        await self._step(self._driver.execute(self._raw, statement))

    async def _ask(self, query: queries.Query, arguments: Mapping[str, Any]) -> list[Row]:
        return await self._step(self._driver.fetch(self._raw, query, arguments))

    async def _step(self, answer: Coroutine[Any, Any, T]) -> T:
        if self.ended:
            answer.close()
            raise RuntimeError("the transaction has ended; its unit cannot be used any more")
        try:
            return await answered(self._driver, answer)
        except Exception as error:
            self.failure = error
            raise


class SeparateConnection(NamedQueries):
    """One connection in autocommit mode: each statement is a transaction of its own."""

    def __init__(self, driver: Driver, raw: Any, known: Mapping[str, queries.Query]) -> None:
        self._driver, self.raw, self._queries = driver, raw, known

    async def execute(self, statement: str) -> None:
        """Run one statement as it stands: for migrations."""
        await answered(self._driver, self._driver.execute(self.raw, statement))

    async def _ask(self, query: queries.Query, arguments: Mapping[str, Any]) -> list[Row]:
        return await answered(self._driver, self._driver.fetch(self.raw, query, arguments))


async def answered(driver: Driver, answer: Awaitable[T]) -> T:
    """Await the answer; an error of the database is raised as the refusal that it amounts to."""
    try:
        return await answer
    except Exception as error:
        refusal = driver.refusal(error)
        if refusal is None:
            raise
        if isinstance(refusal, StorageFull):
            log.warning("database full", reason=str(error))
        raise refusal from error


def json_parameter(value: object) -> str:
    """Serialise a list as JSON: one parameter of a statement, whatever its length."""
    return pydantic_core.to_json(value).decode()
