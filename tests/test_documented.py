"""Every setting and every problem code stands in the README."""

import re
from pathlib import Path

from app.config import PREFIX, Settings
from app.errors import problem_codes

README = Path(__file__).parent.parent / "README.md"


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
