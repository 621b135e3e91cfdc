"""`GET /v1/prompts`: what there is to ask for. The text of a prompt is its operator's, and is not told."""

from __future__ import annotations

from typing import Any

from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from protocol.errors import ProtocolError
from server.http.auth import authenticate
from server.http.host import Api
from server.prompts.prompt import Prompt


async def list_all(api: Api, request: Request) -> Response:
    """Every prompt on offer."""
    await authenticate(api, request)
    prompts = api.messages.prompts
    offered = ((name, prompts.offered(name)) for name in sorted(prompts.registry.released))
    return JSONResponse({"object": "list", "data": [_summary(name, found) for name, found in offered if found]})


async def get(api: Api, request: Request) -> Response:
    """One prompt: what each version wants and brings."""
    await authenticate(api, request)
    name = request.path_params["name"]
    found = api.messages.prompts.offered(name)
    if not found:
        raise ProtocolError("prompt_not_found", f"there is no prompt {name!r}")
    return JSONResponse({"id": name, "object": "prompt", "versions": [_version(prompt) for prompt in found]})


def _summary(name: str, offered: list[Prompt]) -> dict[str, Any]:
    return {
        "id": name,
        "object": "prompt",
        "description": offered[-1].declared.description,
        "versions": [str(prompt.version) for prompt in offered],
    }


def _version(prompt: Prompt) -> dict[str, Any]:
    """The wire form (`api_models.PromptVersion`)."""
    declared = prompt.declared
    told: dict[str, Any] = {
        "version": str(prompt.version),
        "description": declared.description,
        "variables": {name: variable.model_dump(exclude_none=True) for name, variable in declared.variables.items()},
        "tools": [tool.name for tool in declared.tools],
    }
    return told if declared.output is None else {**told, "output_schema": declared.output.schema_}
