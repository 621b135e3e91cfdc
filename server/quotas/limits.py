"""Which limits hold for whom, and how large a reservation is. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Final, Literal

from protocol.errors import ProtocolError
from server.config import RouteLimitSettings, Settings, TenantSettings, TierSettings
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


ALL_FOUR: Final = "1234"
"""The limits as the scripts number them: tokens, requests, messages at once, money."""
NAMES: Final = ("tokens_per_minute", "requests_per_minute", "concurrent_messages", "monthly_usd")
PREFIXES: Final = ("", "tenant_")


@dataclass(frozen=True, slots=True)
class RouteLimits:
    """The limits that messages of one route have of their own."""

    owners: tuple[Limits, ...]
    """The user's and the tenant's."""
    max_output_tokens: int
    """Instead of the general number."""


@dataclass(frozen=True, slots=True)
class Meter:
    """One set of buckets in Redis: a user's or a tenant's, general or of one route."""

    whose: int
    """0: the user's, 1: the tenant's."""
    limits: Limits
    route: str = ""
    """Empty: of all routes that have no limit of their own."""

    def name(self, which: int) -> str:
        """What clients are told of its limit number `which`, from 0."""
        name = PREFIXES[self.whose] + NAMES[which]
        return f"{name}:{self.route}" if self.route else name


@dataclass(frozen=True, slots=True)
class Counting:
    """How a message of one route is counted."""

    charged: tuple[tuple[Meter, str], ...]
    """The meters, and the numbers of those of their limits that it is counted in."""
    args: tuple[int | str, ...]
    """For the scripts, of all meters of the policy: four limits, the part that it plays, what is counted in it."""
    unslotted: str
    """For the renewal, of each charged meter: `1` where it takes none of the messages at once, else `0`."""
    capacity: int | None
    """The most tokens that one reservation can ever be; None: any number."""
    counts_money: bool
    """Whether any of them has a monthly limit."""
    max_output_tokens: int


@dataclass(frozen=True)
class Policy:
    """All that holds for one payer.

    What a route limits by itself is counted in buckets of its own, and no more in the general ones: a route may be
    allowed more than the rest, or less. Money is counted in both, since what is spent is spent.
    """

    owners: tuple[Limits, ...]
    """The user's, and the tenant's if it has any; of all routes together but those with limits of their own."""
    max_output_tokens: int
    outage: Outage
    routes: Mapping[str, RouteLimits] = field(default_factory=dict)
    _counting: dict[str, Counting] = field(default_factory=dict, compare=False, repr=False)

    @cached_property
    def meters(self) -> tuple[Meter, ...]:
        """Every set of buckets: the general ones, and the routes'. All of them are told to clients, in this order."""
        general = [Meter(whose, limits) for whose, limits in enumerate(self.owners)]
        special = [
            Meter(whose, limits, route)
            for route, special in sorted(self.routes.items())
            for whose, limits in enumerate(special.owners)
        ]
        return tuple(meter for meter in (*general, *special) if meter.limits.any)

    def counting(self, route: str) -> Counting:
        """How a message of `route` is counted; of a route that no limit names, as of any other."""
        route = route if route in self.routes else ""
        if route not in self._counting:
            self._counting[route] = self._count(route)
        return self._counting[route]

    def _count(self, route: str) -> Counting:
        parts = [(meter, self._numbers(meter, route)) for meter in self.meters]
        charged = tuple((meter, numbers) for meter, numbers in parts if numbers)
        sizes = [meter.limits.tokens_per_minute for meter, numbers in charged if "1" in numbers]
        rooms = [size for size in sizes if size is not None]
        args: list[int | str] = []
        for meter, numbers in parts:
            part = 1 + meter.whose + 2 * bool(meter.route) if numbers else ""
            args += [*meter.limits.args(), part, numbers]
        return Counting(
            charged,
            tuple(args),
            "".join("0" if "3" in numbers else "1" for _, numbers in charged),
            min(rooms) if rooms else None,
            any(meter.limits.monthly_nano_dollars is not None for meter, _ in charged),
            self.routes[route].max_output_tokens if route else self.max_output_tokens,
        )

    def _numbers(self, meter: Meter, route: str) -> str:
        """The limits of an meter that a message of `route` is counted in."""
        if meter.route:
            return ALL_FOUR if meter.route == route else ""
        if not route:
            return ALL_FOUR
        own = self.routes[route].owners[meter.whose].args()
        return "".join(number for number, limit in zip(ALL_FOUR, own, strict=True) if limit == "" or number == "4")

    def size(self, order: Order, route_default: int | None) -> tuple[int, int]:
        """Tokens to reserve, and the output cap among them. Raises `request_too_large_for_tier`.

        A wish is at most the tier's `max_output_tokens`. Without one, the route's or the tier's number holds, as far
        as the bucket has room for it. A bound that is too careful refuses nobody for good: what fits by the likely
        count is reserved with the whole bucket at most.
        """
        counting = self.counting(order.payer.route)
        wished, most, room = order.max_output_tokens, counting.max_output_tokens, counting.capacity
        cap = min(wished if wished is not None else route_default or most, most)
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
        user, whole = self._settings.tiers[tier], self._settings.tenants.get(tenant, _NO_TENANT)
        routes = {
            name: RouteLimits(
                tuple(_limits(section.routes.get(name, _NO_ROUTE)) for section in (user, whole)),
                _most(user, whole, name),
            )
            for name in {*user.routes, *whole.routes}
        }
        return Policy(
            (_limits(user), _limits(whole)) if _limits(whole).any or routes else (_limits(user),),
            min(user.max_output_tokens, whole.max_output_tokens or user.max_output_tokens),
            whole.on_redis_outage or user.on_redis_outage,
            routes,
        )


_NO_TENANT: Final = TenantSettings()
_NO_ROUTE: Final = RouteLimitSettings()


def _most(user: TierSettings, whole: TenantSettings, route: str) -> int:
    """The most output tokens of a message of `route`: the route's number stands for the general one of its table."""
    mine = user.routes.get(route, _NO_ROUTE).max_output_tokens or user.max_output_tokens
    theirs = whole.routes.get(route, _NO_ROUTE).max_output_tokens or whole.max_output_tokens
    return min(mine, theirs or mine)


def _limits(section: TierSettings | TenantSettings | RouteLimitSettings) -> Limits:
    usd = section.monthly_usd
    return Limits(
        section.tokens_per_minute,
        section.requests_per_minute,
        section.concurrent_messages,
        None if usd is None else int(usd * NANO),
    )


SHOWN: Final = 6
"""Numbers an meter in a script's reply."""


def shown(meters: Sequence[Meter], numbers: Sequence[int], now_us: int, month_end_us: int) -> list[dict[str, Any]]:
    """The `limits` of a `quota` frame: the user's first, those of single routes last. `numbers` as the scripts reply
    them."""
    found: list[dict[str, Any]] = []
    for index, meter in enumerate(meters):
        tokens, tokens_us, requests, requests_us, holds, nano = numbers[SHOWN * index : SHOWN * (index + 1)]
        limits = meter.limits
        if limits.tokens_per_minute is not None:
            found.append(_row(meter, 0, limits.tokens_per_minute, tokens, tokens_us))
        if limits.requests_per_minute is not None:
            found.append(_row(meter, 1, limits.requests_per_minute, requests, requests_us))
        if limits.concurrent_messages is not None:
            found.append(_row(meter, 2, limits.concurrent_messages, limits.concurrent_messages - holds, 0))
        if limits.monthly_nano_dollars is not None:
            left = limits.monthly_nano_dollars - nano
            row = _row(meter, 3, limits.monthly_nano_dollars, left, month_end_us - now_us)
            found.append({**row, "limit": row["limit"] / NANO, "remaining": row["remaining"] / NANO})
    return found


def _row(meter: Meter, which: int, limit: int, remaining: int, reset_us: int) -> dict[str, Any]:
    row = {
        "name": meter.name(which),
        "limit": limit,
        "remaining": max(0, remaining),
        "reset_seconds": -(-reset_us // 1000) / 1000,
    }
    return row | {"route": meter.route} if meter.route else row


def for_route(limits: Sequence[Mapping[str, Any]], route: str) -> list[Mapping[str, Any]]:
    """Those rows of a `quota` frame that a message of `route` is counted in."""
    own = {row["name"].removesuffix(f":{route}") for row in limits if row.get("route") == route}
    general = [
        row for row in limits if "route" not in row and (row["name"] not in own or row["name"].endswith(NAMES[3]))
    ]
    return [*general, *(row for row in limits if row.get("route") == route)]


def refused(meters: Sequence[Meter], limit: str) -> str:
    """The name of the limit that a script's `OWNER:WHICH` means."""
    meter, which = map(int, limit.split(":"))
    return meters[meter - 1].name(which - 1)
