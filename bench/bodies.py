"""What is uploaded: files that anyone who holds their index can make again, byte for byte (load.c makes the same)."""

import hashlib
import random
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path
from typing import Final

POOL_BYTES: Final = 4 * 1024 * 1024  # stays in the cache of the core that sends
_STAMP: Final = 16
_STRIDE: Final = 4099
_SEED: Final = 20


@lru_cache(1)
def pool() -> bytes:
    return random.Random(_SEED).randbytes(POOL_BYTES)  # noqa: S311  # the same bytes each time are the point


def content(index: int, size: int) -> Iterator[bytes]:
    """File `index`: 16 digits that name it, then the pool from a place of its own, endlessly repeated."""
    yield b"%016d" % index
    at = _STAMP
    while at < size:
        start = (index * _STRIDE + at) % POOL_BYTES
        block = pool()[start : start + size - at]
        yield block
        at += len(block)


def index_of(stored: Path) -> int:
    """Which file this is, by what it holds. Raises ValueError when it is none of ours."""
    with stored.open("rb") as file:
        return int(file.read(_STAMP))


@lru_cache(4096)
def digest(index: int, size: int) -> str:
    sha256 = hashlib.sha256()
    for block in content(index, size):
        sha256.update(block)
    return sha256.hexdigest()


def digest_of(stored: Path) -> str:
    with stored.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
