"""One service for all tests of a module; it must be as good as new after each."""

from collections.abc import Iterator
from contextlib import closing

import pytest

from tests.hostile.wire import Visitor
from tests.support.service import Service

LIMITS = {
    "max_file_size": 2_000_000,
    "max_request_size": 3_000_000,
    "max_files_per_request": 20,
    "min_upload_rate": 1024,
}


@pytest.fixture(scope="module")
def running(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    """A module may say by CHANGE what is run in the service's process first."""
    change = getattr(request.module, "CHANGE", "")
    with closing(Service(tmp_path_factory.mktemp("service"), change=change, **LIMITS)) as running:
        yield running.start()
        assert running.said("error") + running.said("critical") == []


@pytest.fixture
def visitor(running: Service) -> Visitor:
    return Visitor(running)
