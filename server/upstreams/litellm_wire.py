"""The frames between a server process and a litellm worker, over a Unix socket.

A frame is four bytes of length (big-endian) and a msgpack array that begins with its kind and the call's number:

    to the worker      [CALL, id, target, {messages, options, max_output_tokens, user, tags}]
                       [CANCEL, id]
                       [CREDIT, id, n]         the consumer took n batches
    to the server      [BATCH, id, pieces, chunks, model]
                       [END, id, finish_reason, [input, output, cached, reasoning] or nil]
                       [FAULT, id, fault, message, status, retry_after_seconds]

A worker sends at most `WINDOW` batches that were not yet credited; then it does not read from its provider either.
"""

from __future__ import annotations

import asyncio
import struct
from enum import IntEnum
from typing import Any, Final

import msgpack

WINDOW: Final = 16
"""Batches of one call on their way or waiting."""
MAX_FRAME_BYTES: Final = 64 * 1024 * 1024
"""A call carries its whole history, with images inside."""

_LENGTH: Final = struct.Struct(">I")


class Kind(IntEnum):
    """What a frame is."""

    CALL = 1
    CANCEL = 2
    CREDIT = 3
    BATCH = 11
    END = 12
    FAULT = 13


def pack(*frame: Any) -> bytes:
    """One frame, ready to be written."""
    body: bytes = msgpack.packb(frame)
    return _LENGTH.pack(len(body)) + body


async def read(reader: asyncio.StreamReader) -> list[Any] | None:
    """The next frame; None when the other side is gone."""
    try:
        (size,) = _LENGTH.unpack(await reader.readexactly(_LENGTH.size))
        if size > MAX_FRAME_BYTES:
            return None
        frame = msgpack.unpackb(await reader.readexactly(size))
    except (asyncio.IncompleteReadError, ConnectionError):
        return None
    return frame if isinstance(frame, list) else None
