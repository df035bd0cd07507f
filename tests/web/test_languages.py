"""The texts of the page: sentences for problems, sizes and times for people, plurals."""

import pytest

from app.errors import problem_codes
from app.web.languages import languages


@pytest.mark.parametrize("code", list(languages()))
def test_every_problem_has_a_sentence_whatever_is_known_of_it(code: str) -> None:
    language = languages()[code]
    for problem in [*problem_codes(), "lost", "damaged", "rejected"]:
        for members in ({}, {"limit": 1, "received": 2, "used": 1, "asked": 2, "unit": "bytes"}, {"unit": "uploads"}):
            sentence = language.refusal(problem, members)
            assert sentence != language.refusal("no such code", {}), problem
            assert sentence[-1] in ".", sentence
            assert "{" not in sentence


@pytest.mark.parametrize(
    ("size", "english", "german"),
    [
        (1, "1 byte", "1 Byte"),
        (1000, "1 kB", "1 kB"),
        (1_250, "1.3 kB", "1,3 kB"),
        (12_500, "13 kB", "13 kB"),
        (1_549, "1.5 kB", "1,5 kB"),
        (9_949, "9.9 kB", "9,9 kB"),
        (9_950, "10 kB", "10 kB"),
        (999_499, "999 kB", "999 kB"),
        (999_500, "1 MB", "1 MB"),
        (2**20, "1 MiB", "1 MiB"),
        (50_000_000, "50 MB", "50 MB"),
        (1536 * 2**20, "1,536 MiB", "1.536 MiB"),
        (5 * 2**30, "5 GiB", "5 GiB"),
        (10_001 * 2**20, "10 GB", "10 GB"),
        (2**63 - 1, "9.2 EB", "9,2 EB"),
    ],
)
def test_sizes_are_for_people(size: int, english: str, german: str) -> None:
    for code, expected in (("en", english), ("de", german)):
        assert languages()[code].size(size).replace("\N{NO-BREAK SPACE}", " ") == expected


def test_times_are_for_people() -> None:
    moment = "2026-03-05T07:08:09.123456Z"
    assert languages()["en"].moment(moment) == "5 Mar 2026, 07:08 UTC"
    assert languages()["de"].moment(moment) == "5. März 2026, 07:08 UTC"


def test_a_count_chooses_the_plural() -> None:
    texts = {count: languages()["en"].text("bytes", count=count).split() for count in (0, 1, 2, 1000)}
    assert texts == {0: ["0", "bytes"], 1: ["1", "byte"], 2: ["2", "bytes"], 1000: ["1,000", "bytes"]}
