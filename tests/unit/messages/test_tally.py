"""Who pays for what: the attempts whose text stands, and their input once."""

from __future__ import annotations

from server.messages.tally import AttemptTally, user_usage
from server.upstreams.base import Batch, TokenUsage


def tally(number: int = 1, *, stands: bool = True, usage: TokenUsage | None = None, chunks: int = 0) -> AttemptTally:
    return AttemptTally(number, "target", "model", 100.0, 50, chunks=chunks, provider=usage, stands=stands)


def test_the_provider_s_numbers_win_over_what_was_counted() -> None:
    one = tally()
    assert (one.source, one.usage) == ("none", TokenUsage(0, 0))
    one.take(Batch([("text", "a")], chunks=3), 101.0)
    one.take(Batch([("text", "b")], chunks=2), 102.0)
    assert (one.source, one.usage) == ("counted", TokenUsage(50, 5))
    one.take(Batch(usage=TokenUsage(40, 7, 10, 2), finish_reason="stop"), 103.0)
    assert (one.source, one.usage) == ("provider", TokenUsage(40, 7, 10, 2))


def test_the_first_content_is_timed_and_the_model_named() -> None:
    one = tally()
    one.take(Batch(), 100.5)
    assert one.first_content_at is None
    one.take(Batch([("reasoning", "hm")], chunks=1, model="model-2026"), 100.75)
    one.take(Batch([("text", "a")], chunks=1), 105.0)
    record = one.record(None)
    assert (record["first_token_ms"], record["model"]) == (750, "model-2026")
    assert tally().record(None)["first_token_ms"] is None


def test_a_record_says_who_pays() -> None:
    one = tally(3, stands=False, usage=TokenUsage(10, 20, 5, 4))
    one.outcome = "upstream_timeout"
    assert one.record(123) == {
        "attempt": 3, "target": "target", "model": "model", "outcome": "upstream_timeout", "payer": "operator",
        "source": "provider", "input_tokens": 10, "output_tokens": 20, "cached_tokens": 5, "reasoning_tokens": 4,
        "cost_nano_usd": 123, "started_at": 100.0, "ended_at": None, "first_token_ms": None,
    }  # fmt: skip
    one.stands = True
    assert one.record(0)["payer"] == "user"
    assert one.record(0)["cost_nano_usd"] == 0


def test_withdrawn_text_is_not_the_user_s() -> None:
    withdrawn = tally(1, stands=False, usage=TokenUsage(100, 900, 3, 4))
    final = tally(2, usage=TokenUsage(120, 30, 20, 5))
    assert user_usage([withdrawn, final]) == {
        "input_tokens": 120, "output_tokens": 30, "total_tokens": 150, "cached_tokens": 20, "reasoning_tokens": 5,
    }  # fmt: skip


def test_a_continuation_pays_its_input_once_and_all_output() -> None:
    first = tally(1, chunks=10)
    second = tally(2, usage=TokenUsage(500, 20, 400, 1))
    assert user_usage([first, second]) == {
        "input_tokens": 50, "output_tokens": 30, "total_tokens": 80, "cached_tokens": 0, "reasoning_tokens": 1,
    }  # fmt: skip


def test_nothing_stands_nothing_is_paid() -> None:
    zero = dict.fromkeys(("input_tokens", "output_tokens", "total_tokens", "cached_tokens", "reasoning_tokens"), 0)
    assert user_usage([]) == user_usage([tally(stands=False, usage=TokenUsage(1, 2))]) == zero
