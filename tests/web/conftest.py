"""A running service for each module of tests, once on each database. Every test is a client of its own."""

from collections.abc import AsyncIterator

import pytest
import pytest_asyncio

from tests.support.asgi import Service, serving, settings_in
from tests.support.memory import quick_directory
from tests.support.postgres import Postgres


@pytest_asyncio.fixture(scope="module", loop_scope="module", params=["sqlite", "postgresql"])
async def service(request: pytest.FixtureRequest) -> AsyncIterator[Service]:
    url = None
    if request.param == "postgresql":
        server: Postgres = request.getfixturevalue("postgres")
        url = server.create_database()
    with quick_directory() as directory:
        async with serving(settings_in(directory, url, retain_failed="36500d")) as running:
            yield running
