"""No module of app/ is over 400 lines, no class over 200, no function over 50: what is longer has two jobs."""

import ast
from pathlib import Path

import pytest

from tests.support.sources import parse

ROOT = Path(__file__).parent.parent
SOURCES = sorted(path.relative_to(ROOT).as_posix() for path in (ROOT / "app").rglob("*.py"))

MOST_LINES = {"module": 400, "class": 200, "function": 50}

# One loop over the states of a parser: cut up, it would hand its place around, for every part of every form.
MEANT = {"app/protocols/multipart.py function feed"}


def too_long(path, source):
    """What of a module has too many lines, with its kind and name."""
    if len(source.splitlines()) > MOST_LINES["module"]:
        yield f"{path} module"
    for node in ast.walk(parse(source)):
        match node:
            case ast.ClassDef():
                kind = "class"
            case ast.FunctionDef() | ast.AsyncFunctionDef():
                kind = "function"
            case _:
                continue
        if node.end_lineno - node.lineno + 1 > MOST_LINES[kind]:
            yield f"{path} {kind} {node.name}"


def test_nothing_is_too_long_but_what_is_named():
    found = {each for path in SOURCES for each in too_long(path, (ROOT / path).read_text("utf-8"))}
    assert found - MEANT == set(), "split it by job"
    assert MEANT - found == set(), "it is short enough by now: take its line out of this file"


@pytest.mark.parametrize(
    ("source", "found"),
    [
        ("a = 1\n" * 401, ["a module"]),
        ("class A:\n" + "    a = 1\n" * 200, ["a class A"]),
        ("def f():\n" + "    a = 1\n" * 50, ["a function f"]),
        ("class A:\n    async def f():\n" + "        a = 1\n" * 50, ["a function f"]),
        ("a = 1\n" * 400, []),
        ("class A:\n" + "    a = 1\n" * 199, []),
        ("def f():\n" + "    a = 1\n" * 49, []),
    ],
)
def test_too_many_lines_are_found(source, found):
    assert list(too_long("a", source)) == found
