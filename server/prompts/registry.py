"""The prompts of a folder: `NAME/VERSION.toml`, and beside them `prompts.lock` with what is released.

A version that is not in the lock is a draft: it can be checked and looked at, and nobody is served with it. One that is
in the lock has to be there, unchanged, for ever: who relies on it gets what was reviewed.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from server.prompts import lock
from server.prompts.prompt import MAX_FILE_BYTES, PROMPT_NAME, BadPrompt, Prompt, parse
from server.prompts.version import Version

SUFFIX: Final = ".toml"


@dataclass(frozen=True, slots=True)
class Problem:
    """Something wrong with a folder of prompts."""

    path: str
    """File below the folder."""
    message: str
    """What is wrong and what to do."""

    def __str__(self) -> str:
        return f"{self.path}: {self.message}"


class BadRegistry(Exception):
    """The released prompts can't be served; the text has one line for each problem."""

    def __init__(self, problems: Sequence[str]) -> None:
        super().__init__("\n".join(problems))
        self.problems = tuple(problems)


@dataclass(frozen=True, slots=True)
class Registry:
    """What a folder holds."""

    folder: Path | None = None
    released: Mapping[str, Sequence[Prompt]] = field(default_factory=dict)
    """Name → released versions, in the order of precedence."""
    drafts: Mapping[str, Sequence[Prompt]] = field(default_factory=dict)
    """Name → versions that are not released."""
    draft_problems: Sequence[Problem] = ()
    """What is wrong with drafts: they can't be released, and keep nobody from serving what is."""

    @classmethod
    def load(cls, folder: Path | None) -> Registry:
        """Read a folder; None: nothing is offered. Raises `BadRegistry` if a released version is not as it was."""
        if folder is None:
            return cls()
        found, problems, drafts = scan(folder)
        if problems:
            raise BadRegistry([f"prompts.dir: {folder / one.path}: {one.message}" for one in problems])
        return cls(folder, _by_name(found, True), _by_name(found, False), drafts)

    def versions(self, name: str) -> Sequence[Prompt]:
        """Every version of a prompt, drafts included, in the order of precedence."""
        both = [*self.released.get(name, ()), *self.drafts.get(name, ())]
        return sorted(both, key=lambda prompt: prompt.version.precedence)

    @property
    def names(self) -> list[str]:
        """Every prompt, sorted."""
        return sorted({*self.released, *self.drafts})


Scanned = list[tuple[Prompt, bool]]
"""Prompts, and whether each is released."""


def _by_name(found: Scanned, released: bool) -> dict[str, list[Prompt]]:
    by_name: dict[str, list[Prompt]] = {}
    for prompt, is_released in sorted(found, key=lambda pair: pair[0].version.precedence):
        if is_released is released:
            by_name.setdefault(prompt.name, []).append(prompt)
    return by_name


def scan(folder: Path) -> tuple[Scanned, list[Problem], list[Problem]]:
    """All prompts of a folder; what is wrong with released ones, or with the lock; what is wrong with drafts."""
    try:
        entries = read_lock(folder)
    except (OSError, ValueError) as error:
        return [], [Problem(lock.LOCK_NAME, str(error))], []
    found: Scanned = []
    problems: list[Problem] = []
    draft_problems: list[Problem] = []
    seen = set()
    for path in _files(folder):
        shown = path.relative_to(folder).as_posix()
        seen.add(shown)
        released = shown in entries
        try:
            found.append((_read(path, shown, entries.get(shown)), released))
        except BadPrompt as error:
            (problems if released else draft_problems).extend(Problem(shown, text) for text in error.problems)
    for missing in sorted(entries.keys() - seen):
        message = "is released (it stands in prompts.lock) and is not there; take it back from version control"
        problems.append(Problem(missing, message))
    return found, problems, draft_problems


def read_lock(folder: Path) -> dict[str, str]:
    """The lock of a folder; empty if there is none. Raises `OSError` (no folder) or `ValueError`."""
    if not folder.is_dir():
        raise ValueError(f"{folder} is no folder; mend prompts.dir")
    try:
        return lock.read((folder / lock.LOCK_NAME).read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}


def _files(folder: Path) -> Iterator[Path]:
    for sub in sorted(folder.iterdir()):
        if sub.is_dir() and not sub.name.startswith("."):
            yield from sorted(path for path in sub.iterdir() if path.suffix == SUFFIX)


def _read(path: Path, shown: str, locked: str | None) -> Prompt:
    """The prompt in a file. Raises `BadPrompt`, also if it is not what was released."""
    if PROMPT_NAME.fullmatch(path.parent.name) is None:
        raise BadPrompt([f"{path.parent.name!r} is no name for a prompt: use 1–64 of A-Za-z0-9_.-"])
    try:
        version = Version.parse(path.name.removesuffix(SUFFIX))
        data = path.read_bytes() if path.stat().st_size <= MAX_FILE_BYTES else None
    except ValueError as error:
        raise BadPrompt([f"the file's name has to be its version: {error}"]) from None
    except OSError as error:
        raise BadPrompt([f"cannot be read: {error.strerror}"]) from None
    if data is None:
        raise BadPrompt([f"the file has more than {MAX_FILE_BYTES} bytes"])
    if locked is not None and lock.digest(data) != locked:
        following = ".".join(map(str, (*version.core[:2], version.core[2] + 1)))
        raise BadPrompt(
            [
                f"is released and was changed since; take it back from version control, and put the change into a new "
                f"version, as {path.parent.name}/{following}.toml (`tidewire prompts check` says which number it needs)"
            ]
        )
    return parse(path.parent.name, version, data)
