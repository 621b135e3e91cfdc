"""A scripted upstream that speaks Anthropic's Messages API: thinking, text and tool use as streamed events.

It obeys the same scripts as `scripted.py`; the text is `expected_text` of the messages as they arrive here, so a test
gives a `seed`. `reasoning=` becomes thinking, errors have Anthropic's form, 529 is its `overloaded_error`.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import orjson

from tests.upstreams.chat_steps import Act, Request, Step, piece_of_trouble, tokens
from tests.upstreams.scripted import ScriptedUpstream

_ERRORS = {
    400: "invalid_request_error",
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    413: "request_too_large",
    429: "rate_limit_error",
    500: "api_error",
    529: "overloaded_error",
}
_STOPS = {"stop": "end_turn", "length": "max_tokens", "tool_calls": "tool_use", "content_filter": "refusal"}


class AnthropicUpstream(ScriptedUpstream):
    """The Messages API in place of chat completions."""

    path = "/v1/messages"

    def steps(self, request: Request) -> Iterator[Step]:
        """`message_start`, one block after the other, `message_delta`, `message_stop`."""
        script, reply = request.script, request.reply
        yield 0, _event("message_start", message=_message(request)), 0
        yield 0, _event("ping"), 0
        due = 0
        if not script.empty:
            for due, event, count in _blocks(request):
                yield due, event, count
                if isinstance(event, Act):
                    return
        delta = {"stop_reason": _STOPS[reply.finish_reason], "stop_sequence": None}
        if not script.no_finish:
            usage = {} if script.no_usage else {"usage": {"output_tokens": reply.output_tokens}}
            yield due, _event("message_delta", delta=delta, **usage), 0
            request.told = tokens(reply) if usage else None
            yield due, _event("message_stop") * (2 if script.doubled_done else 1), 0
        yield due, Act.END, 0

    def completion(self, request: Request, text: str) -> dict[str, Any]:
        """A whole message."""
        usage = {"input_tokens": request.reply.input_tokens, "output_tokens": request.reply.output_tokens}
        stop = _STOPS[request.reply.finish_reason]
        request.told = tokens(request.reply)
        return {**_message(request), "content": [{"type": "text", "text": text}], "stop_reason": stop, "usage": usage}

    def error(self, message: str, status: int, code: str = "") -> dict[str, Any]:
        """An error in Anthropic's form."""
        return {"type": "error", "error": {"type": code or _ERRORS.get(status, "api_error"), "message": message}}


def _blocks(request: Request) -> Iterator[Step]:
    reply = request.reply
    due = index = 0
    if reply.reasoning:
        yield due, _start(index, {"type": "thinking", "thinking": "", "signature": ""}), 0
        for token in reply.reasoning:
            yield due, _delta(index, {"type": "thinking_delta", "thinking": token}), 0
            due += 1
        yield due, _delta(index, {"type": "signature_delta", "signature": "c2lnbmVk"}), 0
        yield due, _event("content_block_stop", index=index), 0
        index += 1
    yield due, _start(index, {"type": "text", "text": ""}), 0
    for place, token in enumerate(reply.tokens):
        if place == piece_of_trouble(request) and (trouble := _trouble(request)) is not None:
            yield from ((due, what, 0) for what in trouble)
        yield due, _delta(index, {"type": "text_delta", "text": token}), 1
        due += 1
    yield due, _event("content_block_stop", index=index), 0
    for call in reply.tool_calls:
        index += 1
        function = call["function"]
        yield due, _start(index, {"type": "tool_use", "id": call["id"], "name": function["name"], "input": {}}), 0
        for at in range(0, len(function["arguments"]), 7):
            part = function["arguments"][at : at + 7]
            yield due, _delta(index, {"type": "input_json_delta", "partial_json": part}), 0
            due += 1
        yield due, _event("content_block_stop", index=index), 0


def _trouble(request: Request) -> list[bytes | Act] | None:
    script = request.script
    if script.error_in_200:
        error = {"type": script.code or "overloaded_error", "message": "Overloaded"}
        return [_event("error", error=error), Act.END]
    if script.big:
        return [_delta(0, {"type": "text_delta", "text": "x" * script.big})]
    if script.malformed:
        return [b"event: content_block_delta\ndata: {oh\n\n"]
    if script.cut in ("mid-chunk", "utf8"):
        whole = _delta(0, {"type": "text_delta", "text": " — 🌊"})
        within = len(whole) // 2 if script.cut == "mid-chunk" else whole.index("🌊".encode()) + 2
        return [whole[:within], Act.CLOSE]
    if script.cut or script.reset:
        return [Act.RESET if script.reset else Act.END if script.cut == "clean" else Act.CLOSE]
    return [Act.HANG] if script.hang == "mid" else None


def _message(request: Request) -> dict[str, Any]:
    return {
        "id": f"msg_{request.number}",
        "type": "message",
        "role": "assistant",
        "model": request.model,
        "content": [],
        "stop_reason": None,
        "stop_sequence": None,
        "usage": {"input_tokens": request.reply.input_tokens, "output_tokens": 1},
    }


def _event(kind: str, **fields: Any) -> bytes:
    return b"event: " + kind.encode() + b"\ndata: " + orjson.dumps({"type": kind, **fields}) + b"\n\n"


def _start(index: int, block: dict[str, Any]) -> bytes:
    return _event("content_block_start", index=index, content_block=block)


def _delta(index: int, delta: dict[str, Any]) -> bytes:
    return _event("content_block_delta", index=index, delta=delta)
