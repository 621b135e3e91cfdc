"""Which version of a prompt a user gets. Pure.

Of the released versions within the range the newest one whose share includes this user. A user's place between 0 and
100 is a hash keyed by the version: it stays the same on every node, raising a share only adds users, and each rollout
begins with other users. A version with a share of 0 is withdrawn: ranges pass over it, and only who names it exactly
still gets it (as with PEP 592's yanked releases).
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Sequence
from typing import Final

from server.prompts.prompt import Prompt
from server.prompts.version import Range, Version

EVERYBODY: Final = 100.0

Share = Callable[[Prompt], float]
"""Per cent of users that a version is for."""


def place(prompt: str, user: str) -> float:
    """Where a user stands in the rollout of `name@version`: from 0 to below 100, in steps of a hundredth."""
    key = hashlib.blake2b(prompt.encode(), digest_size=32).digest()
    number = int.from_bytes(hashlib.blake2b(user.encode(), key=key, digest_size=8).digest())
    return number * 10_000 // 2**64 / 100


def select(
    released: Sequence[Prompt], ranges: Iterable[Range], share: Share, user: str, stands: Version | None = None
) -> Prompt | None:
    """The version for this user; None if none is within all `ranges`, or all that are have been withdrawn.

    `released` is in the order of precedence. `stands`: the version that its conversation has had so far, which it
    keeps as long as the ranges hold it and it is not withdrawn.
    """
    ranges = tuple(ranges)
    within = [prompt for prompt in released if all(prompt.version in one for one in ranges)]
    if any(one.exact is not None for one in ranges):
        return within[-1] if within else None
    offered = [prompt for prompt in within if share(prompt) > 0]
    if (kept := next((prompt for prompt in offered if prompt.version == stands), None)) is not None:
        return kept
    for prompt in reversed(offered):
        if share(prompt) >= EVERYBODY or place(prompt.id, user) < share(prompt):
            return prompt
    return offered[0] if offered else None  # nobody goes without: the oldest is what the others come from
