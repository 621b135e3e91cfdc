"""What no single key can tell: names that must exist, limits that belong together, secrets that must be there."""

from __future__ import annotations

import base64
import binascii
import ipaddress
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Final

from server.config.schema import KeyPath, no_entry
from server.config.sections import AuthSettings, JobsSettings, RouteLimitSettings, Settings, TenantSettings

SECRET_BYTES: Final = {"HS256": 32, "HS384": 48, "HS512": 64}
"""Shortest secret of each symmetric algorithm (RFC 7518 section 3.2)."""
ASYMMETRIC: Final = frozenset(
    {"RS256", "RS384", "RS512", "PS256", "PS384", "PS512", "ES256", "ES384", "ES512", "EdDSA"}
)
WEBHOOK_PREFIX: Final = "whsec_"
WEBHOOK_BYTES: Final = range(24, 65)
"""How long a webhook's secret may be, decoded."""
USER_HASH_KEY_BYTES: Final = 16
"""Shortest key of the users' pseudonyms."""
_HTTP: Final = re.compile(r"https?://[^/\s]")
_REDIS: Final = re.compile(r"embedded$|(redis|rediss|redis\+cluster|redis\+sentinel|unix)://.")
_LEDGER: Final = re.compile(r"(sqlite:///|postgres(ql)?://).")

Names = Mapping[str, set[str]]
"""Section → names of its entries, the invalid ones too: a broken target is not also an unknown one."""
Finding = tuple[KeyPath, str]
"""A key and what is wrong with it."""


def cross_checks(settings: Settings, names: Names, environ: Mapping[str, str]) -> Iterator[Finding]:
    """Everything that is wrong although each key by itself is right."""
    yield from _check_routes(settings, names)
    yield from _check_tiers(settings, names)
    yield from _check_route_limits(settings, names)
    yield from _check_targets(settings, environ)
    yield from _check_auth(settings, environ)
    yield from _check_addresses(settings)
    yield from _check_ledger(settings, environ)
    yield from _check_limits(settings)
    yield from _check_webhooks(settings, environ)


def _check_routes(settings: Settings, names: Names) -> Iterator[Finding]:
    targets = names.get("targets", set())
    if not names.get("routes"):
        hint = 'add [routes.default] with targets = ["NAME"] and a [targets.NAME], or try `tidewire demo`'
        yield ("routes",), f"there is no route, so no model could be asked; {hint}"
    for name, route in settings.routes.items():
        path = ("routes", name)
        for index, target in enumerate(route.targets):
            if target not in targets:
                yield (*path, "targets", index), no_entry("target", target, targets)
            elif target in route.targets[:index]:
                yield (*path, "targets", index), "is named twice"
        if route.hedge_after_ms is not None and len(route.targets) < 2:
            yield (*path, "hedge_after_ms"), "needs a second target to ask"


def _check_tiers(settings: Settings, names: Names) -> Iterator[Finding]:
    named: list[tuple[KeyPath, str | None]] = [(("auth", "default_tier"), settings.auth.default_tier)]
    named += [(("auth", "api_keys", i, "tier"), key.tier) for i, key in enumerate(settings.auth.api_keys)]
    for path, tier in named:
        if tier is not None and tier not in names["tiers"]:
            yield path, no_entry("tier", tier, names["tiers"])


def _check_route_limits(settings: Settings, names: Names) -> Iterator[Finding]:
    routes = names.get("routes", set())
    sections: list[tuple[KeyPath, Mapping[str, RouteLimitSettings]]] = []
    sections += [(("tiers", name), tier.routes) for name, tier in settings.tiers.items()]
    sections += [(("tenants", name), tenant.routes) for name, tenant in settings.tenants.items()]
    for path, limits in sections:
        for route, limit in limits.items():
            if route not in routes:
                yield (*path, "routes", route), no_entry("route", route, routes)
            elif not limit.model_fields_set:
                yield (*path, "routes", route), "limits nothing"


def _check_targets(settings: Settings, environ: Mapping[str, str]) -> Iterator[Finding]:
    for name, target in settings.targets.items():
        path = ("targets", name)
        if target.model is None and target.driver != "embedded":
            yield (*path, "model"), "is needed: the model's name at the provider"
        if target.base_url is not None and not _HTTP.match(target.base_url):
            yield (*path, "base_url"), "should begin with http:// or https://"
        yield from _check_reference(path, "api_key", target.api_key_env, target.api_key_file, environ)


def _check_reference(
    path: KeyPath, secret: str, variable: str | None, file: Path | None, environ: Mapping[str, str]
) -> Iterator[Finding]:
    if variable is not None and file is not None:
        yield (*path, f"{secret}_file"), f"give this or {secret}_env, not both"
    elif variable is not None and not environ.get(variable):
        yield (*path, f"{secret}_env"), f"the environment variable {variable} is not set"
    elif file is not None:
        try:
            if not file.read_text(encoding="utf-8").strip():
                yield (*path, f"{secret}_file"), "the file is empty"
        except (OSError, UnicodeDecodeError) as error:
            yield (*path, f"{secret}_file"), f"cannot be read: {reason(error)}"


def read_secret(variable: str | None, file: Path | None, environ: Mapping[str, str]) -> str | None:
    """What a checked pair of `…_env` and `…_file` refers to; None if neither is given."""
    if variable is not None:
        return environ[variable]
    return None if file is None else file.read_text(encoding="utf-8").strip()


def reason(error: OSError | UnicodeDecodeError) -> str:
    """Why a file could not be read, in a few words."""
    return (error.strerror or type(error).__name__) if isinstance(error, OSError) else "it is not UTF-8 text"


def _check_auth(settings: Settings, environ: Mapping[str, str]) -> Iterator[Finding]:
    auth = settings.auth
    if auth.anonymous and not is_loopback(settings.server.host):
        hint = f"but server.host is {settings.server.host}; set up api_keys or tokens"
        yield ("auth", "anonymous"), f"is for loopback only, {hint}"
    if auth.uses_secret and auth.jwks_url is not None:
        yield ("auth", "jwks_url"), "give this or a jwt_secret, not both: two kinds of keys invite confusion"
    if auth.jwks_url is not None and not _HTTP.match(auth.jwks_url):
        yield ("auth", "jwks_url"), "should begin with https:// (or http://)"
    for what in ("name", "sha256"):
        values = [getattr(key, what) for key in auth.api_keys]
        for index, value in enumerate(values):
            if value in values[:index]:
                yield ("auth", "api_keys", index, what), "is used twice"
    allowed = frozenset(SECRET_BYTES) if auth.uses_secret else ASYMMETRIC
    for index, algorithm in enumerate(auth.algorithms):
        if algorithm not in allowed:
            yield ("auth", "algorithms", index), f"should be one of {', '.join(sorted(allowed))} with this kind of key"
    yield from _check_secret(auth, environ)


def _check_secret(auth: AuthSettings, environ: Mapping[str, str]) -> Iterator[Finding]:
    missing = list(_check_reference(("auth",), "jwt_secret", auth.jwt_secret_env, auth.jwt_secret_file, environ))
    yield from missing
    if missing or not auth.uses_secret:
        return
    secret = read_secret(auth.jwt_secret_env, auth.jwt_secret_file, environ) or ""
    needed = max(SECRET_BYTES.get(name, 0) for name in auth.accepted_algorithms)
    if len(secret.encode()) < needed:
        key = "jwt_secret_env" if auth.jwt_secret_env is not None else "jwt_secret_file"
        yield ("auth", key), f"the secret is shorter than {needed} bytes; `openssl rand -hex {needed}` makes a good one"


def _check_addresses(settings: Settings) -> Iterator[Finding]:
    if not _REDIS.match(settings.redis.url):
        yield ("redis", "url"), "should be `embedded`, redis://, rediss://, redis+cluster:// or redis+sentinel://…"
    if not _LEDGER.match(settings.ledger.url):
        yield ("ledger", "url"), "should begin with sqlite:/// or postgresql://"
    for index, origin in enumerate(settings.server.allowed_origins):
        if origin != "*" and not re.fullmatch(r"[a-z][a-z0-9+.-]*://[^/\s]+", origin):
            yield ("server", "allowed_origins", index), "should be like https://chat.example.com, without a path"
    for index, network in enumerate(settings.server.trusted_proxies):
        try:
            ipaddress.ip_network(network)
        except ValueError:
            yield ("server", "trusted_proxies", index), "should be an address or network, like 10.0.0.0/8"


def _check_webhooks(settings: Settings, environ: Mapping[str, str]) -> Iterator[Finding]:
    sections: list[tuple[KeyPath, JobsSettings | TenantSettings]] = [(("jobs",), settings.jobs)]
    sections += [(("tenants", name), tenant) for name, tenant in settings.tenants.items()]
    for path, section in sections:
        given = section.webhook_secret_env, section.webhook_secret_file
        missing = list(_check_reference(path, "webhook_secret", *given, environ))
        yield from missing
        if not missing and (text := read_secret(*given, environ)) is not None:
            try:
                webhook_secrets(text)
            except ValueError as error:
                key = "webhook_secret_env" if section.webhook_secret_env is not None else "webhook_secret_file"
                yield (*path, key), str(error)


def webhook_secrets(text: str) -> tuple[bytes, ...]:
    """Secrets of webhooks as they are written (Standard Webhooks, "signature scheme"): `whsec_` and base64; several
    (the old one too, while it is replaced) apart by spaces. Raises `ValueError`."""
    found = []
    for word in text.split():
        try:
            secret = base64.b64decode(word.removeprefix(WEBHOOK_PREFIX), validate=True)
        except binascii.Error:
            raise ValueError(f"should be `{WEBHOOK_PREFIX}` and base64") from None
        if len(secret) not in WEBHOOK_BYTES:
            raise ValueError("should have 24 to 64 bytes; `echo whsec_$(openssl rand -base64 32)` makes a good one")
        found.append(secret)
    if not found:
        raise ValueError("is empty")
    return tuple(found)


def _check_ledger(settings: Settings, environ: Mapping[str, str]) -> Iterator[Finding]:
    ledger = settings.ledger
    variable, file = ledger.user_hash_key_env, ledger.user_hash_key_file
    missing = list(_check_reference(("ledger",), "user_hash_key", variable, file, environ))
    yield from missing
    if missing or (variable is None and file is None):
        return
    key = read_secret(variable, file, environ) or ""
    if len(key.encode()) < USER_HASH_KEY_BYTES:
        where = "user_hash_key_env" if variable is not None else "user_hash_key_file"
        yield (
            ("ledger", where),
            f"the key has less than {USER_HASH_KEY_BYTES} bytes; `openssl rand -hex 32` makes one",
        )


def _check_limits(settings: Settings) -> Iterator[Finding]:
    if settings.messages.claim_seconds < settings.messages.retention_seconds:
        yield ("messages", "claim_seconds"), "should be at least messages.retention_seconds"
    if settings.breaker.open_seconds_max < settings.breaker.open_seconds:
        yield ("breaker", "open_seconds_max"), "should be at least breaker.open_seconds"


def is_loopback(host: str) -> bool:
    """Whether only this machine can reach `host`."""
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return host == "localhost" or host.endswith(".localhost")
