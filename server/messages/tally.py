"""Counting what each attempt of a message used, and what of it the user pays. Pure.

The user pays the attempts whose text stands, and their input once; withdrawn text, hedges and crashed attempts are
the operator's (`payer`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Final, Literal

from server.ledger.cost import Price
from server.ledger.record import Account
from server.quotas.base import Used
from server.upstreams.base import Batch, TokenUsage

Source = Literal["provider", "counted", "none"]

KEPT_SHARE: Final = 0.9
"""How much of what was learned of a target's chunks a further answer leaves: the last ten or so decide."""
MOST_PER_CHUNK: Final = 64.0


class ChunkSize:
    """How many tokens a content chunk of a target stands for, learned from the answers whose provider told.

    Some send a chunk for each token, others several tokens in one; so what is counted of an answer that was cut off is
    multiplied by this. One until something is known, and never less: a chunk with content has a token.
    """

    __slots__ = ("_chunks", "_tokens")

    def __init__(self) -> None:
        self._chunks = 0.0
        self._tokens = 0.0

    def learn(self, chunks: int, tokens: int) -> None:
        """A whole answer came in so many chunks, and has so many tokens of output by the provider's own count."""
        if chunks:
            self._chunks = self._chunks * KEPT_SHARE + chunks
            self._tokens = self._tokens * KEPT_SHARE + tokens

    def tokens(self, chunks: int) -> int:
        """About how many tokens so many chunks are."""
        size = self._tokens / self._chunks if self._chunks else 1.0
        return round(chunks * min(max(size, 1.0), MOST_PER_CHUNK))


@dataclass(slots=True)
class AttemptTally:
    """One attempt: what it brought, how it ended. Times are Unix seconds."""

    number: int
    target: str
    model: str
    started_at: float
    input_estimate: int
    first_content_at: float | None = None
    provider_name: str = ""
    """Who serves the target, as OpenTelemetry names providers (`gen_ai.provider.name`)."""
    price: Price | None = None
    """Of the target's own model."""
    asked_at: float = 0.0
    """Since when the next batch is waited for."""
    longest_gap: float = 0.0
    """The longest wait for a batch after the first content, in seconds."""
    ended_at: float | None = None
    chunks: int = 0
    provider: TokenUsage | None = None
    outcome: str = "running"
    """`done`, `cancelled`, `hedged` (another was faster), `held` (never begun), or the code of its failure."""
    stands: bool = False
    """Whether its text is part of the final answer."""
    continues: bool = False
    """Whether it went on with the text of the attempt before it."""
    chunk_size: ChunkSize = field(default_factory=ChunkSize)
    """The target's."""
    reasons_aloud: bool = False
    """Whether reasoning came in the chunks."""

    def take(self, batch: Batch, now: float) -> None:
        """Count one batch."""
        self.chunks += batch.chunks
        for piece in batch.pieces:
            if piece[0] == "reasoning":
                self.reasons_aloud = True
        if self.first_content_at is not None:
            if now - self.asked_at > self.longest_gap:
                self.longest_gap = now - self.asked_at
        elif batch.pieces:
            self.first_content_at = now
        self.asked_at = now
        if batch.usage is not None:
            self.provider = batch.usage
            # reasoning that was kept back lies in no chunk, however much of it there was
            hidden = 0 if self.reasons_aloud else batch.usage.reasoning
            self.chunk_size.learn(self.chunks, batch.usage.output - hidden)
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
        return TokenUsage(self.input_estimate if self.chunks else 0, self.chunk_size.tokens(self.chunks))

    @property
    def cost(self) -> int | None:
        """What the provider asks for it, in nano-dollars; None: its price is not known."""
        usage = self.usage
        if self.price is None:
            return None
        return self.price.nano_dollars(usage.input, usage.output, usage.cached, usage.reasoning)

    def charge(self, pays_input: bool) -> int | None:
        """What of the cost the user pays; not the input, if that was paid with an attempt before."""
        if self.price is None or not self.stands:
            return None if self.price is None else 0
        if pays_input:
            return self.cost
        usage = self.usage
        return self.price.at(usage.input).nano_dollars(0, usage.output, 0, usage.reasoning)

    def record(self, run: int = 1, pays_input: bool = True) -> dict[str, Any]:
        """The usage record of this attempt, keyed (message, attempt) in the ledger."""
        usage = self.usage
        first = self.first_content_at
        return {
            "attempt": self.number,
            "run": run,
            "target": self.target,
            "provider": self.provider_name,
            "model": self.model,
            "outcome": self.outcome,
            "payer": "user" if self.stands else "operator",
            "source": self.source,
            "input_tokens": usage.input,
            "output_tokens": usage.output,
            "cached_tokens": usage.cached,
            "reasoning_tokens": usage.reasoning,
            "pays_input": self.stands and pays_input,
            "cost_nano_usd": self.cost,
            "charged_nano_usd": self.charge(pays_input),
            "price_version": None if self.price is None else self.price.version,
            "started_at": self.started_at,
            "ended_at": self.ended_at,
            "first_token_ms": None if first is None else round((first - self.started_at) * 1000),
        }


def lost_record(
    number: int, description: Mapping[str, Any], text_bytes: int, run: int, price: Price | None
) -> dict[str, Any]:
    """The record of an attempt whose node was lost: nobody counted, so it is estimated from what was journaled."""
    tokens_in = description.get("input", 0) if text_bytes else 0
    tokens_out = -(-text_bytes // 4)
    return {
        "attempt": number,
        "run": run,
        "target": description["target"],
        "provider": description.get("provider", ""),
        "model": description["model"],
        "outcome": "owner_lost",
        "payer": "operator",
        "source": "estimated",
        "input_tokens": tokens_in,
        "output_tokens": tokens_out,
        "cached_tokens": 0,
        "reasoning_tokens": 0,
        "pays_input": False,
        "cost_nano_usd": None if price is None else price.nano_dollars(tokens_in, tokens_out),
        "charged_nano_usd": None if price is None else 0,
        "price_version": None if price is None else price.version,
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


def own_records(
    tallies: Sequence[AttemptTally], run: int, earlier: Sequence[Mapping[str, Any]]
) -> list[dict[str, Any]]:
    """The records of one run's attempts, after those of `earlier` ones: the first that the user pays has the input."""
    records, paid = [], any(record["payer"] == "user" for record in earlier)
    for tally in tallies:
        records.append(tally.record(run, not paid))
        paid = paid or tally.stands
    return records


def user_cost(records: Sequence[Mapping[str, Any]]) -> int | None:
    """The `cost_usd` of the end frame, in nano-dollars: what the user pays of these; None if no price is known."""
    costs = [record["charged_nano_usd"] for record in records if record["payer"] == "user"]
    known = [cost for cost in costs if cost is not None]
    return sum(known) if known else None


def withdrawn(record: Mapping[str, Any], run: int) -> dict[str, Any]:
    """The record of an attempt of an earlier owner or run whose text `run` replaced: the operator pays it now."""
    if record["payer"] == "operator":
        return dict(record)
    charged = record.get("charged_nano_usd")
    return {
        **record,
        "payer": "operator",
        "pays_input": False,
        "charged_nano_usd": None if charged is None else 0,
        "given_back_nano_usd": charged,
        "withdrawn_in": run,
    }


def used_by(records: Sequence[Mapping[str, Any]], run: int) -> Used:
    """What the user pays for one run, by the attempt records of the message.

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
    nano = sum(record["charged_nano_usd"] or 0 for record in mine)
    nano -= sum(record["given_back_nano_usd"] or 0 for record in back)
    return Used(
        tokens,
        nano,
        dispatched=any(record.get("run", 1) == run for record in records),
    )


def settlement(records: Sequence[Mapping[str, Any]], run: int, account: Account) -> Used:
    """What the hold of one run is settled with; and for the ledger the records of all runs.

    A node that died between the end of an earlier run and its settlement has not handed in that run's.
    """
    used = used_by(records, run)
    if not records:
        return used
    return replace(used, entry=account.entry(records), attempts=max(record["attempt"] for record in records))
