"""Routes: every URL the service answers. Read this first."""

from typing import Any

from starlette import routing
from starlette.convertors import PathConvertor, register_url_convertor

from app.web import archive, downloads, events, health, history, links, metrics, openapi, page, resumables, session
from app.web.request import Handler


class Route(routing.Route):
    """A URL, its handler, and its methods."""

    def __init__(self, path: str, handle: Any, *, methods: list[str]) -> None:
        super().__init__(path, Handler(handle), methods=methods)


class _Rest(PathConvertor):
    """The rest of a path, line breaks included, which Starlette's own `path` does not match."""

    regex = "(?s:.*)"


register_url_convertor("rest", _Rest())

pages = [
    # For people: the page, what it is made of, and the pages about the API. The description leaves these out.
    Route("/", page.show, methods=["GET"]),
    Route("/", page.act, methods=["POST"]),
    Route("/static/{name:rest}", page.asset, methods=["GET"]),
    Route("/docs", page.docs, methods=["GET"]),
]

routes = [
    # Upload files, each in one request or in several, as the headers indicate. Frequent routes come first.
    Route("/api/ingestion/uploads/{filename:rest}", resumables.put, methods=["PUT"]),
    Route("/api/ingestion/uploads", resumables.post, methods=["POST"]),
    Route("/api/ingestion/uploads", resumables.options, methods=["OPTIONS"]),
    Route("/api/ingestion/uploads/", resumables.post, methods=["POST"]),  # tus clients are often configured like this
    # Resume an upload, by its own URL.
    Route("/api/ingestion/uploads/{key}", resumables.resource, methods=["GET", "PATCH", "POST", "DELETE"]),
    Route("/api/ingestion/uploads/{key}", resumables.options, methods=["OPTIONS"]),
    # Query the history.
    Route("/api/ingestion/history", history.list_page, methods=["GET"]),
    Route("/api/ingestion/history/summary", history.summarize, methods=["GET"]),
    Route("/api/ingestion/history/{id}", history.show, methods=["GET"]),
    # Hear what happens.
    Route("/api/ingestion/events", events.listen, methods=["GET"]),
    # Download and delete.
    Route("/api/ingestion/files/{id}", downloads.download, methods=["GET"]),
    Route("/api/ingestion/files/{id}", downloads.delete, methods=["DELETE"]),
    Route("/api/ingestion/files/delete", downloads.delete_many, methods=["POST"]),
    # Share.
    Route("/api/ingestion/files/{id}/links", links.create, methods=["POST"]),
    Route("/api/ingestion/files/{id}/links", links.show_all, methods=["GET"]),
    Route("/api/ingestion/files/{id}/links/{link}", links.revoke, methods=["DELETE"]),
    Route("/d/{secret}", links.open_link, methods=["GET"]),
    # Many files at once.
    Route("/api/ingestion/files.zip", archive.download, methods=["GET"]),
    Route("/api/ingestion/files.zip", archive.download_selection, methods=["POST"]),
    # Manage the session.
    Route("/api/session", session.show, methods=["GET"]),
    Route("/api/session", session.ensure, methods=["POST"]),
    Route("/api/session", session.end, methods=["DELETE"]),
    Route("/api/session/rotate", session.rotate, methods=["POST"]),
    Route("/api/session/link", session.link, methods=["POST"]),
    Route("/api/session/join", session.join, methods=["POST"]),
    # Health, metrics, and the description of the service.
    Route("/health/live", health.live, methods=["GET"]),
    Route("/health/ready", health.ready, methods=["GET"]),
    Route("/metrics", metrics.show, methods=["GET"]),
    Route("/openapi.json", openapi.show, methods=["GET"]),
    *pages,
]
