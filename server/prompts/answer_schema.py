"""Which JSON Schemas an answer can be checked against. Pure.

Schemas come from clients and from files: nothing is fetched for a `$ref`, a `pattern` has to be one, and
`patternProperties`, whose patterns nobody could stop, is not supported.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import lru_cache
from typing import Any, Final

import orjson
import regex
from jsonschema import Draft202012Validator, validators
from jsonschema.exceptions import SchemaError
from referencing import Registry
from referencing.exceptions import Unresolvable
from referencing.jsonschema import DRAFT202012

MAX_SCHEMA_BYTES: Final = 65_536
SCHEMAS_REMEMBERED: Final = 256
"""So many schemas that were found to be good are not checked again: most requests of an application have the same."""
NOTHING_ELSE: Final[Registry[Any]] = Registry()
"""What a reference may lead to beside the schema itself."""
_REFERENCES: Final = ("$ref", "$dynamicRef", "$recursiveRef")

Map = Mapping[str, Any]


class BadSchema(ValueError):
    """No answer could be checked against this schema; the text says why."""


def check_schema(schema: Map) -> None:
    """Raises `BadSchema`."""
    try:
        packed = orjson.dumps(schema)
    except TypeError:
        raise BadSchema("the schema is nested too deeply") from None
    if len(packed) > MAX_SCHEMA_BYTES:
        raise BadSchema(f"the schema has more than {MAX_SCHEMA_BYTES} bytes")
    _check(packed)


@lru_cache(maxsize=SCHEMAS_REMEMBERED)
def _check(packed: bytes) -> None:
    schema: Map = orjson.loads(packed)
    for path, key, value in _keywords(schema, "$"):
        _check_keyword(path, key, value)
    try:
        dialect_of(schema).check_schema(schema)
    except SchemaError as error:
        raise BadSchema(f"the schema is invalid at {error.json_path}: `{error.validator}` does not hold") from None
    _check_references(schema)


def _keywords(value: Any, path: str) -> Iterator[tuple[str, str, Any]]:
    """(place, key, value) of every key in every object of the schema."""
    if isinstance(value, Mapping):
        for key, part in value.items():
            yield path, key, part
            yield from _keywords(part, f"{path}.{key}")
    elif isinstance(value, list):
        for index, part in enumerate(value):
            yield from _keywords(part, f"{path}[{index}]")


def _check_keyword(path: str, key: str, value: Any) -> None:
    if key in _REFERENCES and isinstance(value, str) and not value.startswith("#"):
        raise BadSchema(f"{path}: a `{key}` has to lead to a place within the schema (`#…`)")
    if key == "patternProperties" and isinstance(value, Mapping) and not path.endswith(".properties"):
        raise BadSchema(f"{path}: `patternProperties` is not supported")
    if key == "pattern" and isinstance(value, str):
        try:
            regex.compile(value)
        except (regex.error, RecursionError, OverflowError):
            raise BadSchema(f"{path}: the `pattern` is no regular expression") from None


def dialect_of(schema: Map) -> Any:
    """The draft that the schema speaks, as a class of validators. Raises `BadSchema`."""
    if "$schema" not in schema:
        return Draft202012Validator
    found = validators.validator_for(schema, default=None)  # type: ignore[arg-type]
    if found is None:
        raise BadSchema("`$schema` names no draft of JSON Schema that is known here")
    return found


def _check_references(schema: Map) -> None:
    if any(key in ("$id", "id") for _, key, _ in _keywords(schema, "$")):
        return  # then what `#` means depends on the place: a reference that leads nowhere shows in the answer
    resolver = NOTHING_ELSE.with_resource("", DRAFT202012.create_resource(schema)).resolver()
    for path, key, value in _keywords(schema, "$"):
        if key == "$ref" and isinstance(value, str):
            try:
                resolver.lookup(value)
            except Unresolvable:
                raise BadSchema(f"{path}: the `$ref` leads nowhere") from None
