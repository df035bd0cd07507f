"""What a stranger stored never runs, whichever page opens it and how: in Chromium, whose user has the session.

Every attempt is made on the service and, where a browser would run it, on a plain server that serves the same bytes
under the type they came with. There it does run: so the test can fail, and so what did not run was given its time.
"""

import base64
import http.client
import json
import queue
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import quote, urlsplit

import pytest

from tests.interop.browser import Browser
from tests.interop.clients import HERE
from tests.support.service import PATIENCE, service

__all__ = ["service"]

pytestmark = pytest.mark.slow

# Told to whoever opened it, to whose worker it is, or, when it runs in the page itself, to that.
RUN = (
    "(function(){var u=self.document&&document.currentScript&&document.currentScript.src;"
    "if(self.didRun){didRun(u||'a module');return}"
    "var m={ran:self.location.href};"
    "if(self.SharedWorkerGlobalScope){self.onconnect=function(e){e.ports[0].postMessage(m)};return}"
    "if(!self.document){if(!self.ServiceWorkerGlobalScope)self.postMessage(m);return}"
    "(self.opener||self.parent).postMessage(m,'*')})()"
)
IMPORTED = "self.didRun?didRun(import.meta.url):self.postMessage({ran:import.meta.url})"
HTML = f"<!doctype html><title>x</title><script>{RUN}</script>"
XHTML = (
    f'<html xmlns="http://www.w3.org/1999/xhtml"><body><script>{RUN.replace("&&", "&amp;&amp;")}</script></body></html>'
)
SVG = f'<svg xmlns="http://www.w3.org/2000/svg" width="9" height="9"><script><![CDATA[{RUN}]]></script></svg>'
XSLT = (
    '<?xml version="1.0"?><?xml-stylesheet type="text/xsl" href="#s"?>'
    '<xsl:stylesheet id="s" version="1.0" xmlns:xsl="http://www.w3.org/1999/XSL/Transform"><xsl:template match="/">'
    f"<html><script>{RUN.replace('&&', '&amp;&amp;')}</script></html></xsl:template></xsl:stylesheet>"
)
PDF = (
    "%PDF-1.7\n1 0 obj<</Type/Catalog/Pages 2 0 R/OpenAction<</S/JavaScript/JS(app.launchURL\\('http://127.0.0.1/'\\))>>>>"
    "endobj\n2 0 obj<</Type/Pages/Kids[]/Count 0>>endobj\ntrailer<</Root 1 0 R>>\n%%EOF"
)
DOCUMENT = ("tab", "iframe", "object", "embed")
PROGRAM = ("script", "worker", "shared worker", "service worker")
MODULE = ("module script", "import", "module worker")

# Each: the type under which it comes, its bytes, and the ways by which a browser runs it if a plain server sends it.
CASES = {
    "html": ("text/html", HTML, DOCUMENT),
    "html-charset": ("Text/HTML; charset=utf-8", HTML, DOCUMENT),
    "xhtml": ("application/xhtml+xml", XHTML, DOCUMENT),
    "xml-of-xhtml": ("application/xml", XHTML, DOCUMENT),
    "text-xml": ("text/xml", XHTML, DOCUMENT),
    "xml-with-xslt": ("text/xml", XSLT, ()),  # Chromium is about to take XSLT out
    "svg": ("image/svg+xml", SVG, DOCUMENT),
    "svg-as-xml": ("application/xml", SVG, DOCUMENT),
    "pdf": ("application/pdf", PDF, ()),  # what its script can do shows nowhere, but in a viewer that must not open
    "pdf-of-html": ("application/pdf", f"%PDF-1.7\n{HTML}", ()),
    "html-of-pdf": ("text/html", f"%PDF-1.7\n{HTML}", DOCUMENT),
    "text-of-html": ("text/plain", HTML, ()),
    "untyped-html": ("", HTML, DOCUMENT[:2]),
    "bytes-of-html": ("application/octet-stream", HTML, ()),
    "png-of-html": ("image/png", HTML, ()),
    "two-types": ("text/plain, text/html", HTML, DOCUMENT[:2]),
    "zip-of-html": ("application/zip", f"PK\3\4{HTML}", ()),
    "html-of-zip": ("text/html", f"PK\3\4{HTML}", DOCUMENT),
    "parts-of-html": ("multipart/x-mixed-replace; boundary=x", f"--x\r\nContent-Type: text/html\r\n\r\n{HTML}", ()),
    "message": ("message/rfc822", f"Content-Type: text/html\r\n\r\n{HTML}", ()),
    "script": ("text/javascript", RUN, PROGRAM),
    "module": ("text/javascript", IMPORTED, MODULE),
    "script-as-text": ("text/plain", RUN, ("script",)),
    "json": ("application/json", f"[{RUN}]", ("script",)),
    "csv-of-script": ("text/csv", RUN, ()),
    "gif-of-script": ("image/gif", f"GIF89a/*\0*/=0;{RUN}", ()),
    "bytes-of-gif-of-script": ("application/octet-stream", f"GIF89a/*\0*/=0;{RUN}", ("script",)),
    "pdf-of-script": ("application/pdf", f"/*%PDF-1.7*/{RUN}", ("script",)),
    "style": ("text/css", "body{color:red}", ("style",)),
    "wasm": ("application/wasm", "\0asm\1\0\0\0", ()),
}
TO_OTHERS = {*DOCUMENT, "script", "style"}
PAGE = b'<!doctype html><meta charset="utf-8"><body><script type="module" src="/page.mjs"></script>'


class Origin:
    """An origin that is ours: the page, plain files, and behind /api/ the service, if it is of this origin."""

    def __init__(self, running=None, service=None):
        self.news = queue.Queue()
        self.asked = {}
        self.plan = {}
        self._until = time.monotonic() + 2 * PATIENCE
        origin = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self):
                path = urlsplit(self.path).path
                if path.startswith("/api/"):
                    self._pass_on()
                elif path == "/plan":
                    self._answer("application/json", json.dumps(origin.plan).encode())
                elif path == "/page.mjs":
                    self._answer("text/javascript", (HERE / "stored_page.mjs").read_bytes())
                elif path.startswith("/plain/"):
                    kind, content, _ = CASES[path.removeprefix("/plain/")]
                    self._answer(kind, content.encode("latin-1"))
                else:
                    self._answer("text/html", PAGE)

            def do_PUT(self):
                self._pass_on()

            def do_POST(self):
                told = json.loads(self._body())
                if told["event"] != "waiting":
                    origin.news.put(told)
                came = [
                    path for path in list((service or origin).asked) if f"from={quote(origin.url, safe='')}" in path
                ]
                answer = {"patience": time.monotonic() < origin._until, "came": len(came)}
                answer["next"] = origin.plan.get("next")
                self._answer("application/json", json.dumps(answer).encode())

            def _body(self):
                return self.rfile.read(int(self.headers.get("Content-Length", 0)))

            def _pass_on(self):
                service = http.client.HTTPConnection("127.0.0.1", running.port, timeout=PATIENCE)
                service.request(self.command, self.path, self._body() or None, dict(self.headers.items()))
                said = service.getresponse()
                content = said.read()
                if self.command == "GET":
                    origin.asked[self.path] = (said.status, content)
                self.send_response(said.status)
                for name, value in said.getheaders():
                    self.send_header(name, value)
                self.end_headers()
                self.wfile.write(content)
                service.close()

            def _answer(self, kind, content):
                self.send_response(200)
                if kind:
                    self.send_header("Content-Type", kind)
                self.send_header("Content-Length", str(len(content)))
                self.end_headers()
                self.wfile.write(content)

            def log_message(self, format, *args): ...

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self._server.handle_error = lambda *_: None  # a browser that ends, ends its connections as it likes
        self._thread = threading.Thread(target=self._server.serve_forever)
        self.url = f"http://127.0.0.1:{self._server.server_port}"

    def __enter__(self):
        self._thread.start()
        return self

    def __exit__(self, *_):
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()

    def wait_for(self, event):
        while (news := self.news.get(timeout=3 * PATIENCE))["event"] != event:
            assert news["event"] != "broken", news
        return news


def controls(ways):
    return [f"{name} by {way}" for name, (_, _, runs) in CASES.items() for way in runs if way in ways]


def compare(told, service, names):
    """Each attempt on the service got its bytes, and nothing ran; each control did."""
    named = {attempt["url"]: attempt for attempt in told["attempts"]}
    ran = [named.get(url, {"where": "?", "name": url}) for url in told["ran"]]
    assert [one for one in ran if one["where"] != "plain"] == []
    assert {one["name"] for one in ran} == set(names)
    stored = [url for url, attempt in named.items() if attempt["where"] == "stored"]
    assert {named[url]["name"].split(" by ")[0] for url in stored} == CASES.keys()
    for url in stored:
        content = CASES[named[url]["name"].split(" by ")[0]][1].encode("latin-1")
        assert service.asked[url.removeprefix(service.url)] == (200, content), url


def test_a_stored_file_runs_in_no_page_of_any_origin(service, tmp_path):
    running = service()
    cases = [
        {"name": name, "type": kind, "content": base64.b64encode(content.encode("latin-1")).decode()}
        for name, (kind, content, _) in CASES.items()
    ]
    with Origin(running) as own, Origin(service=own) as other:
        everywhere, abroad = controls({*DOCUMENT, *PROGRAM, *MODULE, "style"}), controls(TO_OTHERS)
        abroad.remove("pdf-of-script by script")  # browsers give no other origin's PDF to a script (ORB)
        own.plan = {"same": True, "at": own.url, "cases": cases, "controls": everywhere, "next": f"{other.url}/"}
        with Browser(f"{own.url}/", tmp_path / "profile", "--disable-popup-blocking"):
            urls = own.wait_for("stored")["urls"]
            cases = [one | {"stored": urls[one["name"]]} for one in cases]
            other.plan = {"same": False, "at": own.url, "cases": cases, "controls": abroad}
            compare(own.wait_for("done"), own, everywhere)
            # Of another origin, but of the same site, so that the cookie comes along.
            compare(other.wait_for("done"), own, abroad)
    assert running.said("error") == []
