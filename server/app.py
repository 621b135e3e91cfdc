"""The ASGI application and its wiring; nothing else."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Final

from starlette.applications import Starlette
from starlette.routing import BaseRoute, Mount, Route, WebSocketRoute

from server.http.health import healthz, metrics, models, readyz
from server.http.page import Page, missing_page
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
        Route("/v1/models", models(node.settings)),
        Mount("/", Page(STATIC)) if (STATIC / "index.html").exists() else Route("/", missing_page),
    ]
    return Starlette(routes=routes, lifespan=lifespan)
