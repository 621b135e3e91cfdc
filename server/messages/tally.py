"""Counting what each attempt of a message used, and what of it the user pays. Pure.

The user pays the attempts whose text stands, and their input once; withdrawn text, hedges and crashed attempts are
the operator's (`payer`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from server.quotas.base import Used
from server.upstreams.base import Batch, TokenUsage

Source = Literal["provider", "counted", "none"]


@dataclass(slots=True)
class AttemptTally:
    """One attempt: what it brought, how it ended. Times are Unix seconds."""

    number: int
    target: str
    model: str
    started_at: float
    input_estimate: int
    first_content_at: float | None = None
    asked_at: float = 0.0
    """Since when the next batch is waited for."""
    longest_gap: float = 0.0
    """The longest wait for a batch after the first content, in seconds."""
    ended_at: float | None = None
    chunks: int = 0
    provider: TokenUsage | None = None
    outcome: str = "running"
    """`done`, `cancelled`, `hedged` (another was faster), or the code of its failure."""
    stands: bool = False
    """Whether its text is part of the final answer."""
    continues: bool = False
    """Whether it went on with the text of the attempt before it."""

    def take(self, batch: Batch, now: float) -> None:
        """Count one batch."""
        self.chunks += batch.chunks
        if self.first_content_at is not None:
            if now - self.asked_at > self.longest_gap:
                self.longest_gap = now - self.asked_at
        elif batch.pieces:
            self.first_content_at = now
        self.asked_at = now
        if batch.usage is not None:
            self.provider = batch.usage
        if batch.model is not None:
            self.model = batch.model

    @property
    def source(self) -> Source:
        """Where the numbers come from."""
        return "provider" if self.provider is not None else "counted" if self.chunks else "none"

    @property
    def usage(self) -> TokenUsage:
        """The provider's numbers; else what was counted, input only if there was output."""
        if self.provider is not None:
            return self.provider
        return TokenUsage(self.input_estimate if self.chunks else 0, self.chunks)

    def record(self, nano_dollars: int | None) -> dict[str, Any]:
        """The usage record of this attempt, keyed (message, attempt) in the ledger."""
        usage = self.usage
        first = self.first_content_at
        return {
            "attempt": self.number,
            "target": self.target,
            "model": self.model,
            "outcome": self.outcome,
            "payer": "user" if self.stands else "operator",
            "source": self.source,
            "input_tokens": usage.input,
            "output_tokens": usage.output,
            "cached_tokens": usage.cached,
            "reasoning_tokens": usage.reasoning,
            "cost_nano_usd": nano_dollars,
            "started_at": self.started_at,
            "ended_at": self.ended_at,
            "first_token_ms": None if first is None else round((first - self.started_at) * 1000),
        }


def lost_record(number: int, description: dict[str, Any], text_bytes: int, run: int = 1) -> dict[str, Any]:
    """The record of an attempt whose node was lost: nobody counted, so its output is estimated from the journal."""
    return {
        "attempt": number,
        "run": run,
        "target": description["target"],
        "model": description["model"],
        "outcome": "owner_lost",
        "payer": "operator",
        "source": "estimated",
        "input_tokens": 0,
        "output_tokens": -(-text_bytes // 4),
        "cached_tokens": 0,
        "reasoning_tokens": 0,
        "cost_nano_usd": None,
        "started_at": description["started_at"],
        "ended_at": None,
        "first_token_ms": None,
    }


def user_usage(tallies: list[AttemptTally]) -> dict[str, int]:
    """The `usage` of the end frame: what stands, its input once."""
    standing = [tally for tally in tallies if tally.stands]
    usages = [tally.usage for tally in standing]
    first = usages[0] if usages else TokenUsage(0, 0)
    output = sum(usage.output for usage in usages)
    return {
        "input_tokens": first.input,
        "output_tokens": output,
        "total_tokens": first.input + output,
        "cached_tokens": first.cached,
        "reasoning_tokens": sum(usage.reasoning for usage in usages),
    }


def withdrawn(record: Mapping[str, Any], run: int) -> dict[str, Any]:
    """The record of an attempt of an earlier owner or run whose text `run` replaced: the operator pays it now."""
    if record["payer"] == "operator":
        return dict(record)
    return {**record, "payer": "operator", "withdrawn_in": run}


def used_by(records: Sequence[Mapping[str, Any]], run: int) -> Used:
    """What the user pays for one run, by the attempt records of the message: the settlement of the run's hold.

    Input counts once, with the first attempt that stands. What an earlier run was settled with and this one withdrew
    is given back.
    """
    paid = [record for record in records if record["payer"] == "user"]
    mine = [record for record in paid if record.get("run", 1) == run]
    back = [r for r in records if r.get("withdrawn_in") == run and r.get("run", 1) != run]
    tokens = sum(record["output_tokens"] for record in mine) - sum(record["output_tokens"] for record in back)
    for sign, some, all_of_them in ((1, mine, paid), (-1, back, back)):
        if some and some[0] is all_of_them[0]:
            tokens += sign * some[0]["input_tokens"]
    nano = sum(record["cost_nano_usd"] or 0 for record in mine) - sum(record["cost_nano_usd"] or 0 for record in back)
    return Used(tokens, nano, dispatched=any(record.get("run", 1) == run for record in records))
