"""What nodes tell each other of a user's limits."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from server.quotas.base import Payer
from server.quotas.figures import Figures, read, sender

NAME = st.text(max_size=20)


@given(NAME, NAME, NAME, NAME, st.integers(0, 2**53), st.lists(st.integers(-(2**53), 2**53), max_size=12))
def test_what_is_published_is_what_is_read(
    node: str, tenant: str, user: str, tier: str, at: int, numbers: list[int]
) -> None:
    """Whatever the names hold: line ends, spaces, nothing."""
    payer = Payer(tenant, user, tier)
    data = " ".join(map(str, [at, *numbers])).encode() + b"\n" + sender(node, payer)
    assert read(data) == Figures(node, payer, at, numbers)
