"""Writes everything that is derived from the frame models: `python -m protocol.generate [--check]`.

- `protocol/schema/{client,server}.schema.json`: JSON Schema 2020-12 of either direction
- `protocol/schema/asyncapi.json`: AsyncAPI 3.0
- `protocol/schema/tidewire.d.ts`: TypeScript types; the same as `web-demo/src/client/wire.ts`, for the npm package
- the tables in `docs/protocol.md` that stand between `<!-- generated: NAME -->` and `<!-- /generated -->`

With `--check` nothing is written; the exit code is 1 if anything is stale.
"""

from __future__ import annotations

import copy
import json
import re
import sys
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, Final

from pydantic import BaseModel, TypeAdapter

from protocol.client.message import ENDED, TRANSITIONS, MessageState
from protocol.errors import ATTEMPT_REASONS, CLOSE_MEANINGS, ERRORS, may_reconnect
from protocol.frames import (
    CLIENT_FRAMES,
    SERVER_FRAMES,
    SUBPROTOCOL_JSON,
    SUBPROTOCOL_MSGPACK,
    VERSION,
    client_frame,
    server_frame,
)

Map = dict[str, Any]

ROOT: Final = Path(__file__).resolve().parent.parent
SCHEMA: Final = ROOT / "protocol" / "schema"
DOCS: Final = ROOT / "docs" / "protocol.md"
LIBRARY: Final = ROOT / "web-demo" / "src" / "client"
DIALECT: Final = "https://json-schema.org/draft/2020-12/schema"
OUTPUT_CAP_ALIASES: Final = ("max_completion_tokens", "max_tokens")
"""Accepted in `send` beside `max_output_tokens`; a validator maps them, so the models don't show them."""


def main(arguments: list[str]) -> int:
    """Write, or with `--check` compare; the exit code."""
    check = "--check" in arguments
    stale = [path for path, text in outputs().items() if not path.exists() or path.read_text("utf-8") != text]
    for path in stale:
        print(f"{'stale' if check else 'wrote'} {path.relative_to(ROOT)}")
        if not check:
            path.write_text(outputs()[path], "utf-8")
    if check and stale:
        print("run: python -m protocol.generate")
    return int(check and bool(stale))


def outputs() -> dict[Path, str]:
    """Every generated file with what belongs into it."""
    found = {
        SCHEMA / "client.schema.json": _json(client_schema()),
        SCHEMA / "server.schema.json": _json(server_schema()),
        SCHEMA / "asyncapi.json": _json(asyncapi()),
        SCHEMA / "tidewire.d.ts": typescript(),
    }
    if LIBRARY.exists():
        found[LIBRARY / "wire.ts"] = typescript()
    if DOCS.exists():
        found[DOCS] = fill_tables(DOCS.read_text("utf-8"))
    return found


def _json(value: Map) -> str:
    return json.dumps(value, indent=2, ensure_ascii=False) + "\n"


# --- JSON Schema ----------------------------------------------------------------------------------------------------


def client_schema() -> Map:
    """What a client may send: one frame."""
    schema = _schema(client_frame, "client", "A frame from client to server")
    properties = schema["$defs"]["Send"]["properties"]
    for alias in OUTPUT_CAP_ALIASES:
        properties[alias] = {
            **copy.deepcopy(properties["max_output_tokens"]),
            "description": "Another name of `max_output_tokens`; two that differ are an error.",
        }
    return schema


def server_schema() -> Map:
    """What a server may send: one frame. Clients ignore types and fields they do not know."""
    return _schema(server_frame, "server", "A frame from server to client")


def _schema(adapter: TypeAdapter[Any], side: str, title: str) -> Map:
    schema = adapter.json_schema(by_alias=True)
    _untitle(schema)
    return {"$schema": DIALECT, "$id": f"urn:tidewire:v{VERSION}:{side}", "title": title, **schema}


def _untitle(node: Any) -> None:
    """Drop titles that only repeat a field's name."""
    if isinstance(node, list):
        for item in node:
            _untitle(item)
    elif isinstance(node, dict):
        for field in node.get("properties", {}).values():
            if isinstance(field, dict):
                field.pop("title", None)
        for value in node.values():
            _untitle(value)


# --- AsyncAPI -------------------------------------------------------------------------------------------------------


def asyncapi() -> Map:
    """The wire as AsyncAPI 3.0, told from the server's side: it receives client frames and sends server frames."""
    definitions = {**client_schema()["$defs"], **server_schema()["$defs"]}
    messages = _messages("client", CLIENT_FRAMES) | _messages("server", SERVER_FRAMES)
    return {
        "asyncapi": "3.0.0",
        "info": {
            "title": "Tidewire",
            "version": f"{VERSION}.0.0",
            "description": "One WebSocket, many streamed chat completions. A WebSocket message carries one frame (a "
            f"map) or several (an array of maps). Subprotocols: {SUBPROTOCOL_JSON} (text), {SUBPROTOCOL_MSGPACK} "
            "(binary, same maps).",
        },
        "defaultContentType": "application/json",
        "channels": {
            "socket": {
                "address": "/v1/ws",
                "messages": {name: {"$ref": f"#/components/messages/{name}"} for name in messages},
                "bindings": {"ws": {"method": "GET"}},
            }
        },
        "operations": {
            "receiveFromClient": _operation("receive", "client", CLIENT_FRAMES),
            "sendToClient": _operation("send", "server", SERVER_FRAMES),
        },
        "components": {"messages": messages, "schemas": _repoint(definitions)},
    }


def _message_name(side: str, kind: str) -> str:
    return f"{side}.{kind}"


def _messages(side: str, frames: Mapping[str, type[BaseModel]]) -> Map:
    return {
        _message_name(side, kind): {
            "name": kind,
            "title": model.__name__,
            "summary": _first_line(model),
            "payload": {"$ref": f"#/components/schemas/{model.__name__}"},
        }
        for kind, model in frames.items()
    }


def _operation(action: str, side: str, frames: Iterable[str]) -> Map:
    return {
        "action": action,
        "channel": {"$ref": "#/channels/socket"},
        "messages": [{"$ref": f"#/channels/socket/messages/{_message_name(side, kind)}"} for kind in frames],
    }


def _repoint(node: Any) -> Any:
    if isinstance(node, list):
        return [_repoint(item) for item in node]
    if isinstance(node, dict):
        return {key: _repoint(value) for key, value in node.items()}
    if isinstance(node, str):
        return node.replace("#/$defs/", "#/components/schemas/")
    return node


def _first_line(model: type[BaseModel]) -> str:
    return (model.__doc__ or "").strip().splitlines()[0]


# --- TypeScript -----------------------------------------------------------------------------------------------------


def typescript() -> str:
    """Types of all frames. Server frames may carry more fields than these, and more types of frame may come."""
    definitions = {**client_schema()["$defs"], **server_schema()["$defs"]}
    blocks = [
        "// Generated by `python -m protocol.generate`; do not edit.",
        *(_interface(name, definition) for name, definition in sorted(definitions.items())),
        _union("ClientFrame", "What a client may send.", [m.__name__ for m in CLIENT_FRAMES.values()]),
        _union("ServerFrame", "What a server may send.", [m.__name__ for m in SERVER_FRAMES.values()]),
        _union("ErrorCode", "Every error code of this version.", [f'"{code}"' for code in ERRORS]),
        _union(
            "AttemptReason",
            "What an attempt may follow; else the reason has the `ErrorCode` of the attempt before it.",
            [f'"{code}"' for code in ATTEMPT_REASONS],
        ),
        _union("CloseCode", "Every WebSocket close code in use.", [str(int(code)) for code in CLOSE_MEANINGS]),
        _union("Subprotocol", "Offered in the handshake.", [f'"{SUBPROTOCOL_JSON}"', f'"{SUBPROTOCOL_MSGPACK}"']),
    ]
    return "\n\n".join(blocks) + "\n"


def _interface(name: str, definition: Map) -> str:
    required = set(definition.get("required", ()))
    lines = [*_comment(definition.get("description"), ""), f"export interface {name} {{"]
    for field, schema in definition.get("properties", {}).items():
        lines += _comment(schema.get("description"), "  ")
        lines.append(f"  {field}{'' if field in required else '?'}: {_type(schema)};")
    if definition.get("additionalProperties"):
        lines.append("  [field: string]: unknown;")
    return "\n".join([*lines, "}"])


def _comment(text: str | None, indent: str) -> list[str]:
    if not text:
        return []
    lines = text.splitlines()
    if len(lines) == 1:
        return [f"{indent}/** {lines[0]} */"]
    return [f"{indent}/**", *(f"{indent} * {line}".rstrip() for line in lines), f"{indent} */"]


def _union(name: str, comment: str, members: list[str]) -> str:
    return "\n".join([f"/** {comment} */", f"export type {name} =", *(f"  | {member}" for member in members)]) + ";"


def _type(schema: Map) -> str:
    """One JSON Schema as a TypeScript type."""
    if "$ref" in schema:
        return str(schema["$ref"].rpartition("/")[2])
    if "const" in schema:
        return json.dumps(schema["const"])
    if "enum" in schema:
        return " | ".join(json.dumps(value) for value in schema["enum"])
    if "anyOf" in schema:
        return " | ".join(dict.fromkeys(_type(option) for option in schema["anyOf"]))
    kind = schema.get("type")
    if kind == "array":
        item = _type(schema.get("items", {}))
        return f"({item})[]" if " | " in item else f"{item}[]"
    if kind == "object":
        return "Record<string, unknown>"
    plain = {"string": "string", "integer": "number", "number": "number", "boolean": "boolean", "null": "null"}
    return plain.get(kind or "", "unknown")


# --- tables in the documentation ------------------------------------------------------------------------------------


def fill_tables(text: str) -> str:
    """`text` with every generated table made anew. Raises `KeyError` for an unknown name."""

    def fill(match: re.Match[str]) -> str:
        return f"<!-- generated: {match[1]} -->\n{TABLES[match[1]]()}\n<!-- /generated -->"

    return re.sub(r"<!-- generated: ([\w-]+) -->\n.*?<!-- /generated -->", fill, text, flags=re.DOTALL)


def error_table() -> str:
    """Every error code, as Markdown."""
    rows = (
        (f"`{row.code}`", row.error_class, str(row.status), "yes" if row.retryable else "no", row.meaning)
        for row in ERRORS.values()
    )
    return _markdown(("code", "class", "status", "retryable", "meaning"), rows)


def close_table() -> str:
    """Every close code, as Markdown."""
    rows = (
        (str(int(code)), code.name, "yes" if may_reconnect(code) else "no", meaning)
        for code, meaning in CLOSE_MEANINGS.items()
    )
    return _markdown(("code", "name", "reconnect unchanged", "meaning"), rows)


def reason_table() -> str:
    """Every reason of an attempt that is no error, as Markdown."""
    return _markdown(("code", "meaning"), ((f"`{code}`", meaning) for code, meaning in ATTEMPT_REASONS.items()))


def frame_table(frames: Mapping[str, type[BaseModel]]) -> str:
    """Every frame of one direction with its fields (`?`: may be absent), as Markdown."""
    rows = (
        (f"`{kind}`", ", ".join(_fields(model)) or "none", (model.__doc__ or "").strip().replace("\n", " "))
        for kind, model in frames.items()
    )
    return _markdown(("type", "fields", "meaning"), rows)


def _fields(model: type[BaseModel]) -> list[str]:
    return [
        f"`{field.alias or name}`{'' if field.is_required() else '?'}"
        for name, field in model.model_fields.items()
        if name != "type"
    ]


def state_table() -> str:
    """The client's state machine of a message, as a Mermaid diagram."""
    lines = ["```mermaid", "stateDiagram-v2", f"    [*] --> {MessageState.SENDING.value}: send"]
    for state, row in TRANSITIONS.items():
        targets: dict[MessageState, list[str]] = {}
        for trigger, target in row.items():
            if target is not state:
                targets.setdefault(target, []).append(trigger.value)
        lines += [f"    {state.value} --> {target.value}: {', '.join(names)}" for target, names in targets.items()]
    lines += [f"    {state.value} --> [*]" for state in MessageState if state in ENDED]
    return "\n".join([*lines, "```"])


def _markdown(head: tuple[str, ...], rows: Iterable[tuple[str, ...]]) -> str:
    lines = [head, tuple("---" for _ in head), *rows]
    return "\n".join(f"| {' | '.join(map(_cell, line))} |" for line in lines)


def _cell(text: str) -> str:
    return text.replace("|", "\\|")


TABLES: Final[dict[str, Callable[[], str]]] = {
    "error-codes": error_table,
    "close-codes": close_table,
    "attempt-reasons": reason_table,
    "client-frames": lambda: frame_table(CLIENT_FRAMES),
    "server-frames": lambda: frame_table(SERVER_FRAMES),
    "client-states": state_table,
}
"""Every table the documentation may ask for, by name."""


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
