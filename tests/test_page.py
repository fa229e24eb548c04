"""The page says where a run comes from, explains its words, and is written whole or not at all."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass, replace
from html import escape
from pathlib import Path

import numpy as np
import pytest

from analysis.detectors.table import KINDS
from analysis.diagnosis import diagnose
from analysis.findings import Accuracy, Diagnosis
from analysis.replays.propose import announced, meaning, propose
from analysis.report import plots
from analysis.report.glossary import TERMS, glossary
from analysis.report.page import write_page
from analysis.report.page_head import origin, tiles
from analysis.synthetic.runs import Capture, Cliff, synthetic_run
from gradlab.store.run import Run, open_run


@dataclass(frozen=True)
class Judged(Accuracy):
    """An accuracy that stands for something else."""

    outcome: str = "training reward"


@pytest.fixture(scope="module")
def fallen(tmp_path_factory: pytest.TempPathFactory) -> tuple[Run, Diagnosis]:
    """A run that fell at step 130, in a directory that can be begun again."""
    out = tmp_path_factory.mktemp("page") / "Fallen Run"
    synthetic_run(
        out, steps=200, evals=41, cliff=Cliff(130, 0.3), capture=Capture("generator", 100)
    )
    (out / "config.json").write_text(json.dumps({"created": "2026-01-02T03:04:05Z", "config": {}}))
    state = out / "checkpoints/step-000090/shared/trainer_state.pt"
    state.parent.mkdir(parents=True)
    state.touch()
    (out / "checkpoints/step-000090/checkpoint.json").touch()
    run = open_run(out)
    return run, diagnose(run)


def text_of(html: str) -> str:
    body = re.sub(r"<(style|svg).*?</\1>", " ", html, flags=re.DOTALL)
    return " ".join(re.sub(r"<[^>]*>", " ", body).split())


def test_the_header_says_where_and_when_and_from_what(fallen: tuple[Run, Diagnosis]) -> None:
    run, _ = fallen
    known = dict(origin(run))
    assert known["run"] == str(run.path.parent)
    assert known["begun"] == "2026-01-02 03:04:05 UTC"
    run.meta.config["seed"] = 7  # type: ignore[index]
    run.meta.versions["commit"] = "abcdef123456"  # type: ignore[index]
    begun = {"step": 9, "path": "runs/a", "run_id": "r", "changed": {"learning_rate": [1, 0.5]}}
    run.meta.config["from"] = begun  # type: ignore[index]
    try:
        page = write_page(fallen[1], run, run.path.parent / "report.html").read_text()
        said = text_of(page)
        assert "seed 7" in said
        assert "commit abcdef123456" in said
        assert "begins at step 9 of runs/a (run r) with --learning-rate 0.5 instead of 1" in said
    finally:
        del run.meta.config["from"], run.meta.config["seed"]  # type: ignore[attr-defined]
        del run.meta.versions["commit"]  # type: ignore[attr-defined]


def test_the_first_remedy_and_what_confirm_does_are_on_the_page(
    fallen: tuple[Run, Diagnosis], tmp_path: Path
) -> None:
    run, diagnosis = fallen
    said = text_of(write_page(diagnosis, run, tmp_path / "report.html").read_text())
    first = diagnosis.remedies[0].option
    assert first.startswith("gradlab train --from ")
    assert "--at 90 --max-share generator 0.5" in first
    found = propose(run, diagnosis)
    assert 130 < found.until <= 150, "two evaluations after most of an abrupt fall at 130"
    told = announced(run, found)
    assert f"trains steps 91 to {found.until} 6 times, from the checkpoint of step 90" in told
    assert "with seeds 0, 1, 2 as the run was" in told
    assert "generator's share of the gradient capped at 0.5" in told
    assert "To test it" in said
    assert "--confirm trains steps 91 to" in said


def test_no_style_changes_the_case_of_an_id(fallen: tuple[Run, Diagnosis], tmp_path: Path) -> None:
    page = write_page(fallen[1], fallen[0], tmp_path / "report.html").read_text()
    assert "text-transform" not in page
    assert 'name="viewport"' in page


def test_every_term_is_explained_in_the_section_that_uses_it(
    fallen: tuple[Run, Diagnosis], tmp_path: Path
) -> None:
    page = write_page(fallen[1], fallen[0], tmp_path / "report.html").read_text()
    sections = re.split(r"<h2>|<details>", page[page.index("<main>") :])
    checked = 0
    for section in sections:
        plain = re.sub(r'<p class="terms">.*?</p>', "", section)
        for term in ("step mass", "DEFF", "ICC", "wander"):
            if re.search(rf"\b{term}\b", re.sub(r"<[^>]*>", " ", plain)):
                assert f"<dfn>{term}</dfn>" in section, f"{term} in {section[:60]}"
                checked += 1
    assert checked >= 2


def test_a_glossary_holds_what_is_used_and_no_more() -> None:
    assert glossary("<p>nothing special</p>") == ""
    told = glossary("<p>DEFF 1.2, ICC 0.1</p>")
    assert re.findall(r"<dfn>(.*?)</dfn>", told) == ["DEFF", "ICC"]
    assert "wander" not in glossary('<p class="wander">x</p>'), "markup is no text"
    assert len({term for term, _, _ in TERMS}) == len(TERMS)


def test_a_page_is_written_whole_or_not_at_all(
    fallen: tuple[Run, Diagnosis], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run, diagnosis = fallen
    page = tmp_path / "report.html"
    page.write_text("the page of before")

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(OSError, match="No space left"):
        write_page(diagnosis, run, page)
    assert page.read_text() == "the page of before"
    assert [path.name for path in tmp_path.iterdir()] == ["report.html"]


def test_a_status_or_kind_of_another_version_does_not_break_it(
    fallen: tuple[Run, Diagnosis], tmp_path: Path
) -> None:
    run, diagnosis = fallen
    drop = replace(diagnosis.findings[0], kind="fall")  # type: ignore[arg-type]
    odd = replace(drop, kind="never heard of")  # type: ignore[arg-type]
    for status in ("fall", "decay", "small loss", "never learned", "something else"):
        other = replace(diagnosis, status=status, findings=(drop, odd))  # type: ignore[arg-type]
        page = write_page(other, run, tmp_path / "report.html").read_text()
        assert f'class="card verdict {status.split()[0]}"' in page
        assert "fall begins" in page


def test_what_stands_in_for_held_out_accuracy_is_named_everywhere(
    fallen: tuple[Run, Diagnosis], tmp_path: Path
) -> None:
    run, diagnosis = fallen
    accuracy = Judged(41, base=0.25, peak=1.75, peak_step=120, terminal=0.5)
    other = replace(diagnosis, accuracy=accuracy)
    shown = tiles(other, run)
    assert shown.count("training reward") == 3
    assert "1.75" in shown, "a reward is no share"
    assert "held-out" not in shown
    assert "base model" not in shown, "the first training step is not the base model"
    assert ">training reward<" in plots.accuracy_svg(other, run)
    page = text_of(write_page(other, run, tmp_path / "report.html").read_text())
    assert "Training reward, in place of held-out accuracy, which was not recorded." in page
    accuracy = Judged(41, base=0.25, peak=0.5, terminal=0.5, outcome="training accuracy")
    assert "training accuracy (%)" in plots.accuracy_svg(replace(other, accuracy=accuracy), run)


def test_the_training_outcome_is_the_runs_or_the_mean_over_its_roles(tmp_path: Path) -> None:
    run = open_run(synthetic_run(tmp_path / "run", steps=20, evals=5))
    roles = [run.ledger("reward_mean", role).value_T for role in run.roles]
    of_run = run.run_metric("reward_mean").value_T
    expected = of_run if np.isfinite(of_run).any() else np.nanmean(roles, axis=0)
    np.testing.assert_allclose(plots.training_outcome(run, "training reward"), expected)


def test_every_change_has_words() -> None:
    assert meaning("lr:0.5") == "0.5 times the learning rate, at every step (--with lr:0.5)"
    assert meaning("kl-anchor:a=0.05").startswith("a KL anchor of 0.05 on a")
    assert meaning("equalize") == "--with equalize"


def test_what_each_kind_needs_is_on_the_page_and_in_the_documentation(
    fallen: tuple[Run, Diagnosis], tmp_path: Path
) -> None:
    run, diagnosis = fallen
    text = text_of(write_page(diagnosis, run, tmp_path / "page.html").read_text())
    document = Path(__file__).parent.parent / "docs" / "diagnosis.md"
    section = document.read_text().partition("### What each kind of finding needs")[2]
    section = section.partition("\n## ")[0]
    _, _, *rows = re.findall(r"^\| ?([^|]+?) ?\| ?([^|]+?) ?\|$", section, flags=re.MULTILINE)
    assert dict(rows) == {kind.name: kind.needs for kind in KINDS.values()}
    for kind in KINDS.values():
        assert escape(kind.name) in text
        assert escape(kind.needs) in text
