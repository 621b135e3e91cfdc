"""`GET /v1/messages/{id}` and `POST /v1/messages/{id}/cancel`: a message as it stands, and stopping it."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import Any, Final

from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from server.http.answer import whole_calls
from server.http.auth import authenticate
from server.http.errors import error_object
from server.http.host import Api
from server.http.idempotency import checked_id
from server.http.standing import Ending, Whole, read_whole

CANCEL_SECONDS: Final = 5.0
"""How long the answer to a cancel waits for the receipt."""
_ATTEMPT: Final = (
    "attempt",
    "target",
    "model",
    "outcome",
    "payer",
    "input_tokens",
    "output_tokens",
    "started_at",
    "ended_at",
    "first_token_ms",
)


async def get(api: Api, request: Request) -> Response:
    """The message as it stands."""
    who = await authenticate(api, request)
    found = await api.messages.find(who, checked_id(request.path_params["id"]))
    return JSONResponse(as_message(found.id, await read_whole(api.messages, found)))


async def cancel(api: Api, request: Request) -> Response:
    """Stop generating. 200 with what stands once it has stopped, 202 if that takes longer."""
    who = await authenticate(api, request)
    found = await api.messages.cancel(who, checked_id(request.path_params["id"]))
    try:
        async with asyncio.timeout(CANCEL_SECONDS):
            await Ending(api.messages, found).wait()
    except TimeoutError:
        pass  # it was asked for; who wants to know follows the message
    got = await read_whole(api.messages, found)
    return JSONResponse(as_message(found.id, got), 200 if got.details.record.ended else 202)


def as_message(message_id: str, got: Whole) -> dict[str, Any]:
    """The wire form (`api_models.Message`); what there is nothing to say about is left out."""
    details, record = got.details, got.details.record
    end = record.end or {}
    error = end.get("error")
    message: dict[str, Any] = {
        "id": message_id,
        "object": "message",
        "state": record.state,
        "seq": record.head,
        "created": int(details.created),
        "model": details.model,
        "conversation": record.conversation,
        "text": got.text,
        "reasoning": got.reasoning or None,
        "tool_calls": whole_calls(got.calls) or None,
        "finish_reason": end.get("finish_reason"),
        "usage": end.get("usage") or None,  # what is left of an erased message tells none
        "cost_usd": end.get("cost_usd"),
        "prompt": details.prompt,
        "attempts": [_attempt(attempt) for attempt in details.attempts],
        "error": error_object(error) if error else None,
    }
    return {name: value for name, value in message.items() if value is not None}


def _attempt(attempt: Mapping[str, Any]) -> dict[str, Any]:
    told = {name: attempt[name] for name in _ATTEMPT if attempt.get(name) is not None}
    return {"outcome": "running", **told}
