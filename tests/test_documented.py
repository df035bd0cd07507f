"""Every setting and every problem code stands in the README, and what the pages name is there."""

import re
from pathlib import Path

import pytest

from app.config import PREFIX, Settings
from app.errors import problem_codes

ROOT = Path(__file__).parent.parent
README = ROOT / "README.md"
PAGES = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md"), ROOT / "sql" / "README.md"])


def words():
    """The words that stand in the README as code."""
    spans = re.findall(r"```.*?```|`[^`\n]+`", README.read_text(encoding="utf-8"), re.DOTALL)
    return set(re.findall(r"\w+", " ".join(spans)))


def settings():
    return {PREFIX + name.upper() for name in Settings.model_fields}


def test_every_setting_stands_in_the_readme():
    assert settings() - words() == set()


def test_every_problem_code_stands_in_the_readme():
    assert problem_codes().keys() - words() == set()


def test_the_readme_speaks_of_no_setting_that_is_not_there():
    assert {word for word in words() if word.startswith(PREFIX)} - settings() - {PREFIX} == set()


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_the_files_and_tests_that_a_page_names_are_there(page):
    named = set(
        re.findall(r"`((?:app|bench|deploy|docs|sql|tests)/[\w./-]+\.\w+)(?:::(\w+))?`", page.read_text("utf-8"))
    )
    gone = {path for path, _ in named if not (ROOT / path).is_file()}
    gone |= {f"{path}::{name}" for path, name in named - {(p, "") for p in gone} if not _holds(ROOT / path, name)}
    assert gone == set()


def _holds(path, test):
    return not test or (path.is_file() and f"def {test}(" in path.read_text("utf-8"))
