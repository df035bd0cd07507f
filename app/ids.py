"""The clock, and chance: the only module that reads either. Everybody else is given what it makes."""

import secrets
import time
from typing import Final

import uuid_utils

_CODE_LETTERS: Final = "0123456789ABCDEFGHJKMNPQRSTVWXYZ"  # Crockford's: none that looks like another


def now_us() -> int:
    return time.time_ns() // 1000


def new_id() -> str:
    """A UUIDv7: sortable by time, 74 bits of chance."""
    return str(uuid_utils.uuid7())


def new_key() -> str:
    """128 bits of chance, as a URL can hold them: who has this has the upload it stands for."""
    return secrets.token_urlsafe(16)


def new_code() -> str:
    """Sixty bits for people to type, good for ten minutes: ABCD-EFGH-JKMN."""
    letters = "".join(secrets.choice(_CODE_LETTERS) for _ in range(12))
    return "-".join((letters[:4], letters[4:8], letters[8:]))
