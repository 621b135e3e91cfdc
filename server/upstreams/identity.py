"""Which fields of a request tell a provider whom it serves, where the configuration does not say."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final
from urllib.parse import urlsplit

UNKNOWN: Final = ("user", "metadata")
"""Servers of one's own (vLLM, SGLang, llama.cpp, Ollama, gateways) take both or ignore them."""
KNOWN: Final[Mapping[str, tuple[str, ...]]] = {
    "api.openai.com": ("safety_identifier",),  # `metadata` is refused on requests that are not stored
    "openai.azure.com": ("user",),
    "api.groq.com": ("user",),
    "api.x.ai": ("user",),
    "api.together.xyz": ("user",),
    "api.fireworks.ai": ("user",),
    "api.cerebras.ai": ("user",),
    "openrouter.ai": ("user",),
    "api.mistral.ai": (),  # refuses what it does not know
    "generativelanguage.googleapis.com": (),
    "api.perplexity.ai": (),
    "api.deepseek.com": (),
}
"""Host, or the end of it → fields."""


def identity_fields(driver: str, endpoint: str | None) -> tuple[str, ...]:
    """The fields for a target: of its provider, if that is known."""
    if driver == "embedded":
        return ()
    host = urlsplit(endpoint or "").hostname or ""
    return next((fields for name, fields in KNOWN.items() if host == name or host.endswith(f".{name}")), UNKNOWN)
