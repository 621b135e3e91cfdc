"""One usage record an attempt: whose it is, what it used, what it cost and who pays. Pure.

A settlement carries the records of its message as one entry of a stream, packed (`Account.entry`); the drain unpacks
it into `Row`s, one per attempt, keyed (message, generation, attempt). Entries may come doubled and in any order, so
what becomes of two versions of one row (`reconcile`) does not depend on which came first.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, NamedTuple

import msgpack

FORMAT: Final = 1
"""Version of a packed entry."""
FEATURE: Final = "feature"

MOST_TOKENS: Final = 10**12
"""What a provider says beyond it is nonsense, and sums of it would overflow."""
MOST_NANO: Final = 10**16
"""Ten million dollars."""

Row = dict[str, Any]
"""A record as a table has it: column → integer, text, boolean, None, or (`tags`) a dict of texts."""

KEY: Final = ("message_key", "generation", "attempt")
CHANGED_BY_WITHDRAWAL: Final = frozenset({"payer", "pays_input", "charged_nano_usd", "withdrawn_in"})


class Key(NamedTuple):
    """What a row is known by."""

    message_key: str
    generation: str
    attempt: int


@dataclass(frozen=True, slots=True)
class Account:
    """What all records of one message have in common."""

    message_key: str
    """Tag of the message in Redis: a hash of tenant, kind, user and id."""
    generation: str
    """Which claim of that id."""
    message_id: str
    tenant: str
    kind: str
    """How the user is known: `key`, `sub`, `anonymous`."""
    user: str
    tier: str
    door: str
    """`ws`, `http` or `job`."""
    origin: str
    """Session or job, by its door; empty for HTTP."""
    route: str
    conversation: str | None = None
    prompt: str | None = None
    """`name@version`."""
    tags: Mapping[str, str] = field(default_factory=dict)

    def entry(self, attempts: Sequence[Mapping[str, Any]]) -> bytes:
        """The records of a message, ready for the stream. The same message gives the same bytes on every node."""
        common = [getattr(self, name) for name in _ACCOUNT]
        packed: bytes = msgpack.packb([FORMAT, common, sorted(self.tags.items()), list(attempts)])
        return packed


_ACCOUNT: Final = tuple(name for name in Account.__slots__ if name != "tags")


class BadEntry(ValueError):
    """An entry of a stream is none of ours."""


def rows_of(entry: bytes) -> list[Row]:
    """The rows of an entry. Raises `BadEntry`."""
    try:
        version, common, tags, attempts = msgpack.unpackb(entry)
        if version != FORMAT:
            raise BadEntry(f"an entry of format {version!r}")
        account = Account(**dict(zip(_ACCOUNT, common, strict=True)), tags=dict(tags))
        return [_row(account, attempt) for attempt in attempts]
    except (TypeError, ValueError, KeyError, msgpack.UnpackException) as error:
        raise BadEntry(str(error)) from None


def _row(account: Account, attempt: Mapping[str, Any]) -> Row:
    return {
        "message_key": account.message_key,
        "generation": account.generation,
        "attempt": attempt["attempt"],
        "message_id": account.message_id,
        "run": attempt.get("run", 1),
        "tenant": account.tenant,
        "user_kind": account.kind,
        "user_id": storable(account.user),
        "tier": account.tier,
        "feature": account.tags.get(FEATURE),
        "tags": {name: value for name, value in account.tags.items() if name != FEATURE},
        "door": account.door,
        "session_id": account.origin or None if account.door == "ws" else None,
        "job_id": account.origin or None if account.door == "job" else None,
        "conversation_id": account.conversation,
        "prompt": account.prompt,
        "route": account.route,
        "target": attempt["target"],
        "provider": attempt.get("provider"),
        "model": storable(attempt["model"]),
        "outcome": attempt["outcome"],
        "payer": attempt["payer"],
        "source": attempt["source"],
        "pays_input": attempt["pays_input"],
        "input_tokens": min(attempt["input_tokens"], MOST_TOKENS),
        "cached_tokens": min(attempt["cached_tokens"], MOST_TOKENS),
        "output_tokens": min(attempt["output_tokens"], MOST_TOKENS),
        "reasoning_tokens": min(attempt["reasoning_tokens"], MOST_TOKENS),
        "cost_nano_usd": _money(attempt["cost_nano_usd"]),
        "charged_nano_usd": _money(attempt["charged_nano_usd"]),
        "price_version": attempt.get("price_version"),
        "started_ms": _milliseconds(attempt["started_at"]),
        "ended_ms": _milliseconds(attempt["ended_at"] or attempt["started_at"]),
        "first_token_ms": attempt["first_token_ms"],
        "withdrawn_in": attempt.get("withdrawn_in"),
    }


def _money(nano_dollars: int | None) -> int | None:
    return None if nano_dollars is None else min(nano_dollars, MOST_NANO)


def _milliseconds(seconds: float) -> int:
    return round(seconds * 1000)


def storable(text: str) -> str:
    """Text that every SQL database takes: PostgreSQL has no U+0000."""
    return text.replace("\0", "\N{REPLACEMENT CHARACTER}")


def key_of(row: Mapping[str, Any]) -> Key:
    """The key of a row."""
    return Key(row["message_key"], row["generation"], row["attempt"])


@dataclass(frozen=True, slots=True)
class Reconciled:
    """What two versions of one row make."""

    row: Row
    conflict: tuple[str, ...] = ()
    """Columns in which they differ without a reason."""


def reconcile(first: Row, other: Row) -> Reconciled:
    """What is kept of two versions of one row, of which `first` was there before.

    Of the same attempt a later run may withdraw the text: then the operator pays it, whichever version came first. Any
    other difference is a conflict (Redis lost acknowledged writes after they were drained, or a defect): the figures
    that were there stay, and in doubt the user does not pay.
    """
    differ = tuple(name for name in first if first[name] != other[name])
    if not differ:
        return Reconciled(first)
    conflict = tuple(name for name in differ if name not in CHANGED_BY_WITHDRAWAL)
    versions = (first, other)
    withdrawn = [one for one in versions if one["withdrawn_in"] is not None]
    explained = not conflict and len(withdrawn) == 1
    free = next((one for one in withdrawn or versions if one["payer"] == "operator"), None)
    kept = dict(first)
    if free is not None:
        kept |= {name: free[name] for name in CHANGED_BY_WITHDRAWAL}
        kept["charged_nano_usd"] = None if first["cost_nano_usd"] is None else 0
    return Reconciled(kept, () if explained else conflict or differ)
