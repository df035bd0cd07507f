"""The client as its users run it: the command, in a home of its own."""

import json
import os
import subprocess
import sys
from contextlib import chdir
from pathlib import Path

from click.testing import CliRunner, Result

from app.cli import main
from tests.support.service import ROOT
from tests.support.tools import search_path

COMMAND = [sys.executable, "-m", "app"]


class User:
    """Somebody at a machine: an empty home, a working directory, and the address of a service."""

    def __init__(self, directory: Path, url: str, **variables: str) -> None:
        self.home, self.here = directory / "home", directory / "here"
        self.home.mkdir(parents=True, exist_ok=True)
        self.here.mkdir(exist_ok=True)
        self.variables = {
            "PATH": search_path(),
            "HOME": str(self.home),
            "PYTHONPATH": str(ROOT),
            "WAYBILL_URL": url,
            "PYTHONWARNINGS": "error",
            **variables,
        }

    def file(self, name: str, content: bytes) -> Path:
        path = self.here / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
        return path

    def start(self, *arguments: object, **options: object) -> subprocess.Popen[bytes]:
        """Begin a command, and do not wait."""
        return subprocess.Popen(
            [*COMMAND, *map(str, arguments)],
            cwd=self.here,
            env=self.variables,
            **{"stdin": subprocess.DEVNULL, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE, **options},
        )

    def run(self, *arguments: object, given: bytes = b"", status: int = 0) -> Result:
        """Run a command to its end, in this process: starting one takes longer than what it does."""
        away = dict.fromkeys(name for name in os.environ if name.startswith(("WAYBILL_", "XDG_")))
        with chdir(self.here):
            done = CliRunner().invoke(main, [*map(str, arguments)], input=given, env={**away, **self.variables})
        assert done.exit_code == status, (done.output, done.exception)
        return done

    def lines(self, *arguments: object, given: bytes = b"", status: int = 0) -> list[dict[str, object]]:
        """The JSON lines that a command prints."""
        return [json.loads(line) for line in self.run(*arguments, given=given, status=status).stdout.splitlines()]

    @property
    def token(self) -> str:
        servers = json.loads((self.home / ".config/waybill/servers.json").read_text())["servers"]
        return servers[self.variables["WAYBILL_URL"]]["token"]
