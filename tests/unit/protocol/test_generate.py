"""What is generated: up to date, valid, and of use."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import jsonschema
import pytest

from protocol import generate
from protocol.errors import CLOSE_MEANINGS, ERRORS
from protocol.frames import CLIENT_FRAMES, SERVER_FRAMES
from tests.unit.protocol.test_vectors import VECTORS

Map = dict[str, Any]
CLIENT = jsonschema.Draft202012Validator(generate.client_schema())
SERVER = jsonschema.Draft202012Validator(generate.server_schema())


def test_nothing_is_stale() -> None:
    assert generate.main(["--check"]) == 0


def test_stale_files_are_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    target = tmp_path / "x.json"
    monkeypatch.setattr(generate, "ROOT", tmp_path)
    monkeypatch.setattr(generate, "outputs", lambda: {target: "new"})
    assert generate.main(["--check"]) == 1
    assert not target.exists()
    assert generate.main([]) == 0
    assert target.read_text() == "new"
    assert generate.main(["--check"]) == 0


@pytest.mark.parametrize("name", VECTORS)
def test_frames_of_the_vectors_follow_the_schemas(name: str) -> None:
    for step in VECTORS[name]["steps"]:
        for frame in step["out"]:
            CLIENT.validate(frame)
        for frame in step.get("server", ()):
            if frame["type"] in SERVER_FRAMES:
                SERVER.validate(frame)


def test_schemas_refuse_what_the_models_refuse() -> None:
    assert not CLIENT.is_valid({"type": "cancel", "id": "not an id"})
    assert not CLIENT.is_valid({"type": "weather"})
    assert CLIENT.is_valid({"type": "send", "id": "m", "messages": [], "max_tokens": 5})
    assert not CLIENT.is_valid({"type": "send", "id": "m", "messages": [], "max_tokens": 0})
    assert not SERVER.is_valid({"type": "delta", "id": "m", "seq": 1})


def references(node: Any) -> set[str]:
    if isinstance(node, list):
        return set().union(*map(references, node))
    if isinstance(node, dict):
        own = {node["$ref"]} if isinstance(node.get("$ref"), str) else set()
        return own.union(*map(references, node.values()))
    return set()


def test_asyncapi_has_every_frame_and_no_dangling_reference() -> None:
    document = generate.asyncapi()
    assert document["asyncapi"] == "3.0.0"
    assert document["components"]["messages"].keys() == {f"client.{k}" for k in CLIENT_FRAMES} | {
        f"server.{k}" for k in SERVER_FRAMES
    }
    for reference in references(document):
        node: Any = document
        for part in reference.removeprefix("#/").split("/"):
            node = node[part]


def test_typescript_has_every_frame_and_code() -> None:
    text = generate.typescript()
    for model in (*CLIENT_FRAMES.values(), *SERVER_FRAMES.values()):
        assert f"export interface {model.__name__} {{" in text
    for code in ERRORS:
        assert f'| "{code}"' in text
    assert 'on_busy?: "queue" | "reject" | "interrupt" | "rollback";' in text
    assert "messages?: ChatMessage[] | null;" in text
    assert "max_tokens?: number | null;" in text


def test_tables_are_filled_in_place() -> None:
    text = "before\n<!-- generated: error-codes -->\nold\n<!-- /generated -->\nafter"
    filled = generate.fill_tables(text)
    assert filled.startswith("before\n<!-- generated: error-codes -->\n| code |")
    assert filled.endswith("|\n<!-- /generated -->\nafter")
    assert all(f"| `{code}` |" in filled for code in ERRORS)
    assert generate.fill_tables(filled) == filled
    assert all(str(int(code)) in generate.close_table() for code in CLOSE_MEANINGS)


def test_schemas_are_json() -> None:
    for path in generate.SCHEMA.glob("*.json"):
        json.loads(path.read_text("utf-8"))
