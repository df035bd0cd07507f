"""Requests made from the service's own description: whatever they are, the answer is one that it describes.

Schemathesis makes them, within the description and beyond it.
"""

import os
from contextlib import suppress

import pytest
import requests
import schemathesis
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis.errors import Unsatisfiable
from schemathesis import GenerationMode
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_headers_conformance,
    response_schema_conformance,
    status_code_conformance,
)

from tests.support.service import service

__all__ = ["service"]

pytestmark = pytest.mark.slow

CHECKS = [
    not_a_server_error,
    status_code_conformance,
    content_type_conformance,
    response_headers_conformance,
    response_schema_conformance,
]
EXAMPLES = 200 if os.environ.get("HYPOTHESIS_PROFILE") == "thorough" else 10
"""Of each operation, within the description and as many beyond it."""


@schemathesis.serializer("application/offset+octet-stream", "application/partial-upload")
def as_it_is(context, value):
    return value if isinstance(value, bytes) else str(value).encode()


@pytest.fixture
def session():
    with requests.Session() as session:
        session.trust_env = False
        yield session


def test_every_answer_is_one_that_is_described(service, session):
    running = service()
    schema = schemathesis.openapi.from_dict(session.get(f"{running.url}/openapi.json").json())
    schema.config.update(base_url=running.url)
    session.post(f"{running.url}/api/session")
    tried = 0
    for mode in GenerationMode:
        for found in schema.get_all_operations():
            operation = found.ok()

            @settings(
                max_examples=EXAMPLES,
                derandomize=EXAMPLES == 10,
                deadline=None,
                database=None,
                phases=[Phase.explicit, Phase.generate],
                suppress_health_check=list(HealthCheck),
            )
            @given(case=operation.as_strategy(generation_mode=mode))
            def run(case):
                nonlocal tried
                tried += 1
                answer = case.call(session=session)
                case.validate_response(answer, checks=CHECKS)

            with suppress(Unsatisfiable):  # it takes nothing that could be wrong
                run()
    assert tried > 100
