"""`GET /v1/operator`: how the whole cluster is doing, for the operator's page (`/operator`)."""

from __future__ import annotations

import re
import time
from typing import Final

from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from server.access import scopes
from server.access.identity import Principal
from server.http.auth import bearer
from server.http.errors import BadRequest
from server.http.host import Api
from server.messages.service import unavailable
from server.overview.samples import KEPT_SECONDS, SAMPLE_SECONDS, read
from server.store.link import StoreError

WINDOW_SECONDS: Final = 300.0
"""How far back the first read goes."""
_STREAM_ID: Final = re.compile(r"\d{1,16}-\d{1,10}")


async def samples(api: Api, request: Request) -> Response:
    """What every node did, in steps of two seconds: after a sample that is known, or of the last minutes."""
    _check(api, await api.host.authenticator.authenticate(bearer(request, api.settings.auth.anonymous)))
    after = request.query_params.get("after")
    if after is not None and not _STREAM_ID.fullmatch(after):
        raise BadRequest("`after` has to be the `id` of a sample.", "after")
    try:
        found = await read(api.messages.means.store, after, WINDOW_SECONDS, time.time())
    except (StoreError, TimeoutError):
        raise unavailable() from None
    told = {
        "object": "list",
        "data": found,
        "sample_seconds": SAMPLE_SECONDS,
        "window_seconds": WINDOW_SECONDS,
        "kept_seconds": KEPT_SECONDS,
        "server_time": time.time(),
    }
    return JSONResponse(told, headers={"Cache-Control": "no-store"})


def _check(api: Api, who: Principal) -> None:
    """Needs the scope `operator`; the one anonymous user of a demo on this machine is its operator. Raises."""
    if api.host.demo is None or who.kind != "anonymous":
        scopes.require(who.scopes, scopes.OPERATOR)
