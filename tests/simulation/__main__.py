"""`python -m tests.simulation --seeds N [--first K] [--seed S --verbose] [--jobs 2] [--mutants] [--known] [--keep]`.

`make simulate` runs it.
"""

from __future__ import annotations

import argparse
import os
import sys
from typing import Final

HASH_SEED: Final = "PYTHONHASHSEED"


def main() -> int:
    """Run it; the exit code is 1 if anything fails."""
    parser = argparse.ArgumentParser(prog="python -m tests.simulation", description=__doc__)
    parser.add_argument("--seeds", type=int, default=1000, help="how many worlds to play")
    parser.add_argument("--first", type=int, default=0, help="the first seed")
    parser.add_argument("--seed", type=int, help="play this one alone, twice, and shrink it if it fails")
    parser.add_argument("--verbose", action="store_true", help="print the whole trace of --seed")
    parser.add_argument("--jobs", type=int, default=2, help="processes")
    parser.add_argument("--no-shrink", action="store_true", help="print failures as they are")
    parser.add_argument("--mutants", action="store_true", help="check that broken variants of the code are caught")
    parser.add_argument("--mutant", action="append", help="only this variant (may be repeated); implies --mutants")
    parser.add_argument("--known", action="store_true", help="begin with the seed that is known to catch each variant")
    parser.add_argument("--keep", action="store_true", help="write down which seeds caught them; implies --mutants")
    given = parser.parse_args()
    if os.environ.get(HASH_SEED) != "0":  # sets of text are walked in an order that depends on it
        os.execve(
            sys.executable, [sys.executable, "-m", "tests.simulation", *sys.argv[1:]], os.environ | {HASH_SEED: "0"}
        )
    if given.mutants or given.mutant or given.known or given.keep:
        most = given.seeds if "--seeds" in " ".join(sys.argv) else 2000
        return _mutants(given, most)
    if given.seed is not None:
        return _one(given.seed, given.verbose, not given.no_shrink)
    return _many(given.first, given.seeds, given.jobs, not given.no_shrink)


def _many(first: int, count: int, jobs: int, shrinks: bool) -> int:
    from tests.simulation import run

    failed: list[run.Outcome] = []
    failures, seconds = run.run(first, count, jobs, failed.append)
    for outcome in failed[:20]:
        print(f"seed {outcome.seed}: {outcome.violation}")
    print(f"{count} seeds, {failures} failures, {seconds:.1f} s, {count / seconds:.0f} seeds/s on {jobs} processes")
    if failed and shrinks:
        run.prepare()
        _show_shrunk(failed[0].seed)
    return 1 if failures else 0


def _one(seed: int, verbose: bool, shrinks: bool) -> int:
    from tests.simulation import run
    from tests.simulation.outages import world_of

    run.prepare()
    schedule = world_of(seed)
    first, second = (run.play(schedule, verbose=True) for _ in range(2))
    print(schedule)
    if verbose:
        print("\n".join(first.trace))
    same = "the same" if first.digest == second.digest else f"NOT the same: {second.digest:08x}"
    print(f"seed {seed}: {first.violation or 'holds'}; trace {first.digest:08x}, twice {same}")
    if first.violation is not None and shrinks:
        _show_shrunk(seed)
    return 1 if first.violation is not None or first.digest != second.digest else 0


def _show_shrunk(seed: int) -> None:
    from tests.simulation import run
    from tests.simulation.outages import world_of

    schedule = run.shrink(world_of(seed))
    outcome = run.play(schedule, verbose=True)
    print(f"\nshrunk to {len(schedule.steps)} steps: {outcome.violation}\n{schedule}\n")
    print("\n".join(outcome.trace))


def _mutants(given: argparse.Namespace, most: int) -> int:
    from tests.simulation import run
    from tests.simulation.mutants import MUTANTS

    wanted = given.mutant or [mutant.name for mutant in MUTANTS]
    found = []
    for one in run.recall_all(wanted, given.jobs) if given.known else run.hunt_all(wanted, most, given.jobs):
        found.append(one)
        print(one.told, flush=True)
    if given.keep:
        run.keep(found)
    return 1 if any(one.caught_by is None for one in found) else 0


if __name__ == "__main__":
    sys.exit(main())
