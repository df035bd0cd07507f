"""A running service for each module of tests, once on each database. Every test is a client of its own."""

from collections.abc import AsyncIterator

import pytest
import pytest_asyncio

from tests.asgi import Service, serving, settings_in
from tests.postgres import Postgres


@pytest_asyncio.fixture(scope="module", loop_scope="module", params=["sqlite", "postgresql"])
async def service(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Service]:
    url = None
    if request.param == "postgresql":
        server: Postgres = request.getfixturevalue("postgres")
        url = server.create_database()
    async with serving(settings_in(tmp_path_factory.mktemp("service"), url)) as running:
        yield running
