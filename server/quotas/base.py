"""What messages ask of quotas: the interface, and what goes over it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Final, Protocol

from protocol.errors import ProtocolError

SETTLE_SECONDS: Final = 5.0
"""How long a settlement that nobody waits for gives Redis before it is tried again."""


@dataclass(frozen=True, slots=True)
class Payer:
    """Whose limits count."""

    tenant: str
    user: str
    """The user's tag (`server.store.keys.user_tag`)."""
    tier: str
    route: str = ""
    """The route that is asked, which may have limits of its own; empty: of none."""


@dataclass(frozen=True, slots=True)
class Order:
    """What one run of one message may use at most."""

    hold: str
    """See `server.store.keys.hold_id`: the same order again finds the same hold."""
    payer: Payer
    input_tokens: int
    """Never less than a provider will count."""
    likely_input: int = 0
    """About what it will count; refusals for good are decided by this."""
    max_output_tokens: int | None = None
    """What the request names; None: what tier and route allow."""
    price: Callable[[int, int], int | None] = lambda _input, _output: None
    """Nano-dollars of so many input and output tokens at the dearest target that may be called."""
    forced: bool = False
    """Something was spent already: it is counted, whether there is room or not."""


@dataclass(frozen=True, slots=True)
class Hold:
    """What is reserved."""

    id: str
    payer: Payer
    max_output_tokens: int | None
    """The cap that goes upstream."""
    tokens: int = 0
    nano_dollars: int = 0
    degraded: bool = False
    """Admitted by a local estimate, without Redis."""


class Unsure(ProtocolError):
    """A refusal that Redis did not give: what was to be reserved may be reserved all the same."""


@dataclass(frozen=True, slots=True)
class Used:
    """What is settled: tokens and nano-dollars that the user pays. Below 0: an earlier run's are given back."""

    tokens: int = 0
    nano_dollars: int = 0
    dispatched: bool = True
    """False: no attempt was started, so the request does not count either."""
    entry: bytes = b""
    """The usage records, packed (`server.ledger.record`): written into the ledger's stream with the settlement."""
    attempts: int = 0
    """The highest number of an attempt in `entry`."""


class Quota(Protocol):
    """The limits of users and tenants."""

    async def reserve(self, order: Order) -> Hold:
        """Reserve in all buckets or none; idempotent by hold id.

        Raises `ProtocolError`: `request_too_large_for_tier`, `quota_exceeded`, `store_unavailable`. If it is `Unsure`,
        `settle` the hold unless another owner of the message uses it.
        """
        ...

    async def settle(self, payer: Payer, hold: str, used: Used, seconds: float = SETTLE_SECONDS) -> None:
        """Replace a hold by what was used, exactly once; again does nothing.

        Raises `StoreError`, or `TimeoutError` after `seconds`: repeat it.
        """
        ...

    def let_go(self, hold: str) -> None:
        """Another owner goes on with the message: renew no more leases for it."""
        ...
