"""Whether the versions of a folder keep what their numbers promise. Pure.

Every version is compared with the one before it, drafts and released ones alike: two branches may each have released
something that was right by itself. As "compatible" carries over from pair to pair, that covers every range.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from server.prompts.diff import changes, least_version, level_of, understated
from server.prompts.prompt import Prompt
from server.prompts.registry import Problem, Registry
from server.prompts.schema_diff import Change, Level


@dataclass(frozen=True, slots=True)
class Step:
    """A version and what it changes."""

    prompt: Prompt
    before: Prompt | None
    """The version before it; None for the first."""
    changes: Sequence[Change]
    released: bool

    @property
    def level(self) -> Level:
        """What its changes ask for."""
        return level_of(list(self.changes))

    @property
    def problem(self) -> str | None:
        """Why its number is too low; None if it is not."""
        if self.before is None or not understated(self.before.version, self.prompt.version, self.level):
            return None
        reasons = [str(change) for change in self.changes if change.level is self.level]
        least = least_version(self.before.version, self.level)
        return (
            f"{self.prompt.version} understates what it changes since {self.before.version}: it has to be {least} or "
            f"higher, as {'; '.join(reasons)}"
        )


def steps(registry: Registry, name: str) -> Iterator[Step]:
    """Every version of a prompt, oldest first. A pre-release is compared with the release before it."""
    released = set(map(id, registry.released.get(name, ())))
    before: Prompt | None = None
    for prompt in registry.versions(name):
        found = [] if before is None else changes(before, prompt)
        yield Step(prompt, before, found, id(prompt) in released)
        if prompt.version.is_release:
            before = prompt


def check(registry: Registry) -> list[Problem]:
    """Everything that is wrong with drafts and with version numbers."""
    found = list(registry.draft_problems)
    for name in registry.names:
        wrong = ((step.prompt.version, step.problem) for step in steps(registry, name))
        found += [Problem(f"{name}/{version}.toml", problem) for version, problem in wrong if problem is not None]
    return found
