"""The clock and randomness: the only module that reads either. All others are given what it makes."""

import secrets
import time
from typing import Final

import uuid_utils

_CODE_LETTERS: Final = "0123456789ABCDEFGHJKMNPQRSTVWXYZ"  # Crockford's: no letter looks like another


def now_us() -> int:
    return time.time_ns() // 1000


def new_id() -> str:
    """A UUIDv7: sortable by time, with 74 bits of randomness."""
    return str(uuid_utils.uuid7())


def new_key() -> str:
    """128 bits of randomness in letters for a URL: possession of this key gives access to its upload."""
    return secrets.token_urlsafe(16)


def new_code() -> str:
    """Sixty bits of randomness for people to type, enough for ten minutes: ABCD-EFGH-JKMN."""
    letters = "".join(secrets.choice(_CODE_LETTERS) for _ in range(12))
    return "-".join((letters[:4], letters[4:8], letters[8:]))
