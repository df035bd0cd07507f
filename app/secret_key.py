"""The keys that sign sessions and cursors: configured, or one in the file `secret.key` of the store."""

import os
import secrets
from pathlib import Path

import structlog
from pydantic import SecretStr

from app.config import Settings
from app.config.types import MIN_KEY_CHARACTERS
from app.errors import Unusable
from app.ids import new_id

log = structlog.stdlib.get_logger("waybill")


def with_secret_keys(settings: Settings) -> Settings:
    """Add the secret keys to the settings, wherever they come from: read once, for all processes of a service.

    Raises:
        Unusable: the key in `secret.key` cannot be read or created.
    """
    return settings.model_copy(update={"secret_keys": tuple(SecretStr(key) for key in secret_keys(settings))})


def secret_keys(settings: Settings) -> list[str]:
    """The configured keys, or the one in `secret.key`, which is created on the first start.

    Several processes may start at once: the first to link its file determines the key.
    """
    if settings.secret_keys:
        return [key.get_secret_value() for key in settings.secret_keys]
    path = settings.storage_dir / "secret.key"
    if (key := read_key(path)) is None:
        _make_key(path)
        key = read_key(path)
    if key is None:
        raise Unusable(f"{path} was removed as soon as it was made")
    return [key]


def read_key(path: Path) -> str | None:
    """Read the key in a file; None if there is no file."""
    try:
        key = path.read_text(encoding="ascii").strip()
    except FileNotFoundError:
        return None
    except (OSError, UnicodeDecodeError) as error:
        raise Unusable(f"{path} cannot be used: {error}") from error
    if len(key) < MIN_KEY_CHARACTERS:
        raise Unusable(f"{path} holds {len(key)} characters, needs {MIN_KEY_CHARACTERS} or more")
    return key


def _make_key(path: Path) -> None:
    try:
        draft = path.with_name(f"secret.{new_id()}")
        with open(os.open(draft, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600), "w", encoding="ascii") as file:
            file.write(secrets.token_urlsafe(48))
            file.flush()
            os.fsync(file.fileno())
        try:
            os.link(draft, path)
            _make_name_durable(path)
            log.info("secret key made", path=str(path))
        except FileExistsError:
            log.debug("secret key made by another process")
        finally:
            draft.unlink()
    except OSError as error:
        raise Unusable(f"{path} cannot be used: {error}") from error


def _make_name_durable(path: Path) -> None:
    """Make the key's name durable: sessions signed with a key that is lost in a power cut could not be opened."""
    directory = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(directory)
    finally:
        os.close(directory)
