"""What tokens cost, in integer nano-dollars: money is never a float inside the server."""

from __future__ import annotations

from dataclasses import dataclass
from decimal import ROUND_HALF_EVEN, Decimal
from typing import Final

NANO: Final = 1_000_000_000


@dataclass(frozen=True, slots=True)
class Price:
    """A target's price, in dollars per million tokens, exactly as configured."""

    input_per_million: Decimal
    output_per_million: Decimal

    def nano_dollars(self, input_tokens: int, output_tokens: int) -> int:
        """Cost of a call, rounded half to even once, at the end."""
        dollars_e6 = self.input_per_million * input_tokens + self.output_per_million * output_tokens
        return int((dollars_e6 * (NANO // 1_000_000)).quantize(Decimal(1), rounding=ROUND_HALF_EVEN))


def as_usd(nano_dollars: int | None) -> float | None:
    """For the wire, where `cost_usd` is a JSON number."""
    return None if nano_dollars is None else nano_dollars / NANO
