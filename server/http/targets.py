"""`GET /v1/targets`: how the targets behind the routes stand, for lights that a person looks at."""

from __future__ import annotations

from typing import Any, Final

from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from server.demo.parts import PRIMARY
from server.http.auth import authenticate
from server.http.host import Api

_TOLD: Final = ("name", "model", "state", "why", "retry_after_ms", "share", "probes")
"""What any user may see; how many calls others made is the operator's (`server.http.operator`)."""


async def list_all(api: Api, request: Request) -> Response:
    """Every target as this node's breakers see it, and the order in which each route asks them."""
    await authenticate(api, request)
    told: dict[str, Any] = {
        "object": "list",
        "data": [_target(state.as_dict()) for state in api.host.target_states()],
        "routes": [{"id": name, "targets": list(route.targets)} for name, route in api.settings.routes.items()],
    }
    demo = api.host.demo
    if demo is not None:
        told["demo"] = {"lan": demo.parts.lan, "primary": PRIMARY, "broken": demo.broken}
    return JSONResponse(told)


def _target(state: dict[str, Any]) -> dict[str, Any]:
    return {name: state[name] for name in _TOLD}
