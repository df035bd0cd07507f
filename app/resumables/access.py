"""Access to a resumable upload by its key, which is in its URL; the database has the key's hash alone."""

import hashlib

from app.errors import Gone, NotFound, Unavailable
from app.model import Resource, Status


def admitted(session_id: str | None, resource: Resource | None) -> Resource:
    """Return the upload if the caller may access it: by the same session, or without one, by its key alone."""
    if resource is None or session_id not in {None, resource.session_id}:
        raise NotFound
    if resource.ended_as not in {None, "completed"}:
        raise Gone
    if resource.upload is not None and resource.upload.status is Status.DELETED:
        raise Gone("the file was deleted")
    if resource.upload is not None and resource.upload.damaged:
        assert resource.upload.error is not None
        raise Gone(resource.upload.error.detail)
    return resource


def hash_of(key: str) -> str:
    return hashlib.sha256(key.encode("utf-8", "replace")).hexdigest()


def stopping() -> Unavailable:
    return Unavailable("the service is stopping", retry_after=5)
