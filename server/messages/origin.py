"""Where a message came from and what its bill is filed under: the door, who came through it, and tags. Pure.

Tags are the `metadata` of the request, checked once, at the door. They are kept with the claim, so whoever takes the
message over writes them into the same usage records.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final, Literal

import msgpack

from protocol.errors import ProtocolError
from server.messages.events import clean
from server.telemetry.spans import TRACEPARENT, TraceContext

MAX_TAGS: Final = 16
"""Most pairs of `metadata`; as with OpenAI."""
TAG_NAME_CHARACTERS: Final = 64
TAG_CHARACTERS: Final = 512
"""Longest value of one pair; a number counts as it is printed."""
FEATURE: Final = "feature"
"""The tag that reports know by its own name."""

Door = Literal["ws", "http", "job"]


@dataclass(frozen=True, slots=True)
class Origin:
    """Where a message came from."""

    door: Door
    id: str = ""
    """The session's or the job's id; an HTTP request has none."""
    tags: Mapping[str, str] = field(default_factory=dict)
    """See `tags_of`."""
    tier: str = ""
    """The user's tier when it was first asked for."""
    traceparent: str = ""
    """The span of whoever asked, as the W3C header; empty if they told none."""

    def pack(self) -> bytes:
        """As it stands in Redis."""
        packed: bytes = msgpack.packb([self.door, self.id, dict(self.tags), self.tier, self.traceparent])
        return packed

    @classmethod
    def unpack(cls, data: bytes | None) -> Origin:
        """The origin in `data`; of a claim that has none, an unnamed one."""
        return cls("ws") if data is None else cls(*msgpack.unpackb(data))


def tags_of(metadata: Mapping[str, Any] | None) -> dict[str, str]:
    """`metadata` as tags, every value a text; without `traceparent`, which is no tag.

    Raises `ProtocolError` (`invalid_frame`) that says what is too much.
    """
    if not metadata:
        return {}
    if len(metadata) > MAX_TAGS:
        raise _refused(f"metadata: at most {MAX_TAGS} pairs are taken, not {len(metadata)}")
    return {
        _name(name): text
        for name, value in metadata.items()
        if (text := _text(name, value)) is not None and name != TRACEPARENT
    }


def traceparent_of(metadata: Mapping[str, Any] | None) -> str:
    """The span that `metadata` says it was sent in; empty if none, or none that is well-formed."""
    value = (metadata or {}).get(TRACEPARENT)
    return value if isinstance(value, str) and TraceContext.of(value) is not None else ""


def _name(name: str) -> str:
    if not 0 < len(name) <= TAG_NAME_CHARACTERS:
        raise _refused(f"metadata: a name has 1 to {TAG_NAME_CHARACTERS} characters, not {len(name)}")
    return _storable(name)


def _text(name: str, value: Any) -> str | None:
    """A value as text; None for null, which is as good as absent."""
    if value is None:
        return None
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, float) and math.isfinite(value) and value.is_integer() and abs(value) < 2**53:
        value = int(value)  # 1.0 and 1 are the same number in JSON
    if not isinstance(value, str | int | float):
        raise _refused(f"metadata.{name[:TAG_NAME_CHARACTERS]}: should be a text, a number, true, false or null")
    text = str(value)
    if len(text) > TAG_CHARACTERS:
        raise _refused(
            f"metadata.{name[:TAG_NAME_CHARACTERS]}: at most {TAG_CHARACTERS} characters are taken, not {len(text)}"
        )
    return _storable(text)


def _storable(text: str) -> str:
    """Text that UTF-8 and every SQL database can carry: PostgreSQL has no U+0000."""
    cleaned: str = clean(text)
    return cleaned.replace("\0", "\N{REPLACEMENT CHARACTER}")


def _refused(message: str) -> ProtocolError:
    return ProtocolError(
        "invalid_frame",
        message,
        details={"limits": {"pairs": MAX_TAGS, "name": TAG_NAME_CHARACTERS, "value": TAG_CHARACTERS}},
    )
