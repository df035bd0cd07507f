"""The page's texts: the same in every language, none missing, none left over."""

import json
import re

import pytest

from app.web.assets import STATIC
from app.web.languages import placeholders

LANGUAGES = {path.stem: json.loads(path.read_text("utf-8")) for path in (STATIC / "languages").glob("*.json")}
ENGLISH = LANGUAGES["en"]
SOURCES = {path.name: path.read_text("utf-8") for path in [*STATIC.glob("page.html"), *STATIC.glob("scripts/*.js")]}

# Keys that Python asks for, and families of which a script or the template puts the key together.
OF_PYTHON = {"direction", "decimal", "months", "moment", "bytes"}
FAMILIES = (
    "connection", "filter", "order", "problem", "share.times", "share.until", "state", "status", "time", "type",
    "waits",
)  # fmt: skip
ASKED = re.compile(r"""\b(?:say|t)\("([\w.-]+\w)"[),]|word_button\("[\w-]*", "\w*", "([\w.]+)\"""")


def stem(key):
    return re.sub(r"\.(one|other)$", "", key)


STEMS = {stem(key) for key in ENGLISH}


@pytest.mark.parametrize("code", sorted(LANGUAGES))
def test_every_language_has_the_same_texts_with_the_same_values(code):
    texts = LANGUAGES[code]
    assert texts.keys() == ENGLISH.keys()
    differing = [key for key in texts if placeholders(texts[key]) - {"count"} != placeholders(ENGLISH[key]) - {"count"}]
    assert differing == []


def test_every_text_that_is_asked_for_is_there():
    asked = {key for text in SOURCES.values() for keys in ASKED.findall(text) for key in keys if key}
    assert len(asked) > 100
    assert sorted(asked - STEMS) == []


def test_no_text_is_left_over():
    sources = "\n".join(SOURCES.values())
    left = {key for key in STEMS - OF_PYTHON if f'"{key}"' not in sources}
    assert sorted(key for key in left if not key.startswith(FAMILIES)) == []


def test_a_text_is_calm():
    """No exclamation marks, nothing in capitals."""
    for texts in LANGUAGES.values():
        assert [text for text in texts.values() if "!" in text] == []
