"""The life of a message: every transition in one table. Pure.

A message is claimed (`admitting`), may wait (`queued`), generates (`streaming`) and ends as `done`, `failed` or
`cancelled`. Retry, fallback and takeover are attempts *within* `streaming`, not states. Only a temporary failure can
be reopened. An event the table does not have raises `IllegalTransition` and leaves the state unchanged.
"""

from __future__ import annotations

from enum import StrEnum
from typing import Final

from protocol.frames import END_STATES


class State(StrEnum):
    """Where a message stands."""

    ADMITTING = "admitting"
    QUEUED = "queued"
    STREAMING = "streaming"
    DONE = "done"
    FAILED = "failed"
    CANCELLED = "cancelled"

    @property
    def ended(self) -> bool:
        """Whether nothing follows."""
        return self in END_STATES


def has_ended(stored: bytes | None) -> bool:
    """Whether a record's `state`, as it stands in Redis (None: no record), is an end."""
    return stored is not None and stored.decode() in END_STATES


class Happening(StrEnum):
    """What can happen to a message."""

    WAIT = "wait"
    """Its conversation is answering something else."""
    DISPATCH = "dispatch"
    """Admitted; an attempt was allocated."""
    FINISH = "finish"
    FAIL = "fail"
    CANCEL = "cancel"
    REOPEN = "reopen"
    """`retry_of` of a temporary failure."""


TRANSITIONS: Final[dict[tuple[State, Happening], State]] = {
    (State.ADMITTING, Happening.WAIT): State.QUEUED,
    (State.ADMITTING, Happening.DISPATCH): State.STREAMING,
    (State.ADMITTING, Happening.FAIL): State.FAILED,
    (State.ADMITTING, Happening.CANCEL): State.CANCELLED,
    (State.QUEUED, Happening.DISPATCH): State.STREAMING,
    (State.QUEUED, Happening.FAIL): State.FAILED,
    (State.QUEUED, Happening.CANCEL): State.CANCELLED,
    (State.STREAMING, Happening.DISPATCH): State.STREAMING,
    (State.STREAMING, Happening.FINISH): State.DONE,
    (State.STREAMING, Happening.FAIL): State.FAILED,
    (State.STREAMING, Happening.CANCEL): State.CANCELLED,
    (State.FAILED, Happening.REOPEN): State.ADMITTING,
}


class IllegalTransition(ValueError):
    """The table has no such transition; a defect of the caller."""


def after(state: State, happening: Happening) -> State:
    """The state after `happening`. Raises `IllegalTransition`."""
    try:
        return TRANSITIONS[state, happening]
    except KeyError:
        raise IllegalTransition(f"{happening} cannot happen to a message that is {state}") from None


def diagram() -> str:
    """The table as a Mermaid state diagram, for the documentation."""
    lines = ["stateDiagram-v2", "    [*] --> admitting"]
    lines += [f"    {old} --> {new}: {what}" for (old, what), new in TRANSITIONS.items()]
    lines += [f"    {state} --> [*]" for state in State if state.ended]
    return "\n".join(lines)
