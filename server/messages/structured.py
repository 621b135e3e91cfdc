"""Whether an answer fits the `response_format` that was asked for. Pure.

`json_object`: the text is one JSON object. `json_schema`: it is JSON that fits `json_schema.schema` (JSON Schema
2020-12, or the draft that `$schema` names; see `server.prompts.answer_schema`). Schemas come from clients, so a pattern
may not take for ever (`PATTERN_SECONDS`), and neither may the whole (`MOST_STEPS`, `MAX_ANSWER_BYTES`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, Final

import orjson
import regex
from jsonschema import validators
from jsonschema.exceptions import ValidationError
from jsonschema.protocols import Validator
from referencing.exceptions import Unresolvable

from protocol.errors import ProtocolError
from server.prompts.answer_schema import NOTHING_ELSE, BadSchema, check_schema, dialect_of

MAX_ANSWER_BYTES: Final = 8_388_608
"""Largest answer that is checked; a larger one does not fit."""
PATTERN_SECONDS: Final = 0.05
"""Longest search for one pattern; one that takes longer counts as not found."""
MOST_STEPS: Final = 1_000_000
"""Most keywords that are applied to one answer: about a second's work."""
UNCHECKED_REASONS: Final = frozenset({"length", "tool_calls", "content_filter", "function_call"})
"""Finish reasons of answers that are not the whole of what was asked for, and say so themselves."""

Map = Mapping[str, Any]


class Mismatch(Exception):
    """The answer does not fit. The text names the place and the rule and quotes nothing of the answer."""


class _TooMuch(Exception):
    """The check takes too long."""


def check_format(given: Map | None) -> None:
    """Refuse a `response_format` that no answer could be checked against. Raises `ProtocolError("invalid_frame")`."""
    if given is None:
        return
    kind = given.get("type")
    if kind not in ("text", "json_object", "json_schema"):
        raise _refused("`type` has to be text, json_object or json_schema")
    if kind != "json_schema":
        return
    named = given.get("json_schema")
    schema = named.get("schema") if isinstance(named, Mapping) else None
    if not isinstance(schema, Mapping):
        raise _refused("`json_schema.schema` has to be a JSON schema")
    try:
        check_schema(schema)
    except BadSchema as error:
        raise _refused(str(error)) from None


def _refused(why: str) -> ProtocolError:
    return ProtocolError("invalid_frame", f"send: `response_format`: {why}")


def wants_check(given: Map | None, finish_reason: str) -> bool:
    """Whether an answer that ended so has to fit."""
    return (given or {}).get("type") in ("json_object", "json_schema") and finish_reason not in UNCHECKED_REASONS


def check(given: Map, text: str) -> None:
    """Whether `text` fits the `response_format`, which `check_format` has let in. Raises `Mismatch`."""
    if len(text) > MAX_ANSWER_BYTES:
        raise Mismatch(f"it has more than {MAX_ANSWER_BYTES} characters")
    try:
        value = orjson.loads(text)
    except orjson.JSONDecodeError:
        raise Mismatch("it is not JSON") from None
    if given["type"] == "json_object":
        if not isinstance(value, dict):
            raise Mismatch("it is JSON, but not an object")
        return
    try:
        error = next(_validator(given["json_schema"]["schema"]).iter_errors(value), None)
    except (_TooMuch, RecursionError):
        raise Mismatch("to check it against the schema takes too long") from None
    except Unresolvable:
        raise Mismatch("a `$ref` of the schema leads nowhere") from None
    if error is not None:
        raise Mismatch(f"at {error.json_path}: `{error.validator}` does not hold")


# --- the answer -------------------------------------------------------------------------------------------------------

_Keyword = Callable[[Any, Any, Any, Map], Iterable[ValidationError] | None]


def _validator(schema: Map) -> Validator:
    """A validator of the schema that stops after so many steps."""
    dialect, left = dialect_of(schema), [MOST_STEPS]

    def counted(keyword: _Keyword) -> _Keyword:
        def apply(validator: Any, value: Any, instance: Any, within: Map) -> Iterable[ValidationError] | None:
            left[0] -= 1
            if left[0] < 0:
                raise _TooMuch
            return keyword(validator, value, instance, within)

        return apply

    keywords = {name: counted(keyword) for name, keyword in dialect.VALIDATORS.items()}
    keywords["pattern"] = counted(_pattern)
    made: Validator = validators.extend(dialect, keywords)(schema, registry=NOTHING_ELSE)  # type: ignore[no-untyped-call]
    return made


def _pattern(validator: Any, pattern: str, instance: Any, within: Map) -> Iterator[ValidationError]:
    if not isinstance(instance, str):
        return
    try:
        found = regex.search(pattern, instance, timeout=PATTERN_SECONDS)
    except TimeoutError:
        found = None
    if found is None:
        yield ValidationError("the pattern was not found")
