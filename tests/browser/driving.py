"""Chromium on the page, driven by playwright-core in a process of Node.

def test_something(browser, service):
    tab = browser.tab(service().url)
    tab.choose([path])
    tab.wait_stored(1)
"""

import itertools
import json
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.support.service import HISTORY, PATIENCE
from tests.support.tools import tool

HERE = Path(__file__).parent
INTEROP = HERE.parent / "interop"

# Headless browsers show no window in which a file is picked, so the page is to take the files of an <input>.
NO_PICKER = "delete window.showOpenFilePicker;"


class Browser:
    """One Chromium for all tests. Each test has contexts of its own: cookies, storage, cache."""

    def __init__(self) -> None:
        chromium = tool("chromium")
        if not (INTEROP / "node_modules" / "playwright-core").exists():
            pytest.skip("no playwright-core (Debian: apt-get install npm; then: npm ci --prefix tests/interop)")
        self._process = subprocess.Popen(
            [tool("node"), HERE / "driver.mjs", chromium, str(int(PATIENCE * 1000))],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        self._numbers = itertools.count(1)
        self._contexts: set[str] = set()

    def ask(self, **asked: Any) -> Any:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps(asked) + "\n")
        self._process.stdin.flush()
        answer = json.loads(self._process.stdout.readline())
        assert "error" not in answer, answer["error"]
        return answer["value"]

    def tab(
        self, url: str, *, beside: "Tab | None" = None, script: str = NO_PICKER, wait: bool = True, **options: Any
    ) -> "Tab":
        """Open the page in a new browser, or beside another tab in its own; options are those of `newContext`.

        The script runs in each page before its own.
        """
        context = beside.context if beside else f"context {next(self._numbers)}"
        self._contexts.add(context)
        tab = Tab(self, f"tab {next(self._numbers)}", context, url, options)
        tab.run("await page.addInitScript(values.script)", script=script)
        tab.open(wait=wait)
        return tab

    def close_contexts(self) -> None:
        while self._contexts:
            self.ask(close=self._contexts.pop())

    def close(self) -> None:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.close()
        try:
            self._process.wait(PATIENCE)
        finally:
            self._process.kill()
            self._process.wait()
            self._process.stdout.close()


class Tab:
    """One tab on the page."""

    def __init__(self, browser: Browser, name: str, context: str, url: str, options: dict[str, Any]) -> None:
        self.browser, self.name, self.context, self.url, self.options = browser, name, context, url, options

    def run(self, code: str, **values: Any) -> Any:
        """Run JavaScript with playwright's `page` and `context`, and these values as `values.NAME`; what it returns."""
        return self.browser.ask(tab=self.name, context=self.context, options=self.options, code=code, values=values)

    def open(self, path: str = "/", *, wait: bool = True) -> None:
        self.run("await page.goto(values.url)", url=f"{self.url}{path}")
        if wait:
            self.wait_ready()

    def wait_ready(self) -> None:
        self.run("await page.waitForSelector('html[data-ready]')")

    def reload(self) -> None:
        self.run("await page.reload()")
        self.wait_ready()

    def choose(self, paths: Sequence[Path], into: str = "#files") -> None:
        """Choose files, or a folder into "#folder"."""
        self.run("await page.setInputFiles(values.into, values.paths)", into=into, paths=[str(path) for path in paths])

    def drop(self, files: dict[str, str]) -> None:
        """Drop small files of text by their names."""
        self.run(
            """
            const data = await page.evaluateHandle((files) => {
              const data = new DataTransfer();
              for (const [name, text] of Object.entries(files)) data.items.add(new File([text], name));
              return data;
            }, values.files);
            for (const type of ["dragenter", "dragover", "drop"]) {
              await page.dispatchEvent("body", type, { dataTransfer: data });
            }
            """,
            files=files,
        )

    def wait(self, condition: str, **values: Any) -> None:
        """Wait until an expression in the page is true; it sees `values`."""
        self.run(
            "await page.waitForFunction(new Function('values', `return ${values.condition}`), values.values)",
            condition=condition,
            values=values,
        )

    def wait_shown(self, text: str, within: str = "body") -> None:
        self.run("await page.locator(values.within).getByText(values.text).first().waitFor()", text=text, within=within)

    def wait_uploaded(self) -> None:
        """Wait until nothing is under way, and the page shows it."""
        self.run(
            """
            await page.evaluate(async () => {
              const { uploads } = await import("/static/scripts/uploads.js");
              await new Promise((resolve) => {
                const look = () => uploads.transfers.size || resolve();
                uploads.addEventListener("change", look);
                look();
              });
            });
            """
        )
        self.run("await page.mouse.move(0, 0)")  # finished rows stay under the pointer
        self.wait("document.getElementById('tray').hidden")

    def text(self, selector: str) -> str:
        found: str = self.run("return page.innerText(values.selector)", selector=selector)
        return found

    def client(self) -> httpx.Client:
        """A client with this browser's session; use it as a context manager."""
        cookies = {cookie["name"]: cookie["value"] for cookie in self.run("return context.cookies()")}
        return httpx.Client(base_url=self.url, cookies=cookies, timeout=PATIENCE, trust_env=False)

    def records(self) -> list[dict[str, Any]]:
        """All completed uploads of the session, asked of the API."""
        items: list[dict[str, Any]] = []
        with self.client() as client:
            page = client.get(HISTORY, params={"limit": 500, "status": "completed"})
            while True:
                assert page.status_code == 200, page.text
                items += page.json()["items"]
                if "next" not in page.links:
                    return items
                page = client.get(page.links["next"]["url"])

    def check_faultless(self) -> None:
        """Nothing went wrong in the page, and nothing was kept from running by its policy."""
        assert self.run("return faults") == []
