"""Reading what a client sent: bounded, of the right type, valid JSON, of the right shape; an error says where not."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Sequence
from typing import Final, TypeVar

from pydantic import BaseModel, ValidationError
from starlette.requests import ClientDisconnect, Request

from protocol.codec import JSON, DecodeError
from protocol.errors import ProtocolError
from server.http.errors import BadRequest

_ABOUT: Final = re.compile(r"`(\w+)` (?:is|must) ")
"""How a rule over several fields begins that one of them breaks."""
BODY_SECONDS: Final = 30.0
"""How long a body may take to arrive."""
DISCARD_BYTES: Final = 16 * 1024 * 1024
"""How much of a body that is too large is still read: who has not sent all of it yet may not hear an answer."""

Model = TypeVar("Model", bound=BaseModel)


async def read(request: Request, model: type[Model], limit: int) -> Model:
    """The body as a `model`. Raises `ProtocolError` (415, 413, 400 with `param`)."""
    media_type(request.headers.get("content-type"), ("application/json",))
    data = await _bytes(request, limit)
    try:
        (value,) = JSON.decode(data) if not data.lstrip().startswith(b"[") else (None,)
    except DecodeError as error:
        raise BadRequest(f"The body is {error}") from None
    if value is None:
        raise BadRequest("The body has to be a JSON object.")
    return checked(model, value)


def checked(model: type[Model], value: object) -> Model:
    """`value` as a `model`. Raises `BadRequest` that names the first field at fault."""
    try:
        return model.model_validate(value)
    except ValidationError as error:
        raise bad_request(error) from None


def bad_request(error: ValidationError) -> BadRequest:
    """The first thing wrong, in words that name the field."""
    first = error.errors(include_url=False, include_context=False, include_input=False)[0]
    where = ".".join(str(part) for part in first["loc"])
    what = first["msg"].removeprefix("Value error, ")
    if not where and (about := _ABOUT.match(what)) is not None:
        return BadRequest(what, about.group(1))
    if first["type"] == "extra_forbidden":
        return BadRequest(f"There is no parameter `{where}` here.", where)
    return BadRequest(f"`{where}`: {what}" if where else what, where or None)


def media_type(header: str | None, accepted: Sequence[str]) -> str:
    """Which of the accepted types the body has. Raises `ProtocolError` (415)."""
    kind, _, parameters = (header or "").partition(";")
    kind, charset = kind.strip().lower(), parameters.strip().lower().replace('"', "")
    if kind not in accepted or charset not in ("", "charset=utf-8", "charset=utf8"):
        types = " or ".join(f"`{name}`" for name in accepted)
        raise ProtocolError("unsupported_media_type", f"The body has to be of `Content-Type` {types}, in UTF-8.")
    return kind


async def _bytes(request: Request, limit: int) -> bytes:
    too_large = ProtocolError("body_too_large", f"The body may have at most {limit} bytes.", details={"limit": limit})
    told = request.headers.get("content-length", "")
    expects = request.headers.get("expect", "").lower() == "100-continue"
    if expects and told.isdecimal() and int(told) > limit:
        raise too_large  # nothing was sent yet
    data = bytearray()
    size = 0
    try:
        async with asyncio.timeout(BODY_SECONDS):
            async for piece in request.stream():
                size += len(piece)
                if size <= limit:
                    data += piece
                elif size > limit + DISCARD_BYTES:
                    break
    except TimeoutError:
        raise BadRequest(f"The body did not arrive within {BODY_SECONDS:.0f} s.") from None
    except ClientDisconnect:
        raise BadRequest("The client is gone.") from None  # nobody reads this
    if size > limit:
        raise too_large
    return bytes(data)
