"""The page in a browser: what it shows, how it is used, and what it never does."""

import re
from urllib.parse import quote

import httpx
import pytest

from tests.browser.driving import INTEROP

pytestmark = pytest.mark.slow

MB = 1_000_000


def put(tab, name, content=b"x", kind="text/plain"):
    """Upload a file past the page, to its session."""
    with tab.client() as client:
        answer = client.put(f"/api/ingestion/uploads/{name}", content=content, headers={"Content-Type": kind})
        assert answer.status_code == 201
        return answer.json()


def with_session(browser, url, **options):
    """A tab that has a session from the beginning."""
    tab = browser.tab(url, **options)
    tab.run("await page.evaluate(() => fetch('/api/session', { method: 'POST' }))")
    tab.reload()
    return tab


def names(tab):
    """The names in the history, in order."""
    return tab.run("return page.locator('#records .name').evaluateAll((all) => all.map((one) => one.title))")


# --- two windows, two devices


@pytest.mark.parametrize(
    ("without", "streams"),
    [
        ("", 1),
        ("delete window.SharedWorker;", 1),
        ("delete window.SharedWorker; delete Navigator.prototype.locks;", 2),
    ],
    ids=["by a worker", "by a lock", "alone"],
)
def test_two_windows_show_each_others_uploads(browser, service, without, streams):
    running = service()
    one = with_session(browser, running.url, script=without)
    other = browser.tab(one.url, beside=one, script=without)
    one.drop({"from one.txt": "1"})
    other.wait_shown("from one.txt", "#records")
    other.drop({"from other.txt": "2"})
    one.wait_shown("from other.txt", "#records")
    assert running.metric("waybill_event_streams") == streams
    one.run("await page.locator('#records .record', { hasText: 'from one' }).getByLabel('Delete').click()")
    one.run("await page.close()")  # leaving sends what waits to be undone
    other.wait("document.querySelectorAll('#records .record').length === 1")
    assert names(other) == ["from other.txt"]
    other.check_faultless()


def test_a_device_joins_by_a_code_after_a_click(browser, service):
    one = with_session(browser, service().url)
    put(one, "on the computer.txt")
    other = with_session(browser, one.url)
    put(other, "on the phone.txt")
    one.run("await page.click('#add-device'); await page.waitForSelector('.qr')")
    code = one.text(".code")
    assert re.fullmatch(r"[0-9A-Z]{4}(-[0-9A-Z]{4}){2}", code)
    assert one.run("return page.locator('.qr').evaluate((image) => image.naturalWidth)") > 0
    other.open(f"/#join={code}")
    other.reload()
    other.wait_shown("The other device will see the 1 upload of this device.", "dialog")
    assert "#" not in other.run("return page.url()")
    assert (
        other.run("return page.evaluate(() => fetch('/api/session').then((answer) => answer.json()))")["devices"] == 1
    )
    other.run("await page.getByRole('button', { name: 'Join', exact: true }).click()")
    other.wait_shown("on the computer.txt", "#records")
    one.wait_shown("The device has joined.", "dialog")
    one.run("await page.keyboard.press('Escape')")
    one.wait_shown("on the phone.txt", "#records")
    one.wait_shown("2 devices")
    one.check_faultless()
    other.check_faultless()


def test_an_ended_session_shows_nothing_of_it(browser, service):
    tab = with_session(browser, service().url)
    put(tab, "secret.txt")
    tab.reload()
    tab.wait_shown("secret.txt", "#records")
    tab.run("await page.click('#menu summary'); await page.click('#end-session')")
    tab.wait_shown("No device that shares it will see", "dialog")
    tab.run("await Promise.all([page.waitForEvent('load'), page.locator('dialog .danger').click()])")
    tab.wait_ready()
    assert "secret" not in tab.text("body")
    tab.check_faultless()


# --- the history


def test_the_history_is_searched_filtered_and_sorted(browser, service):
    tab = with_session(browser, service().url)
    put(tab, "b.txt", b"12")
    put(tab, "a.png", b"1", "image/png")
    put(tab, "folder/c.txt", b"123")
    tab.reload()
    tab.wait("document.querySelectorAll('#records .record').length === 3")
    assert names(tab) == ["c.txt", "a.png", "b.txt"]
    tab.run("await page.selectOption('#filter-order', 'name')")
    tab.wait("document.querySelector('#records .name').title === 'a.png'")
    assert names(tab) == ["a.png", "b.txt", "c.txt"]
    tab.run("await page.selectOption('#filter-type', 'images')")
    tab.wait("document.querySelectorAll('#records .record').length === 1")
    tab.run("await page.selectOption('#filter-type', 'any'); await page.fill('#search', '*.txt')")
    tab.wait("document.querySelectorAll('#records .record').length === 2")
    assert "filename=*.txt" in tab.run("return page.getAttribute('#export', 'href')").replace("%2A", "*")
    tab.run("await page.fill('#search', 'nothing like it')")
    tab.wait_shown("No upload matches this search and these filters.")
    tab.run("await page.click('#clear-filters')")
    tab.wait("document.querySelectorAll('#records .record').length === 3")
    tab.check_faultless()


def test_a_long_history_loads_as_it_is_scrolled(browser, service):
    tab = with_session(browser, service().url)
    with tab.client() as client:
        for start in range(0, 300, 100):
            form = [("file", (f"{n:03}.txt", b"x")) for n in range(start, start + 100)]
            assert client.post("/api/ingestion/uploads", files=form).status_code == 201
    tab.reload()
    tab.run(
        """
        await page.focus("#records .record");
        for (const want of values.want) {
          for (;;) {
            await page.keyboard.press("End");
            if (await page.locator("#records .record", { hasText: want }).count()) break;
            await page.waitForTimeout(20);
          }
        }
        """,
        want=["000.txt"],
    )
    assert tab.run("return page.locator('#records li').count()") < 60
    tab.check_faultless()


def test_a_deletion_is_undone_within_its_time(browser, service):
    tab = with_session(browser, service().url)
    put(tab, "kept.txt")
    tab.reload()
    tab.run("await page.locator('#records').getByLabel('Delete').click()")
    tab.wait_shown("kept.txt deleted", "#undo-bar")
    assert names(tab) == []
    tab.run("await page.click('#undo')")
    assert names(tab) == ["kept.txt"]
    assert [record["filename"] for record in tab.records()] == ["kept.txt"]
    tab.check_faultless()


def test_a_deletion_is_sent_after_ten_seconds(browser, service):
    running = service()
    tab = with_session(browser, running.url)
    put(tab, "gone.txt")
    tab.run("await page.clock.install()")
    tab.reload()
    tab.run("await page.locator('#records').getByLabel('Delete').click()")
    tab.run("await page.clock.runFor(9_000)")
    tab.wait_shown("gone.txt deleted", "#undo-bar")
    assert len(tab.records()) == 1
    tab.run("await page.clock.runFor(2_000)")
    running.wait_for("answered", method="DELETE", status=204)
    assert tab.records() == []
    tab.check_faultless()


def test_several_are_deleted_after_one_question(browser, service):
    tab = with_session(browser, service().url)
    for name in ("a.txt", "b.txt", "c.txt"):
        put(tab, name)
    tab.reload()
    tab.run("await page.check('#select-all')")
    tab.wait_shown("3 selected")
    tab.run("await page.click('#selection-delete')")
    tab.wait_shown("Delete 3 files?", "dialog")
    tab.run("await page.locator('dialog .danger').click()")
    tab.wait_shown("3 files deleted (", "#undo-bar")
    tab.reload()  # leaving sends what waits to be undone
    tab.wait("document.getElementById('history').hidden")
    assert tab.records() == []
    tab.check_faultless()


def test_a_selection_is_downloaded_as_one_archive(browser, service):
    tab = with_session(browser, service().url)
    put(tab, "a.txt")
    put(tab, "b.txt")
    tab.reload()
    tab.run("await page.locator('#records .check input').first().check()")
    tab.wait("document.querySelector('#select-all:indeterminate:not(:checked)')")
    tab.run("await page.check('#select-all')")
    name = tab.run(
        """
        const [download] = await Promise.all([page.waitForEvent("download"), page.click("#selection-zip")]);
        return download.suggestedFilename();
        """
    )
    assert name.endswith(".zip")
    tab.check_faultless()


def test_a_share_link_opens_the_file_without_a_session(browser, service):
    tab = with_session(browser, service().url)
    put(tab, "shared.txt", b"for all")
    tab.reload()
    tab.run("await page.locator('#records').getByLabel('Share link').click()")
    tab.run(
        "await page.getByRole('button', { name: 'Make a link' }).click(); await page.waitForSelector('.made input')"
    )
    address = tab.run("return page.inputValue('.made input')")
    tab.wait_shown("0 downloads", ".links")
    assert httpx.get(address, trust_env=False).content == b"for all"
    tab.check_faultless()


def test_the_digest_is_copied_on_plain_http_as_well(browser, service):
    tab = with_session(browser, service().url)
    record = put(tab, "a.txt")
    tab.run("await page.addInitScript(() => Object.defineProperty(navigator, 'clipboard', { value: undefined }))")
    tab.reload()
    tab.run("await page.locator('#records').getByLabel('Copy digest').click()")
    tab.wait_shown("Copied", "#live")
    tab.run("await page.focus('#search'); await page.keyboard.press('Control+V')")
    assert tab.run("return page.inputValue('#search')") == record["sha256"]
    tab.check_faultless()


# --- everybody


def test_everything_is_done_by_the_keyboard_alone(browser, service, files, tmp_path):
    tab = with_session(browser, service().url)
    put(tab, "first.txt")
    put(tab, "second.txt")
    tab.reload()
    press = "for (const key of values.keys) await page.keyboard.press(key)"
    focused = (
        "return page.evaluate(() => document.activeElement.id || document.activeElement.querySelector('.name')?.title)"
    )
    tab.run(press, keys=["/"])
    assert tab.run(focused) == "search"
    tab.run("await page.focus('#records li[tabindex=\"0\"]')")
    tab.run(press, keys=["ArrowDown"])
    assert tab.run(focused) == "first.txt"
    tab.run(press, keys=["ArrowUp"])
    assert tab.run(focused) == "second.txt"
    tab.run(press, keys=["Enter"])
    tab.wait_shown("SHA-256", "dialog")
    tab.run(press, keys=["Escape"])
    assert tab.run(focused) == "second.txt"
    tab.run(press, keys=["Delete"])
    tab.wait_shown("second.txt deleted", "#undo-bar")
    assert tab.run(focused) == "first.txt"
    tab.run(press, keys=["Space"])
    tab.wait_shown("1 selected", "#selection")
    tab.run(press, keys=["Escape"])
    assert tab.run("return page.isHidden('#selection')")
    # Every control is reached by Tab, and none of them is a trap.
    seen = tab.run(
        """
        await page.evaluate(() => document.activeElement.blur());
        const seen = [];
        for (let n = 0; n < 60; n++) {
          await page.keyboard.press("Tab");
          seen.push(await page.evaluate(() => document.activeElement.id || document.activeElement.tagName));
        }
        return seen;
        """
    )
    assert {"add-device", "choose-files", "choose-folder", "search", "filter-status", "export", "undo"} <= set(seen)
    tab.check_faultless()


def test_a_page_without_scripts_uploads_lists_pages_and_deletes(browser, service, files, tmp_path):
    files({f"{n}.txt": 10 for n in range(60)})
    tab = browser.tab(service().url, wait=False, javaScriptEnabled=False)
    for chosen in ([tmp_path / "files" / f"{n}.txt" for n in range(59)], [tmp_path / "files" / "59.txt"]):
        tab.choose(chosen, "noscript input[type=file]")
        tab.run("await page.click('noscript form button')")
    assert tab.run("return page.locator('.record').count()") == 50
    tab.run("await page.getByRole('link', { name: 'Older' }).click()")
    assert tab.run("return page.locator('.record').count()") == 10
    tab.run("await page.getByRole('link', { name: 'Newest' }).click()")
    tab.run("await page.locator('.record', { hasText: '59.txt' }).getByLabel('Delete').click()")
    assert "59.txt" not in tab.text("#records")
    assert len(tab.records()) == 59
    assert tab.run("return page.locator('.script:visible').count()") == 0


def test_the_page_without_scripts_says_a_refusal_in_words(browser, service, files, tmp_path):
    files({"large.bin": 2000})
    tab = browser.tab(service(max_file_size=1500).url, wait=False, javaScriptEnabled=False)
    tab.choose([tmp_path / "files" / "large.bin"], "noscript input[type=file]")
    tab.run("await page.click('noscript form button')")
    tab.wait_shown("Larger than 1.5\N{NO-BREAK SPACE}kB, the most this server takes.")


def test_the_page_speaks_german_to_those_who_ask_for_it(browser, service):
    tab = with_session(browser, service().url, locale="de-DE")
    put(tab, "a.txt")
    tab.reload()
    tab.wait_shown("Gespeichert", "#records")
    assert tab.run("return page.getAttribute('html', 'lang')") == "de"
    assert "Dateien wählen" in tab.text("body")


MARKUP = [
    "<img src=x onerror=alert(1)>.txt",
    '"><script>alert(1).txt',
    "{{7*7}} ${7*7} <svg onload=alert(1)>.png",
    "javascript:alert(1)",
    "'onmouseover='alert(1)",
]


def test_names_full_of_markup_are_text_and_never_run(browser, service):
    tab = with_session(browser, service().url)
    tab.run("await page.addInitScript(() => (window.alert = () => (document.title = 'it ran')))")
    for name in MARKUP:
        put(tab, f"{quote('<b>folder</b>')}/{quote(name)}", kind="image/png")
    tab.reload()
    tab.wait("document.querySelectorAll('#records .record').length === 5")
    tab.drop({"<img src=x onerror=alert(2)>.txt": "x"})
    tab.wait("document.querySelectorAll('#records .record').length === 6")
    assert sorted(names(tab)) == sorted([*MARKUP, "<img src=x onerror=alert(2)>.txt"])
    tab.run("await page.locator('#records .plain').first().click()")
    tab.wait_shown("SHA-256", "dialog")
    assert tab.run("return page.locator('main img, main script, main b').count()") == 0
    assert tab.run("return page.title()") == "Waybill"
    tab.check_faultless()


@pytest.mark.parametrize("options", [{}, {"colorScheme": "dark"}, {"viewport": {"width": 320, "height": 640}}], ids=str)
def test_axe_finds_nothing(browser, service, options):
    tab = with_session(browser, service().url, bypassCSP=True, **options)
    put(tab, "folder/a.txt")
    put(tab, "b.png", kind="image/png")
    tab.reload()
    tab.run("await page.addScriptTag({ path: values.path })", path=str(INTEROP / "node_modules/axe-core/axe.min.js"))

    def look(what):
        found = tab.run(
            """
            const { violations } = await page.evaluate(() => axe.run({ resultTypes: ["violations"] }));
            return violations.map(({ id, nodes }) => [id, ...nodes.map(({ html }) => html)]);
            """
        )
        assert found == [], what

    look("history")
    tab.run("await page.locator('#records .plain').first().click()")
    look("details")
    tab.run("await page.keyboard.press('Escape'); await page.click('#add-device'); await page.waitForSelector('.qr')")
    look("a device")
    tab.run("await page.keyboard.press('Escape'); await page.click('#menu summary')")
    look("the menu")
    tab.run("await page.keyboard.press('Escape'); await page.check('#select-all')")
    look("a selection")
    tab.run("await page.route('**/api/ingestion/uploads**', () => {})")
    tab.drop({"held/a.txt": "1", "b.txt": "2"})
    tab.wait_shown("b.txt", "#transfers")
    look("uploads")
