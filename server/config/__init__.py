"""Typed settings: one TOML file, every value overridable by `TIDEWIRE_…` variables, secrets only by reference.

`load` is the one gate: file, then environment, then the command line's own options. It reports every problem of a
configuration at once (`ConfigError`). Settings are immutable and handed in; nothing else reads the environment.
Secrets are never part of a `Settings`: `server.access.credentials` resolves the references.
"""

from server.config.checks import ASYMMETRIC, SECRET_BYTES, is_loopback, read_secret, webhook_secrets
from server.config.demo import demo_settings
from server.config.loading import data_home, load, parse
from server.config.schema import ConfigError, Problem
from server.config.sections import (
    ApiKey,
    AuthSettings,
    BreakerSettings,
    ClaimNames,
    JobsSettings,
    LedgerSettings,
    MessagesSettings,
    Overrides,
    PromptsSettings,
    RedisSettings,
    RouteLimitSettings,
    RouteSettings,
    ServerSettings,
    Settings,
    TargetSettings,
    TenantSettings,
    TierSettings,
)

__all__ = [
    "ASYMMETRIC",
    "SECRET_BYTES",
    "ApiKey",
    "AuthSettings",
    "BreakerSettings",
    "ClaimNames",
    "ConfigError",
    "JobsSettings",
    "LedgerSettings",
    "MessagesSettings",
    "Overrides",
    "Problem",
    "PromptsSettings",
    "RedisSettings",
    "RouteLimitSettings",
    "RouteSettings",
    "ServerSettings",
    "Settings",
    "TargetSettings",
    "TenantSettings",
    "TierSettings",
    "data_home",
    "demo_settings",
    "is_loopback",
    "load",
    "parse",
    "read_secret",
    "webhook_secrets",
]
