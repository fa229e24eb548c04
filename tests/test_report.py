"""A diagnosis is told with the verdict first, in text and on a page that needs nothing else."""

from __future__ import annotations

import io
import re
import subprocess
import sys
from pathlib import Path
from xml.etree import ElementTree

import pytest
from rich.console import Console

from analysis.diagnosis import diagnose
from analysis.findings import Accuracy, Diagnosis, Onset, SignalVerdict
from analysis.report.page import write_page
from analysis.report.shared import moved
from analysis.report.terminal import print_text
from analysis.synthetic.runs import Capture, Cliff, Shift, synthetic_run
from gradlab.store.run import open_run

CASES: dict[str, dict[str, object]] = {
    "fallen": {
        "steps": 200,
        "evals": 41,
        "cliff": Cliff(130, 0.25),
        "capture": Capture("generator", 100, 8.0),
        "shifts": (Shift("kl", "generator", 110, 5.0),),
    },
    "healthy": {"steps": 60, "evals": 13, "routing": "isolated"},
    "short": {"steps": 8, "evals": 3, "close": False},
    "unevaluated": {"steps": 30, "evals": 0, "problems": 0},
}


@pytest.fixture(scope="module", params=list(CASES))
def told(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> tuple[str, str, str]:
    """Name of the case, its text, its page."""
    folder = tmp_path_factory.mktemp("report") / request.param
    run = open_run(synthetic_run(folder, **CASES[request.param]))  # type: ignore[arg-type]
    diagnosis = diagnose(run)
    console = Console(width=100, file=io.StringIO(), force_terminal=False)
    print_text(diagnosis, console)
    page = write_page(diagnosis, run, folder / "report.html")
    assert isinstance(console.file, io.StringIO)
    return request.param, console.file.getvalue(), page.read_text(encoding="utf-8")


def test_text_fits_one_screen_with_the_verdict_first(told: tuple[str, str, str]) -> None:
    name, text, _ = told
    lines = text.splitlines()
    assert len(lines) <= 50
    verdict = " ".join(lines[:4])
    words = {
        "fallen": "Held-out accuracy fell by",
        "healthy": "No fall: held-out accuracy",
        "short": "Only 3 evaluations",
        "unevaluated": "training accuracy went from",
    }
    assert words[name] in verdict
    assert max(len(line) for line in lines) <= 100


def test_signals_take_one_line_each_on_a_narrow_terminal(tmp_path: Path) -> None:
    shifts = (Shift("logprob_gap", "aggregator", 120, 10.0), Shift("kl", "generator", 110, 5.0))
    path = synthetic_run(
        tmp_path / "run", steps=200, evals=41, cliff=Cliff(130, 0.25), shifts=shifts
    )
    console = Console(width=80, file=io.StringIO(), force_terminal=False)
    print_text(diagnose(open_run(path)), console)
    assert isinstance(console.file, io.StringIO)
    lines = console.file.getvalue().splitlines()
    assert max(len(line) for line in lines) <= 80
    gap = next(line for line in lines if line.startswith("aggregator rollout-trainer log-prob gap"))
    assert "precedes" in gap
    assert any(line.startswith("generator KL to the reference") for line in lines)


def test_page_holds_everything_inside(told: tuple[str, str, str]) -> None:
    name, _, page = told
    assert len(page) < 3_000_000
    assert not re.findall(r'(?:src|href)="(?!#)', page.replace("xlink:href", "xlink-href"))
    assert "<script" not in page
    assert "<details><summary>Configuration" in page
    svgs = re.findall(r"<svg.*?</svg>", page, re.DOTALL)
    assert len(svgs) == {"fallen": 3, "healthy": 2, "short": 2, "unevaluated": 3}[name]
    for svg in svgs:
        ElementTree.fromstring(svg)
    body = page[page.index("<main>") :]
    assert body.index("Confidence:") < body.index("<svg")


def test_page_says_what_was_found(told: tuple[str, str, str]) -> None:
    name, _, page = told
    if name == "fallen":
        assert "capture · generator" in page
        assert "an unrecorded cause" in page
        assert "generator KL to the reference" in page
    else:
        assert "accuracy fell" not in page


def test_ids_of_the_plots_do_not_collide(told: tuple[str, str, str]) -> None:
    _, _, page = told
    seen: set[str] = set()
    for svg in re.findall(r"<svg.*?</svg>", page, re.DOTALL):
        used = set(re.findall(r'(?:href="|url\()#([\w-]+)', svg))
        defined = set(re.findall(r'id="([\w-]+)"', svg))
        assert used <= defined
        # A clip path or marker of one plot must not be shadowed by a different one of another.
        for name in used & seen:
            shapes = re.findall(rf'<(?:clipPath|path|g|defs)[^>]*id="{name}".*?/>', page, re.DOTALL)
            assert len(set(shapes)) == 1
        seen |= defined


def test_text_and_judgement_need_no_plotting_library() -> None:
    code = (
        "import sys, analysis.report.page, analysis.report.terminal, analysis.diagnosis\n"
        "bad = {'matplotlib', 'torch', 'scipy.stats', 'trainers', 'figures'} & set(sys.modules)\n"
        "sys.exit(', '.join(bad) or 0)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        cwd=Path(__file__).parent.parent,
    )
    assert done.returncode == 0, done.stderr


def verdict_of(key: str, change: str, *, is_outcome: bool) -> SignalVerdict:
    return SignalVerdict(
        key, key, "generator", "1", "precedes", 0.1, 0.4, 5.0, Onset(10, 9, 11), 5.0, 1.0, 9.0,
        False, is_outcome, "", change=change,  # type: ignore[arg-type]
    )  # fmt: skip


def test_what_moves_with_accuracy_by_definition_is_not_shown_as_a_signal() -> None:
    signals = (
        verdict_of("kl:generator", "event", is_outcome=False),
        verdict_of("accuracy:generator", "event", is_outcome=True),
        verdict_of("entropy:generator", "trend", is_outcome=False),
        verdict_of("length:generator", "none", is_outcome=False),
        verdict_of("reward:generator", "none", is_outcome=True),
    )
    diagnosis = Diagnosis("a", "a", "not judged", "", "", Accuracy(), signals=signals)
    assert [shown.key for shown in moved(diagnosis)] == ["kl:generator", "entropy:generator"]
