"""What happens in one simulated world: drawn from the seed, as data that can be shrunk."""

from __future__ import annotations

import random
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Final

from server.messages.request import most_input
from tests.simulation.upstream import Speech, request

if TYPE_CHECKING:
    from tests.simulation.outages import SimBreakers

TARGETS: Final = ("near", "far")
FAULTS_END_SECONDS: Final = 45.0
LIMITED: Final = 1 / 3
"""Share of the worlds that have quotas; the others are as they would be without."""
FORGOTTEN: Final = 1 / 16
"""Share of the worlds in which Redis loses what clients have seen."""
OUTPUT_TOKENS: Final = 40
"""Cap of the output, and with the bound of the input the size of a reservation."""
RESERVATION: Final = most_input(request("m0")) + OUTPUT_TOKENS
Four = tuple[int | None, int | None, int | None, int | None]
"""Tokens a minute, requests a minute, messages at once, nano-dollars a month."""


@dataclass(frozen=True, slots=True)
class SimLimits:
    """The quotas of a world."""

    owners: tuple[Four, ...]
    """Every user's, and the tenant's if it has any."""
    outage: str
    lease_seconds: float


@dataclass(frozen=True, slots=True)
class Step:
    """Something that happens at a time (virtual seconds)."""

    at: float
    kind: str
    args: tuple[Any, ...] = ()

    def __str__(self) -> str:
        return f"{self.at:8.3f} {self.kind} {' '.join(map(str, self.args))}"


@dataclass(frozen=True, slots=True)
class Schedule:
    """One world."""

    seed: int
    nodes: int
    clients: int
    users: tuple[int, ...]
    """Client → number of its user."""
    speeches: tuple[Speech, ...]
    """Message → how it is answered."""
    owners: tuple[int, ...]
    """Message → number of its user."""
    usual_delay: float
    spike: float
    spikes: float
    takeover_seconds: float
    on_midstream: str
    tail_bytes: int
    event_bytes: int
    retention_seconds: float
    lost_frames: float
    """Share of journaled frames that vanish on the way to a client, as no TCP would: the client has to notice."""
    steps: tuple[Step, ...]
    limits: SimLimits | None = None
    breakers: SimBreakers | None = None

    def without(self, index: int) -> Schedule:
        """The same world where step `index` does not happen."""
        return replace(self, steps=self.steps[:index] + self.steps[index + 1 :])

    def __str__(self) -> str:
        head = (
            f"seed {self.seed}: {self.nodes} nodes, {self.clients} clients, {len(self.speeches)} messages,"
            f" takeover after {self.takeover_seconds} s, {self.on_midstream}"
        )
        if self.limits is not None:
            head += f", {self.limits}"
        if self.breakers is not None:
            head += f", {self.breakers}"
        return "\n".join([head, *map(str, self.steps)])


def draw(seed: int) -> Schedule:
    """The world of a seed. Most seeds hold few faults, so that each is seen alone, too."""
    chance = random.Random(f"schedule {seed}")
    nodes = chance.choice((1, 2, 2, 2, 3))
    clients = chance.choice((1, 2, 2, 3))
    users = tuple(chance.choice((0, 0, 0, 1)) for _ in range(clients))
    messages = chance.choice((1, 1, 2, 2, 3))
    takeover = chance.choice((1.0, 1.0, 2.0, 3.0))
    flavour = chance.random()
    schedule = Schedule(
        seed=seed,
        nodes=nodes,
        clients=clients,
        users=users,
        speeches=tuple(_speech(chance) for _ in range(messages)),
        owners=tuple(users[chance.randrange(clients)] for _ in range(messages)),
        usual_delay=chance.choice((0.0003, 0.001, 0.004)),
        spike=chance.choice((0.0, 0.02, 0.09)),
        spikes=chance.choice((0.02, 0.1)),
        takeover_seconds=takeover,
        on_midstream=chance.choice(("restart", "restart", "restart", "continue", "fail")),
        tail_bytes=chance.choice((60, 200, 262_144)),
        event_bytes=chance.choice((16, 64, 16_384)),
        retention_seconds=chance.choice((3.0, 3600.0)),
        lost_frames=chance.choice((0.0, 0.0, 0.0, 0.05)),
        steps=(),
    )
    steps = _wishes(chance, schedule)
    if flavour > 0.12:
        steps += _faults(chance, schedule)
    schedule, forgotten = _forgotten(seed, schedule)
    limits, more = _limits(seed)
    steps = sorted(steps + forgotten + more, key=lambda step: step.at)
    return replace(schedule, steps=tuple(steps), limits=limits)


def _forgotten(seed: int, world: Schedule) -> tuple[Schedule, list[Step]]:
    """In some worlds Redis loses what clients have seen while they are cut off: they come back ahead of the journal.

    Where the answer goes on instead of starting over, what they hold must still not be mixed with what follows. Drawn
    apart, so that the other worlds stay what they were.
    """
    chance = random.Random(f"forgotten {seed}")
    if chance.random() >= FORGOTTEN:
        return world, []
    at, down = chance.uniform(0.4, 2.5), chance.choice((0.02, 0.2, 1.5))
    steps = [Step(at, "crash", (down, chance.choice((2, 4, 8, 20))))]
    steps += [
        Step(at + chance.uniform(-0.05, down), "cut_client", (client, chance.choice((0.0, 0.3, 1.0, 3.0))))
        for client in range(world.clients)
        if chance.random() < 0.7
    ]
    speeches = tuple(Speech(16, chance.choice((0.1, 0.25)), 1) for _ in world.speeches)
    return replace(world, on_midstream=chance.choice(("continue", world.on_midstream)), speeches=speeches), steps


def _limits(seed: int) -> tuple[SimLimits | None, list[Step]]:
    """Quotas, and what befalls Redis' clock. Drawn apart, so that worlds without them stay what they were.

    Waits are short, for a refused client asks until it is let in; only money is never refused: months are long.
    """
    chance = random.Random(f"limits {seed}")
    if chance.random() >= LIMITED:
        return None, []
    sizes = (None, round(RESERVATION * 2.2), RESERVATION * 4, RESERVATION * 10)
    user: Four = (
        chance.choice(sizes[1:]),
        chance.choice((None, None, 4, 1000)),
        chance.choice((None, 1, 2, 100)),
        chance.choice((None, 10**15)),
    )
    tenant: Four = (chance.choice(sizes), None, chance.choice((None, 2)), chance.choice((None, 10**15)))
    owners = (user,) if chance.random() < 0.5 or tenant == (None,) * 4 else (user, tenant)
    steps = []
    if chance.random() < 0.3:
        steps.append(Step(chance.uniform(0.05, 2.5), "clock", (chance.choice((-20.0, -3.0, -0.5)),)))
    outage = chance.choice(("refuse", "refuse", "local"))
    return SimLimits(owners, outage, chance.choice((2.0, 5.0, 30.0))), steps


def _speech(chance: random.Random) -> Speech:
    pieces = chance.choice((1, 3, 6, 10, 16))
    fails: list[int] = []
    while chance.random() < 0.2 and len(fails) < 3:
        fails.append(chance.randrange(pieces))
    return Speech(
        pieces=pieces,
        gap_seconds=chance.choice((0.0, 0.002, 0.02, 0.1, 0.25)),
        burst=chance.choice((1, 1, 2, 5)),
        fails_at=tuple(fails),
        silent=chance.choice((0.0, 0.0, 0.0, 1.5)),
    )


def _wishes(chance: random.Random, world: Schedule) -> list[Step]:
    """What the clients do."""
    steps = []
    for message, owner in enumerate(world.owners):
        mine = [client for client in range(world.clients) if world.users[client] == owner]
        start = chance.uniform(0.05, 0.6)
        askers = [chance.choice(mine)] if chance.random() < 0.5 else mine
        steps += [
            Step(start + chance.choice((0.0, 0.0, 0.001, 0.05, 0.8)), "ask", (client, message)) for client in askers
        ]
        steps += [
            Step(start + chance.choice((0.0, 0.1, 0.5, 1.5)), "follow", (client, message))
            for client in mine
            if client not in askers and chance.random() < 0.7
        ]
        if chance.random() < 0.2:
            when = start + chance.choice((0.0, 0.01, 0.1, 0.6, 1.5))
            steps.append(Step(when, "cancel", (chance.choice(mine), message)))
        if chance.random() < 0.1:
            client = chance.choice(mine)
            steps.append(Step(start + chance.uniform(0.0, 0.6), "detach", (client, message)))
            steps.append(Step(start + chance.uniform(0.6, 2.0), "follow", (client, message)))
        if chance.random() < 0.12:
            steps.append(Step(start + chance.uniform(0.2, 1.5), "probe", (chance.choice(mine), message)))
    return steps


def _faults(chance: random.Random, world: Schedule) -> list[Step]:
    count = chance.choice((1, 1, 2, 2, 3, 4))
    kinds = chance.choices(
        ("cut_client", "stall_client", "cut_link", "kill", "pause", "freeze", "crash", "leave"),
        (4, 2, 3, 4, 3, 1, 2, 1),
        k=count,
    )
    return [_fault(chance, world, kind) for kind in kinds]


def _fault(chance: random.Random, world: Schedule, kind: str) -> Step:
    at = chance.uniform(0.05, 2.5)
    node = chance.randrange(world.nodes)
    client = chance.randrange(world.clients)
    takeover = world.takeover_seconds
    if kind == "cut_client":
        return Step(at, kind, (client, chance.choice((0.0, 0.0, 0.01, 3.0))))
    if kind == "stall_client":
        return Step(at, kind, (client, chance.choice((0.2, 1.0, 2.5))))
    if kind == "cut_link":
        return Step(at, kind, (node, chance.random() < 0.5, chance.randrange(3)))
    if kind == "kill":
        return Step(at, kind, (node, chance.choice((0.05, 0.5, 2.0, 6.0))))
    if kind == "pause":
        lasts = chance.choice((0.05, 0.3, takeover - 0.1, takeover + 0.4, takeover + 1.5))
        if chance.random() < 0.03:
            lasts = 30.0
        return Step(at, kind, (node, round(lasts, 3), chance.randrange(3)))
    if kind == "freeze":
        return Step(at, kind, (chance.choice((0.08, 0.3, 1.0, 3.0, 8.0)) if chance.random() < 0.97 else 30.0,))
    if kind == "crash":
        return Step(at, kind, (chance.choice((0.02, 0.2, 1.5)), chance.choice((0, 1, 2, 4, 8, 20))))
    return Step(at, "leave", (node, chance.choice((0.0, 0.5))))
