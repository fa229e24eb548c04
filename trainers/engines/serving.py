"""Start vLLM's server as a run needs it, and end it with everything that it started."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

from trainers.config import TrainConfig
from trainers.engines.engine import EngineLost
from trainers.engines.export import check_heads, export_base
from trainers.engines.server import BASE, Server
from trainers.engines.settings import EngineSettings, settings_of
from trainers.models.language import pick_device
from trainers.preview.estimates import empty_model
from trainers.sandbox.system import prctl

OWN_ENVIRONMENT = Path(".venv-vllm/bin/python")
"""Where `make vllm` puts the engine's interpreter."""
PATIENCE = 10.0
"""Seconds that a server has to end by itself."""
LAST_LINES = 12


@dataclass(frozen=True)
class Serving:
    """A server that runs."""

    url: str
    process: subprocess.Popen[bytes]
    log: Path
    settings: EngineSettings

    def last_lines(self) -> str:
        lines = self.log.read_text(errors="replace").splitlines()
        return "\n".join(lines[-LAST_LINES:])


def find_python(given: Path | None) -> Path:
    """The interpreter that has vLLM.

    Raises ValueError with what to do where none is known.
    """
    if given is not None:
        if not given.is_file():
            raise ValueError(f"--python {given} is no file; expected the interpreter that has vLLM")
        return given
    if find_spec("vllm") is not None:
        return Path(sys.executable)
    if OWN_ENVIRONMENT.is_file():
        return OWN_ENVIRONMENT
    raise ValueError(
        f"vLLM is not installed here, and there is no {OWN_ENVIRONMENT}; make one with: make vllm, "
        "or name an interpreter that has vLLM with --python"
    )


@contextmanager
def serving(
    config: TrainConfig, python: Path, host: str, port: int, log: Path, seconds: float
) -> Iterator[Serving]:
    """Run a server that answers `config`; ends it at the end, whatever happens.

    Raises RuntimeError when it does not start within `seconds`, with what it printed last.
    """
    shapes, _ = empty_model(config, [], config.model)
    check_heads(shapes)
    settings = settings_of(config, shapes, on_cpu=pick_device(config.device).type == "cpu")
    with tempfile.TemporaryDirectory(prefix="gradlab-serve-") as scratch:
        where = export_base(config.model, config.dtype, Path(scratch) / "base")
        command = [
            str(python), "-m", "vllm.entrypoints.openai.api_server", "--model", where,
            "--served-model-name", BASE, "--host", host, "--port", str(port), *settings.flags(),
        ]  # fmt: skip
        process = _start(command, settings, config, log)
        running = Serving(f"http://{_reached(host)}:{port}", process, log, settings)
        try:
            _wait(running, seconds)
            yield running
        finally:
            end(process)


def _reached(host: str) -> str:
    return "127.0.0.1" if host in ("0.0.0.0", "::", "") else host


def _start(
    command: list[str], settings: EngineSettings, config: TrainConfig, log: Path
) -> subprocess.Popen[bytes]:
    environment = {
        **os.environ,
        **settings.environment(),
        "VLLM_ALLOW_RUNTIME_LORA_UPDATING": "1",
        "VLLM_SERVER_DEV_MODE": "1",  # for /sleep, and to tell what it was started with
    }
    if config.threads:
        environment["OMP_NUM_THREADS"] = str(config.threads)
    with log.open("wb") as file:
        # A group of its own: the engine is a process beside the server.
        return subprocess.Popen(
            command, stdout=file, stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL,
            env=environment, start_new_session=True, preexec_fn=_end_with_parent,
        )  # fmt: skip


def _end_with_parent() -> None:
    """Ask to be ended, and the engine with it, when whoever serves is killed."""
    if sys.platform == "linux":
        prctl("parent_death_signal", signal.SIGTERM)


def _wait(running: Serving, seconds: float) -> None:
    server, until = Server(running.url, seconds), time.monotonic() + seconds
    while True:
        if running.process.poll() is not None:
            raise RuntimeError(
                f"vLLM's server ended with status {running.process.returncode} before it answered; "
                f"it printed last ({running.log} has all):\n{running.last_lines()}"
            )
        try:
            server.revive(0)
            return
        except EngineLost as error:
            if time.monotonic() > until:
                raise RuntimeError(
                    f"vLLM's server did not answer within {seconds:g} s; it printed last "
                    f"({running.log} has all):\n{running.last_lines()}"
                ) from error
        time.sleep(0.5)


def end(process: subprocess.Popen[bytes]) -> None:
    """End a server and what it started: asked first, then killed."""
    for number in (signal.SIGTERM, signal.SIGKILL):
        try:
            os.killpg(process.pid, number)
        except ProcessLookupError:
            break
        try:
            process.wait(PATIENCE)
        except subprocess.TimeoutExpired:
            continue
        # The server waits for its engine; one that does not end is killed with the group.
    process.wait()
