"""Who asks over HTTP: a bearer token (RFC 6750), checked by the same `Authenticator` as `hello`."""

from __future__ import annotations

from typing import Final

from starlette.requests import Request

from protocol.errors import ProtocolError
from server.access import scopes
from server.access.identity import API_KEY_PREFIX, Principal
from server.http.host import Api

_WHO: Final = "tidewire.who"


async def authenticate(api: Api, request: Request, scope: str = scopes.CHAT) -> Principal:
    """Who asks. Raises `ProtocolError`: `unauthenticated`, `token_expired`, `forbidden` without `scope`."""
    who = await api.host.authenticator.authenticate(bearer(request, api.settings.auth.anonymous))
    scopes.require(who.scopes, scope)
    request.scope[_WHO] = who
    return who


def authenticated(request: Request) -> Principal | None:
    """Who was let in with this request, if anybody was yet."""
    who: Principal | None = request.scope.get(_WHO)
    return who


def bearer(request: Request, anonymous: bool) -> str | None:
    """The token of the `Authorization` header; None if there is none.

    The stock SDKs can't leave it out. Where anonymous clients are let in, a word that is neither of our keys nor a
    JWT is such a placeholder and counts as none; a real credential is checked all the same.
    """
    header = request.headers.get("authorization")
    if header is None:
        return None
    scheme, _, token = header.partition(" ")
    token = token.strip()
    if scheme.lower() != "bearer" or not token:
        raise ProtocolError("unauthenticated", "The header has to be `Authorization: Bearer TOKEN`.")
    if anonymous and not token.startswith(API_KEY_PREFIX) and token.count(".") != 2:
        return None
    return token
