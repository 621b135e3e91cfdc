"""`GET /v1/ws`: the handshake, then an actor for as long as the connection lasts."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Protocol

from starlette.websockets import WebSocket

from protocol.codec import CODECS, JSON, Codec
from protocol.errors import CloseCode, ProtocolError
from server.access.limits import ConnectionLimits, client_address
from server.access.origins import OriginPolicy
from server.config import ServerSettings, Settings
from server.sessions import conversation_handlers, handlers  # noqa: F401 - they fill the table of handlers
from server.sessions.actor import Session, SessionLimits, SessionMeans


class Host(Protocol):
    """The node, as the endpoint needs it."""

    settings: Settings
    origins: OriginPolicy
    session_means: SessionMeans
    sessions: set[Session]
    draining: bool


def endpoint(host: Host) -> Callable[[WebSocket], Awaitable[None]]:
    """The ASGI endpoint that serves `host`'s sessions."""
    settings = host.settings.server
    connections = ConnectionLimits(settings)
    limits = SessionLimits(settings, connections)

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
        address = _address(socket, settings)
        try:
            connections.handshake(address)
            address_pace = connections.enter_address(address)
        except ProtocolError as error:
            await socket.close(CloseCode.TOO_MANY_CONNECTIONS, error.message)
            return
        session = Session(socket, codec, host.session_means, limits, address_pace)
        host.sessions.add(session)
        try:
            await session.run()
        finally:
            host.sessions.discard(session)
            connections.leave_address(address)

    return serve


def _address(socket: WebSocket, settings: ServerSettings) -> str:
    """The client's address; of a Unix socket's peer, which has none, loopback."""
    peer = socket.client.host if socket.client is not None else "127.0.0.1"
    return client_address(peer, socket.headers.get("x-forwarded-for"), settings.trusted_proxies)


def _codec(socket: WebSocket) -> Codec | None:
    """The first subprotocol offered that we speak; JSON if none is offered, None if only unknown ones are."""
    offered: list[str] = socket.scope["subprotocols"]
    if not offered:
        return JSON
    return next((CODECS[name] for name in offered if name in CODECS), None)
