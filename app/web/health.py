"""Alive? Ready?"""

from collections.abc import Awaitable
from typing import Any

from pydantic_core import to_json
from starlette.requests import Request
from starlette.responses import Response

from app.db import migrate
from app.errors import Unavailable, UploadError
from app.web.services import Services

_NO_STORE = {"Cache-Control": "no-store"}


async def live(request: Request[Any]) -> Response:
    """GET /health/live: the process serves."""
    return Response(b'{"status":"live"}', media_type="application/json", headers=_NO_STORE)


async def ready(request: Request[Services]) -> Response:
    """GET /health/ready: whether an upload would be taken now, with each check's result."""
    storage, db = request.state["storage"], request.state["db"]
    checks = {
        "database": await _result(db.ping()),
        "schema": await _result(_schema(request)),
        "store": await _result(storage.test()),
    }
    free = await storage.free_bytes()
    checks["free_space"] = "ok" if free is None or free > 0 else "the space that is kept free is all that is left"
    failing = [name for name, result in checks.items() if result != "ok"]
    answer = {"status": "not ready" if failing else "ready", "failing": failing, "checks": checks}
    return Response(to_json(answer), 503 if failing else 200, _NO_STORE, "application/json")


async def _schema(request: Request[Services]) -> None:
    if await migrate.pending(request.state["db"]):
        raise Unavailable("the schema is not current; waybill migrate makes it so")


async def _result(check: Awaitable[Any]) -> str:
    try:
        await check
    except UploadError as error:
        return str(error)
    return "ok"
