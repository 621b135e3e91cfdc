"""`python -m tests.chaos`: break everything for some minutes and see whether anybody notices. Exits 1 if so."""

from __future__ import annotations

import argparse
import asyncio
import sys
import time

from tests.chaos.run import Plan, run


def main() -> int:
    """Run from the command line."""
    parser = argparse.ArgumentParser(prog="python -m tests.chaos", description=__doc__)
    parser.add_argument("--minutes", type=float, default=1.0, help="how long things break (default 1)")
    parser.add_argument("--seed", type=int, default=None, help="of the schedule (default: the time)")
    parser.add_argument("--nodes", type=int, default=4)
    parser.add_argument("--clients", type=int, default=24)
    parser.add_argument("--redis", choices=["single", "cluster"], default="single")
    parser.add_argument("--json", metavar="FILE", help="write the figures here")
    wish = parser.parse_args()
    seed = int(time.time()) if wish.seed is None else wish.seed
    figures = asyncio.run(run(Plan(wish.minutes * 60, seed, wish.nodes, wish.clients, wish.redis)))
    print(figures.table())
    for problem in figures.problems[:50]:
        print(" !", problem)
    if wish.json:
        figures.write(wish.json)
    print("passed" if figures.passed else f"FAILED (seed {seed})")
    return 0 if figures.passed else 1


if __name__ == "__main__":
    sys.exit(main())
