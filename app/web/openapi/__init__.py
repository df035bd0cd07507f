"""GET /openapi.json: the service's description of itself, OpenAPI 3.1."""

from functools import lru_cache
from importlib import metadata
from typing import Any

from pydantic_core import to_json
from starlette.requests import Request
from starlette.responses import Response

from app.config import Settings
from app.web.assets import Asset
from app.web.credentials import COOKIE
from app.web.openapi.operations import operations
from app.web.openapi.words import JSON, Json, headers, schemas
from app.web.services import Services

_ABOUT = """\
Files stream in; each lands whole or not at all, is durable once it is acknowledged, and stays in a history that the
session which sent it can query. Every refusal is a problem document (RFC 9457), whose `code` never changes. What is not
listed here is 404 `not_found` or 405 `method_not_allowed`; a request that is no HTTP is 400 `bad_request`. Pages of the
origins that the operator allows also get the fields of CORS, and answers to their preflights."""


async def show(request: Request[Services]) -> Response:
    """GET /openapi.json: the description, which changes only with the service and its settings."""
    return _written(request.state["settings"]).answer(request, {})


def document(settings: Settings) -> Json:
    return {
        "openapi": "3.1.0",
        "info": {"title": "Waybill", "version": metadata.version("waybill"), "description": _ABOUT},
        "servers": [{"url": settings.base_path or "/"}],
        "security": [{}, {"cookie": []}, {"bearer": []}],
        "paths": operations(settings),
        "components": {
            "schemas": schemas(),
            "headers": headers(),
            "securitySchemes": {
                "cookie": {"type": "apiKey", "in": "cookie", "name": COOKIE},
                "bearer": {"type": "http", "scheme": "bearer"},
            },
        },
    }


@lru_cache(maxsize=8)
def _written(settings: Any) -> Asset:
    """The document as it is sent; made once for all settings that this process has seen."""
    return Asset.of(to_json(document(settings)), JSON)
