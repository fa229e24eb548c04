"""Figures: the numbers beside each are the store's, and each can be read."""

from __future__ import annotations

import csv
import itertools
import math
import struct
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from matplotlib.figure import Figure
from matplotlib.text import Text
from scipy.stats import binomtest

from analysis.cliff.accuracy import wilson
from analysis.diagnosis import diagnose
from analysis.synthetic.runs import Cliff, synthetic_run
from figures import cells
from figures.accuracy import AccuracyFigure
from figures.amplification import AmplificationFigure
from figures.cosine import CosineFigure, matrix
from figures.empirical_map import EmpiricalMap
from figures.make import FIGURES, PaperFigure, make_figures
from figures.norms import NormsFigure
from figures.step_mass import StepMassFigure
from figures.style import (
    INK,
    PALE,
    ROLE_MARKS,
    YELLOW,
    paper,
    role_style,
    running_median,
    shortened,
    title_lines,
)
from figures.tables import CellValue, Table
from gradlab.palette import ROLE_COLORS
from gradlab.store.run import Run, open_run

NUM_STEPS = 60
DRAWN = tuple(figure for figure in FIGURES if figure.name != "reward_components")
"""Of runs whose reward has no named components; test_reward_components.py draws others."""


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four runs: a shared and an isolated one, one without evaluations, one of one step."""
    root = tmp_path_factory.mktemp("runs")
    small = {"steps": NUM_STEPS, "evals": 13, "problems": 40}
    shared_cliff = Cliff(step=40, drop=0.3)
    synthetic_run(root / "shared", cliff=shared_cliff, amplification={"generator": 0.3}, **small)
    synthetic_run(root / "isolated", routing="isolated", seed=1, **small)
    team = {"orchestrator": 1, "worker": 2, "synthesizer": 1}
    synthetic_run(root / "unevaluated", steps=12, evals=2, problems=0, agents=team, seed=2)
    synthetic_run(root / "one_step", steps=1, evals=2, agents={"solver": 1}, seed=3)
    return root


@pytest.fixture(scope="module")
def runs(root: Path) -> list[Run]:
    return [open_run(root / name) for name in ("shared", "isolated", "unevaluated", "one_step")]


@pytest.fixture(scope="module")
def out(root: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """All figures of the four runs."""
    folder = tmp_path_factory.mktemp("figures")
    make_figures(sorted(root.iterdir()), folder)
    return folder


def rows_of(table: Table, **where: CellValue) -> list[dict[str, CellValue]]:
    named = [dict(zip(table.columns, row, strict=True)) for row in table.rows]
    return [row for row in named if all(row[key] == value for key, value in where.items())]


def column(
    rows: list[dict[str, CellValue]], name: str
) -> np.ndarray[tuple[int], np.dtype[np.float64]]:
    return np.array([row[name] for row in rows], dtype=np.float64)


def role_gram(
    run: Run, policy: str, first: str, second: str
) -> np.ndarray[tuple[int], np.dtype[np.float64]]:
    """[U] <g_first, g_second>, entry by entry."""
    gram = run.gram(policy)
    total_U = np.zeros(len(gram.step_U))
    for a, one in enumerate(gram.agents):
        for b, other in enumerate(gram.agents):
            if one.role == first and other.role == second:
                for block in range(len(gram.blocks)):
                    total_U += gram.gram_UBAA[:, block, a, b]
    return total_U


# -- the numbers -------------------------------------------------------------------------------


def test_accuracy_table_counts_the_answers(runs: list[Run]) -> None:
    table = AccuracyFigure().table(runs)
    for run in runs[:2]:
        rows = rows_of(table, run=cells.folder(run))
        correct_EPS = run.evaluations().correct_EPS
        np.testing.assert_array_equal(column(rows, "accuracy"), correct_EPS.mean(axis=(1, 2)))
        assert {row["answers"] for row in rows} == {40}
        np.testing.assert_array_equal(column(rows, "step"), np.linspace(0, NUM_STEPS, 13))


def test_accuracy_band_is_the_binomial_interval() -> None:
    correct_E, num_E = np.array([0.0, 7.0, 40.0, 3.0]), np.array([40.0, 40.0, 40.0, 0.0])
    lower_E, upper_E = wilson(correct_E, num_E, 1.959963984540054)
    for i in range(3):
        truth = binomtest(int(correct_E[i]), 40).proportion_ci(method="wilson")
        assert lower_E[i] == pytest.approx(truth.low, abs=1e-12)
        assert upper_E[i] == pytest.approx(truth.high, abs=1e-12)
    assert math.isnan(lower_E[3])


def test_planted_cliff_is_marked_where_it_was_planted(runs: list[Run]) -> None:
    rows = rows_of(AccuracyFigure().table(runs), run="shared")
    assert rows[0]["status"] == "cliff"
    lower, upper = rows[0]["onset_lower"], rows[0]["onset_upper"]
    assert isinstance(lower, int)
    assert isinstance(upper, int)
    assert lower <= 40 <= upper
    onset = rows_of(AccuracyFigure().table(runs), run="isolated")[0]["onset"]
    assert onset == ""


def test_norm_table_is_the_root_of_the_gram(runs: list[Run]) -> None:
    table = NormsFigure().table(runs)
    for run in runs:
        for role in run.roles:
            policy = run.policy_of(role).name
            step_U = run.gram(policy).step_U
            norm_U = np.sqrt(role_gram(run, policy, role, role))
            expected = [norm_U[step_U == step].mean() for step in run.steps]
            rows = rows_of(table, run=cells.folder(run), role=role)
            np.testing.assert_allclose(column(rows, "norm"), expected, rtol=1e-6)


def test_step_mass_table_is_read_out_of_the_gram(runs: list[Run]) -> None:
    run = runs[0]
    table = StepMassFigure().table(runs)
    inner = {
        pair: role_gram(run, "shared", *pair) for pair in itertools.product(run.roles, repeat=2)
    }
    total = sum(inner.values())
    norms = {role: np.sqrt(inner[role, role]) for role in run.roles}
    for role in run.roles:  # one update per step, so nothing is pooled
        rows = rows_of(table, run="shared", role=role)
        pull = sum(inner[role, other] for other in run.roles) / total
        np.testing.assert_allclose(column(rows, "pull"), pull, rtol=1e-5)
        np.testing.assert_allclose(column(rows, "share"), norms[role] / sum(norms.values()), 1e-6)
        weight = 0.75 if role == "generator" else 0.25  # three generators, one aggregator
        np.testing.assert_allclose(column(rows, "loss_weight"), weight)


@pytest.mark.parametrize("measure", ["share", "pull", "update"])
def test_step_mass_of_a_policy_sums_to_one(runs: list[Run], measure: str) -> None:
    table = StepMassFigure().table(runs)
    for run in runs:
        for policy in run.policies:
            rows = rows_of(table, run=cells.folder(run), policy=policy.name)
            for step in run.steps:
                one = [row for row in rows if row["step"] == step]
                assert column(one, measure).sum() == pytest.approx(1.0, abs=1e-5)


def test_cosine_table_is_read_out_of_the_gram(runs: list[Run]) -> None:
    run, table = runs[0], CosineFigure().table(runs)
    crossed = role_gram(run, "shared", "generator", "aggregator")
    lengths = [np.sqrt(role_gram(run, "shared", role, role)) for role in run.roles]
    rows = rows_of(table, run="shared", kind="roles")
    np.testing.assert_allclose(column(rows, "cosine"), crossed / lengths[0] / lengths[1], atol=1e-5)
    gram_UAA = run.gram("shared").gram_UBAA.sum(axis=1)
    norm_UA = np.sqrt(np.einsum("uaa->ua", gram_UAA))
    cosine_UAA = gram_UAA / norm_UA[:, :, None] / norm_UA[:, None, :]
    np.testing.assert_allclose(matrix(run), cosine_UAA.mean(axis=0), atol=1e-6)


def test_policies_of_their_own_have_no_cosine(runs: list[Run]) -> None:
    rows = rows_of(CosineFigure().table(runs), run="isolated", second="aggregator[0]")
    assert len(rows) == 3
    for row in rows:
        assert row["kind"] == "separate spaces"
        assert math.isnan(float(row["cosine"]))


def test_amplification_table_is_read_out_of_the_row_statistics(runs: list[Run]) -> None:
    run, table = runs[0], AmplificationFigure().table(runs)

    def share(name: str) -> float:
        total = run.row_statistic("total", "generator").value_T
        return float(np.mean(np.asarray(run.row_statistic(name, "generator").value_T) / total))

    found = {str(row["quantity"]): row for row in rows_of(table, run="shared", role="generator")}
    for name in ("signal", "prompt", "episode"):
        assert found[name]["value"] == pytest.approx(share(name), rel=1e-9)
        assert float(found[name]["lower"]) < share(name) < float(found[name]["upper"])
    # 0.3 of a row's energy was planted as shared prompt, 0.03 as common direction
    icc = 0.3 / (1 - 0.03)
    assert found["deff"]["value"] == pytest.approx(1 + 2 * icc, rel=0.1)
    assert found["updates"]["value"] == 1.0


def test_isolated_generator_takes_three_steps_to_one(runs: list[Run]) -> None:
    rows = rows_of(AmplificationFigure().table(runs), run="isolated", quantity="updates")
    assert [(row["role"], row["value"]) for row in rows] == [("generator", 3.0)]
    path = rows_of(AmplificationFigure().table(runs), run="isolated", quantity="path")[0]
    lengths = []
    for role in ("generator", "aggregator"):
        together_U = runs[1].update_gram(role).sum(axis=(1, 2))
        lengths.append(np.sqrt(together_U).sum())
    assert path["value"] == pytest.approx(lengths[0] / lengths[1], rel=1e-5)


def test_map_table_is_the_accuracy_levels(runs: list[Run]) -> None:
    row = rows_of(EmpiricalMap().table(runs), run="shared")[0]
    accuracy_E = np.asarray(runs[0].evaluations().accuracy().value_T)
    window = 3  # evaluations averaged for a level, of 13
    levels = np.convolve(accuracy_E, np.ones(window) / window, "valid")
    assert row["peak_gain"] == pytest.approx(levels.max() - accuracy_E[0])
    assert row["status"] == "cliff"
    assert row["drop"] == pytest.approx(diagnose(runs[0]).findings[0].strength)
    flat = rows_of(EmpiricalMap().table(runs), run="isolated")[0]
    assert flat["status"] == "healthy"
    assert math.isnan(float(flat["drop"]))
    assert float(flat["peak"]) > float(flat["terminal"])  # by noise alone


def test_map_prints_a_drop_only_where_one_was_found(runs: list[Run]) -> None:
    drawn = EmpiricalMap().draw(runs)
    texts = [text.get_text().replace("\n", " ") for text in drawn.findobj(Text)]
    assert texts.count("n.s.") == 1
    assert texts.count("–") == 1  # too short to judge
    assert any("n.s.: none beyond noise" in text for text in texts)


def test_csv_gives_the_same_floats_back(out: Path, runs: list[Run]) -> None:
    with (out / "norms.csv").open(newline="") as file:
        read = list(csv.reader(file))
    table = NormsFigure().table(sorted(runs, key=cells.order))
    assert tuple(read[0]) == table.columns
    assert [float(row[-1]) for row in read[1:]] == [row[-1] for row in table.rows]


# -- the files ---------------------------------------------------------------------------------


def test_every_figure_is_written_three_times(out: Path) -> None:
    names = {path.name for path in out.iterdir()}
    assert names == {f"{f.name}.{end}" for f in DRAWN for end in ("pdf", "png", "csv")}


def test_pictures_are_a_column_wide_at_300_dpi(out: Path) -> None:
    for figure in DRAWN:
        head = (out / f"{figure.name}.png").read_bytes()[:24]
        width, _ = struct.unpack(">II", head[16:24])
        assert width == pytest.approx(3.35 * 300, abs=1)


def test_same_runs_give_the_same_bytes(root: Path, tmp_path: Path) -> None:
    first, second = (
        make_figures([root / "shared"], tmp_path / name, figures=[NormsFigure()])
        for name in ("a", "b")
    )
    for one, other in zip(first, second, strict=True):
        assert one.read_bytes() == other.read_bytes()


def test_many_runs_fill_pages(root: Path, tmp_path: Path) -> None:
    paths = [root / "shared", root / "isolated", root / "unevaluated"]
    written = make_figures(paths, tmp_path, figures=[NormsFigure(per_page=2)])
    assert [path.name for path in written] == [
        "norms.pdf",
        "norms-1.png",
        "norms-2.png",
        "norms.csv",
    ]


# -- missing pieces ----------------------------------------------------------------------------


def test_run_without_evaluations_is_skipped_with_the_reason(root: Path, tmp_path: Path) -> None:
    said: list[str] = []
    figures: list[PaperFigure] = [AccuracyFigure(), NormsFigure(), EmpiricalMap()]
    written = make_figures([root / "unevaluated"], tmp_path, figures=figures, say=said.append)
    assert {path.stem for path in written} == {"norms"}
    assert said == [
        "skipped accuracy: unevaluated (no evaluations)",
        "skipped empirical_map: unevaluated (no evaluations)",
    ]


def test_one_agent_and_one_step_is_enough_for_what_can_be_drawn(root: Path, tmp_path: Path) -> None:
    said: list[str] = []
    written = make_figures([root / "one_step"], tmp_path, say=said.append)
    assert {path.stem for path in written} == {"accuracy", "norms", "empirical_map"}
    assert [line.split(":")[0] for line in said] == [
        "skipped step_mass",
        "skipped cosine",
        "skipped amplification",
        "skipped reward_components",
    ]


def test_figure_says_which_runs_it_does_not_show(runs: list[Run]) -> None:
    drawn = StepMassFigure().draw(runs)
    said = [text.get_text().replace("\n", " ") for text in drawn.findobj(Text)]
    reason = "every role has a policy to itself: its share is 1"
    assert f"Not shown: isolated, one_step ({reason})" in said


def test_run_still_being_written_is_drawn(tmp_path: Path) -> None:
    synthetic_run(tmp_path / "open", steps=20, evals=5, problems=10, close=False)
    figures: list[PaperFigure] = [AccuracyFigure(), StepMassFigure()]
    written = make_figures([tmp_path / "open"], tmp_path / "out", figures=figures)
    assert len(written) == 3 * len(figures)


def test_no_runs_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no runs given"):
        make_figures([], tmp_path)


# -- legible -----------------------------------------------------------------------------------


def test_roles_differ_in_colour_and_without_it() -> None:
    assert set(ROLE_MARKS) == set(ROLE_COLORS)
    assert len({role_style(role, ROLE_COLORS).color for role in ROLE_COLORS}) == len(ROLE_COLORS)
    assert len({role_style(role, ROLE_COLORS).marker for role in ROLE_COLORS}) == len(ROLE_COLORS)
    assert not {INK, PALE, YELLOW} & set(ROLE_COLORS.values())


@pytest.mark.parametrize("figure", DRAWN, ids=lambda figure: figure.name)
@pytest.mark.parametrize("names", [("shared",), ("shared", "isolated", "unevaluated", "one_step")])
def test_texts_are_inside_the_figure_and_apart(
    root: Path, figure: PaperFigure, names: Sequence[str]
) -> None:
    assert_texts_are_inside_and_apart(figure, [open_run(root / name) for name in names])


def assert_texts_are_inside_and_apart(figure: PaperFigure, runs: list[Run]) -> None:
    with paper():
        drawn = figure.draw(runs)
        drawn.draw_without_rendering()
        width, height = drawn.bbox.size
        boxes = [(text.get_text(), text.get_window_extent()) for text in visible_texts(drawn)]
    for what, box in boxes:
        assert box.x0 > -1.5, what
        assert box.y0 > -1.5, what
        assert box.x1 < width + 1.5, what
        assert box.y1 < height + 1.5, what
    for (one, box), (other, second) in itertools.combinations(boxes, 2):
        wide = min(box.x1, second.x1) - max(box.x0, second.x0)
        high = min(box.y1, second.y1) - max(box.y0, second.y0)
        assert min(wide, high) < 1.5, f"'{one}' lies on '{other}'"


def visible_texts(figure: Figure) -> list[Text]:
    """Texts with letters, without the labels of ticks outside the axes."""
    hidden = set()
    for axes in figure.axes:
        for axis in (axes.xaxis, axes.yaxis):
            low, high = sorted(axis.get_view_interval())
            for tick in (*axis.get_major_ticks(), *axis.get_minor_ticks()):
                if not axes.axison or not low <= tick.get_loc() <= high:
                    hidden |= {tick.label1, tick.label2}
    return [
        text
        for text in figure.findobj(Text)
        if text not in hidden and text.get_visible() and text.get_text().strip()
    ]


def test_titles_break_between_parts_and_lose_only_middles() -> None:
    assert title_lines("tiny · math · shared") == ["tiny · math · shared"]
    assert title_lines("orchestrator-workers · Qwen3-1.7B · math · isolated") == [
        "orchestrator-workers",
        "Qwen3-1.7B · math · isolated",
    ]
    assert shortened("abcdefghijklmnop", 9) == "abcd…mnop"
    assert shortened("tiny · abcdefghijklmnop", 16) == "tiny · abcd…mnop"


def test_titles_say_only_what_differs(runs: list[Run]) -> None:
    assert cells.titles(runs[:2]) == ["shared", "isolated"]
    assert cells.titles(runs[:3]) == ["shared", "isolated", "shared · unevaluated"]
    assert cells.titles(runs[:1]) == ["synthetic · none · synthetic · shared"]


def test_running_median_ignores_gaps() -> None:
    value_T = np.array([1.0, np.nan, 9.0, 2.0, 2.0])
    # windows of three: {1}, {1, 9}, {9, 2}, {9, 2, 2}, {2, 2}
    np.testing.assert_array_equal(running_median(value_T, 1), value_T)
    padded = running_median(np.array([5.0, 1.0, np.nan, 9.0, 2.0, 2.0, 7.0]), 2)
    # +-2 steps: {5,1}, {5,1,9}, {5,1,9,2}, {1,9,2,2}, {9,2,2,7}, {9,2,2,7}, {2,2,7}
    np.testing.assert_array_equal(padded, [3.0, 5.0, 3.5, 2.0, 4.5, 4.5, 2.0])


def test_importing_figures_loads_neither_torch_nor_matplotlib() -> None:
    code = "import figures.make, sys; print({'torch', 'matplotlib'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"
