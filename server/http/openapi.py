"""The OpenAPI 3.1 document, made of the table of operations and of the models: `python -m server.http.openapi`.

It writes `docs/openapi.json`; with `--check` it writes nothing and its exit code is 1 if that file is stale.
"""

from __future__ import annotations

import json
import sys
from http import HTTPStatus
from pathlib import Path
from typing import Any, Final

from pydantic import BaseModel
from pydantic.json_schema import models_json_schema

from protocol.frames import VERSION
from server.http import api_models
from server.http.operations import OPERATIONS, Operation, Reply
from server.quotas.headers import HEADERS

FILE: Final = Path(__file__).resolve().parents[2] / "docs" / "openapi.json"
ALWAYS: Final = (401, 403, 500, 503)
"""Every operation may fail with these."""
RETRIED: Final = frozenset({409, 429, 503, 504})
"""Failures that tell when to come back."""
NOBODY: Final = frozenset({401, 500})
"""Failures of which nobody's limits can be told."""
_RETRY: Final = {
    "Retry-After": "Seconds after which to come back.",
    "retry-after-ms": "The same in milliseconds.",
}
JSONL: Final = "application/jsonl"
_REF: Final = "#/components/schemas/{model}"

Map = dict[str, Any]


def document() -> Map:
    """The whole document."""
    paths: Map = {}
    schemas = _schemas()
    for operation in OPERATIONS:
        paths.setdefault(operation.path, {})[operation.method.lower()] = _operation(operation)
    paths["/healthz"] = {"get": _health("Whether the process serves at all.", {200: "It does."})}
    paths["/readyz"] = {"get": _health("Whether to send new work here.", {200: "Yes.", 503: "No."})}
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "Tidewire",
            "version": f"{VERSION}",
            "description": "HTTP beside the socket (`GET /v1/ws`): the same messages, ids and guarantees. "
            "See docs/http.md and docs/protocol.md.",
            "license": {"name": "MIT", "identifier": "MIT"},
        },
        "servers": [{"url": "/"}],
        "security": [{"bearer": []}],
        "paths": paths,
        "components": {
            "schemas": schemas,
            "headers": {
                name: {"description": meaning, "schema": {"type": "string"}}
                for name, meaning in (_RETRY | HEADERS).items()
            },
            "securitySchemes": {
                "bearer": {"type": "http", "scheme": "bearer", "description": "An API key, or a JWT for a user."}
            },
        },
    }


def _schemas() -> Map:
    requests = {operation.body for operation in OPERATIONS if operation.body is not None}
    for operation in OPERATIONS:
        requests |= {*operation.bodies, *operation.lines}
    answers: set[type[BaseModel]] = {api_models.ErrorAnswer, api_models.Health}
    for operation in OPERATIONS:
        for reply in operation.replies.values():
            answers |= {*reply.events, *(model for model in (reply.model, reply.lines) if model is not None)}
    wanted = sorted([(model, "validation") for model in requests | answers], key=lambda pair: pair[0].__name__)
    _, schema = models_json_schema(wanted, ref_template=_REF, by_alias=True)  # type: ignore[arg-type]
    found: Map = schema["$defs"]
    return found


def _ref(model: type[BaseModel]) -> Map:
    return {"$ref": _REF.format(model=model.__name__)}


def _header(name: str) -> Map:
    return {"$ref": f"#/components/headers/{name}"}


def _operation(operation: Operation) -> Map:
    made: Map = {
        "operationId": operation.name,
        "summary": operation.summary,
        "responses": {str(status): _reply(reply) for status, reply in operation.replies.items()},
    }
    for status in sorted({*ALWAYS, *operation.errors}):
        made["responses"][str(status)] = {
            "description": HTTPStatus(status).phrase,
            "headers": {name: _header(name) for name in _RETRY} if status in RETRIED else {},
            "content": {"application/json": {"schema": _ref(api_models.ErrorAnswer)}},
        }
    if operation.tells_limits:
        for status, response in made["responses"].items():
            if int(status) not in NOBODY:
                response["headers"] = response.get("headers", {}) | {name: _header(name) for name in HEADERS}
    if operation.parameters:
        made["parameters"] = [dict(parameter) for parameter in operation.parameters]
    if operation.body is not None:
        made["requestBody"] = {"required": True, "content": _body(operation, operation.body)}
    return made


def _body(operation: Operation, body: type[BaseModel]) -> Map:
    if not operation.lines:
        return {"application/json": {"schema": _ref(body)}}
    item = {"anyOf": [_ref(model) for model in operation.lines]}
    array = {"type": "array", "minItems": 1, "items": item}
    forms = [*(_ref(model) for model in (body, *operation.bodies)), array]
    return {"application/json": {"schema": {"anyOf": forms}}, JSONL: {"schema": _lines(item)}}


def _lines(item: Map) -> Map:
    """JSONL: OpenAPI 3.1 knows no sequences, so it is text, and each line of it is described."""
    return {"type": "string", "description": "One JSON value a line.", "x-line-schema": item}


def _reply(reply: Reply) -> Map:
    made: Map = {"description": reply.meaning}
    content: Map = {}
    if reply.model is not None:
        content["application/json"] = {"schema": _ref(reply.model)}
    if reply.events:
        content["text/event-stream"] = {"schema": _event(reply)}
    if reply.lines is not None:
        content[JSONL] = {"schema": _lines(_ref(reply.lines))}
    if content:
        made["content"] = content
    if reply.headers:
        made["headers"] = {
            name: {"description": text, "schema": {"type": "string"}} for name, text in reply.headers.items()
        }
    return made


def _event(reply: Reply) -> Map:
    """One event as its fields (WHATWG HTML 9.2)."""
    holds = {"anyOf": [_ref(model) for model in reply.events]}
    data: Map = {"type": "string", "contentMediaType": "application/json", "contentSchema": holds}
    if reply.last_event is not None:
        data = {"anyOf": [{"const": reply.last_event}, data]}
    fields: Map = {"data": data, "event": {"type": "string"}, "id": {"type": "string"}, "retry": {"type": "integer"}}
    return {"type": "object", "properties": fields}


def _health(summary: str, replies: dict[int, str]) -> Map:
    content = {"application/json": {"schema": _ref(api_models.Health)}}
    return {
        "summary": summary,
        "security": [],
        "responses": {str(status): {"description": text, "content": content} for status, text in replies.items()},
    }


def text() -> str:
    """The file's content."""
    return json.dumps(document(), indent=2, ensure_ascii=False) + "\n"


def main(arguments: list[str]) -> int:
    """Write, or with `--check` compare; the exit code."""
    stale = not FILE.exists() or FILE.read_text("utf-8") != text()
    if "--check" not in arguments:
        FILE.write_text(text(), "utf-8")
        return 0
    if stale:
        print("docs/openapi.json is stale; run: python -m server.http.openapi")
    return int(stale)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
