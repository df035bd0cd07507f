"""The pages about the API at /docs, as people use them: searched, tried, and open to everybody."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.browser.driving import INTEROP, Browser, Tab

pytestmark = pytest.mark.slow

AXE = INTEROP / "node_modules/axe-core/axe.min.js"
SHOWN = "[...document.querySelectorAll('details')].filter((each) => each.checkVisibility()).length"


def documented(browser: Browser, url: str, **options: Any) -> Tab:
    """A tab on /docs that has read the description."""
    tab = browser.tab(url, wait=False, **options)
    tab.run("globalThis.said = []; page.on('console', (message) => globalThis.said.push(message.text()))")
    tab.open("/docs", wait=False)
    tab.wait("document.querySelector('details') !== null")
    return tab


def tried(tab: Tab, operation: str, **fields: str) -> str:
    """The answer that is shown when an operation is opened, filled in and sent."""
    shown: str = tab.run(
        """
        const details = page.locator(`[id="${values.operation}"]`);
        if (await details.getAttribute("open") === null) await details.locator("summary").click();
        for (const [name, value] of Object.entries(values.fields)) await details.getByLabel(name).first().fill(value);
        await details.getByRole("button", { name: "Send" }).click();
        await details.locator("[role=status] strong").waitFor();
        await details.getByRole("button", { name: "Stop", disabled: true }).waitFor();
        return details.locator("form").innerText();
        """,
        operation=operation,
        fields=fields,
    )
    return shown


def test_an_operation_is_found_by_its_words(browser: Browser, service: Callable[..., Any]) -> None:
    tab = documented(browser, service().url)
    everything = tab.run(f"return page.evaluate(() => {SHOWN})")
    tab.run("await page.keyboard.press('/'); await page.keyboard.type('quota_exceeded put')")
    assert tab.run(f"return page.evaluate(() => {SHOWN})") == 1
    assert tab.text("#found") == f"1 of {everything}"
    tab.run("await page.keyboard.press('Escape')")
    assert tab.run(f"return page.evaluate(() => {SHOWN})") == everything


def test_a_request_is_tried_with_the_browsers_session(
    browser: Browser, service: Callable[..., Any], tmp_path: Path
) -> None:
    running = service()
    tab = documented(browser, running.url)
    assert "401" in tried(tab, "get-/api/session")
    assert "200 OK" in tried(tab, "post-/api/session")
    (tmp_path / "hello.txt").write_text("hello")
    tab.run(
        """
        const form = page.locator(`[id="post-/api/ingestion/uploads"]`);
        await form.locator("summary").click();
        await form.locator("input[type=file]").setInputFiles(values.path);
        """,
        path=str(tmp_path / "hello.txt"),
    )
    assert "201 Created" in tried(tab, "post-/api/ingestion/uploads")
    [record] = tab.records()
    assert record["filename"] == "hello.txt"
    shown = tried(tab, "get-/api/ingestion/history", filename="hello", limit="1")
    assert record["id"] in shown
    assert f"{running.url}/api/ingestion/history?limit=1&filename=hello'" in shown
    assert "hello" in tried(tab, "get-/api/ingestion/files/{id}", id=record["id"])
    assert "204" in tried(tab, "delete-/api/ingestion/files/{id}", id=record["id"])
    assert tab.records() == []
    assert tab.run("return globalThis.said") == [
        "Failed to load resource: the server responded with a status of 401 (Unauthorized)"
    ]


@pytest.mark.parametrize("options", [{}, {"colorScheme": "dark"}, {"viewport": {"width": 320, "height": 640}}], ids=str)
def test_every_part_can_be_used_by_everybody(
    browser: Browser, service: Callable[..., Any], options: dict[str, Any]
) -> None:
    tab = documented(browser, service().url, **options)
    tab.run("await page.evaluate(() => document.querySelectorAll('details').forEach((each) => { each.open = true; }))")
    tab.wait("document.querySelectorAll('details form').length > 20")
    assert tab.run("return page.evaluate(() => document.documentElement.scrollWidth <= innerWidth)")
    found = tab.run(
        "await page.evaluate(values.axe); return page.evaluate(() => axe.run())", axe=AXE.read_text("utf-8")
    )
    assert [(fault["id"], fault["nodes"][0]["html"]) for fault in found["violations"]] == []
