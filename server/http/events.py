"""`GET /v1/messages/{id}/events`: a message's frames as server-sent events, resumable like the socket.

Every journaled frame is an event of its type, its `id` the seq: a browser's `EventSource` resumes by itself with
`Last-Event-ID`. A `snapshot` has an id at its last part only, so a reader that lost its connection in between gets it
anew. What is not journaled (`error`, `goaway`) has no id.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import orjson
from starlette.requests import Request
from starlette.responses import Response

from protocol.frames import MAX_SAFE_INTEGER
from server.http.auth import authenticate
from server.http.errors import BadRequest
from server.http.host import Api
from server.http.idempotency import checked_id
from server.http.streaming import Stream
from server.messages.follow import Frame


class FrameEvents:
    """Frames as they are, one event each; an `Encoder` without state, so its bytes are shared by all readers."""

    subprotocol = "tidewire.v1.sse"
    over = False
    refusal: dict[str, Any] | None = None

    def encode(self, frame: Frame) -> bytes:
        """One event."""
        if frame["type"] == "notice":
            frame = frame["frame"]
        lines = []
        if "seq" in frame and frame.get("last", True):
            lines.append(b"id: %d\n" % frame["seq"])
        if "reconnect_after_ms" in frame:
            lines.append(b"retry: %d\n" % frame["reconnect_after_ms"])
        return b"%sevent: %s\ndata: %s\n\n" % (b"".join(lines), frame["type"].encode(), orjson.dumps(frame))

    def join(self, encoded: Sequence[bytes]) -> bytes:
        """See `Encoder.join`."""
        return b"".join(encoded)


FRAME_EVENTS = FrameEvents()


async def follow(api: Api, request: Request) -> Response:
    """The events after a point, then new ones as they come, until the end. 204: there are none any more."""
    who = await authenticate(api, request)
    after = _after(request)
    found = await api.messages.find(who, checked_id(request.path_params["id"]))
    if found.ended and after == found.head:
        return Response(status_code=204)  # tells an `EventSource` not to come back
    return Stream(api, who, found, FRAME_EVENTS, after)


def _after(request: Request) -> int:
    """The last seq that the reader has; its own word (`Last-Event-ID`) before that of the address it was given."""
    address = _seq("after", request.query_params.get("after"))
    header = _seq("Last-Event-ID", request.headers.get("last-event-id") or None)
    return header if header is not None else address or 0


def _seq(name: str, text: str | None) -> int | None:
    if text is None:
        return None
    if not (text.isascii() and text.isdecimal() and len(text) <= 16 and int(text) <= MAX_SAFE_INTEGER):
        raise BadRequest(f"`{name}` has to be the number of an event.", name)
    return int(text)
