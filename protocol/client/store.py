"""Keeps the open messages, and the cursors of conversations, for another process to go on with."""

from __future__ import annotations

import contextlib
import json
from collections.abc import MutableMapping
from typing import Any, Final

from protocol.client.session import ClientSession

STORAGE_KEY: Final = "tidewire.open"


class OpenStore:
    """What a session has open, in a mapping of texts (a `dict`, a `shelve`, …); in nothing if there is none."""

    def __init__(self, storage: MutableMapping[str, str] | None, key: str = STORAGE_KEY) -> None:
        self._storage = storage
        self._key = key

    @property
    def kept(self) -> bool:
        """Whether anything is kept at all."""
        return self._storage is not None

    def load(self, session: ClientSession) -> None:
        """Damaged storage costs the resume after a restart, nothing else."""
        with contextlib.suppress(ValueError, KeyError, TypeError, AttributeError):
            session.restore(self._read(self._key) or [])
        with contextlib.suppress(ValueError, TypeError, AttributeError):
            cursors = (self._read(self._cursors_key) or {}).items()
            session.restore([], {str(name): int(seq) for name, seq in cursors})

    def save(self, session: ClientSession) -> None:
        """Keep what is open, now."""
        self._write(self._key, session.save())
        self._write(self._cursors_key, session.save_conversations())

    @property
    def _cursors_key(self) -> str:
        return f"{self._key}.conversations"

    def _read(self, key: str) -> Any:
        text = None if self._storage is None else self._storage.get(key)
        return None if text is None else json.loads(text)

    def _write(self, key: str, value: list[Any] | dict[str, Any]) -> None:
        if self._storage is None:
            return
        if value:
            self._storage[key] = json.dumps(value)
        else:
            self._storage.pop(key, None)
