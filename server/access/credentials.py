"""Secrets, resolved: the one place where a reference in the settings becomes the secret itself."""

from __future__ import annotations

from collections.abc import Mapping

from server.config import AuthSettings, JobsSettings, Settings, TenantSettings, read_secret, webhook_secrets
from server.upstreams.base import TargetSpec
from server.upstreams.identity import identity_fields


def jwt_secret(auth: AuthSettings, environ: Mapping[str, str]) -> bytes | None:
    """The secret that signs HS256 tokens; None if there is none. `load` has checked that it can be read."""
    secret = read_secret(auth.jwt_secret_env, auth.jwt_secret_file, environ)
    return None if secret is None else secret.encode()


def webhook_keys(settings: Settings, environ: Mapping[str, str]) -> dict[str | None, tuple[bytes, ...]]:
    """What signs the webhooks of each tenant that has its own secret, and under None those of all others."""
    sections: list[tuple[str | None, JobsSettings | TenantSettings]] = [(None, settings.jobs)]
    sections += settings.tenants.items()
    texts = {
        tenant: read_secret(section.webhook_secret_env, section.webhook_secret_file, environ)
        for tenant, section in sections
    }
    return {tenant: webhook_secrets(text) for tenant, text in texts.items() if text is not None}


def target_specs(settings: Settings, environ: Mapping[str, str]) -> dict[str, TargetSpec]:
    """Each target by name, as its driver wants it, with its key."""
    return {
        name: TargetSpec(
            name=name,
            driver=target.driver,
            model=target.model_name,
            base_url=target.endpoint,
            api_key=read_secret(target.api_key_env, target.api_key_file, environ),
            connect_seconds=target.connect_seconds,
            first_token_seconds=target.first_token_seconds,
            idle_seconds=target.idle_seconds,
            total_seconds=target.total_seconds,
            context_tokens=target.context_tokens,
            prefill=target.prefill,
            identity=identity_fields(target.driver, target.endpoint) if target.identity is None else target.identity,
        )
        for name, target in settings.targets.items()
    }
