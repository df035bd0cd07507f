"""The base path below which the service is mounted, and its URLs are read and written (WAYBILL_BASE_PATH)."""

from typing import Any

from pydantic_core import to_json
from starlette.requests import Request
from starlette.types import Scope

from app.errors import NotFound
from app.model import Upload


def unmount(scope: Scope, base: str) -> None:
    """Remove the base path from the request's path, so that all other code knows only its own paths.

    Raises:
        NotFound: the request's path is not below the base path.
    """
    raw: bytes = scope["raw_path"]
    prefix = f"{base}/"
    if not scope["path"].startswith(prefix) or not raw.startswith(prefix.encode()):
        raise NotFound
    scope["path"], scope["raw_path"] = scope["path"][len(base) :], raw[len(base) :]


def here(request: Request[Any], path: str) -> str:
    """The URL of one of the service's own paths, as clients reach it."""
    return f"{request.state['settings'].base_path}{path}"


def shown(upload: Upload, base: str) -> Upload | dict[str, Any]:
    """The record with links that clients can follow."""
    if not base:
        return upload
    links = {name: path and f"{base}{path}" for name, path in upload.links.items()}
    return {**upload.model_dump(mode="json"), "links": links}


def as_json(upload: Upload, base: str) -> bytes:
    """The record as JSON, with links that clients can follow."""
    return to_json(shown(upload, base)) if base else upload.as_json()


def record_json(request: Request[Any], upload: Upload) -> bytes:
    """The record as the body of an answer."""
    return as_json(upload, request.state["settings"].base_path)
