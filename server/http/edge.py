"""What every HTTP request passes first: its id, the origin it comes from (CORS), and the one place where a failure
becomes a response."""

from __future__ import annotations

import re
import secrets
from typing import Final

import structlog
from starlette.datastructures import Headers, MutableHeaders
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from protocol.errors import ProtocolError
from server.access.origins import OriginPolicy
from server.http.errors import error_response
from server.quotas.headers import HEADERS

log = structlog.get_logger("http")

API: Final = "/v1/"
PREFLIGHT_SECONDS: Final = 7_200
EXPOSED: Final = ", ".join(
    ("Tidewire-Message-Id", "X-Request-Id", "Retry-After", "Retry-After-Ms", "X-Should-Retry", "Location", *HEADERS)
)
METHODS: Final = "GET, POST, PUT, PATCH, DELETE"
_REQUEST_ID: Final = re.compile(r"[\x21-\x7e]{1,128}")
_HEADERS: Final = "tidewire.headers"


def add_headers(request: Request, headers: dict[str, str]) -> None:
    """Headers that the response gets whatever becomes of the request."""
    request.scope[_HEADERS].update(headers)


class Edge:
    """ASGI middleware; see the module. `anonymous`: whoever comes is let in, so pages must come from this machine."""

    def __init__(self, app: ASGIApp, origins: OriginPolicy, anonymous: bool) -> None:
        self._app = app
        self._origins = origins
        self._anonymous = anonymous

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """ASGI."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        asked = Headers(scope=scope)
        wish = asked.get("x-request-id", "")
        request_id = wish if _REQUEST_ID.fullmatch(wish) else secrets.token_hex(16)
        scope[_HEADERS] = extra = {"X-Request-Id": request_id}
        started = False

        async def with_headers(message: Message) -> None:
            nonlocal started
            if message["type"] == "http.response.start":
                started = True
                MutableHeaders(scope=message).update(extra)
            await send(message)

        try:
            if not scope["path"].startswith(API):
                await self._app(scope, receive, with_headers)
                return
            extra |= self._cors(asked)
            if scope["method"] == "OPTIONS" and "access-control-request-method" in asked:
                await _preflight(asked)(scope, receive, with_headers)
            else:
                await self._app(scope, receive, with_headers)
        except ProtocolError as error:
            await error_response(error)(scope, receive, with_headers)
        except Exception as error:
            if started:
                raise
            log.error("request_failed", path=scope["path"], request_id=request_id, exc_info=error)
            internal = ProtocolError("internal", "a defect of the server", details={"error_id": request_id})
            await error_response(internal)(scope, receive, with_headers)

    def _cors(self, asked: Headers) -> dict[str, str]:
        """What a permitted page's browser has to be told. Raises `forbidden` for a page of another origin."""
        origin, host = asked.get("origin"), asked.get("host")
        page = origin
        if origin is None and self._anonymous and host is not None:
            page = f"http://{host}"  # a page's own GETs name no origin: it could be a name turned to 127.0.0.1
        if not self._origins.permits(page, host):
            raise ProtocolError("forbidden", "Pages of this origin may not ask (`server.allowed_origins`).")
        if origin is None:
            return {"Vary": "Origin"}
        return {
            "Vary": "Origin",
            "Access-Control-Allow-Origin": origin,
            "Access-Control-Expose-Headers": EXPOSED,
        }


def _preflight(asked: Headers) -> Response:
    """The answer to a browser that asks before it asks (Fetch standard, CORS-preflight)."""
    return Response(
        status_code=204,
        headers={
            "Access-Control-Allow-Methods": METHODS,
            "Access-Control-Allow-Headers": asked.get("access-control-request-headers", "authorization, content-type"),
            "Access-Control-Max-Age": str(PREFLIGHT_SECONDS),
        },
    )
