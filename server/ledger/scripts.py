"""The script of this room; it describes its KEYS and ARGV at its head."""

from __future__ import annotations

from pathlib import Path
from typing import Final

from server.store.store import Script

LEASE: Final = Script.load(Path(__file__).parent / "lua" / "lease_v1.lua")
ALL: Final = (LEASE,)
