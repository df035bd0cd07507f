"""A test's name has a subject and says what breaks when it is red."""

import ast
import re
from collections import Counter
from pathlib import Path

import pytest

from tests.support.sources import parse

HERE = Path(__file__).parent
MOST_CHARACTERS = 90

# A name may begin with the number of the row that it belongs to. These first words leave the subject out: it stands in
# the test above, in the name of the class, or nowhere.
PRONOUNS = "he it its she such that these they this those"
QUESTIONS = "how however what whatever when where whether which whichever who whoever whom whose"
CONJUNCTIONS = "also and as because but either if neither nor once or so then though until while"
PREPOSITIONS = "after at before by for from in of on through to with within without"
NO_SUBJECT = re.compile(
    rf"test_(?:\d+_)*(?:{'|'.join(f'{PRONOUNS} {QUESTIONS} {CONJUNCTIONS} {PREPOSITIONS}'.split())}"
    r"|one_(?:that|who|whose)|(?:no_other|nobody_else)_(?:do|does|is|are|may))(?:_|\Z)"
)


def named(source):
    """The tests of a module, each with the class that it stands in."""

    def within(body, owner):
        for node in body:
            if isinstance(node, ast.ClassDef):
                yield from within(node.body, node.name)
            elif isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and node.name.startswith("test_"):
                yield owner, node.name

    return list(within(parse(source).body, ""))


def faults(source):
    """What is wrong with the names of a module's tests."""
    for (owner, name), times in Counter(named(source)).items():
        if NO_SUBJECT.match(name):
            yield f"{name} has no subject"
        if len(name) > MOST_CHARACTERS:
            yield f"{name} is longer than {MOST_CHARACTERS} characters"
        if times > 1:
            yield f"{name} is there {times} times in {owner or 'the module'}: only the last one runs"


@pytest.mark.parametrize("path", sorted(HERE.rglob("*.py")), ids=lambda path: str(path.relative_to(HERE)))
def test_the_tests_of_a_file_have_subjects(path):
    assert list(faults(path.read_text("utf-8"))) == []


@pytest.mark.parametrize(
    ("name", "fault"),
    [
        ("test_who_is_passed_over_commits_nothing", "has no subject"),
        ("test_whoever_asks_is_answered", "has no subject"),
        ("test_what_was_acknowledged_survives", "has no subject"),
        ("test_it_answers", "has no subject"),
        ("test_nor_is_a_directory", "has no subject"),
        ("test_so_does_a_patch", "has no subject"),
        ("test_one_that_is_cancelled_leaves_nothing", "has no subject"),
        ("test_4_1_15_what_is_no_method_is_refused", "has no subject"),
        ("test_no_other_is", "has no subject"),
        ("test_a" + "_very" * 18 + "_long_name", "is longer than 90 characters"),
    ],
)
def test_a_bad_name_is_found(name, fault):
    assert list(faults(f"class TestOutages:\n    async def {name}(self): ...")) == [f"{name} {fault}"]


@pytest.mark.parametrize(
    "name",
    [
        "test_a_preempted_writer_commits_nothing",
        "test_items_are_listed",
        "test_4_1_15_an_unknown_method_is_refused",
        "test_one_flush_serves_all",
        "test_another_session_finds_nothing",
        "test_sqlite",
    ],
)
def test_a_name_with_a_subject_passes(name):
    assert list(faults(f"def {name}(): ...")) == []


def test_a_name_that_is_there_twice_is_found():
    twice = "def test_a_file_lands(): ...\n" * 2
    assert list(faults(twice)) == ["test_a_file_lands is there 2 times in the module: only the last one runs"]
    assert list(faults("class TestA:\n    def test_a_file_lands(self): ...\ndef test_a_file_lands(): ...")) == []
