"""`python -m tests.bench`: the figures that must hold; exits 1 if one does not."""

from __future__ import annotations

import argparse
import sys

import uvloop
from rich.console import Console
from rich.table import Table

from tests.bench import conversation, interactive, isolation, replication, stop, takeover
from tests.bench.relay import Relay, relay

NAMES = ("firehose", "paced", "interactive", "conversation", "takeover", "stop", "isolation", "replication")
FIREHOSE_US = 16.0
"""Most CPU per delivered token in firehose, microseconds."""
PACED_US = 60.0
"""Most CPU per delivered token at 300 streams of 50 tokens per second."""


async def _run(names: list[str]) -> list[tuple[Relay, float]]:
    results = []
    if "firehose" in names:
        results.append((await relay("firehose: 20 streams x 300 tokens", 20, 300, 0, repeats=60), FIREHOSE_US))
    if "paced" in names:
        results.append((await relay("paced: 300 streams x 50 tokens/s", 300, 500, 50), PACED_US))
    return results


def main() -> int:
    """Run from the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("names", nargs="*", default=list(NAMES), help="which of: " + ", ".join(NAMES))
    names = parser.parse_args().names
    if unknown := set(names) - set(NAMES):
        parser.error(f"there is no {', '.join(sorted(unknown))}; there are: {', '.join(NAMES)}")
    results = uvloop.run(_run(names))
    table = Table("relay", "µs CPU/token", "at most", "tokens/s", "core", "first token p50/p99 ms")
    for result, limit in results:
        table.add_row(
            result.name,
            f"{result.cpu_us_per_token:.1f}",
            f"{limit:.0f}",
            f"{result.tokens / result.wall_seconds:,.0f}",
            f"{result.core:.0%}",
            f"{result.first_token_p50_ms:.0f} / {result.first_token_p99_ms:.0f}",
        )
    held = all(result.cpu_us_per_token <= limit for result, limit in results)
    if results:
        Console().print(table)
    measures = {
        "interactive": interactive.measure,
        "takeover": takeover.measure,
        "stop": stop.measure,
        "isolation": isolation.measure,
        "replication": replication.measure,
    }
    for name, measure in measures.items():
        if name in names:
            table, fine = measure()
            Console().print(table)
            held = held and fine
    if "conversation" in names:
        held = conversation.report(uvloop.run(conversation.conversations())) and held
    return 0 if held else 1


if __name__ == "__main__":
    sys.exit(main())
