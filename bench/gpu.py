"""Measure in one call what needs a GPU, within ten minutes on one H200: bench/results/gpu.md.

    python bench/gpu.py --write                   # on a CUDA device
    python bench/gpu.py --small --out FILE        # the same code on small shapes on a CPU

Parts run one after the other; one that fails is recorded with its reason and does not end the
others, one that would begin after --limit seconds is left out, and what is there is written after
every part. Exit status 1 if one failed.
"""

from __future__ import annotations

import argparse
import gc
import os
import re
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

import correction
import logprob_memory
import numpy as np
import torch
from gpu_probe import VARIANTS, Place, costs, exactness, sampling
from models import machine
from transformers import AutoModelForCausalLM

from gradlab.records import Agent
from gradlab.store.run import open_run
from trainers.config import TrainConfig
from trainers.engines.choose import open_sampler
from trainers.engines.sampler import EngineSampler
from trainers.models.architectures import KNOWN
from trainers.models.language import load_language_models, load_tokenizer
from trainers.policies import adapter_parameters, build_policies
from trainers.training import task_of

ROOT = Path(__file__).parent.parent
RESULT = Path(__file__).parent / "results" / "gpu.md"
ROWS = {"Qwen/Qwen3-0.6B": 16, "Qwen/Qwen3-1.7B": 8, "Qwen/Qwen3-4B": 4}
"""Rows of a step, so that what autograd keeps of 1,024 tokens each fits beside the weights."""


@dataclass(frozen=True)
class Plan:
    """What is measured."""

    device: str
    is_small: bool
    models: tuple[str, ...]
    rounds: int

    def place(self, model: str) -> Place:
        device = torch.device(self.device)
        if self.is_small:
            return Place(device, 16, 4, 32, 4)
        return Place(device, 1, ROWS[model], 1024, 64)


class Skipped(Exception):
    """A part that has nothing to run on, and why."""


def run(*command: str, seconds: float) -> str:
    """What a command of this interpreter prints. Raises RuntimeError with its end if it fails."""
    paths = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
    done = subprocess.run(
        [sys.executable, "-m", *command], capture_output=True, text=True, timeout=seconds,
        cwd=ROOT, env={**os.environ, "PYTHONPATH": paths.rstrip(os.pathsep)}, check=False,
    )  # fmt: skip
    if done.returncode:
        end = (done.stdout + done.stderr).strip().splitlines()[-3:]
        raise RuntimeError(f"{' '.join(command[:3])} ended with {done.returncode}: {' '.join(end)}")
    return done.stdout


def marked_tests(plan: Plan) -> list[str]:
    if plan.is_small:
        raise Skipped("they need a CUDA device")
    return [run("pytest", "-q", "-m", "gpu", "tests", seconds=120).strip().splitlines()[-1]]


def probe_costs(plan: Plan) -> list[str]:
    lines = [
        "| model | step | ms | ratio to plain | launches | step's peak GiB |",
        "|---|---|---|---|---|---|",
    ]
    for model in plan.models:
        try:
            lines += costs(plan.place(model), model, plan.rounds)
        except torch.OutOfMemoryError as error:
            lines += [f"| {model} | {VARIANTS} | out of memory: {first_line(error)} | | | |"]
        free(plan)
    return lines


def probe_exactness(plan: Plan) -> list[str]:
    head = ["| model | largest Gram error, exact | fused |", "|---|---|---|"]
    return [*head, *(exactness(plan.place(model), model) for model in plan.models)]


def chunked_logprobs(plan: Plan) -> list[str]:
    """Forward and backward of log-probs over Qwen3's vocabulary, whole and by chunks."""
    vocabulary, hidden = (1_024, 64) if plan.is_small else (151_936, 1_024)
    lines = [
        "| response tokens | log-probs | ms | peak GiB above | loss off by | gradients off by |",
        "|---|---|---|---|---|---|",
    ]
    for tokens in (128,) if plan.is_small else (1_024, 8_192):
        reference: tuple[float, list[float]] | None = None
        for way in ("whole", "chunks"):
            loss_of = logprob_memory.make(
                tokens, vocabulary, hidden, is_whole=way == "whole", device=plan.device,
                dtype="bfloat16",
            )  # fmt: skip
            free(plan)
            seconds, peak, loss = timed(plan, loss_of)
            gradients = logprob_memory.gradients_of(loss_of)
            reference = reference or (loss, gradients)
            pairs = zip(gradients, reference[1], strict=True)
            off = max(abs(a / b - 1) for a, b in pairs)
            lines.append(
                f"| {tokens:,} | {way} | {1e3 * seconds:.1f} | {peak} "
                f"| {abs(loss / reference[0] - 1):.1e} | {off:.1e} |"
            )
    return lines


def timed(plan: Plan, loss_of: Callable[[], torch.Tensor]) -> tuple[float, str, float]:
    """Seconds, peak memory and loss of the second of two forwards and backwards."""
    is_cuda = plan.device.startswith("cuda")
    for _ in range(2):
        for parameter in loss_of.parameters:  # type: ignore[attr-defined]
            parameter.grad = None
        if is_cuda:
            torch.cuda.reset_peak_memory_stats()
            before = torch.cuda.memory_allocated()
        started = time.perf_counter()
        loss = loss_of()
        loss.backward()  # type: ignore[no-untyped-call]
        if is_cuda:
            torch.cuda.synchronize()
        seconds = time.perf_counter() - started
    if not is_cuda:
        return seconds, "-", loss.item()
    return seconds, f"{(torch.cuda.max_memory_allocated() - before) / (1 << 30):.2f}", loss.item()


def torchrun(plan: Plan) -> list[str]:
    """The same run in a process alone and as torchrun's only rank: what differs."""
    found = {}
    options = [
        "--device", plan.device, "--steps", "2", "--eval-every", "2", "--eval-problems", "10",
        "--problems-per-step", "2", "--samples", "4", "--threads", "1",
    ]  # fmt: skip
    with tempfile.TemporaryDirectory() as folder:
        ranks = ["torch.distributed.run", "--standalone", "--nproc-per-node", "1", "-m", "gradlab"]
        for way, launcher in (("alone", ["gradlab"]), ("torchrun", ranks)):
            out = Path(folder) / way
            run(*launcher, "train", *options, "--out", str(out), seconds=150)
            found[way] = open_run(out)
        lines = [
            "| run | seconds of step 2 | largest difference of its Gram, by policy |",
            "|---|---|---|",
        ]
        for way, one in found.items():
            off = {
                policy.name: float(
                    np.abs(
                        one.gram(policy.name).gram_UBAA - found["alone"].gram(policy.name).gram_UBAA
                    ).max()
                )
                for policy in one.policies
            }
            seconds = one.run_metric("step_seconds").value_T[-1]
            told = ", ".join(f"{name} {value:.1e}" for name, value in off.items())
            lines.append(f"| {way} | {seconds:.2f} | {told} |")
    return lines


def role_gradients(plan: Plan) -> list[str]:
    """bench/correction.py with a trainer in bfloat16."""
    samplers = ["bfloat16 weights"] if plan.is_small else list(correction.SAMPLERS)
    model, problems = ("tiny", 2) if plan.is_small else ("tiny-1m", 16)
    config = correction.settings(model, "bfloat16", plan.device, problems)
    return correction.table(config, samplers, 1 if plan.is_small else 3)


def engine(plan: Plan) -> list[str]:
    """vLLM in this process: what the canary measures in bfloat16, and tokens per second."""
    if find_spec("vllm") is None:
        raise Skipped("vLLM is not installed in this environment")
    with tempfile.TemporaryDirectory() as folder:
        model, waves = random_model(plan, Path(folder)), (8, 8) if plan.is_small else (64, 512)
        config = TrainConfig(
            model=str(model), out=Path(folder) / "run", sampler="vllm", dtype="bfloat16",
            device=plan.device, rollout_rows=256, max_prompt_tokens=512, sampler_memory=0.4,
            max_response_tokens=8 if plan.is_small else 512,
        )  # fmt: skip
        languages = load_language_models(config)
        [language] = languages.values()
        policies = build_policies(languages, config)
        torch.manual_seed(0)
        for policy in policies:
            for name, value in adapter_parameters(language.model, policy).items():
                if "lora_B" in name:
                    value.data.normal_(std=0.01)
        sampler = open_sampler(config, languages, task_of(config), config.build_workflow())
        assert isinstance(sampler, EngineSampler)
        try:
            return spoken(plan, config, sampler, list(policies), waves)
        finally:
            sampler.close()


def random_model(plan: Plan, folder: Path) -> Path:
    """Qwen3-0.6B's shape with random weights, and the tokenizer of an embedded model."""
    shapes = plan.place(KNOWN[0]).shapes(KNOWN[0])
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(shapes, dtype=torch.bfloat16)  # type: ignore[no-untyped-call]
    model.save_pretrained(folder / "model")
    load_tokenizer("tiny").save_pretrained(folder / "model")
    return folder / "model"


def spoken(
    plan: Plan, config: TrainConfig, sampler: EngineSampler, policies: list[str],
    waves: tuple[int, ...],
) -> list[str]:  # fmt: skip
    speakers = config.speakers()
    chosen = [speakers[Agent("generator", 0)], speakers[Agent("aggregator")]]
    lines = ["| responses | tokens | seconds | tokens/s |", "|---|---|---|---|"]
    for number, size in enumerate((*waves[:1], *waves)):
        draw = np.random.default_rng(number)
        prompts = [tuple(draw.integers(2, 60, 128).tolist()) for _ in range(size // 2)]
        for version, policy in enumerate(policies if number < 2 else ()):
            sampler.publish(policy, 2 * number + version)
        started = time.perf_counter()
        said = sampler.ask(dict.fromkeys(chosen, prompts), (0, number))
        seconds = time.perf_counter() - started
        tokens = sum(len(one.ids) for samples in said.values() for one in samples)
        note = ", adapters published and proven first" if number < 2 else ""
        lines.append(f"| {size}{note} | {tokens:,} | {seconds:.2f} | {tokens / seconds:,.0f} |")
    lines += [
        "",
        "| policy | canary tokens | mean gap | largest | limit |",
        "|---|---|---|---|---|",
    ]
    lines += [
        f"| {policy} | {gap.tokens} | {gap.mean:.1e} | {gap.largest:.1e} | {gap.limit:g} |"
        for (_, policy), gap in sampler.gaps.items()
    ]
    return lines


def own_sampling(plan: Plan) -> list[str]:
    head = ["| model | tokens/s | generate | ratio |", "|---|---|---|---|"]
    return [*head, *(sampling(plan.place(model), model) for model in plan.models)]


PARTS: dict[str, Callable[[Plan], list[str]]] = {
    "The probe's cost": probe_costs,
    "The probe's exactness": probe_exactness,
    "Log-probs over a large vocabulary": chunked_logprobs,
    "vLLM in the training process": engine,
    "Sampler and trainer in bfloat16": role_gradients,
    "torchrun on one device": torchrun,
    "Tests that need a GPU": marked_tests,
    "Our own sampling": own_sampling,
}
"""Heading -> what measures it, what matters most first."""


def first_line(error: BaseException) -> str:
    text = (str(error).splitlines() or [""])[0]
    return f"{type(error).__name__}: {re.sub(r'[|]', '/', text)[:300]}"


def free(plan: Plan) -> None:
    gc.collect()
    if plan.device.startswith("cuda"):
        torch.cuda.empty_cache()


def measured(plan: Plan, chosen: list[str], limit: float, write: Callable[[str], None]) -> int:
    """Run the parts and write what is there after each; the number that failed."""
    started, failed = time.perf_counter(), 0
    name = torch.cuda.get_device_name() if plan.device.startswith("cuda") else "a CPU"
    sizes = [f"{m} {plan.place(m).rows} x {plan.place(m).tokens} tokens" for m in plan.models]
    lines = [
        "# On a GPU", "",
        f"`python bench/gpu.py{' --small' if plan.is_small else ''}`: {name}; "
        f"{', '.join(sizes)}.",
        "", machine(("torch", "transformers", "peft", "vllm")), "",
    ]  # fmt: skip
    for heading in chosen:
        begun = time.perf_counter()
        if begun - started > limit:
            found = [f"Left out: {limit:.0f} seconds were over."]
        else:
            try:
                found = PARTS[heading](plan)
            except Skipped as reason:
                found = [f"Left out: {reason}."]
            except Exception as error:
                traceback.print_exc()
                found, failed = [f"**Failed**: {first_line(error)}"], failed + 1
        free(plan)
        lines += [f"## {heading}", "", *found, "", f"{time.perf_counter() - begun:.0f} s.", ""]
        print(f"{heading}: {time.perf_counter() - begun:.0f} s", flush=True)
        write("\n".join(lines))
    return failed


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--device", default="", help="cuda; with --small, cpu")
    parser.add_argument("--small", action="store_true", help="small shapes, for a CPU")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--limit", type=float, default=480, help="seconds to begin parts in")
    parser.add_argument("--models", nargs="+", choices=KNOWN, default=list(KNOWN))
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS))
    parser.add_argument("--write", action="store_true", help=f"write {RESULT}")
    parser.add_argument("--out", type=Path, default=None, help="write there instead")
    options = parser.parse_args()
    models = tuple(options.models)[: 1 if options.small else None]
    plan = Plan(
        options.device or ("cpu" if options.small else "cuda"), options.small, models,
        1 if options.small else options.rounds,
    )  # fmt: skip
    target = options.out or (RESULT if options.write else None)

    def write(text: str) -> None:
        if target is not None:
            target.write_text(text)

    failed = measured(plan, options.parts, options.limit, write)
    print(f"{failed} parts failed", f"see {target}" if target else "")
    return failed > 0


if __name__ == "__main__":
    sys.exit(main())
