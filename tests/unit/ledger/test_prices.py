"""Prices: the configuration's, else those of litellm's own file, without importing litellm."""

from __future__ import annotations

import json
import subprocess
import sys
from decimal import Decimal
from typing import Any

import pytest

from server.config import TargetSettings, parse
from server.ledger.cost import Price
from server.ledger.prices import PriceList, price_of, provider_of, shipped, uncounted_money

MODELS: dict[str, Any] = {
    "gpt-x": {"input_cost_per_token": 1.5e-07, "output_cost_per_token": 6e-07, "litellm_provider": "openai",
              "cache_read_input_token_cost": 7.5e-08, "input_cost_per_token_batches": 1e-09},
    "gemini/pro": {"input_cost_per_token": 1.25e-06, "output_cost_per_token": 1e-05, "litellm_provider": "gemini",
                   "input_cost_per_token_above_200k_tokens": 2.5e-06,
                   "output_cost_per_token_above_200k_tokens": 1.5e-05,
                   "cache_read_input_token_cost": 1.25e-07, "cache_read_input_token_cost_above_200k_tokens": 2.5e-07},
    "thinker": {"input_cost_per_token": 1e-06, "output_cost_per_token": 2e-06, "output_cost_per_reasoning_token": 3e-06,
                "litellm_provider": "groq"},
    "groq/thinker": {"input_cost_per_token": 9e-06, "output_cost_per_token": 9e-06, "litellm_provider": "groq"},
    "painter": {"output_cost_per_image": 0.04, "litellm_provider": "openai"},
}  # fmt: skip
PRICES = PriceList.read(json.dumps(MODELS).encode(), "1.2.3")


def target(**fields: Any) -> TargetSettings:
    return TargetSettings(**{"driver": "openai", "model": "gpt-x", **fields})


@pytest.mark.parametrize(
    ("provider", "model", "tokens", "nano"),
    [
        ("", "gpt-x", (1_000, 100, 0, 0), 150_000 + 60_000),
        ("", "gpt-x", (1_000, 100, 400, 0), 90_000 + 30_000 + 60_000),
        ("openai", "gpt-x", (1, 0, 0, 0), 150),
        ("gemini", "pro", (200_000, 10, 0, 0), 250_000_000 + 100_000),
        ("gemini", "pro", (200_001, 10, 100_000, 0), 100_001 * 2_500 + 100_000 * 250 + 150_000),
        ("", "thinker", (0, 10, 0, 4), 6 * 2_000 + 4 * 3_000),
        ("groq", "thinker", (1, 0, 0, 0), 9_000),
        ("groq", "groq/thinker", (1, 0, 0, 0), 9_000),
        ("openai", "openai/gpt-x", (1, 0, 0, 0), 150),
    ],
)
def test_a_model_of_the_list(provider: str, model: str, tokens: tuple[int, ...], nano: int) -> None:
    price = PRICES.price(provider, model)
    assert price is not None
    assert price.nano_dollars(*tokens) == nano
    assert price.version.startswith("litellm-1.2.3+")


def test_a_model_that_is_not_there_has_no_price() -> None:
    assert PRICES.price("", "unknown") is None
    assert PRICES.price("", "painter") is None
    assert PRICES.price("anthropic", "anthropic/gpt-x") is None


def test_the_version_is_that_of_the_content() -> None:
    other = PriceList.read(json.dumps({**MODELS, "new": {}}).encode(), "1.2.3")
    assert other.version != PRICES.version
    assert PriceList.read(json.dumps(MODELS).encode(), "1.2.3").version == PRICES.version


def test_the_configuration_s_price_comes_first() -> None:
    given = target(price_per_million_input=Decimal(2), price_per_million_output=Decimal("0.5"))
    price = price_of(given)
    assert price is not None
    assert price.nano_dollars(1_000_000, 1_000_000, 1_000_000) == 2_500_000_000
    cached = price_of(given.model_copy(update={"price_per_million_cached_input": Decimal("0.2")}))
    assert cached is not None
    assert cached.nano_dollars(1_000_000, 0, 1_000_000) == 200_000_000
    assert price.version.startswith("config+")
    assert cached.version != price.version


@pytest.mark.parametrize(
    ("fields", "provider"),
    [
        ({}, "openai"),
        ({"base_url": "https://api.groq.com/openai/v1"}, "groq"),
        ({"base_url": "http://vllm.internal:8000/v1"}, "vllm.internal"),
        ({"driver": "litellm", "model": "anthropic/claude-x"}, "anthropic"),
        ({"driver": "litellm", "model": "gpt-x"}, ""),
        ({"driver": "embedded", "model": None}, "embedded"),
    ],
)
def test_who_serves_a_target(fields: dict[str, Any], provider: str) -> None:
    assert provider_of(target(**fields)) == provider


def test_the_shipped_list_prices_well_known_models_wherever_they_are_served() -> None:
    prices = shipped()
    assert prices is not None
    for fields in ({}, {"base_url": "http://127.0.0.1:1/v1"}, {"driver": "litellm", "model": "openai/gpt-4o-mini"}):
        price = price_of(target(**{"model": "gpt-4o-mini", **fields}))
        assert price is not None
        assert price.version == prices.version
        assert (price.input_per_million, price.output_per_million) == (Decimal("0.15"), Decimal("0.6"))
    assert price_of(target(driver="embedded", model=None)) is None


def test_litellm_is_not_imported() -> None:
    code = "import sys; from server.ledger.prices import shipped; assert shipped(); print('litellm' in sys.modules)"
    ran = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert ran.stdout.strip() == "False"


def test_steps_apply_above_their_size() -> None:
    big = Price(Decimal(2), Decimal(2))
    price = Price(Decimal(1), Decimal(1), above=((100, big),))
    assert (price.at(100), price.at(101)) == (price, big)
    assert price.nano_dollars(100, 0) == 100_000
    assert price.nano_dollars(101, 0) == 202_000


def test_a_limit_in_money_names_the_targets_that_it_does_not_count() -> None:
    unpriced, priced = (
        {"driver": "openai", "model": "own", "base_url": "http://here/v1"},
        {"price_per_million_input": 1},
    )
    settings = parse(
        {
            "targets": {"own": unpriced, "known": unpriced | priced, "local": {"driver": "embedded"}},
            "routes": {"default": {"targets": ["local", "known"]}, "large": {"targets": ["known", "own"]}},
            "tiers": {"free": {"monthly_usd": 5}, "paid": {}, "default": {"routes": {"default": {"monthly_usd": 1}}}},
            "tenants": {"acme": {"routes": {"large": {"monthly_usd": 9}}}},
        },
        {"HOME": "/h"},
    )
    assert uncounted_money(settings) == {
        "tiers.free.monthly_usd": ["own"],
        "tenants.acme.routes.large.monthly_usd": ["own"],
    }
