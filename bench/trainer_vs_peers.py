"""Time training steps of gradlab's trainer beside TRL's GRPOTrainer and CoMLRL's MAGRPOTrainer.

    python bench/trainer_vs_peers.py [--cases natural fixed smollm2] [--rounds 5] [--write]

The same base model, prompts, adapters (LoRA on all linear layers), rows and longest response; one
thread, one process, CPU time; in every round everybody trains some steps, in random order. Seconds
are per response token: trainers draw responses of their own. The reward is the parity of a
response's tokens, which nobody can learn. TRL without gradient checkpointing, KL and evaluations;
CoMLRL's agents have models of their own, with adapters, and share each step's prompts; it is left
out where it is not installed (`pip install comlrl`). 'exact' records all that a run records.
"""

from __future__ import annotations

import argparse
import cProfile
import gc
import importlib.util
import io
import os
import random
import statistics
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stdout
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import peft
import torch
from models import machine
from peer_parts import NUM_AGENTS, parity
from profiled import Functions, seconds_in
from rich.console import Console

import trainers.models.language
from gradlab.probe.probe import Probe
from gradlab.records import StepRecord
from gradlab.store.writer import RunStore
from trainers.batches import reference_logprobs, with_old_logprobs
from trainers.config import TrainConfig
from trainers.learn import accumulate, learn
from trainers.models.language import load_base
from trainers.models.sampling import sample
from trainers.rollout import rollout
from trainers.rundir.transcripts import read_episodes, save_episodes
from trainers.training import train
from trainers.watch.callbacks import Callback
from trainers.watch.monitor import compare, with_reference
from trainers.watch.progress import Progress

RESULT = Path(__file__).parent / "results" / "trainer_vs_peers.md"
PARTS = Path(__file__).with_name("peer_parts.py")
PACKAGES = ("torch", "transformers", "peft", "trl", "comlrl")
ASKED = {("TRL", "off"): 0.9, ("TRL", "exact"): 1.0, ("CoMLRL", "exact"): 0.25}
"""(peer, variant) -> the largest ratio ours / theirs that is asked for."""


@dataclass(frozen=True)
class Case:
    """Who trains what."""

    model: str
    tokens: int
    """Longest response; all of them that long if `is_fixed`."""
    is_fixed: bool = False
    problems: int = 4
    """Of one step."""
    samples: int = 8
    """Of each agent per problem."""
    steps: int = 4
    """Timed ones of a turn."""
    lora_rank: int = 16

    @property
    def rows(self) -> int:
        return self.problems * self.samples * NUM_AGENTS

    def lora(self) -> peft.LoraConfig:
        return peft.LoraConfig(
            r=self.lora_rank,
            lora_alpha=self.lora_rank,
            target_modules="all-linear",
            task_type="CAUSAL_LM",
        )


CASES = {
    "natural": Case("tiny-1m", 64),
    "fixed": Case("tiny-1m", 64, is_fixed=True),
    "smollm2": Case("smollm2-135m", 24, problems=2, samples=2, steps=2),
}


@dataclass
class Cost:
    """What some steps took."""

    seconds: float
    tokens: int
    """Of responses."""

    @property
    def microseconds(self) -> float:
        """Per response token."""
        return 1e6 * self.seconds / self.tokens


# Ours.


@dataclass
class Clock(Callback):
    """CPU time between the ends of steps; the first warms up."""

    steps: int
    profile: cProfile.Profile | None = None
    last: float = 0.0
    seconds: list[float] = field(default_factory=list)
    tokens: list[int] = field(default_factory=list)

    def on_step(self, record: StepRecord) -> None:
        self.tick(int(sum(role.response_tokens for role in record.roles.values())))

    def tick(self, tokens: int) -> None:
        now = time.process_time()
        if self.profile is not None:
            self.profile.disable()
        if self.last and len(self.seconds) < self.steps:
            self.seconds.append(now - self.last)
            self.tokens.append(tokens)
        if not self.last:
            gc.collect()
            gc.freeze()  # a full collection of all that was imported costs a fifth of a second
        if self.profile is not None and len(self.seconds) < self.steps:
            self.profile.enable()
        self.last = time.process_time()

    def cost(self) -> Cost:
        return Cost(sum(self.seconds), sum(self.tokens))


def ours(
    case: Case, probe: str, out: Path, seed: int, profile: cProfile.Profile | None = None
) -> Cost:
    clock = Clock(case.steps, profile)
    config = TrainConfig(
        out=out,
        seed=seed,
        # One step to warm up, and the last ends with an evaluation and a checkpoint.
        steps=case.steps + 2,
        eval_every=10**6,
        checkpoint_every=10**6,
        eval_problems=2,
        model=case.model,
        workflow=f"{PARTS}:solvers",
        routing="shared",
        reward=f"{PARTS}:by_parity",
        problems_per_step=case.problems,
        samples=case.samples,
        rows_per_update=case.rows,
        updates="fixed",
        fixed_updates=1,
        max_response_tokens=case.tokens,
        learning_rate=1e-6,
        lora_rank=case.lora_rank,
        lora_alpha=case.lora_rank,
        entropy_coefficient=0.0,
        probe=probe,  # type: ignore[arg-type]
        device="cpu",
        threads=1,
    )
    with ending(case):
        train(config, Progress(Console(file=io.StringIO())), callbacks=[clock])
    return clock.cost()


@contextmanager
def ending(case: Case) -> Iterator[None]:
    """Responses end by themselves, unless they are to be of one length."""
    kept = trainers.models.language.end_ids
    if case.is_fixed:
        trainers.models.language.end_ids = lambda model, tokenizer: (-1,)
    try:
        yield
    finally:
        trainers.models.language.end_ids = kept


# Theirs.


def prompts_of(run: Path) -> list[str]:
    """The prompts of our steps, in their order."""
    files = sorted((run / "episodes").glob("step*"))
    assert files, f"no episodes of steps in {run}"
    prompts = [
        turn["prompt"] for file in files for episode in read_episodes(file)
        for turn in episode["turns"]
    ]  # fmt: skip
    return list(dict.fromkeys(prompts))


def trl(
    case: Case, prompts: list[str], out: Path, seed: int, profile: cProfile.Profile | None = None
) -> Cost:
    from datasets import Dataset
    from transformers import TrainerCallback
    from trl import GRPOConfig, GRPOTrainer

    model, tokenizer = load_base(case.model, torch.float32)
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
    clock, drawn = Clock(case.steps, profile), [0]

    def reward(completion_ids: list[list[int]], **_: Any) -> list[float]:
        drawn[0] = sum(map(len, completion_ids))
        return [parity(ids) for ids in completion_ids]

    class Ticks(TrainerCallback):  # type: ignore[misc] # untyped
        def on_step_end(self, *args: Any, **_: Any) -> None:
            clock.tick(drawn[0])

    arguments = GRPOConfig(
        output_dir=str(out),
        max_steps=case.steps + 1,
        per_device_train_batch_size=case.rows,
        num_generations=case.samples * NUM_AGENTS,
        max_completion_length=case.tokens,
        generation_kwargs={"min_new_tokens": case.tokens} if case.is_fixed else None,
        temperature=1.0,
        beta=0.0,
        learning_rate=1e-6,
        lr_scheduler_type="constant",
        gradient_checkpointing=False,
        shuffle_dataset=False,
        use_cpu=True,
        bf16=False,
        report_to=[],
        save_strategy="no",
        logging_strategy="no",
        disable_tqdm=True,
        seed=seed,
    )
    trainer = GRPOTrainer(
        model=model,
        reward_funcs=reward,
        args=arguments,
        train_dataset=Dataset.from_dict({"prompt": prompts}),
        processing_class=tokenizer,
        peft_config=case.lora(),
        callbacks=[Ticks()],
    )
    with redirect_stdout(io.StringIO()):
        trainer.train()
    return clock.cost()


def comlrl(case: Case, prompts: list[str], out: Path, seed: int) -> Cost:
    from comlrl.trainers.reinforce import MAGRPOConfig, MAGRPOTrainer
    from datasets import Dataset

    random.seed(seed)
    agents = []
    for _ in range(NUM_AGENTS):
        model, tokenizer = load_base(case.model, torch.float32)
        agents.append(peft.get_peft_model(model, case.lora()))
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
    count = [0]

    class Counted(MAGRPOTrainer):  # type: ignore[misc] # untyped
        def _generate_completions(self, *args: Any, **kwargs: Any) -> Any:
            if case.is_fixed:
                kwargs["min_new_tokens"] = case.tokens
            found = super()._generate_completions(*args, **kwargs)
            count[0] += sum(found["response_lens"])
            return found

    def reward(*responses: list[str], **_: Any) -> list[float]:
        return [parity([ord(c) for c in "".join(texts)]) for texts in zip(*responses, strict=True)]

    arguments = MAGRPOConfig(
        num_train_epochs=1,
        agent_learning_rate=1e-6,
        num_agents=NUM_AGENTS,
        num_generations=case.samples,
        max_new_tokens=case.tokens,
        temperature=1.0,
        top_p=1.0,
        top_k=None,
        num_turns=1,
        eval_interval=0,
        rollout_buffer_size=case.problems,
    )
    one_step = Dataset.from_dict({"prompt": prompts[: case.problems]})
    trainer = Counted(
        agents=agents,
        num_agents=NUM_AGENTS,
        tokenizer=tokenizer,
        train_dataset=one_step,
        reward_func=reward,
        formatters=lambda item: item["prompt"],
        args=arguments,
    )
    trainer.verbose = False
    gc.collect()
    gc.freeze()
    started = time.process_time()
    with redirect_stdout(io.StringIO()):
        trainer.train()
    return Cost(time.process_time() - started, count[0])


# Rounds and tables.


def measured(case: Case, variants: list[str], rounds: int, scratch: Path) -> dict[str, list[Cost]]:
    """Costs by variant and round."""
    first = scratch / "first"
    ours(replace(case, steps=2), "off", first, 0)  # warms up, and says what is asked
    prompts = prompts_of(first)
    arms: dict[str, Callable[[Path, int], Cost]] = {}
    for variant in variants:
        if variant == "TRL":
            arms[variant] = lambda out, seed: trl(case, prompts * 9, out, seed)
        elif variant == "CoMLRL":
            arms[variant] = lambda out, seed: comlrl(case, prompts, out, seed)
        else:
            arms[variant] = lambda out, seed, probe=variant: ours(case, probe, out, seed)  # type: ignore[misc]
    found: dict[str, list[Cost]] = {variant: [] for variant in arms}
    order = [*arms]
    for turn in range(rounds):
        random.Random(turn).shuffle(order)
        for variant in order:
            gc.unfreeze()
            gc.collect()
            found[variant].append(arms[variant](scratch / f"{variant}-{turn}", turn))
    return found


def table(name: str, found: dict[str, list[Cost]]) -> list[str]:
    case, peers = CASES[name], [peer for peer in ("TRL", "CoMLRL") if peer in found]
    length = f"{case.tokens} tokens each" if case.is_fixed else f"up to {case.tokens} tokens"
    lines = [
        f"## {name}: {case.model}, {case.rows} responses a step, {length}",
        "",
        f"{len(next(iter(found.values())))} rounds of {case.steps} steps. Load average "
        f"{os.getloadavg()[0]:.1f}.",
        "",
        "| trainer | µs per token | tokens a step | " + " | ".join(f"/ {p}" for p in peers) + " |",
        "|---|---|---|" + "---|" * len(peers),
    ]
    for variant, costs in found.items():
        per_token = statistics.median(cost.microseconds for cost in costs)
        steps = 1 if variant == "CoMLRL" else case.steps
        tokens = statistics.median(cost.tokens for cost in costs) / steps
        cells = [variant, f"{per_token:.0f}", f"{tokens:.0f}"]
        for peer in peers:
            ratios = [
                own.microseconds / theirs.microseconds
                for own, theirs in zip(costs, found[peer], strict=True)
            ]
            cells.append("1" if variant == peer else told(ratios, ASKED.get((peer, variant))))
        lines.append("| " + " | ".join(cells) + " |")
    return [*lines, ""]


def told(ratios: list[float], asked: float | None) -> str:
    """Median, half the distance of the quartiles, and what is asked for."""
    quartiles = statistics.quantiles(ratios, n=4) if len(ratios) > 1 else [ratios[0]] * 3
    text = f"{statistics.median(ratios):.2f} ± {(quartiles[2] - quartiles[0]) / 2:.2f}"
    if asked is None:
        return text
    return f"{text} (asked {asked:g}: {'met' if statistics.median(ratios) <= asked else 'missed'})"


PROFILED: dict[str, Functions] = {
    "sampling: episodes played": (rollout,),
    "... the model's part": (sample.__wrapped__,),  # type: ignore[attr-defined]
    "learning": (learn,),
    "... compared with sampler and base model": (with_reference, compare),
    "... ... of them with the base model": (reference_logprobs,),
    "... log-probs before the update": (with_old_logprobs,),
    "... forward and backward": (accumulate,),
    "... probe: before the step": (Probe._before_step,),
    "... probe: after it": (Probe._after_step,),
    "saving episodes": (save_episodes,),
    "the store": (RunStore.append,),
}


def where_time_goes(case: Case, scratch: Path) -> list[str]:
    """Parts of our steps, in CPU milliseconds, beside what TRL's take as a whole and in parts."""
    from trl import GRPOTrainer

    columns = {}
    for probe in ("off", "exact"):
        profile = cProfile.Profile(time.process_time)
        ours(case, probe, scratch / f"profile-{probe}", 0, profile)
        columns[probe] = profile
    prompts = prompts_of(scratch / "profile-off")
    theirs = cProfile.Profile(time.process_time)
    trl(case, prompts * 9, scratch / "profile-trl", 0, theirs)
    lines = [
        "Where the time goes, ms per step under cProfile, which is part of it:",
        "",
        "| part | off | exact |",
        "|---|---|---|",
    ]
    for part, wanted in PROFILED.items():
        cells = [in_ms(profile, wanted, case.steps) for profile in columns.values()]
        lines.append(f"| {part} | " + " | ".join(cells) + " |")
    parts = {
        "samples": GRPOTrainer._generate,
        "scores and log-probs with it": GRPOTrainer._generate_and_score_completions,
        "computes losses": GRPOTrainer._compute_loss,
        "trains, all of it": GRPOTrainer.training_step,
    }
    said = [f"{what} {in_ms(theirs, (part,), case.steps)}" for what, part in parts.items()]
    return [*lines, "", f"TRL, the same: {', '.join(said)}.", ""]


def in_ms(profile: cProfile.Profile, wanted: Functions, steps: int) -> str:
    try:
        return f"{1e3 * seconds_in(profile, wanted) / steps:.0f}"
    except ValueError:  # not called
        return ""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--cases", nargs="+", choices=CASES, default=list(CASES))
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--variants", nargs="+", default=["TRL", "CoMLRL", "off", "exact", "fused"])
    parser.add_argument("--no-profile", action="store_true")
    parser.add_argument("--write", action="store_true", help=f"write {RESULT}")
    options = parser.parse_args()
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    variants = [*options.variants]
    if "CoMLRL" in variants and importlib.util.find_spec("comlrl") is None:
        variants.remove("CoMLRL")
        print("CoMLRL is not installed and left out: pip install comlrl")
    doc = (__doc__ or "").split("\n\n")[2].replace("\n", " ")
    lines = ["# Our trainer beside its peers", "", doc, "", machine(PACKAGES), ""]
    print(*lines, sep="\n")
    for name in options.cases:
        with tempfile.TemporaryDirectory() as scratch:
            found = measured(CASES[name], variants, options.rounds, Path(scratch))
            section = table(name, found)
            if not options.no_profile:
                section += where_time_goes(CASES[name], Path(scratch))
        print(*section, sep="\n", flush=True)
        lines += section
        if options.write:
            RESULT.write_text("\n".join(lines))


if __name__ == "__main__":
    main()
