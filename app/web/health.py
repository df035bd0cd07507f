"""Health checks: whether the process is alive, and whether it is ready for uploads."""

import asyncio
from collections.abc import Awaitable
from typing import Any, Final, NamedTuple

import structlog
from pydantic_core import to_json
from starlette.requests import Request
from starlette.responses import Response

from app.cancellation import run_to_completion
from app.db.database import Db
from app.db.schema import SchemaWatch
from app.errors import Unavailable, Unusable, UploadError, root_reason
from app.maintenance import records as maintenance_records
from app.uploads import records as upload_records
from app.web.services import Services

log = structlog.stdlib.get_logger("waybill.web")

_NO_STORE = {"Cache-Control": "no-store"}
_SHARED_SECONDS: Final = 1.0
"""How long one result serves all requests, since testing the store flushes the disk."""


class _Shared(NamedTuple):
    began: float
    results: "asyncio.Task[tuple[dict[str, str], dict[str, str]]]"


async def live(request: Request[Any]) -> Response:
    """GET /health/live: the process serves."""
    return Response(b'{"status":"live"}', media_type="application/json", headers=_NO_STORE)


async def ready(request: Request[Services]) -> Response:
    """GET /health/ready: whether an upload would be taken now, with each check's result.

    Damage among the stored files is a warning: uploads are taken and all other files
    served, so a load balancer that stopped sending requests would only make things worse.
    """
    now = asyncio.get_running_loop().time()
    shared: _Shared | None = getattr(request.app.state, "readiness", None)
    if shared is None or (shared.results.done() and now - shared.began >= _SHARED_SECONDS):
        shared = request.app.state.readiness = _Shared(
            now, asyncio.create_task(_results(request.state, request.app.state))
        )
    checks, warnings = await run_to_completion(shared.results)
    failing = [name for name, result in checks.items() if result != "ok"]
    answer = {"status": "not ready" if failing else "ready", "failing": failing, "checks": checks}
    answer["warnings"] = warnings
    return Response(to_json(answer), 503 if failing else 200, _NO_STORE, "application/json")


async def _results(services: Services, state: Any) -> tuple[dict[str, str], dict[str, str]]:
    checks = await _checks(services)
    failing = {name: result for name, result in checks.items() if result != "ok"}
    if failing.keys() != getattr(state, "failing", {}).keys():
        state.failing = failing
        if failing:
            log.warning("not ready", **failing)
        else:
            log.info("ready again")
    return checks, await _warnings(services["db"]) if checks["database"] == "ok" else {}


async def _warnings(db: Db) -> dict[str, str]:
    """The warnings to an operator, by name, though uploads are taken; none while the database is away."""
    found = {}
    try:
        if damaged := await upload_records.count_damaged(db):
            found["stored_files"] = f"lost or damaged: {damaged}; waybill verify names them"
        scrub = await maintenance_records.find_scrub(db)
    except UploadError:
        return {}
    if scrub is not None and scrub.stopped is not None:
        found["scrub"] = scrub.stopped
    return found


async def _checks(services: Services) -> dict[str, str]:
    storage = services["storage"]
    free = await storage.free_bytes()
    schema = await _result(_schema(services["schema"]))  # first: if the schema is unusable, the database is not queried
    database, store = await asyncio.gather(_result(_database(services)), _result(storage.test()))
    return {
        "database": database,
        "schema": schema,
        "store": store,
        "free_space": "ok" if free is None or free > 0 else "the space that is kept free is all that is left",
    }


async def _database(services: Services) -> None:
    """Return if an upload could be recorded; an unusable schema is reported by another check."""
    db = services["db"]
    await db.ping()
    services["ingest"].check()
    if db.refused is not None:
        return
    try:
        await upload_records.try_recording(db.hasty)
    except UploadError:
        raise
    except Exception as error:  # a privilege was revoked, for instance
        log.error("database refuses to record", reason=root_reason(error))
        raise Unavailable("the database refuses to record uploads") from error


async def _schema(schema: SchemaWatch) -> None:
    if reason := await schema.look():
        raise Unavailable(reason)


async def _result(check: Awaitable[Any]) -> str:
    try:
        await check
    except UploadError as error:
        return str(error.__cause__ if isinstance(error.__cause__, Unusable) else error)
    return "ok"
