"""Privileges: missing grants of the database's role, and tables of other owners, found before a migration."""

import json
import re
from collections.abc import Collection, Iterable
from typing import Final

from app.db.driver import Row
from app.db.queries import Migration
from app.db.queryable import Queryable
from app.errors import Unusable

_ELSEWHERE: Final = "set WAYBILL_DATABASE_SCHEMA to a schema of Waybill's own"


async def examine(db: Queryable, known: Iterable[Migration], applied: Collection[int], schema: str | None) -> None:
    """Check that the needed ones of the `known` migrations can be applied, and the tables be used.

    Raises:
        Unusable: they cannot; the text says what is to be granted, or renamed, and by whom.
    """
    had = [migration for migration in known if migration.number in applied]
    needed = [migration for migration in known if migration.number not in applied and migration.indexes is None]
    place = await db.one("find_place", schema=schema)
    names = json.dumps(["schema_migrations", *_created([*had, *needed])])
    tables = {str(table["name"]): table for table in await db.many("list_tables", names=names)}
    assert place is not None
    if not applied:
        _see_that_none_is_foreign(place, tables)
    if needed:
        _see_that_it_may_create(place, schema)
    for migration in needed:
        for name in sorted(_changed(migration) & tables.keys()):
            if not tables[name]["is_owned"]:
                raise Unusable(
                    f"the table {name} belongs to the role {tables[name]['owner']}, which alone can apply "
                    f"{migration.name}: run waybill migrate as that role, or make {place['role']} the owner"
                )
    closed = [f"{table['place']}.{name}" for name, table in tables.items() if not table["is_usable"]]
    if applied and closed:
        raise Unusable(
            f"the role {place['role']} may not use all tables: "
            f"GRANT SELECT, INSERT, UPDATE, DELETE ON {', '.join(closed)} TO {place['role']}"
        )


def _see_that_none_is_foreign(place: Row, tables: dict[str, Row]) -> None:
    foreign = [name for name, table in tables.items() if table["place"] == place["place"]]
    if foreign:
        where = f" in the schema {place['place']}" if place["role"] else ""
        instead = _ELSEWHERE if place["role"] else "name another file in WAYBILL_DATABASE_URL"
        raise Unusable(f"the database has a table {foreign[0]}{where} that is not Waybill's: {instead}, or rename it")


def _see_that_it_may_create(place: Row, schema: str | None) -> None:
    role = place["role"]
    if place["place"] is None and schema is None:
        raise Unusable(
            f"the role {role} may use no schema of its search path, {place['path']}: "
            f"GRANT USAGE, CREATE ON SCHEMA public TO {role}, or {_ELSEWHERE}"
        )
    if place["place"] is None and not place["is_there"]:
        if not place["creates_schemas"]:
            raise Unusable(
                f"the schema {schema} is not there, and the role {role} may not make it: "
                f"CREATE SCHEMA {schema} AUTHORIZATION {role}"
            )
    elif not place["creates_tables"]:
        where = place["place"] or schema
        raise Unusable(
            f"the role {role} may not make tables in the schema {where}: "
            f"GRANT USAGE, CREATE ON SCHEMA {where} TO {role}" + ("" if schema else f", or {_ELSEWHERE}")
        )


def _created(migrations: Iterable[Migration]) -> list[str]:
    """The tables that are there once these migrations have been applied."""
    found: dict[str, None] = {}
    for migration in migrations:
        for statement in migration.statements:
            if match := re.match(r"CREATE TABLE (\w+)", statement):
                found[match[1]] = None
            elif match := re.match(r"DROP TABLE (\w+)", statement):
                found.pop(match[1], None)
    return list(found)


def _changed(migration: Migration) -> set[str]:
    """The tables that a migration changes in a way that only their owner may."""
    pattern = re.compile(r"(?:ALTER|DROP) TABLE (\w+)|(?:CREATE|DROP) [^;]*?\bON (\w+)")
    return {
        table
        for statement in migration.statements
        for match in pattern.finditer(statement)
        for table in match.groups()
        if table
    }
