"""What handlers need, typed, from the lifespan's state."""

from typing import TypedDict

from app.config import Settings
from app.db import Db
from app.db.schema import SchemaWatch
from app.ingest import Ingest
from app.lookup import Lookup
from app.metrics import Metrics
from app.model import Clock
from app.once import Once
from app.resume import Resumes
from app.sessions import Sessions
from app.signing import Signer
from app.storage import Storage


class Services(TypedDict):
    settings: Settings
    storage: Storage
    db: Db
    schema: SchemaWatch
    lookup: Lookup
    ingest: Ingest
    once: Once
    resumes: Resumes
    sessions: Sessions
    cursors: Signer
    now_us: Clock
    metrics: Metrics
