"""What must hold of breakers, judged by the upstream's log and by what Redis holds: who is called, and who is not.

- A target that is left alone is called by nobody, once all nodes can have heard of it.
- While it is tried, no more calls than `probes` run there, on all nodes together, those among them that hang.
- A target that fails `minimum_calls` calls of one node in a row, or refuses our credential, does not stay in use.

Where Redis or a node is in trouble nodes go on by what they know, so nothing is judged until that is over.
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import msgpack

from server.routing.shared_breaker import ALL
from server.store.keys import breaker
from server.upstreams.base import Fault
from tests.simulation.outages import SimBreakers
from tests.simulation.schedule import TARGETS
from tests.simulation.upstream import Called

if TYPE_CHECKING:
    from tests.simulation.check import Check

NAMES: Final = {script.sha: script.name.partition("_v")[0] for script in ALL}
GRACE_SECONDS: Final = 0.7
"""Until every node has heard of a change, and calls that were allocated before have begun."""
TROUBLE_SECONDS: Final = 4.0
"""So long before a call nothing may have been in trouble: lost connections and copies are mended in that time."""
LEFT_ALONE: Final = ("open", "throttled")


@dataclass(frozen=True, slots=True)
class Standing:
    """How Redis says that a target stands."""

    version: int
    state: str
    since: float
    until: float


NEW: Final = Standing(0, "closed", 0.0, 0.0)


class Rotation:
    """See the module."""

    def __init__(self, check: Check, breakers: SimBreakers) -> None:
        self.check = check
        self.breakers = breakers
        self.stood: dict[str, Standing] = dict.fromkeys(TARGETS, NEW)
        self.moved: dict[str, float] = dict.fromkeys(TARGETS, 0.0)
        """When Redis last had another state of it."""
        self.shut: dict[str, float] = dict.fromkeys(TARGETS, 0.0)
        """When it was last taken out of use."""
        self.running: dict[str, list[Called]] = {target: [] for target in TARGETS}
        self.in_a_row: dict[tuple[str, str], int] = defaultdict(int)
        """(node, target) → so many of its newest calls failed."""

    # --- what Redis runs ---

    def ran(self, name: str, reply: Any) -> None:
        """A script of the breakers has run."""
        if name == "swap_condition" and reply[0] == 1:
            self.look()

    def look(self) -> None:
        """Something may have changed, for better or because Redis lost it."""
        now = self.check.world.loop.now
        for target in TARGETS:
            before, stands = self.stood[target], self._standing(target)
            self.stood[target] = stands
            if (before.state, before.since) == (stands.state, stands.since):
                continue
            self.moved[target] = now
            if stands.state in LEFT_ALONE and before.state not in ("open", "half_open"):
                self.shut[target] = now
            for node, other in list(self.in_a_row):
                if other == target:
                    del self.in_a_row[node, target]

    def _standing(self, target: str) -> Standing:
        have = self.check._record(breaker(target))
        if not have:
            return NEW
        state, since, until, *_ = msgpack.unpackb(have[b"c"])
        return Standing(int(have[b"v"]), state, since, until)

    def _state(self, target: str) -> str:
        """With what time alone has ended."""
        stands = self.stood[target]
        over = stands.until <= self.check.world.server.space.now()
        return "closed" if stands.state in ("throttled", "ramping") and over else stands.state

    # --- what the upstream sees ---

    def called(self, called: Called) -> None:
        """A call begins."""
        target, now = called.target, self.check.world.loop.now
        running = self.running[target] = [one for one in self.running[target] if self._runs(one)]
        running.append(called)
        state = self._state(target)
        if state in LEFT_ALONE and now > self.moved[target] + GRACE_SECONDS and self._calm(now):
            since = now - self.moved[target]
            self.check.fail("G7", f"{called.node} calls {target}, which is {state} for {since:.3f} s")
        if state != "half_open":
            return
        trials = [one for one in running if one.at > self.shut[target] + GRACE_SECONDS]
        if len(trials) > self.breakers.probes and self._calm(min(one.at for one in trials)):
            nodes = ", ".join(f"{one.message_id} of {one.node}" for one in trials)
            self.check.fail("G7", f"{len(trials)} calls try {target} at once, not {self.breakers.probes}: {nodes}")

    def ended(self, called: Called, fault: Fault | None) -> None:
        """A call came to its end; `fault`: it failed."""
        target, world = called.target, self.check.world
        key = called.node, target
        if fault is None:
            self.in_a_row[key] = 0
            return
        in_use = self._state(target) in ("closed", "ramping")
        if not in_use or world.loop.now <= self.moved[target] + GRACE_SECONDS:
            return  # no news: what began before it was left alone
        if fault in (Fault.RATE_LIMITED, Fault.UNAUTHORIZED):
            why = f"answers {fault}"
        else:
            self.in_a_row[key] += 1
            if self.in_a_row[key] < self.breakers.minimum_calls:
                return
            why = f"has failed {self.in_a_row[key]} calls of {called.node} in a row"
        world.later(GRACE_SECONDS, self._out_of_use, target, called.node, self.stood[target].version, why)

    def _out_of_use(self, target: str, node: str, version: int, why: str) -> None:
        now = self.check.world.loop.now
        dead = self.check.world.by_id[node].host.dead
        if self.stood[target].version == version and not dead and self._calm(now):
            self.check.fail("G7", f"{target} {why}, and stays in use")

    # --- helpers ---

    def _runs(self, called: Called) -> bool:
        return called.ended == "open" and not self.check.world.by_id[called.node].host.dead

    def _calm(self, since: float) -> bool:
        return not self.check.world.troubled(since - TROUBLE_SECONDS, self.check.world.loop.now)
