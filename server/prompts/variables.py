"""The variables that a prompt declares, and the check of the values that a client gives for them. Pure."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Annotated, Any, Final, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

MAX_STRING: Final = 10_000
"""Characters of a text whose declaration names no `max_length`."""
MAX_ITEMS: Final = 100
"""Items of a list whose declaration names no `max_items`."""
MOST_ITEMS: Final = 1_000
"""Largest `max_items`: a template may loop over a list, while the node serves nobody else."""
MOST_CHARACTERS: Final = 1_000_000
"""Largest `max_length`."""
NAME_PATTERN: Final = r"^[A-Za-z_][A-Za-z0-9_]{0,63}$"
_SHOWN: Final = 8
"""How many of the allowed values an error names."""

Type = Literal["string", "integer", "number", "boolean", "array"]
Scalar = Literal["string", "integer", "number", "boolean"]
_WORDS: Final = {
    "string": "a text", "integer": "an integer", "number": "a number", "boolean": "true or false", "array": "a list",
}  # fmt: skip
_LIMITS: Final[Mapping[str, frozenset[str]]] = {
    "string": frozenset({"min_length", "max_length"}),
    "integer": frozenset({"minimum", "maximum"}),
    "number": frozenset({"minimum", "maximum"}),
    "boolean": frozenset(),
    "array": frozenset({"items", "min_items", "max_items", "min_length", "max_length", "minimum", "maximum"}),
}
"""Which limits each type may have."""


class Part(BaseModel):
    """A part of a prompt file: strict types, unknown keys are errors."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True, allow_inf_nan=False, protected_namespaces=())


class Variable(Part):
    """A declared variable. One without `default` is required."""

    type: Type = "string"
    description: str = ""
    required: bool = True
    """Follows from `default`; may be written for the reader."""
    default: Any = None
    enum: Annotated[list[Any], Field(min_length=1)] | None = None
    """The only values allowed; of a list: the only items."""
    items: Scalar | None = None
    """Type of the items of a list."""
    min_length: Annotated[int, Field(ge=0)] | None = None
    max_length: Annotated[int, Field(ge=1, le=MOST_CHARACTERS)] | None = None
    """Characters of a text, or of each text of a list; `MAX_STRING` unless given."""
    min_items: Annotated[int, Field(ge=0)] | None = None
    max_items: Annotated[int, Field(ge=1, le=MOST_ITEMS)] | None = None
    """`MAX_ITEMS` unless given."""
    minimum: int | float | None = None
    maximum: int | float | None = None

    @model_validator(mode="before")
    @classmethod
    def _required_follows(cls, value: Any) -> Any:
        if not isinstance(value, dict):
            return value
        optional = "default" in value
        if value.get("required", not optional) is optional:
            raise ValueError("`required` says the opposite of `default`: what is not required needs a default")
        return {**value, "required": not optional}

    @model_validator(mode="after")
    def _hangs_together(self) -> Self:
        limits = {"items", "min_items", "max_items", "min_length", "max_length", "minimum", "maximum"}
        given = {name for name in limits if getattr(self, name) is not None}
        if wrong := sorted(given - _LIMITS[self.type]):
            raise ValueError(f"`{wrong[0]}` is not for a variable of type {self.type}")
        if self.type == "array" and self.items is None:
            raise ValueError('a list needs `items`, as in items = "string"')
        if wrong := sorted(
            given - _LIMITS["array"] | (given - {"items", "min_items", "max_items"}) - _LIMITS[self.kind]
        ):
            raise ValueError(f"`{wrong[0]}` is not for items of type {self.kind}")
        if self.enum is not None:
            for value in self.enum:
                if (problem := self._scalar(value)) is not None:
                    raise ValueError(f"`enum` holds a value that {problem}")
            if self.kind == "boolean":
                raise ValueError("`enum` is not for true or false")
        if not self.required and (problem := self.problem(self.default)) is not None:
            raise ValueError(f"`default` {problem}")
        return self

    @property
    def kind(self) -> Scalar:
        """Type of the value, or of a list's items."""
        return (self.items or "string") if self.type == "array" else self.type

    def problem(self, value: Any) -> str | None:
        """What is wrong with a value, in words that follow the variable's name; None if nothing is."""
        if self.type != "array":
            return self._scalar(value) or self._not_listed(value)
        if not isinstance(value, list):
            return _not_a("array", value)
        if len(value) < (self.min_items or 0):
            return f"has {len(value)} items; at least {self.min_items} are needed"
        if len(value) > (most := self.max_items or MAX_ITEMS):
            return f"has {len(value)} items; at most {most} are allowed"
        for index, item in enumerate(value):
            if (problem := self._scalar(item) or self._not_listed(item)) is not None:
                return f"has an item, [{index}], that {problem}"
        return None

    def _scalar(self, value: Any) -> str | None:
        if not _is(self.kind, value):
            return _not_a(self.kind, value)
        if isinstance(value, str):
            return self._text(value)
        if isinstance(value, bool):
            return None
        if self.minimum is not None and value < self.minimum:
            return f"is {value}; the least is {self.minimum}"
        if self.maximum is not None and value > self.maximum:
            return f"is {value}; the most is {self.maximum}"
        return None

    def _text(self, value: str) -> str | None:
        if len(value) < (self.min_length or 0):
            return f"has {len(value)} characters; at least {self.min_length} are needed"
        if len(value) > (most := self.max_length or MAX_STRING):
            return f"has {len(value)} characters; at most {most} are allowed"
        return None

    def _not_listed(self, value: Any) -> str | None:
        if self.enum is None or value in self.enum:
            return None
        shown = ", ".join(map(repr, self.enum[:_SHOWN])) + (", …" if len(self.enum) > _SHOWN else "")
        return f"is not one of {shown}"


def _is(kind: str, value: Any) -> bool:
    match kind:
        case "string":
            return isinstance(value, str)
        case "boolean":
            return isinstance(value, bool)
        case "integer":
            return isinstance(value, int) and not isinstance(value, bool)
        case _:
            return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _not_a(kind: str, value: Any) -> str:
    found = next((name for name in ("boolean", "integer", "number", "string") if _is(name, value)), None)
    given = _WORDS[found] if found else {list: "a list", dict: "an object", type(None): "null"}.get(type(value), "else")
    return f"has to be {_WORDS[kind]}, not {given}"


def bind(declared: Mapping[str, Variable], given: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, str]]:
    """The values of all variables, defaults filled in; and what is wrong with each that is wrong, by name."""
    problems = {}
    for name in sorted(given.keys() - declared.keys()):
        known = ", ".join(f"`{other}`" for other in declared) or "none"
        problems[name[:64]] = f"is not declared; declared are: {known}"
    values = {}
    for name, variable in declared.items():
        if name not in given:
            if variable.required:
                problems[name] = "is missing"
            values[name] = variable.default
        elif (problem := variable.problem(given[name])) is not None:
            problems[name] = problem
        else:
            values[name] = given[name]
    return values, problems
