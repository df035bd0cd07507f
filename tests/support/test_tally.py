"""The table that a long run ends with: rows of one kind are one, and a loss is neither hidden nor added up away."""

import pytest

from tests.support.tally import Row, collected, table

pytest_plugins = ["pytester"]


def test_rows_of_one_kind_are_added_up():
    row = Row("kill", "tus", "sqlite", injected=1_000, acknowledged=2, lost=1, memory_before=5 << 20)
    row.add(Row("kill", "tus", "sqlite", injected=500, acknowledged=3, memory_before=3 << 20, memory_after=9 << 20))
    assert row == Row("kill", "tus", "sqlite", 1_500, 5, 1, memory_before=5 << 20, memory_after=9 << 20)
    *lines, _, totals = table([row])
    assert [cell.strip() for cell in lines[-1].split("|")[1:4]] == ["kill", "tus", "sqlite"]
    assert [cell.strip() for cell in lines[-1].split("|")[4:7]] == ["1,500", "5", "1"]
    assert totals == "faults 1,500, acknowledged 5, lost 1, wrong 0, visible partial 0, leaked 0"


@pytest.mark.parametrize("bad", ["lost", "wrong", "partial", "files", "slots", "descriptors"])
def test_a_row_with_anything_bad_is_not_clean(bad):
    Row("kill", "tus", "sqlite", injected=1, acknowledged=1).is_clean()
    with pytest.raises(AssertionError):
        Row("kill", "tus", "sqlite", **{bad: 1}).is_clean()
    assert table([Row("kill", "tus", "sqlite", **{bad: 1})])[-1].endswith("leaked 0") == (
        bad in {"lost", "wrong", "partial"}
    )


def test_a_row_reaches_whoever_reports_whether_its_test_passed_or_not(pytester):
    pytester.makeini("[pytest]\nasyncio_default_fixture_loop_scope = function")
    pytester.makeconftest("from tests.support.tally import tally")
    pytester.makepyfile(
        """
        def test_passes(tally):
            tally("kill", "tus", "sqlite:///a").injected += 1

        def test_fails(tally):
            tally("kill", "tus", "sqlite:///b").lost += 1
            raise AssertionError
        """
    )
    reports = pytester.inline_run("-p", "no:cacheprovider").getreports("pytest_runtest_logreport")
    assert collected(reports) == [Row("kill", "tus", "sqlite", injected=1, lost=1)]
