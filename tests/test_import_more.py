"""Names and shapes of further trainers' logs, as their public sources write them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from gradlab.interop.logs.importing import import_run
from gradlab.store.run import Run, open_run


def imported(tmp_path: Path, rows: list[dict[str, Any]], **asked: Any) -> Run:
    (tmp_path / "h.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    import_run([tmp_path / "h.jsonl"], tmp_path / "run", **asked)
    return open_run(tmp_path / "run")


def steps(**values: float) -> list[dict[str, Any]]:
    named = {name.replace("__", "/"): value for name, value in values.items()}
    return [{"step": step, **named} for step in range(1, 7)]


@pytest.mark.parametrize(
    ("evaluated", "others"),
    [
        ("eval-rollout/reward", {"ppo_actor/task_reward/avg": 0.5, "ppo_actor/update/lr": 1e-6}),
        ("eval/math500/avg@4", {"reward/mean": 0.5, "optim/lr": 1e-6, "mismatch_kl/mean": 0.1}),
        ("eval/all/pass_at_1", {"reward/avg_raw_reward": 0.5, "policy/policy_lr": 1e-6}),
        ("val_correct/all/mean", {"critic/score/mean": 0.5, "actor/lr": 1e-6}),
    ],
    ids=["AReaL", "prime-rl", "SkyRL", "ROLL"],
)
def test_trainers_name_evaluation_reward_and_rate(
    evaluated: str, others: dict[str, float], tmp_path: Path
) -> None:
    run = imported(tmp_path, [{"step": s, evaluated: 0.25, **others} for s in range(1, 7)])
    assert run.evaluations().accuracy().value_T.tolist() == [0.25] * 6
    assert run.run_metric("reward_mean").value_T.tolist() == [0.5] * 6
    np.testing.assert_allclose(run.update_metric("learning_rate", "shared").value_T, 1e-6)


def test_metrics_inside_a_row_are_its_metrics(tmp_path: Path) -> None:
    rows = [{"step": s, "metrics": {"system/step": s, "critic/score/mean": s / 8}}
            for s in range(1, 7)]  # fmt: skip
    run = imported(tmp_path, rows)
    assert run.run_metric("reward_mean").value_T.tolist() == [s / 8 for s in range(1, 7)]


def test_a_contribution_goes_before_the_norm_of_a_mean(tmp_path: Path) -> None:
    """ASPECT: generator .3 by mean, times 3/4 of the sequences; aggregator .6 times 1/4."""
    values = {}
    for role, norm, share in (("generator", 0.3, 0.75), ("aggregator", 0.6, 0.25)):
        head = f"grad_diag/sp/role/{role}"
        values |= {f"{head}/grad_norm": norm, f"{head}/sequence_share": share}
        values |= {f"{head}/contribution_norm": norm * share}
    run = imported(tmp_path, steps(**values))
    assert run.policies[0].name == "shared"
    np.testing.assert_allclose(run.norm("generator").value_T, 0.225)
    np.testing.assert_allclose(run.norm("aggregator").value_T, 0.15)


def test_isolated_policies_of_aspect_have_their_resultants(tmp_path: Path) -> None:
    values = {f"grad_diag/ip/{role}/resultant_norm": 0.25 for role in ("generator", "judge")}
    values["grad_diag/ip/generator/slot/generator0/grad_norm"] = 0.4
    run = imported(tmp_path, steps(**values))
    assert [policy.name for policy in run.policies] == ["generator", "judge"]
    np.testing.assert_allclose(run.norm("judge").value_T, 0.25)


def test_agents_of_any_name_are_known_by_loss_and_rate(tmp_path: Path) -> None:
    values = {}
    for name in ("critic_x", "planner"):
        values |= {f"train/{name}/policy_loss": 0.1, f"train/{name}/actor_lr": 1e-6}
        values |= {f"train/{name}/reward": 0.5}
    run = imported(tmp_path, steps(**values))
    assert run.roles == ("critic_x", "planner")
    assert len(run.policies) == 2


def test_names_with_blanks_have_policies_that_name_directories(tmp_path: Path) -> None:
    values = {f"actor/{name}/grad_norm": 0.5 for name in ("Solver Agent", "Verifier Agent")}
    run = imported(tmp_path, steps(**values))
    assert run.meta.routing == {"Solver Agent": "Solver_Agent", "Verifier Agent": "Verifier_Agent"}


def test_accuracies_of_other_things_are_no_roles(tmp_path: Path) -> None:
    names = ("judge", "exact_match", "label", "mc1", "em")
    run = imported(tmp_path, steps(**{f"{name}_acc": 0.5 for name in names}))
    assert run.roles == ("judge",)


def test_percentages_are_taken_as_such_and_that_is_told(tmp_path: Path) -> None:
    rows = [{"step": s, "val/accuracy": 40.0 + s} for s in range(1, 7)]
    run = imported(tmp_path, rows)
    np.testing.assert_allclose(run.evaluations().accuracy().value_T, 0.40 + np.arange(1, 7) / 100)
    notes = run.meta.config["imported"]["notes"]
    assert any("taken for percentages" in note for note in notes)


def test_rollouts_updates_and_evaluations_of_slime_on_the_console(tmp_path: Path) -> None:
    lines = []
    for s in range(6):
        rollout = {"rollout/raw_reward": 0.5, "rollout/response_lengths": 800 + s}
        update = {"train/loss": 0.1, "train/grad_norm": 0.5, "train/step": s}
        lines += [f"(RolloutManager pid=3) x.py:1 - rollout {s}: {rollout}"]
        lines += [f"(Actor pid=4) x.py:2 - step {s}: {update}"]
        lines += [f"(RolloutManager pid=3) eval {s}: {{'eval/aime': {s / 8}, 'eval/aime-x': 1}}"]
    (tmp_path / "job.log").write_text("\n".join(lines) + "\n")
    import_run([tmp_path / "job.log"], tmp_path / "run", accuracy="eval/aime")
    run = open_run(tmp_path / "run")
    assert run.steps.tolist() == [0, 1, 2, 3, 4, 5]
    assert run.ledger("length_mean", "agent").value_T.tolist() == [800.0 + s for s in range(6)]
    assert run.evaluations().accuracy().value_T.tolist() == [s / 8 for s in range(6)]


def test_a_scalar_that_tensorboard_exported_is_named_by_its_file(tmp_path: Path) -> None:
    path = tmp_path / "run-grpo-tag-val_acc.csv"
    path.write_text("Wall time,Step,Value\n" + "".join(f"1.7e9,{s},0.5\n" for s in range(6)))
    import_run([path], tmp_path / "run")
    assert open_run(tmp_path / "run").evaluations().accuracy().value_T.tolist() == [0.5] * 6
