"""A real PgBouncer before a test's PostgreSQL."""

import atexit
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from contextlib import suppress
from pathlib import Path

from tests.support.postgres import Postgres, nobody
from tests.support.tools import tool

_PATIENCE = 60.0  # seconds; a bound for a machine under load, not a measure

_SETTINGS = """
[databases]
* = host=127.0.0.1 port={server} user=waybill

[pgbouncer]
listen_addr = 127.0.0.1
listen_port = {port}
unix_socket_dir =
auth_type = any
pool_mode = {mode}
default_pool_size = {size}
server_login_retry = 1
"""


class PgBouncer:
    """One with the settings that it comes with, but for its pools."""

    def __init__(self, server: Postgres, *, mode: str, size: int = 30) -> None:
        program = tool("pgbouncer")
        self._server, self._size = server, size
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port: int = free.getsockname()[1]
        self._home = Path(tempfile.mkdtemp(prefix="waybill-pgbouncer-"))
        self._home.chmod(0o755)  # it refuses to run as root, and reads its settings itself
        self.write(mode)
        self._process = subprocess.Popen(
            [program, "-q", str(self._home / "pgbouncer.ini")],
            stdin=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            cwd="/",
            **nobody(),
        )
        atexit.register(self.close)
        deadline = time.monotonic() + _PATIENCE
        while True:
            with suppress(ConnectionRefusedError), socket.create_connection(("127.0.0.1", self.port)):
                return
            assert self._process.poll() is None, "PgBouncer did not start"
            assert time.monotonic() < deadline
            time.sleep(0.01)

    def write(self, mode: str) -> None:
        text = _SETTINGS.format(server=self._server.port, port=self.port, mode=mode, size=self._size)
        (self._home / "pgbouncer.ini").write_text(text)

    def change(self, mode: str) -> None:
        """Have it take another mode, as an operator does: for what connects from now on."""
        self.write(mode)
        self._process.send_signal(signal.SIGHUP)

    def url(self, url: str) -> str:
        """The same database, by this way."""
        return url.replace(f":{self._server.port}/", f":{self.port}/")

    def close(self) -> None:
        atexit.unregister(self.close)
        self._process.kill()
        self._process.wait(_PATIENCE)
        shutil.rmtree(self._home)
