"""The simulated model: text that is a function of the request and the call, and the log of the truth about calls."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncGenerator, Callable
from dataclasses import dataclass, field
from typing import Any, Final

from server.upstreams.base import Batch, Call, Capabilities, Fault, TokenUsage, UpstreamFailure

WORDS: Final = ("tide", "wätér", "moor", "ebb 🌊", "chain", "slack", "\n", "fathom", "lee", "日本")
HANGS: Final = 0.6
"""Share of the calls that a target which hangs leaves waiting for as long as it can; the others fail soon."""
SOON_SECONDS: Final = 0.05


@dataclass(frozen=True, slots=True)
class Speech:
    """How one message is answered."""

    pieces: int
    gap_seconds: float
    burst: int
    """Pieces per batch."""
    fails_at: tuple[int, ...] = ()
    """For the first calls, the piece at which each breaks off; -1: never."""
    silent: float = 0.0
    """Seconds of silence halfway."""


@dataclass(slots=True)
class Called:
    """One call, as the upstream's own log has it. Nobody but the upstream writes here."""

    number: int
    message_id: str
    target: str
    node: str
    at: float
    text: str
    """All that it would say."""
    prefilled: str = ""
    said: list[str] = field(default_factory=list)
    ended: str = "open"
    """Or `done`, `broken`, `closed` (by us)."""


class Upstream:
    """Every target of the simulated world, with one log."""

    def __init__(self, chance: random.Random) -> None:
        self.chance = chance
        self.speeches: dict[str, Speech] = {}
        self.log: list[Called] = []
        self.by_message: dict[str, list[Called]] = {}
        self.on_call: Callable[[Called], None] = lambda called: None
        self.on_end: Callable[[Called, Fault | None], None] = lambda called, fault: None
        self.outages: dict[str, tuple[Fault, float]] = {}
        """Target → how its calls fail now, and after how many seconds at most."""

    def text(self, message_id: str, number: int, pieces: int) -> list[str]:
        """What call `number` for this message says: no two calls say the same."""
        base = sum(message_id.encode()) + 7 * number
        return [f"<{message_id}/{number}>", *(f" {WORDS[(base + i * (number + 3)) % 10]}{i}" for i in range(1, pieces))]

    def call(self, message_id: str, target: str, node: str, now: float, call: Call) -> tuple[Called, Speech, list[str]]:
        """Log a call."""
        speech = self.speeches[message_id]
        mine = self.by_message.setdefault(message_id, [])
        pieces = self.text(message_id, len(mine) + 1, speech.pieces)
        called = Called(len(mine) + 1, message_id, target, node, now, "".join(pieces))
        if call.messages and call.messages[-1].get("role") == "assistant":
            called.prefilled = str(call.messages[-1]["content"])
        mine.append(called)
        self.log.append(called)
        self.on_call(called)
        return called, speech, pieces


class SimDriver:
    """One target as one node calls it (`server.upstreams.base.Driver`)."""

    capabilities = Capabilities(tools=False, reasoning=False, usage_in_stream=True, prefill=True, images=False)

    def __init__(self, upstream: Upstream, target: str, node: str) -> None:
        self.upstream = upstream
        self.target = target
        self.node = node

    async def stream(self, call: Call) -> AsyncGenerator[Batch, None]:
        """See `Driver`."""
        loop = asyncio.get_running_loop()
        called, speech, pieces = self.upstream.call(call.message_id, self.target, self.node, loop.time(), call)
        breaks = speech.fails_at[called.number - 1] if called.number <= len(speech.fails_at) else -1
        chance = self.upstream.chance
        try:
            if (outage := self.upstream.outages.get(self.target)) is not None:
                fault, after = outage
                await asyncio.sleep(after if chance.random() < HANGS else min(after, SOON_SECONDS))
                raise self._fails(called, fault)
            at = 0
            while at < len(pieces):
                gap = speech.gap_seconds
                await asyncio.sleep(gap * (0.5 + chance.random()) if gap else 0)
                if speech.silent and at <= len(pieces) // 2 < at + speech.burst:
                    await asyncio.sleep(speech.silent)
                if 0 <= breaks < at + speech.burst:
                    raise self._fails(called, Fault.BROKEN_STREAM)
                part = pieces[at : at + speech.burst]
                at += len(part)
                text = "".join(part)
                called.said.append(text)
                yield Batch([("text", text)], chunks=len(part))
            called.ended = "done"
            self.upstream.on_end(called, None)
            yield Batch(finish_reason="stop", usage=TokenUsage(10, len(pieces)))
        finally:
            if called.ended == "open":
                called.ended = "closed"

    def _fails(self, called: Called, fault: Fault) -> UpstreamFailure:
        called.ended = "broken"
        self.upstream.on_end(called, fault)
        return UpstreamFailure(fault, "the script says so")

    async def check(self) -> str | None:
        """See `Driver`."""
        return None

    async def close(self) -> None:
        """See `Driver`."""


def request(message_id: str, **more: Any) -> dict[str, Any]:
    """What a client asks for under this id."""
    return {"model": "default", "messages": [{"role": "user", "content": f"tell me about {message_id}"}], **more}
