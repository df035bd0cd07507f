"""The page in each of its states, as pictures. With SCREENSHOTS=directory they stay there, to be looked at."""

import base64
import os
import sqlite3
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import pytest

from tests.browser.driving import Tab

pytestmark = pytest.mark.slow

DAY_US = 24 * 60 * 60 * 1_000_000
WIDTHS = {"wide": 1280, "middle": 768, "narrow": 320}

# What the history shows: name, bytes, and how many days ago.
HISTORY = [
    ("report.pdf", 2_300_000, 0),
    ("scan of the contract, signed by both sides.tiff", 6_100_000, 0),
    ("notes.md", 812, 0),
    ("holiday/IMG_2041.jpg", 410_000, 1),
    ("holiday/IMG_2042.jpg", 380_000, 1),
    ("holiday/2026/IMG_2043.jpg", 52_000, 1),
    ("Übersicht.ods", 44_000, 2),
    ("backup.tar.gz", 3_400_000, 2),
    ("קובץ.txt", 90, 2),
]

# Requests of uploads that are never answered, and uploads in every state at once.
HOLD = "await page.route('**/api/ingestion/uploads**', () => {}); await page.route('**/uploads/*', () => {})"
STATES = """
const { uploads } = await import("/static/scripts/uploads.js");
const MB = 1_000_000;
const found = (path, size) => {
  const name = path.split("/").at(-1);
  const file = Object.defineProperty(new File([], name), "size", { value: size });
  return { file, path: path === name ? null : path, root: null };
};
uploads.add([...Array(9).keys()].map((n) => found(`holiday/IMG_${2041 + n}.jpg`, 4.1 * MB)), "one");
const names = ["video.mov", "A talk about everything that was said in the last meeting, take 2.mp4", "disk.img",
  "report.pdf", "scan.tiff", "letter.odt", "song.flac", "archive.zip", "photo.png", "draft.odt", "data.csv", "map.gpx"];
uploads.add(names.map((name, n) => found(name, (n % 3 ? 48 : 1800) * MB)), "two");
const all = [...uploads.transfers.values()];
const now = performance.now();
const goes = (n, share) => {
  Object.assign(all[n], { state: "sending", sent: all[n].size * share });
  all[n].rate.add(0, now - 9000);
  all[n].rate.add(9 * MB, now - 10);
};
const is = (n, state, share, problem = null) => Object.assign(all[n], { state, sent: all[n].size * share, problem });
goes(0, 0.4); goes(1, 0.2); goes(9, 0.82); goes(10, 0.31); goes(11, 0.05);
uploads.rate.add(0, now - 9000);
uploads.rate.add(162 * MB, now - 10);
is(12, "finishing", 1);
is(13, "waiting", 0);
is(14, "paused", 0.6);
is(15, "resting", 0, { code: "unavailable" });
is(16, "resting", 0.1);
const detail = "the upload would use space that this server keeps free";
is(17, "failed", 0.2, { code: "storage_full", detail, request_id: "01a22e88-fbb9-753d-8bf9-89c5c1b00110" });
is(18, "failed", 0, { code: "too_large", limit: 5 * 1024 ** 3, received: 9e9 });
is(19, "missing", 0);
is(20, "asking", 0);
uploads.total.done = 4;
uploads.total.files += 4;
uploads.dispatchEvent(new Event("change"));
"""


@pytest.fixture(scope="session")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = os.environ.get("SCREENSHOTS")
    directory = Path(place) if place else tmp_path_factory.mktemp("screenshots")
    directory.mkdir(parents=True, exist_ok=True)
    return directory.resolve()


def shoot(tab: Tab, pictures: Path, name: str) -> None:
    """Take a picture, once everything that moves has come to rest; nothing may stand beyond the page's edge."""
    path = pictures / f"{name}.png"
    tab.run(
        """
        await page.evaluate(() => Promise.all(document.getAnimations().map((one) => one.finished)));
        const beyond = await page.evaluate(() => document.documentElement.scrollWidth - innerWidth);
        if (beyond > 0) throw new Error(`the page is ${beyond} px too wide`);
        await page.screenshot({ path: values.path });
        """,
        path=str(path),
    )
    assert path.stat().st_size > 2_000
    tab.check_faultless()


def fill(running, tab: Tab, files: Callable[..., dict[str, str]], tmp_path: Path) -> None:
    """Upload what the history is to show, and move it to its days."""
    files({name: size for name, size, _ in HISTORY})
    picture = tab.run(
        """
        return page.evaluate(async () => {
          const canvas = Object.assign(document.createElement("canvas"), { width: 320, height: 240 });
          const pen = canvas.getContext("2d");
          const sky = pen.createLinearGradient(0, 0, 0, 240);
          sky.addColorStop(0, "#2a6fb0"); sky.addColorStop(1, "#f4c27a");
          pen.fillStyle = sky; pen.fillRect(0, 0, 320, 240);
          pen.fillStyle = "#274d2b"; pen.fillRect(0, 180, 320, 60);
          return canvas.toDataURL("image/jpeg").split(",")[1];
        })
        """
    )
    with tab.client() as client:
        refused = client.put(
            "/api/ingestion/uploads/letter.odt",
            content=b"x",
            headers={"Repr-Digest": "sha-256=:AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA=:"},
        )
        assert refused.status_code == 400
        for name, _, _ in reversed(HISTORY):
            content = (tmp_path / "files" / name).read_bytes()
            kind = "application/octet-stream"
            if name.endswith(".jpg"):
                content, kind = base64.b64decode(picture), "image/jpeg"
            answer = client.put(f"/api/ingestion/uploads/{name}", content=content, headers={"Content-Type": kind})
            assert answer.status_code == 201
    with closing(sqlite3.connect(running.store / "waybill.db", timeout=30)) as database, database:
        for name, _, days in HISTORY:
            database.execute(
                "UPDATE uploads SET created_at_us = created_at_us - ?, completed_at_us = completed_at_us - ? "
                "WHERE filename = ?",
                (days * DAY_US, days * DAY_US, name.rpartition("/")[2]),
            )


@pytest.fixture
def page(browser, service, files, tmp_path):
    """`page(**options)` opens the page with a history of three days."""
    running = service(max_file_size="5GiB", session_quota="20MiB")
    first = browser.tab(running.url)
    first.run("await page.evaluate(() => fetch('/api/session', { method: 'POST' }))")
    fill(running, first, files, tmp_path)
    cookies = first.run("return context.cookies()")

    def opened(**options):
        state = {"cookies": cookies, "origins": []}
        return browser.tab(running.url, storageState=state, **{"viewport": {"width": 1280, "height": 900}, **options})

    return opened


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", WIDTHS)
def test_every_state_of_the_page_has_a_picture(page, pictures, scheme, width):
    def name(of):
        return f"{of}-{width}-{scheme}"

    tab = page(colorScheme=scheme, viewport={"width": WIDTHS[width], "height": 900}, hasTouch=width == "narrow")
    tab.wait("document.querySelectorAll('#records .record').length >= 5")
    shoot(tab, pictures, name("history"))
    tab.run("await page.fill('#search', 'img'); await page.selectOption('#filter-type', 'images')")
    tab.wait("document.querySelectorAll('#records .record').length === 3")
    shoot(tab, pictures, name("filter"))
    tab.run("await page.click('#clear-filters')")
    tab.wait("document.querySelectorAll('#records .record').length >= 5")
    tab.run("for (const n of [0, 2]) await page.locator('#records .check input').nth(n).check()")
    shoot(tab, pictures, name("selected"))
    tab.run("await page.click('#selection-delete')")
    shoot(tab, pictures, name("confirm"))
    tab.run("await page.locator('dialog .danger').click()")
    tab.wait("!document.getElementById('undo-bar').hidden")
    shoot(tab, pictures, name("undo"))
    tab.run("await page.click('#undo')")
    tab.run("await page.locator('#records .record', { hasText: 'IMG_2042' }).locator('.plain').click()")
    tab.run("await page.waitForFunction(() => document.querySelector('.preview')?.complete)")
    shoot(tab, pictures, name("details"))
    tab.run("await page.keyboard.press('Escape'); await page.click('#add-device'); await page.waitForSelector('.qr')")
    shoot(tab, pictures, name("device"))
    tab.run("await page.keyboard.press('Escape'); await page.click('#menu summary')")
    shoot(tab, pictures, name("menu"))
    tab.run("await page.keyboard.press('Escape')")
    tab.run(HOLD)
    tab.run(f"await page.evaluate(async () => {{ {STATES} }})")
    tab.wait("document.querySelectorAll('#transfers .transfer').length >= 8")
    shoot(tab, pictures, name("uploads"))
    tab.run("await page.locator('#transfers .lead[aria-expanded]').click()")
    tab.wait("document.querySelectorAll('#transfers .inner').length >= 3")
    shoot(tab, pictures, name("folder"))
    tab.run("await context.setOffline(true)")
    tab.wait("!document.getElementById('connection').hidden")
    tab.wait_shown("Waits for the network", "#transfers")
    tab.wait_shown("Waiting for the network", "#tray-words")
    shoot(tab, pictures, name("offline"))


def test_a_stranger_sees_what_to_do(browser, service, pictures):
    running = service(max_file_size="50MiB")
    for width, size in WIDTHS.items():
        tab = browser.tab(running.url, viewport={"width": size, "height": 700})
        shoot(tab, pictures, f"empty-{width}-light")
    tab = browser.tab(running.url, viewport={"width": 1280, "height": 700}, javaScriptEnabled=False, wait=False)
    shoot(tab, pictures, "empty-without-scripts")


def test_other_languages_and_directions_have_pictures(page, pictures):
    for width, size in WIDTHS.items():
        tab = page(locale="de-DE", viewport={"width": size, "height": 900})
        tab.wait("document.querySelectorAll('#records .record').length >= 5")
        shoot(tab, pictures, f"german-{width}")
        tab.run(HOLD)
        tab.run(f"await page.evaluate(async () => {{ document.documentElement.dir = 'rtl'; {STATES} }})")
        tab.wait("document.querySelectorAll('#transfers .transfer').length >= 5")
        shoot(tab, pictures, f"right-to-left-{width}")
    tab = page(forcedColors="active")
    tab.wait("document.querySelectorAll('#records .record').length >= 5")
    shoot(tab, pictures, "forced-colours")
    tab = page(javaScriptEnabled=False, wait=False)
    shoot(tab, pictures, "without-scripts")
    tab = page()
    tab.open("/#join=ABCD-EFGH-JKMN")
    tab.reload()
    tab.wait_shown("The other device will see", "dialog")
    shoot(tab, pictures, "join")
    tab.run("await page.keyboard.press('Escape')")
    tab.run("await page.locator('#records').getByLabel('Share link').filter({ visible: true }).first().click()")
    tab.run("await page.getByRole('button', { name: 'Make a link' }).click(); await page.waitForSelector('.links li')")
    shoot(tab, pictures, "share")


def test_the_picture_of_the_readme_shows_uploads_and_a_history(page, pictures):
    tab = page(viewport={"width": 960, "height": 700})
    tab.wait("document.querySelectorAll('#records .record').length >= 5")
    tab.run(HOLD)
    tab.run(
        """
        await page.evaluate(async () => {
          const { uploads } = await import("/static/scripts/uploads.js");
          const MB = 1_000_000;
          const file = (name, size) => Object.defineProperty(new File([], name), "size", { value: size });
          const names = [...Array(9).keys()].map((n) => `photos/IMG_${2051 + n}.jpg`);
          const photos = names.map((path) => ({ file: file(path.slice(7), 4.1 * MB), path, root: null }));
          uploads.add([...photos, { file: file("video.mov", 1800 * MB), path: null, root: null }], "batch");
          const now = performance.now();
          const all = [...uploads.transfers.values()];
          for (const one of [...all.slice(0, 3), all[9]]) {
            Object.assign(one, { state: "sending", sent: one.size * (one.size > 9 * MB ? 0.43 : 0.6) });
            one.rate.add(0, now - 9000);
            one.rate.add(one.size / 12, now - 10);
          }
          uploads.rate.add(0, now - 9000);
          uploads.rate.add(162 * MB, now - 10);
          uploads.total.files += 2;
          uploads.total.done += 2;
          uploads.dispatchEvent(new Event("change"));
        });
        """
    )
    tab.wait("document.querySelectorAll('#transfers .transfer').length === 2")
    tab.wait_shown("2 of 12 files", "#tray")
    shoot(tab, pictures, "page")
