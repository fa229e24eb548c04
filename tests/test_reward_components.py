"""What a reward is the sum of, by role, as a figure."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from test_figures import assert_texts_are_inside_and_apart, rows_of, visible_texts

from figures.cells import NothingToShowError
from figures.make import FIGURES, make_figures
from figures.reward_components import RewardComponentsFigure
from gradlab.records import Agent, PolicyMeta, RoleLedger, RunLedger, RunMeta, StepRecord
from gradlab.store.run import open_run
from gradlab.store.writer import RunStore

NAMES = ("right", "brief", "cites_the_question")
STEPS = 90


def mean(role: int, name: int, step: int) -> float:
    """Told apart by role, component and step."""
    return (role + 1) * (name - 1) + step / 128


def write(path: Path, roles: tuple[str, ...], steps: int, names: tuple[str, ...] = NAMES) -> None:
    policy = PolicyMeta("shared", tuple(Agent(role) for role in roles), ("all",), 10)
    meta = RunMeta.of_policies("r", [policy], task="sums", reward_components=names)
    with RunStore.create(path / "run.zarr", meta) as store:
        for step in range(1, steps + 1):
            means = {
                role: {name: mean(r, n, step) for n, name in enumerate(names)}
                for r, role in enumerate(roles)
                if role != "silent"
            }
            ledger = {role: RoleLedger(turns=1.0) for role in roles}
            store.append(StepRecord(step, 1e9, RunLedger(), ledger, {}, means if names else {}))


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("components")
    write(root / "shared", ("generator", "a_critic_of_everything", "silent"), STEPS)
    write(root / "one_step", ("generator",), 1, (*NAMES, "extra"))
    write(root / "plain", ("generator",), 3, ())
    return root


def test_the_table_holds_every_mean_as_it_was_recorded(root: Path) -> None:
    table = RewardComponentsFigure().table([open_run(root / "shared"), open_run(root / "plain")])
    assert len(table.rows) == 2 * len(NAMES) * STEPS  # who never spoke has none
    for r, role in enumerate(("generator", "a_critic_of_everything")):
        for n, name in enumerate(NAMES):
            values = [row["mean"] for row in rows_of(table, role=role, component=name)]
            assert values == [mean(r, n, step) for step in range(1, STEPS + 1)]


def test_a_panel_has_a_line_per_component_and_their_sum(root: Path) -> None:
    drawn = RewardComponentsFigure().draw([open_run(root / "shared")])
    first, second, *unused = drawn.axes
    assert not any(axes.axison for axes in unused)
    for r, axes in enumerate((first, second)):
        lines = [line for line in axes.lines if line.get_linewidth() > 1]
        assert len(lines) == 1 + len(NAMES)
        at = 40  # far from the ends the running median of a straight line is the line
        sums = sum(mean(r, n, at + 1) for n in range(len(NAMES)))
        expected = [sums, *(mean(r, n, at + 1) for n in range(len(NAMES)))]
        assert [line.get_ydata()[at] for line in lines] == pytest.approx(expected)
        assert len({(line.get_color(), line.get_linestyle()) for line in lines}) == len(lines)
    texts = [text.get_text() for text in visible_texts(drawn)]
    assert {*NAMES, "sum", "generator"} <= set(texts)


def test_a_single_step_is_seen(root: Path) -> None:
    drawn = RewardComponentsFigure().draw([open_run(root / "one_step")])
    lines = [line for line in drawn.axes[0].lines if len(line.get_xdata()) == 1]
    assert len(lines) == 5
    assert all(line.get_marker() == "o" and np.isfinite(line.get_ydata()).all() for line in lines)


@pytest.mark.parametrize("names", [("shared",), ("shared", "one_step", "plain")])
def test_its_texts_are_inside_and_apart(root: Path, names: tuple[str, ...]) -> None:
    runs = [open_run(root / name) for name in names]
    assert_texts_are_inside_and_apart(RewardComponentsFigure(), runs)


def test_it_is_among_the_figures_and_says_who_has_none(root: Path, tmp_path: Path) -> None:
    assert RewardComponentsFigure() in FIGURES
    said: list[str] = []
    written = make_figures(
        [root / "plain"], tmp_path, figures=[RewardComponentsFigure()], say=said.append
    )
    assert written == []
    assert said == ["skipped reward_components: plain (the reward has no named components)"]
    with pytest.raises(NothingToShowError):
        RewardComponentsFigure().draw([open_run(root / "plain")])
