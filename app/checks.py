"""Checks that must pass before the service starts; the same for `waybill serve` and `waybill check`."""

import resource
from collections.abc import Awaitable, Callable
from typing import Final, NamedTuple
from urllib.parse import urlsplit

from app.config import Settings
from app.db import migrate
from app.errors import Unavailable, Unusable, UploadError
from app.main import open_database, open_storage
from app.secret_key import read_key
from app.web.logo import read_logo

_FORMS_AT_ONCE: Final = 4
"""The number of the largest forms that, with nothing else, use up the files that may be open."""


class Check(NamedTuple):
    """One check's name, whether it passed, and what was found; `away` if waiting may make it pass.

    A check that `warns` has passed, and found something that an operator should look at.
    """

    name: str
    ok: bool
    away: bool
    found: str
    warns: bool = False


async def run(settings: Settings) -> list[Check]:
    """Run every check and return the results; a failing check does not keep the others from being run."""
    warnings: list[Check] = []
    return [
        await _check("storage", lambda: _storage(settings)),
        await _check("secret keys", lambda: _keys(settings)),
        *([await _check("logo", lambda: _logo(settings))] if settings.logo is not None else []),
        await _check("open files", lambda: _open_files(settings)),
        await _check("database", lambda: _database(settings, warnings)),
        *warnings,
    ]


async def _check(name: str, check: Callable[[], Awaitable[str]]) -> Check:
    try:
        return Check(name, True, False, await check())
    except Unusable as error:
        return Check(name, False, False, str(error))
    except UploadError as error:
        return Check(name, False, True, str(error))


async def _open_files(settings: Settings) -> str:
    """Check that the largest form fits: each of its files, unless small, stays open until all have arrived."""
    _, allowed = resource.getrlimit(resource.RLIMIT_NOFILE)
    if allowed == resource.RLIM_INFINITY:
        return "any number may be open"
    if settings.max_files_per_request > allowed // _FORMS_AT_ONCE:
        raise Unusable(
            f"WAYBILL_MAX_FILES_PER_REQUEST is {settings.max_files_per_request}, and each worker may have {allowed} "
            f"files open (ulimit -Hn): expected {allowed // _FORMS_AT_ONCE} at most, or a higher limit"
        )
    return f"{allowed} may be open in each worker"


async def _storage(settings: Settings) -> str:
    storage = open_storage(settings)
    try:
        await storage.prepare()
        free = await storage.free_bytes()
    finally:
        await storage.close()
    if free is None:
        return f"{settings.storage_dir} takes, keeps and renames files"
    if free <= 0:
        raise Unusable(
            f"{settings.storage_dir} has no space above the {settings.min_free_space} bytes that are kept free"
        )
    return f"{settings.storage_dir} takes, keeps and renames files; {free} bytes are free for uploads"


async def _keys(settings: Settings) -> str:
    if settings.secret_keys:
        return f"{len(settings.secret_keys)} configured"
    path = settings.storage_dir / "secret.key"
    # No key is made here: a running service whose file is gone would go on using another one.
    return f"one, in {path}" if read_key(path) else f"none yet; the start makes one, in {path}"


async def _logo(settings: Settings) -> str:
    assert settings.logo is not None
    return f"{settings.logo} is an image of the type {read_logo(settings.logo).media_type}"


async def _database(settings: Settings, warnings: list[Check]) -> str:
    db = open_database(settings)
    try:
        await db.open()
        waiting = (await migrate.pending(db)).names
        places, each = (await db.check()).get("connections"), settings.database_pool_size
        if places is not None and int(places) < settings.workers * each:
            wanted = f"{settings.workers} workers with up to {each} connections each"
            found = f"{wanted}, and the database lets {places} in: requests will wait for one another"
            warnings.append(Check("database connections", True, False, found, warns=True))
    except Unavailable as error:  # its text is for clients and leaves out the address
        raise Unavailable(f"{_address(settings.database_url.get_secret_value())}: {error}") from error
    finally:
        await db.close()
    return f"{db.dialect} answers; " + (f"will be migrated: {', '.join(waiting)}" if waiting else "schema is current")


def _address(url: str) -> str:
    """The database's address, without user and password."""
    parts = urlsplit(url)
    return parts._replace(netloc=parts.netloc.rpartition("@")[2]).geturl()
