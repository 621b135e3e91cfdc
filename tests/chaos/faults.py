"""Which faults happen when: a pure function of the seed."""

from __future__ import annotations

import random
from dataclasses import dataclass
from typing import Final, Literal

Kind = Literal["kill", "stop", "drain", "cut", "half_close", "delay", "black_hole", "freeze", "restart", "failover"]
Store = Literal["single", "cluster"]

WEIGHTS: Final[dict[Kind, int]] = {
    "kill": 5,
    "stop": 4,
    "drain": 3,
    "cut": 8,
    "half_close": 4,
    "delay": 4,
    "black_hole": 2,
    "freeze": 3,
    "restart": 2,
    "failover": 2,
}
NOT_ON: Final[dict[Store, frozenset[Kind]]] = {
    "single": frozenset({"failover"}),
    "cluster": frozenset({"restart", "freeze"}),
}
FIRST_AT: Final = 2.0
GAP_SECONDS: Final = (0.4, 3.0)


@dataclass(frozen=True, slots=True)
class Fault:
    """One thing that goes wrong."""

    at: float
    """Seconds after the start."""
    kind: Kind
    which: int
    """Which of those that it could hit, modulo their number."""
    seconds: float
    """How long it lasts, where it lasts."""
    share: float
    """Of the connections, which part it hits."""

    def __str__(self) -> str:
        return f"{self.at:7.1f} s  {self.kind:10} #{self.which}  {self.seconds:4.1f} s"


def schedule(seed: int, seconds: float, store: Store) -> list[Fault]:
    """The faults of a run, in order; every kind that the store allows comes once before any comes twice."""
    chance = random.Random(seed)
    kinds = [kind for kind in WEIGHTS if kind not in NOT_ON[store]]
    weights = [WEIGHTS[kind] for kind in kinds]
    first = list(kinds)
    chance.shuffle(first)
    faults = []
    at = FIRST_AT
    while at < seconds:
        kind = first.pop() if first else chance.choices(kinds, weights)[0]
        faults.append(Fault(at, kind, chance.randrange(1000), _lasting(kind, chance), chance.uniform(0.1, 0.5)))
        at += chance.uniform(*GAP_SECONDS)
    return faults


def _lasting(kind: Kind, chance: random.Random) -> float:
    ranges: dict[Kind, tuple[float, float]] = {
        "stop": (1.0, 10.0),
        "delay": (0.5, 3.0),
        "black_hole": (0.5, 3.0),
        "freeze": (1.0, 5.0),
        "restart": (0.1, 2.0),
        "kill": (0.0, 1.0),
    }
    return chance.uniform(*ranges[kind]) if kind in ranges else 0.0
