"""The scripts of this room; each file describes its KEYS and ARGV at its head."""

from __future__ import annotations

from pathlib import Path
from typing import Final

from server.store.store import Script

_LUA: Final = Path(__file__).parent / "lua"


def _load(name: str) -> Script:
    """A script of one job: it begins with what they share."""
    return Script.load(_LUA / f"{name}.lua", _LUA / "common_v1.lua")


CREATE: Final = _load("job_create_v1")
TAKE: Final = _load("job_take_v1")
RENEW: Final = _load("job_renew_v1")
GIVE_BACK: Final = _load("job_give_back_v1")
RECORD: Final = _load("job_record_v1")
CANCEL: Final = _load("job_cancel_v1")
RESULTS: Final = _load("job_results_v1")
DUE: Final = Script.load(_LUA / "jobs_due_v1.lua")
SCHEDULE: Final = Script.load(_LUA / "jobs_schedule_v1.lua")
ALL: Final = (CREATE, TAKE, RENEW, GIVE_BACK, RECORD, CANCEL, RESULTS, DUE, SCHEDULE)
