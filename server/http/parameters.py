"""Query parameters: read once, of the right kind, and an error names the one that is not."""

from __future__ import annotations

from starlette.requests import Request

from server.http.errors import BadRequest

MAX_CHARS = 256
"""Longest value of a parameter."""


def text(request: Request, name: str) -> str | None:
    """A parameter; None if it is absent. Raises `BadRequest` if it is empty, overlong or given twice."""
    given = request.query_params.getlist(name)
    if not given:
        return None
    if len(given) > 1:
        raise BadRequest(f"`{name}` was given {len(given)} times.", name)
    if not 0 < len(given[0]) <= MAX_CHARS:
        raise BadRequest(f"`{name}` has to have 1 to {MAX_CHARS} characters.", name)
    return given[0]


def integer(request: Request, name: str, usual: int, least: int, most: int) -> int:
    """A number between `least` and `most`; `usual` if it is absent. Raises `BadRequest`."""
    given = text(request, name)
    if given is None:
        return usual
    if not (given.isascii() and given.isdecimal() and len(given) <= 16 and least <= int(given) <= most):
        raise BadRequest(f"`{name}` has to be a number from {least} to {most}.", name)
    return int(given)
