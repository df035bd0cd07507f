"""The queries and migrations of the folder `sql/`: each read once, its header checked, for one dialect.

The rules of that folder stand in `sql/README.md`; a file that breaks one is refused here, when the
service starts, and not when the query is first asked.
"""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, Final, Literal, NamedTuple

Dialect = Literal["sqlite", "postgresql"]
Kind = Literal["one", "many", "run"]

_HEADER: Final = re.compile(
    r"-- name: (?P<name>[a-z]+(?:_[a-z]+)+) :(?P<kind>one|many|run)\n"
    r"-- params: (?P<params>none|[a-z0-9_]+\??(?:, [a-z0-9_]+\??)*)\n"
    r"(?:-- [^\n]+\n)+"
    r"(?P<statement>(?!--).+)",
    re.DOTALL,
)
# Quoted text is matched first, so that neither a comment nor a parameter begins inside it.
_TOKEN: Final = re.compile(r"'(?:[^']|'')*'|\"(?:[^\"]|\"\")*\"|--[^\n]*|(?<!:):(?P<param>[a-z][a-z0-9_]*)")
_MIGRATION_NAME: Final = re.compile(r"[0-9]{4}_[a-z0-9_]+(?:\.needs_(?P<oldest>[0-9]{4}))?\.sql")
# A unique index is not one of these: statements rely on it.
_INDEX: Final = re.compile(r"DROP INDEX (?P<dropped>\w+)|CREATE INDEX (?P<made>\w+)\s+ON\s+(?P<on>.+)", re.DOTALL)


class Malformed(Exception):
    """A file of the folder `sql/` breaks the rules of that folder."""


@dataclass(frozen=True, slots=True)
class Query:
    """One statement, ready for its database."""

    name: str
    kind: Kind
    statement: str
    order: tuple[str, ...]
    """The parameters in the order of PostgreSQL's $1, $2, …; SQLite finds them by name."""
    params: frozenset[str]
    optional: frozenset[str]
    writes: bool

    def arguments(self, given: dict[str, Any]) -> dict[str, Any]:
        """Complete `given` with None for the optional parameters that are left out.

        Raises:
            TypeError: a parameter is missing, None without being optional, or unknown.
        """
        if given.keys() != self.params:
            missing, unknown = self.params - self.optional - given.keys(), given.keys() - self.params
            if missing or unknown:
                raise TypeError(f"{self.name}: missing {sorted(missing)}, unknown {sorted(unknown)}")
            given = dict.fromkeys(self.optional) | given
        if None in given.values():
            absent = {name for name, value in given.items() if value is None} - self.optional
            if absent:
                raise TypeError(f"{self.name}: {sorted(absent)} cannot be None")
        return given


class Index(NamedTuple):
    """An index that a migration creates on the table `on`, or drops where that is None."""

    name: str
    on: str | None


class Migration(NamedTuple):
    """One file of `sql/migrations/`; `name` is the file's, `number` its first four digits."""

    number: int
    name: str
    text: str

    @property
    def statements(self) -> list[str]:
        """The file's statements, each of which ends with a semicolon, and that with an empty line or the file's end."""
        bare = _without_comments(self.text)
        return [statement.strip() for statement in re.split(r";[ ]*(?:\n[ ]*(?=\n|$)|$)", bare) if statement.strip()]

    @property
    def indexes(self) -> list[Index] | None:
        """The file's statements, if each of them makes or drops an index that only makes queries faster; else None."""
        found = [_INDEX.fullmatch(statement) for statement in self.statements]
        if not found or None in found:
            return None
        return [Index(match["dropped"] or match["made"], match["on"]) for match in found if match]


def oldest_code(name: str) -> int:
    """The highest migration that code must know to use a database that has had the migration `name`; 0 for any."""
    match = _MIGRATION_NAME.fullmatch(name)
    return int(match["oldest"] or 0) if match else 0


def folder() -> Path:
    """The path of `sql/`: inside the package when it was installed from a wheel, else beside it."""
    package = Path(__file__).parents[1]
    inside = package / "sql"
    return inside if inside.is_dir() else package.parent / "sql"


@cache
def load(dialect: Dialect) -> Mapping[str, Query]:
    """Every query by its name, as `dialect` takes it.

    Raises:
        Malformed: a file breaks the folder's rules; the text names file and query.
    """
    found: dict[str, Query] = {}
    for place in (folder() / "queries", folder() / "queries" / dialect):
        for path in sorted(place.glob("*.sql")):
            for query in parse(path.read_text("utf-8"), dialect, where=str(path.relative_to(folder()))):
                if query.name in found:
                    raise Malformed(f"{path.relative_to(folder())}: {query.name} is there twice")
                found[query.name] = query
    return found


def parse(text: str, dialect: Dialect, *, where: str) -> Iterator[Query]:
    """The queries of one file's text."""
    preface, *sections = re.split(r"^(?=-- name:)", text, flags=re.MULTILINE)
    if _without_comments(preface).strip():
        raise Malformed(f"{where}: a statement stands before the first header")
    for section in sections:
        yield _query(section, dialect, where)


@cache
def migrations(dialect: Dialect) -> tuple[Migration, ...]:
    """Every migration in its order.

    Raises:
        Malformed: the numbers are not 1, 2, 3, …, or a name is none that older code could read.
    """
    paths = sorted((folder() / "migrations" / dialect).glob("*.sql"))
    for path in paths:
        if not _MIGRATION_NAME.fullmatch(path.name):
            raise Malformed(f"migrations/{dialect}/{path.name}: the name is not 0001_what_it_does.sql")
    found = tuple(Migration(int(path.name[:4]), path.name, path.read_text("utf-8")) for path in paths)
    if [migration.number for migration in found] != list(range(1, len(found) + 1)):
        raise Malformed(f"migrations/{dialect}: the numbers have a gap or are there twice")
    return found


def _query(section: str, dialect: Dialect, where: str) -> Query:
    header = _HEADER.match(section)
    if header is None:
        raise Malformed(f"{where}: the header is not name, params and a sentence: {section[:80]!r}")
    name, statement = header["name"], _without_comments(header["statement"]).strip()
    listed = [] if header["params"] == "none" else header["params"].split(", ")
    params = frozenset(param.removesuffix("?") for param in listed)
    optional = frozenset(param.removesuffix("?") for param in listed if param.endswith("?"))
    order: list[str] = []

    def numbered(token: re.Match[str]) -> str:
        if token["param"] is None:
            return token[0]
        if token["param"] not in order:
            order.append(token["param"])
        return f"${order.index(token['param']) + 1}"

    for_postgresql = _TOKEN.sub(numbered, statement)
    if set(order) != params or len(listed) != len(params):
        raise Malformed(f"{where}: {name} lists {sorted(listed)} and uses {sorted(order)}")
    if not statement.endswith(";") or ";" in statement[:-1]:
        raise Malformed(f"{where}: {name} is not one statement that ends with a semicolon")
    if "%" in statement or "::" in statement:
        raise Malformed(f"{where}: {name} has % or :: in it")
    for param in optional:
        if len(re.findall(rf":{param}\b", statement)) != len(re.findall(rf"CAST\(:{param} AS ", statement)):
            raise Malformed(f"{where}: {name} uses the optional {param} without CAST")
    return Query(
        name=name,
        kind=header["kind"],  # type: ignore[arg-type]  # the pattern lets no other word pass
        statement=(statement if dialect == "sqlite" else for_postgresql)[:-1],
        order=tuple(order),
        params=params,
        optional=optional,
        writes=not statement.startswith("SELECT"),
    )


def _without_comments(text: str) -> str:
    return _TOKEN.sub(lambda token: "" if token[0].startswith("--") else token[0], text)
