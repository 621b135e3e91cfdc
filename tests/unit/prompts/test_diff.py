"""Changes and the version numbers they ask for: by example, and a generated corpus judged by what clients would see."""

from __future__ import annotations

from typing import Any, cast

import jsonschema
import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

from server.prompts.check import check, steps
from server.prompts.diff import changes, least_version, level_of, understated
from server.prompts.prompt import Declared, Prompt
from server.prompts.registry import Registry
from server.prompts.schema_diff import TYPES, Level, compare
from server.prompts.variables import bind
from server.prompts.version import Version

Map = dict[str, Any]
NONE, PATCH, MINOR, MAJOR = Level


def prompt(version: str = "1.0.0", **fields: Any) -> Prompt:
    declared = Declared.model_validate({"messages": [{"role": "system", "content": "a"}], **fields})
    return Prompt("p", Version.parse(version), declared, [None] * len(declared.messages))


def level(old: Map, new: Map) -> Level:
    return level_of(changes(prompt(**old), prompt(**new)))


def one(**variable: Any) -> Map:
    return {"variables": {"a": variable}}


def tool(**fields: Any) -> Map:
    return {"tools": [{"name": "f", **fields}]}


SHAPE: Map = {"type": "object", "properties": {"a": {"type": "string"}}, "required": ["a"]}


@pytest.mark.parametrize(
    ("old", "new", "expected"),
    [
        ({}, {}, NONE),
        ({}, {"description": "x"}, PATCH),
        ({}, {"messages": [{"role": "system", "content": "b"}]}, PATCH),
        ({}, {"messages": [{"role": "user", "content": "a"}]}, MINOR),
        ({}, {"messages": [{"insert": "messages"}, {"role": "system", "content": "a"}]}, MINOR),
        # variables
        (one(), {}, MAJOR),
        (one(), {"variables": {"b": {}}}, MAJOR),
        ({}, one(), MAJOR),
        ({}, one(default="x"), MINOR),
        (one(default="x"), one(), MAJOR),
        (one(), one(default="x"), MINOR),
        (one(default="x"), one(default="y"), MINOR),
        (one(default="x"), {}, MAJOR),
        (one(), one(description="x"), PATCH),
        (one(), one(type="integer"), MAJOR),
        (one(type="integer"), one(type="number"), MINOR),
        (one(type="number"), one(type="integer"), MAJOR),
        (one(), one(type="array", items="string"), MAJOR),
        (one(type="array", items="string"), one(type="array", items="integer"), MAJOR),
        (one(enum=["a", "b"]), one(enum=["a"]), MAJOR),
        (one(enum=["a"]), one(enum=["a", "b"]), MINOR),
        (one(enum=["a", "b"]), one(enum=["b", "a"]), NONE),
        (one(), one(enum=["a"]), MAJOR),
        (one(enum=["a"]), one(), MINOR),
        (one(), one(max_length=50), MAJOR),
        (one(), one(max_length=10_000), NONE),
        (one(), one(max_length=20_000), MINOR),
        (one(max_length=50), one(), MINOR),
        (one(), one(min_length=1), MAJOR),
        (one(type="integer", minimum=1), one(type="integer", minimum=0), MINOR),
        (one(type="integer", maximum=5), one(type="integer", maximum=4), MAJOR),
        (one(type="integer"), one(type="integer", maximum=4), MAJOR),
        (one(type="array", items="string"), one(type="array", items="string", max_items=5), MAJOR),
        # tools
        ({}, tool(), MAJOR),
        (tool(), {}, MAJOR),
        (tool(), tool(description="x"), PATCH),
        (tool(parameters=SHAPE), tool(parameters={**SHAPE, "required": []}), MAJOR),
        (tool(parameters={**SHAPE, "required": []}), tool(parameters=SHAPE), MINOR),
        (tool(parameters=SHAPE), tool(parameters={**SHAPE, "properties": {**SHAPE["properties"], "b": {}}}), MAJOR),
        (tool(strict=True), tool(), MAJOR),
        # output
        ({}, {"output": {"schema": SHAPE}}, MAJOR),
        ({"output": {"schema": SHAPE}}, {}, MAJOR),
        ({"output": {"schema": SHAPE}}, {"output": {"schema": SHAPE, "strict": False}}, MAJOR),
        (
            {"output": {"schema": SHAPE}},
            {"output": {"schema": {**SHAPE, "properties": {**SHAPE["properties"], "b": {}}}}},
            MINOR,
        ),
        # options
        ({}, {"options": {"temperature": 0.5}}, MINOR),
        ({}, {"options": {"tool_choice": "required"}}, MAJOR),
    ],
)
def test_changes(old: Map, new: Map, expected: Level) -> None:
    assert level(old, new) is expected


@pytest.mark.parametrize(
    ("old", "new", "expected"),
    [
        ({"type": "string"}, {"type": "integer"}, MAJOR),
        ({"type": "string"}, {"type": ["string", "null"]}, MAJOR),
        ({"type": ["string", "null"]}, {"type": "string"}, MINOR),
        ({"type": "number"}, {"type": "integer"}, MINOR),
        ({"type": "integer"}, {"type": "number"}, MAJOR),
        ({}, {"type": "string"}, MINOR),
        ({"type": "string"}, {}, MAJOR),
        ({"enum": ["a"]}, {"enum": ["a", "b"]}, MAJOR),
        ({"enum": ["a", "b"]}, {"enum": ["a"]}, MINOR),
        ({"enum": ["a", "b"]}, {"const": "a"}, MINOR),
        ({"const": 1}, {"const": True}, MAJOR),
        ({"maxLength": 5}, {"maxLength": 6}, MAJOR),
        ({"maxLength": 5}, {"maxLength": 4}, MINOR),
        ({"maxLength": 5}, {}, MAJOR),
        ({}, {"pattern": "a"}, MINOR),
        ({"pattern": "a"}, {"pattern": "ab"}, MAJOR),
        ({"items": {"type": "string"}}, {"items": {"type": "integer"}}, MAJOR),
        ({"items": {"type": "string"}}, {}, MAJOR),
        ({"items": [{"type": "string"}]}, {"items": [{"type": "null"}]}, MAJOR),
        ({"additionalProperties": False}, {}, MAJOR),
        ({"additionalProperties": True}, {"additionalProperties": False}, MINOR),
        ({"additionalProperties": {"type": "string"}}, {"additionalProperties": {"type": "null"}}, MAJOR),
        (
            {"additionalProperties": {"minimum": 1}},
            {"additionalProperties": {"minimum": 1}, "properties": {"a": {}}},
            MAJOR,
        ),
        ({"title": "x"}, {"title": "y"}, PATCH),
        ({"properties": {"title": {"type": "string"}}}, {"properties": {"title": {"type": "null"}}}, MAJOR),
        ({"anyOf": [{"type": "string"}]}, {"anyOf": [{"type": "null"}]}, MAJOR),
        ({"anyOf": [{}], "type": "string"}, {"anyOf": [{}]}, MAJOR),
        ({"anyOf": [{}], "title": "x"}, {"anyOf": [{}], "title": "y"}, PATCH),
        ({"properties": {"a": {"not": {}}}}, {"properties": {"a": {"not": {}}, "b": {}}}, MINOR),
        ({"$defs": {"x": {"type": "string"}}}, {"$defs": {"x": {"type": "null"}}}, MAJOR),
        ({"$defs": {"x": {}}}, {"$defs": {"x": {}}, "properties": {"a": {"$ref": "#/$defs/x"}}}, MINOR),
        (
            {"properties": {"a": {"not": {"$ref": "#/properties/b"}}, "b": {"type": ["string", "null"]}}},
            {"properties": {"a": {"not": {"$ref": "#/properties/b"}}, "b": {"type": "string"}}},
            MAJOR,
        ),
        ({"maximum": float("nan")}, {"maximum": 5}, MAJOR),
        ({"exclusiveMaximum": True, "maximum": 5}, {"exclusiveMaximum": False, "maximum": 5}, MAJOR),
        ({"type": "nonsense"}, {"type": "string"}, MAJOR),
        ({"properties": []}, {"properties": {}}, MAJOR),
        ({"required": "a"}, {"required": []}, MAJOR),
        (True, False, MAJOR),
    ],
)  # fmt: skip
def test_output_schemas(old: Any, new: Any, expected: Level) -> None:
    assert level_of(compare(old, new, "output")) is expected


@pytest.mark.parametrize(
    ("old", "wanted", "expected"),
    [
        ("1.2.3", PATCH, "1.2.4"), ("1.2.3", MINOR, "1.3.0"), ("1.2.3", MAJOR, "2.0.0"), ("1.2.3", NONE, "1.2.4"),
        ("0.2.3", PATCH, "0.2.4"), ("0.2.3", MINOR, "0.2.4"), ("0.2.3", MAJOR, "0.3.0"), ("0.0.3", MAJOR, "0.0.4"),
    ],
)  # fmt: skip
def test_the_least_version(old: str, wanted: Level, expected: str) -> None:
    assert str(least_version(Version.parse(old), wanted)) == expected
    assert not understated(Version.parse(old), Version.parse(expected), wanted)
    assert not understated(Version.parse(old), Version.parse("7.0.0"), wanted)


def registry(released: list[Prompt], drafts: list[Prompt]) -> Registry:
    return Registry(None, {"p": released}, {"p": drafts})


def test_each_version_is_compared_with_the_one_before_it_also_across_branches() -> None:
    first, third = prompt("1.0.0"), prompt("1.2.0", **one(default="x"))
    assert check(registry([first, third], [])) == []
    (found,) = check(registry([first, third], [prompt("1.1.0", variables={"b": {"default": "y"}})]))
    assert found.path == "p/1.2.0.toml", "it would take away what 1.1.0 has"
    assert "has to be 2.0.0 or higher, as major: variables.b: removed (or renamed)" in found.message
    (found,) = check(registry([first], [prompt("1.0.1", **one())]))
    assert found.path == "p/1.0.1.toml"
    assert check(registry([first], [prompt("2.0.0-rc.1", **one()), prompt("2.0.0", **one(type="integer"))])) == []
    assert check(registry([first], [prompt("1.0.1-rc.1", **one())])) != []
    told = [(str(s.prompt.version), s.level, s.released) for s in steps(registry([first], [third]), "p")]
    assert told == [("1.0.0", NONE, True), ("1.2.0", MINOR, False)]


# --- a generated corpus: what a client of the old version would trip over has to be a major change --------------------

names = st.sampled_from(["a", "b", "c", "d"])
words = st.sampled_from(["x", "yy", "zzz", "1"])
numbers = st.integers(-2, 6)


@st.composite
def variables(draw: st.DrawFn) -> Map:
    kind = draw(st.sampled_from(["string", "integer", "number", "boolean", "array"]))
    found: Map = {"type": kind}
    items = draw(st.sampled_from(["string", "integer"])) if kind == "array" else kind
    if kind == "array":
        found["items"] = items
        found |= draw(
            st.fixed_dictionaries({}, optional={"min_items": st.integers(0, 2), "max_items": st.integers(2, 4)})
        )
    if items == "string":
        limits = {"min_length": st.integers(0, 2), "max_length": st.integers(2, 4)}
        found |= draw(st.fixed_dictionaries({}, optional={**limits, "enum": st.lists(words, min_size=1, unique=True)}))
    elif items in ("integer", "number"):
        limits = {"minimum": st.integers(-2, 1), "maximum": st.integers(2, 6)}
        found |= draw(
            st.fixed_dictionaries({}, optional={**limits, "enum": st.lists(numbers, min_size=1, unique=True)})
        )
    return found


def sample_values(kind: str) -> st.SearchStrategy[Any]:
    scalars: dict[str, st.SearchStrategy[Any]] = {
        "string": words | st.just(""), "integer": numbers, "number": numbers | st.just(0.5), "boolean": st.booleans(),
    }  # fmt: skip
    if kind == "array":
        return st.lists(words, max_size=4) | st.lists(numbers, max_size=4)
    return scalars[kind]


def acceptable(fields: Map) -> Prompt | None:
    try:
        return prompt(**fields)
    except ValueError:
        return None


@st.composite
def prompts_and_changed_ones(draw: st.DrawFn) -> tuple[Prompt, Prompt, Map]:
    """A prompt, a version of it with some of its variables changed, and values that the old one accepts."""
    old_fields = draw(st.dictionaries(names, variables(), max_size=3))
    new_fields = dict(old_fields)
    for name in draw(st.lists(names, max_size=2, unique=True)):
        change = draw(st.sampled_from(["drop", "put", "tweak"]))
        if change == "drop":
            new_fields.pop(name, None)
        elif change == "put" or name not in new_fields:
            new_fields[name] = draw(variables())
        else:
            fresh = draw(variables())
            if fresh["type"] == new_fields[name]["type"] and fresh.get("items") == new_fields[name].get("items"):
                word = draw(st.sampled_from(sorted(fresh)))
                new_fields[name] = {**new_fields[name], word: fresh[word]}
    given: Map = {}
    for fields in (old_fields, new_fields):
        for name in sorted(fields):
            if draw(st.booleans()):
                candidate = draw(sample_values(fields[name]["type"]))
                fields[name] = {**fields[name], "default": candidate}
    old, new = acceptable({"variables": old_fields}), acceptable({"variables": new_fields})
    assume(old is not None and new is not None)
    for name, fields in old_fields.items():
        if "default" not in fields or draw(st.booleans()):
            given[name] = draw(sample_values(fields["type"]))
    return cast(Prompt, old), cast(Prompt, new), given


UNHURRIED = [HealthCheck.filter_too_much, HealthCheck.too_slow]
LENGTHS = [
    pytest.param(300, id="short"),
    pytest.param(10_000, id="long", marks=[pytest.mark.slow, pytest.mark.timeout(900)]),
]


@pytest.mark.parametrize("examples", LENGTHS)
def test_whatever_refuses_values_that_were_accepted_is_major(examples: int) -> None:
    @settings(max_examples=examples, suppress_health_check=UNHURRIED)
    @given(prompts_and_changed_ones())
    def holds(case: tuple[Prompt, Prompt, Map]) -> None:
        old, new, values = case
        assume(not bind(old.variables, values)[1])
        if bind(new.variables, values)[1]:
            assert level_of(changes(old, new)) is MAJOR

    holds()


scalars = st.sampled_from([None, True, False, 0, 1, 2, 5, 0.5, "", "a", "bb", "ccc"])
values = st.recursive(
    scalars, lambda inner: st.lists(inner, max_size=2) | st.dictionaries(names, inner, max_size=3), max_leaves=5
)


def schemas(depth: int = 2) -> st.SearchStrategy[Any]:
    parts: dict[str, st.SearchStrategy[Any]] = {
        "type": st.sampled_from(sorted(TYPES))
        | st.lists(st.sampled_from(sorted(TYPES)), min_size=1, max_size=3, unique=True),
        "enum": st.lists(scalars, min_size=1, max_size=3),
        "const": scalars,
        "minimum": numbers,
        "maximum": numbers,
        "exclusiveMinimum": numbers,
        "minLength": st.integers(0, 2),
        "maxLength": st.integers(0, 3),
        "maxItems": st.integers(0, 2),
        "minProperties": st.integers(0, 2),
        "multipleOf": st.sampled_from([1, 2]),
        "uniqueItems": st.booleans(),
        "pattern": st.sampled_from(["a", "^b"]),
        "required": st.lists(names, max_size=2, unique=True),
        "title": st.just("t"),
    }
    if depth:
        inner = schemas(depth - 1)
        parts |= {
            "properties": st.dictionaries(names, inner, max_size=3),
            "items": inner,
            "additionalProperties": st.booleans() | inner,
            "anyOf": st.lists(inner, min_size=1, max_size=2),
            "not": inner,
            "propertyNames": st.just({"pattern": "a"}),
            "patternProperties": st.dictionaries(st.sampled_from(["a", "b|c"]), inner, max_size=1),
        }

    def at_most_four(keys: list[str]) -> st.SearchStrategy[Any]:
        return st.fixed_dictionaries({key: parts[key] for key in keys})

    return st.booleans() | st.lists(st.sampled_from(sorted(parts)), max_size=4, unique=True).flatmap(at_most_four)


def keywords(kind: str, depth: int) -> dict[str, st.SearchStrategy[Any]]:
    """What a schema of a type may say besides."""
    inner = shapes(depth - 1) if depth else st.just({"type": "string"})
    found: dict[str, dict[str, st.SearchStrategy[Any]]] = {
        "string": {"minLength": st.integers(0, 2), "maxLength": st.integers(1, 3), "enum": st.lists(words, min_size=1),
                   "pattern": st.sampled_from(["x", "y"])},
        "integer": {"minimum": numbers, "maximum": numbers, "enum": st.lists(numbers, min_size=1)},
        "number": {"minimum": numbers, "exclusiveMaximum": numbers},
        "array": {"items": inner, "minItems": st.integers(0, 2), "maxItems": st.integers(0, 2)},
        "object": {
            "properties": st.dictionaries(names, inner, min_size=1, max_size=3),
            "required": st.lists(names, max_size=2, unique=True),
            "additionalProperties": st.booleans() | inner,
            "not": st.sampled_from([{"required": ["a"]}, {"required": ["b"]}]),
        },
    }  # fmt: skip
    return found[kind]


def shapes(depth: int = 2) -> st.SearchStrategy[Map]:
    """Schemas as people write them: a type, and what belongs to it."""

    def of(kind: str) -> st.SearchStrategy[Map]:
        return st.fixed_dictionaries({"type": st.just(kind)}, optional=keywords(kind, depth))

    kinds = ["string", "integer", "number", *(["object", "object", "array"] if depth else [])]
    return st.sampled_from(kinds).flatmap(of)


def _tweaked(draw: st.DrawFn, schema: Map, depth: int) -> Map:
    """The schema with one thing changed, here or below."""
    kind = schema["type"]
    if isinstance(schema.get("properties"), dict) and draw(st.booleans()):
        name = draw(st.sampled_from(sorted(schema["properties"])))
        below = _tweaked(draw, schema["properties"][name], depth - 1)
        return {**schema, "properties": {**schema["properties"], name: below}}
    if isinstance(schema.get("items"), dict) and draw(st.booleans()):
        return {**schema, "items": _tweaked(draw, schema["items"], depth - 1)}
    known = keywords(kind, max(0, depth))
    word = draw(st.sampled_from(["type", *sorted(known)]))
    if word == "type":
        other = {"integer": "number", "number": "string"}.get(kind, "integer")
        return draw(st.sampled_from([{**schema, "type": [kind, "null"]}, {**schema, "type": other}]))
    if word in schema and draw(st.booleans()):
        return {key: value for key, value in schema.items() if key != word}
    if word == "properties" and word in schema:
        name = draw(names)
        if name in schema[word]:
            return {**schema, word: {key: value for key, value in schema[word].items() if key != name}}
        return {**schema, word: {**schema[word], name: draw(shapes(0))}}
    return {**schema, word: draw(known[word])}


def written_by(schema: Any) -> st.SearchStrategy[Any]:
    """Values of about the shape that a schema describes."""
    if not isinstance(schema, dict):
        return scalars
    kinds = schema.get("type", "integer")
    kind = kinds if isinstance(kinds, str) else kinds[0]
    plain: dict[str, st.SearchStrategy[Any]] = {
        "string": words | st.just(""), "integer": numbers, "number": numbers | st.just(0.5),
    }  # fmt: skip
    if kind == "object":
        parts = {name: written_by(part) for name, part in schema.get("properties", {}).items()}
        for name in schema.get("required", []):
            parts.setdefault(name, scalars)
        further = st.dictionaries(names, written_by(schema.get("additionalProperties")) | scalars, max_size=1)
        shaped = st.tuples(further, st.fixed_dictionaries({}, optional=parts)).map(lambda two: {**two[0], **two[1]})
        return shaped | st.fixed_dictionaries(parts)
    if kind == "array":
        return st.lists(written_by(schema.get("items")), max_size=3)
    return plain[kind] | scalars if isinstance(kinds, str) else plain.get(kind, scalars) | st.none()


@st.composite
def changed_and_written(draw: st.DrawFn) -> tuple[Map, Map, list[Any]]:
    """A schema, one that differs from it in one thing, and values that the new one may bring."""
    old = draw(shapes())
    new = _tweaked(draw, old, 2)
    return old, new, draw(st.lists(written_by(new), min_size=2, max_size=8))


def relaxed(schema: Any, new: Any) -> Any:
    """The old schema for a reader that passes over fields it does not know."""
    if not isinstance(schema, dict):
        return schema
    found = {key: value for key, value in schema.items() if key != "additionalProperties" or value is not False}
    if isinstance(found.get("properties"), dict):
        inner = new.get("properties", {}) if isinstance(new, dict) else {}
        found["properties"] = {name: relaxed(part, inner.get(name, {})) for name, part in found["properties"].items()}
    if "items" in found:
        found["items"] = relaxed(found["items"], {})
    return found


@pytest.mark.parametrize("examples", LENGTHS)
def test_whatever_brings_values_that_a_reader_did_not_expect_is_major(examples: int) -> None:
    @settings(max_examples=examples, suppress_health_check=UNHURRIED)
    @given(changed_and_written())
    def holds(case: tuple[Map, Map, list[Any]]) -> None:
        old, new, written = case
        if level_of(compare(old, new, "output")) is MAJOR:
            return
        reader, writer = jsonschema.Draft202012Validator(relaxed(old, new)), jsonschema.Draft202012Validator(new)
        for value in written:
            if writer.is_valid(value):
                assert reader.is_valid(value), value

    holds()


@settings(max_examples=60)
@given(schemas(), schemas())
def test_any_two_schemas_can_be_compared(old: Any, new: Any) -> None:
    assert level_of(compare(old, old, "output")) is NONE
    compare(old, new, "output")
