"""What is left of a user's limits, as nodes tell each other: who published it, when, and the scripts' numbers. Pure.

The scripts publish it themselves (`publish` in lua/common_v1.lua), in the call that changed something: no round trip
more, on any node.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import msgpack

from server.quotas.base import Payer


@dataclass(frozen=True, slots=True)
class Figures:
    """One publication."""

    node: str
    payer: Payer
    at_us: int
    """By the quota tag's clock, which never runs backward."""
    numbers: Sequence[int]
    """See `server.quotas.limits.shown`."""


def sender(node: str, payer: Payer) -> bytes:
    """What a script is handed to publish along with the numbers."""
    packed: bytes = msgpack.packb((node, payer.tenant, payer.user, payer.tier))
    return packed


def read(data: bytes) -> Figures:
    """The publication in `data`."""
    figures, _, who = data.partition(b"\n")
    at, *numbers = map(int, figures.split())
    node, tenant, user, tier = msgpack.unpackb(who)
    return Figures(node, Payer(tenant, user, tier), at, numbers)
