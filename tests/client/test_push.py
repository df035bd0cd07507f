"""waybill push: what it sends, what it does not send again, and how it says so."""

import hashlib
import json
import os
import stat
import subprocess

import pytest

LARGE = bytes(range(256)) * 4096  # 1 MiB: more than goes in one request


def digest(content):
    return hashlib.sha256(content).hexdigest()


def test_a_folder_arrives_with_its_paths_and_what_is_said_of_it(user, history):
    user.file("photos/a/x.txt", b"x")
    user.file("photos/large.bin", LARGE)
    user.file("photos/empty", b"")
    lines = user.lines("push", "photos", "--metadata", 'album=Sömmer "26"', "--expires-in", "7d")
    assert {(line["status"], line["sha256"]) for line in lines} == {
        ("sent", digest(content)) for content in (b"x", LARGE, b"")
    }
    records = {record["id"]: record for record in history()}
    assert {line["id"] for line in lines} == records.keys()
    assert {(record["path"], record["protocol"]) for record in records.values()} == {
        ("photos/a/x.txt", "raw"),
        ("photos/large.bin", "tus"),
        ("photos/empty", "raw"),
    }
    for record in records.values():
        assert record["status"] == "completed"
        assert record["metadata"] == {"album": 'Sömmer "26"'}
        assert record["expires_at"] is not None


def test_a_file_that_was_sent_is_not_sent_again_unless_its_content_is_new(user, history):
    small, large = user.file("small.txt", b"one"), user.file("large.bin", LARGE)
    files = ["push", small, large]
    assert [line["status"] for line in user.lines(*files)] == ["sent", "sent"]
    os.utime(small)  # its times are new, its content is not
    assert {line["status"] for line in user.lines(*files)} == {"unchanged"}
    small.write_bytes(b"two")
    large.write_bytes(LARGE + b"more")
    assert {line["status"] for line in user.lines(*files)} == {"sent"}
    small.write_bytes(b"one")
    assert {line["status"] for line in user.lines(*files)} == {"unchanged"}
    assert {line["status"] for line in user.lines(*files, "--again")} == {"sent"}
    assert len(history()) == 6


def test_metadata_that_no_header_can_name_arrive_too(user, history):
    user.lines("push", user.file("a.txt", b"a"), "--metadata", "Camera=X100", "--metadata", "9=nine")
    [record] = history()
    assert record["metadata"] == {"Camera": "X100", "9": "nine"}


def test_a_pattern_keeps_the_paths_below_its_folder(user, history):
    user.file("logs/a/x.log", b"1")
    user.file("logs/b/y.log", b"2")
    user.file("logs/b/y.txt", b"3")
    assert len(user.lines("push", "logs/**/*.log")) == 2
    assert {record["path"] for record in history()} == {"a/x.log", "b/y.log"}


def test_excluded_names_and_paths_are_left_out(user):
    for name in ("a.txt", "a.tmp", ".git/config", "b/a.txt", "b/c.txt"):
        user.file(f"folder/{name}", name.encode())
    patterns = ["--exclude", "*.tmp", "--exclude", ".git", "--exclude", "folder/b/a*"]
    lines = user.lines("push", "folder", *patterns)
    assert {os.path.relpath(line["path"], user.here) for line in lines} == {"folder/a.txt", "folder/b/c.txt"}


@pytest.mark.parametrize("size", [0, 5, 8 * 1024 * 1024, 17 * 1024 * 1024])
def test_standard_input_arrives_whole_and_once(user, history, size):
    content = os.urandom(size)
    [line] = user.lines("push", "-", "--name", "dump.sql", given=content)
    assert (line["sha256"], line["size"]) == (digest(content), size)
    [record] = history()
    assert (record["sha256"], record["filename"], record["size"]) == (digest(content), "dump.sql", size)


def test_a_dry_run_says_what_would_be_sent_and_begins_no_session(user):
    path = user.file("a.txt", b"a")
    [line] = user.lines("push", path, "--dry-run")
    assert (line["path"], line["status"], line["id"]) == (str(path), "would_send", None)
    assert not (user.home / ".config/waybill/servers.json").exists()


def test_a_file_is_deleted_here_once_the_service_has_it(user, running, history):
    path = user.file("a.txt", b"a")
    user.lines("push", path)
    [record] = history()
    with running.client(headers={"Authorization": f"Bearer {user.token}"}) as client:
        assert client.delete(record["links"]["content"]).status_code == 204
    assert [line["status"] for line in user.lines("push", path, "--delete-after")] == ["sent"]
    assert not path.exists()
    assert [record["status"] for record in history()] == ["completed", "deleted"]


def test_a_refused_file_is_reported_and_the_others_arrive(user, history):
    good, bad = user.file("good.txt", b"g"), user.file("bad\x01.txt", b"b")
    lines = {line["path"]: line for line in user.lines("push", good, bad, status=1)}
    assert lines[str(good)]["status"] == "sent"
    assert (lines[str(bad)]["status"], lines[str(bad)]["error"]["code"]) == ("failed", "bad_filename")
    assert [record["filename"] for record in history(status="completed")] == ["good.txt"]


def test_links_to_folders_are_passed_over_and_unreadable_ones_fail(user, history):
    user.file("folder/a.txt", b"a")
    (user.here / "folder/loop").symlink_to(user.here)
    (user.here / "folder/nowhere").symlink_to("nothing")
    done = user.run("push", "folder", status=1)
    assert "passed over" in done.stderr
    fates = {
        json.loads(line)["path"].rpartition("/")[2]: json.loads(line)["status"] for line in done.stdout.splitlines()
    }
    assert fates == {"a.txt": "sent", "nowhere": "failed"}


@pytest.mark.parametrize(
    "arguments",
    [
        ["push"],
        ["push", "nothing-here"],
        ["push", "nothing-*"],
        ["push", "-"],
        ["push", "x", "--name", "y"],
        ["push", "x", "--metadata", "no-value"],
        ["push", "x", "--metadata", "filename=y"],
        ["push", "x", "--expires-in", "soon"],
        ["push", "x", "--to", "ftp://host"],
    ],
)
def test_wrong_usage_has_a_status_of_its_own(user, arguments):
    user.file("x", b"x")
    assert "Error: " in user.run(*arguments, status=2).stderr


def test_a_service_that_stays_away_is_a_status_of_its_own(user, running):
    user.variables["WAYBILL_URL"] = "http://127.0.0.1:1"
    path = user.file("x", b"x")
    assert "unreachable: " in user.run("push", path, "--patience", "1s", status=69).stderr


def test_a_token_that_opens_nothing_is_a_status_of_its_own(user):
    user.variables["WAYBILL_TOKEN"] = "nothing"
    path = user.file("x", b"x")
    assert "refused: " in user.run("push", path, status=77).stderr


def test_the_token_is_for_the_user_alone(user):
    user.lines("push", user.file("x", b"x"))
    mode = stat.S_IMODE((user.home / ".config/waybill/servers.json").stat().st_mode)
    assert oct(mode) == "0o600"


@pytest.mark.slow
def test_two_pushes_at_once_send_a_file_once(user, history):
    user.file("folder/large.bin", LARGE * 8)
    for number in range(30):
        user.file(f"folder/{number}", b"%d" % number)
    both = [user.start("push", "folder") for _ in range(2)]
    for process in both:
        assert process.communicate(timeout=60)[1] == b""
        assert process.returncode == 0
    assert len(history()) == 31


@pytest.mark.slow
def test_a_reader_that_leaves_ends_the_command_without_a_traceback(user):
    path = user.file("x", b"x")
    user.lines("push", path)
    read, write = os.pipe()
    os.close(read)
    process = user.start("push", path, stdout=write, stderr=subprocess.PIPE)
    os.close(write)
    assert process.communicate(timeout=60)[1] == b""
    assert process.returncode == 1
