"""Semantic versions (semver.org 2.0.0) and ranges of them, with the grammar and the rules of npm. Pure.

    1.2.3   =1.2.3   2   2.3   2.3.x   *   ^2   ~2.3   >=1.2 <3   1.2 - 1.4   ^1 || ^2

A pre-release is only matched by a range one of whose versions is a pre-release of the same `major.minor.patch`.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from typing import Final, Self

MAX_LENGTH: Final = 128
"""Most characters of a range."""
_NUMBER: Final = r"0|[1-9]\d{0,8}"
_TAGS: Final = r"(?:0|[1-9]\d*|\d*[A-Za-z-][0-9A-Za-z-]*)(?:\.(?:0|[1-9]\d*|\d*[A-Za-z-][0-9A-Za-z-]*))*"
_VERSION: Final = re.compile(rf"({_NUMBER})\.({_NUMBER})\.({_NUMBER})(?:-({_TAGS}))?", re.ASCII)
_PART: Final = rf"{_NUMBER}|[xX*]"
_PARTIAL: Final = rf"v?({_PART})(?:\.({_PART})(?:\.({_PART})(?:-({_TAGS}))?(?:\+[0-9A-Za-z.-]+)?)?)?"
_COMPARATOR: Final = re.compile(rf"(\^|~>|~|>=|<=|>|<|=|)\s*{_PARTIAL}(?:\s+|$)", re.ASCII)
_HYPHEN: Final = re.compile(rf"{_PARTIAL}\s+-\s+{_PARTIAL}", re.ASCII)

Core = tuple[int, int, int]


@dataclass(frozen=True, slots=True)
class Version:
    """A version. Ordered by precedence: a pre-release comes before its release."""

    core: Core
    """major, minor, patch"""
    tags: tuple[str, ...] = ()
    """What stands behind the `-` of a pre-release, split at dots."""

    @classmethod
    def parse(cls, text: str) -> Self:
        """`1.2.3` or `1.2.3-rc.1`. Raises `ValueError`."""
        found = _VERSION.fullmatch(text) if len(text) <= MAX_LENGTH else None
        if found is None:
            raise ValueError(f"{text[:MAX_LENGTH]!r} is no version like 1.2.3 or 1.2.3-rc.1")
        major, minor, patch, tags = found.groups()
        return cls((int(major), int(minor), int(patch)), tuple(tags.split(".")) if tags else ())

    @property
    def is_release(self) -> bool:
        """Whether it is no pre-release."""
        return not self.tags

    @property
    def precedence(self) -> tuple[Core, bool, tuple[tuple[bool, int, str], ...]]:
        """What versions are ordered by (semver.org, item 11)."""
        return self.core, not self.tags, tuple((not t.isdigit(), int(t) if t.isdigit() else 0, t) for t in self.tags)

    def __lt__(self, other: Version) -> bool:
        return self.precedence < other.precedence

    def __le__(self, other: Version) -> bool:
        return self.precedence <= other.precedence

    def __str__(self) -> str:
        return ".".join(map(str, self.core)) + ("-" + ".".join(self.tags) if self.tags else "")


@dataclass(frozen=True, slots=True)
class _Bound:
    """One comparison: `>=`, `<`, `>`, `<=` or `=`."""

    operator: str
    version: Version

    def holds(self, version: Version) -> bool:
        match self.operator:
            case ">=":
                return self.version <= version
            case "<":
                return version < self.version
            case ">":
                return self.version < version
            case "<=":
                return version <= self.version
            case _:
                return version == self.version


_NOTHING: Final = _Bound("<", Version((0, 0, 0), ("0",)))


@dataclass(frozen=True, slots=True)
class Range:
    """A set of versions."""

    text: str
    alternatives: tuple[tuple[_Bound, ...], ...]

    @classmethod
    def parse(cls, text: str) -> Range:
        """The range. Raises `ValueError` with words that say what is wrong."""
        return _parse(text)

    @property
    def exact(self) -> Version | None:
        """The one version that it names, if it names exactly one."""
        if len(self.alternatives) == 1 and len(self.alternatives[0]) == 1:
            bound = self.alternatives[0][0]
            return bound.version if bound.operator == "=" else None
        return None

    def __contains__(self, version: Version) -> bool:
        return any(_satisfied(bounds, version) for bounds in self.alternatives)

    def __str__(self) -> str:
        return self.text


def _satisfied(bounds: tuple[_Bound, ...], version: Version) -> bool:
    if not all(bound.holds(version) for bound in bounds):
        return False
    return version.is_release or any(bound.version.tags and bound.version.core == version.core for bound in bounds)


@lru_cache(maxsize=1024)
def _parse(text: str) -> Range:
    if len(text) > MAX_LENGTH:
        raise ValueError(f"a version range has at most {MAX_LENGTH} characters")
    return Range(text, tuple(tuple(_bounds(part.strip())) for part in text.split("||")))


def _bounds(text: str) -> Iterator[_Bound]:
    if (hyphen := _HYPHEN.fullmatch(text)) is not None:
        parts = hyphen.groups()
        yield from _desugared(">=", parts[:4])
        yield from _desugared("<=", parts[4:])
        return
    position = 0
    while position < len(text):
        found = _COMPARATOR.match(text, position)
        if found is None:
            raise ValueError(f"{text!r} is no version range; write for example ^2, ~2.3, 2.3.x, >=1.2 <3 or 2.3.1")
        yield from _desugared(found[1], found.groups()[1:])
        position = found.end()


def _desugared(operator: str, parts: tuple[str | None, ...]) -> Iterator[_Bound]:
    """A comparator as plain bounds. Where an upper bound is exclusive, it excludes its own pre-releases, too."""
    numbers = [int(part) for part in parts[:3] if part is not None and part not in "xX*"]
    known = next((i for i, part in enumerate(parts[:3]) if part is None or part in "xX*"), 3)
    numbers = numbers[:known]
    tags = tuple(parts[3].split(".")) if parts[3] and known == 3 else ()
    if known == 0:
        if operator in ("<", ">"):
            yield _NOTHING
        return
    lowest = Version(_core(numbers), tags)
    if operator in ("^", "~", "~>"):
        yield _Bound(">=", lowest)
        yield _below(numbers, _caret(numbers) if operator == "^" else min(known, 2) - 1)
    elif known == 3:
        yield _Bound(operator or "=", lowest)
    elif operator in ("", "="):
        yield _Bound(">=", lowest)
        yield _below(numbers, known - 1)
    elif operator == ">=":
        yield _Bound(">=", lowest)
    elif operator == ">":
        yield _Bound(">=", Version(_core([*numbers[:-1], numbers[-1] + 1])))
    else:
        yield _below(numbers, known - 1) if operator == "<=" else _Bound("<", Version(lowest.core, ("0",)))


def _core(numbers: list[int]) -> Core:
    major, minor, patch = (*numbers, 0, 0, 0)[:3]
    return major, minor, patch


def _below(numbers: list[int], place: int) -> _Bound:
    """Below the next version at that place: 0 major, 1 minor, 2 patch."""
    return _Bound("<", Version(_core([*numbers[:place], numbers[place] + 1]), ("0",)))


def _caret(numbers: list[int]) -> int:
    """The place of the first number that is not zero: what `^` keeps."""
    return next((place for place, number in enumerate(numbers) if number), len(numbers) - 1)
