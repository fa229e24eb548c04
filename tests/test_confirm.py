"""What a diagnosis proposes to replay, and what a finished replay adds to it."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from analysis.diagnosis import diagnose
from analysis.findings import Cause, Onset
from analysis.replays.propose import change_for, propose, suspect_of, without_value
from analysis.synthetic.runs import Capture, Cliff, synthetic_run
from gradlab.commands.main import main
from gradlab.store.run import Run, open_run
from trainers.config import TrainConfig
from trainers.presets import demo_cliff
from trainers.replay.changes import changed
from trainers.training import train


@pytest.fixture(scope="module")
def fallen(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A shared run that the generator captured at step 120 of 200, and that fell at 150."""
    out = tmp_path_factory.mktemp("runs") / "fallen"
    synthetic_run(
        out, steps=200, evals=41, cliff=Cliff(150, 0.3), capture=Capture("generator", 120)
    )
    return out


def cause(run: Run, kind: str, subject: str) -> Cause:
    return Cause(kind, kind, subject, "preceded by", Onset(1, 1, 1), 5.0, 0.01)


def test_the_replay_of_a_capture_caps_the_share_and_starts_before_it(fallen: Path) -> None:
    run = open_run(fallen)
    found = propose(run, diagnose(run))
    assert (found.kind, found.subject, found.change) == (
        "capture", "generator", "max-share:generator=0.5",
    )  # fmt: skip
    early, late = found.at_most
    assert 100 <= early <= 125 <= late <= 155
    assert 150 < found.until <= 200


def write_result(out: Path, verdict: str, subject: str = "generator") -> None:
    (out / "replays/one").mkdir(parents=True, exist_ok=True)
    result = {
        "suspect": {"kind": "capture", "subject": subject},
        "change": "--with max-share:generator=0.5",
        "verdict": verdict, "difference": 0.31, "lower": 0.2, "upper": 0.42,
    }  # fmt: skip
    (out / "replays/one/result.json").write_text(json.dumps(result))


def test_a_replay_upgrades_the_statement(fallen: Path, tmp_path: Path) -> None:
    out = tmp_path / "again"
    synthetic_run(
        out, steps=200, evals=41, cliff=Cliff(150, 0.3), capture=Capture("generator", 120)
    )
    before = diagnose(open_run(out))
    assert "an order in time, no cause" in before.confidence
    write_result(out, "confirmed")
    after = diagnose(open_run(out))
    assert (
        "Confirmed by replay: --with max-share:generator=0.5 alters where accuracy ends "
        "(+31 points, 20 to 42)." in after.verdict
    )
    assert "no cause" not in after.confidence
    assert after.causes[0].words == "confirmed by replay"
    with pytest.raises(ValueError, match="confirmed by replay"):
        propose(open_run(out), after)
    write_result(out, "not confirmed")
    refuted = diagnose(open_run(out))
    assert "Refuted by replay" in refuted.verdict
    write_result(out, "undecided")
    assert diagnose(open_run(out)).verdict == before.verdict


def test_a_healthy_run_has_nothing_to_confirm(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "healthy"
    synthetic_run(out, steps=100, evals=21)
    assert main(["diagnose", str(out), "--confirm", "--no-page"]) == 2
    assert "there is no drop to explain (healthy)" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("kind", "subject", "expected"),
    [
        ("learning_rate", "generator", "lr:0.5"),
        ("entropy collapse", "aggregator", "entropy:0.001"),
        ("grad_norm", "generator", "clip:0.5"),
        ("share", "aggregator", "max-share:aggregator=0.5"),
        ("KL drift", "aggregator", "kl-anchor:aggregator=0.05"),
        ("role breakdown", "generator", "kl-anchor:generator=0.05"),
        ("kl", "nobody", None),
        ("logprob_gap", "generator", None),
    ],
)
def test_every_proposal_is_a_change_that_a_replay_takes(
    fallen: Path, kind: str, subject: str, expected: str | None
) -> None:
    run = open_run(fallen)
    change = change_for(cause(run, kind, subject), run)
    assert change == expected
    if change:
        config = TrainConfig(routing="shared")
        assert changed(config, [change]) != config


def test_a_replay_by_hand_is_credited_to_the_suspect_that_it_tests(fallen: Path) -> None:
    run = open_run(fallen)
    diagnosis = diagnose(run)
    capture = {"kind": "capture", "subject": "generator"}
    assert suspect_of(run, diagnosis, ("max-share:generator=0.3",)) == capture
    nobody = {"kind": "", "subject": ""}
    assert suspect_of(run, diagnosis, ("max-share:aggregator=0.3",)) == nobody
    assert suspect_of(run, diagnosis, ("max-share:generator=0.3", "lr:0.5")) == nobody
    rate = replace(diagnosis, causes=(cause(run, "learning_rate", "generator"),))
    assert suspect_of(run, rate, ("lr=0.3",)) == {"kind": "learning_rate", "subject": ""}


@pytest.mark.parametrize(
    ("kind", "change"),
    [
        ("learning_rate", "lr:2"),
        ("learning_rate", "lr:0.9"),
        ("share", "max-share:generator=0.9"),
        ("KL drift", "kl-anchor:generator=0.001"),
    ],
)
def test_too_little_of_a_change_acquits_nobody(fallen: Path, kind: str, change: str) -> None:
    run = open_run(fallen)
    diagnosis = replace(diagnose(run), causes=(cause(run, kind, "generator"),))
    assert suspect_of(run, diagnosis, (change,)) == {"kind": "", "subject": ""}


def test_a_change_without_its_value() -> None:
    assert without_value("kl-anchor:aggregator=0.05") == "kl-anchor:aggregator"
    assert without_value("lr:0.5") == without_value("lr=0.5") == "lr"
    assert without_value("equalize") == "equalize"


@pytest.mark.slow
def test_a_learning_rate_too_high_is_convicted(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The demo's cliff, whose learning rate ramps up until it falls: half of it does not."""
    out = tmp_path / "cliff"
    config = replace(
        demo_cliff(), out=out, checkpoint_every=5, eval_problems=100, threads=1, device="cpu"
    )
    train(config)
    assert main(["diagnose", str(out), "--confirm", "--no-page"]) == 0
    told = capsys.readouterr()
    assert "again, bit for bit" in told.err
    (path,) = (out / "replays").glob("lr-0.5_*/result.json")
    result = json.loads(path.read_text())
    assert result["suspect"]["kind"] == "learning_rate"
    assert result["verdict"] == "confirmed"
    assert result["lower"] > 0.05
    assert "Confirmed by replay" in " ".join(told.out.split())
