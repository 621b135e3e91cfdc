"""`POST /v1/tokens`: your server's API key → a short-lived token for one of your users."""

from __future__ import annotations

from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from protocol.errors import ProtocolError
from server.access import scopes
from server.http import bodies
from server.http.api_models import TokenRequest
from server.http.auth import authenticate
from server.http.errors import BadRequest
from server.http.host import Api


async def create(api: Api, request: Request) -> Response:
    """Sign a token with a user's scopes, of the key's tenant. Only for API keys: a token can't make tokens."""
    who = await authenticate(api, request, scopes.TOKENS)
    if who.kind != "key":
        raise ProtocolError("forbidden", "Only an API key can make tokens.")
    body = await bodies.read(request, TokenRequest, api.settings.server.max_frame_bytes)
    if api.signer is None:
        raise ProtocolError("not_supported", "This server signs no tokens: `auth.jwt_secret_env` is not set.")
    tier = body.tier or who.tier
    try:
        token = api.signer.token(body.user, who.tenant, tier, body.expires_in)
    except ValueError as error:
        raise BadRequest(str(error), "tier" if "tier" in str(error) else "user") from None
    answer = {
        "token": token,
        "token_type": "Bearer",
        "expires_in": body.expires_in,
        "user": body.user,
        "tenant": who.tenant,
        "tier": tier,
    }
    return JSONResponse(answer, 201, {"Cache-Control": "no-store"})
