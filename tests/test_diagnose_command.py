"""`gradlab diagnose` as a user types it: where the page goes, what is proposed, what is refused."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from analysis.diagnosis import diagnose
from analysis.synthetic.runs import Capture, Cliff, Shift, synthetic_run
from gradlab.commands import main as cli
from gradlab.store.run import open_run

Output = pytest.CaptureFixture[str]


@pytest.fixture
def fallen(tmp_path: Path) -> Path:
    synthetic_run(
        tmp_path / "fallen",
        steps=120,
        evals=25,
        cliff=Cliff(80, 0.3),
        capture=Capture("generator", 60, 8.0),
    )
    return tmp_path / "fallen"


@pytest.fixture
def healthy(tmp_path: Path) -> Path:
    synthetic_run(tmp_path / "healthy", steps=60, evals=13)
    return tmp_path / "healthy"


def test_a_replay_is_proposed_only_where_there_is_a_checkpoint(fallen: Path) -> None:
    assert "--confirm" not in diagnose(open_run(fallen)).separation
    folder = fallen / "checkpoints" / "step-000050"
    folder.mkdir(parents=True)
    (folder / "checkpoint.json").write_text("{}")
    (fallen / "config.json").write_text("{}")
    assert "(gradlab diagnose RUN --confirm)" in diagnose(open_run(fallen)).separation


def test_the_first_remedy_is_the_one_against_the_first_suspect(fallen: Path) -> None:
    diagnosis = diagnose(open_run(fallen))
    assert diagnosis.causes[0].kind == "capture"
    assert diagnosis.remedies[0].option == "--max-share generator 0.5"


def test_a_page_of_a_part_leaves_the_page_of_the_whole_alone(healthy: Path, capsys: Output) -> None:
    assert cli.main(["diagnose", str(healthy)]) == 0
    whole = (healthy / "report.html").read_bytes()
    assert cli.main(["diagnose", str(healthy), "--until", "30"]) == 0
    assert (healthy / "report.html").read_bytes() == whole
    assert "Looked at up to step 30" in (healthy / "report-until-30.html").read_text()
    assert "the run ends at step" not in capsys.readouterr().err
    assert cli.main(["diagnose", str(healthy), "--until", "99", "--no-page"]) == 0
    assert "--until 99: the run ends at step 60" in capsys.readouterr().err


def test_a_refused_replay_still_prints_the_diagnosis(healthy: Path, capsys: Output) -> None:
    assert cli.main(["diagnose", str(healthy), "--confirm"]) == 2
    told = capsys.readouterr()
    assert "No fall: held-out accuracy" in " ".join(told.out.split())
    assert "--confirm: healthy: there is no drop to explain" in told.err
    assert (healthy / "report.html").is_file()


def test_two_evaluations_are_each_a_level_of_its_own(tmp_path: Path) -> None:
    synthetic_run(tmp_path / "short", steps=20, evals=2)
    run = open_run(tmp_path / "short")
    first, last = run.evaluations().accuracy().value_T
    accuracy = diagnose(run).accuracy
    assert accuracy.base == pytest.approx(first)
    assert accuracy.peak == pytest.approx(max(first, last))
    assert accuracy.terminal == pytest.approx(last)


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (("diagnose", "{folder}"), r"is a folder of 1 runs; give one of them, such as"),
        (("diagnose", "{run}", "--page", "{folder}/none/p.html"), "there is no folder"),
        (("figures", "{run}", "--out", "{run}/run.zarr/zarr.json"), "is a file; expected a folder"),
        (("show", "{folder}/none", "--step", "1"), "there is no folder"),
        (("replay", "{run}", "--with", "lr:0.5"), "cannot be trained again"),
        (("import", "x.csv", "--out", "{folder}/o", "--map", "none.yaml"), "--map none.yaml"),
    ],
)
def test_the_real_mistake_is_named(
    healthy: Path, arguments: tuple[str, ...], told: str, capsys: Output
) -> None:
    given = [text.format(run=healthy, folder=healthy.parent) for text in arguments]
    assert cli.main(given) == 2
    assert told in capsys.readouterr().err


def test_a_setting_has_no_p_value_and_a_replay_of_two_roles_is_told_once(tmp_path: Path) -> None:
    synthetic_run(
        tmp_path / "run",
        steps=200,
        evals=41,
        cliff=Cliff(140, 0.3),
        routing="isolated",
        shifts=tuple(
            Shift("learning_rate", role, 120, 4.0) for role in ("generator", "aggregator")
        ),
    )
    (tmp_path / "run" / "replays" / "lr").mkdir(parents=True)
    (tmp_path / "run" / "replays" / "lr" / "result.json").write_text(
        json.dumps(
            {
                "suspect": {"kind": "learning_rate", "subject": ""},
                "change": "--with lr:0.5",
                "verdict": "confirmed",
                "difference": 0.3,
                "lower": 0.2,
                "upper": 0.4,
                "statement": "",
            }
        )
    )
    (cause,) = diagnose(open_run(tmp_path / "run")).causes
    assert "too)" in cause.name
    assert sum("replayed" in sentence for sentence in cause.evidence) == 1
    assert "a setting, which does not move by chance" in cause.evidence[0]
    assert "p =" not in cause.evidence[0]
