"""Every URL the service answers. Read this first."""

from typing import Any

from starlette import routing
from starlette.convertors import PathConvertor, register_url_convertor

from app.web import downloads, health, history, metrics, openapi, resumables, session
from app.web.request import Handler


class Route(routing.Route):
    """A URL, who answers, and to which methods."""

    def __init__(self, path: str, handle: Any, *, methods: list[str]) -> None:
        super().__init__(path, Handler(handle), methods=methods)


class _Rest(PathConvertor):
    """The rest of a path, with the line breaks in it, which Starlette's own `path` does not match."""

    regex = "(?s:.*)"


register_url_convertor("rest", _Rest())

routes = [
    # Send files, each in one request or in several: the request's headers say which. What is asked most is tried first.
    Route("/api/ingestion/uploads/{filename:rest}", resumables.put, methods=["PUT"]),
    Route("/api/ingestion/uploads", resumables.post, methods=["POST"]),
    Route("/api/ingestion/uploads", resumables.options, methods=["OPTIONS"]),
    Route("/api/ingestion/uploads/", resumables.post, methods=["POST"]),  # clients of tus are often given it like this
    # Go on with one, by the URL it was given.
    Route("/api/ingestion/uploads/{key}", resumables.resource, methods=["GET", "PATCH", "POST", "DELETE"]),
    Route("/api/ingestion/uploads/{key}", resumables.options, methods=["OPTIONS"]),
    # Ask what was sent.
    Route("/api/ingestion/history", history.list_page, methods=["GET"]),
    Route("/api/ingestion/history/summary", history.summarize, methods=["GET"]),
    Route("/api/ingestion/history/{id}", history.show, methods=["GET"]),
    # Have it back, or have it gone.
    Route("/api/ingestion/files/{id}", downloads.download, methods=["GET"]),
    Route("/api/ingestion/files/{id}", downloads.delete, methods=["DELETE"]),
    # Say who asks.
    Route("/api/session", session.show, methods=["GET"]),
    Route("/api/session", session.ensure, methods=["POST"]),
    Route("/api/session", session.end, methods=["DELETE"]),
    Route("/api/session/rotate", session.rotate, methods=["POST"]),
    Route("/api/session/link", session.link, methods=["POST"]),
    Route("/api/session/join", session.join, methods=["POST"]),
    # Ask the service about itself.
    Route("/health/live", health.live, methods=["GET"]),
    Route("/health/ready", health.ready, methods=["GET"]),
    Route("/metrics", metrics.show, methods=["GET"]),
    Route("/openapi.json", openapi.show, methods=["GET"]),
]
