"""Shares: which per cent of users each version is for."""

from __future__ import annotations

from collections.abc import Mapping

from server.prompts.prompt import Prompt


class Shares:
    """What was set by `tidewire prompts rollout`, as this node knows it; else what the prompt's file says."""

    def __init__(self, known: Mapping[str, float] | None = None) -> None:
        self.known = dict(known or {})
        """`name@version` → per cent."""

    def of(self, prompt: Prompt) -> float:
        """The share of a version."""
        return self.known.get(prompt.id, prompt.declared.rollout_percent)
