"""The quota's slot is down and the message's is not: `refuse`, or `local` and settled once Redis is back."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from dataclasses import replace
from typing import Any, cast

import pytest

from protocol.errors import ProtocolError
from server.config import parse
from server.messages.life import Life, NotAdmitted
from server.messages.reservation import Reservation
from server.quotas import scripts
from server.quotas.base import Order, Payer, Unsure, Used
from server.quotas.limits import Policies
from server.quotas.service import Quotas
from server.store.keys import quota_hold, quota_tag
from server.store.link import StoreUnavailable
from server.store.store import Script, Store
from tests.wire import eventually_true

WHO = Payer("acme", "u" * 64, "default")


class CutOff(Store):
    """A store whose quota scripts can be cut off."""

    down = False
    silent: str | None = None
    """A quota tag whose primary does not answer while those of the others do."""

    async def run(
        self, script: Script, keys: Sequence[bytes], args: Sequence[Any], seconds: float | None = 0.12
    ) -> Any:
        if self.down or (self.silent is not None and b"{%s}" % self.silent.encode() in keys[0]):
            raise StoreUnavailable("cut off")
        return await super().run(script, keys, args, seconds)


class Counts:
    """Outcomes as they are told for metrics."""

    def __init__(self) -> None:
        self.outcomes: list[str] = []

    def settled(self, tenant: str, tokens: int, nano_dollars: int) -> None: ...

    def quota(self, outcome: str) -> None:
        self.outcomes.append(outcome)


@pytest.fixture
async def store(valkey_url: str) -> AsyncIterator[CutOff]:
    made = await CutOff.connect(valkey_url, scripts.ALL)
    assert isinstance(made, CutOff)
    yield made
    await made.close()


def quotas(store: Store, counts: Counts, nodes: int = 1, **tier: Any) -> Quotas:
    data = {
        "targets": {"a": {"driver": "embedded"}},
        "routes": {name: {"targets": ["a"]} for name in ("default", "large")},
    }
    policies = Policies(parse({**data, "tiers": {"default": tier}}, {"HOME": "/h"}))
    return Quotas(store, policies, counts, 1000.0, "a node", lambda: nodes)


def order(hold: str, tokens: int = 100, payer: Payer = WHO) -> Order:
    return Order(hold, payer, tokens, tokens, 50)


async def test_refused_as_temporary_by_default(store: CutOff) -> None:
    made = quotas(store, counts := Counts(), tokens_per_minute=1000)
    store.down = True
    with pytest.raises(Unsure) as caught:
        await made.reserve(order("a"))
    assert (caught.value.code, caught.value.retryable) == ("store_unavailable", True)
    assert counts.outcomes == ["unavailable"]
    assert await made.view(WHO) == []
    await made.close()


async def test_local_admits_this_nodes_share_and_counts_it_afterwards(store: CutOff) -> None:
    made = quotas(store, counts := Counts(), 2, tokens_per_minute=1000, on_redis_outage="local")
    store.down = True
    admitted = [await made.reserve(order(f"h{number}")) for number in range(3)]  # 450 of 500
    assert all(hold.degraded for hold in admitted)
    with pytest.raises(Unsure) as caught:
        await made.reserve(order("h3"))
    assert caught.value.code == "quota_exceeded"
    assert (caught.value.details or {})["degraded"] is True
    assert (caught.value.retry_after_ms or 0) > 0
    store.down = False

    async def counted() -> bool:
        keys = [quota_hold(quota_tag("acme"), hold.id) for hold in admitted]
        return bool(await store.call(keys[0], "EXISTS", *keys) == 3)

    await eventually_true(counted)
    (tokens, *_) = await made.view(WHO)
    assert 550 <= tokens["remaining"] < 600
    await made.settle(WHO, "h0", Used(20))
    await made.settle(WHO, "h0", Used(20))
    assert counts.outcomes == ["degraded"] * 3 + ["refused", "settled"]
    await made.close()


async def test_a_tenant_whose_primary_answers_does_not_refill_the_share_of_one_whose_does_not(store: CutOff) -> None:
    made = quotas(store, Counts(), tokens_per_minute=1000, on_redis_outage="local")
    other = replace(WHO, tenant="another")
    assert quota_tag(other.tenant) != quota_tag(WHO.tenant)
    store.silent = quota_tag(WHO.tenant)
    for number in range(6):  # 900 of 1000
        assert (await made.reserve(order(f"a{number}"))).degraded
        assert not (await made.reserve(order(f"b{number}", payer=other))).degraded
    with pytest.raises(ProtocolError) as caught:
        await made.reserve(order("a6"))
    assert caught.value.code == "quota_exceeded"
    await made.close()


async def test_a_refusal_by_redis_is_sure_and_one_without_it_is_not(store: CutOff) -> None:
    """Whoever is refused while Redis is silent may hold what it reserves when it goes on."""
    made = quotas(store, Counts(), tokens_per_minute=200, on_redis_outage="local")
    life = Refused()
    for down, unsure in ((False, False), (True, True)):
        store.down = down
        reservation = Reservation(cast("Life", life), made)
        await made.reserve(order(f"first {down}"))
        with pytest.raises(NotAdmitted):
            await reservation.make(order(f"second {down}"))
        assert reservation.may_hold is unsure
    assert [refusal.code for refusal in life.refusals] == ["quota_exceeded"] * 2
    await made.close()


class Refused:
    """A claim that nobody was promised anything of."""

    promised, untouched = False, True

    def __init__(self) -> None:
        self.refusals: list[ProtocolError] = []

    def refuse(self, error: ProtocolError) -> None:
        self.refusals.append(error)
        raise NotAdmitted


async def test_a_settlement_before_the_debt_is_counted_once(store: CutOff) -> None:
    made = quotas(store, Counts(), tokens_per_minute=1000, on_redis_outage="local")
    await made.settle(WHO, "early", Used(300))
    hold = await made.reserve(order("early"))  # the reservation comes late: the hold is settled
    assert hold.id not in made.held
    (tokens, *_) = await made.view(WHO)
    assert 700 <= tokens["remaining"] < 710
    await made.close()


async def test_slots_and_money_are_not_guessed(store: CutOff) -> None:
    made = quotas(store, Counts(), 2, concurrent_messages=2, on_redis_outage="local")
    store.down = True
    await made.reserve(order("a"))
    with pytest.raises(ProtocolError) as caught:
        await made.reserve(order("b"))
    assert (caught.value.details or {})["limit"] == "concurrent_messages"
    rich = quotas(store, Counts(), monthly_usd=5, on_redis_outage="local")
    with pytest.raises(ProtocolError) as caught:
        await rich.reserve(order("c"))
    assert caught.value.code == "store_unavailable"
    await made.close()
    await rich.close()


async def test_a_route_with_limits_of_its_own_has_a_share_of_its_own(store: CutOff) -> None:
    routes = {"large": {"tokens_per_minute": 400, "concurrent_messages": 4}}
    limits = {"tokens_per_minute": 1000, "concurrent_messages": 2, "routes": routes}
    made = quotas(store, Counts(), 2, on_redis_outage="local", **limits)
    store.down = True
    large = replace(WHO, route="large")
    await made.reserve(order("a", payer=large))
    with pytest.raises(ProtocolError) as caught:
        await made.reserve(order("b", payer=large))  # 150 of 200 are taken
    assert (caught.value.details or {})["limit"] == "tokens_per_minute:large"
    await made.reserve(order("c"))
    with pytest.raises(ProtocolError) as caught:
        await made.reserve(order("d"))
    assert (caught.value.details or {})["limit"] == "concurrent_messages"
    store.down = False

    async def counted() -> bool:
        limits = {row["name"]: row["remaining"] for row in await made.view(WHO)}
        return limits["concurrent_messages:large"] == 3 and limits["concurrent_messages"] == 1

    await eventually_true(counted)
    await made.settle(large, "a", Used(20))
    (general, *_, own, _) = [row for row in await made.view(WHO) if "requests" not in row["name"]]
    assert 850 <= general["remaining"] < 900
    assert 380 <= own["remaining"] < 400
    await made.close()


async def test_what_was_spent_already_goes_on_whatever_the_limits_say(store: CutOff) -> None:
    made = quotas(store, Counts(), tokens_per_minute=200)
    await made.reserve(order("a"))
    with pytest.raises(ProtocolError):
        await made.reserve(order("b"))
    forced = await made.reserve(Order("b", WHO, 100, 100, 50, forced=True))
    assert forced.max_output_tokens == 50
    store.down = True
    assert (await made.reserve(Order("c", WHO, 100, 100, 50, forced=True))).degraded
    await made.close()


async def test_a_message_renews_its_lease_until_it_is_settled(store: CutOff) -> None:
    made = quotas(store, Counts(), concurrent_messages=1)
    await made.reserve(order("a"))
    await made.renew()
    assert set(made.held) == {"a"}
    await store.call(b"x", "HSET", quota_hold(quota_tag("acme"), "a"), "settled", "1")
    await made.renew()
    assert not made.held
    await made.close()
