"""`python -m tests.bench.admission`: CPU of a node per message, with answers so short that admission is most of it.

Run it in two checkouts by turns to see what a change costs.
"""

from __future__ import annotations

import uvloop

from tests.bench.relay import relay

STREAMS = 20
REPEATS = 150
TOKENS = 2


def main() -> None:
    """Run from the command line."""
    found = uvloop.run(relay("short answers", STREAMS, TOKENS, 0, repeats=REPEATS))
    messages = STREAMS * REPEATS
    print(
        f"{found.cpu_seconds / messages * 1e6:.0f} µs CPU of the node per message, "
        f"{messages / found.wall_seconds:.0f} messages/s, first token p50 {found.first_token_p50_ms:.1f} ms"
    )


if __name__ == "__main__":
    main()
