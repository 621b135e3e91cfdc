"""What credentials may do. A token without scopes may do what a user does; a key without scopes, everything."""

from __future__ import annotations

from typing import Final

from protocol.errors import ProtocolError

CHAT: Final = "chat"
"""Ask for messages and read one's own: the socket, completions, conversations, one's own usage."""
JOBS: Final = "jobs"
"""Make and read one's own jobs."""
USAGE: Final = "usage"
"""Read the whole tenant's usage."""
TOKENS: Final = "tokens"
"""Make tokens for users of the tenant."""
USERS: Final = "users"
"""Tell and delete all that is kept of users of the tenant."""

OPERATOR: Final = "operator"
"""See how the whole cluster is doing, all tenants included. Nobody has it unless it is named."""

ALL: Final = frozenset({CHAT, JOBS, USAGE, TOKENS, USERS, OPERATOR})
USER: Final = frozenset({CHAT, JOBS})
"""What a token may do that names no scopes."""


def require(scopes: frozenset[str], scope: str) -> None:
    """Raise `forbidden` unless `scope` was granted."""
    if scope not in scopes:
        raise ProtocolError("forbidden", f"These credentials lack the scope `{scope}`.", details={"scope": scope})
