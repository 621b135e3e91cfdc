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
from server.quotas.limits import Limits, Meter, Policies, Policy, for_route, refused, shown
from server.quotas.service import month_end_us

WHO = Payer("acme", "u", "free")


def order(tokens: int, wished: int | None = None, likely: int | None = None) -> Order:
    return Order("h", WHO, tokens, tokens if likely is None else likely, wished)


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
    counting = mine.counting("any route")
    assert (counting.max_output_tokens, mine.outage, counting.capacity) == (50, "local", 100)
    other = found.of(Payer("other", "u", "free"))
    assert (len(other.owners), other.max_output_tokens, other.outage) == (1, 70, "refuse")


ROUTED = {
    "routes": {"default": {"targets": ["a"]}, "big": {"targets": ["a"]}},
    "tiers": {
        "free": {
            "tokens_per_minute": 100,
            "concurrent_messages": 3,
            "max_output_tokens": 70,
            "monthly_usd": 5,
            "routes": {"big": {"tokens_per_minute": 900, "max_output_tokens": 800, "monthly_usd": 1}},
        }
    },
    "tenants": {"acme": {"routes": {"big": {"concurrent_messages": 2}}}},
}


def test_what_a_route_limits_by_itself_is_counted_there_and_no_more_in_general() -> None:
    found = settings(**ROUTED).of(WHO)
    general, big = found.counting("default"), found.counting("big")
    assert [(meter.whose, meter.route, numbers) for meter, numbers in general.charged] == [(0, "", "1234")]
    assert [(meter.whose, meter.route, numbers) for meter, numbers in big.charged] == [
        (0, "", "234"),
        (0, "big", "1234"),
        (1, "big", "1234"),
    ]
    assert (general.capacity, general.max_output_tokens) == (100, 70)
    assert (big.capacity, big.max_output_tokens) == (900, 800)
    assert big.unslotted == "000"
    assert len(big.args) == len(general.args) == 6 * len(found.meters) == 18
    assert found.counting("another") is general
    names = [refused(found.meters, limit) for limit in ("1:1", "2:1", "3:3", "2:4")]
    assert names == ["tokens_per_minute", "tokens_per_minute:big", "tenant_concurrent_messages:big", "monthly_usd:big"]


def test_a_route_whose_tenant_has_its_own_slots_takes_none_of_the_general_ones() -> None:
    tenant = {"concurrent_messages": 9, "routes": {"big": {"concurrent_messages": 2}}}
    found = settings(**{**ROUTED, "tenants": {"acme": tenant}}).of(WHO).counting("big")
    assert [(meter.whose, meter.route, numbers) for meter, numbers in found.charged] == [
        (0, "", "234"),
        (1, "", "124"),
        (0, "big", "1234"),
        (1, "big", "1234"),
    ]
    assert found.unslotted == "0100"


def test_headers_tell_the_limits_of_the_route_that_is_asked() -> None:
    def row(name: str, left: int, **more: Any) -> dict[str, Any]:
        return {"name": name, "limit": 100, "remaining": left, "reset_seconds": 1.0, **more}

    limits = [row("tokens_per_minute", 5), row("requests_per_minute", 6), row("monthly_usd", 7)]
    limits += [row("tokens_per_minute:big", 8, route="big"), row("monthly_usd:big", 9, route="big")]
    assert [row["remaining"] for row in for_route(limits, "big")] == [6, 7, 8, 9]
    assert [row["remaining"] for row in for_route(limits, "default")] == [5, 6, 7]
    assert rate_limit_headers(limits, "big")["x-ratelimit-remaining-tokens"] == "8"
    assert rate_limit_headers(limits, "big")["RateLimit"] == (
        '"requests_per_minute";r=6;t=1, "tokens_per_minute";r=8;t=1'
    )
    assert rate_limit_headers(limits)["x-ratelimit-remaining-tokens"] == "5"


def test_the_figures_as_frames_and_as_headers() -> None:
    now = 1_900_000_000_000_000
    user = Limits(1000, 60, 3, 2_000_000_000)
    meters = (Meter(0, user), Meter(1, Limits(5000)))
    limits = shown(meters, [400, 36_000_000, 59, 1_000_000, 1, 500_000_000, -7, 60_084_000, -1, -1, 4, 0],
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
