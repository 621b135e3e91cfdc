"""One item of a job: its message asked for, its end awaited, its result written down.

Whoever runs it asks for the same message id, so it does not matter how often, or at how many nodes, this is begun.
"""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final

import orjson

from protocol.errors import ProtocolError
from protocol.frames import Send
from server.http.answer import Head, whole
from server.http.errors import error_object
from server.http.standing import Ending, Whole, read_whole
from server.jobs.book import Result
from server.jobs.job import Job, message_id
from server.messages import request as asked
from server.messages.origin import Origin
from server.messages.reader import Details
from server.messages.scripts import MAX_RUNS
from server.messages.service import Found, Messages

AGAIN_MS: Final = 1_000
"""When to ask again after a temporary refusal that does not say."""
REOPEN_MS: Final = 1_000
"""The same after a temporary failure; it doubles with every run."""
PATIENCE_MS: Final = 2_000
"""A wait up to this is sat out; for a longer one the item is given back."""
ITS_OWN: Final = frozenset({"conversation_busy"})
"""Temporary refusals that say nothing about the job's other items."""


@dataclass(frozen=True, slots=True)
class Later:
    """It has not ended, and nothing can be done for it just now."""

    after_ms: int
    whole_job: bool
    """What it waits for, the job's other items wait for too: a quota, a target, the store."""


def packed(send: Send, custom_id: str | None) -> bytes:
    """An item as it is stored."""
    return orjson.dumps({"custom_id": custom_id, "request": asked.stored(send)})


@dataclass(frozen=True, slots=True)
class Item:
    """An item as a worker took it."""

    job: Job
    index: int
    custom_id: str | None
    send: Send

    @classmethod
    def of(cls, job: Job, index: int, data: bytes) -> Item:
        """What `packed` made."""
        stored = orjson.loads(data)
        send = Send.model_validate({"type": "send", "id": message_id(job.id, index), **stored["request"]})
        return cls(job, index, stored["custom_id"], send)


async def run(messages: Messages, item: Item, stopped: Callable[[], bool]) -> Result | Later:
    """Ask for the item's message and wait for its end; begin it again after a temporary failure, as often as may be."""
    try:
        origin = Origin("job", item.job.id)
        found = await messages.ask(item.job.who, item.send, origin)
        while True:
            got = await _ended(messages, found)
            wait_ms = reopen_after_ms(got.details, time.time())
            if wait_ms is None or stopped():
                return result(item, got)
            if wait_ms > PATIENCE_MS:
                return Later(wait_ms, whole_job=False)
            await asyncio.sleep(wait_ms / 1000)
            again = item.send.model_copy(update={"retry_of": got.details.record.head})
            found = await messages.ask(item.job.who, again, origin)
    except ProtocolError as error:
        if error.retryable:
            return Later(error.retry_after_ms or AGAIN_MS, whole_job=error.code not in ITS_OWN)
        return Result("failed", line(item, "failed", error=error.as_dict()))


async def collect(messages: Messages, item: Item, stop: str) -> Result | Later:
    """The job was stopped: bring to its end what was begun, and begin nothing."""
    who, message = item.job.who, item.send.id
    try:
        found = await messages.find(who, message)
        if not found.ended and stop == "cancelled":
            found = await messages.cancel(who, message)
        return result(item, await _ended(messages, found))
    except ProtocolError as error:
        if error.code == "message_unknown":
            return Result("")
        return Later(error.retry_after_ms or AGAIN_MS, whole_job=True)


async def _ended(messages: Messages, found: Found) -> Whole:
    """The message once it has ended. Raises `ProtocolError` where it is not admitted after all."""
    while True:
        await Ending(messages, found).wait()
        got = await read_whole(messages, found)
        if got.details.record.end is not None:
            return got


def reopen_after_ms(details: Details, now: float) -> int | None:
    """When a message that has ended may be begun again, in milliseconds from now; None: its end is final. Pure."""
    end = details.record.end
    if details.record.state != "failed" or end is None or not details.may_reopen or details.runs >= MAX_RUNS:
        return None
    stated: int = end["error"].get("retry_after_ms") or REOPEN_MS * 2 ** (details.runs - 1)
    return max(0, math.ceil(stated - (now - details.ended_at) * 1000))


def result(item: Item, got: Whole) -> Result:
    """The result of a message that has ended. Pure."""
    record, details = got.details.record, got.details
    assert record.end is not None
    end = record.end
    usage = end["usage"]
    tokens = (usage["input_tokens"], usage["output_tokens"], usage["cached_tokens"], usage["reasoning_tokens"])
    costs = [attempt.get("cost_nano_usd") for attempt in details.attempts if attempt.get("payer") == "user"]
    known = [cost for cost in costs if cost is not None]
    nano = sum(known) if known else None
    if record.state == "failed":
        partial = got.text if end["partial"] else None
        text = line(item, "failed", error=end["error"], partial_text=partial)
        return Result("failed", text, tokens, nano)
    head = Head(item.send.id, int(details.created), details.model)
    body = whole(head, got.text, got.reasoning, got.calls, end)
    state: Any = record.state
    return Result(state, line(item, state, body), tokens, nano)


def line(
    item: Item,
    status: str,
    body: Mapping[str, Any] | None = None,
    error: Mapping[str, Any] | None = None,
    partial_text: str | None = None,
) -> bytes:
    """One line of the results (`api_models.JobResult`), in the form of OpenAI's batch output. Pure."""
    return _line(item.send.id, item.index, item.custom_id, status, body, error, partial_text)


def line_without_message(job: str, stop: str, index: int, custom_id: str | None) -> bytes:
    """The line of an item that was never begun, of a job that has ended. Pure."""
    if stop == "expired":
        error = ProtocolError("job_expired", "the job's time was over before this item was begun").as_dict()
        return _line(message_id(job, index), index, custom_id, "failed", None, error, None)
    return _line(message_id(job, index), index, custom_id, "cancelled", None, None, None)


def _line(
    message: str,
    index: int,
    custom_id: str | None,
    status: str,
    body: Mapping[str, Any] | None,
    error: Mapping[str, Any] | None,
    partial_text: str | None,
) -> bytes:
    told = {
        "id": message,
        "index": index,
        "custom_id": custom_id,
        "status": status,
        "response": None if body is None else {"status_code": 200, "request_id": message, "body": body},
        "error": None if error is None else error_object(error),
    }
    if partial_text is not None:
        told["partial_text"] = partial_text
    return orjson.dumps(told)
