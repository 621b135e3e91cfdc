"""What tokens cost, in integer nano-dollars: money is never a float inside the server."""

from __future__ import annotations

from dataclasses import dataclass
from decimal import ROUND_HALF_EVEN, Decimal
from typing import Final

NANO: Final = 1_000_000_000


@dataclass(frozen=True, slots=True)
class Price:
    """A target's price, in dollars per million tokens, exactly as it is written in its source."""

    input_per_million: Decimal
    output_per_million: Decimal
    cached_input_per_million: Decimal | None = None
    """Of input that the provider had cached; None: like other input."""
    reasoning_per_million: Decimal | None = None
    """Of output that is reasoning; None: like other output."""
    above: tuple[tuple[int, Price], ...] = ()
    """(input tokens, price): a call with more input than this is priced so as a whole. Ascending."""
    version: str = "config"
    """Where it stands: `config`, or the name, version and content hash of a price list."""

    def nano_dollars(self, input_tokens: int, output_tokens: int, cached: int = 0, reasoning: int = 0) -> int:
        """Cost of a call, rounded half to even once, at the end. `cached` is part of input, `reasoning` of output."""
        return self.at(input_tokens)._cost(input_tokens, output_tokens, cached, reasoning)

    def at(self, input_tokens: int) -> Price:
        """The price of a call with so much input."""
        found = self
        for more_than, price in self.above:
            if input_tokens > more_than:
                found = price
        return found

    def _cost(self, input_tokens: int, output_tokens: int, cached: int, reasoning: int) -> int:
        cached, reasoning = min(cached, input_tokens), min(reasoning, output_tokens)
        cached_price, reasoning_price = self.cached_input_per_million, self.reasoning_per_million
        cached_price = self.input_per_million if cached_price is None else cached_price
        reasoning_price = self.output_per_million if reasoning_price is None else reasoning_price
        dollars_e6 = (
            self.input_per_million * (input_tokens - cached)
            + cached_price * cached
            + self.output_per_million * (output_tokens - reasoning)
            + reasoning_price * reasoning
        )
        return int((dollars_e6 * (NANO // 1_000_000)).quantize(Decimal(1), rounding=ROUND_HALF_EVEN))


def as_usd(nano_dollars: int | None) -> float | None:
    """For the wire, where `cost_usd` is a JSON number."""
    return None if nano_dollars is None else nano_dollars / NANO
