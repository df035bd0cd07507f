"""Chromium for the tests of the page, and files to upload."""

import hashlib
import random
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing
from pathlib import Path

import pytest

from tests.browser.driving import Browser
from tests.support.service import service

__all__ = ["service"]


@pytest.fixture(scope="session")
def chromium() -> Iterator[Browser]:
    with closing(Browser()) as running:
        yield running


@pytest.fixture
def browser(chromium: Browser) -> Iterator[Browser]:
    yield chromium
    chromium.close_contexts()


@pytest.fixture
def files(tmp_path: Path) -> Callable[[Mapping[str, int]], dict[str, str]]:
    """`files({"a/b.bin": 1000})` makes files of random bytes below `tmp_path / "files"`; their digests by path."""

    def make(sizes: Mapping[str, int]) -> dict[str, str]:
        chance = random.Random(repr(sorted(sizes.items())))
        made = {}
        for name, size in sizes.items():
            path = tmp_path / "files" / name
            path.parent.mkdir(parents=True, exist_ok=True)
            content = chance.randbytes(size)
            path.write_bytes(content)
            made[name] = hashlib.sha256(content).hexdigest()
        return made

    return make
