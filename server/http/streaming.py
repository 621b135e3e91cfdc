"""A response that follows one message: the HTTP counterpart of a session (server-sent events, WHATWG HTML 9.2).

Like a session it holds a cursor and no output: `Outbound` makes the next piece when the connection can take one, so a
reader that stalls costs the server a cursor and what one write holds. The reader's going away ends the response and
nothing else: the message goes on.
"""

from __future__ import annotations

import asyncio
from typing import Any, Final, Protocol

import structlog
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from protocol.codec import Encoder
from protocol.errors import ProtocolError
from server.access.identity import Principal
from server.http.errors import error_response, stored_error
from server.http.host import Api
from server.http.transport import drop
from server.messages.service import Found, unavailable
from server.sessions.actor import SENDS_IN_A_ROW, Closing, user_of
from server.sessions.outbound import Outbound, error_frame
from server.store.link import StoreError

log = structlog.get_logger("http")

KEEPALIVE: Final = b": keep-alive\n\n"
HEADERS: Final = {"Cache-Control": "no-store", "X-Accel-Buffering": "no"}


class Events(Encoder, Protocol):
    """How the frames of one response become events."""

    over: bool
    """Nothing follows, whatever the message does."""
    refusal: dict[str, Any] | None
    """An error that came before anything was shown: it becomes the response's status, if that is still open."""


class Stream(Response):
    """See the module. A `Peer`."""

    def __init__(
        self,
        api: Api,
        who: Principal,
        found: Found,
        events: Events,
        after: int,
    ) -> None:
        super().__init__(media_type="text/event-stream", headers=HEADERS)
        del self.headers["content-length"]
        self.out = Outbound(events, api.messages.reader, api.settings.server.max_frame_bytes)
        self._api = api
        self._who = who
        self._found = found
        self._events = events
        self._after = after
        self._patience_seconds = 2 * api.settings.server.heartbeat_seconds
        self._gone = self._closing = False

    def say(self, frame: dict[str, Any]) -> None:
        """Tell what is not about the message's content (`Peer`); the response goes on."""
        self.out.put({"type": "notice", "frame": frame})

    def close_soon(self, closing: Closing) -> None:
        """End the response: this node will not see the message's end (`Peer`)."""
        error = ProtocolError("draining", "this node is shutting down; ask again", retry_after_ms=1000)
        self.out.put(error_frame(None, self._found.id, error.as_dict()))
        self._closing = True

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """ASGI. Raises `ProtocolError` as long as no status was sent."""
        api, found = self._api, self._found
        hub = api.messages.means.hub
        api.connections.enter_user(user_of(self._who))
        try:
            try:
                channel = await hub.follow(found.tag, found.keys, self.out, found.head, found.ended)
            except (StoreError, TimeoutError):
                raise unavailable() from None
            self.out.follow(found.id, found.tag, channel, self._after)
            api.host.responses.add(self)
            try:
                await self._serve(scope, receive, send)
            finally:
                api.host.responses.discard(self)
                self.out.drop(found.tag)
                hub.unfollow(found.tag, self.out)
        finally:
            api.connections.leave_user(user_of(self._who))

    async def _serve(self, scope: Scope, receive: Receive, send: Send) -> None:
        async with asyncio.TaskGroup() as tasks:
            helpers = [
                tasks.create_task(self.out.read_pages(), name="response: pages"),
                tasks.create_task(self._listen(receive), name="response: peer"),
            ]
            try:
                await self._write(scope, receive, send)
            except TimeoutError:
                log.info("reader_stalled", id=self._found.id)
                drop(scope)
            for helper in helpers:
                helper.cancel()

    async def _listen(self, receive: Receive) -> None:
        while (await receive())["type"] != "http.disconnect":
            pass
        self._gone = True
        self.out.something.set()

    async def _write(self, scope: Scope, receive: Receive, send: Send) -> None:
        started, sent = False, 0
        while (data := await self._next()) is not None:
            refusal = self._events.refusal
            if not started and refusal is not None:
                error = stored_error(refusal, refusal.get("retry_after_ms"))
                await error_response(error)(scope, receive, send)
                return
            if not started:
                started = True
                await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
            async with asyncio.timeout(self._patience_seconds):
                await send({"type": "http.response.body", "body": data, "more_body": True})
            sent += 1
            if sent % SENDS_IN_A_ROW == 0:
                await asyncio.sleep(0)  # a writable connection never waits: let the others have a turn
        if not self._gone:
            if not started:
                await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
            await send({"type": "http.response.body", "body": b"", "more_body": False})

    async def _next(self) -> bytes | None:
        """What to send next, a comment after too long a silence; None at the end."""
        out = self.out
        while not self._gone:
            data = out.take()
            if data:
                return data
            if self._events.over:
                return None
            if data is not None:
                continue
            if out.finished or self._closing:
                return None
            out.something.clear()
            try:
                async with asyncio.timeout(self._api.keepalive_seconds):
                    await out.something.wait()
            except TimeoutError:
                return KEEPALIVE
        return None
