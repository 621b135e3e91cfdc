"""A run as spans: whose child is whose, what an attempt is told as, and that two nodes tell the same ids."""

from __future__ import annotations

from typing import Any

from server.ledger.record import Account
from server.messages.spans import RunTrace, attempt_spans, run_span
from server.telemetry.spans import TraceContext

ACCOUNT = Account("t" * 64, "g1", "m1", "acme", "sub", "alice@example.com", "free", "ws", "s1", "default", "c1")
ABOVE = TraceContext(0xABC, 0xDEF, sampled=False)


def record(attempt: int, outcome: str, **more: Any) -> dict[str, Any]:
    """An attempt that began at `10 * attempt` and took 5 s."""
    return {
        "attempt": attempt, "run": 1, "target": f"t{attempt}", "provider": "openai", "model": "m", "outcome": outcome,
        "payer": "user", "source": "provider", "input_tokens": 7, "output_tokens": 3, "cached_tokens": 0,
        "reasoning_tokens": 0, "started_at": 10.0 * attempt, "ended_at": 10.0 * attempt + 5, "first_token_ms": 250,
    } | more  # fmt: skip


def trace(parent: TraceContext | None = None, run: int = 1) -> RunTrace:
    return RunTrace(ACCOUNT.message_key, b"g1", run, parent)


def test_every_node_makes_the_same_ids_and_every_span_its_own() -> None:
    contexts = [trace().context, trace().attempt(1), trace().attempt(2), trace(run=2).context]
    assert contexts == [trace().context, trace().attempt(1), trace().attempt(2), trace(run=2).context]
    assert len({context.span_id for context in contexts}) == 4
    assert len({context.trace_id for context in contexts}) == 1
    assert trace().context.trace_id != RunTrace(ACCOUNT.message_key, b"g2", 1, None).context.trace_id


def test_it_joins_the_trace_of_whoever_asked() -> None:
    span = run_span(trace(ABOVE), ACCOUNT, "done", [record(1, "done")], 9.0, 16.0)
    assert span.parent == ABOVE
    assert span.context.trace_id == ABOVE.trace_id
    assert not span.context.sampled
    assert not trace(ABOVE).attempt(1).sampled
    [child] = attempt_spans(trace(ABOVE), [record(1, "done")], 16.0)
    assert child.parent == span.context
    assert child.context == trace(ABOVE).attempt(1)


def test_a_fallback_is_told_attempt_by_attempt() -> None:
    records = [
        record(1, "first_token_timeout", payer="operator", output_tokens=0, first_token_ms=None),
        record(2, "done"),
    ]
    run = run_span(trace(), ACCOUNT, "done", records, 9.0, 26.0)
    assert (run.started, run.ended, run.error) == (9.0, 26.0, None)
    assert run.attributes["gen_ai.usage.output_tokens"] == 3
    assert run.attributes["tidewire.attempts"] == 2
    failed, done = attempt_spans(trace(), records, 26.0)
    assert failed.error == failed.attributes["error.type"] == "first_token_timeout"
    assert "gen_ai.response.time_to_first_chunk" not in failed.attributes
    assert done.error is None
    assert done.attributes["gen_ai.response.time_to_first_chunk"] == 0.25
    assert (done.started, done.ended) == (20.0, 25.0)


def test_an_attempt_whose_node_was_lost_ends_where_the_next_began() -> None:
    records = [record(1, "owner_lost", ended_at=None), record(2, "cancelled", ended_at=None)]
    lost, last = attempt_spans(trace(), records, 26.0)
    assert (lost.ended, lost.error) == (20.0, "owner_lost")
    assert (last.ended, last.error) == (26.0, None)
    assert run_span(trace(), ACCOUNT, "cancelled", records, 12.0, 26.0).started == 10.0


def test_earlier_runs_are_not_told_again() -> None:
    records = [record(1, "server_error"), record(2, "server_error", run=2)]
    span = run_span(trace(run=2), ACCOUNT, "failed", records, 19.0, 26.0)
    assert span.error == "server_error"
    assert span.attributes["tidewire.attempts"] == 1
    assert [child.attributes["tidewire.attempt"] for child in attempt_spans(trace(run=2), records, 26.0)] == [2]


def test_nobody_is_named() -> None:
    spans = [
        run_span(trace(), ACCOUNT, "done", [record(1, "done")], 9.0, 16.0),
        *attempt_spans(trace(), [record(1, "done")], 16.0),
    ]
    assert "alice" not in repr(spans)
