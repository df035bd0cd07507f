"""Refusal → problem document (RFC 9457), in one place."""

from typing import Any

from pydantic_core import to_json
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Match

from app.errors import BadRequest, MethodNotAllowed, NotFound, UploadError


def problem(error: UploadError, request_id: str) -> Response:
    """The refusal as `application/problem+json`; `members` are the numbers and names it speaks of."""
    document = {
        "type": f"urn:waybill:problem:{error.code}",
        "title": error.title,
        "status": error.status,
        "detail": str(error),
        "code": error.code,
        "request_id": request_id,
        **error.members,
    }
    return Response(to_json(document), error.status, error.headers, "application/problem+json")


async def refused(request: Request[Any], error: Exception) -> Response:
    """Every refusal leaves here."""
    assert isinstance(error, UploadError)
    exchange = request.scope["exchange"]
    exchange.notes["code"] = error.code
    return problem(error, exchange.id)


async def refused_by_framework(request: Request[Any], error: Exception) -> Response:
    """What Starlette refuses by itself: unknown paths and methods."""
    assert isinstance(error, HTTPException)
    if error.status_code == 404:
        return await refused(request, NotFound())
    if error.status_code == 405:
        return await refused(request, MethodNotAllowed(request.method, ", ".join(_methods_here(request))))
    return await refused(request, BadRequest("the request cannot be understood"))


def _methods_here(request: Request[Any]) -> list[str]:
    """All methods of this path. Several routes may share it, and each knows only its own."""
    routes = [route for route in request.app.routes if route.matches(request.scope)[0] is not Match.NONE]
    return sorted({method for route in routes for method in route.methods or ()})
