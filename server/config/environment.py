"""Which key a `TIDEWIRE_…` variable means, and what its text says. Pure."""

from __future__ import annotations

import json
import re
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from server.config.schema import FIXED_SECTIONS, NAMED_SECTIONS, KeyPath, keys_at, plain_types
from server.config.sections import Settings

PREFIX: Final = "TIDEWIRE_"
RESERVED: Final = frozenset({"TIDEWIRE_CONFIG", "TIDEWIRE_LOG_LEVEL", "TIDEWIRE_LOG_FORMAT", "TIDEWIRE_TOKEN"})
"""Variables with the prefix that are no settings: read by the command line and the log set-up."""


def relevant(environ: Mapping[str, str]) -> list[tuple[str, str]]:
    """The variables that should be settings, sorted. An empty one counts as not set."""
    return [
        (name, value)
        for name, value in sorted(environ.items())
        if name.startswith(PREFIX) and value and name not in RESERVED and not _is_service_link(name, value)
    ]


def path_of(name: str, data: Mapping[str, Any]) -> KeyPath | None:
    """`TIDEWIRE_SERVER_PORT` → `("server", "port")`; None if the name has not the form of any key.

    `data` tells which entry `NAME` in `TIDEWIRE_TARGETS__NAME__MODEL` means: case and punctuation don't count.
    """
    section, _, rest = name.removeprefix(PREFIX).lower().partition("_")
    parts = rest.removeprefix("_").split("__")
    if section in FIXED_SECTIONS and all(parts):
        return (section, *parts)
    if section not in NAMED_SECTIONS or not rest.startswith("_") or not all(parts):
        return None
    entries = data.get(section)
    entry = _entry(parts[0], entries)
    if len(parts) == 2:
        return (section, entry, parts[1])
    if len(parts) == 4 and parts[1] == "routes":
        return (section, entry, "routes", _entry(parts[2], data.get("routes")), parts[3])
    return None


def _entry(name: str, entries: Any) -> str:
    for known in entries if isinstance(entries, dict) else ():
        if _as_variable(known).lower() == name:
            return str(known)
    return name


def _as_variable(name: str) -> str:
    return re.sub(r"[^A-Z0-9]", "_", name.upper())


def variables(data: Mapping[str, Any]) -> list[str]:
    """Names of all variables that can override something in `data`."""
    names = sorted(RESERVED)
    for section in Settings.model_fields:
        if section in FIXED_SECTIONS:
            names += [f"{PREFIX}{section}_{key}".upper() for key in keys_at((section,))]
            continue
        entries = data.get(section)
        for entry in entries if isinstance(entries, dict) and entries else ("NAME",):
            keys = keys_at((section, entry))
            names += [f"{PREFIX}{section}__{_as_variable(entry)}__{key}".upper() for key in keys]
    return names


def value_of(text: str, annotation: Any) -> Any:
    """A variable's value: a TOML scalar or array if the key wants one, else the text itself.

    A list may also be given as its items separated by commas.
    """
    try:
        value = tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        value = text
    kinds = plain_types(annotation)
    if kinds & {str, Path}:
        return value if isinstance(value, str) else text
    if tuple in kinds and not isinstance(value, list | dict):
        return [part.strip() for part in text.split(",") if part.strip()]
    if bool in kinds and text.lower() in ("true", "false"):
        return text.lower() == "true"
    return json.loads(json.dumps(value, default=str))


def _is_service_link(name: str, value: str) -> bool:
    """Whether Kubernetes made this variable for a Service whose name begins with `tidewire`."""
    if re.search(r"_SERVICE_(HOST|PORT(_\w+)?)$|_PORT_\d+_(TCP|UDP|SCTP)(_\w+)?$", name):
        return True
    return name.endswith("_PORT") and re.match(r"(tcp|udp|sctp)://", value) is not None
