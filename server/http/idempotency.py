"""`Idempotency-Key` and message ids: they are the same thing."""

from __future__ import annotations

import hashlib
import os
import re
import time
from typing import Final

from protocol.client.ids import uuid7
from protocol.frames import ID_PATTERN
from server.http.errors import BadRequest

HEADER: Final = "Idempotency-Key"
MESSAGE_ID_HEADER: Final = "Tidewire-Message-Id"
MAX_CHARS: Final = 1024
_ID: Final = re.compile(ID_PATTERN)
_QUOTED: Final = re.compile(r'"((?:[^"\\]|\\["\\])*)"')


def new_message_id() -> str:
    """An id for a request that brought none: UUIDv7."""
    return uuid7(time.time_ns() // 1_000_000, os.urandom(10))


def message_id(key: str | None) -> str:
    """The message id that a request's `Idempotency-Key` means; a new one without.

    The key may be quoted, as a structured field (RFC 8941 section 3.3.3). One outside the alphabet of ids is replaced
    by its SHA-256 in hexadecimal, which is within it. Raises `BadRequest` for an empty or overlong one.
    """
    if key is None:
        return new_message_id()
    text = key.strip()
    quoted = _QUOTED.fullmatch(text)
    if quoted is not None:
        text = re.sub(r"\\(.)", r"\1", quoted[1])
    if not text or len(text) > MAX_CHARS:
        raise BadRequest(f"`{HEADER}` has to have 1 to {MAX_CHARS} characters.", HEADER)
    return text if _ID.fullmatch(text) else hashlib.sha256(text.encode()).hexdigest()


def checked_id(text: str) -> str:
    """An id from a path. Raises `BadRequest`."""
    if not _ID.fullmatch(text):
        raise BadRequest("A message id has 1 to 64 of `A-Za-z0-9_-`.", "id")
    return text
