"""A service for the tests of a module, and a user of it for each."""

from collections.abc import Iterator
from contextlib import closing

import pytest

from tests.client.running import User
from tests.support.memory import quick_directory
from tests.support.service import Service


@pytest.fixture(scope="module")
def running() -> Iterator[Service]:
    with quick_directory() as directory, closing(Service(directory / "service")) as service:
        yield service.start()


@pytest.fixture
def user(running: Service, tmp_path) -> User:
    return User(tmp_path, running.url)


@pytest.fixture
def history(running: Service, user: User):
    """The records of the user's session, newest first."""

    def ask(**filters: str) -> list[dict[str, object]]:
        with running.client(headers={"Authorization": f"Bearer {user.token}"}) as client:
            return client.get("/api/ingestion/history", params={"limit": 500, **filters}).json()["items"]

    return ask
