"""The embedded models: tokenizer, lessons of the warm start, shipped weights."""

from __future__ import annotations

import random
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from gradlab.workflows import Message
from trainers.config import TrainConfig
from trainers.evaluate import evaluate
from trainers.judge import Judge
from trainers.models.language import TINY, WEIGHTS, load_language_model
from trainers.models.local_sampler import LocalSampler
from trainers.models.tiny import Build, Teacher, backward, batch, build_model, build_tokenizer, main
from trainers.prompts.compact import CompactPrompts
from trainers.tasks.load import load_task
from trainers.tasks.problem import Problem
from trainers.tasks.sources.embedded import arithmetic

PROBLEM = Problem("sum-47-38", "math", "47+38", "85")
PROGRAM = Problem("line-3-2-at-124", "expression", "1>5 2>8 4>14", "3*x+2")
SHIPPED = [name for name in TINY if (WEIGHTS / name).is_dir()]


def teacher(solver_noise: float = 0.0, judge_noise: float = 0.0, seed: int = 0) -> Teacher:
    return Teacher(arithmetic(2), CompactPrompts(), solver_noise, judge_noise, random.Random(seed))


def test_the_tokenizer_has_one_token_per_character_and_loses_nothing() -> None:
    tokenizer = build_tokenizer()
    text = "".join(map(chr, range(32, 127))) + "\n  two  spaces ,. 's"
    ids = tokenizer.encode(text)
    assert len(ids) == len(text)
    assert tokenizer.decode(ids) == text
    assert len(tokenizer) == 4 + 95 + 1  # specials, printable ASCII, newline


def test_the_chat_template_marks_who_speaks() -> None:
    tokenizer = build_tokenizer()
    chat = [Message("user", "g1+1"), Message("assistant", "[2]"), Message("user", "r")]
    rendered = tokenizer.apply_chat_template(
        [{"role": m.speaker, "content": m.text} for m in chat],
        tokenize=False,
        add_generation_prompt=True,
    )
    assert rendered == "<user>g1+1<assistant>[2]<end><user>r<assistant>"
    assert len(tokenizer.encode(rendered)) == 4 + 3 + 1 + 5  # 5 marks, 8 characters


def test_every_lesson_without_noise_is_right_and_readable() -> None:
    """47+38: tens 70, ones 15."""
    taught, prompts = teacher(), CompactPrompts()
    for _ in range(50):
        assert taught.generator(PROBLEM) == ("g47+38", "[85]")
        asked, said = taught.aggregator(PROBLEM)
        candidates = asked.split(" ")[1:]
        assert prompts.read_choice(said, len(candidates)).parse_ok
        assert taught.evaluator(PROBLEM) == ("e47+38 [85]", "[y]")
        asked, said = taught.refiner(PROBLEM)
        assert said == "[85]"
        assert "[85]" not in asked
        asked, said = taught.orchestrator(PROBLEM)
        assert prompts.read_strategies(said, int(asked[-1])).parse_ok
        assert taught.worker(PROBLEM) in [
            ("w47+38 t", "70+15=[85]"),
            ("w47+38 o", "15+70=[85]"),
            ("w47+38 d", "[85]"),
        ]
        asked, said = taught.synthesizer(PROBLEM)
        assert asked.startswith("s47+38 ")
        assert said == "[85]"


def test_every_lesson_about_programs_is_right_and_readable() -> None:
    """1>5 2>8 4>14 is 3*x+2: steps 3 and 6, offset 2."""
    taught, prompts = teacher(), CompactPrompts()
    for _ in range(50):
        assert taught.generator(PROGRAM) == ("g1>5 2>8 4>14", "[3*x+2]")
        asked, said = taught.aggregator(PROGRAM)
        assert prompts.read_choice(said, asked.count("[")).parse_ok
        assert taught.evaluator(PROGRAM) == ("e1>5 2>8 4>14 [3*x+2]", "[y]")
        asked, said = taught.refiner(PROGRAM)
        assert said == "[3*x+2]"
        assert "[3*x+2]" not in asked
        assert taught.worker(PROGRAM) in [
            ("w1>5 2>8 4>14 t", "3 6=[3*x+2]"),
            ("w1>5 2>8 4>14 o", "2=[3*x+2]"),
            ("w1>5 2>8 4>14 d", "[3*x+2]"),
        ]
        assert taught.synthesizer(PROGRAM)[1] == "[3*x+2]"
        said = teacher(solver_noise=1).generator(PROGRAM)[1]
        assert Judge()([(PROGRAM, prompts.read_answer(said).value)]) == [False]


def test_a_wrong_answer_is_wrong() -> None:
    taught = teacher()
    for problem in arithmetic(2)[::97]:
        assert all(taught.wrong(problem) != problem.answer for _ in range(30))


def test_the_noise_is_the_share_of_wrong_targets() -> None:
    """Half of 2000 targets: 1000 +- 3 * 22.4."""
    taught = teacher(solver_noise=0.5)
    right = sum(taught.generator(PROBLEM)[1] == "[85]" for _ in range(2000))
    assert 930 < right < 1070


def test_an_aggregator_lesson_points_at_a_right_candidate_if_there_is_one() -> None:
    taught = teacher(solver_noise=0.5)
    for _ in range(300):
        asked, said = taught.aggregator(PROBLEM)
        candidates = asked.split(" ")[1:]
        if "[85]" in candidates:
            assert candidates[int(said[1:-1]) - 1] == "[85]"


def test_only_the_response_is_trained_with_its_end() -> None:
    tokenizer = build_tokenizer()
    ids_BT, labels_BT = batch(tokenizer, [("g1+1", "[2]"), ("g10+10", "[20]")])
    assert ids_BT.shape == labels_BT.shape == (2, 13)
    for ids, labels, said in zip(ids_BT, labels_BT, ("[2]<end>", "[20]<end>"), strict=True):
        trained = labels[labels != -100]
        assert tokenizer.decode(trained) == said
        assert torch.equal(ids[labels != -100], trained)


@pytest.mark.parametrize(
    ("size", "millions"), [("0.3m", (0.2, 0.45)), ("1m", (0.7, 1.3)), ("3m", (2.3, 3.6))]
)
def test_sizes_are_what_their_names_say(size: str, millions: tuple[float, float]) -> None:
    model = build_model(size, 100, seed=0)  # type: ignore[arg-type]
    low, high = millions
    assert low < sum(p.numel() for p in model.parameters()) / 1e6 < high


def test_a_build_writes_a_model_that_loads(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    main(Build(batches=2, batch_size=4, out=tmp_path / "built"))
    assert "wrote" in capsys.readouterr().out
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "built")
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "built")
    assert tokenizer.init_kwargs["prompt_style"] == "compact"
    assert model.config.vocab_size == len(tokenizer)
    assert (tokenizer.eos_token, tokenizer.pad_token) == ("<end>", "<pad>")


def test_the_gradient_does_not_depend_on_how_a_batch_is_split() -> None:
    tokenizer = build_tokenizer()
    model = build_model("0.3m", len(tokenizer), seed=0)
    examples = [("g1+1", "[2]"), ("g10+10", "[20]"), ("a1+1 [2] [3]", "[1]"), ("o1+1 3", "[tod]"),
                ("s99+99 [198]", "[198]")]  # fmt: skip
    ids_BT, labels_BT = batch(tokenizer, examples)
    whole = model(input_ids=ids_BT, attention_mask=(ids_BT != 0).long(), labels=labels_BT).loss
    whole.backward()
    expected = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    model.zero_grad()
    assert backward(model, tokenizer, examples) == pytest.approx(whole.item(), rel=1e-6)
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None
        torch.testing.assert_close(parameter.grad, expected[name], rtol=1e-4, atol=1e-7)


@pytest.mark.parametrize(("name", "task"), [("tiny-0.3m", "arithmetic"), ("tiny-code", "programs")])
def test_the_base_can_move_both_ways(name: str, task: str) -> None:
    """Voting on 300 held-out problems: about a third is solved before any training.

    The standard error of 300 problems is 2.7 points; the seed is fixed.
    """
    config = TrainConfig(
        model=name, task=task, device="cpu", threads=1, eval_problems=300, max_response_tokens=24
    )
    language = load_language_model(config, config.policies)
    heldout = load_task(task, heldout=300, seed=0).heldout
    sampler = LocalSampler({config.model: language})
    record, _ = evaluate(
        sampler, config.build_workflow(), config.speakers(), heldout, config, 0, Judge()
    )
    assert 0.25 <= record.correct_PS.mean() <= 0.40


@pytest.mark.parametrize("name", SHIPPED)
def test_shipped_weights_are_small_and_finite(name: str) -> None:
    files = [*(WEIGHTS / name).iterdir()]
    assert sum(file.stat().st_size for file in files) <= 3e6
    model = AutoModelForCausalLM.from_pretrained(WEIGHTS / name)
    assert all(bool(p.isfinite().all()) for p in model.parameters())


def test_the_models_of_both_tasks_are_shipped() -> None:
    assert {"tiny-0.3m", "tiny-code"} <= set(SHIPPED)
    assert sum(file.stat().st_size for file in (WEIGHTS / "tiny-code").iterdir()) <= 0.7e6
