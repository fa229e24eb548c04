"""Suspects are ranked by evidence, words grow with it, and what is tested is corrected for."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from analysis.detectors.multiplicity import correct, weights
from analysis.diagnosis import diagnose
from analysis.findings import Finding
from analysis.replays.results import read_replays
from analysis.synthetic.planted import Spike
from analysis.synthetic.runs import synthetic_run
from analysis.synthetic.scenarios import SCENARIOS
from gradlab.store.run import open_run


def finding(kind: str, p_value: float | None) -> Finding:
    return Finding(kind, "judge", "", 1.0, "1", "high", p_value=p_value)


def test_weights_share_the_level_among_everything_tested() -> None:
    tested = {"capture": 2, "amplification": 1, "KL drift": 2, "rollout gap": 1}
    each = weights(tested)
    assert sum(each[kind] * num for kind, num in tested.items()) == pytest.approx(1.0)
    assert each["capture"] == pytest.approx(0.25)
    assert each["KL drift"] == each["rollout gap"] == pytest.approx(0.1)
    assert weights({"capture": 2, "KL drift": 0}) == {"capture": 0.5}


def test_weighted_holm_by_hand() -> None:
    # Weights .25, .2, .1: p / w = .04 (capture), .02 (amplification), .3 (drift). In order:
    # .02 * 1 = .02, then .04 * .8 = .032, then .3 * .55 = .165 > .05.
    tested = {"capture": 2, "amplification": 1, "KL drift": 3}
    found = [finding("capture", 0.01), finding("amplification", 0.004), finding("KL drift", 0.03)]
    kept, dropped = correct([*found, finding("dominance", None)], tested)
    assert [f.kind for f in kept] == ["capture", "amplification", "dominance"]
    assert [f.p_family for f in kept] == [pytest.approx(0.032), pytest.approx(0.02), None]
    assert [q.what for q in dropped] == ["KL drift of judge"]
    assert "6 things were tested" in dropped[0].why


CAUSED = sorted(name for name, scenario in SCENARIOS.items() if scenario.causes)


@pytest.mark.parametrize("name", CAUSED)
def test_planted_cause_is_named_alone_and_two_are_not_separated(name: str, tmp_path: Path) -> None:
    scenario = SCENARIOS[name]
    path = synthetic_run(tmp_path / "run", evals=41, **scenario.settings(200, seed=0))
    diagnosis = diagnose(open_run(path))
    assert diagnosis.status == scenario.truth
    assert {cause.name for cause in diagnosis.causes} == set(scenario.causes)
    said = diagnosis.separation
    assert said.startswith("The drop is" if len(scenario.causes) == 1 else "Cannot separate")
    assert diagnosis.candidates[-1] == "an unrecorded cause"


@pytest.mark.parametrize(
    "name", sorted(name for name, scenario in SCENARIOS.items() if not scenario.causes)
)
def test_innocent_runs_have_no_suspects(name: str, tmp_path: Path) -> None:
    path = synthetic_run(tmp_path / "run", evals=41, **SCENARIOS[name].settings(200, seed=1))
    diagnosis = diagnose(open_run(path))
    assert not diagnosis.causes
    if SCENARIOS[name].truth == "healthy":
        assert diagnosis.status in ("healthy", "unresolved drop")


def test_a_spike_is_no_suspect_beside_what_stayed_changed(tmp_path: Path) -> None:
    """Alone it is one (above), and beside a suspect that lasts it is told as a finding."""
    settings = SCENARIOS["entropy collapse, then a cliff"].settings(200, seed=0)
    spike = Spike("generator", settings["cliff"].step - 12, 60.0, 1)
    path = synthetic_run(tmp_path / "run", evals=41, spikes=(spike,), **settings)
    diagnosis = diagnose(open_run(path))
    assert [finding.subject for finding in diagnosis.of_kind("gradient spike")] == ["generator"]
    assert [cause.kind for cause in diagnosis.causes] == ["entropy collapse"]


def test_one_event_in_several_policies_is_one_suspect(tmp_path: Path) -> None:
    settings = SCENARIOS["learning rate up, then a cliff"].settings(200, seed=0)
    path = synthetic_run(tmp_path / "run", evals=41, routing="isolated", **settings)
    diagnosis = diagnose(open_run(path))
    names = {cause.name for cause in diagnosis.causes}
    assert names in (
        {"generator learning rate up (aggregator too)"},
        {"aggregator learning rate up (generator too)"},
    )
    assert diagnosis.separation.startswith("The drop is preceded by")


def written(run: Path, verdict: str, name: str = "a") -> None:
    folder = run / "replays" / name
    folder.mkdir(parents=True)
    result = {
        "suspect": {"kind": "capture", "subject": "generator"},
        "change": "max-share:generator=0.5",
        "verdict": verdict,
        "difference": 0.18,
        "lower": 0.11,
        "upper": 0.25,
    }
    (folder / "result.json").write_text(json.dumps(result))


@pytest.mark.parametrize(
    ("verdict", "words"),
    [
        ("confirmed", "confirmed by replay"),
        ("not confirmed", "contradicted by replay"),
        ("undecided", "preceded by"),
        ("not reproduced", "preceded by"),
    ],
)
def test_words_grow_with_a_replay(tmp_path: Path, verdict: str, words: str) -> None:
    scenario = SCENARIOS["capture, then a cliff"]
    synthetic_run(tmp_path / "run", evals=41, **scenario.settings(200, seed=0))
    written(tmp_path / "run", verdict)
    (cause,) = diagnose(open_run(tmp_path / "run")).causes
    assert cause.words == words
    assert any("+18 points (11 to 25)" in sentence for sentence in cause.evidence)


@pytest.mark.parametrize(
    "verdicts", [("confirmed", "not confirmed"), ("not confirmed", "confirmed")]
)
def test_replays_that_disagree_are_both_told(tmp_path: Path, verdicts: tuple[str, str]) -> None:
    scenario = SCENARIOS["capture, then a cliff"]
    synthetic_run(tmp_path / "run", evals=41, **scenario.settings(200, seed=0))
    for name, verdict in zip("ab", verdicts, strict=True):
        written(tmp_path / "run", verdict, name)
    (cause,) = diagnose(open_run(tmp_path / "run")).causes
    assert cause.words == "confirmed by replay"
    assert "refuted with max-share:generator=0.5: replays disagree" in cause.against


def test_a_result_that_is_no_json_is_named(tmp_path: Path) -> None:
    written(tmp_path, "confirmed")
    (tmp_path / "replays/a/result.json").write_text("{")
    with pytest.raises(ValueError, match=r"a/result.json: is not JSON .*repeat the replay"):
        read_replays(tmp_path)
    (tmp_path / "replays/a/result.json").write_text("[]")
    with pytest.raises(ValueError, match="expected one of"):
        read_replays(tmp_path)


def test_result_of_unknown_verdict_is_refused(tmp_path: Path) -> None:
    written(tmp_path, "probably")
    with pytest.raises(ValueError, match="expected one of"):
        read_replays(tmp_path)
