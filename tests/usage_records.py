"""Usage records for tests, as messages make them."""

from __future__ import annotations

from typing import Any

from server.ledger.record import Account, Row, rows_of

START = 1_790_000_000.0


def account(message_id: str = "m1", **more: Any) -> Account:
    fields: dict[str, Any] = {
        "message_key": f"key-{message_id}", "generation": "g1", "message_id": message_id, "tenant": "acme",
        "kind": "sub", "user": "ann", "tier": "free", "door": "ws", "origin": "s1", "route": "default",
    }  # fmt: skip
    return Account(**{**fields, **more})


def attempt(number: int = 1, **more: Any) -> dict[str, Any]:
    """One attempt that the user pays, with 10 tokens in and 20 out, for 50 nano-dollars."""
    return {
        "attempt": number, "run": 1, "target": "one", "provider": "openai", "model": "m-1", "outcome": "done",
        "payer": "user", "pays_input": True, "source": "provider", "input_tokens": 10, "output_tokens": 20,
        "cached_tokens": 4, "reasoning_tokens": 3, "cost_nano_usd": 50, "charged_nano_usd": 50, "price_version": "v",
        "started_at": START, "ended_at": START + 2.5, "first_token_ms": 300, **more,
    }  # fmt: skip


def rows(*attempts: dict[str, Any], **about: Any) -> list[Row]:
    """The rows of one message."""
    return rows_of(account(**about).entry(attempts or [attempt()]))
