"""Files that are uploaded by the page: every one of them lands with its digest, whatever happens on the way."""

import pytest

from tests.browser.gate import Gate

pytestmark = pytest.mark.slow

MB = 1_000_000

# A picker as Chromium has it, over files of its own private file system: their handles are real, and always permitted.
PICKER = """
window.showOpenFilePicker = async () => {
  const directory = await navigator.storage.getDirectory();
  const handle = await directory.getFileHandle("picked.bin", { create: true });
  if (!(await handle.getFile()).size) {
    const writable = await handle.createWritable();
    await writable.write(new Uint8Array(24_000_000).fill(7));
    await writable.close();
  }
  return [handle];
};
"""


def landed(tab):
    """The digests of what is stored, by the path or name of each; every file stands there once."""
    records = tab.records()
    found = {record["path"] or record["filename"]: record["sha256"] for record in records}
    assert len(found) == len(records)
    return found


def paths(tmp_path, names):
    return [tmp_path / "files" / name for name in names]


def test_a_folder_of_500_files_lands_with_its_paths(browser, service, files, tmp_path):
    sent = files({f"holiday/{n % 7}/picture {n}.bin": n * 10 for n in range(500)})
    tab = browser.tab(service().url)
    tab.choose([tmp_path / "files" / "holiday"], "#folder")
    tab.wait_uploaded()
    assert landed(tab) == sent
    tab.check_faultless()


def test_dropped_files_land(browser, service):
    tab = browser.tab(service().url)
    tab.drop({"a.txt": "first", "b.txt": ""})
    tab.wait_shown("b.txt", "#records")
    tab.wait_shown("a.txt", "#records")
    assert {record["filename"]: record["size"] for record in tab.records()} == {"a.txt": 5, "b.txt": 0}
    tab.check_faultless()


def test_uploads_go_on_by_themselves_after_a_broken_network(browser, service, files, tmp_path):
    sent = files({"large.bin": 40 * MB, "middle.bin": 12 * MB, **{f"small {n}.bin": 20_000 for n in range(20)}})
    with Gate(service().port, budget=26 * MB) as gate:
        tab = browser.tab(gate.url)
        tab.choose(paths(tmp_path, sent))
        gate.wait_broken()
        tab.wait_shown("The server cannot be reached", "#connection")
        assert tab.text("#transfers")
        gate.mend()
        tab.wait_uploaded()
        assert landed(tab) == sent
        assert gate.passed < 70 * MB, "what had arrived was sent again"
        tab.check_faultless()


def test_uploads_go_on_after_the_server_was_killed(browser, service, files, tmp_path):
    sent = files({"large.bin": 40 * MB, **{f"small {n}.bin": 20_000 for n in range(20)}})
    running = service()
    with Gate(running.port, budget=20 * MB) as gate:
        tab = browser.tab(gate.url)
        tab.choose(paths(tmp_path, sent))
        gate.wait_broken()
        running.kill()
        running.start()
        gate.upstream_port = running.port
        gate.mend()
        tab.wait_uploaded()
        assert landed(tab) == sent
        tab.check_faultless()


def broken_and_reloaded(tab, gate):
    """Break the network, and reload the page over a mended one before an upload can go on."""
    gate.wait_broken()
    tab.run("await page.route('**/api/ingestion/uploads/**', (route) => route.abort())")
    gate.mend()
    tab.reload()
    tab.run("await page.unrouteAll()")


def test_uploads_wait_for_their_files_after_a_reload_and_know_them_again(browser, service, files, tmp_path):
    sent = files({"large.bin": 40 * MB, "middle.bin": 12 * MB, "small.bin": 1_000, "other/middle.bin": 12 * MB})
    other = sent.pop("other/middle.bin")
    with Gate(service().port, budget=26 * MB) as gate:
        tab = browser.tab(gate.url)
        tab.choose(paths(tmp_path, ["large.bin", "middle.bin"]))
        broken_and_reloaded(tab, gate)
        tab.wait_shown("2 uploads wait for their files: ")
        # Another file of the same name and size is refused kindly, and changes nothing.
        choose_again(tab, paths(tmp_path, ["other/middle.bin"]))
        tab.wait_shown("has the same name and size as before, but not the same content", "dialog")
        tab.run("await page.keyboard.press('Escape')")
        choose_again(tab, paths(tmp_path, ["large.bin", "middle.bin"]))
        tab.wait_uploaded()
        tab.choose(paths(tmp_path, ["small.bin"]))
        tab.wait_shown("small.bin", "#records")
        assert landed(tab) == sent
        assert other not in sent.values()
        assert gate.passed < 70 * MB, "what had arrived was sent again"
        tab.check_faultless()


def choose_again(tab, chosen):
    tab.run(
        """
        const [chooser] = await Promise.all([page.waitForEvent("filechooser"), page.click("#choose-again")]);
        await chooser.setFiles(values.paths);
        """,
        paths=[str(path) for path in chosen],
    )


def test_uploads_go_on_by_themselves_after_a_reload_where_the_handle_was_kept(browser, service):
    with Gate(service().port, budget=12 * MB) as gate:
        tab = browser.tab(gate.url, script=PICKER)
        tab.run("await page.click('#choose-files')")
        broken_and_reloaded(tab, gate)
        tab.wait_uploaded()
        tab.wait_shown("picked.bin", "#records")
        [record] = tab.records()
        assert (record["filename"], record["size"]) == ("picked.bin", 24 * MB)
        assert gate.passed < 30 * MB, "what had arrived was sent again"
        tab.check_faultless()


@pytest.mark.parametrize("reloads", [False, True], ids=["in the page", "after a reload"])
def test_small_files_whose_answer_was_lost_land_once(browser, service, files, tmp_path, reloads):
    sent = files({f"small {n}.bin": 20_000 for n in range(20)})
    with Gate(service().port, loses=b"HTTP/1.1 201") as gate:
        tab = browser.tab(gate.url)
        tab.choose(paths(tmp_path, sent))
        gate.wait_broken()
        if reloads:
            tab.run("await page.route('**/api/ingestion/uploads', (route) => route.abort())")
            gate.mend()
            tab.reload()
            tab.run("await page.unrouteAll()")
            tab.wait_shown("20 uploads wait for their files: ")
            choose_again(tab, paths(tmp_path, sent))
        else:
            gate.mend()
        tab.wait_uploaded()
        assert landed(tab) == sent
        tab.check_faultless()


def test_an_upload_is_paused_and_goes_on_where_it_was(browser, service, files, tmp_path):
    sent = files({"large.bin": 40 * MB})
    with Gate(service().port, budget=20 * MB) as gate:
        tab = browser.tab(gate.url)
        tab.choose(paths(tmp_path, sent))
        gate.wait_broken()
        tab.run("await page.click('#pause-all')")
        tab.wait_shown("Paused", "#transfers")
        gate.mend()
        tab.run("await page.click('#resume-all')")
        tab.wait_uploaded()
        assert landed(tab) == sent
        assert gate.passed < 50 * MB, "what had arrived was sent again"
        tab.check_faultless()


def test_the_focus_goes_along_with_a_row_that_is_finished(browser, service, files, tmp_path):
    sent = files({"large.bin": 4 * MB})
    with Gate(service().port, budget=2 * MB) as gate:
        tab = browser.tab(gate.url)
        tab.choose(paths(tmp_path, sent))
        gate.wait_broken()
        tab.run("await page.focus('#transfers li')")
        gate.mend()
        tab.wait("document.activeElement.closest('#records li')?.querySelector('.name').title === 'large.bin'")
        tab.check_faultless()


def test_a_cancelled_upload_leaves_nothing(browser, service, files, tmp_path):
    sent = files({"large.bin": 40 * MB})
    running = service()
    with Gate(running.port, budget=20 * MB) as gate:
        tab = browser.tab(gate.url)
        tab.choose(paths(tmp_path, sent))
        gate.wait_broken()
        tab.run("await page.click('#pause-all')")
        gate.mend()
        tab.run("await page.click('#cancel-all')")
        running.wait_for("answered", method="DELETE", status=204)
        assert tab.records() == []
        tab.reload()
        assert tab.run("return page.locator('#tray').isHidden()")
        tab.check_faultless()


def test_a_file_that_is_too_large_is_refused_in_words(browser, service, files, tmp_path):
    files({"video.mov": 2 * MB, "note.txt": 100})
    tab = browser.tab(service(max_file_size="1MiB").url)
    tab.choose(paths(tmp_path, ["video.mov", "note.txt"]))
    tab.wait_shown("Larger than 1\N{NO-BREAK SPACE}MiB, the most this server takes.", "#transfers")
    tab.wait_shown("note.txt", "#records")
    assert [record["filename"] for record in tab.records()] == ["note.txt"]
    tab.check_faultless()


def test_a_busy_server_is_waited_for(browser, service, files, tmp_path):
    sent = files({"large.bin": 2 * MB, "small.bin": 100})
    tab = browser.tab(service().url)
    tab.run(
        """
        const problem = JSON.stringify({ code: "unavailable", status: 503, detail: "too much at once" });
        const busy = { status: 503, contentType: "application/problem+json", body: problem };
        const later = { ...busy, headers: { "Retry-After": "3" } };
        await page.route("**/api/ingestion/uploads**", (route) => route.fulfill(later));
        await page.route("**/api/ingestion/uploads/*", (route) => route.fulfill(busy));
        """
    )
    tab.choose(paths(tmp_path, sent))
    tab.wait_shown("The server is busy. Tries again by itself.", "#transfers")
    tab.run("await page.unrouteAll()")
    tab.wait_uploaded()
    assert landed(tab) == sent
    tab.check_faultless()


def test_a_full_quota_says_what_is_used(browser, service, files, tmp_path):
    files({"first.bin": 900_000, "second.bin": 900_000})
    tab = browser.tab(service(session_quota="1MiB").url)
    tab.choose(paths(tmp_path, ["first.bin"]))
    tab.wait_shown("first.bin", "#records")
    tab.choose(paths(tmp_path, ["second.bin"]))
    tab.wait_shown("It needs 900\N{NO-BREAK SPACE}kB, and 900\N{NO-BREAK SPACE}kB of 1\N{NO-BREAK SPACE}MiB are used.")
    tab.check_faultless()


def test_ten_thousand_files_are_a_few_rows(browser, service):
    tab = browser.tab(service().url)
    tab.run("await page.route('**/api/ingestion/uploads/**', () => {})")
    tab.run(
        """
        await page.evaluate(async () => {
          const { uploads } = await import("/static/scripts/uploads.js");
          const files = [...Array(10_000).keys()].map((n) => new File(["x"], `${n}.txt`));
          const found = files.map((file) => ({ file, path: null, root: null }));
          uploads.add(found, "batch");
        });
        """
    )
    tab.wait_shown("of 10,000 files", "#tray")
    assert tab.run("return page.locator('#transfers li').count()") < 60
    tab.run("await page.focus('#transfers li'); await page.keyboard.press('End')")
    tab.wait_shown("9999.txt", "#transfers")
    tab.check_faultless()
