"""A run of a message, once it has ended, as spans: the run, and below it a call to each target. Pure.

Names and attributes are those of OpenTelemetry's conventions for generative AI (https://opentelemetry.io/docs/specs/
semconv/gen-ai/gen-ai-spans/), `tidewire.…` where they have none. Never a text, never who the user is. Ids are made of
what every node knows of a message: what a survivor tells joins what the upstream was told by the node that died.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from server.ledger.record import FEATURE, Account
from server.telemetry.spans import Span, TraceContext

FINE = frozenset({"done", "cancelled", "hedged"})
"""Outcomes of attempts that are no errors."""


@dataclass(frozen=True, slots=True)
class RunTrace:
    """Where one run of a message stands in its trace."""

    tag: str
    generation: bytes
    run: int
    parent: TraceContext | None
    """The span of whoever asked, if they told."""

    @property
    def context(self) -> TraceContext:
        """The span of the run."""
        made = int.from_bytes(_digest(self.tag, self.generation)[:16]) or 1
        trace_id = made if self.parent is None else self.parent.trace_id
        return TraceContext(trace_id, self._span_id("run", self.run), self.parent is None or self.parent.sampled)

    def attempt(self, number: int) -> TraceContext:
        """The span of one attempt: what the upstream is told."""
        context = self.context
        return TraceContext(context.trace_id, self._span_id("attempt", number), context.sampled)

    def _span_id(self, kind: str, number: int) -> int:
        return int.from_bytes(_digest(self.tag, self.generation, kind, number)[:8]) or 1


def _digest(*parts: object) -> bytes:
    return hashlib.sha256(repr(parts).encode()).digest()


def run_span(
    trace: RunTrace, account: Account, state: str, records: Sequence[Mapping[str, Any]], began: float, ended: float
) -> Span:
    """The span of a run; it began with its first attempt, if that was before `began` and on another node."""
    mine = [record for record in records if record["run"] == trace.run]
    attributes: dict[str, Any] = {
        "gen_ai.operation.name": "chat",
        "gen_ai.request.model": account.route,
        "gen_ai.usage.output_tokens": sum(r["output_tokens"] for r in mine if r["payer"] == "user"),
        "tidewire.message.id": account.message_id,
        "tidewire.state": state,
        "tidewire.run": trace.run,
        "tidewire.attempts": len(mine),
        "tidewire.tenant": account.tenant,
        "tidewire.tier": account.tier,
        "tidewire.door": account.door,
    }
    given = {
        "gen_ai.conversation.id": account.conversation,
        "gen_ai.prompt.name": account.prompt,
        "tidewire.origin.id": account.origin,
        "tidewire.feature": account.tags.get(FEATURE),
    }
    attributes.update({name: value for name, value in given.items() if value})
    error = None
    if state == "failed":
        error = attributes["error.type"] = mine[-1]["outcome"] if mine else "refused"
    started = min([began, *(record["started_at"] for record in mine)])
    return Span(f"chat {account.route}", trace.context, trace.parent, started, ended, attributes, error)


def attempt_spans(trace: RunTrace, records: Sequence[Mapping[str, Any]], ended: float) -> list[Span]:
    """The spans of a run's attempts. One whose node was lost ends where the next began."""
    mine = [record for record in records if record["run"] == trace.run]
    ends = [*(record["started_at"] for record in mine[1:]), ended]
    return [_attempt_span(trace, record, end) for record, end in zip(mine, ends, strict=True)]


def _attempt_span(trace: RunTrace, record: Mapping[str, Any], latest: float) -> Span:
    outcome = record["outcome"]
    attributes: dict[str, Any] = {
        "gen_ai.operation.name": "chat",
        "gen_ai.request.model": record["model"],
        "gen_ai.request.stream": True,
        "gen_ai.usage.input_tokens": record["input_tokens"],
        "gen_ai.usage.output_tokens": record["output_tokens"],
        "tidewire.attempt": record["attempt"],
        "tidewire.target": record["target"],
        "tidewire.payer": record["payer"],
        "tidewire.usage.source": record["source"],
    }
    if record["provider"]:
        attributes["gen_ai.provider.name"] = record["provider"]
    if record["first_token_ms"] is not None:
        attributes["gen_ai.response.time_to_first_chunk"] = record["first_token_ms"] / 1000
    if record["cached_tokens"]:
        attributes["gen_ai.usage.cache_read.input_tokens"] = record["cached_tokens"]
    if record["reasoning_tokens"]:
        attributes["gen_ai.usage.reasoning.output_tokens"] = record["reasoning_tokens"]
    error = None
    if outcome not in FINE:
        error = attributes["error.type"] = outcome
    ended = latest if record["ended_at"] is None else record["ended_at"]
    name = f"chat {record['model']}"
    return Span(name, trace.attempt(record["attempt"]), trace.context, record["started_at"], ended, attributes, error)
