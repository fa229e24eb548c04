"""Real logs of other trainers, cut down: each is read as it was meant, or refused with the way out.

The inputs in tests/logs/cases are rows of logs that were once misread.
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from gradlab.commands import main as cli
from gradlab.interop.logs.importing import Imported, import_run
from gradlab.interop.logs.summary import told
from gradlab.store.run import Run, open_run

CASES = Path(__file__).parent / "logs/cases"


def imported(name: str, tmp_path: Path, **settings: object) -> tuple[Imported, Run, str]:
    """A case as a run, and all that the command says of it on one line."""
    result = import_run([CASES / name], tmp_path / "run", **settings)  # type: ignore[arg-type]
    said = " ".join(" ".join(line.split()) for line in told(result))
    return result, open_run(tmp_path / "run"), said


def test_accuracy_out_of_range_says_where_and_how_to_map_it(tmp_path: Path) -> None:
    with pytest.raises(
        ValueError,
        match=r"^critic/score/mean is -0\.5175 at step 1, expected 0 to 1; with rewards of -1 and "
        r"1 say plus: 1, times: 0\.5",
    ):
        imported(
            "accuracy-out-of-range.log", tmp_path, accuracy="critic/score/mean", eval_size="512"
        )
    column_map = tmp_path / "map.json"
    entry = {"to": "Evaluation.accuracy", "plus": 1, "times": 0.5}
    column_map.write_text(json.dumps({"columns": {"critic/score/mean": entry}, "eval_size": 512}))
    _, run, _ = imported("accuracy-out-of-range.log", tmp_path, column_map=column_map)
    # (-0.5175 + 1) * 0.5
    assert run.evaluations().accuracy().value_T[0] == pytest.approx(0.24125)


def test_what_a_trainer_state_holds_comes_back(tmp_path: Path) -> None:
    for name, metric, values in (
        ("all-cut-from-start.json", "truncated", [1.0] * 8),
        ("advice-for-a-sole-imported-role.json", "truncated", [0.1, None]),
        ("trl-adapter-not-synced.json", "logprob_gap", [0.01068, None]),
    ):
        result, run, _ = imported(name, tmp_path / name)
        value_T = run.ledger(metric, "agent").value_T
        assert value_T[0] == pytest.approx(values[0])
        assert np.isfinite(value_T).all()
        assert result.meta.config["trainer"] == "trl"
    _, run, _ = imported("linear-decay-dated.json", tmp_path / "rates")
    rate = json.loads((CASES / "linear-decay-dated.json").read_text())["log_history"]
    rate_T = run.update_metric("learning_rate", run.policies[0].name).value_T
    assert [entry["learning_rate"] for entry in rate] == pytest.approx(rate_T.tolist())


def test_gradient_that_is_zero_is_logged_as_zero(tmp_path: Path) -> None:
    _, run, _ = imported("imported-gradient-zero.json", tmp_path)
    assert run.norm("agent").value_T.tolist() == [0.0] * 8
    assert (run.ledger("reward_std", "agent").value_T > 0.3).all()
    assert "not_finite" not in run.meta.config


def test_accuracy_of_tokens_in_an_evaluation_is_no_role(tmp_path: Path) -> None:
    result, run, said = imported("eval-token-acc-role.json", tmp_path)
    assert run.roles == ("agent",)
    assert "eval_token_acc" in result.matched.refused
    assert "Not taken: eval_token_acc (accuracy of tokens, not of answers)" in said
    assert np.isnan(run.ledger("own_accuracy", "agent").value_T).all()
    assert result.num_evaluations == 0


def test_metrics_alone_in_their_group_are_given_in_full(tmp_path: Path) -> None:
    _, _, said = imported("hidden-metric-name.jsonl", tmp_path)
    assert (
        "3 metrics without a field here: rewards/combined_reward, response/aborted_ratio, "
        "actor/pg_clipfrac_lower" in said
    )


def test_score_is_the_reward_and_the_kl_penalty_is_kept_apart(tmp_path: Path) -> None:
    result, run, said = imported("length-collapse.log", tmp_path)
    # The first line of the case: critic/score/mean and critic/rewards/mean of step 29.
    first = (CASES / "length-collapse.log").read_text().splitlines()[0]
    values = dict(piece.rsplit(":", 1) for piece in first.split(" - ")[1:])
    assert run.run_metric("reward_mean").value_T[0] == pytest.approx(
        float(values["critic/score/mean"])
    )
    assert run.run_metric("penalized_reward").value_T[0] == pytest.approx(
        float(values["critic/rewards/mean"])
    )
    assert run.ledger("kl", "agent").value_T[0] == pytest.approx(
        float(values["actor/reward_kl_penalty"])
    )
    assert "the reward is 'critic/score/mean'; 'critic/rewards/mean' differs from it" in said
    assert "which may be negative), and not k3" in " ".join(said.split())
    assert result.meta.config["trainer"] == "verl"


def test_lengths_of_a_log_with_gaps_come_back(tmp_path: Path) -> None:
    _, run, said = imported("interval-upside-down.log", tmp_path)
    assert run.ledger("length_mean", "agent").value_T[:2].tolist() == [1083, 1039]
    assert np.isnan(run.ledger("length_mean", "agent").value_T[9])
    assert "3 steps between 10 and 30 are not in the log" in said


def test_step_of_ms_swift_is_a_fraction_of_the_steps_planned(tmp_path: Path) -> None:
    result, run, _ = imported("ms-swift.jsonl", tmp_path)
    assert run.steps.tolist()[:6] == [1, 2, 3, 4, 5, 6]
    assert run.steps.tolist()[-1] == 60, "the summary has a global_step of its own"
    assert run.meta.config["steps"] == 60
    assert run.meta.config["trainer"] == "ms-swift"
    assert run.run_metric("accuracy").value_T[0] == pytest.approx(0.403)
    assert "global_step/max_steps" not in result.matched.refused


def test_nan_that_was_logged_is_information(tmp_path: Path) -> None:
    _, run, said = imported("nan-from-60.json", tmp_path)
    where = {"first": 60, "last": 64, "count": 5, "logged": 10}
    assert run.meta.config["not_finite"] == dict.fromkeys(
        ("loss", "grad_norm", "kl", "entropy"), where
    )
    assert "loss, grad_norm, kl, entropy are not finite at 5 steps from 60 to 64, of 10" in said
    json.dumps(run.meta.config, allow_nan=False)


def test_rows_of_slime_are_joined_by_step_columns_of_their_own(tmp_path: Path) -> None:
    result, run, said = imported("slime.jsonl", tmp_path, accuracy="eval/aime24", eval_size="240")
    rows = [json.loads(line) for line in (CASES / "slime.jsonl").read_text().splitlines()]
    steps = sorted({row["train/step"] for row in rows if "train/step" in row})
    assert run.steps.tolist() == steps
    assert np.isfinite(run.norm("agent").value_T).all(), "no step is without its norm"
    assert np.isfinite(run.ledger("length_mean", "agent").value_T).all()
    evaluated = [row["eval/step"] for row in rows if "eval/step" in row]
    assert run.evaluations().step_E.tolist() == evaluated
    assert f"into {len(steps)} steps; '_step' counts calls of wandb's log, {len(rows)} here" in said
    assert result.meta.config["trainer"] == "slime"


def test_runs_below_each_other_are_refused_and_one_is_chosen(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("yaml", reason="reads YAML")
    words = ["import", str(CASES / "stacked-runs.csv"), "--map", str(CASES / "stacked-runs.yaml")]
    assert cli.main([*words, "--out", str(tmp_path / "none")]) == 2
    said = capsys.readouterr().err
    assert "'run_id' has 3 values (run_a, run_b, run_c), and the step begins again with" in said
    assert "--run run_a" in said
    assert not (tmp_path / "none").exists()
    for given in (["--run", "run_b"], ["--where", "run_id=run_b"]):
        out = tmp_path / given[0]
        assert cli.main([*words, "--out", str(out), *given]) == 0
        assert "8 of 24 rows" in capsys.readouterr().out
        run = open_run(out)
        assert run.run_metric("accuracy").value_T.tolist() == pytest.approx([0.6] * 8)
        assert run.run_metric("reward_mean").value_T[0] == pytest.approx(0.5747)
    assert cli.main([*words, "--out", str(tmp_path / "none"), "--run", "run_x"]) == 2
    assert "no run 'run_x'; 'run_id' has run_a, run_b, run_c" in capsys.readouterr().err


def test_dictionaries_of_trl_get_their_step_from_the_bar(tmp_path: Path) -> None:
    result, run, said = imported("trl-console.log", tmp_path)
    assert run.steps.tolist() == [*range(1, 6)]
    assert run.ledger("kl", "agent").value_T[:2].tolist() == pytest.approx([0.0244, 0.0298])
    assert run.meta.config["steps"] == 60
    assert "the step of each row is that of the progress bar beside it (of 60)" in said
    assert result.meta.config["trainer"] == "trl"


def test_number_that_wandb_cut_is_no_number(tmp_path: Path) -> None:
    result, run, said = imported("wandb-output-cut.log", tmp_path, eval_size="30x16")
    assert result.num_evaluations == 0
    assert not run.meta.rates
    assert "3 metric lines end at 4096 characters" in said
    assert "Missing because of it: val-core/aime_2024/acc/mean@16 (from step 0 on, in 3" in said
    assert "run.scan_history() of wandb has them whole" in said
    assert "'val-core/aime_2024/acc/mean@16' was cut off in the log" in said
    assert run.norm("agent").value_T[0] == pytest.approx(0.3168294197), "what is whole is taken"
