"""What can be asked of the ledger, and how the answer looks. Pure.

A report groups records by dimensions. A tenant sees what its users are charged; the operator sees everything that was
spent, and who bears it.
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Final

from server.ledger.cost import as_usd

TAG_PREFIX: Final = "tags."
"""`tags.NAME` groups by the pair NAME of `metadata`."""
COLUMNS: Final[Mapping[str, str]] = {
    "feature": "feature",
    "model": "model",
    "route": "route",
    "target": "target",
    "provider": "provider",
    "prompt": "prompt",
    "user": "user_id",
    "tier": "tier",
    "door": "door",
    "session": "session_id",
    "job": "job_id",
    "conversation": "conversation_id",
    "tenant": "tenant",
    "payer": "payer",
    "outcome": "outcome",
    "source": "source",
    "price_version": "price_version",
}
"""Dimension → column."""
TIMES: Final = ("day", "hour")
OPERATORS_ONLY: Final = frozenset({"tenant", "payer", "outcome", "source", "price_version"})
TENANT_DIMENSIONS: Final = (*(name for name in COLUMNS if name not in OPERATORS_ONLY), *TIMES)
OPERATOR_DIMENSIONS: Final = (*COLUMNS, *TIMES)
MAX_DIMENSIONS: Final = 6
MAX_GROUPS: Final = 10_000
"""A report with more is refused: narrow it."""
MAX_TAG_CHARACTERS: Final = 64
DAY_MS: Final = 86_400_000
HOUR_MS: Final = 3_600_000
LATEST_MS: Final = 253_402_300_800_000
"""The year 10000."""
_SIMILAR: Final = 0.5


class BadQuery(ValueError):
    """A report that cannot be made; `parameter` is at fault, the text says how to mend it."""

    def __init__(self, parameter: str, message: str) -> None:
        super().__init__(f"{parameter}: {message}")
        self.parameter = parameter


@dataclass(frozen=True, slots=True)
class Query:
    """What to sum."""

    group_by: tuple[str, ...]
    from_ms: int
    to_ms: int
    """Not included."""
    tenant: str | None = None
    user: str | None = None
    user_kind: str | None = None
    charged_only: bool = False
    """Only what users are charged; else everything that was spent."""


def dimensions(given: str, known: Sequence[str]) -> tuple[str, ...]:
    """The dimensions of `feature,model`. Raises `BadQuery` that names the nearest one there is."""
    names = tuple(name.strip() for name in given.split(",")) if given.strip() else ()
    if len(names) > MAX_DIMENSIONS:
        raise BadQuery("group_by", f"at most {MAX_DIMENSIONS} dimensions can be asked for, not {len(names)}")
    for name in names:
        if name.startswith(TAG_PREFIX):
            if not 0 < len(name) - len(TAG_PREFIX) <= MAX_TAG_CHARACTERS or not name.isprintable():
                raise BadQuery("group_by", f"a tag's name has 1 to {MAX_TAG_CHARACTERS} printable characters")
        elif name not in known:
            raise BadQuery("group_by", _unknown(name, known))
    if len(set(names)) < len(names):
        raise BadQuery("group_by", "a dimension is named twice")
    return names


def _unknown(name: str, known: Sequence[str]) -> str:
    if name in OPERATORS_ONLY:
        return f"only operators can group by {name!r}, with `tidewire usage`"
    near = difflib.get_close_matches(name, known, 1, _SIMILAR)
    hint = f"did you mean {near[0]!r}?" if near else f"there are {', '.join(known)} and {TAG_PREFIX}NAME"
    return f"there is no dimension {name[:64]!r}; {hint}"


def period(start: str | None, end: str | None, now: datetime) -> tuple[int, int]:
    """From and to in milliseconds; by default this month (UTC) until now. Raises `BadQuery`."""
    month = now.replace(day=1, hour=0, minute=0, second=0, microsecond=0)
    from_ms = _moment("from", start) if start else _milliseconds(month)
    to_ms = _moment("to", end) if end else max(_milliseconds(now) + 1, from_ms + 1)
    if from_ms >= to_ms:
        raise BadQuery("to", "should be later than `from`; it is not included itself")
    return from_ms, to_ms


def _moment(parameter: str, text: str) -> int:
    """A date (its beginning in UTC) or a date and time (RFC 3339; without an offset, UTC)."""
    try:
        moment = datetime.fromisoformat(text.strip().replace(" ", "+"))
        moment = moment if moment.tzinfo is not None else moment.replace(tzinfo=UTC)
        at = _milliseconds(moment)
    except (ValueError, OverflowError):
        hint = "should be a date like 2026-11-01 or a time like 2026-11-01T12:00:00Z"
        raise BadQuery(parameter, hint) from None
    if not 0 <= at < LATEST_MS:
        raise BadQuery(parameter, "should lie between 1970 and 9999")
    return at


def _milliseconds(moment: datetime) -> int:
    return round(moment.timestamp() * 1000)


def shown_time(milliseconds: int) -> str:
    """RFC 3339, in UTC; milliseconds where there are any."""
    moment = datetime.fromtimestamp(milliseconds / 1000, UTC)
    return moment.isoformat(timespec="milliseconds" if milliseconds % 1000 else "seconds").replace("+00:00", "Z")


SUMS: Final = ("messages", "input_tokens", "cached_tokens", "output_tokens", "reasoning_tokens")


def groups(query: Query, found: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """The groups as they are shown, the dearest first. Raises `BadQuery` if there are too many."""
    if len(found) > MAX_GROUPS:
        raise BadQuery(
            "group_by", f"that makes more than {MAX_GROUPS} groups; shorten the time or name fewer dimensions"
        )
    rows = [_group(query, row) for row in found if row["attempts"]]
    return sorted(rows, key=lambda row: (-(row["cost_usd"] or 0), -row["messages"], *map(str, row.values())))


def _group(query: Query, row: Mapping[str, Any]) -> dict[str, Any]:
    group: dict[str, Any] = {name: _value(name, row[f"by_{number}"]) for number, name in enumerate(query.group_by)}
    group |= {name: row[name] or 0 for name in SUMS}
    if query.charged_only:
        return group | {"cost_usd": as_usd(row["charged_nano_usd"])}
    cost, charged = row["cost_nano_usd"], row["charged_nano_usd"]
    return group | {
        "attempts": row["attempts"],
        "cost_usd": as_usd(cost),
        "charged_usd": as_usd(charged),
        "operator_usd": None if cost is None else as_usd(cost - (charged or 0)),
        "unpriced_attempts": row["unpriced"] or 0,
    }


def _value(name: str, value: Any) -> Any:
    if value is None or name not in TIMES:
        return value
    return shown_time(int(value))[: 10 if name == "day" else None]
