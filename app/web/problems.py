"""Problem documents (RFC 9457), made from refusals in one place."""

from pydantic_core import to_json
from starlette.exceptions import HTTPException
from starlette.responses import Response
from starlette.routing import Match
from starlette.types import Scope

from app.errors import BadRequest, MethodNotAllowed, NotFound, UploadError


def problem(error: UploadError, request_id: str) -> Response:
    """The refusal as `application/problem+json`; its `members` are the numbers and names in its text."""
    document = {
        "type": error.registered or f"urn:waybill:problem:{error.code}",
        "title": error.title,
        "status": error.status,
        "detail": str(error),
        "code": error.code,
        "request_id": request_id,
        **error.members,
    }
    headers = {"Cache-Control": "no-store", **error.headers}
    return Response(to_json(document), error.status, headers, "application/problem+json")


def refusal_of(error: UploadError | HTTPException, scope: Scope) -> UploadError:
    """The refusal to send; Starlette's own exceptions mean an unknown path or method."""
    if isinstance(error, UploadError):
        return error
    if error.status_code == 404:
        return NotFound()
    if error.status_code == 405:
        return MethodNotAllowed(scope["method"], ", ".join(_methods_here(scope)))
    return BadRequest("the request cannot be understood")


def _methods_here(scope: Scope) -> list[str]:
    """All methods of this path. Several routes may share it, and each knows only its own."""
    routes = [route for route in scope["app"].routes if route.matches(scope)[0] is not Match.NONE]
    return sorted({method for route in routes for method in route.methods or ()})
