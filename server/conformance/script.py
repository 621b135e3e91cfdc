"""The conformance vectors, as a program reads them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import protocol

Map = dict[str, Any]
FOLDER = Path(protocol.__file__).parent / "vectors"


def vectors() -> dict[str, Map]:
    """Every vector by name; those of a folder are `folder/name`."""
    return {
        path.relative_to(FOLDER).with_suffix("").as_posix(): json.loads(path.read_text("utf-8"))
        for path in sorted(FOLDER.rglob("*.json"))
    }
