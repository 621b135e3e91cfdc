"""The settings of `tidewire demo`."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from server.config.loading import data_home, parse
from server.config.sections import Overrides, ServerSettings, Settings

EXAMPLE_PROMPTS: Final = Path(__file__).parents[1] / "prompts" / "example"
"""The prompts of `tidewire demo`; an example of a folder of prompts."""


def demo_settings(
    environ: Mapping[str, str] | None = None,
    overrides: Overrides | None = None,
    *,
    primary_url: str | None = None,
    secret_env: str | None = None,
) -> Settings:
    """What `tidewire demo` runs: two nodes, embedded Redis, the embedded model behind two targets, limits and
    prices made up so that there is something to see. Raises `ConfigError`.

    `primary_url`: where the primary model is, if it can be broken. `secret_env`: the variable with the secret of
    tokens; without one anybody on this machine may come in. Data lies in its own folder per port, so that demos on
    two ports don't meet.
    """
    environ = environ or {}
    server = (overrides or {}).get("server", {})
    port = server.get("port") or environ.get("TIDEWIRE_SERVER_PORT") or ServerSettings().port
    home = data_home(environ) / "demo" / str(port)
    model = {"driver": "embedded", "prefill": True, "context_tokens": 2048}
    primary = {"price_per_million_input": "0.40", "price_per_million_output": "1.60"}
    backup = {"price_per_million_input": "0.10", "price_per_million_output": "0.40"}
    data: dict[str, dict[str, Any]] = {
        "server": {"workers": 2},
        # Redis, nodes, model and browser share one machine: its pauses are no outage of Redis.
        "redis": {"url": "embedded", "data_dir": str(home / "redis"), "stall_ms": 1000},
        "auth": {"anonymous": True} if secret_env is None else {"jwt_secret_env": secret_env},
        "tiers": {
            "demo": {
                "tokens_per_minute": 12_000,
                "requests_per_minute": 60,
                "concurrent_messages": 8,
                "max_output_tokens": 800,
                "monthly_usd": "5",
            }
        },
        "targets": {
            "primary": model | primary | ({} if primary_url is None else {"base_url": primary_url}),
            "backup": model | backup,
        },
        "routes": {"default": {"targets": ["primary", "backup"], "on_midstream_failure": "continue"}},
        "breaker": {"minimum_calls": 1, "open_seconds": 8.0, "open_seconds_max": 16.0, "ramp_seconds": 4.0},
        "jobs": {"concurrency": 1},  # the one small model is everybody's
        "ledger": {"url": f"sqlite:///{home / 'ledger.db'}"},
    }
    if "TIDEWIRE_PROMPTS_DIR" not in environ:
        data["prompts"] = {"dir": str(EXAMPLE_PROMPTS)}
        data["routes"]["default"]["prompt"] = "assistant@^1"
    return parse(data, environ, overrides=overrides)
