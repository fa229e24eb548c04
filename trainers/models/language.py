"""Load a causal language model with its tokenizer, prompts and one LoRA adapter per policy."""

from __future__ import annotations

import contextlib
import difflib
import functools
import re
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import get_session, hf_hub_url
from huggingface_hub.utils import build_hf_headers  # type: ignore[attr-defined]
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import AutoModelForCausalLM, AutoTokenizer
from transformers.utils import logging as transformers_logging

from gradlab.workflows import Chat
from trainers.config import TrainConfig
from trainers.models import smollm
from trainers.models.architectures import KNOWN
from trainers.models.sampling import SamplingOptions
from trainers.prompts.chat import ChatPrompts, Prompts
from trainers.prompts.compact import CompactPrompts
from trainers.prompts.one_shot import OneShot

WEIGHTS = Path(__file__).parent / "weights"
HUB_SECONDS = 10
"""How long the hub is given to answer."""
TINY = ("tiny-0.3m", "tiny-1m", "tiny-3m", "tiny-code")


@dataclass(frozen=True)
class LanguageModel:
    """A model that speaks for several policies, with everything needed to talk to it."""

    model: Any
    """With the adapters of its policies; as it is where only frozen roles speak with it."""
    tokenizer: Any
    prompts: Prompts
    device: torch.device
    sampling: SamplingOptions
    max_prompt_tokens: int
    head: torch.nn.Linear | None = None
    """Frozen, and its output is the model's logits; None where they are made in another way."""

    @contextlib.contextmanager
    def speaking(self, policy: str) -> Iterator[Any]:
        """The model in eval mode with the adapter of `policy` active; '' for the base model."""
        self.model.eval()
        if not policy:
            # Without a policy of its own the model has no adapter to switch off.
            is_adapted = isinstance(self.model, PeftModel)
            with self.model.disable_adapter() if is_adapted else contextlib.nullcontext():
                yield self.model
            return
        self.activate(policy)
        yield self.model

    def activate(self, policy: str) -> None:
        """Make `policy`'s adapter the one that is applied and trained.

        Raises ValueError for a policy without adapter: the base model is never used silently.
        """
        adapters = self.model.peft_config if isinstance(self.model, PeftModel) else {}
        if policy not in adapters:
            raise ValueError(f"policy '{policy}' has no adapter; the model has {sorted(adapters)}")
        self.model.set_adapter(policy)

    def encode(self, chat: Chat) -> tuple[int, ...]:
        """Token ids of a chat, ready for the assistant's response."""
        return _encode(self.tokenizer, chat)

    def decode(self, ids: Sequence[int], *, keep_special: bool = False) -> str:
        text: str = self.tokenizer.decode(list(ids), skip_special_tokens=not keep_special)
        return text


@functools.lru_cache(maxsize=4096)
def _encode(tokenizer: Any, chat: Chat) -> tuple[int, ...]:
    return tuple(tokenizer.encode(render(tokenizer, chat), add_special_tokens=False))


def render(tokenizer: Any, chat: Chat) -> str:
    """A chat as the model sees it, special tokens included, ready for the assistant's response."""
    messages = [{"role": message.speaker, "content": message.text} for message in chat]
    text: str = tokenizer.apply_chat_template(
        messages, tokenize=False, add_generation_prompt=True, enable_thinking=False
    )
    return text


def load_language_models(config: TrainConfig) -> dict[str, LanguageModel]:
    """Every base model of the configuration by name, once, with the adapters of its policies.

    Raises ValueError when one cannot be found, or they are not asked in the same style.
    """
    found = {}
    for name in config.models:
        mine = [policy for policy in config.policies if config.model_of_policy(policy) == name]
        found[name] = load_language_model(config, mine, name)
    check_styles({name: language.tokenizer for name, language in found.items()})
    return found


def check_styles(tokenizers: Mapping[str, Any]) -> None:
    """Raise ValueError for models that cannot read each other's answers."""
    compact = [name for name, tokenizer in tokenizers.items() if is_compact(tokenizer)]
    others = [name for name in tokenizers if name not in compact]
    if compact and others:
        raise ValueError(
            f"--policy-model: {', '.join(compact)} answers prompts of a few characters, "
            f"{', '.join(others)} chats; expected models that are asked in the same style, so "
            "that one can read what the other said"
        )


def is_compact(tokenizer: Any) -> bool:
    """Whether it is one of an embedded model."""
    return bool(tokenizer.init_kwargs.get("prompt_style") == "compact")


def load_language_model(
    config: TrainConfig, policies: Sequence[str], name: str = ""
) -> LanguageModel:
    """Load a base model ('': of --model) and add one fresh adapter per policy.

    Raises ValueError when the model cannot be found, with where it was looked for.
    """
    device = pick_device(config.device)
    model, tokenizer = load_base(name or config.model, getattr(torch, config.dtype))
    if not config.shard_base:  # which moves one layer after the other, and leaves a part of each
        model.to(device)
    head = head_of(model) if config.logits == "chunks" else None
    prompts = prompts_for(tokenizer, config)
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
    return LanguageModel(
        add_adapters(model, config, policies) if policies else model.requires_grad_(False),
        tokenizer,
        prompts,
        device,
        SamplingOptions(
            temperature=config.temperature,
            max_tokens=config.max_response_tokens,
            max_rows=config.rollout_rows,
            end_ids=end_ids(model, tokenizer),
            pad_id=tokenizer.pad_token_id,
        ),
        config.max_prompt_tokens,
        head,
    )


@torch.no_grad()
def head_of(model: Any) -> torch.nn.Linear | None:
    """A model's head; None if its logits are not just the head's output, but capped or scaled."""
    head, given = model.get_output_embeddings(), list[torch.Tensor]()
    if type(head) is not torch.nn.Linear:
        return None
    listening = head.register_forward_hook(lambda _, __, output: given.append(output))
    # Several tokens: the first may be padding, whose logits are 0 whatever is done to them.
    logits = model(input_ids=torch.arange(4, device=model.device)[None]).logits
    listening.remove()
    return head if torch.equal(given[0].float(), logits.float()) else None


def prompts_for(tokenizer: Any, config: TrainConfig) -> Prompts:
    """The prompts that a model of this tokenizer was taught to answer."""
    if is_compact(tokenizer):
        return CompactPrompts()
    chat = ChatPrompts(config.history)
    return OneShot(chat) if config.examples else chat


def pick_device(name: str, *, check: bool = True) -> torch.device:
    """The device that `--device` names; with `check`, one that is here, without, one that can be
    planned for: `cuda` where there is none stands for another machine's.

    Raises ValueError for what is neither a CPU nor a CUDA device, or is not here.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if not re.fullmatch(r"cpu|cuda(:\d+)?", name):
        raise ValueError(f"--device is '{name}'; expected cpu, cuda, cuda:1, …, or auto")
    device = torch.device(name)
    if device.type == "cuda":
        count = torch.cuda.device_count() if torch.cuda.is_available() else 0
        if count == 0 and not check and device.index is None:
            return device
        if count == 0:
            another = "" if check else ", or --device cuda to plan a run on another machine"
            raise ValueError(
                f"--device {name}: torch sees no CUDA device; use --device cpu{another}"
            )
        if (device.index or 0) >= count:
            raise ValueError(
                f"--device {name}: torch sees {count} CUDA devices; expected cuda:0 to "
                f"cuda:{count - 1}"
            )
    return device


def locate(name: str) -> tuple[str, dict[str, Any]]:
    """Where transformers finds a model, and the options to load it with."""
    if name == "tiny" or name in TINY:
        return str(WEIGHTS / (TINY[0] if name == "tiny" else name)), {}
    if name == "smollm2-135m":
        return str(smollm.fetch()), {"gguf_file": smollm.FILE}
    return name, {}


def reachable(name: str) -> tuple[str, dict[str, Any]]:
    """`locate`, with the hub left alone where it does not answer."""
    where, options = locate(name)
    if not Path(where).is_dir() and not hub_answers(where):
        options["local_files_only"] = True
    return where, options


@functools.lru_cache(maxsize=16)
def hub_answers(model: str) -> bool:
    """Whether the hub says anything about a model; it is asked once.

    transformers would ask five times for every file, for minutes, before it looks into the cache.
    """
    try:
        url = hf_hub_url(model, "config.json")
        response = get_session().head(url, headers=build_hf_headers(), timeout=HUB_SECONDS)
        return bool(response.status_code < 500)
    except Exception:  # what is raised depends on the version of the hub's package
        return False


def near(name: str) -> str:
    """A model that may have been meant by a name that is not found, as a half-sentence."""
    known = {model.rpartition("/")[2].lower(): model for model in (*TINY, "smollm2-135m", *KNOWN)}
    matches = difflib.get_close_matches(name.lower(), known, n=1) if "/" not in name else []
    return f"; did you mean {known[matches[0]]}?" if matches else ""


def load_base(name: str, dtype: torch.dtype) -> tuple[Any, Any]:
    """The base model and its tokenizer, by embedded name, hub id or local directory."""
    where, options = reachable(name)
    # Bars for weights that load in a second would bury the run's own progress.
    transformers_logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    tokenizer = load_tokenizer(name)
    with _explained(name):
        model = AutoModelForCausalLM.from_pretrained(where, dtype=dtype, **options)
    return model, tokenizer


def load_tokenizer(name: str, *, only_here: bool = False) -> Any:
    """The tokenizer of a model, with its chat template; with `only_here`, nothing is downloaded."""
    where, options = locate(name) if only_here else reachable(name)
    if only_here:
        options["local_files_only"] = True
    with _explained(name):
        return AutoTokenizer.from_pretrained(where, **options)


@contextlib.contextmanager
def _explained(name: str) -> Iterator[None]:
    """Say where a model was looked for when it is not there."""
    try:
        yield
    except OSError as error:
        raise ValueError(
            f"--model {name}: cannot be loaded ({str(error).splitlines()[0]}). Expected tiny, "
            f"{', '.join(TINY)}, smollm2-135m, a local directory with config.json and weights, or "
            f"a hub id that is reachable or already in the local hub cache{near(name)}"
        ) from error


def end_ids(model: Any, tokenizer: Any) -> tuple[int, ...]:
    """Tokens that end a response: the tokenizer's and the generation config's."""
    configured = getattr(model.generation_config, "eos_token_id", None)
    listed = configured if isinstance(configured, list) else [configured]
    found = {tokenizer.eos_token_id, *listed} - {None}
    if not found:
        raise ValueError("the tokenizer has no end token; set tokenizer.eos_token and save it")
    return tuple(sorted(found))


def add_adapters(model: Any, config: TrainConfig, policies: Sequence[str]) -> PeftModel:
    """One LoRA adapter on every linear layer but the head, per policy; the base is frozen.

    Raises ValueError for a policy name that PEFT cannot keep an adapter under.
    """
    # 'default' is saved to another place than every other adapter; the rest are torch attributes.
    reserved = {"default", *dir(torch.nn.ModuleDict())}
    # PEFT would take every weight below a module of that name for the adapter's, and save others
    # without theirs.
    modules = {part for name, _ in model.named_modules() for part in name.split(".")}
    modules |= {"base_model", "base_layer", "lora_A", "lora_B", "lora_dropout"}
    for policy in policies:
        if policy in reserved | modules:
            why = "is a part of the model" if policy in modules else "is reserved"
            raise ValueError(f"--routing: policy name '{policy}' {why}; choose another")
    adapted: PeftModel | None = None
    for number, policy in enumerate(policies):
        lora = LoraConfig(
            r=config.lora_rank_of(policy),
            lora_alpha=config.lora_alpha_of(policy),
            target_modules="all-linear",
            task_type="CAUSAL_LM",
        )
        torch.manual_seed(config.seed * 1000 + number)
        with warnings.catch_warnings():
            # peft 0.21 asks transformers 5.23 for a property that was renamed.
            warnings.filterwarnings("ignore", "`is_gradient_checkpointing`", FutureWarning)
            # Of 'a' or 'lo', which are parts of 'lora_': the whole name of a module is compared.
            warnings.filterwarnings(
                "ignore", "Adapter name '.*' should not be contained", UserWarning
            )
            if adapted is None:
                adapted = get_peft_model(model, lora, adapter_name=policy)
            else:
                adapted.add_adapter(policy, lora)
    assert adapted is not None, "a workflow has at least one policy"
    if config.gradient_checkpointing:
        with warnings.catch_warnings():
            # transformers 5.23 renamed it; older ones know this name only.
            warnings.filterwarnings("ignore", "`gradient_checkpointing_enable`", FutureWarning)
            adapted.gradient_checkpointing_enable({"use_reentrant": False})
        adapted.enable_input_require_grads()
    return adapted
