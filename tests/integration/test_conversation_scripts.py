"""The state machine of a conversation once more, on a real Valkey and a real Redis."""

from __future__ import annotations

from typing import Any

from hypothesis import HealthCheck, settings
from hypothesis.stateful import run_state_machine_as_test
from redis.connection import Connection

from tests.unit.messages.test_conversation_scripts import Machine

EXAMPLES = 25
STEPS = 30


class RealSpace:
    """A server behind one connection, whose answers come as they are."""

    def __init__(self, url: str) -> None:
        host, port = url.removeprefix("redis://").partition("/")[0].split(":")
        self.connection = Connection(host=host, port=int(port), protocol=2)

    def execute(self, *command: Any) -> Any:
        """See `Space`."""
        self.connection.send_command(*command)
        return self.connection.read_response()

    def empty(self) -> RealSpace:
        """Itself, with nothing in it."""
        self.execute("FLUSHALL")
        return self


def test_any_order_of_what_nodes_may_do_on_a_real_server(redis_url: str) -> None:
    space = RealSpace(redis_url)
    try:
        run_state_machine_as_test(  # type: ignore[no-untyped-call]
            lambda: Machine(space.empty()),
            settings=settings(
                max_examples=EXAMPLES,
                stateful_step_count=STEPS,
                deadline=None,
                suppress_health_check=[HealthCheck.too_slow],
            ),
        )
    finally:
        space.connection.disconnect()
