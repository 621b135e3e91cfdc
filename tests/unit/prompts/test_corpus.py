"""A generated corpus of changes to output schemas: every breaking one is major, every compatible one is not.

Each change is one thing, somewhere in a generated schema. That it is breaking is shown by a value which the changed
schema allows and the old one does not, wherever it is not a matter of definition (a field that is gone).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jsonschema
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from server.prompts.diff import level_of
from server.prompts.schema_diff import Level, compare

Map = dict[str, Any]
Change = tuple[Map, Map, Any]
"""Old, new, and a value that only the new one allows (`...`: there is none, it is a matter of definition)."""

TEXT: Map = {"type": "string"}
BREAKING: dict[str, Change] = {
    "retyped": (TEXT, {"type": "integer"}, 1),
    "may be null": (TEXT, {"type": ["string", "null"]}, None),
    "any type": (TEXT, {}, 1),
    "widened number": ({"type": "integer"}, {"type": "number"}, 0.5),
    "one value more": ({"enum": ["a"]}, {"enum": ["a", "b"]}, "b"),
    "any value": ({**TEXT, "enum": ["a"]}, TEXT, "b"),
    "another constant": ({"const": "a"}, {"const": "b"}, "b"),
    "longer": ({**TEXT, "maxLength": 1}, {**TEXT, "maxLength": 2}, "bb"),
    "shorter": ({**TEXT, "minLength": 1}, {**TEXT, "minLength": 0}, ""),
    "greater": ({"type": "integer", "maximum": 1}, {"type": "integer", "maximum": 2}, 2),
    "without a limit": ({"type": "integer", "maximum": 1}, {"type": "integer"}, 2),
    "smaller": ({"type": "integer", "exclusiveMinimum": 1}, {"type": "integer", "exclusiveMinimum": 0}, 1),
    "another pattern": ({**TEXT, "pattern": "a"}, {**TEXT, "pattern": "b"}, "b"),
    "no multiple": ({"type": "integer", "multipleOf": 2}, {"type": "integer"}, 1),
    "more items": ({"type": "array", "maxItems": 0}, {"type": "array", "maxItems": 1}, [1]),
    "other items": ({"type": "array", "items": TEXT}, {"type": "array", "items": {"type": "integer"}}, [1]),
    "any items": ({"type": "array", "items": TEXT}, {"type": "array"}, [1]),
    "no longer always there": (
        {"type": "object", "properties": {"a": TEXT}, "required": ["a"]},
        {"type": "object", "properties": {"a": TEXT}},
        {},
    ),
    "field gone": ({"type": "object", "properties": {"a": TEXT}}, {"type": "object"}, ...),
    "field retyped": (
        {"type": "object", "properties": {"a": TEXT}},
        {"type": "object", "properties": {"a": {"type": "null"}}},
        {"a": None},
    ),
    "other fields": ({"type": "object", "additionalProperties": TEXT}, {"type": "object"}, {"a": 1}),
    "field beside typed others": (
        {"type": "object", "additionalProperties": TEXT},
        {"type": "object", "additionalProperties": TEXT, "properties": {"a": {"type": "null"}}},
        {"a": None},
    ),
    "beside what is not understood": (
        {"type": "object", "properties": {"a": {}}, "not": {"required": ["a"]}},
        {"type": "object", "properties": {"a": {}}},
        {"a": 1},
    ),
    "within what is not understood": ({"anyOf": [TEXT]}, {"anyOf": [{"type": "null"}]}, None),
}  # fmt: skip
COMPATIBLE: dict[str, tuple[Map, Map]] = {
    "described": (TEXT, {**TEXT, "description": "x"}),
    "field added": (
        {"type": "object", "properties": {"a": TEXT}}, {"type": "object", "properties": {"a": TEXT, "b": {}}},
    ),
    "field added to a closed one": (
        {"type": "object", "additionalProperties": False},
        {"type": "object", "additionalProperties": False, "properties": {"a": TEXT}},
    ),
    "always there": (
        {"type": "object", "properties": {"a": TEXT}}, {"type": "object", "properties": {"a": TEXT}, "required": ["a"]},
    ),
    "no longer null": ({"type": ["string", "null"]}, TEXT),
    "integers only": ({"type": "number"}, {"type": "integer"}),
    "typed": ({}, TEXT),
    "fewer values": ({"enum": ["a", "b"]}, {"enum": ["a"]}),
    "one value": ({"enum": ["a", "b"]}, {"const": "b"}),
    "limited": (TEXT, {**TEXT, "maxLength": 5}),
    "tightened": ({"type": "integer", "minimum": 1, "maximum": 9}, {"type": "integer", "minimum": 2, "maximum": 8}),
    "typed items": ({"type": "array"}, {"type": "array", "items": TEXT}),
    "closed": ({"type": "object"}, {"type": "object", "additionalProperties": False}),
}  # fmt: skip

Place = Callable[[Any], Any]


def field(name: str, others: Map, required: list[str], closed: bool) -> tuple[Place, Place]:
    """Below a field: of the schema, and of its values, which have the other required fields as well."""
    further: Map = {"additionalProperties": False} if closed else {}
    known = {**dict.fromkeys(required, TEXT), **others}
    return (
        lambda schema: {"type": "object", "properties": {**known, name: schema}, "required": required, **further},
        lambda value: {**dict.fromkeys(required, "x"), name: value},
    )


def items(most: int) -> tuple[Place, Place]:
    """Below the items of a list."""
    return lambda schema: {"type": "array", "items": schema, "maxItems": most}, lambda value: [value]


names = st.sampled_from(["b", "c", "d"])
others = st.dictionaries(names, st.sampled_from([TEXT, {}, {**TEXT, "maxLength": 3}]), max_size=3)
places = st.lists(
    st.builds(field, st.just("a"), others, st.lists(names, max_size=2, unique=True), st.booleans())
    | st.builds(items, st.integers(1, 4)),
    max_size=3,
)
schemas = settings(max_examples=15, suppress_health_check=[HealthCheck.too_slow])


@pytest.mark.parametrize("name", BREAKING)
@schemas
@given(way=places, at=st.just("output"))
def test_every_breaking_change_is_major_wherever_it_is(name: str, way: list[tuple[Place, Place]], at: str) -> None:
    old, new, value = BREAKING[name]
    for schema_at, value_at in way:
        old, new = schema_at(old), schema_at(new)
        value = value if value is ... else value_at(value)
    if value is not ...:
        assert jsonschema.Draft202012Validator(new).is_valid(value)
        assert not jsonschema.Draft202012Validator(old).is_valid(value)
    assert level_of(compare(old, new, at)) is Level.MAJOR


@pytest.mark.parametrize("name", COMPATIBLE)
@schemas
@given(way=places, at=st.just("output"))
def test_every_compatible_change_passes_wherever_it_is(name: str, way: list[tuple[Place, Place]], at: str) -> None:
    old, new = COMPATIBLE[name]
    for schema_at, _ in way:
        old, new = schema_at(old), schema_at(new)
    assert Level.NONE < level_of(compare(old, new, at)) < Level.MAJOR
