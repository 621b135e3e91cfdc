"""A job as it stands, and the ids that hang together. Pure."""

from __future__ import annotations

import hashlib
import secrets
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final, Literal

from server.access import scopes
from server.access.identity import Principal
from server.ledger.cost import as_usd
from server.store.keys import JobKeys, job_tag, user_tag

Status = Literal["queued", "running", "done", "failed", "cancelled"]
END_STATES: Final = frozenset({"done", "failed", "cancelled"})
ID_PATTERN: Final = r"^job_[0-9a-f]{32}$"
MILLI: Final = 1000


def job_id(key: str | None) -> str:
    """The id of a user's job: a function of its `Idempotency-Key`, or random without one."""
    return "job_" + (secrets.token_hex(16) if key is None else hashlib.sha256(key.encode()).hexdigest()[:32])


def message_id(job: str, index: int) -> str:
    """The message of an item: whoever runs it asks for the same one."""
    return f"{job}-{index}"


def tag_of(who: Principal, job: str) -> str:
    """The tag of a user's job."""
    return job_tag(user_tag(who.tenant, who.kind, who.user), job)


@dataclass(frozen=True, slots=True)
class Job:
    """Everything that is told of a job, and what a worker needs."""

    id: str
    tag: str
    keys: JobKeys
    who: Principal
    """Who made it, with the tier of then."""
    status: Status
    stop: str
    """`cancelled` or `expired`: no new item is begun."""
    total: int
    begun: int
    """Items that were taken at least once."""
    done: int
    failed: int
    cancelled: int
    usage: Mapping[str, int]
    nano_dollars: int | None
    """What its items with a result cost; None: no price is known."""
    created_ms: int
    deadline_ms: int
    ended_ms: int | None
    keep_ms: int
    webhook: Webhook | None

    @property
    def over(self) -> bool:
        """Whether nothing follows."""
        return self.status in END_STATES

    @property
    def cost_usd(self) -> float | None:
        """For the wire."""
        return as_usd(self.nano_dollars)


@dataclass(frozen=True, slots=True)
class Webhook:
    """Whom to tell of the end."""

    url: str
    tries: int
    state: str
    """`pending`, `delivered` or `given_up`."""


FIELDS: Final = (
    "id", "tenant", "kind", "user", "tier", "status", "stop", "total", "next", "done", "failed", "cancelled",
    "input", "output", "cached", "reasoning", "nano", "created", "deadline", "ended", "keep",
    "hook", "hook_tries", "hook_state",
)  # fmt: skip
"""What `job_of` needs of the record, in this order."""


def job_of(tag: str, found: list[Any]) -> Job | None:
    """The job, of the fields `FIELDS`; None if there is none."""
    have = {name: value.decode() for name, value in zip(FIELDS, found, strict=True) if value is not None}
    if "status" not in have:
        return None
    kind: Any = have["kind"]
    status: Any = have["status"]
    number = {name: int(value) for name, value in have.items() if value.isdecimal()}
    usage = {
        "input_tokens": number["input"],
        "output_tokens": number["output"],
        "total_tokens": number["input"] + number["output"],
        "cached_tokens": number["cached"],
        "reasoning_tokens": number["reasoning"],
    }
    hook = have.get("hook")
    return Job(
        id=have["id"],
        tag=tag,
        keys=JobKeys.of(tag),
        who=Principal(have["tenant"], kind, have["user"], have["tier"], scopes.USER, None),
        status=status,
        stop=have.get("stop", ""),
        total=number["total"],
        begun=number["next"],
        done=number["done"],
        failed=number["failed"],
        cancelled=number["cancelled"],
        usage=usage,
        nano_dollars=number.get("nano"),
        created_ms=number["created"],
        deadline_ms=number["deadline"],
        ended_ms=number.get("ended"),
        keep_ms=number["keep"],
        webhook=None if hook is None else Webhook(hook, number.get("hook_tries", 0), have.get("hook_state", "pending")),
    )
