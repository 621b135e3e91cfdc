"""A message in the chat-completions format: as a stream of chunks, or whole. Pure.

The format is append-only. So text that was sent and is then withdrawn (an `attempt` that restarts, a `snapshot` that
has other text) ends the response with an error chunk and without `[DONE]`: never mixed text. The message itself goes
on, and a repeat with the same key starts at that restart. An attempt that continues the text just goes on, and of a
snapshot that begins with what was sent only the rest is sent.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import orjson

from protocol.errors import ProtocolError
from server.http.errors import error_object
from server.messages.follow import Frame

DONE: Final = b"data: [DONE]\n\n"
CANCELLED: Final = "cancelled"
"""`finish_reason` of an answer that was stopped."""
_CONTENT: Final = {"text": "content", "reasoning": "reasoning_content", "tool_calls": "tool_calls"}


@dataclass(frozen=True, slots=True)
class Head:
    """What every chunk repeats, the same on every repeat."""

    id: str
    created: int
    model: str


def usage_of(usage: Mapping[str, int]) -> dict[str, Any]:
    """Tokens as OpenAI names them."""
    return {
        "prompt_tokens": usage["input_tokens"],
        "completion_tokens": usage["output_tokens"],
        "total_tokens": usage["total_tokens"],
        "prompt_tokens_details": {"cached_tokens": usage["cached_tokens"]},
        "completion_tokens_details": {"reasoning_tokens": usage["reasoning_tokens"]},
    }


def served_by(end: Frame) -> dict[str, Any] | None:
    """Which target and model served it, after how many attempts; None for an end that does not tell."""
    if "target" not in end:
        return None
    return {name: end[name] for name in ("target", "model", "attempts", "cost_usd", "prompt") if name in end}


def whole_calls(calls: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Merged tool calls as a whole message has them: without `index`, with a type."""
    return [{"type": "function", **{k: v for k, v in call.items() if k != "index"}} for call in calls]


def whole(head: Head, text: str, reasoning: str, calls: Sequence[Mapping[str, Any]], end: Frame) -> dict[str, Any]:
    """The answer in one piece. `end` is the fields of the `done` or `cancelled` frame."""
    message: dict[str, Any] = {"role": "assistant", "content": text or (None if calls else ""), "refusal": None}
    if reasoning:
        message["reasoning_content"] = reasoning
    if calls:
        message["tool_calls"] = whole_calls(calls)
    finish = end.get("finish_reason", CANCELLED)
    answer: dict[str, Any] = {
        "id": head.id,
        "object": "chat.completion",
        "created": head.created,
        "model": head.model,
        "choices": [{"index": 0, "message": message, "logprobs": None, "finish_reason": finish}],
        "usage": usage_of(end["usage"]),
    }
    served = served_by(end)
    return answer if served is None else {**answer, "tidewire": served}


class Said:
    """How much was said, and its hash: enough to know it again, at no cost that grows."""

    def __init__(self) -> None:
        self.size = 0
        self.sha = hashlib.sha256()

    def add(self, data: bytes) -> None:
        """More was said."""
        self.size += len(data)
        self.sha.update(data)


class Prefix:
    """Checks whether bytes that come in parts begin with what was said."""

    def __init__(self, said: Said) -> None:
        self.left = said.size
        """Bytes of it that have not come yet."""
        self._want = said.sha.digest()
        self._sha = hashlib.sha256()

    def rest(self, data: bytes) -> bytes | None:
        """What of the next part is beyond what was said; None if they differ."""
        if not self.left:
            return data
        known, rest = data[: self.left], data[self.left :]
        self._sha.update(known)
        self.left -= len(known)
        if not self.left and self._sha.digest() != self._want:
            return None
        return rest


class Chunks:
    """Turns a message's frames into the events of one response; an `Encoder`, so `Outbound` can use it."""

    def __init__(self, head: Head, include_usage: bool) -> None:
        self.subprotocol = f"chat-completions of {id(self):x}"
        """What it says depends on what it said: nobody shares it."""
        self.over = False
        """Nothing follows."""
        self.refusal: dict[str, Any] | None = None
        """The error it ended with before anything was shown: it can still become the response's status."""
        self._head = head
        self._include_usage = include_usage
        self._begun = False
        self._shown = False
        self._called = False
        """Whether tool calls were shown."""
        self._said = {"text": Said(), "reasoning": Said()}
        self._known: dict[str, Prefix] = {}
        """Of the snapshot being taken in: what of it was said before."""

    def join(self, encoded: Sequence[bytes]) -> bytes:
        """See `Encoder.join`."""
        return b"".join(encoded)

    def encode(self, frame: Frame) -> bytes:
        """The events that a frame becomes; none after the end."""
        if self.over:
            return b""
        match frame["type"]:
            case "delta":
                return self._content(frame)
            case "attempt":
                return self._attempt(frame)
            case "snapshot":
                return self._snapshot(frame)
            case "done" | "cancelled":
                return self._end(frame)
            case "failed" | "error":
                return self._broken(frame["error"])
            case "notice":
                return b": %s\n\n" % frame["frame"]["type"].encode()
            case _:
                return b""

    def _chunk(self, choices: list[dict[str, Any]], **more: Any) -> bytes:
        head = self._head
        chunk: dict[str, Any] = {
            "id": head.id,
            "object": "chat.completion.chunk",
            "created": head.created,
            "model": head.model,
            "choices": choices,
            **more,
        }
        if self._include_usage:
            chunk.setdefault("usage", None)
        return b"data: " + orjson.dumps(chunk) + b"\n\n"

    def _delta(self, delta: dict[str, Any]) -> bytes:
        return self._chunk([{"index": 0, "delta": delta, "logprobs": None, "finish_reason": None}])

    def _begin(self) -> bytes:
        if self._begun:
            return b""
        self._begun = True
        return self._delta({"role": "assistant", "content": ""})

    def _content(self, frame: Frame) -> bytes:
        parts = [self._begin()]
        for name, field in _CONTENT.items():
            if frame.get(name):
                self._shown = True
                if name in self._said:
                    self._said[name].add(frame[name].encode())
                else:
                    self._called = True
                parts.append(self._delta({field: frame[name]}))
        return b"".join(parts)

    def _attempt(self, frame: Frame) -> bytes:
        if self._shown and frame["mode"] != "continue":
            return self._restarted(frame.get("reason"))
        return self._begin()

    def _snapshot(self, frame: Frame) -> bytes:
        """Everything that stands: what was sent must be its beginning, the rest is news."""
        if frame["part"] == 1:
            if self._called:
                return self._restarted(None)
            self._known = {name: Prefix(said) for name, said in self._said.items()}
        news = {"tool_calls": frame.get("tool_calls")}
        for name, known in self._known.items():
            rest = known.rest((frame.get(name) or "").encode())
            if rest is None or (frame["last"] and known.left):
                return self._restarted(None)
            news[name] = rest.decode()
        return self._content(news)

    def _restarted(self, reason: Mapping[str, Any] | None) -> bytes:
        error = ProtocolError(
            "answer_restarted",
            "the answer began anew; ask again with the same Idempotency-Key to get it from there",
            details={"message_id": self._head.id, **({"reason": dict(reason)} if reason else {})},
        )
        return self._broken(error.as_dict())

    def _broken(self, error: Mapping[str, Any]) -> bytes:
        self.over = True
        if not self._shown:
            self.refusal = dict(error)
        return b"data: " + orjson.dumps({"error": error_object(error)}) + b"\n\n"

    def _end(self, frame: Frame) -> bytes:
        self.over = True
        finish = frame.get("finish_reason", CANCELLED)
        served = served_by(frame)
        events = [
            self._begin(),
            self._chunk(
                [{"index": 0, "delta": {}, "logprobs": None, "finish_reason": finish}],
                **({"tidewire": served} if served else {}),
            ),
        ]
        if self._include_usage:
            events.append(self._chunk([], usage=usage_of(frame["usage"])))
        return b"".join(events) + DONE
