"""The prompts as a node serves them: what a request asks for, together with what its route demands, comes to."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from protocol.errors import ProtocolError
from protocol.frames import DEFAULT_ROUTE, PromptRef
from server.config import Settings
from server.prompts.prompt import Prompt
from server.prompts.registry import BadRegistry, Registry
from server.prompts.request import Resolved
from server.prompts.rollout import Shares
from server.prompts.selection import select
from server.prompts.template import CannotRender
from server.prompts.variables import bind
from server.prompts.version import Range, Version

ANY: Final = Range.parse("*")


@dataclass(frozen=True, slots=True)
class Wanted:
    """A prompt by name and ranges, all of which its version has to be in."""

    name: str
    ranges: tuple[Range, ...] = ()
    variables: Mapping[str, Any] = field(default_factory=dict)


def of_route(text: str) -> Wanted:
    """`routes.NAME.prompt`: `name` or `name@range`. Raises `ValueError`."""
    name, _, given = text.partition("@")
    return Wanted(name.strip(), (Range.parse(given),) if given else ())


class Prompts:
    """See the module."""

    def __init__(
        self,
        registry: Registry | None = None,
        routes: Mapping[str, str | None] | None = None,
        shares: Shares | None = None,
    ) -> None:
        self.registry = registry or Registry()
        """Replaced as a whole when the folder is read again."""
        self.shares = shares or Shares()
        self._given = {name: text for name, text in (routes or {}).items() if text is not None}
        self._names = frozenset(routes or {})
        self.routes = {name: of_route(text) for name, text in self._given.items()}
        """The prompts that routes demand."""

    @classmethod
    def of(cls, settings: Settings) -> Prompts:
        """What `prompts.dir` holds, and the prompts of the routes. Raises `BadRegistry`."""
        given = {name: route.prompt for name, route in settings.routes.items()}
        return cls(_read(settings.prompts.dir, {n: text for n, text in given.items() if text is not None}), given)

    def read_again(self) -> list[str]:
        """Take the folder as it is now: the versions that are new, `name@version`. From any thread.

        Raises `BadRegistry`; then nothing changes.
        """
        registry = _read(self.registry.folder, self._given)
        known = {prompt.id for prompts in self.registry.released.values() for prompt in prompts}
        self.registry = registry
        return sorted({prompt.id for prompts in registry.released.values() for prompt in prompts} - known)

    def route_of(self, prompt: Prompt) -> str | None:
        """The route that a prompt would have answer where the request names none; None if it cannot have its wish.

        A hint, no demand: a route that this server does not have is passed over, and so is every hint where one of the
        two routes has a prompt of its own.
        """
        hint = prompt.declared.options.model
        return hint if hint in self._names and not self.routes.keys() & {hint, DEFAULT_ROUTE} else None

    def wanted(self, route: str, ref: PromptRef | None) -> Wanted | None:
        """What a request wants: its own `prompt`, its route's, or the route's with the request's range and variables.

        Raises `ProtocolError("invalid_frame")`.
        """
        fixed = self.routes.get(route)
        if ref is None:
            return fixed
        if fixed is not None and fixed.name != ref.name:
            raise ProtocolError(
                "invalid_frame",
                f"the model {route!r} answers with the prompt {fixed.name!r} only; ask another for {ref.name!r}",
                details={"prompt": {"name": fixed.name}},
            )
        try:
            own = () if ref.version is None else (Range.parse(ref.version),)
        except ValueError as error:
            raise ProtocolError("invalid_frame", f"`prompt.version`: {error}") from None
        return Wanted(ref.name, (*(fixed.ranges if fixed else ()), *own), ref.variables or {})

    def resolve(self, wanted: Wanted, user: str, stands: str | None = None) -> Resolved:
        """Choose the version for this user and fill it in. `stands`: what its conversation has had so far.

        Raises `ProtocolError`: `prompt_not_found`, or `invalid_frame` that names every variable that is wrong.
        """
        prompt = self.choose(wanted, user, stands)
        values, problems = bind(prompt.variables, wanted.variables)
        if problems:
            told = "; ".join(f"`{name}` {problem}" for name, problem in problems.items())
            raise ProtocolError(
                "invalid_frame",
                f"`prompt.variables` of {prompt.id}: {told}",
                details={"prompt": {"name": prompt.name, "version": str(prompt.version)}, "variables": problems},
            )
        try:
            return Resolved(prompt, prompt.fill(values))
        except CannotRender as error:
            raise ProtocolError("invalid_frame", f"{prompt.id} cannot be filled in with this: {error}") from None

    def choose(self, wanted: Wanted, user: str, stands: str | None = None) -> Prompt:
        """The version for this user. Raises `ProtocolError("prompt_not_found")`."""
        released = self.registry.released.get(wanted.name, ())
        known = None if stands is None else Version.parse(stands)
        found = select(released, wanted.ranges or (ANY,), self.shares.of, user, known)
        if found is not None:
            return found
        if not released:
            raise ProtocolError("prompt_not_found", f"there is no prompt {wanted.name!r}")
        asked = " and ".join(str(one) or "*" for one in wanted.ranges) or "*"
        raise ProtocolError(
            "prompt_not_found",
            f"no version of the prompt {wanted.name!r} on offer is in {asked}",
            details={"versions": [str(prompt.version) for prompt in self.offered(wanted.name)]},
        )

    def offered(self, name: str) -> list[Prompt]:
        """The released versions of a prompt that are not withdrawn, oldest first."""
        return [prompt for prompt in self.registry.released.get(name, ()) if self.shares.of(prompt) > 0]

    def has(self, prompt: str, version: str) -> bool:
        """Whether this node has that version: while a new one is deployed, some nodes don't."""
        return any(str(one.version) == version for one in self.registry.released.get(prompt, ()))


def _read(folder: Path | None, routes: Mapping[str, str]) -> Registry:
    registry = Registry.load(folder)
    if problems := route_problems(registry, routes):
        raise BadRegistry(problems)
    return registry


def route_problems(registry: Registry, routes: Mapping[str, str]) -> list[str]:
    """What is wrong with `routes.NAME.prompt`, given as route → text."""
    problems = []
    for name, text in routes.items():
        try:
            wanted = of_route(text)
            if wanted.name not in registry.released:
                known = ", ".join(sorted(registry.released)) or "none (is prompts.dir set?)"
                raise ValueError(f"there is no released prompt {wanted.name!r}; there are: {known}")
            if not any(p.version in (wanted.ranges or (ANY,))[0] for p in registry.released[wanted.name]):
                raise ValueError(f"no released version of {wanted.name!r} is in {wanted.ranges[0]}")
        except ValueError as error:
            problems.append(f"routes.{name}.prompt: {error}")
    return problems
