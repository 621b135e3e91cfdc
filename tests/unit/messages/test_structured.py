"""Answers against the format that was asked for; formats that nothing could be checked against."""

from __future__ import annotations

import time
from typing import Any

import pytest

from protocol.errors import ProtocolError
from server.messages.structured import Mismatch, check, check_format, wants_check

Map = dict[str, Any]
PERSON: Map = {
    "type": "object",
    "properties": {"name": {"type": "string", "pattern": "^[A-Z]"}, "age": {"type": "integer", "minimum": 0}},
    "required": ["name"],
    "additionalProperties": False,
}


def asked(schema: Any) -> Map:
    return {"type": "json_schema", "json_schema": {"name": "x", "schema": schema}}


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ('{"name": "Anna", "age": 3}', None),
        ('{"name": "Anna"}', None),
        ("", "not JSON"),
        ("Here you are: {}", "not JSON"),
        ('{"name": "Anna"', "not JSON"),
        ("{}", "at $: `required`"),
        ('{"name": "anna"}', "at $.name: `pattern`"),
        ('{"name": "Anna", "age": "3"}', "at $.age: `type`"),
        ('{"name": "Anna", "size": 3}', "at $: `additionalProperties`"),
        ("[]", "at $: `type`"),
    ],
)
def test_an_answer_fits_or_the_place_and_the_rule_are_told(text: str, why: str | None) -> None:
    check_format(asked(PERSON))
    if why is None:
        check(asked(PERSON), text)
        return
    with pytest.raises(Mismatch) as caught:
        check(asked(PERSON), text)
    assert why in str(caught.value)
    assert "anna" not in str(caught.value)


def test_json_object_is_any_object() -> None:
    check({"type": "json_object"}, '{"a": [1]}')
    for text in ("[1]", "3", "nonsense"):
        with pytest.raises(Mismatch):
            check({"type": "json_object"}, text)


@pytest.mark.parametrize(
    ("given", "why"),
    [
        ({}, "`type` has to be"),
        ({"type": "xml"}, "`type` has to be"),
        ({"type": "json_schema"}, "`json_schema.schema`"),
        (asked([]), "`json_schema.schema`"),
        (asked({"type": "strange"}), "invalid at $.type"),
        (asked({"properties": {"a": {"minimum": "x"}}}), "invalid at $.properties.a.minimum"),
        (asked({"$ref": "https://example.com/schema"}), "within the schema"),
        (asked({"$ref": "file:///etc/passwd"}), "within the schema"),
        (asked({"$ref": "#/$defs/nothing"}), "leads nowhere"),
        (asked({"pattern": "(("}), "no regular expression"),
        (asked({"patternProperties": {"a": {}}}), "not supported"),
        (asked({"$schema": "https://example.com/own"}), "no draft"),
        (asked({"enum": ["x" * 70_000]}), "more than"),
    ],
)
def test_a_format_that_nothing_can_be_checked_against_is_refused(given: Map, why: str) -> None:
    for _ in range(2):  # what is refused is not remembered as good
        with pytest.raises(ProtocolError, match="response_format") as caught:
            check_format(given)
        assert caught.value.code == "invalid_frame"
        assert why in caught.value.message


@pytest.mark.parametrize(
    "schema",
    [
        PERSON,
        {"$defs": {"node": {"properties": {"next": {"$ref": "#/$defs/node"}}}}, "$ref": "#/$defs/node"},
        {"$schema": "http://json-schema.org/draft-07/schema#", "type": "string"},
        {"properties": {"pattern": {"type": "string"}, "patternProperties": {"type": "object"}}},
    ],
)
def test_good_schemas_are_let_in(schema: Map) -> None:
    check_format(asked(schema))
    check_format({"type": "text"})
    check_format(None)


def test_an_answer_that_says_itself_that_it_is_not_whole_is_not_checked() -> None:
    assert wants_check(asked(PERSON), "stop")
    assert not wants_check(asked(PERSON), "length")
    assert not wants_check(asked(PERSON), "tool_calls")
    assert not wants_check({"type": "text"}, "stop")
    assert not wants_check(None, "stop")


def bomb(depth: int) -> Map:
    """A small schema that asks for 2 ** depth checks."""
    named = {f"d{n}": {"allOf": [{"$ref": f"#/$defs/d{n + 1}"}, {"$ref": f"#/$defs/d{n + 1}"}]} for n in range(depth)}
    return {"$defs": {**named, f"d{depth}": {}}, "$ref": "#/$defs/d0"}


@pytest.mark.parametrize(
    ("schema", "text"),
    [
        ({"pattern": "^(a+)+$"}, '"' + "a" * 60 + '!"'),
        (bomb(40), "1"),
        ({"$ref": "#"}, "1"),
        ({"allOf": [{"$ref": "#"}]}, "1"),
        ({"uniqueItems": True}, "[" + "{}," * 10 + "{}]"),
    ],
)
def test_hostile_schemas_cost_a_mismatch_and_little_time(schema: Map, text: str) -> None:
    check_format(asked(schema))
    began = time.process_time()
    with pytest.raises(Mismatch):
        check(asked(schema), text)
    assert time.process_time() - began < 20.0
