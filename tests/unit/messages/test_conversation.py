"""How inputs become entries."""

from __future__ import annotations

from typing import Any

import orjson
import pytest

from protocol.errors import ProtocolError
from server.messages.conversation import (
    MAX_INPUTS,
    PART_BYTES,
    by_reference,
    inputs_of,
    new_entries,
    resolved,
)

Map = dict[str, Any]


@pytest.mark.parametrize(
    ("given_input", "roles"),
    [
        ("x", ["user"]), ([{"type": "text", "text": "x"}], ["user"]),
        ({"role": "tool", "tool_call_id": "c", "content": "x"}, ["tool"]),
        ([{"role": "system", "content": "x"}, {"role": "user", "content": "y"}], ["system", "user"]), (None, []),
    ],
)  # fmt: skip
def test_inputs_come_in_four_forms(given_input: Any, roles: list[str]) -> None:
    assert [message["role"] for message in inputs_of(given_input)] == roles


@pytest.mark.parametrize("wrong", [[], [{"role": "user"}], [{"role": "tool", "content": "x"}], [{"x": 1}]])
def test_wrong_inputs_are_named(wrong: Any) -> None:
    with pytest.raises(ProtocolError, match="input"):
        inputs_of(wrong)
    with pytest.raises(ProtocolError, match=str(MAX_INPUTS)):
        inputs_of([{"role": "user", "content": "x"}] * (MAX_INPUTS + 1))


def test_entering_twice_makes_the_same_entries() -> None:
    one, _ = new_entries("m", [{"role": "user", "content": "a"}, {"role": "user", "content": "b"}], 1.0)
    two, _ = new_entries("m", [{"role": "user", "content": "a"}, {"role": "user", "content": "b"}], 1.0)
    assert one == two
    assert (one[-1].id, len({entry.id for entry in one})) == ("m", 3)


@pytest.mark.parametrize(
    "content", ["é" * PART_BYTES, [{"type": "text", "text": "a"}, {"type": "file", "data": "b" * PART_BYTES}]]
)
def test_large_parts_go_by_reference_and_come_back_whole(content: Any) -> None:
    parts: dict[str, bytes] = {}
    short = by_reference({"role": "user", "content": content}, parts)
    assert (len(parts), len(orjson.dumps(short)) < 500) == (1, True)
    assert by_reference(short, {}) == short
    assert resolved(short, parts) == {"role": "user", "content": content}
