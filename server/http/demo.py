"""The buttons of `tidewire demo`: break the primary model, kill a node, bring in a second device.

These paths exist in a demo only. Each wants an `Origin` that is the server's own, so that no other page in the same
browser can press a button, and JSON, which a foreign form cannot send; on a network also a token of the demo.
"""

from __future__ import annotations

import asyncio
import secrets
import time
from collections.abc import Awaitable, Callable
from typing import Annotated, Final

from pydantic import Field
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from protocol.errors import ProtocolError
from server.access import scopes
from server.access.credentials import jwt_secret
from server.access.identity import ANONYMOUS_TENANT, ANONYMOUS_USER
from server.access.origins import OriginPolicy
from server.access.pairing import CODE_SECONDS, NONCE_BYTES, Pairing
from server.demo.parts import DemoNode
from server.http.api_models import Body
from server.http.auth import authenticate
from server.http.bodies import read
from server.http.host import Api
from server.messages.service import unavailable
from server.store.keys import used_code
from server.store.link import StoreError

DEVICE_SECONDS: Final = 12 * 3600
"""How long a device stays in."""
DEVICE_SCOPES: Final = (scopes.CHAT, scopes.JOBS, scopes.USAGE, scopes.OPERATOR)
LAST_WORDS_SECONDS: Final = 0.1
"""Between the answer to "kill" and the death: the answer has to go out."""
MAX_BODY_BYTES: Final = 1024


class PrimaryRequest(Body):
    """Break it, or mend it."""

    broken: bool


class KillRequest(Body):
    """The node that serves this session."""

    session: Annotated[str, Field(pattern=r"^[0-9a-f]{1,64}$")]


class PairRequest(Body):
    """A code from a link."""

    code: Annotated[str, Field(min_length=1, max_length=64)]


class DemoApi:
    """The handlers, with what they share."""

    def __init__(self, api: Api, demo: DemoNode) -> None:
        self._api = api
        self._demo = demo
        self._own = OriginPolicy(loopback_only=api.settings.auth.anonymous)
        secret = jwt_secret(api.settings.auth, api.host.environ)
        self._pairing = None if secret is None else Pairing(secret)

    def routes(self) -> list[Route]:
        """Their paths."""
        handlers: dict[str, Callable[[Request], Awaitable[Response]]] = {
            "/v1/demo/primary": self.primary,
            "/v1/demo/kill": self.kill,
            "/v1/demo/devices": self.devices,
            "/v1/demo/pair": self.pair,
        }
        return [Route(path, handler, methods=["POST"]) for path, handler in handlers.items()]

    async def primary(self, request: Request) -> Response:
        """Break the primary model, or mend it."""
        await self._allow(request)
        wish = await read(request, PrimaryRequest, MAX_BODY_BYTES)
        self._demo.say({"broken": wish.broken})
        return JSONResponse({"broken": wish.broken}, 202)

    async def kill(self, request: Request) -> Response:
        """Kill the node that serves a session, as a power cut would."""
        await self._allow(request)
        wish = await read(request, KillRequest, MAX_BODY_BYTES)
        here = self._demo.serves(wish.session)
        tell = self._demo.die if here else lambda: self._demo.say({"kill": wish.session})
        asyncio.get_running_loop().call_later(LAST_WORDS_SECONDS, tell)
        return JSONResponse({"session": wish.session}, 202)

    async def devices(self, request: Request) -> Response:
        """A link that brings one more device in, once."""
        await self._allow(request)
        address = self._demo.parts.address
        if self._pairing is None:
            return JSONResponse({"url": f"{address}/", "lan": False}, 201)
        code = self._pairing.code(time.time(), secrets.token_bytes(NONCE_BYTES))
        return JSONResponse({"url": f"{address}/#code={code}", "lan": True, "expires_in_seconds": CODE_SECONDS}, 201)

    async def pair(self, request: Request) -> Response:
        """A token for a code. Each code works once."""
        self._check_origin(request)
        wish = await read(request, PairRequest, MAX_BODY_BYTES)
        if self._pairing is None or self._api.signer is None:
            raise ProtocolError("not_found", "This demo lets this machine in without a code.")
        name = self._pairing.name(wish.code, time.time())
        if name is None or not await self._first_use(name):
            raise ProtocolError("unauthenticated", "This link has been used or is too old; make a new one.")
        token = self._api.signer.token(ANONYMOUS_USER, ANONYMOUS_TENANT, None, DEVICE_SECONDS, DEVICE_SCOPES)
        return JSONResponse({"token": token, "expires_in_seconds": DEVICE_SECONDS}, 201, {"Cache-Control": "no-store"})

    async def _first_use(self, name: str) -> bool:
        key = used_code(name)
        try:
            store = self._api.messages.means.store
            return await store.call(key, "SET", key, "1", "NX", "EX", CODE_SECONDS) is not None
        except (StoreError, TimeoutError):
            raise unavailable() from None

    async def _allow(self, request: Request) -> None:
        self._check_origin(request)
        await authenticate(self._api, request)

    def _check_origin(self, request: Request) -> None:
        origin = request.headers.get("origin")
        if origin is None or not self._own.permits(origin, request.headers.get("host")):
            raise ProtocolError("forbidden", "Only the demo's own page may do this: send its address as `Origin`.")
