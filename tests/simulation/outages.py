"""Targets that fall out for a while, and enough messages to notice: drawn from the seed, apart from all else."""

from __future__ import annotations

import random
from dataclasses import dataclass, replace
from typing import Final

from server.config.sections import BreakerSettings
from server.upstreams.base import Fault
from tests.simulation.schedule import TARGETS, Schedule, Speech, Step, draw

SHARE: Final = 1 / 8
"""Of the worlds without quotas that have breakers."""
MOST_DELAY_SECONDS: Final = 0.02
"""On the network of these worlds: two of 90 ms make an answer of Redis so late that a node goes by its own copy."""
SILENCE_SECONDS: Final = 2.5
"""How long a target that hangs is waited for; longer than any other silence in these worlds."""
MARGIN_SECONDS: Final = 1.5
"""By so much a probe's lease outlives that."""
LAST_SECONDS: Final = 9.0
"""When the last message is asked for."""
OUTAGES: Final = (
    (Fault.SERVER_ERROR, 0.0),
    (Fault.REFUSED, 0.05),
    (Fault.FIRST_TOKEN_TIMEOUT, SILENCE_SECONDS),
    (Fault.FIRST_TOKEN_TIMEOUT, SILENCE_SECONDS),
    (Fault.RATE_LIMITED, 0.01),
    (Fault.UNAUTHORIZED, 0.0),
)
"""(fault, seconds from the call to it)."""


@dataclass(frozen=True, slots=True)
class SimBreakers:
    """The breakers of a world."""

    minimum_calls: int
    probes: int
    open_seconds: float
    ramp_seconds: float

    @property
    def settings(self) -> BreakerSettings:
        """As the configuration has them."""
        return BreakerSettings(
            minimum_calls=self.minimum_calls,
            probes=self.probes,
            open_seconds=self.open_seconds,
            open_seconds_max=4 * self.open_seconds,
            ramp_seconds=self.ramp_seconds,
        )


def world_of(seed: int) -> Schedule:
    """The world that is played for a seed."""
    return with_breakers(draw(seed))


def with_breakers(world: Schedule) -> Schedule:
    """The same world with breakers and outages, if the seed has them; what else happens there happens still."""
    chance = random.Random(f"outages {world.seed}")
    if world.limits is not None or chance.random() >= SHARE:
        return world
    breakers = SimBreakers(
        minimum_calls=chance.choice((2, 2, 3)),
        probes=chance.choice((1, 1, 2)),
        open_seconds=chance.choice((1.0, 1.5, 3.0)),
        ramp_seconds=chance.choice((0.5, 2.0)),
    )
    speeches, owners, steps = list(world.speeches), list(world.owners), list(world.steps)
    for _ in range(chance.randrange(6, 13)):
        message, client = len(speeches), chance.randrange(world.clients)
        speeches.append(Speech(chance.choice((1, 3, 6)), chance.choice((0.02, 0.1, 0.25)), 1))
        owners.append(world.users[client])
        steps.append(Step(chance.uniform(0.1, LAST_SECONDS), "ask", (client, message)))
    for target in TARGETS if chance.random() < 0.3 else (TARGETS[0],):
        fault, after = chance.choice(OUTAGES)
        lasts = chance.choice((2.0, 5.0, 8.0))
        steps.append(Step(chance.uniform(0.05, 2.0), "outage", (target, lasts, fault, after)))
    steps.sort(key=lambda step: step.at)
    return replace(
        world,
        spike=min(world.spike, MOST_DELAY_SECONDS),
        speeches=tuple(speeches),
        owners=tuple(owners),
        steps=tuple(steps),
        breakers=breakers,
    )
