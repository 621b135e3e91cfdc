"""What keys there are and of what type, read from the section models; and what is said of one that is not there."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from types import UnionType
from typing import Annotated, Any, Final, Literal, Union, get_args, get_origin

from server.config.sections import Section, Settings

KeyPath = tuple[str | int, ...]
"""Where a value stands: `("auth", "api_keys", 0, "sha256")`."""

FIXED_SECTIONS: Final = frozenset({"server", "redis", "auth", "breaker", "messages", "jobs", "ledger", "prompts"})
NAMED_SECTIONS: Final = frozenset({"tiers", "tenants", "targets", "routes"})
SECRETS: Final = {
    ("auth", "jwt_secret"): "jwt_secret",
    ("targets", "*", "api_key"): "api_key",
    ("jobs", "webhook_secret"): "webhook_secret",
    ("tenants", "*", "webhook_secret"): "webhook_secret",
    ("ledger", "user_hash_key"): "user_hash_key",
}
"""Secrets that may only come from the environment or by reference. Key: where they would stand."""
_SIMILAR = 0.5
"""How alike (`difflib` ratio) a known name must be to be suggested."""


@dataclass(frozen=True, slots=True)
class Problem:
    """One thing that is wrong with a configuration."""

    path: str
    """Full dotted path of the key, as `auth.api_keys[0].sha256`; or the name of a file or variable."""
    message: str
    """What is wrong and how to mend it, in one line. Never holds a secret."""

    def __str__(self) -> str:
        return f"{self.path}: {self.message}"


class ConfigError(Exception):
    """A configuration cannot be used. `problems` has all of them."""

    def __init__(self, problems: Iterable[Problem]) -> None:
        self.problems = tuple(problems)
        super().__init__("\n".join(str(problem) for problem in self.problems))


def dotted(path: KeyPath) -> str:
    """`("auth", "api_keys", 0, "sha256")` → `auth.api_keys[0].sha256`."""
    text = ""
    for step in path:
        text += f"[{step}]" if isinstance(step, int) else f"{'.' if text else ''}{step}"
    return text


def annotation_at(path: KeyPath) -> Any:
    """The type that stands at a path below `Settings`, or None if there is no such key."""
    annotation: Any = Settings
    for step in path:
        annotation = _child(annotation, step)
        if annotation is None:
            return None
    return annotation


def _child(annotation: Any, step: str | int) -> Any:
    for kind in _alternatives(annotation):
        if isinstance(kind, type) and issubclass(kind, Section) and step in kind.model_fields:
            return kind.model_fields[str(step)].annotation
        if get_origin(kind) is dict:
            return get_args(kind)[1]
        if get_origin(kind) is tuple and isinstance(step, int):
            return get_args(kind)[0]
    return None


def _alternatives(annotation: Any) -> list[Any]:
    """The members of a union, without `Annotated`."""
    if get_origin(annotation) is Annotated:
        return _alternatives(get_args(annotation)[0])
    if get_origin(annotation) in (Union, UnionType):
        return [kind for member in get_args(annotation) for kind in _alternatives(member)]
    return [annotation]


def plain_types(annotation: Any) -> set[Any]:
    """`str`, `Path`, `tuple`, … of an annotation; a `Literal` counts as `str`."""
    return {str if get_origin(kind) is Literal else get_origin(kind) or kind for kind in _alternatives(annotation)}


def keys_at(path: KeyPath) -> list[str]:
    """The keys of the table at a path; none if it is no table with fixed keys."""
    for kind in _alternatives(annotation_at(path)):
        if isinstance(kind, type) and issubclass(kind, Section):
            return list(kind.model_fields)
    return []


def holds_path(path: KeyPath) -> bool:
    """Whether a file or folder stands there."""
    annotation = annotation_at(path)
    return annotation is not None and Path in plain_types(annotation)


def secret_at(path: KeyPath) -> str | None:
    """The name of the secret that would stand at `path`, if any."""
    for pattern, name in SECRETS.items():
        if len(pattern) == len(path) and all(a in ("*", b) for a, b in zip(pattern, path, strict=True)):
            return name
    return None


def unknown(key: str, known: Iterable[str]) -> str:
    """What is said of a key that does not exist."""
    names = sorted(known)
    if nearest := difflib.get_close_matches(key, names, n=1, cutoff=_SIMILAR):
        return f"there is no such key; did you mean `{nearest[0]}`?"
    return f"there is no such key; known are {', '.join(f'`{name}`' for name in names)}"


def no_entry(kind: str, name: str, known: Iterable[str]) -> str:
    """What is said of a reference to a target or tier that does not exist."""
    nearest = difflib.get_close_matches(name, sorted(known), n=1, cutoff=_SIMILAR)
    hint = f"; did you mean `{nearest[0]}`?" if nearest else f"; add a [{kind}s.{name}]"
    return f"there is no {kind} `{name}`{hint}"


def leaves(node: Any, path: KeyPath = ()) -> Iterator[tuple[KeyPath, Any]]:
    """Every scalar below `node` with its path. The caller may change the values while it walks."""
    if isinstance(node, dict | list):
        for step, child in list(node.items() if isinstance(node, dict) else enumerate(node)):
            yield from leaves(child, (*path, step))
    elif path:
        yield path, node
