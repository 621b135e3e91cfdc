"""`GET /v1/models`: the routes, in OpenAI's format."""

from __future__ import annotations

from typing import Any

from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from protocol.errors import ProtocolError
from server.http.auth import authenticate
from server.http.host import Api


async def list_all(api: Api, request: Request) -> Response:
    """Every route."""
    await authenticate(api, request)
    return JSONResponse({"object": "list", "data": [_model(name) for name in api.settings.routes]})


async def get(api: Api, request: Request) -> Response:
    """One route."""
    await authenticate(api, request)
    name = request.path_params["model"]
    if name not in api.settings.routes:
        raise ProtocolError("model_not_found", f"there is no model {name!r}")
    return JSONResponse(_model(name))


def _model(name: str) -> dict[str, Any]:
    return {"id": name, "object": "model", "created": 0, "owned_by": "tidewire"}
