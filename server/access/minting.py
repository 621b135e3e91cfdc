"""Making tokens and API keys: for `tidewire token` and `POST /v1/tokens`."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any, Final

import jwt

from server.access import scopes as known
from server.access.credentials import jwt_secret
from server.access.identity import MAX_NAME_CHARS, api_key_sha256, new_api_key
from server.config import AuthSettings, Settings

MAX_EXPIRES_SECONDS: Final = 366 * 86_400


class Signer:
    """Signs tokens that this server's own `Authenticator` accepts."""

    def __init__(
        self,
        auth: AuthSettings,
        secret: bytes,
        tiers: Collection[str] | None = None,
        now: Callable[[], float] = time.time,
    ) -> None:
        self._auth = auth
        self._secret = secret
        self._tiers = tiers
        self._now = now

    @classmethod
    def from_settings(cls, settings: Settings, environ: Mapping[str, str], *, any_tier: bool = False) -> Signer | None:
        """The signer of a configuration; None if it has no secret (an identity provider makes the tokens)."""
        secret = jwt_secret(settings.auth, environ)
        return None if secret is None else cls(settings.auth, secret, None if any_tier else settings.tiers.keys())

    def token(
        self,
        user: str,
        tenant: str,
        tier: str | None,
        expires_seconds: float,
        scopes: Sequence[str] | None = None,
    ) -> str:
        """A JWT. Raises `ValueError` for what the server would refuse, with the reason."""
        if not 0 < expires_seconds <= MAX_EXPIRES_SECONDS:
            raise ValueError("a token has to expire, in a second at the earliest and within a year")
        if tier is not None and self._tiers is not None and tier not in self._tiers:
            raise ValueError(f"there is no tier {tier!r}; there are {', '.join(sorted(self._tiers))}")
        _check_scopes(scopes or ())
        now, names = int(self._now()), self._auth.claims
        claims: dict[str, Any] = {
            names.user: _checked("user", user),
            names.tenant: _checked("tenant", tenant),
            "aud": self._auth.audience,
            "iat": now,
            "exp": now + max(1, int(expires_seconds)),
        }
        if tier is not None:
            claims[names.tier] = tier
        if scopes is not None:
            claims[names.scope] = " ".join(scopes)
        if self._auth.issuer is not None:
            claims["iss"] = self._auth.issuer
        return jwt.encode(claims, self._secret, algorithm=self._auth.accepted_algorithms[0])


def api_key_with_config(name: str, tenant: str, tier: str | None, scopes: Sequence[str] = ()) -> str:
    """A new API key in the first line, and below it what the configuration keeps of it."""
    _check_scopes(scopes)
    key = new_api_key()
    lines = [
        key,
        "",
        "# Into the configuration; the key itself is not kept anywhere:",
        "[[auth.api_keys]]",
        f"name = {json.dumps(_checked('name', name))}",
        f"tenant = {json.dumps(_checked('tenant', tenant))}",
        *([f"tier = {json.dumps(tier)}"] if tier is not None else []),
        f'sha256 = "{api_key_sha256(key)}"',
        *([f"scopes = {json.dumps(list(scopes))}"] if scopes else []),
    ]
    return "\n".join(lines)


def _checked(what: str, text: str) -> str:
    if not 0 < len(text) <= MAX_NAME_CHARS or not text.isprintable():
        raise ValueError(f"a {what} is a text of 1 to {MAX_NAME_CHARS} printable characters")
    return text


def _check_scopes(scopes: Sequence[str]) -> None:
    for scope in scopes:
        if scope not in known.ALL:
            raise ValueError(f"there is no scope {scope!r}; there are {', '.join(sorted(known.ALL))}")
