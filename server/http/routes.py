"""The HTTP API as routes of the application."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import groupby

from starlette.convertors import Convertor, register_url_convertor
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route
from starlette.types import Receive, Scope, Send

from protocol.errors import ProtocolError
from server.http.demo import DemoApi
from server.http.errors import error_response
from server.http.host import KEEPALIVE_SECONDS, Api, Host
from server.http.openapi import document
from server.http.operations import OPERATIONS, Operation
from server.http.rates import tell_limits


class Resource:
    """One path: its operations by method. ASGI, so that a wrong method is refused in our words."""

    def __init__(self, api: Api, operations: Mapping[str, Operation]) -> None:
        self._api = api
        self._operations = operations
        self._allow = ", ".join(sorted(operations))

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """ASGI. Raises `ProtocolError` (`server.http.edge` answers it)."""
        operation = self._operations.get(scope["method"])
        if operation is None:
            refused = ProtocolError("method_not_allowed", f"This path serves {self._allow}.")
            await error_response(refused, {"Allow": self._allow})(scope, receive, send)
            return
        response = await self._answer(operation, Request(scope, receive))
        await response(scope, receive, send)

    async def _answer(self, operation: Operation, request: Request) -> Response:
        if not operation.tells_limits:
            return await operation.serve(self._api, request)
        try:
            response = await operation.serve(self._api, request)
        except ProtocolError:
            await tell_limits(self._api, request)
            raise
        await tell_limits(self._api, request)
        return response


def routes(host: Host, keepalive_seconds: float = KEEPALIVE_SECONDS) -> list[Route]:
    """Every path of the API, and the answer to every other one below `/v1/`."""
    api = Api(host, keepalive_seconds)
    packed = JSONResponse(document()).body

    async def openapi(request: Request) -> Response:
        return Response(packed, media_type="application/json")

    by_path = groupby(sorted(OPERATIONS, key=lambda one: one.path), key=lambda one: one.path)
    demo = [] if host.demo is None else DemoApi(api, host.demo).routes()
    return [
        *demo,
        *(Route(_pattern(path), Resource(api, {one.method: one for one in group})) for path, group in by_path),
        Route("/openapi.json", openapi),
        Route("/v1/{rest:anything}", _Nothing()),
    ]


class _Anything(Convertor[str]):
    """A part of a path that may have slashes and line breaks in it: a user's id."""

    regex = "(?s:.*)"

    def convert(self, value: str) -> str:
        """As it is."""
        return value

    def to_string(self, value: str) -> str:
        """As it is."""
        return value


register_url_convertor("anything", _Anything())


def _pattern(path: str) -> str:
    return path.replace("{user}", "{user:anything}")


class _Nothing:
    """A path that does not exist."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        raise ProtocolError("not_found", "There is nothing at this path; `/openapi.json` lists what there is.")
