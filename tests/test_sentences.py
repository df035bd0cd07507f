"""Every docstring of app/ names its subject first, and no banner comment marks a section of a module."""

import ast
import io
import re
import tokenize
from pathlib import Path

import pytest

from tests.support.sources import parse

ROOT = Path(__file__).parent.parent
SOURCES = sorted(path.relative_to(ROOT).as_posix() for path in (ROOT / "app").rglob("*.py"))

# Words in whose place a noun of the glossary, or the function's action, says more.
PRONOUNS = {"Who", "Whoever", "Whose", "What", "So", "It"}
FIRST_WORD = re.compile(r"[\W_]*(\w+)")  # also in quotes, backticks or brackets
BANNER = re.compile(r"#\s*([-=#*~_\u2500]{2,}|what follows\b)", re.IGNORECASE)


def docstrings(source):
    """Line and text of every string that stands by itself: of a module, class, function, or attribute above it."""
    for node in ast.walk(parse(source)):
        match node:
            case ast.Expr(value=ast.Constant(value=str() as text)):
                yield node.lineno, text


def without_subject(source):
    """Lines of the docstrings that begin with a pronoun."""
    firsts = ((line, FIRST_WORD.match(text)) for line, text in docstrings(source))
    return [line for line, first in firsts if first and first[1] in PRONOUNS]


def banners(source):
    """Lines of the comments that only mark a section."""
    tokens = tokenize.generate_tokens(io.StringIO(source).readline)
    return [token.start[0] for token in tokens if token.type == tokenize.COMMENT and BANNER.match(token.string)]


@pytest.mark.parametrize("path", SOURCES)
def test_docstrings_begin_with_their_subject(path):
    assert without_subject((ROOT / path).read_text("utf-8")) == [], "name the subject, or say what the function does"


@pytest.mark.parametrize("path", SOURCES)
def test_no_banner_comment_marks_a_section(path):
    assert banners((ROOT / path).read_text("utf-8")) == [], "a section that needs a banner is a module of its own"


@pytest.mark.parametrize("pronoun", sorted(PRONOUNS))
@pytest.mark.parametrize("shape", ["{}", '"{}', "'{}'", "`{}`", "*{}*", "({}", "\n    {}"])
def test_a_docstring_without_subject_is_found_in_quotes_too(pronoun, shape):
    text = shape.format(pronoun)
    assert without_subject(f"'''{text} is missing.'''") == [1]


@pytest.mark.parametrize(
    "source",
    [
        '"""What it is."""',
        'class A:\n    """What it is."""',
        'def f():\n    """What it is."""',
        'async def f():\n    """What it is."""',
        'LIMIT = 1\n"""What it is."""',
        'class A:\n    limit: int\n    """What it is."""',
        'def f(self):\n    self.limit = 1\n    """What it is."""',
        'def f():\n    r"""What it is."""',
    ],
)
def test_a_docstring_without_subject_is_found_wherever_it_stands(source):
    assert without_subject(source) == [len(source.splitlines())]


@pytest.mark.parametrize("text", ["Whether it is.", "Items.", "Somebody.", "Its size.", "The size; what it is.", ""])
def test_a_docstring_with_a_subject_passes(text):
    assert without_subject(f"'''{text}'''") == []


@pytest.mark.parametrize(
    "comment",
    [
        "# --- tokens",
        "#-- tokens --",
        "# ========",
        "# ### tokens",
        "# What follows is for the caller.",
        "# what follows",
    ],
)
def test_a_banner_comment_is_found(comment):
    assert banners(f"x = 1\n\n{comment}\n") == [3]


def test_a_comment_that_gives_a_reason_is_no_banner():
    assert banners('x = 1  # the first of them - and -- the last\n# A reason.\ny = "# --- no comment"\n') == []
