"""waybill pull, ls, share and login: what comes back, and who may have it."""

import hashlib
import json

import pytest

from tests.client.running import User
from tests.support.cutting_proxy import CuttingProxy

LARGE = bytes(range(256)) * 4096


@pytest.fixture
def other(running, tmp_path):
    """Another machine, that has no session yet."""
    return User(tmp_path / "other", running.url)


def test_pushed_files_are_pulled_with_their_paths_and_not_twice(user):
    user.file("photos/a/x.txt", b"x")
    user.file("photos/large.bin", LARGE)
    user.lines("push", "photos")
    for expected in ("fetched", "unchanged"):
        lines = user.lines("pull", "--path", "photos/*", "-o", "back")
        assert {line["status"] for line in lines} == {expected}
    assert (user.here / "back/photos/a/x.txt").read_bytes() == b"x"
    assert (user.here / "back/photos/large.bin").read_bytes() == LARGE
    assert list((user.here / "back").rglob("*.part")) == []


def test_a_file_of_the_same_name_is_replaced_only_by_force(user):
    [line] = user.lines("push", user.file("a.txt", b"sent"))
    own = user.file("a.txt", b"my own")
    [refused] = user.lines("pull", line["id"], status=1)
    assert (refused["error"]["code"], own.read_bytes()) == ("exists", b"my own")
    assert [line["status"] for line in user.lines("pull", line["id"], "--force")] == ["fetched"]
    assert own.read_bytes() == b"sent"


def test_a_download_goes_on_through_broken_connections(user, running):
    [line] = user.lines("push", user.file("large.bin", LARGE * 4))
    with CuttingProxy(running.port, seed=3, reach=None) as proxy:
        cut = User(user.home.parent, proxy.url, WAYBILL_TOKEN=user.token)
        proxy.cut_answers_after = 1_500_000
        [fetched] = cut.lines("pull", line["id"], "-o", "back")
        assert proxy.met["cut answer"] > 1
    assert fetched["status"] == "fetched"
    assert hashlib.sha256((user.here / "back/large.bin").read_bytes()).hexdigest() == line["sha256"]


def test_a_part_that_is_not_of_the_file_is_fetched_anew(user):
    [line] = user.lines("push", user.file("large.bin", LARGE))
    name = hashlib.sha256(f"large.bin {line['sha256']}".encode()).hexdigest()[:16]
    user.file(f"back/.{name}.part", b"something else")
    assert [line["status"] for line in user.lines("pull", line["id"], "-o", "back")] == ["fetched"]
    assert (user.here / "back/large.bin").read_bytes() == LARGE


def test_ls_filters_as_the_history_does_and_goes_over_pages(user):
    for name in ("a.txt", "b.txt", "c.log"):
        user.file(f"folder/{name}", name.encode())
    user.lines("push", "folder", "--metadata", "job=7")
    assert len(user.lines("ls")) == 3
    assert [line["filename"] for line in user.lines("ls", "--filename", "*.txt", "--order", "name")] == [
        "a.txt",
        "b.txt",
    ]
    assert len(user.lines("ls", "--metadata", "job=7", "--limit", "2")) == 2
    assert user.lines("ls", "--metadata", "job=8") == []
    assert "failed: " in user.run("ls", "--order", "sideways", status=1).stderr


def test_a_link_gives_the_file_to_somebody_without_a_session(user, other):
    [line] = user.lines("push", user.file("for ann.txt", b"for Ann"))
    link = user.run("share", line["id"], "--expires-in", "7d", "--max-downloads", "1").stdout.strip()
    assert link.startswith(f"{user.variables['WAYBILL_URL']}/d/")
    assert [line["status"] for line in other.lines("pull", link)] == ["fetched"]
    assert (other.here / "for ann.txt").read_bytes() == b"for Ann"
    assert not (other.home / ".config/waybill/servers.json").exists()


def test_another_machine_logs_in_by_a_code_or_a_token(user, other, running):
    user.lines("push", user.file("a.txt", b"a"))
    with running.client(headers={"Authorization": f"Bearer {user.token}"}) as client:
        code = client.post("/api/session/link").json()["code"]
    url = other.variables.pop("WAYBILL_URL")
    other.run("login", url, "--code", code.lower())
    assert [line["filename"] for line in other.lines("ls")] == ["a.txt"]  # and the address is remembered
    third = User(other.home.parent / "third", url)
    third.run("login", f"{url}/", given=f"{user.token}\n".encode())
    assert len(third.lines("ls")) == 1
    assert "refused: " in third.run("login", url, given=b"nothing", status=77).stderr
    assert third.lines("ls")


@pytest.mark.parametrize(
    "arguments", [["ls"], ["pull"], ["share", "x"], ["login", "host"], ["pull", "x", "--since", "y"]]
)
def test_a_command_that_needs_a_session_says_so(user, arguments):
    assert "Error: " in user.run(*arguments, status=2).stderr


def test_a_hostile_record_writes_nothing_outside_the_folder(user):
    from app.client.pulling import of_record

    record = {"path": "../../etc/x", "filename": "..", "size": 1, "sha256": "0" * 64, "id": "1"}
    assert of_record(record, "", {}).name == "etc/x"
    assert of_record({**record, "path": None, "filename": "/etc/passwd"}, "", {}).name == "passwd"
    assert json.dumps(of_record({**record, "path": "..", "filename": ".."}, "", {}).name) == '"unnamed"'
