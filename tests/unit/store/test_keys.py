"""Key names: nobody's name can lead into somebody else's space, and all keys of a message share a slot."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from server.store import keys
from server.store.keys import MessageKeys, active_set, message_tag, open_set, user_tag
from server.store.topology import slot_of

NAME = st.text(max_size=12)
IDENTITY = st.tuples(NAME, NAME, NAME, NAME)


@given(IDENTITY, IDENTITY)
def test_different_identities_have_different_tags(
    one: tuple[str, str, str, str], other: tuple[str, str, str, str]
) -> None:
    assert (message_tag(*one) == message_tag(*other)) == (one == other)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (("a", "b", "c", "d"), ("ab", "", "c", "d")), (("t", "key", "u", "m"), ("t", "sub", "u", "m")),
        (("t", "k", "u:m", ""), ("t", "k", "u", "m")), (("t}", "k", "u", "m"), ("t", "}k", "u", "m")),
        (("", "", "", "\x00"), ("", "", "\x00", "")), (("ä", "", "", ""), ("a\u0308", "", "", "")),
    ],
)  # fmt: skip
def test_no_separator_can_be_forged(one: tuple[str, str, str, str], other: tuple[str, str, str, str]) -> None:
    assert message_tag(*one) != message_tag(*other)
    assert user_tag(*one[:3]) != user_tag(*other[:3]) or one[:3] == other[:3]


def test_a_message_s_tag_is_not_a_user_s() -> None:
    assert message_tag("t", "k", "u", "") != user_tag("t", "k", "u")
    assert len(user_tag("t", "k", "u")) == 64


@given(IDENTITY)
def test_all_keys_of_a_message_lie_in_one_slot(identity: tuple[str, str, str, str]) -> None:
    found = MessageKeys.of(message_tag(*identity))
    names = [found.record, found.journal, found.standing, found.channel, found.standing + b":gathered"]
    assert len({slot_of(name) for name in names}) == 1
    assert len(set(names)) == len(names)
    assert all(name.count(b"{") == name.count(b"}") == 1 for name in names)


def test_every_key_is_under_our_prefix() -> None:
    found = MessageKeys.of("x")
    for name in (
        found.record,
        found.journal,
        found.standing,
        found.channel,
        open_set("n", "hb0"),
        active_set("u"),
        keys.NODES,
    ):
        assert name.startswith(b"tw:")
    assert open_set("a", "hb0") != open_set("b", "hb0")
    assert active_set("a") != active_set("b")
