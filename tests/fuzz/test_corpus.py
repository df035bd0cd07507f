"""Every case that fuzzing began with, and every one that it found a fault by, keeps its promise."""

from pathlib import Path

import pytest

from tests.fuzz.targets import TARGETS

CORPUS = Path(__file__).parent / "corpus"


@pytest.mark.parametrize("name", TARGETS)
def test_every_case_of_the_corpus_keeps_its_promise(name):
    cases = sorted((CORPUS / name).iterdir())
    assert cases
    for case in cases:
        try:
            TARGETS[name](case.read_bytes())
        except Exception as error:
            error.add_note(f"the case is {case.relative_to(CORPUS)}")
            raise


def test_every_case_belongs_to_a_target():
    assert {place.name for place in CORPUS.iterdir()} == TARGETS.keys()
