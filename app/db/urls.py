"""Database URLs: which driver a URL asks for, and how the URL may be shown."""

import re

from databases import DatabaseURL

from app.config import postgresql_url
from app.db.driver import Driver
from app.errors import Unusable


def understood(url: str) -> tuple[str, str, Driver]:
    """Take a URL apart: the URL without its password, the URL for `databases`, and the driver.

    The other driver is not imported: that would take memory and time.

    Raises:
        Unusable: the URL names no database that is known here, or sets options that would be ignored.
    """
    name = re.sub(r"(?<=//)([^/?]*?):[^/?]*@", r"\1:********@", url)
    try:
        match url.partition(":")[0]:
            case "sqlite":
                from app.db.sqlite import SqliteDriver

                if DatabaseURL(url).database in {"", ":memory:"}:
                    raise Unusable(f"{name}: the URL names no database")
                if DatabaseURL(url).options:
                    raise Unusable(f"{name}: the URL has options, which would be ignored")
                return name, url, SqliteDriver()
            case "postgresql" | "postgres":
                from app.db.postgresql import PostgresqlDriver

                return name, "postgresql://", PostgresqlDriver(postgresql_url.parse(url))
    except ValueError as error:
        raise Unusable(f"the database's URL {error}") from None
    raise Unusable("the database's URL must begin with sqlite:/// or postgresql://")
