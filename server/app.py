"""The ASGI application and its wiring; nothing else."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Final

from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.routing import BaseRoute, Mount, Route, WebSocketRoute

from server.http.edge import Edge
from server.http.health import healthz, metrics, readyz
from server.http.page import Page, missing_page
from server.http.routes import routes as api_routes
from server.node import Node
from server.sessions.endpoint import endpoint

STATIC: Final = Path(__file__).parent / "http" / "static"


def build(node: Node) -> Starlette:
    """The application that serves with `node`; its lifespan starts and closes it."""

    @asynccontextmanager
    async def lifespan(app: Starlette) -> AsyncGenerator[None, None]:
        await node.start()
        try:
            yield
        finally:
            await node.close()

    routes: list[BaseRoute] = [
        WebSocketRoute("/v1/ws", endpoint(node)),
        Route("/healthz", healthz),
        Route("/readyz", readyz(node)),
        Route("/metrics", metrics(node.metrics)),
        *api_routes(node),
        Mount("/", Page(STATIC)) if (STATIC / "index.html").exists() else Route("/", missing_page),
    ]
    edge = Middleware(Edge, origins=node.origins, anonymous=node.settings.auth.anonymous)
    return Starlette(routes=routes, lifespan=lifespan, middleware=[edge])
