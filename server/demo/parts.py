"""What a node of a demo knows, and how it speaks with the supervisor.

A node and its supervisor share a pipe. Up go wishes (`Wish`), down go words for every node (`Word`); both are small
JSON maps, so that neither side can be made to unpickle anything.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final

from server.demo.primary import BreakablePrimary

PRIMARY: Final = "primary"
"""The target that the button breaks."""

Map = dict[str, Any]


@dataclass(frozen=True, slots=True)
class DemoParts:
    """Plain values for each node."""

    lan: bool
    """Other machines may come in, with a token."""
    address: str
    """Where a second device finds the page, without a path."""


class DemoNode:
    """The demo as one node has it."""

    def __init__(self, parts: DemoParts) -> None:
        self.parts = parts
        self.broken = False
        """Whether the primary is broken, as the supervisor last told."""
        self.say: Callable[[Map], None] = lambda wish: None
        """Tell the supervisor a wish; set by whoever owns the pipe."""
        self.serves: Callable[[str], bool] = lambda session: False
        """Whether this node serves a session."""
        self.die: Callable[[], None] = _die

    def heard(self, word: Map) -> None:
        """The supervisor speaks to all nodes."""
        if "broken" in word:
            self.broken = bool(word["broken"])
        if "kill" in word and self.serves(str(word["kill"])):
            self.die()


class DemoSupervisor:
    """The demo as the supervisor has it. `answer` turns a node's wish into the word that every node hears."""

    def __init__(self, primary: BreakablePrimary, parts: DemoParts, behind_address: str = "") -> None:
        self.primary = primary
        self.parts = parts
        self.behind_address = behind_address
        """What the printed address ends with."""

    def answer(self, wish: Map) -> Map | None:
        """What all nodes are told; None: nothing."""
        if "broken" in wish:
            self.primary.set_broken(bool(wish["broken"]))
            return self.state()
        if "kill" in wish:
            return {"kill": str(wish["kill"])}
        return None

    def state(self) -> Map:
        """What a new node has to know."""
        return {"broken": self.primary.broken}


def _die() -> None:
    """As a machine does that loses its power."""
    os.kill(os.getpid(), signal.SIGKILL)
