"""The simulation can fail: every broken variant is caught by some seed that holds with the shipped code."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.simulation.caught import CAUGHT_BY
from tests.simulation.mutants import MUTANTS, Mutant
from tests.simulation.run import caught_at, recall

ROOT = Path(__file__).parents[2]
MOST_SEEDS = 2_000


def simulate(*words: str, seconds: float) -> subprocess.CompletedProcess[str]:
    """Run the command in a process of its own: it turns the collector and the log off."""
    command = [sys.executable, "-m", "tests.simulation", *words, "--jobs", "2"]
    environ = {**os.environ, "PYTHONHASHSEED": "0"}
    return subprocess.run(command, cwd=ROOT, env=environ, capture_output=True, text=True, timeout=seconds, check=False)


@pytest.mark.timeout(300)
def test_every_mutant_is_caught_where_it_was_caught_before() -> None:
    """In seconds, or some more after a change of the code; what a failure says tells how to find other seeds."""
    done = simulate("--known", seconds=280)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.count("caught by seed") == len(MUTANTS)


def test_a_seed_is_kept_for_mutants_that_there_are_only() -> None:
    assert CAUGHT_BY.keys() <= {mutant.name for mutant in MUTANTS}


def test_a_variant_that_breaks_nothing_is_not_caught() -> None:
    assert [seed for seed in sorted(set(CAUGHT_BY.values())) if caught_at(Mutant("none", ""), seed) is not None] == []


def test_a_mutant_without_a_seed_is_told_with_the_command_that_finds_one() -> None:
    found = recall("no-fence", {}, most=0)
    assert found.caught_by is None
    assert "python -m tests.simulation --keep --mutant no-fence" in found.told


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_every_mutant_is_caught() -> None:
    done = simulate("--mutants", "--seeds", str(MOST_SEEDS), seconds=880)
    assert done.returncode == 0, done.stdout + done.stderr
