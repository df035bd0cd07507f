"""Databases for every test, and how hard Hypothesis looks."""

import os
import re
import sqlite3
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path

import pytest
import structlog
from hypothesis import HealthCheck, settings

from tests.support.memory import quick_directory
from tests.support.postgres import Postgres
from tests.support.tally import TORTURE, show, tally

__all__ = ["tally"]

HERE = Path(__file__).parent
ON_DISK = {"faults", "interop", "storage"}

# A slow machine is no failure, and a database or a directory may serve all examples of a test.
settings.register_profile(
    "dev",
    max_examples=50,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
settings.register_profile("ci", settings.get_profile("dev"), max_examples=100, derandomize=True)
settings.register_profile("thorough", settings.get_profile("dev"), max_examples=2000)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE") or ("ci" if os.environ.get("CI") else "dev"))

# Where rich is installed structlog would show every local of a failure, and some of ours cannot be shown.
plain = structlog.dev.ConsoleRenderer(exception_formatter=structlog.dev.plain_traceback)
structlog.configure(processors=[*structlog.get_config()["processors"][:-1], plain])


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """What is marked as torture is for `make torture` alone."""
    if not TORTURE:
        config.hook.pytest_deselected(items=[item for item in items if item.get_closest_marker("torture")])
        items[:] = [item for item in items if not item.get_closest_marker("torture")]


@pytest.fixture
def tmp_path(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A directory for one test: in memory, which takes a tenth of the time, but for tests of what a disk does."""
    if ON_DISK.intersection(request.path.relative_to(HERE).parts):
        yield tmp_path_factory.mktemp(re.sub(r"\W", "_", request.node.name)[:30])
    else:
        with quick_directory() as directory:
            yield directory


@pytest.fixture(scope="session")
def postgres() -> Iterator[Postgres]:
    """One PostgreSQL for all tests of this process. A test that hurts it starts its own."""
    server = Postgres()
    yield server
    server.close()


@pytest.fixture(params=["sqlite", "postgresql"])
def database_url(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    """A fresh, empty database; the test runs once on each kind."""
    if request.param == "sqlite":
        yield f"sqlite:///{tmp_path}/waybill.db"
        return
    server: Postgres = request.getfixturevalue("postgres")
    url = server.create_database()
    yield url
    server.drop_database(url)


@pytest.fixture
def snapshot(database_url: str, request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Callable[[], str]]:
    """`snapshot()` is the URL of a copy of the database as it is now. On PostgreSQL nobody may be using it."""
    made: list[tuple[Postgres, str]] = []

    def take() -> str:
        if database_url.startswith("sqlite:"):
            path = database_url.removeprefix("sqlite:///")
            copy = tmp_path / "copy.db"
            with closing(sqlite3.connect(path)) as source, closing(sqlite3.connect(copy)) as target:
                source.backup(target)
            return f"sqlite:///{copy}"
        server, name = request.getfixturevalue("postgres"), database_url.rpartition("/")[2]
        server.execute(f"CREATE DATABASE {name}_copy TEMPLATE {name}")
        made.append((server, f"{database_url}_copy"))
        return f"{database_url}_copy"

    yield take
    for server, url in made:
        server.drop_database(url)


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    show(terminalreporter)
