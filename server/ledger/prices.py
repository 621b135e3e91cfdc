"""What a target's model costs where the configuration does not say: the price list that ships inside litellm.

litellm itself is never imported: its JSON is found beside it and read once, at the start of a node, if some target
needs it. A model that the list does not have has no price: its cost is unknown, not zero.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator, Mapping
from decimal import Decimal
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Final
from urllib.parse import urlsplit

import orjson
import structlog

from server.config import Settings, TargetSettings
from server.ledger.cost import Price

log = structlog.get_logger("ledger")

LIST_FILE: Final = "model_prices_and_context_window_backup.json"
MILLION: Final = 1_000_000
_ABOVE: Final = re.compile(r"^(?:in|out)put_cost_per_token_above_(\d+)k_tokens$")
PROVIDERS: Final[Mapping[str, str]] = {
    "api.openai.com": "openai",
    "api.groq.com": "groq",
    "api.deepseek.com": "deepseek",
    "api.mistral.ai": "mistral",
    "api.x.ai": "xai",
    "api.together.xyz": "together_ai",
    "api.fireworks.ai": "fireworks_ai",
    "api.perplexity.ai": "perplexity",
    "api.cerebras.ai": "cerebras",
    "api.deepinfra.com": "deepinfra",
    "openrouter.ai": "openrouter",
    "generativelanguage.googleapis.com": "gemini",
    "dashscope.aliyuncs.com": "dashscope",
}
"""Host of an OpenAI-compatible endpoint → what litellm calls that provider."""


class PriceList:
    """Prices by model, as litellm keeps them: US dollars per token."""

    def __init__(self, models: Mapping[str, Mapping[str, Any]], version: str) -> None:
        self._models = models
        self.version = version
        """Release of litellm and hash of the file: `litellm-1.106.2+0123456789ab`."""

    @classmethod
    def read(cls, data: bytes, release: str) -> PriceList:
        """The list in the bytes of litellm's file."""
        digest = hashlib.sha256(data).hexdigest()[:12]
        return cls(orjson.loads(data), f"litellm-{release}+{digest}")

    def price(self, provider: str, model: str) -> Price | None:
        """The price of a model; None if the list has none."""
        for name in self._names(provider, model):
            entry = self._models.get(name)
            if entry is not None and (price := self._price(entry)) is not None:
                return price
        return None

    def _names(self, provider: str, model: str) -> Iterator[str]:
        """Under which a model may stand, the surest first."""
        if provider:
            yield f"{provider}/{model}"
        yield model
        prefix, _, bare = model.partition("/")
        if bare and self._models.get(bare, {}).get("litellm_provider") == prefix:
            yield bare

    def _price(self, entry: Mapping[str, Any]) -> Price | None:
        def per_million(name: str, otherwise: Decimal | None = None) -> Decimal | None:
            value = entry.get(name)
            # the shortest text that reads back as the same double is what stands in the file
            return otherwise if not isinstance(value, int | float) else Decimal(repr(value)) * MILLION

        given = per_million("input_cost_per_token"), per_million("output_cost_per_token")
        if given == (None, None):
            return None
        base = Price(
            given[0] or Decimal(0),
            given[1] or Decimal(0),
            per_million("cache_read_input_token_cost"),
            per_million("output_cost_per_reasoning_token"),
            version=self.version,
        )
        steps = []
        for thousands in sorted({int(found[1]) for name in entry if (found := _ABOVE.match(name))}):
            above = f"_above_{thousands}k_tokens"
            step = Price(
                per_million(f"input_cost_per_token{above}", base.input_per_million) or Decimal(0),
                per_million(f"output_cost_per_token{above}", base.output_per_million) or Decimal(0),
                per_million(f"cache_read_input_token_cost{above}", base.cached_input_per_million),
                base.reasoning_per_million,
                version=self.version,
            )
            steps.append((thousands * 1000, step))
        return Price(
            base.input_per_million,
            base.output_per_million,
            base.cached_input_per_million,
            base.reasoning_per_million,
            tuple(steps),
            self.version,
        )


@cache
def shipped() -> PriceList | None:
    """The installed litellm's list; None without one. Read once a process."""
    spec = find_spec("litellm")
    for folder in (spec.submodule_search_locations or ()) if spec is not None else ():
        try:
            return PriceList.read((Path(folder) / LIST_FILE).read_bytes(), version("litellm"))
        except (OSError, ValueError, PackageNotFoundError) as error:
            log.warning("price_list_unreadable", error=str(error))
    return None


def provider_of(target: TargetSettings) -> str:
    """Who serves a target: litellm's name of the provider, or the host of an endpoint that it does not know."""
    if target.driver == "embedded":
        return "embedded"
    if target.driver == "litellm":
        prefix, _, bare = target.model_name.partition("/")
        return prefix if bare else ""
    host = urlsplit(target.endpoint or "").hostname or ""
    return PROVIDERS.get(host, host)


def price_of(target: TargetSettings) -> Price | None:
    """What a target costs: what the configuration says, else the shipped list's price of its own model."""
    configured = target.price_per_million_input, target.price_per_million_output, target.price_per_million_cached_input
    if any(price is not None for price in configured):
        tokens_in, tokens_out, cached = configured
        return Price(tokens_in or Decimal(0), tokens_out or Decimal(0), cached, version=_version(configured))
    if target.driver == "embedded":
        return None
    prices = shipped()
    provider = provider_of(target) if target.driver == "litellm" or target.endpoint is None else _known(target.endpoint)
    return None if prices is None else prices.price(provider, target.model_name)


def uncounted_money(settings: Settings) -> dict[str, list[str]]:
    """Limits in money (`tiers.free.monthly_usd`) → targets that they cover and that have no price: what is spent there
    is not counted. The embedded model costs nothing."""
    unpriced = {
        name for name, target in settings.targets.items() if target.driver != "embedded" and price_of(target) is None
    }
    found: dict[str, list[str]] = {}
    for kind, owners in (("tiers", settings.tiers), ("tenants", settings.tenants)):
        for name, owner in owners.items():
            limits = {(f"{kind}.{name}", route): owner.monthly_usd for route in settings.routes}
            limits |= {(f"{kind}.{name}.routes.{r}", r): own.monthly_usd for r, own in owner.routes.items()}
            for (section, route), usd in limits.items():
                if usd is not None and route in settings.routes:
                    covered = found.setdefault(f"{section}.monthly_usd", [])
                    covered += sorted(unpriced.intersection(settings.routes[route].targets).difference(covered))
    return {limit: targets for limit, targets in found.items() if targets}


def _known(endpoint: str) -> str:
    return PROVIDERS.get(urlsplit(endpoint).hostname or "", "")


def _version(configured: tuple[Decimal | None, ...]) -> str:
    """Configured prices change, too: a record says which it was."""
    text = "/".join("-" if price is None else str(price.normalize()) for price in configured)
    return f"config+{hashlib.sha256(text.encode()).hexdigest()[:12]}"
