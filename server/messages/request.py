"""What was asked for, as it is stored and as it is compared.

The fingerprint decides whether two sends of one id ask for the same thing: SHA-256 over the canonical JSON (in the
manner of RFC 8785) of the typed request, absent and default fields left out. Not in it: the id, where to resume,
`retry_of`, `on_busy`, metadata, and the door it came through.
"""

from __future__ import annotations

import hashlib
from typing import Any, Final

import orjson

from protocol.codec import clean_text
from protocol.frames import MAX_SAFE_INTEGER, Send
from server.messages.events import clean

FINGERPRINT_VERSION: Final = b"1:"
_NOT_IN_IT: Final = {"type", "id", "after", "retry_of", "on_busy", "metadata"}
_NOT_STORED: Final = {"type", "id", "after", "retry_of"}
_OPTIONS: Final = (
    "temperature",
    "top_p",
    "stop",
    "seed",
    "tools",
    "tool_choice",
    "parallel_tool_calls",
    "frequency_penalty",
    "presence_penalty",
    "reasoning_effort",
    "response_format",
)

Request = dict[str, Any]
"""A stored request: the fields of `send` that were given."""


def stored(send: Send) -> Request:
    """The whole request as it was given, so that another node can run it and the provider gets what the client sent."""
    request: Request = clean(send.model_dump(exclude=_NOT_STORED, exclude_unset=True))
    return request


def cleaned(request: Request) -> Request:
    """The same with text that UTF-8 can carry: a template may cut a surrogate pair in two."""
    same: Request = clean(request)
    return same


def fingerprint(send: Send) -> bytes:
    """Versioned hash of what was asked for."""
    fields = send.model_dump(exclude=_NOT_IN_IT, exclude_defaults=True)
    canonical = orjson.dumps(_canonical(fields), option=orjson.OPT_SORT_KEYS)
    return FINGERPRINT_VERSION + hashlib.sha256(canonical).hexdigest().encode()


def _canonical(value: Any) -> Any:
    """Numbers as ECMAScript prints them: 1.0 is 1. Text that UTF-8 can carry.

    A null inside free-form parts (a JSON schema) has a meaning.
    """
    if isinstance(value, float):
        return int(value) if value.is_integer() and abs(value) <= MAX_SAFE_INTEGER else value
    if isinstance(value, dict):
        return {clean_text(key): _canonical(item) for key, item in value.items()}
    if isinstance(value, str):
        return clean_text(value)
    return [_canonical(item) for item in value] if isinstance(value, list) else value


def pack(request: Request) -> bytes:
    """As it stands in Redis."""
    return orjson.dumps(request)


def unpack(data: bytes) -> Request:
    """The request in `data`."""
    request: Request = orjson.loads(data)
    return request


def options(request: Request) -> dict[str, Any]:
    """The sampling options and tools that were given, in the chat-completions format."""
    return {name: request[name] for name in _OPTIONS if request.get(name) is not None}


def wants_structure(request: Request) -> bool:
    """Whether the answer may be more than plain text (JSON, a tool call), so that no other model can go on with it."""
    kind = (request.get("response_format") or {}).get("type")
    return kind in ("json_object", "json_schema") or (
        bool(request.get("tools")) and request.get("tool_choice") != "none"
    )


_PLAIN: Final = frozenset({"role", "content"})
MESSAGE_TOKENS: Final = 16
"""More than any chat template puts around one message."""
IMAGE_TOKENS: Final = 2_048
"""For one image whose size nobody told: more than most models count. What they count beyond it becomes debt."""


def count_input(messages: list[dict[str, Any]]) -> int:
    """A likely number of input tokens where no provider told: a token per three bytes, four per message."""
    return sum(4 + (_text_bytes(message) + 2) // 3 for message in messages)


def _text_bytes(message: dict[str, Any]) -> int:
    content = message.get("content")
    if isinstance(content, str):
        return bytes_of(content)
    texts = [part.get("text") for part in content or ()]
    return sum([bytes_of(text) for text in texts if isinstance(text, str)])


def bytes_of(text: str) -> int:
    """Its length in UTF-8."""
    return len(text) if text.isascii() else len(text.encode())


def text_bytes(messages: list[dict[str, Any]]) -> int:
    """How much text there is, in bytes of UTF-8."""
    return sum(_text_bytes(message) for message in messages)


def least_input(messages: list[dict[str, Any]]) -> int:
    """So many input tokens it is at least: hardly any token stands for more than 16 bytes of text."""
    return text_bytes(messages) // 16


def _most_of_part(part: dict[str, Any]) -> int:
    text = part.get("text")
    if isinstance(text, str):
        return bytes_of(text)
    return IMAGE_TOKENS if "image" in str(part.get("type")) else len(orjson.dumps(part))


def most_input(request: Request) -> int:
    """An upper bound of the input tokens, for what is reserved: one per byte.

    Tokenizers with byte fallback (BPE over bytes, SentencePiece) never make more tokens than there are bytes. A few
    bytes more per message cover what chat templates add. What is not text, as tool definitions, counts as the JSON that
    is sent; an image as `IMAGE_TOKENS`.
    """
    total = MESSAGE_TOKENS
    for message in request.get("messages", []):
        total += MESSAGE_TOKENS + len(message.get("role", ""))
        content = message.get("content")
        if isinstance(content, str):
            total += bytes_of(content)
        else:
            total += sum([_most_of_part(part) for part in content or ()])
        if message.keys() - _PLAIN:
            total += len(orjson.dumps({key: value for key, value in message.items() if key not in _PLAIN}))
    for option in ("tools", "response_format"):
        if request.get(option) is not None:
            total += len(orjson.dumps(request[option]))
    return total
