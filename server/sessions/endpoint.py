"""`GET /v1/ws`: the handshake, then an actor for as long as the connection lasts."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Protocol

from starlette.websockets import WebSocket

from protocol.codec import CODECS, JSON, Codec
from protocol.errors import CloseCode
from server.access.origins import OriginPolicy
from server.sessions import handlers  # noqa: F401 - fills the table of handlers
from server.sessions.actor import Session, SessionMeans


class Host(Protocol):
    """The node, as the endpoint needs it."""

    origins: OriginPolicy
    session_means: SessionMeans
    sessions: set[Session]
    draining: bool


def endpoint(host: Host) -> Callable[[WebSocket], Awaitable[None]]:
    """The ASGI endpoint that serves `host`'s sessions."""

    async def serve(socket: WebSocket) -> None:
        codec = _codec(socket)
        if codec is None:
            await socket.close()  # before accepting: the handshake is refused with 403
            return
        offered = socket.scope["subprotocols"]
        await socket.accept(codec.subprotocol if offered else None)
        if not host.origins.permits(socket.headers.get("origin"), socket.headers.get("host")):
            await socket.close(CloseCode.FORBIDDEN_ORIGIN, "pages of this origin may not connect")
            return
        if host.draining:
            await socket.close(CloseCode.SERVICE_RESTART, "draining")
            return
        session = Session(socket, codec, host.session_means)
        host.sessions.add(session)
        try:
            await session.run()
        finally:
            host.sessions.discard(session)

    return serve


def _codec(socket: WebSocket) -> Codec | None:
    """The first subprotocol offered that we speak; JSON if none is offered, None if only unknown ones are."""
    offered: list[str] = socket.scope["subprotocols"]
    if not offered:
        return JSON
    return next((CODECS[name] for name in offered if name in CODECS), None)
