"""Open the sampler that a configuration names: the trainer's own weights, or an engine's copy."""

from __future__ import annotations

import hashlib
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from gradlab.workflows import Chat, Workflow
from trainers.config import TrainConfig
from trainers.engines.engine import Engine, EngineLost, EngineRefused
from trainers.engines.export import check_heads
from trainers.engines.in_process import InProcess, check_installed
from trainers.engines.sampler import EngineSampler
from trainers.engines.server import Server
from trainers.engines.settings import EngineSettings, settings_of
from trainers.models.language import LanguageModel
from trainers.models.local_sampler import LocalSampler
from trainers.models.sampler import Sampler
from trainers.tasks.problem import Problem, Task

CANARIES = 8
"""Problems whose first prompt is answered to prove every version of a policy."""
SHARED_MEMORY = Path("/dev/shm")


ENGINES: Mapping[str, Callable[[TrainConfig, EngineSettings], Sequence[Engine]]] = {
    "vllm": lambda config, settings: [InProcess(config.model, settings)],
    "vllm-server": lambda config, _: [
        Server(u, config.sampler_seconds) for u in config.sampler_url
    ],
}
"""--sampler -> the engines that it asks."""


def check_sampler(config: TrainConfig, num_processes: int = 1) -> None:
    """Raise ValueError for an engine that is not installed, or that the processes of the run cannot
    share, before models are loaded for it."""
    if config.sampler == "vllm" and num_processes > 1:
        raise ValueError(
            f"--sampler vllm and {num_processes} processes: each would start an engine on one "
            "device; expected --sampler vllm-server, --sampler transformers, or one process"
        )
    if config.sampler_sleep and num_processes > 1:
        raise ValueError(
            f"--sampler-sleep and {num_processes} processes: one would put servers to sleep that "
            "another still asks; leave it out"
        )
    if config.sampler == "vllm":
        check_installed()


def open_sampler(
    config: TrainConfig,
    languages: Mapping[str, LanguageModel],
    task: Task,
    workflow: Workflow,
    rank: int = 0,
) -> Sampler:
    """The sampler of a run, its engines there and started as the run needs them.

    `rank`: of the process, where several train the run: each publishes adapters of its own.

    Raises ValueError for an engine that is absent, or was started in another way.
    """
    if config.sampler == "transformers":
        return LocalSampler(languages, config.merges_adapters)
    [language] = languages.values()  # the configuration was checked
    check_heads(language.model.config)
    settings = settings_of(config, language.model.config, on_cpu=language.device.type == "cpu")
    if config.sampler_sleep and settings.on_cpu:
        raise ValueError("--sampler-sleep: an engine on a CPU cannot sleep; leave it out")
    engines = ENGINES[config.sampler](config, settings)
    try:
        for engine in engines:
            engine.check(settings)
    except (EngineLost, EngineRefused) as error:
        for engine in engines:
            engine.close()
        raise ValueError(f"--sampler {config.sampler}: {error}") from error
    chats = canary_chats(language, workflow, (*task.heldout, *task.train))
    whose = f"{config.out.resolve()}#{rank}" if rank else str(config.out.resolve())
    mark = hashlib.sha256(whose.encode()).hexdigest()[:8]
    return EngineSampler(
        language,
        engines,
        settings,
        adapters_directory(config) / f"gradlab-{mark}",
        mark,
        sorted(set(config.speakers().values())),
        chats,
        config.sampler_seconds,
    )


def canary_chats(
    language: LanguageModel, workflow: Workflow, problems: Sequence[Problem]
) -> list[Chat]:
    """The first prompts of some problems, of those that leave room for an answer.

    Raises ValueError where none does.
    """
    chats: list[Chat] = []
    for problem in problems:
        chat = next(workflow.play(problem, language.prompts))[0].messages
        if len(language.encode(chat)) <= language.max_prompt_tokens:
            chats.append(chat)
        if len(chats) == CANARIES:
            break
    if not chats:
        raise ValueError(
            f"every problem's first prompt is longer than {language.max_prompt_tokens} tokens: "
            "nothing could be asked; raise --max-prompt-tokens"
        )
    return chats


def adapters_directory(config: TrainConfig) -> Path:
    """In memory where there is such a place: adapters are written at every step."""
    if config.sampler_directory is not None:
        return config.sampler_directory.resolve()
    return SHARED_MEMORY if SHARED_MEMORY.is_dir() else Path(tempfile.gettempdir())
