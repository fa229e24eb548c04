"""Every prompt of every workflow rendered by the chat templates of three families of models."""

from __future__ import annotations

import contextlib
import io
import json
import re
import shutil
from itertools import pairwise
from pathlib import Path
from typing import Any, get_args, get_type_hints

import pytest
from conftest import SmallConfig

from gradlab.commands import main as cli
from gradlab.commands.prompts import PromptsOptions
from gradlab.workflows import Message
from trainers.grading.reading import boxed_answer, boxed_verdict, fenced_code, numbered_strategies
from trainers.models.language import render
from trainers.models.tiny import build_tokenizer
from trainers.preview.prompts import (
    COMPACT_SAMPLES,
    REPLIES,
    SAMPLES,
    Asked,
    prompts_of,
    replies_of,
)
from trainers.prompts.chat import ChatPrompts, Prompts
from trainers.prompts.compact import CompactPrompts
from trainers.rundir.transcripts import read_episodes
from trainers.tasks.problem import Kind
from trainers.training import train
from trainers.watch.progress import Progress
from trainers.workflows import WORKFLOWS, find_workflow

TEMPLATES = Path(__file__).parent / "templates"
KINDS: tuple[Kind, ...] = get_args(Kind)
OPEN = {
    "tiny": "<assistant>",
    "smollm2": "<|im_start|>assistant\n",
    "qwen3": "<|im_start|>assistant\n<think>\n\n</think>\n\n",  # thinking switched off
}
"""What the model's response is appended to."""


def tokenizer_of(family: str) -> Any:
    """A tokenizer with the family's chat template; characters are enough to render."""
    tokenizer = build_tokenizer()
    if family != "tiny":
        tokenizer.chat_template = (TEMPLATES / f"{family}.jinja").read_text(encoding="utf-8")
        tokenizer.init_kwargs["prompt_style"] = "chat"
    return tokenizer


def asked_of(family: str, workflow: str, kind: Kind) -> list[Asked]:
    prompts: Prompts = CompactPrompts() if family == "tiny" else ChatPrompts()
    found = find_workflow(workflow)
    sizes = {size: 2 for size in ("rounds", "workers") if size in found.options}
    workflow = found.with_options(sizes)
    tokenizers = dict.fromkeys(workflow.agents, tokenizer_of(family))
    return list(prompts_of(tokenizers, prompts, workflow, kind))


def speakers(text: str) -> list[str]:
    return re.findall(r"<\|im_start\|>(\w+)\n|(?<!\|)<(user|assistant)>", text)


everywhere = pytest.mark.parametrize(
    ("family", "workflow", "kind"),
    [(family, workflow, kind) for family in OPEN for workflow in WORKFLOWS for kind in KINDS],
)


@everywhere
def test_speakers_alternate_and_the_assistant_is_next(
    family: str, workflow: str, kind: Kind
) -> None:
    for asked in asked_of(family, workflow, kind):
        order = ["".join(pair) for pair in speakers(asked.text)]
        if order[0] == "system":
            del order[0]
        assert order[0] == "user"
        assert order[-1] == "assistant"
        assert all(a != b for a, b in pairwise(order)), asked.text
        assert asked.text.endswith(OPEN[family])
        assert asked.text.count("<think>") == (family == "qwen3")


@everywhere
def test_nothing_of_a_template_is_left(family: str, workflow: str, kind: Kind) -> None:
    for asked in asked_of(family, workflow, kind):
        assert not re.search(r"\{\{|\}\}|\{%|%\}|\bNone\b", asked.text), asked.text


@everywhere
def test_every_prompt_states_the_problem(family: str, workflow: str, kind: Kind) -> None:
    problem = (COMPACT_SAMPLES if family == "tiny" else SAMPLES)[kind]
    for asked in asked_of(family, workflow, kind):
        assert problem.question in asked.text


def test_each_workflow_asks_all_of_its_roles() -> None:
    def who(workflow: str) -> list[tuple[str, int]]:
        return [(a.agent, a.round) for a in asked_of("qwen3", workflow, "code")]

    assert who("voting") == [("generator[0], generator[1], generator[2]", 0), ("aggregator[0]", 0)]
    assert who("evaluator_optimizer") == [
        ("generator[0]", 0), ("evaluator[0]", 0), ("generator[0]", 1), ("evaluator[0]", 1),
    ]  # fmt: skip
    assert who("orchestrator_workers") == [
        ("orchestrator[0]", 0), ("worker[0]", 0), ("worker[1]", 0), ("synthesizer[0]", 0),
    ]  # fmt: skip
    assert who("solo") == [("generator[0]", 0)]


def test_thinking_is_off_only_where_a_template_knows_of_it() -> None:
    chat = (Message("user", "1+1?"),)
    assert render(tokenizer_of("qwen3"), chat) == (
        "<|im_start|>user\n1+1?<|im_end|>\n<|im_start|>assistant\n<think>\n\n</think>\n\n"
    )
    assert render(tokenizer_of("tiny"), chat) == "<user>1+1?<assistant>"


def test_earlier_answers_keep_their_words_in_qwen3s_template() -> None:
    """Its template drops the reasoning of earlier turns, and nothing else."""
    refined = asked_of("qwen3", "evaluator_optimizer", "code")[2].text
    assert f"<|im_start|>assistant\n{REPLIES['code']['answer']}<|im_end|>\n" in refined


@pytest.mark.parametrize("kind", KINDS)
def test_the_canned_replies_follow_the_formats(kind: Kind) -> None:
    replies = REPLIES[kind]
    assert (fenced_code if kind == "code" else boxed_answer)(replies["answer"]).parse_ok
    assert boxed_verdict(replies["verdict"]).value is False
    plan = numbered_strategies(replies_of(tokenizer_of("qwen3"), kind, 3)["plan"], 3)
    assert (plan.parse_ok, len(plan.value)) == (True, 3)


def test_prompts_are_printed_as_the_model_sees_them(capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["prompts", "--workflow", "evaluator_optimizer", "--kind", "code", "--rounds", "2"]
    assert cli.main(arguments) == 0
    assert capsys.readouterr().out.split("\n\n") == [
        "=== generator[0], round 1: 15 tokens\n<user>g1>5 2>8 4>14<assistant>",
        "=== evaluator[0], round 1: 23 tokens\n<user>e1>5 2>8 4>14 [3*x+2]<assistant>",
        "=== generator[0], round 2: 27 tokens\n<user>r1>5 2>8 4>14 [3*x+2] [n]<assistant>",
        "=== evaluator[0], round 2: 23 tokens\n<user>e1>5 2>8 4>14 [3*x+2]<assistant>",
        "",
    ]


def test_the_command_knows_every_kind() -> None:
    allowed = get_type_hints(PromptsOptions)
    assert get_args(allowed["kind"]) == KINDS


@pytest.mark.parametrize("family", ["tiny", "qwen3"])
@pytest.mark.parametrize("workers", [1, 2, 3])
def test_a_plan_gives_work_to_every_worker(family: str, workers: int) -> None:
    prompts: Prompts = CompactPrompts() if family == "tiny" else ChatPrompts()
    workflow = find_workflow("orchestrator_workers").with_options({"workers": workers})
    tokenizers = dict.fromkeys(workflow.agents, tokenizer_of(family))
    asked = list(prompts_of(tokenizers, prompts, workflow, "math"))
    assert sum(one.agent.startswith("worker") for one in asked) == workers


def test_each_role_is_asked_in_the_template_of_its_own_model(
    char_model: Path, tmp_path: Path
) -> None:
    models = {}
    for family in ("smollm2", "tiny"):
        models[family] = tmp_path / family
        shutil.copytree(char_model, models[family])
        tokenizer = tokenizer_of("smollm2")
        if family == "tiny":  # another chat, of other tokens
            tokenizer.chat_template = tokenizer.chat_template.replace("<|im_start|>", "<|go|>")
        tokenizer.save_pretrained(models[family])
        file = models[family] / "tokenizer_config.json"
        file.write_text(json.dumps({**json.loads(file.read_text()), "prompt_style": "chat"}))
    printed = io.StringIO()
    options = ["--routing", "generator=a,generator[1]=b,aggregator=b", "--votes", "2"]
    with contextlib.redirect_stdout(printed):
        cli.main(
            [
                "prompts",
                "--model",
                str(models["smollm2"]),
                *options,
                "--policy-model",
                "b",
                str(models["tiny"]),
            ]
        )
    first, second, last = re.split(r"^=== ", printed.getvalue(), flags=re.MULTILINE)[1:]
    assert [text.partition(",")[0] for text in (first, second, last)] == [
        "generator[0]",
        "generator[1]",
        "aggregator[0]",
    ]
    assert ["<|im_start|>" in text for text in (first, second, last)] == [True, False, False]
    assert ["<|go|>" in text for text in (first, second, last)] == [False, True, True]


def test_the_prompts_of_a_run_are_those_of_the_command(
    small_config: SmallConfig, quiet: Progress, char_model: Path, tmp_path: Path
) -> None:
    """Every size of a workflow and the worked example: what a run asked, the command prints."""
    model = tmp_path / "chat"
    shutil.copytree(char_model, model)
    settings = json.loads((model / "tokenizer_config.json").read_text())
    (model / "tokenizer_config.json").write_text(json.dumps({**settings, "prompt_style": "chat"}))
    for workflow in WORKFLOWS:
        config = small_config(
            out=tmp_path / workflow, model=str(model), workflow=workflow, steps=1, examples=True,
            votes=2, rounds=2, workers=1, problems_per_step=1, samples=1, eval_problems=1,
        )  # fmt: skip
        train(config, quiet)
        [episode] = read_episodes(config.out / "episodes" / "step-000001.jsonl.gz")
        options = ["--examples", "--votes", "2", "--rounds", "2", "--workers", "1"]
        printed = io.StringIO()
        with contextlib.redirect_stdout(printed):
            cli.main(["prompts", "--model", str(model), "--workflow", workflow, *options])
        question = SAMPLES["math"].question
        first = episode["turns"][0]["prompt"].replace(episode["question"], question)
        assert first in printed.getvalue()
        roles = {turn["role"] for turn in episode["turns"]}
        assert all(f"=== {role}[0]" in printed.getvalue() for role in roles)
