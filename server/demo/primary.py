"""A primary model that can be broken on purpose: a relay in front of the embedded model, in the supervisor.

Broken, it drops every answer that it relays, in the middle, and refuses new ones. Mended, it relays again. So the
breakers, the fallback and the trial calls that the page shows are the real ones.
"""

from __future__ import annotations

import asyncio
import socket
from typing import Final

import aiohttp
from aiohttp import web

CONNECT_SECONDS: Final = 5.0
PASSED_ON: Final = ("Content-Type", "Cache-Control")
REFUSAL: Final = {"error": {"message": "broken on purpose", "type": "server_error", "code": "broken"}}


class BreakablePrimary:
    """Listens on loopback from the beginning, so that its address can stand in the settings; `start` makes it serve."""

    def __init__(self) -> None:
        self.broken = False
        self.listener = socket.create_server(("127.0.0.1", 0))
        self._relayed: set[asyncio.BaseTransport] = set()
        self._upstream = ""
        self._http: aiohttp.ClientSession | None = None
        self._runner: web.AppRunner | None = None

    @property
    def base_url(self) -> str:
        """Where the target `primary` is."""
        return f"http://127.0.0.1:{self.listener.getsockname()[1]}/v1"

    async def start(self, upstream: str) -> None:
        """Relay to `upstream`, the base URL of the real model."""
        self._upstream = upstream.removesuffix("/v1")
        timeout = aiohttp.ClientTimeout(total=None, connect=CONNECT_SECONDS)
        self._http = aiohttp.ClientSession(timeout=timeout, auto_decompress=False)
        app = web.Application()
        app.router.add_route("*", "/{path:.*}", self._relay)
        self._runner = web.AppRunner(app, handler_cancellation=True, access_log=None)
        await self._runner.setup()
        await web.SockSite(self._runner, self.listener).start()

    def set_broken(self, broken: bool) -> None:
        """Break it, in the middle of what it says, or mend it."""
        self.broken = broken
        if broken:
            for transport in tuple(self._relayed):
                transport.close()

    async def stop(self) -> None:
        """Let go of everything. Idempotent."""
        if self._runner is not None:
            await self._runner.cleanup()
        if self._http is not None:
            await self._http.close()
        self.listener.close()

    async def _relay(self, request: web.Request) -> web.StreamResponse:
        if self.broken:
            return web.json_response(REFUSAL, status=503)
        transport = request.transport
        if transport is None:
            return web.json_response(REFUSAL, status=502)  # gone already
        self._relayed.add(transport)
        try:
            return await self._pass_on(request)
        except (aiohttp.ClientError, TimeoutError):
            return web.json_response(REFUSAL, status=502)
        finally:
            self._relayed.discard(transport)

    async def _pass_on(self, request: web.Request) -> web.StreamResponse:
        assert self._http is not None
        headers = {name: request.headers[name] for name in ("Content-Type", "Accept") if name in request.headers}
        async with self._http.request(
            request.method, self._upstream + request.path_qs, data=await request.read(), headers=headers
        ) as answer:
            passed = {name: answer.headers[name] for name in PASSED_ON if name in answer.headers}
            response = web.StreamResponse(status=answer.status, headers=passed)
            await response.prepare(request)
            try:
                async for piece in answer.content.iter_any():
                    await response.write(piece)
            except (aiohttp.ClientError, ConnectionError):
                if request.transport is not None:
                    request.transport.abort()  # half an answer must not look like a whole one
            return response
