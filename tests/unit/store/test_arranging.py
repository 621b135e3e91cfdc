"""Which link a key goes by, as primaries come, move and go."""

from __future__ import annotations

from typing import Any

from server.store.link import Address, StoreUnavailable
from server.store.store import Store
from server.store.topology import SLOTS, slot_of

A, B, C = (Address(port=port) for port in (1, 2, 3))
LOW, HIGH = b"b", b"a"
HALF = SLOTS // 2


class Ranges:
    """A topology that a test decides."""

    def __init__(self, *ranges: tuple[int, int, Address]) -> None:
        self.ranges = list(ranges)

    async def ask(self) -> list[tuple[int, int, Address]]:
        return self.ranges


class Place:
    """A link that goes where it is turned to, and connects nowhere."""

    def __init__(self, address: Address, *rest: Any) -> None:
        self.address = address
        self.connected = True

    async def ready(self, timeout_seconds: float) -> None:
        pass

    def turn_to(self, address: Address) -> None:
        self.address = address


def led_to(store: Store) -> tuple[Address | None, Address | None]:
    """Where a key of the lower and one of the upper half of the slots lead."""
    found: list[Address | None] = []
    for key in (LOW, HIGH):
        try:
            found.append(store.link(key).address)
        except StoreUnavailable:
            found.append(None)
    return found[0], found[1]


async def test_keys_go_where_their_slots_are() -> None:
    assert slot_of(LOW) < HALF <= slot_of(HIGH)
    topology = Ranges((0, SLOTS - 1, A))
    store = Store(topology, (), make_link=Place)  # type: ignore[arg-type]
    assert led_to(store) == (None, None)
    await store.start()
    assert led_to(store) == (A, A)
    first = store.link(LOW)
    topology.ranges = [(0, SLOTS - 1, B)]  # a replica was promoted
    await store._ask()
    assert led_to(store) == (B, B)
    assert store.link(LOW) is first, "with the same callers"
    topology.ranges = [(0, HALF - 1, B), (HALF, SLOTS - 1, C)]
    await store._ask()
    assert led_to(store) == (B, C)
    topology.ranges = [(0, HALF - 1, A), (HALF, SLOTS - 1, C)]
    await store._ask()
    assert led_to(store) == (A, C)
    assert store.link(LOW) is first
    topology.ranges = [(0, SLOTS - 1, C)]
    await store._ask()
    assert led_to(store) == (C, C)


async def test_a_slot_that_nobody_holds_leads_nowhere() -> None:
    store = Store(Ranges((0, 9, A), (HALF, SLOTS - 1, B)), (), make_link=Place)  # type: ignore[arg-type]
    await store.start()
    assert led_to(store) == (None, B)
