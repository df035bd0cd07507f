"""The headers of a request, and the way from its path to its handler."""

import ast
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from starlette import routing

from app.web.request import RequestHeaders, Router
from app.web.routes import Route
from tests.support.sources import parse

APP = Path(__file__).parents[2] / "app"


def test_the_first_value_of_a_repeated_header_counts_and_all_are_listed() -> None:
    headers = RequestHeaders([(b"accept", b"a"), (b"host", b"\xe4"), (b"accept", b"b"), (b"accept", b"c")])
    assert headers["accept"] == "a"
    assert headers.getlist("accept") == ["a", "b", "c"]
    assert headers.getlist("host") == ["ä"]
    assert headers.getlist("cookie") == []
    assert list(headers.keys()) == ["accept", "host"]


def asked_for() -> Iterator[tuple[str, str]]:
    """The names of headers in the code that reads requests, with their places."""
    for path in (*(APP / "web").rglob("*.py"), *(APP / "protocols").rglob("*.py")):
        for node in ast.walk(parse(path.read_text(encoding="utf-8"))):
            names: list[ast.expr] = []
            if isinstance(node, ast.Call) and ast.unparse(node.func).endswith(("headers.get", ".getlist", "single")):
                names = node.args
            elif isinstance(node, ast.Subscript) and ast.unparse(node.value) in {"request.headers", "self._headers"}:
                names = [node.slice]
            elif isinstance(node, ast.Compare) and ast.unparse(node.comparators[0]).endswith("headers"):
                names = [node.left]
            for name in names:
                if isinstance(name, ast.Constant) and isinstance(name.value, str) and name.value:
                    yield f"{path.relative_to(APP)}:{node.lineno}", name.value


def test_code_asks_for_headers_by_lower_case_names() -> None:
    names = list(asked_for())
    assert len(names) > 30
    assert [(place, name) for place, name in names if name != name.lower()] == []


async def nothing(*arguments: object) -> Any: ...


@pytest.mark.parametrize(
    ("method", "path", "found", "parameters"),
    [
        ("POST", "/a", "/a", None),
        ("HEAD", "/a/b", "/a/b", None),
        ("PUT", "/a/", "/a/{name:rest}", {"name": ""}),
        ("PUT", "/a/b/c\nd", "/a/{name:rest}", {"name": "b/c\nd"}),
        ("GET", "/a/c", None, None),
        ("PUT", "/a", None, None),
        ("POST", "/a/", None, None),
    ],
)
async def test_a_handler_is_found_by_its_path_else_starlette_searches(
    method: str, path: str, found: str | None, parameters: dict[str, str] | None
) -> None:
    reached: list[str] = []

    def handler(name: str) -> Any:
        async def app(scope: Any, receive: Any, send: Any) -> None:
            reached.append(name)

        return app

    class Searching(routing.Router):
        async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
            reached.append("search")

    routes = [
        Route("/a/{name:rest}", nothing, methods=["PUT"]),
        Route("/a", nothing, methods=["POST"]),
        Route("/a/b", nothing, methods=["GET"]),
        Route("/a/{key}", nothing, methods=["GET", "POST"]),
    ]
    for route in routes:
        route.app = handler(route.path)
    scope: dict[str, Any] = {"type": "http", "method": method, "path": path}
    await Router(Searching(routes))(scope, nothing, nothing)
    assert reached == [found or "search"]
    assert scope.get("path_params") == parameters
