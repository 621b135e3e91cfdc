"""Liveness, readiness and metrics."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Protocol

from prometheus_client import CONTENT_TYPE_LATEST
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from server.telemetry.metrics import Metrics

Endpoint = Callable[[Request], Awaitable[Response]]


class Readiness(Protocol):
    """What `readyz` tells of."""

    draining: bool

    @property
    def ready(self) -> bool:
        """Whether new work should be sent here."""
        ...

    @property
    def degraded(self) -> bool:
        """Whether some of Redis' primaries do not answer."""
        ...


async def healthz(request: Request) -> Response:
    """200 as long as the process serves at all."""
    return JSONResponse({"status": "ok"})


def readyz(node: Readiness) -> Endpoint:
    """200 if new work should be sent here; 503 with the reason otherwise.

    With some primaries of a cluster silent it is 200 with the reason `store_degraded`: messages of the others go on.
    """

    async def serve(request: Request) -> Response:
        if node.ready:
            return JSONResponse({"status": "ready", **({"reason": "store_degraded"} if node.degraded else {})})
        reason = "draining" if node.draining else "store_unavailable"
        return JSONResponse({"status": "not_ready", "reason": reason}, 503, {"Retry-After": "1"})

    return serve


def metrics(counted: Metrics) -> Endpoint:
    """Prometheus text format."""

    async def serve(request: Request) -> Response:
        return Response(counted.exposition(), media_type=CONTENT_TYPE_LATEST)

    return serve
