"""Bugs that `bench/planted_bugs.py` plants show their mark, and nothing of them is left behind."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import SmallConfig
from test_train import adapters, assert_same_tensors

import trainers.credit
import trainers.judge
import trainers.learn
import trainers.training
from gradlab.probe.probe import Probe
from gradlab.store.run import Run, open_run
from trainers.inspect.audit import audit_run
from trainers.prompts.compact import CompactPrompts
from trainers.rundir.transcripts import read_episodes
from trainers.training import train
from trainers.watch.progress import Progress

sys.path.insert(0, str(Path(__file__).parent.parent / "bench"))
from planted_bugs import BUGS, planted

Trained = Callable[..., Path]


@pytest.fixture
def trained(small_config: SmallConfig, quiet: Progress, tmp_path: Path) -> Trained:
    """Train three steps with a bug from a step on."""

    def make(bug: str = "", since: int = 1, **settings: Any) -> Path:
        fitted = {"steps": 3, "eval_every": 3, "checkpoint_every": 3, **settings}
        out = tmp_path / f"{bug}-{since}"
        with planted(bug, since):
            return train(small_config(out=out, **fitted), quiet)

    return make


def ledger(run: Run | Path, name: str, role: str) -> list[float]:
    opened = run if isinstance(run, Run) else open_run(run)
    return [float(value) for value in opened.ledger(name, role).value_T]


def turns(path: Path, episodes: str) -> list[tuple[dict[str, Any], dict[str, Any]]]:
    """(episode, turn) of all turns of a file."""
    read = read_episodes(path / "episodes" / f"{episodes}.jsonl.gz")
    return [(episode, turn) for episode in read for turn in episode["turns"]]


def test_every_bug_is_taken_out_again() -> None:
    places: list[tuple[Any, str]] = [
        (trainers.judge, "is_right"), (trainers.learn, "batch_loss"), (trainers.learn, "kl_k3"),
        (trainers.learn, "with_old_logprobs"), (Probe, "tag"), (CompactPrompts, "read_choice"),
        (trainers.credit, "turn_reward"), (trainers.credit, "with_advantages"),
        *((trainers.training, name) for name in ("train_step", "rollout", "step_problems")),
    ]  # fmt: skip
    before = [getattr(*place) for place in places]
    changed = set[str]()
    for bug in BUGS:
        with planted(bug, since=1):
            changed |= {
                place[1]
                for place, was in zip(places, before, strict=True)
                if getattr(*place) is not was
            }
        assert [getattr(*place) for place in places] == before, bug
    assert changed == {name for _, name in places} - {"kl_k3"}, "kl_k3 changes inside of a loss"


@pytest.mark.filterwarnings("ignore:.*rollout and trainer log-probs differ")
def test_a_stale_sampler_leaves_a_gap_from_the_next_step_on(trained: Trained) -> None:
    gap = ledger(trained("stale sampler"), "logprob_gap", "generator")
    assert gap[0] < 1e-5  # rounding in float32: nothing was trained yet
    assert min(gap[1:]) > 1e-4


def test_the_rate_of_one_policy_is_eight_times_as_high_and_recorded(trained: Trained) -> None:
    run = open_run(trained("rate times 8", since=2))
    rates = [ledger(run, "learning_rate", role) for role in ("generator", "aggregator")]
    assert rates == [pytest.approx([1e-3, 8e-3, 8e-3]), pytest.approx([1e-3] * 3)]


@pytest.mark.slow
def test_a_lenient_grader_is_so_in_training_alone(trained: Trained) -> None:
    run = trained("lenient grader", since=2, eval_problems=40)
    for name, is_lenient in [("step-000001", False), ("step-000002", True), ("eval-000003", False)]:
        for episode, _ in turns(run, name):
            answer = episode["answer"] or ""
            is_right = answer.isdecimal() and int(answer) == int(episode["reference"])
            assert episode["outcome"] is (is_right or (is_lenient and "0" in answer)), name


@pytest.mark.slow
def test_the_wrong_sign_of_an_anchor_drives_from_the_base_model(trained: Trained) -> None:
    strong = {"kl_coefficient": {"generator": 20.0}, "learning_rate": 3e-3, "clip_norm": 0.0}
    away = ledger(trained("anchor sign", **strong), "kl", "generator")
    held = ledger(trained(**strong), "kl", "generator")
    assert away[0] == held[0] == pytest.approx(0, abs=1e-6)  # what is recorded keeps its sign
    assert away[2] > 2 * held[2] > 0


def test_wrong_rewards_are_what_is_trained(trained: Trained) -> None:
    run = open_run(trained("reward sign", steps=1))
    outcome = ledger(run, "outcome_accuracy", "generator")
    assert ledger(run, "reward_mean", "generator") == [-value for value in outcome]
    assert ledger(run, "reward_mean", "aggregator") == outcome

    run = open_run(trained("reward of length", steps=1))
    assert ledger(run, "reward_mean", "generator") == ledger(run, "length_mean", "generator")


@pytest.mark.slow
def test_wrong_advantages_are_what_is_trained(trained: Trained) -> None:
    plain, heavy = (trained(bug, group_by="role") for bug in ("", "advantage times 10"))
    for role, times in [("generator", 1), ("aggregator", 10)]:
        first = [ledger(path, "advantage_std", role)[0] for path in (plain, heavy)]
        assert first[1] == pytest.approx(times * first[0], rel=1e-5)
        assert first[0] > 0

    for _, turn in turns(trained("no baseline"), "step-000001"):
        assert turn["advantage"] == turn["reward"] - 1


@pytest.mark.slow
def test_without_the_last_token_a_response_of_one_token_teaches_nothing(trained: Trained) -> None:
    """With it there is at least the entropy bonus."""
    one = {"max_response_tokens": 1, "weight_decay": 0.0, "entropy_coefficient": 0.1}
    norms = [
        open_run(trained(bug, **one)).norm("generator").value_T[0] for bug in ("", "end token")
    ]
    assert norms[0] > 0
    assert norms[1] == 0


def test_exchanged_tags_train_the_same_and_the_audit_finds_them(trained: Trained) -> None:
    plain, wrong = (trained(bug, routing="shared", steps=1) for bug in ("", "exchanged tags"))
    assert_same_tensors(adapters(plain, 1), adapters(wrong, 1))
    norms = [[open_run(path).norm(role).value_T[0] for role in ("generator", "aggregator")]
             for path in (plain, wrong)]  # fmt: skip
    assert norms[0] == pytest.approx(norms[1][::-1], rel=1e-5)
    with planted("exchanged tags", since=1) as now:
        now.is_on = True  # an audit is no training step
        _, [audit] = audit_run(wrong)
    assert "tags or attribution are wrong" in audit.verdict
    assert audit_run(wrong)[1][0].is_right  # the product's own tags


@pytest.mark.slow
def test_another_temperature_spreads_the_ratios_of_the_first_update(trained: Trained) -> None:
    setting = {"temperature": 0.6, "old_logprobs": "trainer", "rows_per_update": 1000}
    spread = [
        ledger(trained(bug, **setting), "ratio_std", "generator")
        for bug in ("", "other temperature")
    ]
    assert max(spread[0]) < 1e-3 < 0.05 < min(spread[1])


def test_a_lost_adapter_is_the_base_model_again(trained: Trained) -> None:
    run = open_run(trained("adapter lost", since=3, learning_rate=5e-3))
    generator, aggregator = (ledger(run, "kl", role) for role in ("generator", "aggregator"))
    assert generator[1] > 1e-4
    assert abs(generator[2]) < 1e-7
    assert aggregator[2] > 1e-4


@pytest.mark.slow
def test_a_choice_is_read_off_by_one_in_evaluations_too(trained: Trained) -> None:
    run = trained("choice shifted", since=2, eval_problems=20)
    for name, shift in [("step-000001", 0), ("step-000002", 1), ("eval-000003", 1)]:
        checked = 0
        for episode in read_episodes(run / "episodes" / f"{name}.jsonl.gz"):
            *candidates, choice = episode["turns"]
            if choice["parse_ok"]:
                number = int(choice["response"].strip("[]")) - 1
                taken = candidates[(number + shift) % 3]["response"]
                assert CompactPrompts.read_answer(taken).value == episode["answer"]
                checked += 1
        assert checked, name


@pytest.mark.slow
def test_problems_that_are_stuck_come_in_every_step(trained: Trained) -> None:
    run = trained("problems repeated", since=2)
    asked = [
        {episode["problem"] for episode, _ in turns(run, f"step-{step:06d}")} for step in (1, 2, 3)
    ]
    assert asked[1] == asked[2] != asked[0]
    assert np.all([len(problems) == 4 for problems in asked])
