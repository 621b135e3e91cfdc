"""`tidewire demo`: the settings, the breakable primary, and on a network the secret and the first link."""

from __future__ import annotations

import secrets
import socket
import time
from collections.abc import Callable, Mapping, MutableMapping
from typing import Final, Protocol

from server.access.pairing import NONCE_BYTES, Pairing
from server.config import Overrides, Settings, demo_settings
from server.demo.parts import DemoParts, DemoSupervisor
from server.demo.primary import BreakablePrimary

SECRET_VARIABLE: Final = "TIDEWIRE_DEMO_SECRET"
"""Where the nodes find the secret of this run's tokens; made anew each time."""
ELSEWHERE: Final = ("192.0.2.1", 9)
"""An address that is nobody's (RFC 5737): which of ours would be used to go there? Nothing is sent."""


class Serve(Protocol):
    """`server.process.serve`: passed in, as a process knows a demo's parts and they must not know processes."""

    def __call__(self, settings: Settings, *, demo: Callable[[str], DemoSupervisor]) -> int:
        """Serve until told to stop; the exit code."""


def run(environ: MutableMapping[str, str], overrides: Overrides, serve: Serve, *, lan: bool) -> int:
    """Serve the demo until it is told to stop; the exit code. Raises `CannotStart`, `ConfigError`."""
    primary = BreakablePrimary()
    secret_env = None
    if lan:
        environ[SECRET_VARIABLE] = secrets.token_hex(32)
        secret_env = SECRET_VARIABLE
        overrides = {**overrides, "server": {**overrides.get("server", {}), "host": "0.0.0.0"}}  # noqa: S104
    with primary.listener:
        settings = demo_settings(environ, overrides, primary_url=primary.base_url, secret_env=secret_env)
        return serve(settings, demo=lambda address: DemoSupervisor(primary, _parts(address, lan), _say(environ, lan)))


def _parts(address: str, lan: bool) -> DemoParts:
    """`address`: as this machine's own browser would open it."""
    if not lan:
        return DemoParts(False, address)
    return DemoParts(True, f"http://{own_address()}:{address.rpartition(':')[2]}")


def _say(environ: Mapping[str, str], lan: bool) -> str:
    """What goes behind the address that is printed: on a network, the first device's code."""
    if not lan:
        return ""
    pairing = Pairing(environ[SECRET_VARIABLE].encode())
    return f"/#code={pairing.code(time.time(), secrets.token_bytes(NONCE_BYTES))}"


def own_address() -> str:
    """This machine's address on the network; `127.0.0.1` if it is on none."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect(ELSEWHERE)
        except OSError:
            return "127.0.0.1"
        return str(probe.getsockname()[0])
