"""`POST /v1/chat/completions`: a session with one message, in OpenAI's format.

`Idempotency-Key` is the message id. The same request under the same key is the same message, whether it still runs,
has ended, or was asked for on another node; only a temporary failure is begun again, by a repeat after its stated wait.
"""

from __future__ import annotations

import asyncio
import math
import time
from dataclasses import replace
from typing import Any, Final

from pydantic import ValidationError
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.types import Receive, Scope
from starlette.types import Send as AsgiSend

from protocol.errors import ProtocolError
from protocol.frames import MAX_SAFE_INTEGER, Send
from server.access.identity import Principal
from server.http import bodies
from server.http.answer import Chunks, Head, whole
from server.http.api_models import ChatCompletionRequest
from server.http.auth import authenticate
from server.http.edge import add_headers
from server.http.errors import stored_error
from server.http.host import Api
from server.http.idempotency import MESSAGE_ID_HEADER, message_id
from server.http.rates import asked_for
from server.http.standing import Ending, details_of, read_whole
from server.http.streaming import Stream
from server.messages.origin import Origin
from server.messages.reader import Details
from server.messages.scripts import MAX_RUNS
from server.messages.service import Found, Messages, unavailable
from server.store.link import StoreError
from server.telemetry.spans import TRACEPARENT, TraceContext

SENT: Final = frozenset(ChatCompletionRequest.model_fields) & frozenset(Send.model_fields)
HTTP: Final = Origin("http")
CAPS: Final = ("max_output_tokens", "max_completion_tokens", "max_tokens")


async def create(api: Api, request: Request) -> Response:
    """Ask for a message; its answer as a stream or whole."""
    who = await authenticate(api, request)
    given = request.headers.get("idempotency-key")
    send_id = message_id(given)
    add_headers(request, {MESSAGE_ID_HEADER: send_id})
    body = await bodies.read(request, ChatCompletionRequest, api.settings.server.max_frame_bytes)
    asked_for(request, body.model)
    above = TraceContext.of(request.headers.get(TRACEPARENT))
    origin = HTTP if above is None else replace(HTTP, traceparent=above.header)
    found, details = await ask(api.messages, who, to_send(body, send_id), origin, time.time)
    head = Head(found.id, int(details.created), details.model)
    if not body.stream:
        return WholeAnswer(api.messages, found, head)
    options = body.stream_options
    chunks = Chunks(head, options is not None and options.include_usage)
    return Stream(api, who, found, chunks, await first_cursor(api.messages, found, details))


def to_send(body: ChatCompletionRequest, send_id: str) -> Send:
    """The same request as a `send` frame, only with the fields that were given. Raises `BadRequest`."""
    given = body.model_dump(exclude_unset=True, include=set(SENT))
    fields: dict[str, Any] = {name: value for name, value in given.items() if value is not None}
    cap = next((value for name in CAPS if (value := getattr(body, name)) is not None), None)
    if cap is not None:
        fields["max_output_tokens"] = cap
    if body.conversation is not None:
        new = fields.pop("messages", None)
        if new:
            fields["input"] = new
    try:
        return Send.model_validate({"type": "send", "id": send_id, **fields})
    except ValidationError as error:
        raise bodies.bad_request(error) from None


async def ask(messages: Messages, who: Principal, send: Send, origin: Origin, now: Any) -> tuple[Found, Details]:
    """Create the message, attach to it, or begin it again after a temporary failure.

    Raises `ProtocolError`: as `Messages.ask`, and the stored error of a message that failed and can't be begun again
    (yet: then with the rest of the stated wait).
    """
    found = await messages.ask(who, send, origin)
    details = await details_of(messages, found)
    if details.record.state != "failed" or details.record.end is None:
        return found, details
    end = details.record.end
    if not details.may_reopen or details.runs >= MAX_RUNS:
        if end["partial"]:
            return found, details  # the same text and the same error chunk as the first time
        raise stored_error(end["error"])
    wait = rest_of_wait_ms(details, now())
    if wait > 0:
        raise stored_error(end["error"], wait)
    found = await messages.ask(who, send.model_copy(update={"retry_of": details.record.head}), origin)
    return found, await details_of(messages, found)


def rest_of_wait_ms(details: Details, now: float) -> int:
    """Milliseconds until a failed message may be begun again: what is left of the wait that its error stated."""
    assert details.record.end is not None
    stated = details.record.end["error"].get("retry_after_ms") or 0
    return max(0, math.ceil(stated - (now - details.ended_at) * 1000))


async def first_cursor(messages: Messages, found: Found, details: Details) -> int:
    """Where a response begins: at the beginning, or at the last restart if there was one.

    Beyond every event there is only a snapshot of what stands, which is exactly what came since then. Where a failure
    was begun again and nothing came yet, what stands is what failed: then it begins after that. Raises `ProtocolError`.
    """
    record = details.record
    if details.runs > 1 and not record.ended:
        try:
            entries = await messages.reader.page(found.keys, record.head)
        except (StoreError, TimeoutError):
            raise unavailable() from None
        if entries and entries[0].ends:
            return entries[0].last
    return 0 if record.base <= 1 else MAX_SAFE_INTEGER


class WholeAnswer(Response):
    """Waits for the end, then answers in one piece. Who goes away in between doesn't stop the message."""

    def __init__(self, messages: Messages, found: Found, head: Head) -> None:
        super().__init__()
        self._messages = messages
        self._found = found
        self._head = head

    async def __call__(self, scope: Scope, receive: Receive, send: AsgiSend) -> None:
        """ASGI. Raises `ProtocolError`."""
        if not await self._ended(receive):
            return
        answer = await self._answer()
        await JSONResponse(answer)(scope, receive, send)

    async def _ended(self, receive: Receive) -> bool:
        """Whether the end came before the client's."""

        async def leave() -> None:
            while (await receive())["type"] != "http.disconnect":
                pass

        async def end() -> ProtocolError | None:
            try:
                await Ending(self._messages, self._found).wait()
            except ProtocolError as error:
                return error
            return None

        async with asyncio.TaskGroup() as tasks:
            ended, left = tasks.create_task(end()), tasks.create_task(leave())
            await asyncio.wait({ended, left}, return_when=asyncio.FIRST_COMPLETED)
            here = ended.done()
            left.cancel()
            ended.cancel()
        if not here:
            return False
        if (error := ended.result()) is not None:
            raise error
        return True

    async def _answer(self) -> dict[str, Any]:
        while True:
            got = await read_whole(self._messages, self._found)
            record = got.details.record
            if record.end is None:  # a repeat began it again just now
                await Ending(self._messages, self._found).wait()
                continue
            if record.state == "failed":
                error = record.end["error"]
                raise stored_error(error, error.get("retry_after_ms"))
            return whole(self._head, got.text, got.reasoning, got.calls, record.end)
