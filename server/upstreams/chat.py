"""Reading chat-completions answers: payloads of an event stream, or one whole JSON object, to `Batch`es. Pure.

Providers differ in small ways, and all of the differences that are known live in this file: the name of the reasoning
field, content as a list of parts, usage in every chunk, an error object in place of a chunk, unknown finish reasons.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Final

import orjson

from server.upstreams.base import Batch, Fault, Piece, TokenUsage, UpstreamFailure
from server.upstreams.provider_errors import failure_inside

DONE: Final = b"[DONE]"
MOST_TOKENS: Final = 10**12
"""What a provider says beyond it is nonsense that no record could hold."""

_FINISH_REASONS: Final = {
    "stop": "stop",
    "length": "length",
    "tool_calls": "tool_calls",
    "content_filter": "content_filter",
    "function_call": "tool_calls",
    "max_tokens": "length",
    "model_length": "length",
    "tool_use": "tool_calls",
    "refusal": "content_filter",
    "SAFETY": "content_filter",
}
"""Providers' finish reasons by their meaning; one that is not here is a `stop`."""


class ChatReader:
    """Reads one answer. It gives finish reason and usage once, in its `ending`."""

    __slots__ = (
        "_asked_model",
        "_called_tools",
        "_model",
        "_model_told",
        "done",
        "failure",
        "finish_reason",
        "started",
        "usage",
    )

    def __init__(self, asked_model: str) -> None:
        self._asked_model = asked_model
        self._model: str | None = None
        self._model_told = False
        self._called_tools = False
        self.started = False
        """Whether any content has come."""
        self.finish_reason: str | None = None
        self.usage: TokenUsage | None = None
        self.done = False
        """Whether the answer told its own end: `[DONE]`, or a whole JSON answer."""
        self.failure: UpstreamFailure | None = None
        """What went wrong right after the last batch."""

    def read(self, payloads: list[bytes]) -> Batch:
        """What these payloads bring, neighbours of one kind merged.

        A failure is raised if nothing came before it, else kept in `failure` for the caller to raise after the batch.
        """
        batch = Batch()
        try:
            self._read(payloads, batch)
        except UpstreamFailure as failure:
            if not batch.pieces:
                raise
            self.failure = failure
        return batch

    def _read(self, payloads: list[bytes], batch: Batch) -> None:
        texts: list[str] = []
        chunk: Any = None
        for payload in payloads:
            try:
                chunk = orjson.loads(payload)
                choice = chunk["choices"][0]
                delta = choice["delta"]
                text = delta["content"]
                plain = len(delta) == 1 and not choice.get("finish_reason") and not chunk.get("usage")
            except orjson.JSONDecodeError:
                if payload == DONE:
                    self.done = True
                    break
                self._flush(texts, batch, chunk)
                raise UpstreamFailure(Fault.GARBLED, "a chunk of the stream is not JSON") from None
            except (LookupError, TypeError, AttributeError):
                plain = False
            if plain and text.__class__ is str:
                if text:
                    texts.append(text)
                    batch.chunks += 1
            else:
                self._flush(texts, batch, chunk)
                self._read_any(chunk, batch)
        self._flush(texts, batch, chunk)

    def read_whole(self, body: bytes) -> Batch:
        """A whole JSON answer, as some servers give to a request for a stream. Raises `UpstreamFailure`."""
        try:
            answer = orjson.loads(body)
        except orjson.JSONDecodeError:
            raise UpstreamFailure(Fault.GARBLED, "the answer is not JSON") from None
        if not isinstance(answer, dict) or not ("choices" in answer or "error" in answer):
            raise UpstreamFailure(Fault.GARBLED, "the answer is JSON, but not a completion")
        batch = Batch()
        self._read_any(answer, batch)
        self._flush([], batch, answer)
        self.done = True
        return batch

    def ending(self, batch: Batch) -> Batch:
        """Put the end into the last batch. Raises `UpstreamFailure` if the answer is empty or not at its end."""
        if self.finish_reason is None:
            if not self.done:
                raise UpstreamFailure(Fault.BROKEN_STREAM, "the stream ended before its end was told")
            self.finish_reason = "tool_calls" if self._called_tools else "stop"
        if not self.started:
            if self.finish_reason == "content_filter":
                raise UpstreamFailure(Fault.CONTENT_FILTER, "the provider filtered the whole answer")
            if self.finish_reason != "length":
                raise UpstreamFailure(Fault.EMPTY, "the answer has no content")
        batch.finish_reason = self.finish_reason
        batch.usage = self.usage
        return batch

    def _flush(self, texts: list[str], batch: Batch, chunk: Any) -> None:
        """Put the texts gathered so far into the batch; with the first content goes the model's name."""
        _add_text(batch.pieces, "text", texts)
        if not batch.pieces:
            return
        self.started = True
        if not self._model_told:
            self._model_told = True
            model = self._model or (chunk.get("model") if isinstance(chunk, dict) else None)
            if isinstance(model, str) and model and model != self._asked_model:
                batch.model = model

    def _read_any(self, chunk: Any, batch: Batch) -> None:
        """Any chunk: of reasoning, tool calls, usage, the end, or an error."""
        if not isinstance(chunk, dict):
            raise UpstreamFailure(Fault.GARBLED, "a chunk of the stream is not an object")
        if chunk.get("error"):
            raise failure_inside(chunk["error"])
        if self._model is None and isinstance(chunk.get("model"), str):
            self._model = chunk["model"]
        self._read_usage(chunk)
        choices = chunk.get("choices")
        choice = choices[0] if isinstance(choices, list) and choices else None
        if not isinstance(choice, dict):
            return
        delta = choice.get("delta") or choice.get("message")
        if isinstance(delta, dict) and self._read_delta(delta, batch.pieces):
            batch.chunks += 1
        reason = choice.get("finish_reason")
        if reason == "error":
            raise UpstreamFailure(Fault.SERVER_ERROR, "the provider ended the answer with an error", status=200)
        if isinstance(reason, str) and reason:
            self.finish_reason = _FINISH_REASONS.get(reason, "stop")

    def _read_delta(self, delta: dict[str, Any], pieces: list[Piece]) -> bool:
        """Append what a delta (or a whole message) holds; whether it held anything."""
        before = len(pieces)
        reasoning = delta.get("reasoning_content") or delta.get("reasoning")
        found = False
        if isinstance(reasoning, str) and reasoning:
            _add_text(pieces, "reasoning", [reasoning])
            found = True
        content = delta.get("content") or delta.get("refusal")
        if isinstance(content, str) and content:
            _add_text(pieces, "text", [content])
            found = True
        elif isinstance(content, list):
            found = _add_parts(pieces, content) or found
        calls = delta.get("tool_calls")
        if isinstance(calls, list) and calls:
            _add_calls(pieces, calls)
            self._called_tools = found = True
        return found or len(pieces) > before

    def _read_usage(self, chunk: dict[str, Any]) -> None:
        usage = chunk.get("usage")
        if usage is None and isinstance(groq := chunk.get("x_groq"), dict):
            usage = groq.get("usage")
        if isinstance(usage, dict):
            self.usage = usage_of(usage)


def extend(pieces: list[Piece], more: Iterable[Piece]) -> None:
    """Append pieces, each merged with the one before it if both are of one kind."""
    for kind, value in more:
        if isinstance(value, list):
            _add_calls(pieces, value)
        else:
            _add_text(pieces, kind, [value])


def usage_of(usage: dict[str, Any]) -> TokenUsage:
    """The token counts of a chat-completions `usage` object; what it does not tell is 0."""
    cached = _count(usage.get("prompt_tokens_details"), "cached_tokens") or _count(usage, "prompt_cache_hit_tokens")
    return TokenUsage(
        input=_count(usage, "prompt_tokens"),
        output=_count(usage, "completion_tokens"),
        cached=cached,
        reasoning=_count(usage.get("completion_tokens_details"), "reasoning_tokens"),
    )


def _count(found: Any, name: str) -> int:
    value = found.get(name) if isinstance(found, dict) else None
    return min(value, MOST_TOKENS) if isinstance(value, int) and value > 0 else 0


def _add_text(pieces: list[Piece], kind: str, texts: list[str]) -> None:
    """Append texts of one kind, merged with the last piece if it is of the same; empties `texts`."""
    if not texts:
        return
    text = texts[0] if len(texts) == 1 else "".join(texts)
    texts.clear()
    if pieces and pieces[-1][0] == kind:
        text = f"{pieces.pop()[1]}{text}"
    pieces.append(("text", text) if kind == "text" else ("reasoning", text))


def _add_parts(pieces: list[Piece], parts: list[Any]) -> bool:
    """Content as a list of parts (Mistral): `text`, and `thinking` with parts of its own."""
    found = False
    for part in parts:
        if not isinstance(part, dict):
            continue
        if part.get("type") == "thinking":
            inner = part.get("thinking")
            texts = [str(entry.get("text", "")) for entry in inner or () if isinstance(entry, dict)]
            _add_text(pieces, "reasoning", [text for text in texts if text])
            found = found or any(texts)
        elif isinstance(text := part.get("text"), str) and text:
            _add_text(pieces, "text", [text])
            found = True
    return found


def _add_calls(pieces: list[Piece], calls: list[Any]) -> None:
    """Append tool-call deltas; a piece of arguments joins the one before it if both are of one call."""
    if not all(isinstance(call, dict) for call in calls):
        raise UpstreamFailure(Fault.GARBLED, "a tool call of the stream is not an object")
    if not pieces or pieces[-1][0] != "tool_calls":
        pieces.append(("tool_calls", []))
    merged = pieces[-1][1]
    assert isinstance(merged, list)
    for place, call in enumerate(calls):
        call.setdefault("index", place)
        if merged and _continues(merged[-1], call):
            function = merged[-1]["function"]
            function["arguments"] = (function.get("arguments") or "") + (call["function"].get("arguments") or "")
        else:
            merged.append(call)


def _continues(last: dict[str, Any], call: dict[str, Any]) -> bool:
    function = call.get("function")
    return (
        call["index"] == last["index"]
        and not call.get("id")
        and isinstance(function, dict)
        and not function.get("name")
        and isinstance(last.get("function"), dict)
    )
