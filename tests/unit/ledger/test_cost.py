"""Money: exact, in integer nano-dollars."""

from __future__ import annotations

from decimal import Decimal
from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from server.ledger.cost import Price, as_usd

AMOUNT = st.decimals(0, 10_000, places=6, allow_nan=False, allow_infinity=False)
TOKENS = st.integers(0, 10**9)


@pytest.mark.parametrize(
    ("price", "tokens", "nano"),
    [
        (("0", "0"), (5, 5), 0),
        (("1", "2"), (1_000_000, 1_000_000), 3_000_000_000),
        (("0.15", "0.60"), (1, 1), 750),
        (("0.0005", "0"), (1, 0), 0),  # half to even: 0.5 nano-dollars
        (("0.0005", "0"), (3, 0), 2),  # 1.5
        (("0.0005", "0"), (5, 0), 2),  # 2.5
        (("0.0003", "0.0003"), (1, 1), 1),  # rounded once, at the end: 0.3 + 0.3
    ],
)
def test_a_call_costs(price: tuple[str, str], tokens: tuple[int, int], nano: int) -> None:
    assert Price(Decimal(price[0]), Decimal(price[1])).nano_dollars(*tokens) == nano


@given(AMOUNT, AMOUNT, TOKENS, TOKENS)
def test_the_cost_is_exact_to_half_a_nano_dollar(a: Decimal, b: Decimal, inp: int, out: int) -> None:
    exact = (Fraction(a) * inp + Fraction(b) * out) * 1000
    found = Price(a, b).nano_dollars(inp, out)
    assert isinstance(found, int)
    assert abs(found - exact) <= Fraction(1, 2)
    assert found == round(exact)


def test_for_the_wire_it_is_dollars() -> None:
    assert as_usd(None) is None
    assert as_usd(0) == 0.0
    assert as_usd(1_500_000_000) == 1.5
    assert as_usd(1) == 1e-9
