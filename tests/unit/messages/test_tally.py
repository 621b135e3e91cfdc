"""Who pays for what: the attempts whose text stands, and their input once."""

from __future__ import annotations

from decimal import Decimal

from server.ledger.cost import Price
from server.ledger.record import Account, reconcile, rows_of
from server.messages.tally import AttemptTally, ChunkSize, own_records, settlement, user_cost, user_usage, withdrawn
from server.upstreams.base import Batch, TokenUsage

ACCOUNT = Account("tag", "gen", "m1", "acme", "sub", "ann", "free", "ws", "s1", "default")


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


def test_chunks_count_as_the_tokens_that_whole_answers_of_the_target_had_in_them() -> None:
    size = ChunkSize()
    cut = AttemptTally(1, "target", "model", 100.0, 50, chunks=10, chunk_size=size)
    assert cut.usage == TokenUsage(50, 10), "nothing is known yet"
    for tokens in (395, 405, 400):
        whole = AttemptTally(1, "target", "model", 100.0, 50, chunk_size=size)
        whole.take(Batch([("text", "a")], chunks=99), 101.0)
        whole.take(Batch([("text", "b")], chunks=1, usage=TokenUsage(50, tokens), finish_reason="stop"), 102.0)
    assert (cut.source, cut.usage) == ("counted", TokenUsage(50, 40))
    for _ in range(200):
        size.learn(100, 100)
    assert cut.usage == TokenUsage(50, 10), "the newest answers decide"
    size.learn(100, 10)
    assert cut.usage == TokenUsage(50, 10), "a chunk has a token"


def test_reasoning_that_no_chunk_had_makes_no_chunk_larger() -> None:
    for kind, tokens in (("text", 10), ("reasoning", 30)):
        size = ChunkSize()
        whole = AttemptTally(1, "target", "model", 100.0, 50, chunk_size=size)
        whole.take(Batch([(kind, "hm")], chunks=50), 101.0)  # type: ignore[list-item]
        whole.take(Batch([("text", "a")], chunks=50, usage=TokenUsage(50, 300, 0, 200)), 102.0)
        assert size.tokens(10) == tokens


def test_the_first_content_is_timed_and_the_model_named() -> None:
    one = tally()
    one.take(Batch(), 100.5)
    assert one.first_content_at is None
    one.take(Batch([("reasoning", "hm")], chunks=1, model="model-2026"), 100.75)
    one.take(Batch([("text", "a")], chunks=1), 105.0)
    record = one.record()
    assert (record["first_token_ms"], record["model"]) == (750, "model-2026")
    assert tally().record()["first_token_ms"] is None


PRICE = Price(Decimal(1000), Decimal(2000), Decimal(100), version="v")  # nano-dollars: 1,000,000 a token of input


def test_a_record_says_who_pays_and_how_much() -> None:
    one = tally(3, stands=False, usage=TokenUsage(10, 20, 5, 4))
    one.outcome = "upstream_timeout"
    one.price, one.provider_name = PRICE, "openai"
    cost = (5 * 1000 + 5 * 100 + 20 * 2000) * 1000
    assert one.record(2) == {
        "attempt": 3, "run": 2, "target": "target", "provider": "openai", "model": "model",
        "outcome": "upstream_timeout", "payer": "operator", "pays_input": False,
        "source": "provider", "input_tokens": 10, "output_tokens": 20, "cached_tokens": 5, "reasoning_tokens": 4,
        "cost_nano_usd": cost, "charged_nano_usd": 0, "price_version": "v",
        "started_at": 100.0, "ended_at": None, "first_token_ms": None,
    }  # fmt: skip
    one.stands = True
    paid = one.record()
    assert (paid["payer"], paid["pays_input"], paid["charged_nano_usd"]) == ("user", True, cost)
    output_only = one.record(1, pays_input=False)
    assert (output_only["pays_input"], output_only["charged_nano_usd"]) == (False, 20 * 2000 * 1000)
    assert output_only["cost_nano_usd"] == cost
    one.price = None
    unknown = one.record()
    assert [unknown[name] for name in ("cost_nano_usd", "charged_nano_usd", "price_version")] == [None, None, None]


def test_input_is_charged_with_the_first_attempt_that_stands() -> None:
    fell, first, second = tally(1, stands=False, chunks=3), tally(2, chunks=10), tally(3, chunks=20)
    for one in (fell, first, second):
        one.price = PRICE
    records = own_records([fell, first, second], 1, ())
    assert [record["pays_input"] for record in records] == [False, True, False]
    assert user_cost(records) == (50 * 1000 + 30 * 2000) * 1000
    assert [record["pays_input"] for record in own_records([second], 2, records)] == [False]
    assert user_cost([]) is None


def test_what_a_later_run_withdraws_is_given_back_with_its_settlement() -> None:
    one, two = tally(1, chunks=10), tally(2, chunks=7)
    one.price = two.price = PRICE
    first = own_records([one], 1, ())
    paid = settlement(first, 1, ACCOUNT)
    assert (paid.tokens, paid.nano_dollars, paid.attempts) == (60, first[0]["charged_nano_usd"], 1)
    earlier = [withdrawn(record, 2) for record in first]
    records = [*earlier, *own_records([two], 2, earlier)]
    back = settlement(records, 2, ACCOUNT)
    assert (back.tokens, back.attempts) == (57 - 60, 2)
    assert paid.nano_dollars + back.nano_dollars == records[1]["charged_nano_usd"]
    rows = rows_of(back.entry)
    assert [(row["payer"], row["withdrawn_in"]) for row in rows] == [("operator", 2), ("user", None)]
    (before,) = rows_of(paid.entry)
    for order in ((before, rows[0]), (rows[0], before)):
        made = reconcile(*order)
        assert (made.row, made.conflict) == (rows[0], ())


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
