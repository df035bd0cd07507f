"""Uppy in Chromium: a page of another origin, with cookies, whose every request the browser asks leave for."""

import random
from contextlib import ExitStack

import pytest

from tests.interop.browser import UPPY, Browser, Site, bundle
from tests.interop.clients import MIB
from tests.support.cutting_proxy import CuttingProxy
from tests.support.service import UPLOADS, service
from tests.support.tally import TORTURE

__all__ = ["service"]

pytestmark = pytest.mark.slow

CHUNK = 256 * 1024


class Visit:
    """A browser on our page, which sends these pieces to the service behind the proxy as the plan says."""

    def __init__(self, service, directory, pieces, plans, **proxied):
        self.pieces = pieces
        self._left = ExitStack()
        self._plans, self._directory, self._proxied = iter(plans), directory, proxied
        self._service = service

    def __enter__(self):
        directory = self._directory
        self.site = self._left.enter_context(Site(bundle(UPPY, directory), self.pieces, self._plan))
        self.running = self._service(allowed_origins=self.site.origin)
        proxied = {"seed": 0, "reach": None, **self._proxied}
        self.proxy = self._left.enter_context(CuttingProxy(self.running.port, **proxied))
        self._left.enter_context(Browser(f"{self.site.origin}/", directory / "profile"))
        return self

    def __exit__(self, *_):
        self._left.close()

    def _plan(self):
        files = [{"name": piece.name, "type": "text/plain"} for piece in self.pieces]
        # What is not Uppy's goes to the service by a good connection; a cookie belongs to a host, whatever its port.
        service = self.running.url if self.proxy.reach else self.proxy.url
        given = {"service": service, "endpoint": f"{self.proxy.url}{UPLOADS}", "leaveAt": None, "pauseAt": None}
        return given | {"files": files, "options": {}} | next(self._plans, {})

    def all_done(self):
        """Wait until all is sent, and see that the page finds each file in its history, once and whole."""
        done = self.site.wait_for("done")
        assert done["failed"] == []
        assert sorted(done["successful"]) == sorted(piece.name for piece in self.pieces)
        landed = [item for item in done["history"]["items"] if item["status"] == "completed"]
        found = sorted((item["filename"], item["sha256"], item["size"]) for item in landed)
        assert found == sorted((piece.name, piece.sha256, piece.size) for piece in self.pieces)
        assert {(item["protocol"], item["content_type"]) for item in landed} == {("tus", "text/plain")}
        return done


def test_files_of_a_page_land_in_the_session_of_its_cookie(service, tmp_path, source):
    sizes = {"nothing.txt": 0, "small.txt": 10, "Übersicht 第1版.txt": 1_000, "large.txt": 5 * MIB + 1}
    pieces = [source.piece(name, size) for name, size in sizes.items()]
    with Visit(service, tmp_path, pieces, []) as visit:
        done = visit.all_done()
        assert len(done["history"]["items"]) == len(pieces)
        assert visit.running.said("warning") == []


def test_an_upload_goes_on_after_the_page_was_left(service, tmp_path, source):
    plans = [{"leaveAt": MIB, "options": {"chunkSize": CHUNK}}, {"options": {"chunkSize": CHUNK}}]
    with Visit(service, tmp_path, [source.piece("left.bin", 4 * MIB)], plans) as visit:
        assert visit.site.wait_for("left")["bytes"] >= MIB
        done = visit.all_done()
        assert len(done["history"]["items"]) == 1  # the page remembered where it had begun


def test_a_paused_upload_goes_on_after_a_restart_of_the_service(service, tmp_path, source):
    plans = [{"pauseAt": MIB, "options": {"chunkSize": CHUNK}}]
    with Visit(service, tmp_path, [source.piece("paused.bin", 4 * MIB)], plans) as visit:
        visit.site.wait_for("paused")
        visit.running.kill()
        visit.running.start()
        visit.proxy.upstream_port = visit.running.port
        visit.site.go_on.set()
        done = visit.all_done()
        assert len(done["history"]["items"]) == 1


def test_every_upload_is_stored_in_full_and_once_over_a_bad_connection(service, tmp_path, source, tally):
    row = tally("connections cut", "tus", "sqlite")
    seed = 1
    count, largest = (300, 64 * MIB) if TORTURE else (3, 3 * MIB)
    chance = random.Random(seed)
    sizes = [round(MIB * (largest / MIB) ** chance.random()) for _ in range(count)]
    pieces = [source.piece(f"{number}.bin", size) for number, size in enumerate(sizes)]
    with Visit(service, tmp_path, pieces, [{"options": {"limit": 4}}], seed=seed, reach=largest // 4) as visit:
        row.memory_before = visit.running.memory()
        visit.all_done()
        row.acknowledged, row.memory_after = count, visit.running.memory()
        row.injected = sum(visit.proxy.met.values())
        assert row.injected >= count
