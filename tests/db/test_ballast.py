"""Space is set aside as far as there is some, and given back slice by slice."""

import os

from app.db.ballast import RESERVE_BYTES, Ballast
from tests.support.stores import needs_root, tmpfs

KIB = 1024


def space_taken(path):
    return path.stat().st_blocks * 512


def test_the_ballast_takes_its_space_once_and_releases_it_until_nothing_is_left(tmp_path):
    path = tmp_path / "reserve"
    reserve, other = Ballast(path), Ballast(path)
    for each in (reserve, other, reserve):
        each.fill()
        assert each.is_whole
        assert space_taken(path) >= RESERVE_BYTES
    given = 0
    while other.give():
        given += 1
        assert not other.is_whole
    assert given > 3
    assert space_taken(path) == 0
    reserve.fill()
    assert space_taken(path) >= RESERVE_BYTES


@needs_root
def test_the_ballast_takes_what_a_small_disk_has(tmp_path):
    with tmpfs(tmp_path / "volume", "700k") as root:
        reserve = Ballast(root / "reserve")
        reserve.fill()
        assert not reserve.is_whole
        assert 500 * KIB < space_taken(root / "reserve") < 700 * KIB
        assert reserve.give()
        (root / "other").write_bytes(bytes(100 * KIB))


def test_an_impossible_ballast_disturbs_nobody(tmp_path):
    os.mkdir(tmp_path / "reserve")
    reserve = Ballast(tmp_path / "reserve")
    reserve.fill()
    assert not reserve.is_whole
    assert not Ballast(tmp_path / "missing").give()
