"""Which version a user gets: newest in range, shares that only grow, withdrawn versions, conversations that stay."""

from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from server.prompts.prompt import Prompt, parse
from server.prompts.selection import place, select
from server.prompts.version import Range, Version
from tests.prompt_files import plain

USERS = [f"user-{number}" for number in range(2_000)]


def released(*versions: str) -> list[Prompt]:
    return [parse("p", Version.parse(text), plain(text).encode()) for text in versions]


def chosen(
    versions: list[Prompt], text: str = "*", user: str = "u", stands: str | None = None, **shares: float
) -> str | None:
    by_version = {name.removeprefix("v").replace("_", "."): share for name, share in shares.items()}
    found = select(
        versions,
        [Range.parse(text)],
        lambda prompt: by_version.get(str(prompt.version), 100.0),
        user,
        None if stands is None else Version.parse(stands),
    )
    return None if found is None else str(found.version)


THREE = released("1.0.0", "1.1.0", "2.0.0-rc.1", "2.0.0")


def test_the_newest_in_range_is_chosen() -> None:
    assert chosen(THREE) == "2.0.0"
    assert chosen(THREE, "^1") == "1.1.0"
    assert chosen(THREE, "1.0.x") == "1.0.0"
    assert chosen(THREE, "^3") is None
    assert chosen(THREE, "2.0.0-rc.1") == "2.0.0-rc.1"
    assert chosen(THREE[:3]) == "1.1.0"


def test_a_withdrawn_version_is_only_had_by_name() -> None:
    assert chosen(THREE, "^1", v1_1_0=0) == "1.0.0"
    assert chosen(THREE, "1.1.0", v1_1_0=0) == "1.1.0"
    assert chosen(THREE, "^1", v1_1_0=0, v1_0_0=0) is None


def test_a_conversation_stays_as_long_as_it_may() -> None:
    assert chosen(THREE, "^1", stands="1.0.0") == "1.0.0"
    assert chosen(THREE, "^1", stands="1.1.0", v1_1_0=0.01) == "1.1.0"
    assert chosen(THREE, "^1", stands="1.1.0", v1_1_0=0) == "1.0.0", "withdrawn"
    assert chosen(THREE, ">=1.1 <2", stands="1.0.0") == "1.1.0", "asked for another"
    assert chosen(THREE, "^1", stands="1.0.7") == "1.1.0", "not there"
    assert chosen(THREE, "1.1.0", stands="1.0.0") == "1.1.0"


def test_shares_are_what_they_say_and_sticky() -> None:
    for percent in (1, 10, 50, 90):
        got = Counter(chosen(THREE, "^1", user, v1_1_0=percent) for user in USERS)
        assert got["1.1.0"] / len(USERS) == pytest.approx(percent / 100, abs=0.03)
        assert got.keys() <= {"1.0.0", "1.1.0"}


@given(st.text(max_size=20), st.floats(0.01, 100), st.floats(0.01, 100))
def test_a_greater_share_only_adds_users(user: str, one: float, other: float) -> None:
    less, more = sorted((one, other))
    if chosen(THREE, "^1", user, v1_1_0=less) == "1.1.0":
        assert chosen(THREE, "^1", user, v1_1_0=more) == "1.1.0"


def test_every_version_draws_its_own_users() -> None:
    first = {user for user in USERS if place("p@1.0.0", user) < 10}
    second = {user for user in USERS if place("p@1.1.0", user) < 10}
    assert len(first & second) < len(first) / 3
    assert all(0 <= place("p@1.0.0", user) < 100 for user in USERS)


def test_where_no_version_is_for_everybody_the_oldest_is_for_the_others() -> None:
    assert {chosen(released("1.0.0"), "^1", user, v1_0_0=5) for user in USERS[:50]} == {"1.0.0"}
