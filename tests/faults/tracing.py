"""strace on a service that runs: system calls that fail, and the story of those that were made."""

import re
import signal
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.support.service import PATIENCE, Service
from tests.support.tools import tool

NAMED_THREADS = """
import ctypes, threading

def run(self, before=threading.Thread.run):
    ctypes.CDLL(None).prctl(15, self.name.encode()[:15], 0, 0, 0)  # PR_SET_NAME
    before(self)

threading.Thread.run = run
"""
"""For `change`: the kernel knows threads by their names, so that one of them can be traced alone."""


class Story:
    """What strace wrote, a line for each call, with the paths of descriptors."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def calls(self, name: str, of: str = "") -> list[str]:
        """The calls of this name in whose line `of` stands."""
        return [line for line in self._lines() if re.search(rf"\b{name}\(", line) and of in line]

    @property
    def injected(self) -> list[str]:
        """The calls that were not made, but failed or were held up as told."""
        return [line for line in self._lines() if "INJECTED" in line]

    def _lines(self) -> list[str]:
        """The calls that have ended or begun; the two halves of one that another thread's stand between are joined."""
        lines: list[str] = []
        begun: dict[str, int] = {}
        for line in self._path.read_text(errors="replace").splitlines():
            thread = line.partition(" ")[0]
            if (end := re.search(r"<\.\.\. \w+ resumed>", line)) and thread in begun:
                lines[begun.pop(thread)] += line[end.end() :]
                continue
            first, is_begun, _ = line.partition(" <unfinished ...>")
            if is_begun:
                begun[thread] = len(lines)
            lines.append(first)
        return lines


@contextmanager
def traced(running: Service, *options: str, thread: str = "", trace: str = "fsync,write") -> Iterator[Story]:
    """Trace the service, or its one thread of this name, while the context is open.

    With `-P path` among the options only calls about that path are seen, and changed.
    """
    whom = ["-f", "-p", str(running.pid)] if not thread else ["-p", str(_thread(running, thread))]
    story = running.directory / "story"
    command = [tool("strace"), "-y", "-o", str(story), "-e", f"trace={trace}", *options, *whom]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        said = process.stderr.readline()
        try:
            if "attached" not in said:
                pytest.skip(f"strace cannot attach here: {said.strip()}")
            yield Story(story)
        finally:
            process.send_signal(signal.SIGINT)
            process.communicate(timeout=PATIENCE)


def _thread(running: Service, name: str) -> int:
    [found] = [
        int(task.name)
        for task in Path(f"/proc/{running.pid}/task").iterdir()
        if (task / "comm").read_text().strip() == name[:15]
    ]
    return found
