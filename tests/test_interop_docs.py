"""The recipes of docs/interop.md, run as they are printed."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import make_qwen3
from transformers import TrainingArguments

from analysis.diagnosis import diagnose
from gradlab.store.run import open_run

pytestmark = pytest.mark.filterwarnings("ignore:.*pin_memory.*:UserWarning")

DOCUMENT = Path(__file__).parent.parent / "docs" / "interop.md"


def recipe(name: str) -> str:
    found = re.search(rf"^```python {name}\n(.*?)^```", DOCUMENT.read_text("utf-8"), re.M | re.S)
    assert found, f"no recipe '{name}' in {DOCUMENT}"
    return found[1]


def rows(number: int) -> tuple[torch.Tensor, list[int]]:
    generator = torch.Generator().manual_seed(number)
    return torch.randint(1, 40, (3, 6), generator=generator), [0, 1, 2]


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def check(run_path: Path, num_steps: int) -> None:
    run = open_run(run_path)
    assert run.closed
    assert run.steps.tolist() == [*range(1, num_steps + 1)]
    assert "valuation" in diagnose(run).verdict
    assert run.update_metric("residual", "shared").value_T.max() < 1e-5
    assert run.update_metric("coverage", "shared").value_T.min() == 1
    share = run.step_mass("share")
    np.testing.assert_allclose(sum(signal.value_T for signal in share.values()), 1.0)


def test_the_plain_loop(here: Path) -> None:
    batches = [[rows(2 * i), rows(2 * i + 1)] for i in range(3)]
    exec(recipe("plain"), {"torch": torch, "model": make_qwen3(), "batches": batches})
    check(here / "runs" / "plain", 3)


@pytest.mark.parametrize("settings", [{}, {"gradient_checkpointing": True}])
@pytest.mark.filterwarnings("ignore:.*gradient_checkpointing.*:FutureWarning")
def test_the_hf_trainer(here: Path, settings: dict[str, Any]) -> None:
    data = [{"ids": rows(i)[0][0].tolist(), "agent": i % 3} for i in range(24)]

    def collate(items: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
        ids = torch.tensor([item["ids"] for item in items])
        agents = torch.tensor([item["agent"] for item in items])
        return {"input_ids": ids, "labels": ids, "agent": agents}

    args = TrainingArguments(
        output_dir=str(here),
        per_device_train_batch_size=3,
        per_device_eval_batch_size=3,
        gradient_accumulation_steps=2,
        max_steps=3,
        remove_unused_columns=False,
        report_to=[],
        use_cpu=True,
        save_strategy="no",
        disable_tqdm=True,
        max_grad_norm=0.1,
        **settings,
    )
    names: dict[str, Any] = {
        "model": make_qwen3(dtype=torch.float32), "args": args, "dataset": data, "collate": collate
    }  # fmt: skip
    exec(recipe("trainer"), names)
    check(here / "runs" / "hf", 3)
    trainer = names["trainer"]
    assert np.isfinite(trainer.evaluate(data)["eval_loss"])  # without the probe
    assert trainer.probe.last.metrics.clip_factor < 1


def test_trl(here: Path, tmp_path: Path) -> None:
    trl = pytest.importorskip("trl", reason="trl is not installed", exc_type=ImportError)
    from peft import LoraConfig
    from test_interop_trl import TINY, dataset, scatter
    from transformers import AutoModelForCausalLM

    names = {
        "GRPOTrainer": trl.GRPOTrainer,
        "model": AutoModelForCausalLM.from_pretrained(TINY, dtype=torch.float32),
        "rewards": [scatter],
        "args": trl.GRPOConfig(
            output_dir=str(here),
            per_device_train_batch_size=6,
            num_generations=2,
            max_completion_length=8,
            max_steps=2,
            temperature=1.5,
            report_to=[],
            use_cpu=True,
            bf16=False,
            gradient_checkpointing=False,
            disable_tqdm=True,
            save_strategy="no",
        ),
        "dataset": dataset(),
        "lora": LoraConfig(r=4, target_modules="all-linear"),
    }
    exec(recipe("trl"), names)
    check(here / "runs" / "trl", 2)
