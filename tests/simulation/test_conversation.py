"""Conversations in simulated worlds hold; and what would break them is seen."""

from __future__ import annotations

import subprocess
import sys

import pytest

from tests.simulation.check import Violation
from tests.simulation.conversation import TalkWorld, crowded
from tests.simulation.loop import Stuck
from tests.simulation.run import play
from tests.simulation.test_simulation import ROOT

SEEDS = 120
ONCE_FAILED = (5100161, 5100677, 5100818, 5100861, 5110994)
"""Seeds that showed defects which are mended."""
MOST = 150
"""Seeds within which a broken script has to show."""


def test_the_shipped_code_holds() -> None:
    command = [sys.executable, "-m", "tests.simulation.conversation", "--seeds", str(SEEDS)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=100, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("seed", ONCE_FAILED)
def test_what_once_failed_holds(seed: int) -> None:
    assert play(crowded(seed), kind=TalkWorld).violation is None


EDITS = {
    "everybody has the turn": (
        b"if waits or (current ~= '' and current ~= m) then",
        b"if waits and current == '' then",
    ),
    "the queue is not moved on": (
        b"current = string.match(queue, '^[^,]+') or ''",
        b"current = ''",
    ),
    "the turn is not given back": (
        b"elseif turn then",
        b"elseif turn and state == 'failed' then",
    ),
    "the answer is not kept": (
        b"redis.call('HSET', KEYS[3], m, ARGV[8])",
        b"",
    ),
}


@pytest.mark.parametrize("name", EDITS)
def test_a_broken_script_is_seen(name: str) -> None:
    right, wrong = EDITS[name]
    edited: list[bytes] = []

    def edit(source: bytes) -> bytes:
        if right in source:
            edited.append(source)
        return source.replace(right, wrong)

    for seed in range(MOST):
        try:
            TalkWorld(crowded(seed), edit).run()
        except (Violation, Stuck):
            break
    else:
        pytest.fail(f"{MOST} worlds do not show it")
    assert edited, "the script has other words by now"
