"""What a person sees: lines and bars that fit the terminal, and nothing that moves its cursor."""

import fcntl
import os
import pty
import re
import struct
import subprocess
import termios

import pytest

from tests.client.running import COMMAND


def seen(user, columns, *arguments):
    """All that a command writes to a terminal of so many columns; its text, without what colours and moves."""
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 24, columns, 0, 0))
    process = subprocess.Popen(
        [*COMMAND, *map(str, arguments)],
        cwd=user.here,
        env={**user.variables, "TERM": "xterm-256color"},
        stdin=theirs,
        stdout=theirs,
        stderr=theirs,
    )
    os.close(theirs)
    written = b""
    while True:
        try:
            block = os.read(ours, 65536)
        except OSError:  # the last to have it open has ended
            break
        written += block
    os.close(ours)
    return process.wait(60), re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", written.decode())


@pytest.mark.slow
@pytest.mark.parametrize("columns", [80, 200])
def test_a_terminal_shows_bars_and_says_in_the_end_what_arrived(user, columns):
    user.file("folder/a file with a name that is much too long for a narrow terminal to show it.bin", bytes(9_000_000))
    user.file("folder/bad\x1b[31m\x07.txt", b"bad")
    user.file("folder/good.txt", b"good")
    status, text = seen(user, columns, "push", "folder")
    lines = [line for part in text.split("\r\n") for line in part.split("\r")]
    assert status == 1
    assert lines[-2] == "2 sent (8.6 MiB), 1 failed"
    assert "\\x1b[31m\\x07.txt: a filename must be" in text
    assert "\x1b" not in text
    bars = [line for line in lines if "━" in line]
    assert bars
    assert {len(line.rstrip()) for line in bars} <= set(range(columns + 1))
    status, text = seen(user, columns, "ls")
    assert status == 0
    assert "good.txt" in text
