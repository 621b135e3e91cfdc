"""The RateLimit headers of a response: what is left of the asker's limits, on answers and refusals alike."""

from __future__ import annotations

from typing import Final

from starlette.requests import Request

from server.http.auth import authenticated
from server.http.edge import add_headers
from server.http.host import Api
from server.messages.service import payer_of
from server.quotas.headers import rate_limit_headers

_ROUTE: Final = "tidewire.route"


async def tell_limits(api: Api, request: Request) -> None:
    """Put the headers on the response to come; none for who was not let in, or while Redis does not answer."""
    who = authenticated(request)
    if who is not None:
        limits = await api.host.quotas.recent(payer_of(who))
        add_headers(request, rate_limit_headers(limits, request.scope.get(_ROUTE, "")))


def asked_for(request: Request, route: str) -> None:
    """The request is for a message of `route`, whose own limits the headers tell then."""
    request.scope[_ROUTE] = route
