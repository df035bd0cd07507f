"""waybill push --watch: each version of each file once, and none half."""

import hashlib
import json
import os
import random
import signal
import threading
import time

import pytest

from app.client.watching import is_written
from tests.support.service import PATIENCE, service

__all__ = ["service"]


def test_a_file_that_somebody_writes_to_is_known(tmp_path):
    path = tmp_path / "x"
    with path.open("wb"):
        assert is_written(os.fsencode(path))
        with path.open("rb"):
            assert is_written(os.fsencode(path))
    assert not is_written(os.fsencode(path))
    assert not is_written(os.fsencode(tmp_path / "nothing"))


class Watching:
    """The command at work, and what it has printed so far."""

    def __init__(self, user, *arguments):
        self._process = user.start("push", "--watch", *arguments)
        assert self._process.stderr.readline().startswith(b"watching ")
        self.lines = []
        self._news = threading.Condition()
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self):
        for line in self._process.stdout:
            with self._news:
                self.lines.append(json.loads(line))
                self._news.notify_all()

    def wait_for(self, digest, path=""):
        """Wait until a file with this content has been sent, from this path or any."""

        def sent():
            return any(line["sha256"] == digest and line["path"].endswith(path) for line in self.lines)

        with self._news:
            assert self._news.wait_for(sent, PATIENCE), self.lines

    def stop(self):
        self._process.send_signal(signal.SIGTERM)
        assert self._process.wait(PATIENCE) == 0
        self._reader.join(PATIENCE)
        self._process.stdout.close()
        with self._process.stderr as stderr:
            assert stderr.read() == b""

    def wait_for_note(self, beginning):
        """Wait until it reports something on standard error."""
        assert self._process.stderr.readline().startswith(beginning)


def digest(content):
    return hashlib.sha256(content).hexdigest()


@pytest.mark.slow
def test_files_that_come_by_every_way_are_sent_once_and_never_half(user, history):
    user.file("camera/there before.jpg", b"there before")
    watching = Watching(user, "camera")
    chance = random.Random(5)
    written = chance.randbytes(3_000_000)
    slowly = user.here / "camera/slowly.bin"
    with slowly.open("wb") as file:  # longer than a file has to rest, with pauses that are longer, too
        for at in range(0, len(written), 1_000_000):
            file.write(written[at : at + 1_000_000])
            file.flush()
            if at == 1_000_000:
                watching.wait_for(digest(b"there before"))
                user.file("camera/other.jpg", b"another")
                watching.wait_for(digest(b"another"))
    watching.wait_for(digest(written))

    replaced = user.file("camera/replaced.txt", b"first")
    watching.wait_for(digest(b"first"))
    user.file("new.txt", b"second").rename(replaced)
    watching.wait_for(digest(b"second"))
    replaced.write_bytes(b"third")
    watching.wait_for(digest(b"third"))

    user.file("camera/upload.tmp", b"renamed").rename(user.here / "camera/renamed.txt")
    user.file("moved/deep/in.txt", b"moved in")
    (user.here / "moved").rename(user.here / "camera/moved")
    gone = user.file("camera/gone.txt", b"gone before it rested")
    gone.unlink()
    watching.wait_for(digest(b"renamed"))
    watching.wait_for(digest(b"moved in"))
    watching.stop()

    expected = [b"there before", b"another", written, b"first", b"second", b"third", b"renamed", b"moved in"]
    records = history()
    assert sorted(record["sha256"] for record in records) == sorted(map(digest, expected))
    assert {record["status"] for record in records} == {"completed"}
    assert {record["path"] for record in records} >= {"camera/moved/deep/in.txt", "camera/slowly.bin"}
    assert len(watching.lines) == len(expected)

    again = Watching(user, "camera", "--delete-after")
    user.file("camera/last.txt", b"last")
    again.wait_for(digest(b"last"))
    while (user.here / "camera/last.txt").exists() or slowly.exists():
        time.sleep(0.05)
    again.stop()
    assert len(history()) == len(expected) + 1


@pytest.mark.slow
def test_a_watch_outlives_its_service(user, running, service):
    own = service()
    user.variables["WAYBILL_URL"] = own.url
    watching = Watching(user, "--parallel", "1", user.file("camera/a", b"a").parent)
    watching.wait_for(digest(b"a"))
    port = own.port
    own.kill()
    user.file("camera/b", b"b")
    own.settings["port"] = port
    watching.wait_for_note(b"no answer, trying again: ")
    own.start()
    watching.wait_for_note(b"the service answers again")
    watching.wait_for(digest(b"b"))
    watching.stop()


class Photographer:
    """Somebody who writes, rewrites, replaces, renames and deletes files, and knows every version that was complete."""

    def __init__(self, folder, seed):
        self._folder, self._chance = folder, random.Random(seed)
        self.complete = set()
        self.now = {}

    def work(self, rounds):
        for _ in range(rounds):
            path = self._folder / f"{self._chance.randrange(3)}" / f"{self._chance.randrange(6)}.bin"
            path.parent.mkdir(exist_ok=True)
            self._chance.choice([self.write, self.write, self.replace, self.rename, self.delete])(path)
            time.sleep(self._chance.random() / 2)

    def write(self, path):
        """In place and slowly, as a camera does; some are larger than goes in one request."""
        content = self._chance.randbytes(self._chance.choice([10, 100_000, 1_000_000]))
        with path.open("wb", buffering=0) as file:
            for at in range(0, len(content), len(content) // 4):
                file.write(content[at : at + len(content) // 4])
                time.sleep(self._chance.random())
            self.note(path, content)  # complete, and not closed yet

    def replace(self, path):
        content = self._chance.randbytes(1000)
        new = self._folder.with_name("new")
        new.write_bytes(content)
        self.note(path, content)
        new.rename(path)

    def rename(self, path):
        if path in self.now:
            target = path.with_name(f"renamed {path.name}")
            self.now[target] = self.now.pop(path)
            path.rename(target)

    def delete(self, path):
        if path in self.now:
            del self.now[path]
            path.unlink()

    def note(self, path, content):
        self.complete.add(digest(content))
        self.now[path] = digest(content)


@pytest.mark.slow
def test_versions_of_files_that_change_at_random_are_sent_once_and_never_half(user, history):
    folder = user.here / "camera"
    folder.mkdir()
    watching = Watching(user, folder)
    photographer = Photographer(folder, seed=1)
    photographer.work(40)
    for path, expected in photographer.now.items():
        watching.wait_for(expected, str(path))
    watching.stop()
    sent = [(line["path"], line["sha256"]) for line in watching.lines]
    assert {line["status"] for line in watching.lines} == {"sent"}
    assert {found for _, found in sent} <= photographer.complete, "half a file was sent"
    assert len(sent) == len(set(sent)), "a version was sent twice"
    assert dict(sent).items() >= {str(path): found for path, found in photographer.now.items()}.items()
    completed = [record["sha256"] for record in history(status="completed")]
    assert sorted(completed) == sorted(found for _, found in sent)
