"""Build the embedded `tiny` models: a character tokenizer and a deliberately imperfect warm start.

    python -m trainers.models.tiny --size 0.3m        # about 5 minutes on two cores
    python -m trainers.models.tiny --size 1m --batches 700 --batch-size 128 --learning-rate 2e-3
    python -m trainers.models.tiny --size 3m --batches 700 --batch-size 128 --learning-rate 2.5e-3
    python -m trainers.models.tiny --size 3m --batches 300 --batch-size 128 \\
        --learning-rate 1.5e-3 \\
        --start trainers/models/weights/tiny-3m --seed 1

tiny-code learns to write programs before it learns to be wrong about them (3 minutes on one core):

    python -m trainers.models.tiny --task programs --batches 800 --batch-size 128 \\
        --start trainers/models/weights/tiny-0.3m --solver-noise 0.1 --judge-noise 0.1
    python -m trainers.models.tiny --task programs --batches 120 --batch-size 128 \\
        --learning-rate 1.5e-3 \\
        --start trainers/models/weights/tiny-code --solver-noise 0.33 --judge-noise 0.25 --seed 1

The models speak the compact prompts of every role on one task: `arithmetic` with two digits, or
`programs`. The warm start is supervised learning on *noisy* labels, so that each role is right
about half of the time: a base that reinforcement learning can lift, and lower. An under-trained
base would not do: it hardly moves.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
import tyro
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast, Qwen3Config, Qwen3ForCausalLM

from trainers.prompts.compact import STRATEGIES, CompactPrompts
from trainers.tasks.problem import Problem
from trainers.tasks.programs import near_miss, workings
from trainers.tasks.sources.embedded import arithmetic, programs

MODELS = Path(__file__).parent / "weights"
PAD, END, USER, ASSISTANT = "<pad>", "<end>", "<user>", "<assistant>"
CHAT_TEMPLATE = (
    "{% for message in messages %}"
    "{% if message['role'] == 'user' %}<user>{{ message['content'] }}"
    "{% else %}<assistant>{{ message['content'] }}<end>{% endif %}"
    "{% endfor %}"
    "{% if add_generation_prompt %}<assistant>{% endif %}"
)

Size = Literal["0.3m", "1m", "3m"]


@dataclass(frozen=True)
class Build:
    """Build one tiny model."""

    size: Size = "0.3m"
    """About 0.3, 1 or 3 million parameters."""
    task: Literal["arithmetic", "programs"] = "arithmetic"
    """What it is taught; tiny-code is the one taught programs."""
    batches: int = 900
    """Batches of the warm start."""
    batch_size: int = 256
    """Examples per batch."""
    learning_rate: float = 3e-3
    """Peak learning rate (linear warm-up, cosine decay)."""
    solver_noise: float = 0.5
    """Share of corrupted answers among generator, refiner, worker and synthesizer targets."""
    judge_noise: float = 0.35
    """Share of random targets for aggregator and evaluator."""
    seed: int = 0
    """Seed of initialisation and examples."""
    start: Path | None = None
    """Directory of an earlier build to go on from, instead of fresh weights."""
    out: Path | None = None
    """Directory to write; default: the package's own weights."""


SHAPES: dict[Size, dict[str, Any]] = {
    "0.3m": {"hidden_size": 96, "intermediate_size": 256, "num_hidden_layers": 3, "head_dim": 24},
    "1m": {"hidden_size": 144, "intermediate_size": 432, "num_hidden_layers": 4, "head_dim": 36},
    "3m": {"hidden_size": 216, "intermediate_size": 648, "num_hidden_layers": 5, "head_dim": 54},
}

STORED_AS: dict[Size, torch.dtype] = {
    "0.3m": torch.bfloat16,
    "1m": torch.bfloat16,
    "3m": torch.float8_e4m3fn,  # under 3 MB; rounding moves matrices by 3 %, see docs/training.md
}
"""Dtype of the matrices in the file; they are loaded as float32 like any other weights."""


def build_tokenizer() -> PreTrainedTokenizerFast:
    """One token per printable ASCII character."""
    characters = [chr(code) for code in range(32, 127)] + ["\n"]
    vocabulary = {token: i for i, token in enumerate([PAD, END, USER, ASSISTANT, *characters])}
    core = Tokenizer(models.WordLevel(vocabulary, unk_token=" "))
    core.pre_tokenizer = pre_tokenizers.Split(Regex(r"[\s\S]"), behavior="isolated")
    core.decoder = decoders.Fuse()
    tokenizer = PreTrainedTokenizerFast(  # type: ignore[no-untyped-call]
        tokenizer_object=core,
        pad_token=PAD,
        eos_token=END,
        additional_special_tokens=[USER, ASSISTANT],
        model_max_length=512,
        prompt_style="compact",
        clean_up_tokenization_spaces=False,
    )
    tokenizer.chat_template = CHAT_TEMPLATE
    return tokenizer


def build_model(size: Size, vocab_size: int, seed: int) -> Qwen3ForCausalLM:
    torch.manual_seed(seed)
    config = Qwen3Config(
        vocab_size=vocab_size,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=512,
        tie_word_embeddings=True,
        eos_token_id=1,
        pad_token_id=0,
        bos_token_id=None,
        **SHAPES[size],
    )
    return Qwen3ForCausalLM(config)


@dataclass(frozen=True)
class Teacher:
    """Writes noisy examples of every role's prompt and response."""

    problems: list[Problem]
    prompts: CompactPrompts
    solver_noise: float
    judge_noise: float
    draw: random.Random

    def example(self) -> tuple[str, str]:
        """One (user text, response)."""
        problem = self.draw.choice(self.problems)
        makers: list[Callable[[Problem], tuple[str, str]]] = [
            self.generator,
            self.generator,
            self.aggregator,
            self.evaluator,
            self.refiner,
            self.orchestrator,
            self.worker,
            self.synthesizer,
        ]
        return self.draw.choice(makers)(problem)

    def wrong(self, problem: Problem) -> str:
        """A near miss: one digit changed, or a carry forgotten; a number changed in a program."""
        if problem.kind == "expression":
            return near_miss(problem.answer, self.draw)
        right = int(problem.answer)
        near = [right + d for d in (-10, 10, -1, 1, -2, 2, -20, 20, -9, 9, 11, -11)]
        return str(max(0, self.draw.choice(near)))

    def answer(self, problem: Problem, noise: float | None = None) -> str:
        is_wrong = self.draw.random() < (self.solver_noise if noise is None else noise)
        return self.wrong(problem) if is_wrong else problem.answer

    def solution(self, problem: Problem, strategy: str = "d") -> str:
        answer = self.answer(problem)
        if problem.kind == "expression":
            return f"{workings(problem.question, problem.answer, strategy)}[{answer}]"
        a, b = map(int, problem.question.split("+"))
        tens, ones = a // 10 * 10 + b // 10 * 10, a % 10 + b % 10
        return {
            "t": f"{tens}+{ones}=[{answer}]",
            "o": f"{ones}+{tens}=[{answer}]",
            "d": f"[{answer}]",
        }[strategy]

    def generator(self, problem: Problem) -> tuple[str, str]:
        return self.prompts.generate(problem)[0].text, self.solution(problem)

    def aggregator(self, problem: Problem) -> tuple[str, str]:
        number = self.draw.choice([1, 2, 3, 3, 3, 4, 5])
        candidates = [self.solution(problem) for _ in range(number)]
        right = [i for i, text in enumerate(candidates) if f"[{problem.answer}]" in text]
        is_random = not right or self.draw.random() < self.judge_noise
        chosen = self.draw.choice(list(range(number)) if is_random else right)
        return self.prompts.aggregate(problem, candidates)[0].text, f"[{chosen + 1}]"

    def evaluator(self, problem: Problem) -> tuple[str, str]:
        solution = self.solution(problem)
        verdict = "y" if f"[{problem.answer}]" in solution else "n"
        if self.draw.random() < self.judge_noise:
            verdict = self.draw.choice("yn")
        return self.prompts.evaluate(problem, [solution])[0].text, f"[{verdict}]"

    def refiner(self, problem: Problem) -> tuple[str, str]:
        before, after = f"[{self.wrong(problem)}]", self.solution(problem)
        return self.prompts.refine(problem, [before, "[n]"])[0].text, after

    def orchestrator(self, problem: Problem) -> tuple[str, str]:
        most = self.draw.choice([1, 2, 3, 3, 3])
        number = self.draw.randint(1, most)
        chosen = "".join(self.draw.choices(STRATEGIES, k=number))
        return self.prompts.orchestrate(problem, most)[0].text, f"[{chosen}]"

    def worker(self, problem: Problem) -> tuple[str, str]:
        strategy = self.draw.choice(STRATEGIES)
        return self.prompts.work(problem, strategy)[0].text, self.solution(problem, strategy)

    def synthesizer(self, problem: Problem) -> tuple[str, str]:
        number = self.draw.choice([1, 2, 3, 3, 3])
        texts = [self.solution(problem, self.draw.choice(STRATEGIES)) for _ in range(number)]
        answer = self.answer(problem, noise=self.judge_noise)
        return self.prompts.synthesize(problem, texts)[0].text, f"[{answer}]"


def batch(
    tokenizer: PreTrainedTokenizerFast, examples: list[tuple[str, str]]
) -> tuple[torch.Tensor, torch.Tensor]:
    """Right-padded token ids and labels (-100 outside the response), both [B, T]."""
    rows, labels = [], []
    for user, response in examples:
        prompt = tokenizer.encode(f"{USER}{user}{ASSISTANT}")
        target = tokenizer.encode(response + END)
        rows.append(prompt + target)
        labels.append([-100] * len(prompt) + target)
    longest = max(map(len, rows))
    ids_BT = torch.tensor([row + [0] * (longest - len(row)) for row in rows])
    labels_BT = torch.tensor([row + [-100] * (longest - len(row)) for row in labels])
    return ids_BT, labels_BT


def warm_start(model: Any, tokenizer: PreTrainedTokenizerFast, build: Build) -> None:
    """Train `model` in place on noisy examples of all roles."""
    teacher = Teacher(
        arithmetic(2) if build.task == "arithmetic" else programs(),
        CompactPrompts(),
        build.solver_noise,
        build.judge_noise,
        random.Random(build.seed),
    )
    optimizer = torch.optim.AdamW(model.parameters(), lr=build.learning_rate, weight_decay=0.01)
    warmup = max(1, build.batches // 20)

    def rate(number: int) -> float:
        return (
            min(1.0, (number + 1) / warmup) * (1 + math.cos(math.pi * number / build.batches)) / 2
        )

    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, rate)
    for number in range(build.batches):
        examples = [teacher.example() for _ in range(build.batch_size)]
        loss = backward(model, tokenizer, sorted(examples, key=lambda example: len(example[0])))
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        schedule.step()
        if number % 50 == 0 or number == build.batches - 1:
            print(f"batch {number:4d}  loss {loss:.3f}", flush=True)


def backward(
    model: Any, tokenizer: PreTrainedTokenizerFast, examples: list[tuple[str, str]]
) -> float:
    """Add the gradient of the mean loss over response tokens; the examples are sorted by length.

    In four parts, so that short prompts are not padded to the longest.
    """
    size = -(-len(examples) // 4)
    parts = [batch(tokenizer, examples[i : i + size]) for i in range(0, len(examples), size)]
    num_tokens = sum(int((labels_BT != -100).sum()) for _, labels_BT in parts)
    total = 0.0
    for ids_BT, labels_BT in parts:
        mask_BT = (ids_BT != 0).long()
        loss = model(input_ids=ids_BT, attention_mask=mask_BT, labels=labels_BT).loss
        part = loss * (labels_BT != -100).sum() / num_tokens
        part.backward()
        total += part.item()
    return total


def save(model: Any, tokenizer: PreTrainedTokenizerFast, size: Size, out: Path) -> None:
    """Write a directory that `AutoModelForCausalLM.from_pretrained` loads."""
    weights = {
        name: tensor.to(STORED_AS[size] if tensor.dim() == 2 else torch.bfloat16)
        for name, tensor in model.state_dict().items()
        if name != "lm_head.weight"  # tied to the embeddings
    }
    model.save_pretrained(out, state_dict=weights)
    tokenizer.save_pretrained(out)


def main(build: Build) -> None:
    name = f"tiny-{build.size}" if build.task == "arithmetic" else "tiny-code"
    out = build.out or MODELS / name
    tokenizer = build_tokenizer()
    model = build_model(build.size, len(tokenizer), build.seed)
    if build.start:
        model = Qwen3ForCausalLM.from_pretrained(build.start, dtype=torch.float32)
    print(f"{name}: {sum(p.numel() for p in model.parameters()):,} parameters")
    warm_start(model, tokenizer, build)
    save(model, tokenizer, build.size, out)
    size = sum(file.stat().st_size for file in out.iterdir())
    print(f"wrote {out} ({size / 1e6:.2f} MB)")


if __name__ == "__main__":
    main(tyro.cli(Build, description=__doc__))
