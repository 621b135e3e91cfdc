"""What the HTTP surface needs of the node, and what all of its handlers share."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final, Protocol

from server.access.identity import Authenticator
from server.access.limits import ConnectionLimits
from server.access.minting import Signer
from server.access.origins import OriginPolicy
from server.config import Settings
from server.demo.parts import DemoNode
from server.jobs.service import Jobs
from server.ledger.shelf import Shelf
from server.messages.service import Messages
from server.quotas.service import Quotas
from server.routing.gate import TargetState
from server.sessions.actor import Peer

KEEPALIVE_SECONDS: Final = 15.0
"""Longest silence of a stream: then a comment goes out, and with the first one the status, so that nothing on the way
gives up."""


class Host(Protocol):
    """The node. `messages`, `jobs` and `quotas` are there once it has started."""

    settings: Settings
    environ: Mapping[str, str]
    authenticator: Authenticator
    origins: OriginPolicy
    messages: Messages
    quotas: Quotas
    jobs: Jobs
    shelf: Shelf
    responses: set[Peer]

    demo: DemoNode | None
    """Set in a `tidewire demo`."""

    def target_states(self) -> list[TargetState]:
        """How every target stands, as this node sees it."""
        ...


class Api:
    """One per application; handed to every handler."""

    def __init__(self, host: Host, keepalive_seconds: float = KEEPALIVE_SECONDS) -> None:
        self.host = host
        self.keepalive_seconds = keepalive_seconds
        self.settings = host.settings
        self.connections = ConnectionLimits(host.settings.server)
        """Counts the responses that follow a message, as the socket's endpoint counts sockets."""
        self.signer = Signer.from_settings(host.settings, host.environ)
        """None where an identity provider makes the tokens."""

    @property
    def messages(self) -> Messages:
        """The node's messages."""
        return self.host.messages

    @property
    def jobs(self) -> Jobs:
        """The node's jobs."""
        return self.host.jobs
