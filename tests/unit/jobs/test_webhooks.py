"""Signatures that the reference library accepts, and addresses that are not called."""

from __future__ import annotations

import base64
import json
import socket
from typing import Any

import pytest
from aiohttp.abc import AbstractResolver, ResolveResult
from standardwebhooks.webhooks import Webhook, WebhookVerificationError

from server.config import webhook_secrets
from server.jobs.webhooks import PrivateAddress, PublicResolver, Unwelcome, Webhooks, checked_url, is_public, signature

SECRET = base64.b64encode(bytes(range(32))).decode()
OTHER = base64.b64encode(bytes(range(1, 33))).decode()


def headers(secrets: str, now: int, body: bytes) -> dict[str, str]:
    made = signature(webhook_secrets(secrets), "job_1", now, body)
    return {"webhook-id": "job_1", "webhook-timestamp": str(now), "webhook-signature": made}


def test_the_reference_library_verifies_what_is_signed() -> None:
    import time

    body, now = json.dumps({"type": "job.done", "text": "Größe"}).encode(), int(time.time())
    assert Webhook(f"whsec_{SECRET}").verify(body, headers(f"whsec_{SECRET}", now, body))["type"] == "job.done"
    both = headers(f"whsec_{OTHER} whsec_{SECRET}", now, body)
    assert Webhook(f"whsec_{SECRET}").verify(body, both)
    assert Webhook(f"whsec_{OTHER}").verify(body, both)
    with pytest.raises(WebhookVerificationError):
        Webhook(f"whsec_{OTHER}").verify(body, headers(f"whsec_{SECRET}", now, body))
    with pytest.raises(WebhookVerificationError):
        Webhook(f"whsec_{SECRET}").verify(body + b" ", headers(f"whsec_{SECRET}", now, body))


@pytest.mark.parametrize("text", ["", "  ", "whsec_", "whsec_c2hvcnQ=", "whsec_no base64!", f"whsec_{SECRET} x"])
def test_a_secret_that_is_none_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"should|is empty"):
        webhook_secrets(text)


@pytest.mark.parametrize(
    "address",
    [
        "127.0.0.1", "10.1.2.3", "172.16.0.1", "192.168.0.1", "169.254.169.254", "100.64.0.1", "0.0.0.0", "224.0.0.1",
        "240.0.0.1", "255.255.255.255", "::1", "::", "fe80::1%eth0", "fd00::1", "ff02::1", "::ffff:127.0.0.1",
        "::ffff:10.0.0.1", "64:ff9b::7f00:1", "64:ff9b::a00:1", "2002:7f00:1::", "2001:0:4136:e378:8000:63bf:3fff:fdd2",
        "198.18.0.1", "192.0.2.1", "2001:db8::1",
    ],
)  # fmt: skip
def test_addresses_that_are_not_public(address: str) -> None:
    assert not is_public(address)


@pytest.mark.parametrize("address", ["93.184.216.34", "8.8.8.8", "2606:4700::1111", "64:ff9b::808:808"])
def test_addresses_that_are(address: str) -> None:
    assert is_public(address)


@pytest.mark.parametrize(
    "url",
    [
        "http://example.com/hook", "ftp://example.com", "https://", "https:///x", "https://user@example.com/",
        "https://user:pass@example.com/", "https://127.0.0.1/", "https://[::1]/", "https://[::ffff:10.0.0.1]/x",
        "https://169.254.169.254/latest/meta-data", "https://exämple.com/", "https://example.com/ x",
        "https://example.com:99999/", "https://[bad/", "https://example.com/" + "x" * 2048, "example.com", "",
    ],
)  # fmt: skip
def test_urls_that_are_not_called(url: str) -> None:
    with pytest.raises(Unwelcome):
        checked_url(url, allow_private=False)


def test_urls_that_are() -> None:
    assert checked_url("https://example.com:8443/hook?x=1", allow_private=False)
    assert checked_url("http://127.0.0.1:8000/hook", allow_private=True)
    with pytest.raises(Unwelcome):
        checked_url("ftp://127.0.0.1/", allow_private=True)


class Names(AbstractResolver):
    """A name service of the test's own."""

    def __init__(self, *answers: list[str]) -> None:
        self.answers = list(answers)

    async def resolve(
        self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_INET
    ) -> list[ResolveResult]:
        return [
            ResolveResult(hostname=host, host=address, port=port, family=family, proto=0, flags=0)
            for address in self.answers.pop(0)
        ]

    async def close(self) -> None:
        pass


async def test_a_name_with_any_private_address_is_not_called() -> None:
    guarded = PublicResolver(Names(["8.8.8.8"], ["8.8.8.8", "10.0.0.1"], ["127.0.0.1"]))
    assert len(await guarded.resolve("public.example")) == 1
    for _ in range(2):
        with pytest.raises(PrivateAddress):
            await guarded.resolve("rebinding.example")


async def test_a_delivery_to_a_private_name_fails_like_any_other() -> None:
    hooks = Webhooks({None: webhook_secrets(SECRET)}, False, [1.0], Names(["127.0.0.1"]))
    payload: dict[str, Any] = {}
    assert await hooks.deliver("acme", "https://rebinding.example/", "job_1", 1, payload) is None
    await hooks.close()


def test_retries_are_bounded_and_spread() -> None:
    hooks = Webhooks({None: webhook_secrets(SECRET)}, False, [5.0, 300.0])
    assert 4500 <= (hooks.again_after_ms(1) or 0) <= 5500
    assert 270_000 <= (hooks.again_after_ms(2) or 0) <= 330_000
    assert hooks.again_after_ms(3) is None


def test_a_tenant_may_have_a_secret_of_its_own() -> None:
    hooks = Webhooks({"acme": webhook_secrets(SECRET)}, False, [])
    assert hooks.signs_for("acme")
    assert not hooks.signs_for("other")
    assert Webhooks({None: webhook_secrets(SECRET)}, False, []).signs_for("other")
