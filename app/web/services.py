"""The services that handlers use, typed, from the lifespan's state."""

import asyncio
from typing import TypedDict

from app.config import Settings
from app.db.database import Db
from app.db.schema import SchemaWatch
from app.events import EventStreams
from app.idempotency import IdempotencyKeys
from app.links import ShareLinks
from app.metrics import Metrics
from app.model import Clock
from app.resumables import Resumables
from app.sessions import Sessions
from app.signing import Signer
from app.storage import Storage
from app.uploads.ingest import Ingest
from app.uploads.lookup import Lookup
from app.web.templates import Templates


class Services(TypedDict):
    settings: Settings
    storage: Storage
    db: Db
    schema: SchemaWatch
    lookup: Lookup
    ingest: Ingest
    once: IdempotencyKeys
    resumes: Resumables
    links: ShareLinks
    events: EventStreams
    stopping: asyncio.Event
    sessions: Sessions
    cursors: Signer
    now_us: Clock
    templates: Templates
    metrics: Metrics
