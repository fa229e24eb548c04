"""gradlab serve: start vLLM's server as a run needs it, and end it with everything it started."""

from __future__ import annotations

import signal
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tyro.conf import Positional

from gradlab.commands.configuration import read_options
from gradlab.commands.parsing import parse

if TYPE_CHECKING:
    from trainers.config import TrainConfig


@dataclass(frozen=True)
class ServeOptions:
    """Serve the model and adapters of a run with vLLM, until Ctrl-C.

    The server takes an adapter per policy, of the run's ranks, its lengths and dtype, and answers
    with log-probs at the sampling temperature. Its address is printed once it answers; give it to
    gradlab train as --sampler vllm-server --sampler-url ADDRESS.
    """

    run: Positional[str]
    """Run directory, TOML file of options as for train --config, or the name of a preset."""
    host: str = "127.0.0.1"
    """Address that it listens at. It loads files by path for whoever asks: keep it to yourself."""
    port: int = 8000
    """Port that it listens at."""
    python: Path | None = None
    """Interpreter that has vLLM; by default this one, or that of .venv-vllm (make vllm)."""
    log: Path = Path("vllm-server.log")
    """File for what the server prints."""
    seconds: float = 600
    """How long it has to start."""


def serve(arguments: Sequence[str]) -> int:
    """Start a vLLM server that draws a run's responses."""
    options = parse(ServeOptions, "serve", arguments)
    from trainers.engines.serving import find_python, serving

    config = config_to_serve(options.run)
    python = find_python(options.python)

    def stop(number: int, frame: Any) -> None:
        raise KeyboardInterrupt

    signal.signal(signal.SIGTERM, stop)
    print(f"starting vLLM ({python}); what it prints is in {options.log}", flush=True)
    with serving(
        config, python, options.host, options.port, options.log, options.seconds
    ) as running:
        settings = running.settings
        print(
            f"{config.model} in {settings.dtype}, {settings.max_loras} adapters of rank "
            f"{settings.max_lora_rank} at most, {settings.max_model_len} tokens, at {running.url}\n"
            f"gradlab train … --sampler vllm-server --sampler-url {running.url}",
            flush=True,
        )
        while running.process.poll() is None:
            time.sleep(0.2)
        raise RuntimeError(
            f"vLLM's server ended with status {running.process.returncode}; it printed last "
            f"({options.log} has all):\n{running.last_lines()}"
        )


def config_to_serve(name: str) -> TrainConfig:
    """The configuration of a run directory, a file of options, or a preset."""
    from trainers.config import TrainConfig
    from trainers.presets import preset

    path = Path(name)
    if path.is_dir():
        from trainers.rundir.directory import config_of

        return config_of(path)
    given: dict[str, Any] = {}
    if path.suffix == ".toml" or path.is_file():
        given = read_options(TrainConfig, path)
        name = str(given.pop("preset", "clean"))
    base = vars(preset(name))
    # Whose server is to be started has no address yet, and a file may name one already.
    return TrainConfig(**base | given | {"sampler": "transformers", "sampler_url": ()})
