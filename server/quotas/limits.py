"""Which limits hold for whom, and how large a reservation is. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, Literal

from protocol.errors import ProtocolError
from server.config import Settings
from server.ledger.cost import NANO
from server.quotas.base import Order, Payer

Outage = Literal["refuse", "local"]
MICRO: Final = 1_000_000


@dataclass(frozen=True, slots=True)
class Limits:
    """The limits of one owner, a user or a tenant as a whole; None: no limit."""

    tokens_per_minute: int | None = None
    requests_per_minute: int | None = None
    concurrent_messages: int | None = None
    monthly_nano_dollars: int | None = None

    def args(self) -> tuple[int | str, ...]:
        """As the scripts take them."""
        all_four = (
            self.tokens_per_minute,
            self.requests_per_minute,
            self.concurrent_messages,
            self.monthly_nano_dollars,
        )
        return tuple("" if limit is None else limit for limit in all_four)

    @property
    def any(self) -> bool:
        """Whether there is any."""
        return self != Limits()


@dataclass(frozen=True, slots=True)
class Policy:
    """All that holds for one payer."""

    owners: tuple[Limits, ...]
    """The user's, and the tenant's if it has any."""
    max_output_tokens: int
    outage: Outage

    @property
    def counts_money(self) -> bool:
        """Whether any owner has a monthly limit."""
        return any(limits.monthly_nano_dollars is not None for limits in self.owners)

    @property
    def capacity(self) -> int | None:
        """The most tokens that one reservation can ever be; None: any number."""
        sizes = [limits.tokens_per_minute for limits in self.owners if limits.tokens_per_minute is not None]
        return min(sizes) if sizes else None

    def size(self, order: Order, route_default: int | None) -> tuple[int, int]:
        """Tokens to reserve, and the output cap among them. Raises `request_too_large_for_tier`.

        A wish is at most the tier's `max_output_tokens`. Without one, the route's or the tier's number holds, as far
        as the bucket has room for it. A bound that is too careful refuses nobody for good: what fits by the likely
        count is reserved with the whole bucket at most.
        """
        wished, most = order.max_output_tokens, self.max_output_tokens
        cap = min(wished if wished is not None else route_default or most, most)
        room = self.capacity
        if room is None:
            return order.input_tokens + cap, cap
        likely = min(order.likely_input, order.input_tokens)
        if wished is None:
            cap = min(cap, max(room - likely, 1))
        if likely + cap > room:
            raise ProtocolError(
                "request_too_large_for_tier",
                f"this needs about {likely + cap} tokens, the limit is {room} a minute",
                details={"input_tokens": likely, "max_output_tokens": cap, "limit": room},
            )
        return min(order.input_tokens + cap, room), cap


class Policies:
    """Every payer's policy, by the configuration."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._known: dict[tuple[str, str], Policy] = {}
        self.route_output: Mapping[str, int | None] = {
            name: route.max_output_tokens for name, route in settings.routes.items()
        }

    def of(self, payer: Payer) -> Policy:
        """What holds for `payer`. A tier that this node's configuration lost is the default one."""
        tier = payer.tier if payer.tier in self._settings.tiers else self._settings.default_tier
        tenant = payer.tenant if payer.tenant in self._settings.tenants else ""
        key = (tier, tenant)
        if key not in self._known:
            self._known[key] = self._policy(tier, tenant)
        return self._known[key]

    def _policy(self, tier: str, tenant: str) -> Policy:
        user = self._settings.tiers[tier]
        owners = [_limits(user)]
        most, outage = user.max_output_tokens, user.on_redis_outage
        if tenant:
            whole = self._settings.tenants[tenant]
            if _limits(whole).any:
                owners.append(_limits(whole))
            most = min(most, whole.max_output_tokens or most)
            outage = whole.on_redis_outage or outage
        return Policy(tuple(owners), most, outage)


def _limits(section: Any) -> Limits:
    usd = section.monthly_usd
    return Limits(
        section.tokens_per_minute,
        section.requests_per_minute,
        section.concurrent_messages,
        None if usd is None else int(usd * NANO),
    )


NAMES: Final = ("tokens_per_minute", "requests_per_minute", "concurrent_messages", "monthly_usd")
PREFIXES: Final = ("", "tenant_")
SHOWN: Final = 6
"""Numbers an owner in a script's reply."""


def shown(owners: Sequence[Limits], numbers: Sequence[int], now_us: int, month_end_us: int) -> list[dict[str, Any]]:
    """The `limits` of a `quota` frame: the user's first. `numbers` as the scripts reply them."""
    found: list[dict[str, Any]] = []
    for index, limits in enumerate(owners):
        tokens, tokens_us, requests, requests_us, holds, nano = numbers[SHOWN * index : SHOWN * (index + 1)]
        prefix = PREFIXES[index]
        if limits.tokens_per_minute is not None:
            found.append(_row(prefix + NAMES[0], limits.tokens_per_minute, tokens, tokens_us))
        if limits.requests_per_minute is not None:
            found.append(_row(prefix + NAMES[1], limits.requests_per_minute, requests, requests_us))
        if limits.concurrent_messages is not None:
            found.append(_row(prefix + NAMES[2], limits.concurrent_messages, limits.concurrent_messages - holds, 0))
        if limits.monthly_nano_dollars is not None:
            left = limits.monthly_nano_dollars - nano
            row = _row(prefix + NAMES[3], limits.monthly_nano_dollars, left, month_end_us - now_us)
            found.append({**row, "limit": row["limit"] / NANO, "remaining": row["remaining"] / NANO})
    return found


def _row(name: str, limit: int, remaining: int, reset_us: int) -> dict[str, Any]:
    return {
        "name": name,
        "limit": limit,
        "remaining": max(0, remaining),
        "reset_seconds": -(-reset_us // 1000) / 1000,
    }


def refused(limit: str) -> str:
    """The name of the limit that a script's `OWNER:WHICH` means."""
    owner, which = limit.split(":")
    return PREFIXES[int(owner) - 1] + NAMES[int(which) - 1]
