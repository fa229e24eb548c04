"""Run vLLM inside the training process: for a machine whose one environment serves both."""

from __future__ import annotations

import gc
import itertools
import os
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch

from trainers.engines.engine import EngineRefused, Request
from trainers.engines.export import export_base
from trainers.engines.settings import EngineSettings
from trainers.models.sampler import Sample


class InProcess:
    """An engine of this process. After a failure inside it, it is not used again."""

    name = "the engine in this process"

    def __init__(self, model: str, settings: EngineSettings) -> None:
        """Raises ValueError where vLLM is not installed beside the trainer."""
        check_installed()
        self._ids = itertools.count(1)
        self._loaded: dict[str, Any] = {}
        self._failed = ""
        self._llm: Any = started(model, settings)

    def check(self, settings: EngineSettings) -> None:
        """It was started with them."""

    def revive(self, seconds: float) -> None:
        """It cannot be started twice in a process: whoever resumes the run has a new one."""
        raise EngineRefused(f"{self.name} failed ({self._failed}) and cannot be started anew in it")

    def adapters(self) -> list[str]:
        return list(self._loaded)

    def load(self, adapter: str, path: Path) -> None:
        from vllm.lora.request import LoRARequest

        request = LoRARequest(adapter, next(self._ids), str(path))
        with self._telling(f"to load {adapter}"):
            # Before any request names it: one whose adapter cannot be loaded never ends.
            if not self._llm.llm_engine.add_lora(request):
                raise EngineRefused(f"{self.name} did not load {adapter}")
        self._loaded[adapter] = request

    def unload(self, adapter: str) -> None:
        request = self._loaded.pop(adapter)
        with self._telling(f"to unload {adapter}"):
            self._llm.llm_engine.remove_lora(request.lora_int_id)

    def draw(self, requests: Sequence[Request]) -> list[Sample]:
        from vllm import SamplingParams
        from vllm.inputs import TokensPrompt

        if not requests:
            return []
        with self._telling("for responses"):
            outputs = self._llm.generate(
                [TokensPrompt(prompt_token_ids=list(request.prompt)) for request in requests],
                [
                    SamplingParams(
                        temperature=request.temperature, max_tokens=request.max_tokens, top_p=1.0,
                        top_k=0, seed=request.seed, logprobs=0, detokenize=False, ignore_eos=True,
                        stop_token_ids=list(request.end_ids),
                    )
                    for request in requests
                ],
                lora_request=[
                    self._loaded[request.adapter] if request.adapter else None
                    for request in requests
                ],
                use_tqdm=False,
            )  # fmt: skip
        return [
            read_output(output.outputs[0], request)
            for output, request in zip(outputs, requests, strict=True)
        ]

    def sleep(self) -> None:
        with self._telling("to sleep"):
            self._llm.sleep(level=1)

    def wake(self) -> None:
        with self._telling("to wake up"):
            self._llm.wake_up()

    def close(self) -> None:
        self._llm = None
        gc.collect()

    @contextmanager
    def _telling(self, what: str) -> Iterator[None]:
        """An error inside the engine may leave requests behind that make the next call hang."""
        if self._failed:
            self.revive(0)
        try:
            yield
        except EngineRefused:
            raise
        except Exception as error:
            self._failed = str(error) or type(error).__name__
            raise EngineRefused(f"{self.name}, asked {what}, failed: {self._failed}") from error


def check_installed() -> None:
    """Raise ValueError, with what to do, where vLLM is not installed beside the trainer."""
    if find_spec("vllm") is None:
        raise ValueError(
            "--sampler vllm: vLLM is not installed in this environment; expected one with both, "
            "which 'make vllm VLLM=vllm==0.32.0 VLLM_CONSTRAINTS=' sets up for an NVIDIA GPU "
            "(docs/gpu.md; then .venv-vllm/bin/gradlab train …), or --sampler vllm-server with a "
            "server that gradlab serve starts, or --sampler transformers, which needs nothing and "
            "is slow for models of this size"
        )


def read_output(output: Any, request: Request) -> Sample:
    ids = tuple(output.token_ids)
    logprobs = tuple(
        float(places[token].logprob) for token, places in zip(ids, output.logprobs, strict=True)
    )
    if any(value != value for value in logprobs):
        who = request.adapter or "the base model"
        raise EngineRefused(f"the engine's output for {who} is not finite")
    return Sample(ids, logprobs, truncated=ids[-1] not in request.end_ids)


def started(model: str, settings: EngineSettings) -> Any:
    """A `vllm.LLM` with the base model of this name."""
    for name, value in settings.environment().items():
        os.environ.setdefault(name, value)
    # Another process would have to be started by a script that guards its main.
    os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"
    os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")
    from vllm import LLM

    state = torch.get_rng_state()
    try:
        with tempfile.TemporaryDirectory(prefix="gradlab-engine-") as scratch:
            where = export_base(model, settings.dtype, Path(scratch) / "base")
            return LLM(where, **settings.arguments())
    finally:
        torch.set_rng_state(state)  # the engine seeds the generator of the whole process
