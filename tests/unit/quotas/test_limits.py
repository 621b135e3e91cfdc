"""Whose limits hold, how large a reservation is, and how the figures are shown."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from protocol.errors import ProtocolError
from server.config import parse
from server.messages.request import most_input
from server.messages.tally import used_by, withdrawn
from server.quotas.base import Order, Payer, Used
from server.quotas.headers import HEADERS, duration, rate_limit_headers
from server.quotas.limits import Limits, Policies, Policy, shown
from server.quotas.service import month_end_us

WHO = Payer("acme", "u", "free")


def order(tokens: int, wished: int | None = None, likely: int | None = None) -> Order:
    return Order("h", WHO, "default", tokens, tokens if likely is None else likely, wished)


def policy(tpm: int, most: int = 1000) -> Policy:
    return Policy((Limits(tpm),), most, "refuse")


def test_a_default_cap_never_makes_a_request_too_large() -> None:
    assert policy(500).size(order(100), None) == (500, 400)
    assert policy(5000).size(order(100), None) == (1100, 1000)
    assert policy(5000).size(order(100), 50) == (150, 50)
    assert policy(5000).size(order(100, wished=9999), 50) == (1100, 1000)


def test_what_waiting_cannot_help_is_refused_for_good() -> None:
    with pytest.raises(ProtocolError) as caught:
        policy(500).size(order(100, wished=401), None)
    error = caught.value.as_dict()
    assert (error["code"], error["class"], "retry_after_ms" in error) == (
        "request_too_large_for_tier",
        "permanent",
        False,
    )
    assert policy(500).size(order(100, wished=400), None) == (500, 400)
    with pytest.raises(ProtocolError):
        policy(500).size(order(500), None)


def test_a_bound_that_is_too_careful_reserves_the_whole_bucket() -> None:
    assert policy(500).size(order(900, wished=100, likely=300), None) == (500, 100)


@given(st.integers(1, 10_000), st.integers(0, 10_000), st.integers(1, 10_000), st.none() | st.integers(1, 10_000))
def test_a_reservation_fits_the_bucket(tpm: int, tokens: int, most: int, wished: int | None) -> None:
    try:
        size, cap = policy(tpm, most).size(order(tokens, wished), None)
    except ProtocolError:
        return
    assert 1 <= cap <= most
    assert cap <= size <= tpm


def settings(**sections: Any) -> Policies:
    base = {"targets": {"a": {"driver": "embedded"}}, "routes": {"default": {"targets": ["a"]}}}
    return Policies(parse({**base, **sections}, {"HOME": "/h"}))


def test_tenant_limits_come_beside_the_user_s() -> None:
    found = settings(
        tiers={"free": {"tokens_per_minute": 100, "monthly_usd": 0.5, "max_output_tokens": 70}},
        tenants={"acme": {"tokens_per_minute": 300, "max_output_tokens": 50, "on_redis_outage": "local"}},
    )
    mine = found.of(WHO)
    assert [limits.tokens_per_minute for limits in mine.owners] == [100, 300]
    assert mine.owners[0].monthly_nano_dollars == 500_000_000
    assert (mine.max_output_tokens, mine.outage, mine.capacity) == (50, "local", 100)
    other = found.of(Payer("other", "u", "free"))
    assert (len(other.owners), other.max_output_tokens, other.outage) == (1, 70, "refuse")


def test_the_figures_as_frames_and_as_headers() -> None:
    now = 1_900_000_000_000_000
    user = Limits(1000, 60, 3, 2_000_000_000)
    limits = shown((user, Limits(5000)), [400, 36_000_000, 59, 1_000_000, 1, 500_000_000, -7, 60_084_000, -1, -1, 4, 0],
                   now, month_end_us(now))  # fmt: skip
    assert [(row["name"], row["limit"], row["remaining"]) for row in limits] == [
        ("tokens_per_minute", 1000, 400),
        ("requests_per_minute", 60, 59),
        ("concurrent_messages", 3, 2),
        ("monthly_usd", 2.0, 1.5),
        ("tenant_tokens_per_minute", 5000, 0),
    ]
    assert rate_limit_headers(limits) == {
        "RateLimit-Policy": '"tokens_per_minute";q=1000;w=60, "requests_per_minute";q=60;w=60, '
        '"tenant_tokens_per_minute";q=5000;w=60',
        "RateLimit": '"tokens_per_minute";r=400;t=36, "requests_per_minute";r=59;t=1, '
        '"tenant_tokens_per_minute";r=0;t=61',
        "x-ratelimit-limit-tokens": "5000",
        "x-ratelimit-remaining-tokens": "0",
        "x-ratelimit-reset-tokens": "1m0.084s",
        "x-ratelimit-limit-requests": "60",
        "x-ratelimit-remaining-requests": "59",
        "x-ratelimit-reset-requests": "1s",
    }
    assert rate_limit_headers(limits).keys() == HEADERS.keys()
    assert rate_limit_headers([]) == {}


@pytest.mark.parametrize(
    ("seconds", "text"), [(0, "0s"), (0.25, "250ms"), (1.5, "1.5s"), (360, "6m0s"), (3661, "1h1m1s")]
)
def test_durations(seconds: float, text: str) -> None:
    assert duration(seconds) == text


@given(st.text())
def test_the_input_bound_is_never_below_the_bytes_of_the_text(text: str) -> None:
    assert most_input({"messages": [{"role": "user", "content": text}]}) > len(text.encode())


def test_the_input_bound_counts_all_that_is_sent() -> None:
    plain = most_input({"messages": [{"role": "user", "content": "x"}]})
    tools = [{"type": "function", "function": {"name": "f" * 500}}]
    assert most_input({"messages": [{"role": "user", "content": "x"}], "tools": tools}) > plain + 500
    image = [{"type": "image_url", "image_url": {"url": "data:" + "A" * 10_000}}, {"type": "text", "text": "x"}]
    assert plain + 1000 < most_input({"messages": [{"role": "user", "content": image}]}) < 10_000


def record(run: int, payer: str, tokens_in: int, tokens_out: int, nano: int = 0, **more: Any) -> dict[str, Any]:
    return {"run": run, "payer": payer, "input_tokens": tokens_in, "output_tokens": tokens_out,
            "cost_nano_usd": nano, "charged_nano_usd": nano if payer == "user" else 0, **more}  # fmt: skip


def test_what_a_run_is_settled_with() -> None:
    assert used_by([], 1) == Used(0, 0, dispatched=False)
    assert used_by([record(1, "operator", 10, 5, 7)], 1) == Used(0, 0)
    assert used_by([record(1, "operator", 10, 5, 7), record(1, "user", 10, 20, 3)], 1) == Used(30, 3)
    continued = [record(1, "user", 10, 5, 1), record(1, "user", 15, 20, 2)]
    assert used_by(continued, 1) == Used(35, 3)


def test_a_run_that_replaces_an_earlier_one_gives_back_what_that_was_settled_with() -> None:
    first = record(1, "user", 10, 5, 4)
    assert used_by([first], 1) == Used(15, 4)
    again = [withdrawn(first, 2), record(2, "user", 10, 30, 9)]
    assert used_by(again, 2) == Used(25, 5)
    assert used_by([first], 1).tokens + used_by(again, 2).tokens == 40
    third = [withdrawn(r, 3) for r in again] + [record(3, "user", 10, 1, 1)]
    total = sum(used_by(records, run).tokens for records, run in (([first], 1), (again, 2), (third, 3)))
    assert total == 11
