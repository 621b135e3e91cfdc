"""`/v1/jobs`: one message or many, run when there is room, whether or not anybody watches."""

from __future__ import annotations

import re
from collections.abc import AsyncGenerator
from typing import Any, Final

from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse

from server.access import scopes
from server.http.auth import authenticate
from server.http.errors import BadRequest
from server.http.host import Api
from server.http.idempotency import HEADER, message_id
from server.http.job_bodies import Intake, read_job
from server.jobs.job import ID_PATTERN, Job
from server.jobs.told import as_job
from server.jobs.webhooks import Unwelcome

RESULTS_TYPE: Final = "application/jsonl"
MAX_PAGE: Final = 1_000
DEFAULT_PAGE: Final = 100
MAX_INDEX: Final = 10_000_000
_ID: Final = re.compile(ID_PATTERN)


async def create(api: Api, request: Request) -> Response:
    """Make a job: one input, an array of items, or JSONL with an item a line; all of it or nothing.

    The same upload under the same `Idempotency-Key` is the same job, whatever has become of it since.
    """
    who = await authenticate(api, request, scopes.JOBS)
    given = request.headers.get(HEADER)
    making = api.jobs.upload(who, None if given is None else message_id(given))
    limits = api.settings.jobs
    intake = Intake(making, frozenset(api.settings.routes), limits.max_items)
    try:
        await read_job(request, intake, api.settings.server.max_frame_bytes, limits.max_bytes)
        if intake.webhook is not None:
            api.jobs.check_webhook(who, intake.webhook)
        job = await making.make(intake.fingerprint(), intake.webhook)
    except Unwelcome as error:
        await making.discard()
        raise BadRequest(f"`webhook_url`: {error}", "webhook_url") from None
    except BaseException:
        await making.discard()
        raise
    return JSONResponse(as_job(job), 202, {"Location": f"/v1/jobs/{job.id}"})


async def get(api: Api, request: Request) -> Response:
    """The job as it stands: status, counts, usage and cost so far."""
    return JSONResponse(as_job(await _find(api, request)))


async def list_all(api: Api, request: Request) -> Response:
    """One's own jobs, the newest first."""
    who = await authenticate(api, request, scopes.JOBS)
    after = request.query_params.get("after")
    if after is not None:
        _checked(after, "after")
    jobs, more = await api.jobs.page(who, after, _number(request, "limit", DEFAULT_PAGE, 1, MAX_PAGE))
    told: dict[str, Any] = {"object": "list", "data": [as_job(job) for job in jobs], "has_more": more}
    if jobs:
        told["last_id"] = jobs[-1].id
    return JSONResponse(told)


async def items(api: Api, request: Request) -> Response:
    """The job's items, each with the id of its message."""
    limit = _number(request, "limit", DEFAULT_PAGE, 1, MAX_PAGE)
    after = _number(request, "after", -1, 0, MAX_INDEX)
    job = await _find(api, request)
    found = await api.jobs.items(job, after + 1, limit)
    rows = [
        {"index": item.index, "message_id": item.message_id, "status": item.status}
        | ({} if item.custom_id is None else {"custom_id": item.custom_id})
        for item in found
    ]
    return JSONResponse({"object": "list", "data": rows, "has_more": after + 1 + len(found) < job.total})


async def results(api: Api, request: Request) -> Response:
    """The results that there are, a line each, in the order of the items. Once the job has ended: of every item."""
    job = await _find(api, request)
    lines = api.jobs.results(job)
    first = await anext(lines, b"")  # so that a failure can still be told by the status

    async def body() -> AsyncGenerator[bytes, None]:
        yield first
        async for some in lines:
            yield some

    return StreamingResponse(body(), media_type=RESULTS_TYPE, headers={"Cache-Control": "no-store"})


async def cancel(api: Api, request: Request) -> Response:
    """Begin no item any more and stop those that run. 200 once the job has ended, 202 until then."""
    who = await authenticate(api, request, scopes.JOBS)
    job = await api.jobs.cancel(who, _checked(request.path_params["id"], "id"))
    return JSONResponse(as_job(job), 200 if job.over else 202)


async def delete(api: Api, request: Request) -> Response:
    """Delete the job and its results; what runs is stopped. Its messages stay as long as any."""
    await api.jobs.erase(await _find(api, request))
    return Response(status_code=204)


async def _find(api: Api, request: Request) -> Job:
    who = await authenticate(api, request, scopes.JOBS)
    return await api.jobs.find(who, _checked(request.path_params["id"], "id"))


def _checked(text: str, param: str) -> str:
    if not _ID.fullmatch(text):
        raise BadRequest("A job's id is `job_` and 32 hexadecimal digits.", param)
    return text


def _number(request: Request, name: str, default: int, least: int, most: int) -> int:
    text = request.query_params.get(name)
    if text is None:
        return default
    if not (text.isascii() and text.isdecimal() and len(text) <= 8 and least <= int(text) <= most):
        raise BadRequest(f"`{name}` has to be a number from {least} to {most}.", name)
    return int(text)
