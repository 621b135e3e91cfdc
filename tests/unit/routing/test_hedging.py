"""The budget of hedges and the percentile that they wait for."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from server.routing.hedging import BURST, LEAST_SAMPLES, SAMPLES, HedgeBudget, Latencies


@given(st.floats(0, 1), st.lists(st.booleans(), max_size=300))
def test_never_more_hedges_than_the_share_of_calls(share: float, wishes: list[bool]) -> None:
    budget, taken = HedgeBudget(share), 0
    for number, wish in enumerate(wishes, 1):
        budget.call()
        taken += wish and budget.take()
        assert taken <= share * number + 1e-6


def test_a_quiet_time_saves_up_little() -> None:
    budget = HedgeBudget(0.05)
    for _ in range(10_000):
        budget.call()
    assert sum(budget.take() for _ in range(1000)) == BURST


@given(st.lists(st.floats(0, 100), max_size=SAMPLES * 2))
def test_the_percentile_is_that_of_the_newest(samples: list[float]) -> None:
    latencies = Latencies()
    for sample in samples:
        latencies.add(sample)
    newest = sorted(samples[-SAMPLES:])
    if len(newest) < LEAST_SAMPLES:
        assert latencies.p95 is None
    else:
        assert latencies.p95 is not None
        below = sum(sample <= latencies.p95 for sample in newest)
        assert below >= 0.95 * len(newest)
        assert latencies.p95 in newest


def test_of_a_hundred_it_is_the_ninety_sixth() -> None:
    latencies = Latencies()
    for number in range(100):
        latencies.add(float(number))
    assert latencies.p95 == pytest.approx(95.0)
