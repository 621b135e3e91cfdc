"""The scripts of this room; each begins with what they share and describes its KEYS and ARGV at its head."""

from __future__ import annotations

from pathlib import Path
from typing import Final

from server.store.store import Script

_LUA: Final = Path(__file__).parent / "lua"


def _load(name: str) -> Script:
    return Script.load(_LUA / f"{name}.lua", _LUA / "common_v1.lua")


RESERVE: Final = _load("reserve_v1")
SETTLE: Final = _load("settle_v1")
RENEW: Final = _load("renew_v1")
VIEW: Final = _load("view_v1")
ALL: Final = (RESERVE, SETTLE, RENEW, VIEW)
