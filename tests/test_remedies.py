"""A remedy fits what was found and who trained it: its direction, step, size, and words."""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from analysis.detectors.table import KINDS
from analysis.explain.remedies import (
    BAD_WHEN_LOWER,
    BY_SIGNAL,
    OF_ROLES,
    TITLES,
    remedies,
)
from analysis.explain.vocabulary import PLAIN, TERMS, UNKNOWN_VALUE, limit_of, phrase, trainer_of
from analysis.findings import Cause, Finding, Onset, SignalVerdict
from analysis.signals import KIND
from gradlab.records import (
    Agent,
    PolicyMeta,
    RoleLedger,
    RunLedger,
    RunMeta,
    StepRecord,
    UpdateMetrics,
    UpdateRecord,
)
from gradlab.store.run import Run, open_run
from gradlab.store.writer import RunStore
from trainers.config import TrainConfig

ROLES = ("generator", "aggregator")


def made(
    path: Path,
    config: Mapping[str, Any],
    *,
    workflow: str = "voting",
    roles: tuple[str, ...] = ROLES,
    routing: str = "shared",
    rate: float = 1e-3,
    rate_T: Sequence[float] = (),
    cut: tuple[float, float] = (0.0, 0.0),
) -> Run:
    """A run of 100 steps: its rate, or that of every step, and the share of cut responses in either
    half."""
    names = ("shared",) if routing == "shared" else roles
    policies = [
        PolicyMeta(name, tuple(Agent(r) for r in roles if name in ("shared", r)), ("all",), 1)
        for name in names
    ]
    meta = RunMeta.of_policies("x", policies, workflow=workflow, config=dict(config))
    with RunStore.create(path / "run.zarr", meta) as store:
        for step in range(1, 101):
            for policy in policies:
                size = len(policy.agents)
                now = UpdateMetrics(rate_T[step - 1] if len(rate_T) else rate)
                store.append(UpdateRecord(policy.name, step, np.eye(size)[None], metrics=now))
            share = cut[step > 50]
            ledger = RoleLedger(truncated=share, length_mean=300 + 212 * share)
            store.append(StepRecord(step, 0.0, RunLedger(), dict.fromkeys(roles, ledger)))
    return open_run(path)


def trained(path: Path, steps: tuple[int, ...] = (), **settings: Any) -> Run:
    """The same in a directory that `gradlab train --from` begins again, with checkpoints."""
    config = TrainConfig(routing="shared", **settings).to_json()
    run = made(path, config, workflow="voting")
    (path / "config.json").write_text(json.dumps({"config": config}))
    for step in steps:
        folder = path / "checkpoints" / f"step-{step:06d}"
        (folder / "shared").mkdir(parents=True)
        (folder / "shared" / "trainer_state.pt").touch()
        (folder / "checkpoint.json").touch()
    return run


def found(kind: str, subject: str = "run", step: int = 60) -> Finding:
    return Finding(kind, subject, "", 0.3, "1", "high", Onset(step, step - 2, step + 2))  # type: ignore[arg-type]


def suspect(kind: str, subject: str, step: int = 50, words: str = "preceded by") -> Cause:
    return Cause(kind, kind, subject, words, Onset(step, step, step), 9.0, 0.01)  # type: ignore[arg-type]


def candidate(kind: str, before: float, after: float) -> SignalVerdict:
    return SignalVerdict(
        f"{kind}:generator", KIND[kind].title, "generator", "1", "precedes", before, after, 5.0,
        Onset(10, 9, 11), 5.0, 1.0, 9.0, True, False, "",
    )  # fmt: skip


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """A shared voting run without a directory to begin again from."""
    return made(tmp_path_factory.mktemp("plain"), {})


@pytest.mark.parametrize("kind", list(BY_SIGNAL))
def test_remedy_is_only_given_for_the_change_that_it_undoes(kind: str, plain: Run) -> None:
    worse, better = (0.4, 0.1) if kind in BAD_WHEN_LOWER else (0.1, 0.4)
    assert len(remedies(plain, (), (candidate(kind, worse, better),))) == 1
    assert remedies(plain, (), (candidate(kind, better, worse),)) == ()


@pytest.mark.parametrize("kind", [*KINDS, "something new"])
def test_every_option_is_complete_whatever_was_found(kind: str, tmp_path: Path) -> None:
    run = trained(tmp_path / "run", (20, 40, 80))
    subject = "run" if kind in ("cliff", "fall", "decay") else "generator"
    for remedy in remedies(run, (found(kind, subject),), ()):
        assert not re.search(r"[<>{}…]", remedy.option + remedy.title + remedy.reason)


@pytest.mark.parametrize("kind", ["cliff", "fall", "decay"])
def test_the_first_remedy_of_a_fall_is_a_command_that_changes_something(
    kind: str, tmp_path: Path
) -> None:
    run = trained(tmp_path / "run", (20, 40, 80), learning_rate=1e-3)
    first = remedies(run, (found(kind),), ())[0]
    where = tmp_path / "run"
    assert shlex.split(first.option) == [
        "gradlab", "train", "--from", str(where), "--at", "40", "--learning-rate", "0.0005",
        "--out", f"{where}-from-40",
    ]  # fmt: skip
    assert "begins at the checkpoint of step 40, the newest from before step 60" in first.reason
    (tmp_path / "run-from-40").mkdir()  # a name that is taken would be refused
    again = remedies(run, (found(kind),), ())[0]
    assert again.option.endswith("-from-40-2")


@pytest.mark.parametrize(
    ("cause", "option"),
    [
        (suspect("capture", "generator"), "--max-share generator 0.5"),
        (suspect("share", "generator"), "--max-share generator 0.5"),
        (suspect("KL drift", "aggregator"), "--kl-coefficient aggregator 0.2"),
        (suspect("kl", "generator"), "--kl-coefficient aggregator 0.1 generator 0.05"),
        (suspect("entropy collapse", "generator"), "--entropy-coefficient 0.01"),
        (suspect("gradient spike", "generator"), "--clip-norm 0.4"),
        (suspect("truncated", "generator"), "--max-response-tokens 48"),
        (suspect("learning_rate", "shared"), "--learning-rate 0.0005"),
        # More answers per problem made such a run fall sooner; a check is no command.
        (suspect("advantage starvation", "generator"), "--learning-rate 0.0005"),
        (suspect("rollout gap", "generator"), "--learning-rate 0.0005"),
        (suspect("something new", "generator"), "--learning-rate 0.0005"),
        (suspect("capture", "generator", 50, "contradicted by replay"), "--learning-rate 0.0005"),
    ],
)
def test_the_first_suspect_says_what_the_first_remedy_changes(
    cause: Cause, option: str, tmp_path: Path
) -> None:
    run = trained(
        tmp_path / "a run", (20, 40, 55), kl_coefficient={"aggregator": 0.1}, clip_norm=0.8,
        entropy_coefficient=0.005, max_response_tokens=24,
    )  # fmt: skip
    first, *others = remedies(run, (found("fall"), found("KL drift", "generator")), (), (cause,))
    assert option in first.option
    assert "--at 40" in first.option, "from before the suspect, not only before the fall"
    assert shlex.split(first.option)[3] == str(tmp_path / "a run"), "paths are quoted"
    assert any("--learning-rate" in remedy.option for remedy in (first, *others))
    assert len({remedy.option for remedy in (first, *others)}) == len(others) + 1


def test_every_command_is_one_that_train_takes(tmp_path: Path) -> None:
    """Options are parsed as typed, onto the configuration of the run."""
    from gradlab.commands.training_options import parse_training

    run = trained(tmp_path / "run", (20, 40), max_share={"aggregator": 0.7})
    kinds = [found("fall"), *(found(kind, "generator") for kind in KINDS)]
    own = TrainConfig(**run.meta.config | {"out": tmp_path / "run"})
    found_all = remedies(run, kinds, ())
    commands = [r.option for r in found_all if r.option.startswith("gradlab train")]
    repaired = [r.option for r in found_all if "reward is repaired" in r.title]
    assert len(repaired) == 1, "the code changed, and no option"
    assert len(commands) >= 10
    for text in commands:
        _, _, *arguments = shlex.split(text)
        parsed = parse_training(TrainConfig, vars(own), "", ["clean"], arguments)
        config = replace(parsed.config, **parsed.kept)
        changed = {k for k, v in config.to_json().items() if v != own.to_json()[k]} - {"out"}
        assert changed or text in repaired, f"{text} changes nothing"


def test_without_an_early_checkpoint_it_trains_anew(tmp_path: Path) -> None:
    run = trained(tmp_path / "run", (80,))
    first = remedies(run, (found("fall"),), ())[0]
    assert "--at 0 " in first.option
    assert "there is no checkpoint from before step 60" in first.reason
    state = tmp_path / "run/checkpoints/step-000080/shared/trainer_state.pt"
    state.unlink()  # --keep-states dropped it: nothing to continue from, wherever the fall was
    assert "--at 0 " in remedies(run, (found("fall", step=90),), ())[0].option


STEP_T = np.arange(1.0, 101.0)
SCHEDULES: dict[str, tuple[Any, int, float, dict[str, Any]]] = {
    "in a warm-up of 20 steps": (np.minimum(STEP_T / 20, 1), 6, 1e-3, {}),
    "after it": (np.minimum(STEP_T / 20, 1), 60, 1e-3, {}),
    "in a warm-up before a decay": (np.minimum(STEP_T / 20, (100 - STEP_T) / 80), 6, 1e-3, {}),
    "in the decay": (np.minimum(STEP_T / 20, (100 - STEP_T) / 80), 60, 5e-4, {}),
    "in a ramp to the end": (STEP_T / 100, 60, 6e-4, {}),
    # Only the configuration says where it would have led.
    "in a warm-up that the run did not see the end of": (
        STEP_T / 200, 60, 1e-3, {"warmup_steps": 200, "steps": 1000, "learning_rate": 1e-3},
    ),
    "in a ramp that the run did not see the end of": (
        STEP_T / 200, 60, 3e-4, {"warmup_steps": 200, "steps": 200, "learning_rate": 1e-3},
    ),
    "before it was raised": (np.where(STEP_T > 70, 1.0, 0.1), 60, 1e-4, {}),
}  # fmt: skip
"""Share of 1e-3 at every step, step of the fall, the rate to be halved, configuration."""


@pytest.mark.parametrize("name", list(SCHEDULES))
def test_half_of_the_rate_is_of_the_one_that_was_set(name: str, tmp_path: Path) -> None:
    share_T, step, rate, config = SCHEDULES[name]
    run = made(tmp_path / "run", config, workflow="custom", rate_T=1e-3 * share_T)
    fall = found("fall", step=step)
    assert remedies(run, (fall,), ())[0].option == f"learning rate {rate / 2:.2g}"


def imported(path: Path, columns: tuple[str, ...], **settings: Any) -> Run:
    config = {"imported": {"columns": dict.fromkeys(columns, "")}} | settings.pop("config", {})
    return made(path, config, **{"workflow": "imported (console)"} | settings)


WORDS = {
    "trl": ("max_completion_length=1024", "beta: 0.05, or twice", "learning_rate=4e-06"),
    "ms-swift": ("--max_completion_length 1024", "beta: 0.05", "--learning_rate 4e-06"),
    "verl": (
        "data.max_response_length=1024",
        "kl_loss_coef: 0.05",
        "actor_rollout_ref.actor.optim.lr=4e-06",
    ),
    "rllm": ("data.max_response_length=1024", "kl_loss_coef", "actor.optim.lr=4e-06"),
    "openrlhf": ("--generate_max_len 1024", "init_kl_coef", "--actor_learning_rate 4e-06"),
    "nemo-rl": (
        "policy.generation.max_new_tokens=1024",
        "reference_policy_kl_penalty",
        "policy.optimizer.kwargs.lr=4e-06",
    ),
    "slime": ("--rollout-max-response-len 1024", "kl-loss-coef", "--lr 4e-06"),
    "open-instruct": ("--response_length 1024", "beta", "--learning_rate 4e-06"),
    "unknown": ("longest response 1024 tokens", "a KL term against", "learning rate 4e-06"),
}


@pytest.mark.parametrize("trainer", list(WORDS))
def test_an_imported_run_is_advised_in_its_trainers_words(trainer: str, tmp_path: Path) -> None:
    """One role whose answers are all cut, at 512 tokens: the longest that were let through."""
    run = imported(
        tmp_path / "run", (), config={"trainer": trainer}, roles=("agent",), rate=8e-6,
        cut=(0.1, 1.0),
    )  # fmt: skip
    given = remedies(run, (found("role breakdown", "agent"),), ())
    told = "\n".join(f"{r.title}: {r.reason}: {r.option}" for r in given)
    for words in WORDS[trainer]:
        assert words in told
    ours = ("gradlab", "--reward", "--max-share", "--kl-coefficient", "--max-response-tokens")
    for word in (*ours, "agent", "role", "mix"):
        assert word not in told.replace("max_response", "")
    assert given[0].title == "Raise the token limit of the responses"


def test_values_come_from_the_configuration_where_it_was_recorded(tmp_path: Path) -> None:
    config = {"beta": 0.04, "max_completion_length": 256, "num_generations": 8}
    run = made(tmp_path / "run", config, workflow="trl", roles=("agent",))
    assert trainer_of(run) == "trl"
    assert phrase(run, "anchor", "agent", 1e-5) == "beta=0.08"
    assert phrase(run, "raise limit", "agent", 1e-5) == "max_completion_length=512"
    assert phrase(run, "more samples", "agent", 1e-5) == "num_generations=16"
    assert phrase(run, "clip", "agent", 1e-5).startswith("max_grad_norm: 0.5, or half")
    assert np.isnan(limit_of(run)), "nothing was cut"


@pytest.mark.parametrize(
    ("columns", "trainer"),
    [
        (("completions/mean_length", "reward_std"), "trl"),
        (("train/completion_length", "train/reward_std"), "trl"),
        (("actor/pg_loss", "critic/rewards/mean"), "verl"),
        (("rollout/raw_reward", "train/pg_loss"), "slime"),
        (("loss", "step"), "unknown"),
    ],
)
def test_the_trainer_is_told_from_its_metrics(
    columns: tuple[str, ...], trainer: str, tmp_path: Path
) -> None:
    assert trainer_of(imported(tmp_path / "run", columns)) == trainer


def test_a_foreign_run_of_several_roles_names_them_in_plain_words(tmp_path: Path) -> None:
    run = imported(tmp_path / "run", (), config={"trainer": "verl"})
    options = [r.option for r in remedies(run, (found("capture", "generator"),), ())]
    assert options[0].startswith("weigh generator's loss down")
    assert "a policy of its own for generator" in options
    assert all("--" not in option for option in options)


def test_a_loop_of_ones_own_gets_no_flags(tmp_path: Path) -> None:
    run = made(tmp_path / "run", {}, workflow="custom")
    assert remedies(run, (found("fall"),), ())[0].option == "learning rate 0.0005"


def test_every_action_has_a_title_and_words() -> None:
    for table in TERMS.values():
        assert table.keys() <= TITLES.keys()
        for action, option in table.items():
            assert option.count("{value}") <= 1
            assert "{value}" not in option or action in UNKNOWN_VALUE
    assert TITLES.keys() - PLAIN.keys() == {"mask cut", "begin again"}
    assert PLAIN.keys() >= OF_ROLES
    assert all("{value}" not in PLAIN[a] or a in UNKNOWN_VALUE for a in PLAIN)


def test_a_log_of_trl_whose_responses_reach_the_limit(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """From the log to what is told: imported, diagnosed, printed."""
    from gradlab.commands.main import main

    rows = [
        {
            "step": step, "loss": 0.0, "grad_norm": 0.3, "learning_rate": 8e-6, "reward": 0.5,
            "reward_std": 0.5, "kl": 0.01, "completions/clipped_ratio": 0.1 if step <= 60 else 1.0,
            "completions/mean_length": 300 if step <= 60 else 512,
        }
        for step in range(1, 121)
    ]  # fmt: skip
    log = tmp_path / "trainer_state.json"
    log.write_text(json.dumps({"global_step": 120, "max_steps": 120, "log_history": rows}))
    assert main(["import", str(log), "--out", str(tmp_path / "run")]) == 0
    capsys.readouterr()
    assert main(["diagnose", str(tmp_path / "run"), "--no-page"]) == 0
    told = " ".join(capsys.readouterr().out.split())
    assert "max_completion_length=1024" in told
    assert "beta: 0.05" in told
    assert "--" not in told[told.index("To try next") :].partition("Not judged")[0]


def test_what_a_detached_reward_paid_is_shown_first_and_can_be_pasted(tmp_path: Path) -> None:
    """No option takes it away: the answers and what they earned, then on from before, repaired."""
    run = trained(tmp_path / "run", (20, 40, 55))
    (tmp_path / "run" / "episodes").mkdir()
    (tmp_path / "run" / "episodes" / "step-000045.jsonl.gz").write_bytes(b"")
    paid = suspect("detached reward", "generator", 45)
    first, second, third, *_ = remedies(run, (found("fall"),), (), (paid,))
    assert first.option == f"gradlab show {tmp_path}/run --step 45"
    assert (
        second.option == f"gradlab train --from {tmp_path}/run --at 40 --out {tmp_path}/run-from-40"
    )
    assert "--learning-rate" in third.option
