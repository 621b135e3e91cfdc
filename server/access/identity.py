"""Who is speaking: API keys, signed tokens (JWT, RFC 7519), and the one anonymous user of a demo.

What a token may be signed with is decided by the configuration alone, never by the token: a shared secret accepts
HMAC algorithms only, public keys accept asymmetric ones only, and there is never both (RFC 8725 sections 3.1, 3.2).
"""

from __future__ import annotations

import hashlib
import hmac
import secrets
import time
from collections.abc import Callable, Mapping, Set
from dataclasses import dataclass
from typing import Any, Final, Literal, NoReturn

import jwt
from jwt import PyJWK

from protocol.errors import ProtocolError
from server.access import scopes
from server.access.credentials import jwt_secret
from server.access.jwks import COOLDOWN_SECONDS, KeySet, KeysUnavailable
from server.config import AuthSettings, Settings

API_KEY_PREFIX: Final = "tw_"
API_KEY_BYTES: Final = 32
"""Random bytes in a new API key."""
MAX_TOKEN_CHARS: Final = 16_384
"""Longer ones are refused unread."""
MAX_NAME_CHARS: Final = 256
"""Longest user, tenant or tier in a token."""
LATEST_TIME: Final = 1e12
"""Seconds of Unix time beyond which a number is no time."""
ANONYMOUS_USER: Final = "demo"
ANONYMOUS_TENANT: Final = "demo"

Kind = Literal["key", "sub", "anonymous"]


@dataclass(frozen=True, slots=True)
class Principal:
    """Who speaks, for whom, within which limits. (tenant, kind, user) never changes on an open socket."""

    tenant: str
    kind: Kind
    """How the user is known: by API key, by a token's subject, or not at all."""
    user: str
    """Unique within tenant and kind."""
    tier: str
    """A name under `[tiers]`; it exists."""
    scopes: frozenset[str]
    """See `server.access.scopes`."""
    expires_at: float | None
    """When the credentials end, in seconds of Unix time; None: never."""

    def same_user(self, other: Principal) -> bool:
        """Whether `auth` on an open socket may replace one by the other."""
        return (self.tenant, self.kind, self.user) == (other.tenant, other.kind, other.user)


def new_api_key() -> str:
    """A new API key, to be shown once."""
    return API_KEY_PREFIX + secrets.token_urlsafe(API_KEY_BYTES)


def api_key_sha256(key: str) -> str:
    """What the configuration keeps of a key."""
    return hashlib.sha256(key.encode()).hexdigest()


class Authenticator:
    """Turns what `hello`, `auth` or an HTTP header carries into a `Principal`."""

    def __init__(
        self,
        auth: AuthSettings,
        *,
        tiers: Set[str],
        default_tier: str,
        secret: bytes | None = None,
        keys: KeySet | None = None,
        now: Callable[[], float] = time.time,
    ) -> None:
        self._auth = auth
        self._tiers = tiers
        self._default_tier = default_tier
        self._secret = secret
        self._keys = keys
        self._now = now

    @classmethod
    def from_settings(cls, settings: Settings, environ: Mapping[str, str]) -> Authenticator:
        """The authenticator that the settings ask for."""
        url = settings.auth.jwks_url
        return cls(
            settings.auth,
            tiers=settings.tiers.keys(),
            default_tier=settings.default_tier,
            secret=jwt_secret(settings.auth, environ),
            keys=None if url is None else KeySet(url),
        )

    async def authenticate(self, token: str | None) -> Principal:
        """Who holds `token`. Raises `ProtocolError` (`unauthenticated`, `token_expired`), which never quotes it."""
        if not token:
            return self._anonymous()
        if len(token) > MAX_TOKEN_CHARS:
            _refuse(f"The token is longer than {MAX_TOKEN_CHARS} characters.")
        if not token.isascii():
            _refuse("The token is neither an API key nor a JWT.")
        principal = self._by_api_key(token)
        if principal is not None:
            return principal
        if token.startswith(API_KEY_PREFIX):
            _refuse("The API key is not known here.")
        if token.count(".") != 2:
            _refuse("The token is neither a known API key nor a JWT.")
        return self._by_claims(await self._verified_claims(token))

    async def close(self) -> None:
        """End what runs in the background."""
        if self._keys is not None:
            await self._keys.close()

    def _anonymous(self) -> Principal:
        """One fixed user, so that a reloaded page finds its messages again."""
        if not self._auth.anonymous:
            _refuse("A token is needed: a JWT or an API key.")
        return Principal(
            ANONYMOUS_TENANT, "anonymous", ANONYMOUS_USER, self._default_tier, scopes.USER | {scopes.USAGE}, None
        )

    def _by_api_key(self, token: str) -> Principal | None:
        """The owner of a key. All keys are compared, so that the time tells nothing about which came close."""
        digest = api_key_sha256(token)
        found = None
        for key in self._auth.api_keys:
            if hmac.compare_digest(key.sha256, digest):
                found = key
        if found is None:
            return None
        tier = found.tier or self._default_tier
        return Principal(found.tenant, "key", found.name, tier, frozenset(found.scopes), None)

    async def _verified_claims(self, token: str) -> dict[str, Any]:
        """The claims of a token whose signature, audience and issuer are right. Times are not checked yet."""
        try:
            return jwt.decode(
                token,
                key=await self._key_for(token),
                algorithms=self._auth.accepted_algorithms,
                audience=self._auth.audience,
                issuer=self._auth.issuer,
                options={
                    "require": ["exp", self._auth.claims.user],
                    "verify_exp": False,
                    "verify_nbf": False,
                    "verify_iat": False,
                    "verify_sub": False,
                    "verify_jti": False,
                    "enforce_minimum_key_length": True,
                },
            )
        except jwt.MissingRequiredClaimError as error:
            _refuse(f"The token lacks the claim `{error.claim}`.")
        except jwt.InvalidAudienceError:
            _refuse(f"The token is for another audience; `aud` has to be `{self._auth.audience}`.")
        except jwt.InvalidIssuerError:
            _refuse("The token is of another issuer.")
        except jwt.InvalidAlgorithmError:
            _refuse(f"The token is not signed with one of {', '.join(self._auth.accepted_algorithms)}.")
        except jwt.InvalidSignatureError:
            _refuse("The token's signature is wrong.")
        except jwt.PyJWTError:
            _refuse("The token is malformed.")

    async def _key_for(self, token: str) -> PyJWK | bytes:
        """The key that must have signed `token`."""
        if self._secret is not None:
            return self._secret
        if self._keys is None:
            _refuse("This server takes API keys only, no JWTs.")
        header = jwt.get_unverified_header(token)
        algorithm, kid = header.get("alg"), header.get("kid")
        if algorithm not in self._auth.accepted_algorithms:
            raise jwt.InvalidAlgorithmError
        try:
            key = await self._keys.key(kid, str(algorithm))
        except KeysUnavailable:
            raise ProtocolError(
                "unauthenticated",
                "The identity provider's keys cannot be fetched; try again.",
                error_class="temporary",
                retry_after_ms=int(COOLDOWN_SECONDS * 1000),
            ) from None
        if key is None:
            _refuse("The token is signed with a key that the identity provider does not have.")
        return key

    def _by_claims(self, claims: Mapping[str, Any]) -> Principal:
        names = self._auth.claims
        expires_at = self._check_times(claims)
        tier = _text(claims, names.tier, self._default_tier)
        if tier not in self._tiers:
            _refuse("The token names a tier that this server does not have.")
        return Principal(
            tenant=_text(claims, names.tenant, self._auth.default_tenant),
            kind="sub",
            user=_text(claims, names.user, None),
            tier=tier,
            scopes=_scopes(claims.get(names.scope)),
            expires_at=expires_at,
        )

    def _check_times(self, claims: Mapping[str, Any]) -> float:
        """`exp`; refuses a token whose time is over or has not come (RFC 7519 sections 4.1.4, 4.1.5)."""
        now, leeway = self._now(), self._auth.leeway_seconds
        expires_at = _time(claims, "exp")
        if now >= expires_at + leeway:
            raise ProtocolError("token_expired", "The token has expired; get a new one.")
        if "nbf" in claims and now < _time(claims, "nbf") - leeway:
            _refuse("The token is not valid yet (`nbf`).")
        return expires_at


def _refuse(message: str) -> NoReturn:
    raise ProtocolError("unauthenticated", message)


def _time(claims: Mapping[str, Any], name: str) -> float:
    value = claims[name]
    if isinstance(value, bool) or not isinstance(value, int | float) or not abs(value) < LATEST_TIME:
        _refuse(f"The token's `{name}` is not a time.")
    return float(value)


def _text(claims: Mapping[str, Any], name: str, default: str | None) -> str:
    value = claims.get(name, default)
    if not isinstance(value, str) or not 0 < len(value) <= MAX_NAME_CHARS or not value.isprintable():
        _refuse(f"The token's claim `{name}` should be a text of 1 to {MAX_NAME_CHARS} printable characters.")
    return value


def _scopes(value: Any) -> frozenset[str]:
    """Known scopes of a claim: separated by spaces (RFC 8693) or a list; absent: a user's."""
    if value is None:
        return scopes.USER
    words = value.split() if isinstance(value, str) else value
    if not isinstance(words, list) or not all(isinstance(word, str) for word in words):
        _refuse("The token's scopes are neither a text nor a list of texts.")
    return frozenset(words) & scopes.ALL
