"""`GET /v1/usage`: what users were charged, summed from the ledger. A tenant sees its own, a user only their own."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any, Final

import structlog
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from protocol.errors import ProtocolError
from server.access import scopes
from server.access.identity import Principal
from server.http.auth import authenticate
from server.http.errors import BadRequest
from server.http.host import Api
from server.ledger.errors import LedgerUnavailable
from server.ledger.report import TENANT_DIMENSIONS, BadQuery, Query, dimensions, groups, period, shown_time

log = structlog.get_logger("http")

PARAMETERS: Final = ("group_by", "from", "to", "user")
RETRY_MS: Final = 5_000


async def get(api: Api, request: Request) -> Response:
    """Tokens and cost of a time, by feature, model and other dimensions."""
    who = await authenticate(api, request)
    query = query_of(who, _given(request), datetime.now(UTC))
    try:
        shown = groups(query, await _summed(api, query))
    except BadQuery as error:
        raise BadRequest(str(error), error.parameter) from None
    return JSONResponse({"from": shown_time(query.from_ms), "to": shown_time(query.to_ms), "groups": shown})


def _given(request: Request) -> dict[str, str]:
    given: dict[str, str] = {}
    for name, value in request.query_params.multi_items():
        if name not in PARAMETERS:
            raise BadRequest(f"There is no parameter `{name[:64]}` here; there are {', '.join(PARAMETERS)}.", name[:64])
        if name in given:
            raise BadRequest(f"`{name}` is given twice; join dimensions by commas.", name)
        given[name] = value
    return given


def query_of(who: Principal, given: Mapping[str, str], now: datetime) -> Query:
    """What may be summed for `who`. Raises `BadRequest`, `ProtocolError` (`forbidden`)."""
    try:
        by = dimensions(given.get("group_by", ""), TENANT_DIMENSIONS)
        from_ms, to_ms = period(given.get("from"), given.get("to"), now)
    except BadQuery as error:
        raise BadRequest(str(error), error.parameter) from None
    if scopes.USAGE in who.scopes:
        return Query(by, from_ms, to_ms, who.tenant, given.get("user"), charged_only=True)
    if given.get("user", who.user) != who.user:
        raise ProtocolError("forbidden", "These credentials see their own usage only.", details={"scope": scopes.USAGE})
    return Query(by, from_ms, to_ms, who.tenant, who.user, who.kind, charged_only=True)


async def _summed(api: Api, query: Query) -> list[dict[str, Any]]:
    try:
        return await api.host.shelf.read(lambda book: book.report(query))
    except LedgerUnavailable as error:
        log.error("ledger_unavailable", error=str(error))
        message = "the ledger's database does not answer; nothing is lost, ask again later"
        raise ProtocolError("store_unavailable", message, retry_after_ms=RETRY_MS) from None
