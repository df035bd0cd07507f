"""The composition root: settings in, a running service out. The only place that names backends."""

import asyncio
import os
import time
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from datetime import timedelta
from functools import cache, partial
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import unquote, urlsplit

import structlog
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.types import ASGIApp

from app.config import Settings
from app.db import migrate
from app.db.database import Db
from app.db.schema import SchemaWatch
from app.errors import Unusable, UploadError
from app.events import EventStreams
from app.events.positions import Positions
from app.events.records import Offset
from app.idempotency import IdempotencyKeys
from app.ids import new_code, new_id, new_key, now_us
from app.links import ShareLinks
from app.maintenance.scrub import Scrubber
from app.maintenance.sweep import Sweeper
from app.metrics import Metrics, WorkerSlots
from app.model import Clock
from app.quotas import Quotas
from app.resumables import Parts, Resumables
from app.resumables.assembly import Assembler
from app.resumables.completion import Completion
from app.resumables.completion_tasks import Completions
from app.resumables.concatenation import Concatenations
from app.resumables.creation import Creations
from app.resumables.expiration import Expiry
from app.resumables.recovery import Recovery
from app.resumables.small import SmallLandings
from app.resumables.transitions import Holding
from app.resumables.whole import WholeCreations
from app.resumables.writer import Writer
from app.resumables.writer_lock import WriterLocks
from app.secret_key import secret_keys
from app.sessions import Sessions, totals_records
from app.signing import Signer
from app.storage import Storage
from app.storage.local import LocalStorage
from app.uploads.group_commit import Publisher
from app.uploads.ingest import Ingest, IngestLimits
from app.uploads.lookup import Lookup
from app.web.base_path import as_json
from app.web.cors import CorsMiddleware
from app.web.exchange import ExchangeMiddleware
from app.web.page import refused
from app.web.request import Router
from app.web.routes import routes
from app.web.services import Services
from app.web.session import PAGE, SessionMiddleware
from app.web.templates import Templates

log = structlog.stdlib.get_logger("waybill")

_MICROSECOND = timedelta(microseconds=1)
_CLEANING_SECONDS = 5.0  # for requests to clean up, once the server has cut them off
_RELEASE_SECONDS = 2.0  # before that, for resumable uploads to commit their offsets


def open_storage(settings: Settings, metrics: Metrics | None = None) -> Storage:
    return LocalStorage(
        settings.storage_dir,
        owner=new_id(),
        min_free=settings.min_free_space,
        durability=settings.durability,
        metrics=metrics,
    )


def open_database(settings: Settings) -> Db:
    url = settings.database_url.get_secret_value()
    if url.startswith("sqlite:"):
        _make_file(Path(unquote(urlsplit(url).path)[1:]))
    return Db(url, schema=settings.database_schema or None, pool_size=settings.database_pool_size)


def _make_file(path: Path) -> None:
    """Create the database's file for this user alone; SQLite would let everyone read it, and its log.

    An existing file is never opened: closing one that is in use would end its locks.
    """
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        os.close(os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_CLOEXEC, 0o600))
    except FileExistsError:
        return
    except OSError as error:
        raise Unusable(f"the database's file {path} cannot be made: {error.strerror}") from error


@asynccontextmanager
async def stores(settings: Settings, metrics: Metrics | None = None) -> AsyncIterator[tuple[Storage, Db]]:
    """Open storage and database and check their fitness; on exit both are closed, the database last.

    Raises:
        Unusable: one of them is not fit; the text says why.
    """
    async with AsyncExitStack() as stack:
        db = open_database(settings)
        stack.push_async_callback(db.close)
        await db.open()
        storage = open_storage(settings, metrics)
        stack.push_async_callback(storage.close)
        await storage.prepare()
        yield storage, db


class Receiving(NamedTuple):
    """The upload paths, and the background work that cleans up after them."""

    quotas: Quotas | None
    ingest: Ingest
    resumes: Resumables
    sweeper: Sweeper


@asynccontextmanager
async def receiving(
    settings: Settings, storage: Storage, db: Db, metrics: Metrics | None = None
) -> AsyncIterator[Receiving]:
    """Open the upload paths; on exit, uploads in flight get a few seconds to finish."""

    @cache
    def signer() -> Signer:  # the sweep of a command needs none
        return Signer(secret_keys(settings), "concatenation")

    async with AsyncExitStack() as stack:
        quotas = await stack.enter_async_context(_quotas(settings, db))
        publisher = await stack.enter_async_context(Publisher(storage, db, now_us=now_us, metrics=metrics))
        ingest = Ingest(
            storage,
            publisher,
            limits=IngestLimits(
                file_bytes=settings.max_file_size,
                files=settings.max_files_per_request,
                requests_at_once=settings.max_concurrent_uploads,
                requests_at_once_of_session=settings.session_concurrent_uploads or None,
            ),
            quotas=quotas,
            now_us=now_us,
            new_id=new_id,
        )
        stack.push_async_callback(ingest.close, _CLEANING_SECONDS)
        resumes = resumables(
            storage,
            db,
            publisher,
            ingest,
            idle_us=settings.upload_idle_time // _MICROSECOND,
            cap_us=settings.upload_max_time // _MICROSECOND,
            now_us=now_us,
            new_id=new_id,
            new_key=new_key,
            derive_key=lambda text: signer().derive(text),
        )
        stack.push_async_callback(resumes.close, _RELEASE_SECONDS)
        sweeper = Sweeper(
            storage,
            db,
            resumables=resumes.sweep,
            now_us=now_us,
            idle_seconds=settings.upload_idle_time.total_seconds(),
            retain_failed_seconds=settings.retain_failed.total_seconds(),
            metrics=metrics,
        )
        yield Receiving(quotas, ingest, resumes, sweeper)


def resumables(
    storage: Storage,
    db: Db,
    publisher: Publisher,
    ingest: Ingest,
    *,
    idle_us: int,
    cap_us: int,
    now_us: Clock,
    new_id: Callable[[], str],
    new_key: Callable[[], str],
    derive_key: Callable[[str], str],
) -> Resumables:
    """Wire the parts of resumable uploads.

    `idle_us` is how long an unfinished upload waits for its next bytes, `cap_us` how long it may
    take in all.
    """
    quotas = ingest.quotas
    locks = WriterLocks(db, now_us=now_us, new_id=new_id)
    holding = Holding(storage, db, publisher.metrics, idle_us=idle_us, now_us=now_us, new_id=new_id)
    assembler = Assembler(storage, db, holding, quotas=quotas, file_bytes=ingest.limits.file_bytes, now_us=now_us)
    completion = Completion(storage, db, publisher, holding, assembler, counts_quotas=quotas is not None, now_us=now_us)
    completions = Completions(db, holding, completion)
    small = SmallLandings(publisher, holding, completion, counts_quotas=quotas is not None)
    creations = Creations(
        storage, db, ingest, completions, idle_us=idle_us, cap_us=cap_us, now_us=now_us, new_id=new_id, new_key=new_key
    )
    recovery = Recovery(storage, db, completions, completion, idle_us=idle_us, now_us=now_us)
    parts = Parts(
        locks=locks,
        holding=holding,
        writer=partial(Writer, holding, locks, completions, completion, small),
        completions=completions,
        creations=creations,
        whole=WholeCreations(ingest, creations, holding),
        concatenations=Concatenations(db, creations, completions, now_us=now_us, derive_key=derive_key),
        recovery=recovery,
        expiry=Expiry(storage, db, recovery, holding, now_us=now_us),
    )
    return Resumables(db, ingest, parts)


@asynccontextmanager
async def _quotas(settings: Settings, db: Db) -> AsyncIterator[Quotas | None]:
    """The quotas, if one is set."""
    uploads, size = settings.session_quota_uploads or None, settings.session_quota or None
    if uploads is None and size is None:
        yield None
        return
    quotas = Quotas(db, uploads=uploads, size=size, holder=new_id(), now_us=now_us, new_id=new_id)
    try:
        yield quotas
    finally:
        await quotas.close()


@asynccontextmanager
async def services(settings: Settings, worker_slots: WorkerSlots | None = None) -> AsyncIterator[Services]:
    """Open everything that handlers need, in order; closed in the opposite order.

    All of it is on one exit stack, so a start that fails half-way closes what it opened.
    `worker_slots` are the metrics of all workers, if this process is one of several.
    """
    metrics = Metrics(worker_slots, stopwatch=time.perf_counter)
    async with AsyncExitStack() as stack:
        storage, db = await stack.enter_async_context(stores(settings, metrics))
        await migrate.migrate(db, now_us=now_us(), indexes=False)
        await totals_records.begin(db)
        keys = secret_keys(settings)
        sessions = _sessions(settings, db, keys)
        stack.push_async_callback(_last_seen, sessions)
        quotas, ingest, resumes, sweeper = await stack.enter_async_context(receiving(settings, storage, db, metrics))
        once = IdempotencyKeys(db, metrics, now_us=now_us, new_id=new_id)
        _read_gauges(metrics, storage, db)
        schema = SchemaWatch(db)
        events, stopping = _events(settings, db, keys, resumes, metrics), asyncio.Event()
        works = [
            sessions.last_seen.keep(ingest.sessions_in_use),
            sessions.linking.merges.run(partial(storage.alone_at, "merges")),
            sweeper.run(settings.sweep_interval.total_seconds()),
            once.renew(),
            resumes.run(),
            schema.run(),
            events.run(stopping),
            *_upkeep(settings, storage, db, quotas, metrics),
        ]
        stack.push_async_callback(_stop, [asyncio.create_task(work) for work in works])
        yield Services(
            settings=settings,
            storage=storage,
            db=db,
            schema=schema,
            lookup=Lookup(db),
            ingest=ingest,
            once=once,
            resumes=resumes,
            links=ShareLinks(db, max_age=settings.link_max_age, now_us=now_us, new_id=new_id, new_key=new_key),
            events=events,
            stopping=stopping,
            sessions=sessions,
            cursors=Signer(keys, "cursor"),
            now_us=now_us,
            templates=Templates(settings),
            metrics=metrics,
        )


def _upkeep(
    settings: Settings, storage: Storage, db: Db, quotas: Quotas | None, metrics: Metrics
) -> Iterator[Coroutine[Any, Any, None]]:
    yield metrics.watch()
    yield db.watch()
    yield migrate.keep_building(db, now_us=now_us)
    if quotas is not None:
        yield quotas.run()
    if settings.scrub_rate:
        yield Scrubber(storage, db, rate=settings.scrub_rate, now_us=now_us, metrics=metrics).run()


def _events(settings: Settings, db: Db, keys: Sequence[str], resumes: Resumables, metrics: Metrics) -> EventStreams:
    def receiving(session_ids: set[str]) -> Iterator[Offset]:
        for resource, offset in resumes.receiving(session_ids):
            yield Offset(resource.upload_id, resource.session_id, offset, resource.length)

    events = EventStreams(
        db,
        Positions(Signer(keys, "position")),
        encode=partial(as_json, base=settings.base_path),
        receiving=receiving,
        now_us=now_us,
    )
    metrics.event_streams.read = events.count
    return events


def _read_gauges(metrics: Metrics, storage: Storage, db: Db) -> None:
    metrics.staged_bytes.read = storage.staged_bytes
    metrics.free_slots.read = lambda: db.slots()[0]
    metrics.slots.read = lambda: db.slots()[1]
    metrics.refresh()


def _sessions(settings: Settings, db: Db, keys: Sequence[str]) -> Sessions:
    return Sessions(
        db,
        Signer(keys, "session"),
        max_age_us=settings.session_max_age // _MICROSECOND,
        now_us=now_us,
        new_id=new_id,
        new_secret=new_key,
        new_code=new_code,
    )


async def _stop(tasks: "list[asyncio.Task[None]]") -> None:
    """Stop all background tasks at once: each may have to wait for the database."""
    for task in tasks:
        task.cancel()
    await asyncio.wait(tasks)
    for task in tasks:
        if not task.cancelled() and (error := task.exception()):
            log.error("background work failed", error=repr(error))


async def _last_seen(sessions: Sessions) -> None:
    try:
        await sessions.last_seen.flush()
    except UploadError as error:
        log.warning("last use of sessions not saved", reason=str(error))


class _Application(Starlette):
    """Starlette with our middleware alone: ExchangeMiddleware answers for every error beneath it."""

    def build_middleware_stack(self) -> ASGIApp:
        app: ASGIApp = Router(self.router)
        for factory, positional, named in reversed(self.user_middleware):
            app = factory(app, *positional, **named)
        return app


def build(settings: Settings, worker_slots: WorkerSlots | None = None) -> Starlette:
    """Build the application. Nothing is opened before its lifespan starts."""

    @asynccontextmanager
    async def lifespan(app: Starlette) -> AsyncIterator[Services]:
        async with services(settings, worker_slots) as state:
            log.info("ready", database=state["db"].dialect, durability=settings.durability)
            yield state
        log.info("stopped")

    origins = frozenset(settings.allowed_origins)
    app = _Application(
        routes=routes,
        lifespan=lifespan,
        middleware=[
            Middleware(
                ExchangeMiddleware,
                new_id=new_id,
                stopwatch=time.perf_counter,
                base_path=settings.base_path,
                pages={PAGE: refused},
            ),
            *([Middleware(CorsMiddleware, allowed_origins=origins)] if origins else []),
            Middleware(
                SessionMiddleware,
                allowed_origins=origins,
                always_secure=settings.secure_cookies == "always",
                base_path=settings.base_path,
            ),
        ],
    )
    app.router.redirect_slashes = False  # the redirect would lead to whatever Host the client sends
    return app
