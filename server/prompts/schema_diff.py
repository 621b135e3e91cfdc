"""What a change of a JSON Schema means to who reads values of it. Pure.

A model writes the values, a client reads them: whatever the new schema allows has to be something that a reader of the
old one expects. Fields beyond it are the exception, as readers are told to pass over what they do not know.

Sound rather than complete: a keyword that is not understood here may not stand in a schema that changes, and what
cannot be shown to be compatible counts as breaking.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from enum import IntEnum
from typing import Any, Final


class Level(IntEnum):
    """How much of a version a change asks for."""

    NONE = 0
    PATCH = 1
    """Wording."""
    MINOR = 2
    """Something that nobody who relied on the old version trips over."""
    MAJOR = 3
    """Everything else."""


@dataclass(frozen=True, slots=True)
class Change:
    """One difference between two versions."""

    level: Level
    where: str
    """As `variables.tone` or `output.schema.properties.city`."""
    what: str

    def __str__(self) -> str:
        return f"{self.level.name.lower()}: {self.where}: {self.what}"


ANNOTATIONS: Final = frozenset(
    {"title", "description", "examples", "default", "deprecated", "readOnly", "writeOnly", "$comment"}
)
"""Keywords that allow and forbid nothing."""
DEFINITIONS: Final = frozenset({"$schema", "$defs", "definitions"})
"""Keywords that may stand anywhere, as long as they stay the same."""
LEAST: Final = frozenset({"minimum", "exclusiveMinimum", "minLength", "minItems", "minProperties"})
MOST: Final = frozenset({"maximum", "exclusiveMaximum", "maxLength", "maxItems", "maxProperties"})
OPAQUE: Final = frozenset({"pattern", "format", "multipleOf", "uniqueItems", "contentEncoding", "contentMediaType"})
"""Keywords that only forbid, and whose values can't be compared."""
_OTHERS: Final = frozenset({"type", "enum", "const", "properties", "required", "additionalProperties", "items"})
UNDERSTOOD: Final = ANNOTATIONS | DEFINITIONS | LEAST | MOST | OPAQUE | _OTHERS
TYPES: Final = frozenset({"null", "boolean", "object", "array", "number", "string", "integer"})
_MISSING: Final = object()


def compare(old: Any, new: Any, where: str, added: Level = Level.MINOR) -> list[Change]:
    """The changes from one schema to another. `added`: what a field that is new counts as."""
    if _same(old, new):
        return []
    if _has_far_references(old) or _has_far_references(new):
        return [Change(Level.MAJOR, where, "changed, and refers to other places of itself or elsewhere")]
    return list(_compare(old, new, where, added))


def _compare(old: Any, new: Any, where: str, added: Level) -> Iterator[Change]:
    if _same(old, new):
        return
    if not isinstance(old, dict) or not isinstance(new, dict):
        yield Change(Level.MAJOR, where, "changed in a way that is not understood")
        return
    if _same(_bare(old), _bare(new)):
        yield Change(Level.PATCH, where, "described differently")
        return
    if strange := sorted((old.keys() | new.keys()) - UNDERSTOOD):
        yield Change(Level.MAJOR, where, f"changed beside `{strange[0]}`, which is not understood")
        return
    for keyword in sorted(DEFINITIONS):
        if not _same(old.get(keyword, _MISSING), new.get(keyword, _MISSING)):
            yield Change(Level.MAJOR, f"{where}.{keyword}", "changed")
    yield from _types(old, new, where)
    yield from _values(old, new, where)
    yield from _limits(old, new, where)
    yield from _items(old, new, where, added)
    yield from _fields(old, new, where, added)


def _bare(schema: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in schema.items() if key not in ANNOTATIONS}


def _key(value: Any) -> str:
    """A text that is the same for the same JSON value; 1 and 1.0 and true are three."""
    return json.dumps(value, sort_keys=True, default=repr)


def _same(one: Any, other: Any) -> bool:
    return one is other or (_MISSING not in (one, other) and _key(one) == _key(other))


def _has_far_references(schema: Any) -> bool:
    """Whether something refers to a place outside the definitions: its meaning may change with another place's."""
    if isinstance(schema, dict):
        for key, value in schema.items():
            if key in ("$ref", "$dynamicRef", "$recursiveRef") and not (
                isinstance(value, str) and value.startswith(("#/$defs/", "#/definitions/"))
            ):
                return True
            if _has_far_references(value):
                return True
        return False
    return isinstance(schema, list) and any(map(_has_far_references, schema))


def _types(old: Mapping[str, Any], new: Mapping[str, Any], where: str) -> Iterator[Change]:
    before, now = _types_of(old), _types_of(new)
    if before is None or now is None:
        if not _same(old.get("type"), new.get("type")):
            yield Change(Level.MAJOR, f"{where}.type", "changed in a way that is not understood")
    elif now - (before | ({"integer"} if "number" in before else set())):
        yield Change(Level.MAJOR, f"{where}.type", f"was {_listed(before)}, may now be {_listed(now)}")
    elif now != before:
        yield Change(Level.MINOR, f"{where}.type", f"narrowed to {_listed(now)}")


def _types_of(schema: Mapping[str, Any]) -> frozenset[str] | None:
    given = schema.get("type", _MISSING)
    if given is _MISSING:
        return TYPES
    listed = given if isinstance(given, list) else [given]
    return frozenset(listed) if listed and all(isinstance(t, str) and t in TYPES for t in listed) else None


def _listed(values: frozenset[str]) -> str:
    return "anything" if values == TYPES else " or ".join(sorted(values))


def _values(old: Mapping[str, Any], new: Mapping[str, Any], where: str) -> Iterator[Change]:
    before, now = _allowed(old), _allowed(new)
    if before is not None and now is None:
        yield Change(Level.MAJOR, where, "was one of a few values, may now be any")
    elif before is not None and now is not None and now - before:
        yield Change(Level.MAJOR, where, f"may now be {', '.join(sorted(now - before))}")
    elif before != now:
        yield Change(Level.MINOR, where, "may be fewer values")


def _allowed(schema: Mapping[str, Any]) -> frozenset[str] | None:
    """The only values allowed, by `enum` and `const`, as texts; None: any."""
    found = [[schema["const"]]] if "const" in schema else []
    if "enum" in schema:
        found.append(schema["enum"] if isinstance(schema["enum"], list) else [schema["enum"]])
    if not found:
        return None
    return frozenset.intersection(*(frozenset(map(_key, values)) for values in found))


def _limits(old: Mapping[str, Any], new: Mapping[str, Any], where: str) -> Iterator[Change]:
    for keyword in sorted(LEAST | MOST | OPAQUE):
        before, now = old.get(keyword, _MISSING), new.get(keyword, _MISSING)
        if _same(before, now):
            continue
        at = f"{where}.{keyword}"
        if before is _MISSING:
            yield Change(Level.MINOR, at, "added")
        elif now is _MISSING:
            yield Change(Level.MAJOR, at, "removed")
        elif keyword in OPAQUE or not (_is_number(before) and _is_number(now)):
            yield Change(Level.MAJOR, at, f"changed from {_key(before)} to {_key(now)}")
        elif (now > before) == (keyword in LEAST):
            yield Change(Level.MINOR, at, f"tightened from {before} to {now}")
        else:
            yield Change(Level.MAJOR, at, f"loosened from {before} to {now}")


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and value == value  # not NaN


def _items(old: Mapping[str, Any], new: Mapping[str, Any], where: str, added: Level) -> Iterator[Change]:
    before, now = old.get("items", _MISSING), new.get("items", _MISSING)
    at = f"{where}.items"
    if before is _MISSING and now is not _MISSING:
        yield Change(Level.MINOR, at, "may be fewer values")
    elif before is not _MISSING and now is _MISSING:
        yield Change(Level.MAJOR, at, "may now be anything")
    elif before is not _MISSING:
        yield from _compare(before, now, at, added)


def _fields(old: Mapping[str, Any], new: Mapping[str, Any], where: str, added: Level) -> Iterator[Change]:
    before, now = old.get("properties", {}), new.get("properties", {})
    if not (isinstance(before, dict) and isinstance(now, dict)):
        yield Change(Level.MAJOR, f"{where}.properties", "changed in a way that is not understood")
        return
    for name in sorted(before.keys() | now.keys()):
        at = f"{where}.properties.{name}"
        if name not in now:
            yield Change(Level.MAJOR, at, "removed")
        elif name in before:
            yield from _compare(before[name], now[name], at, added)
        elif isinstance(old.get("additionalProperties", True), bool):
            yield Change(added, at, "added")
        else:
            yield Change(Level.MAJOR, at, "added where `additionalProperties` said what else there may be")
    yield from _required(old, new, where)
    yield from _further(old, new, where)


def _required(old: Mapping[str, Any], new: Mapping[str, Any], where: str) -> Iterator[Change]:
    lists = old.get("required", []), new.get("required", [])
    if not all(isinstance(one, list) and all(isinstance(name, str) for name in one) for one in lists):
        yield Change(Level.MAJOR, f"{where}.required", "changed in a way that is not understood")
        return
    before, now = map(frozenset, lists)
    for name in sorted(before - now):
        yield Change(Level.MAJOR, f"{where}.properties.{name}", "may now be absent")
    for name in sorted((now - before) & old.get("properties", {}).keys()):
        yield Change(Level.MINOR, f"{where}.properties.{name}", "is now always there")


def _further(old: Mapping[str, Any], new: Mapping[str, Any], where: str) -> Iterator[Change]:
    """`additionalProperties`."""
    before, now = old.get("additionalProperties", True), new.get("additionalProperties", True)
    if _same(before, now):
        return
    at = f"{where}.additionalProperties"
    if before is True:
        yield Change(Level.MINOR, at, "there may be fewer other fields")
    else:
        yield Change(Level.MAJOR, at, "there may be other fields")
