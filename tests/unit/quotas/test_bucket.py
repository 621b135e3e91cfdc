"""The bucket against an exact fraction, whatever is done to it and whatever the clock does."""

from __future__ import annotations

from fractions import Fraction

from hypothesis import given
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from server.quotas.bucket import MINUTE_US, Bucket
from tests.quota_book import Level

LIMITS = st.one_of(st.integers(1, 10), st.integers(1, 10**12), st.sampled_from([59_999_999, 60_000_000, 60_000_001]))
START = 1_800_000_000_000_000


class BucketMachine(RuleBasedStateMachine):
    """Every step on both; the clock may step back, the fraction then stands still."""

    @initialize(limit=LIMITS)
    def begin(self, limit: int) -> None:
        self.now = self.seen = START
        self.bucket = Bucket.full(limit, START)
        self.level = Level(limit, Fraction(limit), START)
        self.taken = 0

    @rule(by=st.one_of(st.integers(0, 100), st.integers(-(10**9), 10**9)))
    def clock(self, by: int) -> None:
        self.now += by
        self.seen = max(self.seen, self.now)
        self.bucket = self.bucket.refilled(self.now)

    @rule(share=st.fractions(0, 2))
    def take(self, share: Fraction) -> None:
        tokens = max(1, int(self.level.limit * share))
        enough = self.level.at_time(self.seen) >= tokens
        left = self.bucket.take(tokens, self.now)
        assert (left is not None) == enough
        if left is not None:
            self.bucket = left
            self.level.add(-tokens, self.seen)

    @rule(share=st.fractions(-2, 2))
    def give(self, share: Fraction) -> None:
        tokens = int(self.level.limit * share)
        self.bucket = self.bucket.give(tokens, self.now)
        self.level.add(tokens, self.seen)

    @rule(share=st.fractions(0, 1))
    def wait(self, share: Fraction) -> None:
        tokens = max(1, int(self.level.limit * share))
        wait = self.bucket.wait(tokens, self.now)
        later = self.bucket.refilled(self.now).at + wait
        assert self.bucket.take(tokens, later) is not None
        assert wait == 0 or self.bucket.take(tokens, later - 1) is None, "the wait is not the shortest"

    @invariant()
    def same(self) -> None:
        if hasattr(self, "bucket"):
            bucket = self.bucket.refilled(self.now)
            assert bucket.tokens + Fraction(bucket.part, MINUTE_US) == self.level.at_time(self.seen)
            assert bucket.tokens <= bucket.limit
            assert 0 <= bucket.part < MINUTE_US


TestBucket = BucketMachine.TestCase


@given(LIMITS, st.integers(1, 10**9), st.integers(0, 10**10))
def test_a_clock_that_steps_back_refills_nothing_twice(limit: int, back: int, on: int) -> None:
    empty = Bucket.full(limit, START).give(-limit, START)
    stepped = empty.refilled(START + on).refilled(START + on - back).refilled(START + on)
    assert stepped == empty.refilled(START + on)
