"""Names of many trainers lead to the fields that mean the same, and what is close is refused."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from test_interop_matching import fields, matched

from gradlab.interop.logs.importing import import_run
from gradlab.interop.logs.naming.trainers import trainer_of
from gradlab.store.run import open_run

TAKEN = [
    ("Actor/Grad_Norm", "Gradient(agent).norm"),
    ("Train/Reward", "RunLedger.reward_mean"),
    ("completion_length", "RoleLedger(agent).length_mean"),
    ("rewards/accuracy_reward", "RunLedger.accuracy"),
    ("critic/score/mean", "RunLedger.reward_mean"),
    ("rollout_corr/training_ppl", "RoleLedger(agent).perplexity"),
    ("objective/rlhf_reward", "RunLedger.penalized_reward"),
    ("objective/verifiable_correct_rate", "RunLedger.accuracy"),
    ("debug/vllm_vs_local_logprob_diff_mean", "RoleLedger(agent).logprob_gap"),
    ("train/policy_loss", "UpdateMetrics(shared).loss"),
    ("train/mean_gen_tokens_per_sample", "RoleLedger(agent).length_mean"),
    ("rollout/response_len/mean", "RoleLedger(agent).length_mean"),
    ("val/math/test_score", "Evaluation.accuracy"),
    ("validation/accuracy", "Evaluation.accuracy"),
    ("validation/env_state_success_rate", "Evaluation.accuracy"),
    ("eval/eval_aime_pass1", "Evaluation.accuracy"),
    ("eval/aime24", "Evaluation.accuracy"),
]


@pytest.mark.parametrize(("name", "target"), TAKEN)
def test_name_is_known(name: str, target: str) -> None:
    assert fields(matched({name: 0.5, "loss": 0.1}))[target] == 0.5


REFUSED = [
    ("training/rollout_probs_diff_mean", "a difference of probabilities"),
    ("actor/generator/chi2_token", "no field for it"),
    ("rollout_corr/ppl_ratio", "no field for it"),
    ("rollout_corr/kl", "KL to the rollout policy"),
    ("objective/kl", "summed over the tokens"),
    ("train/token_mult_prob_error", "mean of exp"),
    ("rollout/rewards", "normalized within groups"),
    ("eval_mean_token_accuracy", "accuracy of tokens"),
]


@pytest.mark.parametrize(("name", "why"), REFUSED)
def test_name_that_means_something_close_is_refused(name: str, why: str) -> None:
    assert why in matched({name: 0.5, "loss": 0.1}).refused[name]


@pytest.mark.parametrize(
    "name", ["eval_x_acc", "val_judge_acc", "test_acc", "validation_a_acc", "eval_agent/kl"]
)
def test_evaluations_are_no_roles(name: str) -> None:
    assert matched({name: 0.5, "loss": 0.1}).roles == ("agent",)


def test_rewards_that_are_seen_to_be_shaped_are_no_accuracy() -> None:
    values = {"val-core/x/reward/mean@1": 0.4, "critic/score/max": 1.1, "loss": 0.1}
    found = matched(values)
    assert "Evaluation.accuracy" not in fields(found)
    assert "critic/score/max is 1.1 at step 1" in found.refused["val-core/x/reward/mean@1"]
    found = matched({**values, "critic/score/max": 1.0})
    assert fields(found)["Evaluation.accuracy"] == 0.4
    assert any("right if rewards are 0 or 1" in note for note in found.notes)
    asked = matched(values, accuracy="val-core/x/reward/mean@1")
    assert fields(asked)["Evaluation.accuracy"] == 0.4


def test_reward_without_a_penalty_is_no_second_reward() -> None:
    found = matched({"critic/score/mean": 0.5, "critic/rewards/mean": 0.5})
    assert "no KL penalty in it" in found.refused["critic/rewards/mean"]
    alone = matched({"critic/rewards/mean": 0.5})
    assert fields(alone)["RunLedger.reward_mean"] == 0.5
    assert any("use_kl_in_reward" in note for note in alone.notes)
    sure = matched({"critic/rewards/mean": 0.5, "actor/reward_kl_penalty": 0.1})
    assert "RunLedger.reward_mean" not in fields(sure)


def test_roles_in_the_middle_of_names() -> None:
    found = matched(
        {
            "critic/solver/score/mean": 0.5,
            "critic/verifier/rewards/mean": 0.25,
            "agent_0/kl": 0.1,
            "policy/entropy": 0.2,
        }
    )
    assert found.roles == ("solver", "verifier", "agent_0")
    assert fields(found) == {
        "RoleLedger(solver).reward_mean": 0.5,
        "RoleLedger(verifier).reward_mean": 0.25,
        "RoleLedger(agent_0).kl": 0.1,
    }


def test_gradient_diagnostics_of_a_shared_policy_have_angles() -> None:
    found = matched(
        {
            "grad_diag/sp/role/solver/grad_norm": 3.0,
            "grad_diag/sp/role/judge/grad_norm": 4.0,
            "grad_diag/sp/role/judge/sequence_share": 0.25,
            "grad_diag/sp/role/judge/contribution_share": 0.5,
            "grad_diag/sp/pair/solver__judge/cosine": 0.5,
        }
    )
    assert found.routing == {"solver": "shared", "judge": "shared"}
    assert fields(found) == {
        "Gradient(solver).norm": 3.0,
        "Gradient(judge).norm": 4.0,
        "RoleLedger(judge).loss_weight": 0.25,
        "Gradient(solver, judge).cosine": 0.5,
    }


def test_counts_of_right_answers_need_no_map(tmp_path: Path) -> None:
    lines = [
        f'{{"checkpoint_step": {s}, "accuracy": {a}, "num_correct": {n}, "num_total": 1412, '
        '"dataset": "dapo_math"}\n'
        for s, a, n in ((0, 0.489, 691), (10, 0.534, 754))
    ]
    (tmp_path / "eval_results.jsonl").write_text("".join(lines))
    (tmp_path / "curve.csv").write_text(
        "step,accuracy,answers,num_correct\n0,0.489,1412,691\n10,0.534,1412,754\n"
    )
    for name in ("eval_results.jsonl", "curve.csv"):
        import_run([tmp_path / name], tmp_path / f"{name}.run")
        evaluations = open_run(tmp_path / f"{name}.run").evaluations()
        assert evaluations.step_E.tolist() == [0, 10]
        np.testing.assert_allclose(evaluations.accuracy().value_T, [691 / 1412, 754 / 1412])
        assert evaluations.num_samples_E().tolist() == [1412, 1412]


def test_trainer_is_told_from_its_names() -> None:
    assert trainer_of(["actor/lr", "critic/score/mean"], "console") == "verl"
    assert trainer_of(["actor/lr", "batch/success"], "console") == "rllm"
    assert trainer_of(["completions/mean_length", "loss"], "jsonl") == "trl"
    assert trainer_of(["train/gen_kl_error"], "tensorboard") == "nemo-rl"
    assert trainer_of(["val/stop_rate", "scores"], "jsonl") == "open-instruct"
    assert trainer_of(["a", "b"], "csv") == "unknown"
