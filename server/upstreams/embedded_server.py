"""The child process that holds the embedded model: llama.cpp's own OpenAI-compatible server. Run by `EmbeddedModel`."""

from __future__ import annotations

import threading
from typing import Any

from server.upstreams.child import die_with_parent, read_settings, say_ready


def parameters(settings: dict[str, Any]) -> Any:
    """The server's parameters: slots of equal context, sampling that suits a very small model."""
    import xllamacpp

    params = xllamacpp.CommonParams()
    params.model.path = settings["model_path"]
    params.model_alias = {settings["name"]}
    params.hostnames = ["127.0.0.1"]
    params.port = settings["port"]
    params.n_parallel = settings["slots"]
    params.n_ctx = settings["slots"] * settings["context_tokens"]
    params.cpuparams.n_threads = settings["threads"]
    params.cpuparams_batch.n_threads = settings["threads"]
    params.cpuparams.poll = 0
    params.cpuparams_batch.poll = 0
    params.n_gpu_layers = 0
    params.fit_params = False
    params.cache_ram_mib = settings["cache_mib"]
    params.n_threads_http = settings["slots"] + 4
    params.ui = False
    params.endpoint_slots = False
    params.cors_origins = ""
    params.verbosity = 1
    params.sampling.temp = 0.3
    params.sampling.top_p = 0.9
    params.sampling.penalty_repeat = 1.1
    return params


def main() -> None:
    """Load the model, serve, end with the parent."""
    settings = read_settings()
    die_with_parent()
    import xllamacpp

    server = xllamacpp.Server(parameters(settings))
    say_ready(server.listening_address)
    threading.Event().wait()


if __name__ == "__main__":
    main()
