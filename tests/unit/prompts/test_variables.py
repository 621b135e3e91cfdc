"""Variables: declarations that make sense, values that fit them."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from server.prompts.variables import MAX_ITEMS, MAX_STRING, Variable, bind


def declared(**fields: Any) -> Variable:
    return Variable.model_validate(fields)


@pytest.mark.parametrize(
    ("fields", "good", "bad"),
    [
        ({}, ["", "x" * MAX_STRING], ["x" * (MAX_STRING + 1), 1, None, True, ["a"], {}]),
        ({"min_length": 2, "max_length": 3}, ["ab", "äöü"], ["a", "abcd"]),
        ({"enum": ["a", "b"]}, ["a"], ["c", "A", 1]),
        ({"type": "integer"}, [0, -5], [1.0, True, "1", None]),
        ({"type": "integer", "minimum": 1, "maximum": 3, "enum": [1, 3, 2]}, [1, 3], [0, 4]),
        ({"type": "number"}, [1, 1.5], [float("nan"), float("inf"), "1", False]),
        ({"type": "number", "minimum": 0.5}, [0.5], [0.4]),
        ({"type": "boolean"}, [True, False], [0, 1, "true", None]),
        ({"type": "array", "items": "string"}, [[], ["a"]], ["a", [1], ["a"] * (MAX_ITEMS + 1), [None], [["a"]]]),
        (
            {"type": "array", "items": "integer", "min_items": 1, "max_items": 2, "maximum": 5},
            [[5]],
            [[], [6], [1, 2, 3]],
        ),
        ({"type": "array", "items": "string", "enum": ["a"]}, [["a", "a"]], [["b"]]),
    ],
)
def test_values(fields: dict[str, Any], good: list[Any], bad: list[Any]) -> None:
    variable = declared(**fields)
    assert [variable.problem(value) for value in good] == [None] * len(good)
    for value in bad:
        assert variable.problem(value) is not None, value


@pytest.mark.parametrize(
    "fields",
    [
        {"required": False}, {"required": True, "default": "a"}, {"default": 5}, {"default": "c", "enum": ["a"]},
        {"enum": []}, {"enum": [1]}, {"type": "integer", "max_length": 5}, {"minimum": 1}, {"type": "array"},
        {"type": "array", "items": "string", "minimum": 1}, {"type": "array", "items": "array"}, {"type": "object"},
        {"items": "string"}, {"type": "boolean", "enum": [True]}, {"pattern": "a+"}, {"max_items": 5},
        {"type": "array", "items": "string", "max_items": 5_000}, {"enum": ["abc"], "max_length": 2},
        {"type": "integer", "default": 1, "minimum": 2},
    ],
)  # fmt: skip
def test_declarations_that_make_no_sense_are_refused(fields: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        declared(**fields)


def test_all_problems_are_told_at_once_and_defaults_filled_in() -> None:
    variables = {"a": declared(), "b": declared(default="x"), "c": declared(type="integer")}
    values, problems = bind(variables, {"a": "1", "c": 2})
    assert (values, problems) == ({"a": "1", "b": "x", "c": 2}, {})
    _, problems = bind(variables, {"c": "2", "d" * 500: 1})
    assert problems == {
        "a": "is missing",
        "c": "has to be an integer, not a text",
        "d" * 64: "is not declared; declared are: `a`, `b`, `c`",
    }


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(), lambda inner: st.lists(inner, max_size=3)
)


@given(st.sampled_from(["string", "integer", "number", "boolean"]), json_values)
def test_any_value_is_accepted_or_told_why_not(kind: str, value: Any) -> None:
    assert isinstance(declared(type=kind).problem(value), str | None)
