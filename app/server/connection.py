"""One connection: its requests are handed to the application one after the other, and its time is bounded.

An ambiguous request is refused, in the service's own words.
"""

import asyncio
import sys
from typing import Any
from urllib.parse import unquote

import httptools
import structlog

from app.errors import BadRequest, Unavailable, UploadError
from app.ids import new_id
from app.server.cycle import Cycle
from app.server.intake import Intake
from app.web.events import ENDLESS
from app.web.exchange import NOSNIFF
from app.web.problems import problem
from app.web.resumables import INTERIM

log = structlog.stdlib.get_logger("waybill.server")


class Connection(Intake):
    """uvicorn's connection, bounded: see `Intake` for what it receives.

    A client that reads nothing of its answer for `STALLED_SECONDS` ends the connection.
    When the service stops, a request that arrives within `LAST_REQUEST_SECONDS` is answered, with Connection: close.
    """

    STALLED_SECONDS = 300.0
    MOST = sys.maxsize  # lowered where descriptors are few: see keep_descriptors_for_files
    LAST_REQUEST_SECONDS = 1

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._stops = False  # whether the service is stopping, so that no answer keeps the connection open
        self._answering: Cycle | None = None  # the request that the application is answering, or answered last
        self._stall_timer: asyncio.TimerHandle | None = None  # runs while the client does not read
        most: int = self.config.most_connections  # type: ignore[attr-defined]  # it is ours
        if len(self.connections) > min(most, self.MOST):
            self._answer_at_once(b"503 Service Unavailable", Unavailable("too many connections are open"), new_id())

    def connection_lost(self, exc: Exception | None) -> None:
        for timer in (self._head_timer, self._stall_timer):
            if timer is not None:
                timer.cancel()
        super().connection_lost(exc)
        if self._answering is not None and not self._answering.response_complete:
            self._answering.disconnected = True  # uvicorn notifies only the last request, which may still wait
            self._answering.message_event.set()

    def eof_received(self) -> bool:  # type: ignore[override]  # asyncio asks for it
        """Keep the connection open for the answers when the client has closed its sending side by a FIN.

        Within a body, without a request to answer, or under an answer without end, the FIN is a hang-up, and ends
        the connection.
        """
        waits = self.cycle is not None and not self.cycle.response_complete and ENDLESS not in self.cycle.scope
        self._client_is_done = self._in_head and waits
        if self._client_is_done and not self.pipeline and not self.cycle.response_started:
            self.cycle.keep_alive = False
        return self._client_is_done

    def begin(self) -> None:
        """Hand the request to the application, or queue it behind those that were sent before it."""
        upgrades = self.parser.should_upgrade()
        has_body = bool(self._length) or self._is_chunked
        self._upgrade_body = upgrades and has_body and self.parser.get_method() != b"CONNECT"
        version = self.parser.get_http_version()
        url = httptools.parse_url(self.url)
        path = url.path.decode("ascii")
        self.scope["method"] = self.parser.get_method().decode("ascii")
        self.scope["http_version"] = version
        self.scope["path"] = unquote(path) if "%" in path else path
        self.scope["raw_path"] = url.path
        self.scope["query_string"] = url.query or b""
        before = self.cycle
        self.cycle = Cycle(
            scope=self.scope,
            transport=self.transport,
            flow=self.flow,
            logger=self.logger,
            access_logger=self.access_logger,
            access_log=False,
            default_headers=self.server_state.default_headers,
            message_event=asyncio.Event(),
            expect_100_continue=self.expect_100_continue,
            # At an upgrade the parser stops and takes no second request: the client must not send one.
            keep_alive=version != "1.0" and self.parser.should_keep_alive() and not upgrades and not self._stops,
            on_response=self.on_response_complete,
        )
        if version == "1.1":  # an older client would take an interim response for the answer
            self.scope["extensions"] = {INTERIM: self.cycle.send_interim}  # type: ignore[dict-item]  # any object does
        if before is None or before.response_complete:
            self._start_asgi_task(self.cycle, self.app)
        else:
            self.flow.pause_reading()
            self.pipeline.appendleft((self.cycle, self.app))

    def _start_asgi_task(self, cycle: Cycle, app: Any) -> None:  # type: ignore[override]
        self._answering = cycle
        super()._start_asgi_task(cycle, app)

    # uvicorn tells the client that it closes the connection, but does not.

    def send_400_response(self, msg: str) -> None:
        if self._answers_others():
            self._refuses_next = True
            return
        if self.cycle is not None and self.cycle.response_started and not self.cycle.response_complete:
            self.transport.abort()  # a second status line within an answer could be taken for a part of it
            return
        request_id = new_id()
        log.info("malformed request refused", request_id=request_id, reason=self._refusal)
        refusal = BadRequest(self._refusal or "this is not well-formed HTTP")
        self._answer_at_once(b"400 Bad Request", refusal, request_id)

    def _answer_at_once(self, status: bytes, refusal: UploadError, request_id: str) -> None:
        """Refuse a request that the application never sees, and hang up."""
        answer = problem(refusal, request_id)
        headers = [
            *answer.raw_headers,
            (b"x-request-id", request_id.encode("ascii")),
            NOSNIFF,
            (b"connection", b"close"),
        ]
        head = b"".join(b"%b: %b\r\n" % header for header in [*self.server_state.default_headers, *headers])
        self.transport.write(b"HTTP/1.1 %b\r\n%b\r\n%b" % (status, head, bytes(answer.body)))
        self.transport.close()

    def _answers_others(self) -> bool:
        """Whether complete requests before it have yet to be answered, for whose answer a refusal would be taken."""
        if self.cycle is None or self.cycle.response_complete:
            return False
        if self.cycle.more_body and self.pipeline:
            self.pipeline.popleft()  # it was to be the next, and the malformed bytes are its own body
            return True
        return not self.cycle.more_body

    def on_response_complete(self) -> None:
        if self._refuses_next and not self.pipeline and not self.transport.is_closing():
            self.send_400_response("")
            return
        super().on_response_complete()
        if self._client_is_done and self.cycle.response_complete and not self._held_bytes:
            self.transport.close()
        elif self._held_bytes and self.pipeline:
            self.flow.pause_reading()
        elif self._held_bytes:
            self.loop.call_soon(self.data_received, b"")

    def shutdown(self) -> None:
        """Answer pending requests. An idle connection is closed a little later, since a request may be on its way.

        Closed at once, it would be reset, and a client that has just connected, or was promised
        that the connection stays open, would get no answer to its request.
        """
        self._stops = True
        self.timeout_keep_alive = self.LAST_REQUEST_SECONDS
        if self.cycle is None or self.cycle.response_complete:
            self._unset_keepalive_if_required()
            self.timeout_keep_alive_task = self.loop.call_later(
                self.LAST_REQUEST_SECONDS, self.timeout_keep_alive_handler
            )
        elif not self.cycle.response_started:
            self.cycle.keep_alive = False
        self.app_state["stopping"].set()  # ends the answers that would go on for ever

    def pause_writing(self) -> None:
        super().pause_writing()
        self._stall_timer = self.loop.call_later(self.STALLED_SECONDS, self.transport.abort)

    def resume_writing(self) -> None:
        super().resume_writing()
        if self._stall_timer is not None:
            self._stall_timer.cancel()
            self._stall_timer = None
