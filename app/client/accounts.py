"""Accounts of the user: the services that were logged in to, each with its token, in a file for the user alone."""

import fcntl
import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final, NamedTuple
from urllib.parse import urlsplit

import platformdirs

from app.client.failures import Misused

_FILE: Final = "servers.json"


class Account(NamedTuple):
    """A token, and the id of the session that it opens, which is no secret."""

    token: str
    session: str


class Accounts:
    """The file of accounts. It is read anew for every question, and replaced in one step."""

    def __init__(self, directory: Path | None = None) -> None:
        self._directory = directory or platformdirs.user_config_path("waybill")
        self._path = self._directory / _FILE

    def find(self, url: str) -> Account | None:
        """The account at a service, None if there is none."""
        found = self._read().get("servers", {}).get(url)
        return None if found is None else Account(found["token"], found["session"])

    def last(self) -> str | None:
        """The address of the service that was logged in to last."""
        found: str | None = self._read().get("last")
        return found

    def keep(self, url: str, account: Account) -> None:
        """Keep the account, in place of an earlier one at the same service."""
        known = self._read()
        servers = {**known.get("servers", {}), url: account._asdict()}
        self._write({"last": url, "servers": servers})

    @contextmanager
    def alone(self) -> Iterator[None]:
        """Hold the accounts, so that no two commands begin a session each."""
        self._directory.mkdir(parents=True, exist_ok=True, mode=0o700)
        handle = os.open(self._directory / "lock", os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(handle, fcntl.LOCK_EX)
            yield
        finally:
            os.close(handle)

    def _read(self) -> Mapping[str, Any]:
        try:
            known = json.loads(self._path.read_text("utf-8"))
        except FileNotFoundError:
            return {}
        except (ValueError, OSError) as error:
            raise Misused(f"{self._path} cannot be read: {error}") from None
        return known if isinstance(known, dict) else {}

    def _write(self, known: object) -> None:
        self._directory.mkdir(parents=True, exist_ok=True, mode=0o700)
        new = self._path.with_name(f"{_FILE}.{os.getpid()}")
        new.unlink(missing_ok=True)
        with open(os.open(new, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600), "w", encoding="utf-8") as file:
            json.dump(known, file, indent=2)
            file.flush()
            os.fsync(file.fileno())
        new.replace(self._path)


def address(url: str) -> str:
    """The address of a service as it is kept: without a slash at the end; raises Misused if it is no such address."""
    parts = urlsplit(url.strip())
    if parts.scheme not in ("http", "https") or not parts.hostname or parts.query or parts.fragment:
        raise Misused(f"{url!r} is no address of a service, which looks like https://uploads.example")
    return url.strip().rstrip("/")
