"""A gate and quotas that let everybody through, for tests of what is around them."""

from __future__ import annotations

from server.quotas.base import Hold, Order, Payer, Used
from server.routing.attempts import Route
from server.routing.gate import Held, Ticket
from server.upstreams.base import Fault


class OpenTicket:
    """A ticket nobody looks at."""

    def late(self) -> bool:
        """See `Ticket`."""
        return False

    def began(self, seconds: float) -> None:
        """See `Ticket`."""

    def well(self, longest_gap_seconds: float) -> None:
        """See `Ticket`."""

    def failed(self, fault: Fault, retry_after_seconds: float | None) -> None:
        """See `Ticket`."""

    def void(self, silent_seconds: float = 0.0) -> None:
        """See `Ticket`."""


class OpenGate:
    """Lets everybody in."""

    async def enter(self, target: str) -> Ticket | Held:
        """See `Gate`."""
        return OpenTicket()

    def wait_seconds(self, target: str) -> float:
        """See `Gate`."""
        return 0.0

    def hedge_after(self, route: Route, target: str) -> float | None:
        """See `Gate`."""
        return None

    def may_hedge(self, route: Route) -> bool:
        """See `Gate`."""
        return False

    def hedged(self, route: Route, won: bool) -> None:
        """See `Gate`."""


class NoQuota:
    """No limits."""

    async def reserve(self, order: Order) -> Hold:
        """See `Quota`."""
        return Hold(order.hold, order.payer, order.max_output_tokens)

    async def settle(self, payer: Payer, hold: str, used: Used, seconds: float = 5.0) -> None:
        """See `Quota`."""

    def let_go(self, hold: str) -> None:
        """See `Quota`."""
