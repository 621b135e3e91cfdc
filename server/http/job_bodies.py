"""Reading a job: an object, an array of items, or JSONL; checked item by item as it comes, all of it or nothing."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import AsyncGenerator, Callable
from dataclasses import dataclass, field
from typing import Any, Final

import orjson
from pydantic import TypeAdapter, ValidationError
from starlette.requests import ClientDisconnect, Request

from protocol.codec import JSON, DecodeError
from protocol.errors import ProtocolError
from protocol.frames import DEFAULT_ROUTE, Send
from server.http import bodies
from server.http.completions import CAPS
from server.http.errors import BadRequest
from server.http.job_models import BatchJob, BatchLine, JobInput, JobItem, SingleJob, WebhookUrl
from server.jobs.item import packed
from server.jobs.service import NewJob
from server.jobs.split import Elements, Lines, Malformed, Splitter
from server.messages import request as asked
from server.messages.origin import tags_of

JSONL_TYPES: Final = ("application/jsonl", "application/x-ndjson", "application/x-jsonlines")
PIECE_SECONDS: Final = 30.0
"""Longest silence within an upload."""
UPLOAD_SECONDS: Final = 1_800.0
"""Longest upload."""
TOLD: Final = 100
"""Most items whose faults are told one by one."""
TURN: Final = 20
"""After so many items others have a turn."""
SENT: Final = frozenset(JobInput.model_fields) & frozenset(Send.model_fields)
_WEBHOOK: Final[TypeAdapter[str]] = TypeAdapter(WebhookUrl)


@dataclass(slots=True)
class Intake:
    """Takes the items of one job."""

    job: NewJob
    models: frozenset[str]
    """The routes there are."""
    most: int
    word: str = "index"
    """What the number of an item counts."""
    faults: list[dict[str, Any]] = field(default_factory=list)
    faulty: int = 0
    webhook: str | None = None
    _names: set[str] = field(default_factory=set)
    _count: int = 0
    _sha: Any = field(default_factory=hashlib.sha256)

    def check_model(self, send: Send) -> None:
        """Raises `ProtocolError("model_not_found")`. Where none is named, the prompt may have one."""
        if send.model not in self.models and not (send.prompt is not None and send.model == DEFAULT_ROUTE):
            raise ProtocolError("model_not_found", f"there is no model {send.model!r}")

    async def take(self, number: int, make: Callable[[], tuple[JobInput, str | None]]) -> None:
        """Take one item; what is wrong with it is noted, and told at the end together with the rest."""
        self._count += 1
        if self._count > self.most:
            raise BadRequest(f"A job has at most {self.most} items.", "items")
        if self._count % TURN == 0:
            await asyncio.sleep(0)
        try:
            item, name = make()
            send = to_send(item)
            tags_of(send.metadata)
            self.check_model(send)
            if name is not None and name in self._names:
                raise BadRequest(f"`custom_id`: {name!r} was used before in this job", "custom_id")
        except ProtocolError as error:
            self._fault(number, error)
            return
        except DecodeError as error:
            self._fault(number, BadRequest(f"this is {error}"))
            return
        if name is not None:
            self._names.add(name)
        self._sha.update(orjson.dumps([name, asked.fingerprint(send).decode(), send.metadata], option=_SORTED))
        if not self.faulty:
            await self.job.add(packed(send, name), name)

    def _fault(self, number: int, error: ProtocolError) -> None:
        self.faulty += 1
        if len(self.faults) < TOLD:
            param = error.param if isinstance(error, BadRequest) else None
            told = {self.word: number, "code": error.code, "message": error.message, "param": param}
            self.faults.append(told)

    def fingerprint(self) -> str:
        """What the job is known by again. Raises `BadRequest` if anything is wrong with it."""
        if self.faulty:
            first = self.faults[0]
            others = f" ({self.faulty - 1} more are wrong)" if self.faulty > 1 else ""
            error = BadRequest(f"{self.word} {first[self.word]}: {first['message']}{others}; no job was made", "items")
            error.details = {"count": self.faulty, "items": self.faults}
            raise error
        if not self._count:
            raise BadRequest("A job needs at least one item.", "items")
        self._sha.update(orjson.dumps(self.webhook))
        return str(self._sha.hexdigest())


_SORTED: Final = orjson.OPT_SORT_KEYS


def to_send(item: JobInput) -> Send:
    """The same request as a `send` frame, only with the fields that were given. Raises `BadRequest`.

    Its id is a placeholder: the message's id comes of the job's and the item's place in it.
    """
    given = item.model_dump(exclude_unset=True, include=set(SENT))
    fields: dict[str, Any] = {name: value for name, value in given.items() if value is not None}
    cap = next((value for name in CAPS if (value := getattr(item, name)) is not None), None)
    if cap is not None:
        fields["max_output_tokens"] = cap
    try:
        return Send.model_validate({"type": "send", "id": "item", **fields})
    except ValidationError as error:
        raise bodies.bad_request(error) from None


async def read_job(request: Request, intake: Intake, item_bytes: int, job_bytes: int) -> None:
    """Take the whole body. Raises `ProtocolError` (415, 413, 400) as soon as it is clear that nothing comes of it."""
    kind = bodies.media_type(request.headers.get("content-type"), ("application/json", *JSONL_TYPES))
    given = request.query_params.get("webhook_url")
    if given is not None:
        try:
            intake.webhook = _WEBHOOK.validate_python(given)
        except ValidationError as error:
            raise BadRequest(bodies.bad_request(error).message, "webhook_url") from None
    pieces = _pieces(request, job_bytes)
    try:
        async with asyncio.timeout(UPLOAD_SECONDS):
            if kind != "application/json":
                await _take_many(intake, Lines(item_bytes), b"", pieces)
                return
            start = b""
            async for piece in pieces:
                start += piece
                if start.strip():
                    break
            if start.lstrip()[:1] == b"[":
                await _take_many(intake, Elements(item_bytes), start, pieces)
            else:
                await _take_object(intake, start, pieces, item_bytes)
    except TimeoutError:
        raise BadRequest("The upload takes too long.") from None
    finally:
        await pieces.aclose()


async def _pieces(request: Request, limit: int) -> AsyncGenerator[bytes, None]:
    """The body as it comes. Raises `body_too_large`, `BadRequest`."""
    too_large = ProtocolError("body_too_large", f"A job may have at most {limit} bytes.", details={"limit": limit})
    told = request.headers.get("content-length", "")
    if told.isdecimal() and int(told) > limit + bodies.DISCARD_BYTES:
        raise too_large
    stream = aiter(request.stream())
    size = 0
    while True:
        try:
            async with asyncio.timeout(PIECE_SECONDS):
                piece = await anext(stream, None)
        except TimeoutError:
            raise BadRequest(f"The upload was silent for {PIECE_SECONDS:.0f} s.") from None
        except ClientDisconnect:
            raise BadRequest("The client is gone.") from None  # nobody reads this
        if piece is None:
            break
        size += len(piece)
        if size > limit + bodies.DISCARD_BYTES:
            break
        if size <= limit and piece:
            yield piece
    if size > limit:
        raise too_large


async def _take_many(intake: Intake, splitter: Splitter, start: bytes, pieces: AsyncGenerator[bytes, None]) -> None:
    intake.word = splitter.word
    try:
        for number, data in splitter.feed(start):
            await intake.take(number, lambda data=data: _item(data))  # type: ignore[misc]
        async for piece in pieces:
            for number, data in splitter.feed(piece):
                await intake.take(number, lambda data=data: _item(data))  # type: ignore[misc]
        for number, data in splitter.finish():
            await intake.take(number, lambda data=data: _item(data))  # type: ignore[misc]
    except Malformed as error:
        await _drain(pieces)
        raise BadRequest(f"The upload can't be read: {error}; no job was made", "items") from None


async def _drain(pieces: AsyncGenerator[bytes, None]) -> None:
    """Read on: who has not sent all of it yet may not hear an answer."""
    async for _ in pieces:
        pass


def _item(data: bytes) -> tuple[JobInput, str | None]:
    if not data.lstrip().startswith(b"{"):
        raise BadRequest("an item has to be a JSON object")
    (value,) = JSON.decode(data)
    if "body" in value:
        line = bodies.checked(BatchLine, value)
        return line.body, line.custom_id
    item = bodies.checked(JobItem, value)
    return item, item.custom_id


async def _take_object(intake: Intake, start: bytes, pieces: AsyncGenerator[bytes, None], limit: int) -> None:
    """One item, or an object with items: as large as any other body."""
    data = bytearray(start)
    async for piece in pieces:
        data += piece if len(data) <= limit else b""
    if len(data) > limit:
        message = f"An object may have at most {limit} bytes; larger batches come as an array or as JSONL."
        raise ProtocolError("body_too_large", message, details={"limit": limit})
    try:
        value = JSON.decode(bytes(data))[0] if data.lstrip().startswith(b"{") else None
    except DecodeError as error:
        raise BadRequest(f"The body is {error}") from None
    if value is None:
        raise BadRequest("The body has to be a JSON object or array.")
    if "items" not in value:
        one = bodies.checked(SingleJob, value)
        intake.webhook = one.webhook_url or intake.webhook
        send = to_send(one)  # an error of the one item is the job's own
        intake.check_model(send)
        await intake.take(0, lambda: (one, one.custom_id))
        return
    batch = bodies.checked(BatchJob, value)
    intake.webhook = batch.webhook_url or intake.webhook
    for number, item in enumerate(batch.items):
        body = item.body if isinstance(item, BatchLine) else item
        await intake.take(number, lambda body=body, item=item: (body, item.custom_id))  # type: ignore[misc]
