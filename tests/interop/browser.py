"""A page of our own in headless Chromium. It tells what happens, so nothing drives the browser from outside."""

import json
import os
import queue
import subprocess
import threading
from collections.abc import Callable, Iterable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import unquote

from tests.interop.clients import HERE, Piece, node_modules
from tests.support.service import PATIENCE
from tests.support.tools import search_path, tool

PAGE = b'<!doctype html><meta charset="utf-8"><title>Uploads</title><script src="/page.js"></script>'


def bundle(page: Path, directory: Path) -> bytes:
    """The page's script with all that it imports."""
    made = directory / "page.js"
    command = [node_modules() / ".bin" / "esbuild", page, "--bundle", f"--outfile={made}", "--log-level=warning"]
    subprocess.run(command, check=True, timeout=PATIENCE, env={**os.environ, "PATH": search_path()})
    return made.read_bytes()


class Site:
    """Serves the page and what it asks for, from an origin of its own, and hears what it tells."""

    def __init__(self, script: bytes, pieces: Iterable[Piece], plan: Callable[[], dict[str, Any]]) -> None:
        self.news: queue.Queue[dict[str, Any]] = queue.Queue()
        self.go_on = threading.Event()
        """Set, it lets a page go on that told of being paused."""
        self._files = {f"/files/{piece.name}": piece for piece in pieces}
        self._script, self._plan = script, plan
        site = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                self._answer(site._content(self.path))

            def do_POST(self) -> None:
                told = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                site.news.put(told)
                if told["event"] == "paused":
                    site.go_on.wait(PATIENCE)
                self._answer(("application/json", b"{}"))

            def _answer(self, found: tuple[str, bytes] | None) -> None:
                kind, content = found or ("text/plain", b"")
                self.send_response(200 if found else 404)
                self.send_header("Content-Type", kind)
                self.send_header("Content-Length", str(len(content)))
                self.end_headers()
                self.wfile.write(content)

            def log_message(self, format: str, *args: object) -> None: ...

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self._thread = threading.Thread(target=self._server.serve_forever)
        self.origin = f"http://127.0.0.1:{self._server.server_port}"

    def __enter__(self) -> "Site":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.go_on.set()
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()

    def _content(self, path: str) -> tuple[str, bytes] | None:
        if path == "/":
            return "text/html", PAGE
        if path == "/page.js":
            return "text/javascript", self._script
        if path == "/plan":
            return "application/json", json.dumps(self._plan()).encode()
        piece = self._files.get(unquote(path))
        return piece and ("application/octet-stream", piece.content)

    def wait_for(self, event: str) -> dict[str, Any]:
        while (news := self.news.get(timeout=PATIENCE))["event"] != event:
            assert news["event"] != "broken", news
        return news


class Browser:
    """Chromium at this address, with a profile of its own."""

    def __init__(self, url: str, directory: Path, *options: str) -> None:
        self._process = subprocess.Popen(
            [
                tool("chromium"),
                "--headless",
                "--no-sandbox",
                "--disable-background-networking",
                "--disable-dev-shm-usage",
                "--disable-gpu",
                "--no-first-run",
                f"--user-data-dir={directory}",
                *options,
                url,
            ],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            env={**os.environ, "PATH": search_path(), "HOME": str(directory)},
        )

    def __enter__(self) -> "Browser":
        return self

    def __exit__(self, *_: object) -> None:
        self._process.terminate()
        try:
            self._process.wait(PATIENCE)
        finally:
            self._process.kill()
            self._process.wait()


UPPY = HERE / "uppy_page.mjs"
