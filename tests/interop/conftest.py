"""The service that real clients meet, and what they send to it."""

from contextlib import closing

import pytest

from tests.interop.clients import source
from tests.support.service import Service

__all__ = ["source"]


@pytest.fixture(scope="package")
def running(tmp_path_factory):
    with closing(Service(tmp_path_factory.mktemp("service"))) as running:
        yield running.start()
