"""How the nodes of a demo talk to their supervisor."""

from __future__ import annotations

import contextlib
from multiprocessing.connection import Connection
from typing import Any

import orjson

from server.demo.parts import DemoSupervisor


class Pipes:
    """The pipes to the nodes of a demo: what one of them wishes becomes a word to all."""

    def __init__(self, demo: DemoSupervisor | None) -> None:
        self._demo = demo
        self._pipes: set[Connection] = set()

    def add(self, pipe: Connection) -> None:
        """A node that has just become ready."""
        if self._demo is not None:
            self._pipes.add(pipe)
            self._tell(pipe, self._demo.state())

    def remove(self, pipe: Connection) -> None:
        """A node that is gone."""
        self._pipes.discard(pipe)

    def heard(self, wish: Any) -> None:
        """A node wishes something."""
        word = None if self._demo is None else self._demo.answer(wish)
        for pipe in tuple(self._pipes) if word is not None else ():
            self._tell(pipe, word)

    def _tell(self, pipe: Connection, word: Any) -> None:
        with contextlib.suppress(OSError):  # it is dying; its watcher knows
            pipe.send_bytes(orjson.dumps(word))
