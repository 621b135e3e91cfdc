"""All that is kept of a user: told as lines of JSON, or deleted. One's own; or, by the tenant's API key, a user's."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import Any, Final

import orjson
import structlog
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.types import Receive, Scope, Send

from protocol.errors import ProtocolError
from server.access import scopes
from server.access.identity import MAX_NAME_CHARS, Principal
from server.http.auth import authenticate
from server.http.errors import BadRequest
from server.http.host import Api
from server.http.transport import drop
from server.jobs.job import Job
from server.jobs.told import as_job
from server.messages.personal import Personal
from server.messages.service import unavailable
from server.sessions.actor import user_of
from server.store.link import StoreError

log = structlog.get_logger("http")

JOBS_AT_ONCE: Final = 100
COUNTED: Final = {
    "conversation": "conversations",
    "entry": "entries",
    "part": "parts",
    "message": "messages",
    "job": "jobs",
    "job_item": "job_items",
    "job_result": "job_results",
}
"""Kind of a line → how the last one counts it."""
BUFFER_BYTES: Final = 65_536
"""About so much is sent at once."""
HEADERS: Final = {"Cache-Control": "no-store", "Content-Disposition": 'attachment; filename="tidewire.jsonl"'}


async def export_own(api: Api, request: Request) -> Response:
    """Everything that is kept of the caller, an object a line. The last one is `end`: without it, it is not whole."""
    return Export(api, await authenticate(api, request))


async def export(api: Api, request: Request) -> Response:
    """The same of one of the tenant's users. For API keys with the scope `users`."""
    return Export(api, await _named(api, request))


async def delete_own(api: Api, request: Request) -> Response:
    """Delete everything that is kept of the caller; what runs is stopped. 202: some had not ended, ask again."""
    return await _delete(api, await authenticate(api, request))


async def delete(api: Api, request: Request) -> Response:
    """The same of one of the tenant's users. For API keys with the scope `users`."""
    return await _delete(api, await _named(api, request))


async def _named(api: Api, request: Request) -> Principal:
    """The user in the path, as their tokens name them."""
    key = await authenticate(api, request, scopes.USERS)
    if key.kind != "key":
        raise ProtocolError("forbidden", "Only an API key can reach the data of users.")
    user: str = request.path_params["user"]
    if not 0 < len(user) <= MAX_NAME_CHARS or not user.isprintable():
        raise BadRequest(f"A user's id has 1 to {MAX_NAME_CHARS} printable characters.", "user")
    return Principal(key.tenant, "sub", user, key.tier, scopes.USER, None)


async def _delete(api: Api, who: Principal) -> Response:
    try:
        async for job in _jobs(api, who):  # first, so that they ask for nothing any more
            await api.jobs.erase(job)
        gone = await Personal(api.messages, who).delete()
    except (StoreError, TimeoutError):
        raise unavailable() from None
    log.info("user_deleted", conversations=gone.conversations, messages=gone.messages, left=gone.left)
    answer = {
        "object": "user.deleted",
        "user": who.user,
        "deleted": not gone.left,
        "conversations": gone.conversations,
        "messages": gone.messages,
        "left": gone.left,
    }
    return JSONResponse(answer, 202 if gone.left else 200)


async def _jobs(api: Api, who: Principal) -> AsyncGenerator[Job, None]:
    """All jobs of a user, as they are listed now. Raises `ProtocolError`."""
    found: list[Job] = []
    after, more = None, True
    while more:
        page, more = await api.jobs.page(who, after, JOBS_AT_ONCE)
        found += page
        after = page[-1].id if page else None
        more = more and bool(page)
    for job in found:
        yield job


async def _everything(api: Api, who: Principal) -> AsyncGenerator[dict[str, Any], None]:
    """Every line of an export. Raises `ProtocolError`, `StoreError`, `TimeoutError`."""
    counts = dict.fromkeys(COUNTED.values(), 0)
    async for line in _lines(api, who):
        if line["object"] in COUNTED:
            counts[COUNTED[line["object"]]] += 1
        yield line
    yield {"object": "end", **counts}


async def _lines(api: Api, who: Principal) -> AsyncGenerator[dict[str, Any], None]:
    async for line in Personal(api.messages, who).lines():
        yield line
    async for job in _jobs(api, who):
        yield as_job(job)
        async for index, item in api.jobs.book.inputs(job):
            yield {"object": "job_item", "job": job.id, "index": index, "input": orjson.loads(item)}
        async for some in api.jobs.results(job):
            for result in some.splitlines():
                yield {**orjson.loads(result), "object": "job_result", "job": job.id}


class Export(Response):
    """The lines as they are read. Where Redis stops answering in between, the connection is cut: there is no `end`."""

    def __init__(self, api: Api, who: Principal) -> None:
        super().__init__(media_type="application/jsonl", headers=HEADERS)
        del self.headers["content-length"]
        self._api = api
        self._who = who
        self._patience_seconds = 2 * api.settings.server.heartbeat_seconds

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """ASGI. Raises `ProtocolError` as long as no status was sent."""
        self._api.connections.enter_user(user_of(self._who))
        try:
            await self._tell(scope, send)
        finally:
            self._api.connections.leave_user(user_of(self._who))

    async def _tell(self, scope: Scope, send: Send) -> None:
        started, held = False, bytearray()
        try:
            async with aclosing(_everything(self._api, self._who)) as lines:
                async for line in lines:
                    held += orjson.dumps(line, option=orjson.OPT_APPEND_NEWLINE)
                    if len(held) >= BUFFER_BYTES:
                        await self._send(send, bytes(held), started)
                        started = True
                        held.clear()
        except (StoreError, TimeoutError, ProtocolError) as error:
            if not started:
                raise (error if isinstance(error, ProtocolError) else unavailable()) from None
            log.warning("export_cut_off")
            drop(scope)
            return
        await self._send(send, bytes(held), started)
        await send({"type": "http.response.body", "body": b"", "more_body": False})

    async def _send(self, send: Send, data: bytes, started: bool) -> None:
        if not started:
            await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
        async with asyncio.timeout(self._patience_seconds):
            await send({"type": "http.response.body", "body": data, "more_body": True})
