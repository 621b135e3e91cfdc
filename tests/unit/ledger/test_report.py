"""What can be asked of the ledger, in which words, and what is said of what can't."""

from __future__ import annotations

import contextlib
from datetime import UTC, datetime
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from server.ledger.report import (
    MAX_GROUPS,
    OPERATOR_DIMENSIONS,
    TENANT_DIMENSIONS,
    BadQuery,
    Query,
    dimensions,
    groups,
    period,
    shown_time,
)

NOW = datetime(2026, 11, 26, 7, 30, tzinfo=UTC)


@pytest.mark.parametrize(
    ("given", "names"),
    [
        ("", ()),
        ("feature,model", ("feature", "model")),
        (" user , day ", ("user", "day")),
        ("tags.team,tags.a.b", ("tags.team", "tags.a.b")),
    ],
)
def test_dimensions(given: str, names: tuple[str, ...]) -> None:
    assert dimensions(given, TENANT_DIMENSIONS) == names


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ("featuer", "there is no dimension 'featuer'; did you mean 'feature'?"),
        ("modle,feature", "did you mean 'model'?"),
        ("payer", "only operators can group by 'payer'"),
        ("qqqq", "there are feature, model, route"),
        ("feature,,model", "there is no dimension ''"),
        ("feature,feature", "a dimension is named twice"),
        ("tags.", "a tag's name has 1 to 64"),
        ("tags.\x1b", "printable"),
        ("user,model,route,target,prompt,door,day", "at most 6 dimensions"),
    ],
)
def test_wrong_dimensions_name_the_nearest(given: str, said: str) -> None:
    with pytest.raises(BadQuery) as refused:
        dimensions(given, TENANT_DIMENSIONS)
    assert said in str(refused.value)
    assert refused.value.parameter == "group_by"


def test_only_operators_see_who_bears_what() -> None:
    assert dimensions("tenant,payer,outcome", OPERATOR_DIMENSIONS) == ("tenant", "payer", "outcome")
    for name in ("tenant", "payer", "outcome", "source", "price_version"):
        with pytest.raises(BadQuery):
            dimensions(name, TENANT_DIMENSIONS)


@pytest.mark.parametrize(
    ("start", "end", "shown"),
    [
        (None, None, ("2026-11-01T00:00:00Z", "2026-11-26T07:30:00.001Z")),
        ("2026-10-01", "2026-11-01", ("2026-10-01T00:00:00Z", "2026-11-01T00:00:00Z")),
        ("2026-11-01T02:00:00+02:00", "2026-11-01T12:00:00Z", ("2026-11-01T00:00:00Z", "2026-11-01T12:00:00Z")),
        ("2026-11-01T02:00:00 02:00", "2027-01-01", ("2026-11-01T00:00:00Z", "2027-01-01T00:00:00Z")),  # an unquoted +
        ("2026-12-01", None, ("2026-12-01T00:00:00Z", "2026-12-01T00:00:00.001Z")),
    ],
)
def test_periods(start: str | None, end: str | None, shown: tuple[str, str]) -> None:
    from_ms, to_ms = period(start, end, NOW)
    assert (shown_time(from_ms), shown_time(to_ms)) == shown


@pytest.mark.parametrize(
    ("start", "end", "parameter"),
    [
        ("yesterday", None, "from"),
        ("2026-13-01", None, "from"),
        ("1969-01-01", None, "from"),
        ("2026-11-01", "2026-11-01", "to"),
        ("2026-11-02", "2026-11-01", "to"),
        (None, "9" * 400, "to"),
    ],
)
def test_wrong_periods_are_refused(start: str | None, end: str | None, parameter: str) -> None:
    with pytest.raises(BadQuery) as refused:
        period(start, end, NOW)
    assert refused.value.parameter == parameter


@given(st.text(max_size=40), st.text(max_size=40))
def test_whatever_is_given_there_is_a_period_or_a_clear_refusal(start: str, end: str) -> None:
    with contextlib.suppress(BadQuery):
        from_ms, to_ms = period(start, end, NOW)
        assert from_ms < to_ms


def row(cost: int | None, charged: int | None, **names: Any) -> dict[str, Any]:
    sums = dict.fromkeys(("input_tokens", "cached_tokens", "output_tokens", "reasoning_tokens"), 5)
    return {**names, **sums, "messages": 1, "attempts": 2, "cost_nano_usd": cost, "charged_nano_usd": charged,
            "unpriced": 0}  # fmt: skip


def test_groups_come_dearest_first() -> None:
    query = Query(("feature", "day"), 0, 1, charged_only=True)
    found = [row(9, 1_000_000, by_0=None, by_1=0), row(9, 2_000_000_000, by_0="a", by_1=86_400_000)]
    assert groups(query, found) == [
        {"feature": "a", "day": "1970-01-02", "messages": 1, "input_tokens": 5, "cached_tokens": 5, "output_tokens": 5,
         "reasoning_tokens": 5, "cost_usd": 2.0},
        {"feature": None, "day": "1970-01-01", "messages": 1, "input_tokens": 5, "cached_tokens": 5, "output_tokens": 5,
         "reasoning_tokens": 5, "cost_usd": 0.001},
    ]  # fmt: skip


def test_an_operator_sees_what_nobody_was_charged() -> None:
    (shown,) = groups(Query((), 0, 1), [row(3_000_000_000, 1_000_000_000)])
    assert (shown["cost_usd"], shown["charged_usd"], shown["operator_usd"], shown["attempts"]) == (3.0, 1.0, 2.0, 2)
    (unknown,) = groups(Query((), 0, 1), [row(None, None)])
    assert (unknown["cost_usd"], unknown["operator_usd"]) == (None, None)


def test_an_empty_sum_is_no_group_and_too_many_are_refused() -> None:
    empty = dict.fromkeys(row(None, None)) | {"attempts": 0}
    assert groups(Query((), 0, 1), [empty]) == []
    with pytest.raises(BadQuery, match="more than 10000 groups"):
        groups(Query((), 0, 1), [row(None, None)] * (MAX_GROUPS + 1))
