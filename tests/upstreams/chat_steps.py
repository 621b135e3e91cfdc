"""What the scripted upstream writes for one request: the steps of its chat-completions answer, with its faults."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from enum import Enum
from typing import Any

import orjson

from tests.upstreams.script import Reply, Script


class Act(Enum):
    """What a stream does in place of writing an event."""

    HANG = "hang"
    CLOSE = "close"
    RESET = "reset"
    END = "end"


Step = tuple[int, "bytes | Act", int]
"""At which piece it is due, what to write (or do), how many pieces of text it carries."""


@dataclass(slots=True)
class Request:
    """One request to the completions endpoint, as the log tells it."""

    number: str
    body: dict[str, Any]
    headers: dict[str, str]
    reply: Reply
    script: Script
    started: float = field(default_factory=time.time)
    told: dict[str, int] | None = None
    """The tokens (`input`, `output`) of the usage, once it is written."""

    @property
    def model(self) -> str:
        return str(self.body.get("model", ""))

    @property
    def stream(self) -> bool:
        return bool(self.body.get("stream")) and not self.script.json


def steps(request: Request) -> Iterator[Step]:
    """The chat-completions stream."""
    script, reply = request.script, request.reply
    dress = _dresser(script)
    pieces = 0
    if script.bom:
        yield 0, b"\xef\xbb\xbf", 0
    yield 0, dress(_payload(request, b'{"role":"assistant","content":""}')), 0
    if not script.empty:
        for due, event, count in _content(request, dress):
            pieces = due + 1
            yield due, event, count
            if isinstance(event, Act):
                return
    if script.hang == "end":
        yield pieces, Act.HANG, 0
    if not script.no_finish:
        yield pieces, dress(_payload(request, b"{}", reply.finish_reason)), 0
    if not script.no_usage and (request.body.get("stream_options") or {}).get("include_usage"):
        yield pieces, dress(orjson.dumps({**_base(request), "choices": [], "usage": _usage(request.reply)})), 0
        request.told = tokens(request.reply)  # it is asked for the next step once this one is written
    if not script.no_done:
        yield pieces, dress(b"[DONE]") * (2 if script.doubled_done else 1), 0
    yield pieces, Act.END, 0


def _content(request: Request, dress: Callable[[bytes], bytes]) -> Iterator[Step]:
    """Reasoning, text, tool calls; at piece `at` of the text what goes wrong there."""
    script, reply = request.script, request.reply
    due = 0
    for token in reply.reasoning:
        delta = orjson.dumps({script.reasoning_field: token})
        yield due, dress(_payload(request, delta)), 0
        due += 1
    before, after = _payload(request, b'{"content":"\0"}').split(b"\0")
    plain = dress is _plain
    if plain:
        before, after = b"data: " + before, after + b"\n\n"
    trouble = piece_of_trouble(request) if _troubled(script) else -1
    for index in range(0, len(reply.encoded), script.chunk):
        if index <= trouble < index + script.chunk:
            yield from _trouble(request, dress, due)
            if script.big:
                continue
        if script.chunk == 1:
            event, count = before + reply.encoded[index] + after, 1
        else:
            group = reply.encoded[index : index + script.chunk]
            event, count = before + b"".join(group) + after, len(group)
        yield due, event if plain else dress(event), count
        due += count
    for event in _tool_events(request):
        yield due, dress(_payload(request, event)), 0
        due += 1


def _troubled(script: Script) -> bool:
    broken = script.cut or script.reset or script.malformed or script.error_in_200 or script.big
    return bool(broken) or script.hang == "mid"


def _trouble(request: Request, dress: Callable[[bytes], bytes], due: int) -> Iterator[Step]:
    """What happens at piece `at`."""
    script = request.script
    whole = dress(_payload(request, '{"content":" — 🌊"}'.encode()))
    if script.malformed:
        yield due, dress(_payload(request, b'{"content":"oh')), 0
    if script.big:
        yield due, dress(_payload(request, b'{"content":"%s"}' % (b"x" * script.big))), 0
    if script.error_in_200:
        yield due, dress(orjson.dumps(error_body("scripted error", code=script.code or "server_error"))), 0
        yield due, Act.END, 0
    if script.cut == "mid-chunk":
        yield due, whole[: len(whole) // 2], 0
    if script.cut == "utf8":
        yield due, whole[: whole.index("🌊".encode()) + 2], 0
    if script.cut == "clean":
        yield due, Act.END, 0
    elif script.cut or script.reset:
        yield due, Act.RESET if script.reset else Act.CLOSE, 0
    if script.hang == "mid":
        yield due, Act.HANG, 0


def _tool_events(request: Request) -> Iterator[bytes]:
    """Each call's name, then its arguments in pieces of seven characters."""
    for index, call in enumerate(request.reply.tool_calls):
        function = call["function"]
        opening = {"index": index, **call, "function": {"name": function["name"], "arguments": ""}}
        yield orjson.dumps({"tool_calls": [opening]})
        for at in range(0, len(function["arguments"]), 7):
            part = function["arguments"][at : at + 7]
            yield orjson.dumps({"tool_calls": [{"index": index, "function": {"arguments": part}}]})


def _plain(payload: bytes) -> bytes:
    return b"data: " + payload + b"\n\n"


def _dresser(script: Script) -> Callable[[bytes], bytes]:
    """How a payload becomes an event."""
    if not (script.crlf or script.cr or script.comments or script.events or script.nospace or script.multiline):
        return _plain
    newline = b"\r\n" if script.crlf else b"\r" if script.cr else b"\n"
    before = b": keep-alive" + newline * 2 if script.comments else b""
    before += b"event: message" + newline + b"id: 1" + newline + b"retry: 1000" + newline if script.events else b""
    name = b"data:" if script.nospace else b"data: "

    def dress(payload: bytes) -> bytes:
        lines = payload.replace(b",", b",\n", 1).split(b"\n") if script.multiline else [payload]
        return before + b"".join(name + line + newline for line in lines) + newline

    return dress


def _base(request: Request) -> dict[str, Any]:
    return {
        "id": f"chatcmpl-{request.number}",
        "object": "chat.completion.chunk",
        "created": int(request.started),
        "model": request.model,
    }


def _payload(request: Request, delta: bytes, finish: str | None = None) -> bytes:
    """A chunk around `delta`, which is already JSON."""
    reason = orjson.dumps(finish)
    return (
        orjson.dumps(_base(request))[:-1]
        + b',"choices":[{"index":0,"delta":'
        + delta
        + b',"finish_reason":'
        + reason
        + b"}]}"
    )


def completion(request: Request, text: str) -> dict[str, Any]:
    reply = request.reply
    message: dict[str, Any] = {"role": "assistant", "content": text}
    if reply.reasoning:
        message[request.script.reasoning_field] = "".join(reply.reasoning)
    if reply.tool_calls:
        message["tool_calls"] = reply.tool_calls
    choice = {"index": 0, "message": message, "finish_reason": reply.finish_reason}
    request.told = tokens(reply)
    return {**_base(request), "object": "chat.completion", "choices": [choice], "usage": _usage(reply)}


def tokens(reply: Reply) -> dict[str, int]:
    """What the log has of the usage that an answer tells."""
    return {"input": reply.input_tokens, "output": reply.output_tokens}


def _usage(reply: Reply) -> dict[str, Any]:
    return {
        "prompt_tokens": reply.input_tokens,
        "completion_tokens": reply.output_tokens,
        "total_tokens": reply.input_tokens + reply.output_tokens,
        "prompt_tokens_details": {"cached_tokens": reply.input_tokens // 2},
        "completion_tokens_details": {"reasoning_tokens": len(reply.reasoning)},
    }


def error_body(message: str, code: str = "") -> dict[str, Any]:
    return {"error": {"message": message, "type": "scripted", "param": None, "code": code or None}}


def piece_of_trouble(request: Request) -> int:
    """The piece of text at which the script's trouble happens."""
    at = request.script.at
    return at if at >= 0 else len(request.reply.tokens) // 2
