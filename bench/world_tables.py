"""Turn what was said of many series and runs of the second world into rows of tables."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
from scipy.stats import binomtest
from world_families import FALLS, HEALTHY, OPEN
from world_judging import Case, Diagnosed, RunCase, Said, judge_run, judge_series
from world_runs import SCENARIOS

ANSWERS = (60, 100, 200, 1400)
POINTS = (10.0, 15.0, 20.0, 30.0)
LENGTHS = (12, 20, 31, 60, 100)
"""Evaluations of a run; a row that does not name one goes through them in turn."""

Row = tuple[str, ...]
In = TypeVar("In")
Out = TypeVar("Out")


@dataclass(frozen=True)
class Settings:
    """How much to simulate, and with how many processes."""

    runs: int
    jobs: int
    seed: int

    def each(self, judge: Callable[[In], Out], cases: Sequence[In]) -> list[Out]:
        """What `judge` says of every case, in order."""
        if self.jobs == 1:
            return [judge(case) for case in cases]
        with ProcessPoolExecutor(self.jobs) as pool:
            return list(pool.map(judge, cases, chunksize=4))

    def said(
        self, family: str, answers: int, points: float = 15.0, length: int | None = None
    ) -> list[Said]:
        """What is said of `runs` series of one kind."""
        return self.each(
            judge_series,
            [
                Case(family, answers, length or LENGTHS[k % len(LENGTHS)], points, k, self.seed)
                for k in range(self.runs)
            ],
        )


def percent(is_it: Iterable[bool]) -> str:
    """Percent with its 95 % Wilson interval."""
    found = [bool(one) for one in is_it]
    if not found:
        return ""
    between = binomtest(sum(found), len(found)).proportion_ci(method="wilson")
    share = 100.0 * sum(found) / len(found)
    return f"{share:.0f} ({100 * between.low:.0f}-{100 * between.high:.0f})"


def falls_table(settings: Settings) -> Iterator[Row]:
    """Family, answers, and the percent called fallen by size."""
    pooled: dict[tuple[int, float], list[bool]] = {}
    for family in FALLS:
        for answers in ANSWERS:
            row = []
            for points in POINTS:
                fell = [one.fell for one in settings.said(family, answers, points)]
                pooled.setdefault((answers, points), []).extend(fell)
                row.append(percent(fell))
            yield family, f"{answers:,}", *row
    for answers in ANSWERS:
        yield "**all**", f"{answers:,}", *(percent(pooled[answers, points]) for points in POINTS)


def lengths_table(settings: Settings) -> Iterator[Row]:
    """Evaluations, answers, and the percent called fallen: all falls of 10 and 20, all healthy."""
    for length in LENGTHS:
        for answers in ANSWERS:
            cells = []
            for families, points in ((FALLS, 10.0), (FALLS, 20.0), (HEALTHY, 15.0)):
                fell = []
                for family in families:
                    fell += [one.fell for one in settings.said(family, answers, points, length)]
                cells.append(percent(fell))
            yield str(length), f"{answers:,}", *cells


def healthy_table(settings: Settings) -> Iterator[Row]:
    """Family, the percent called fallen by answers, and every word that was used."""
    pooled: dict[int, list[bool]] = {answers: [] for answers in ANSWERS}
    for family in HEALTHY:
        row, words = [], Counter[str]()
        for answers in ANSWERS:
            said = settings.said(family, answers)
            fell = [one.fell for one in said]
            pooled[answers] += fell
            words.update(one.shape for one in said)
            row.append(percent(fell))
        yield family, *row, _counted(words)
    yield "**all**", *(percent(pooled[answers]) for answers in ANSWERS), ""
    for family in OPEN:
        row = []
        for answers in ANSWERS:
            said = settings.said(family, answers)
            down = percent(one.fell for one in said if one.true_fell)
            up = percent(one.fell for one in said if not one.true_fell)
            row.append(f"{down} of those that ended lower, {up} of the others")
        yield family, *row, ""


def measures_table(settings: Settings) -> Iterator[Row]:
    """How right the numbers of a fall are, of those called fallen."""
    for answers, points in ((1400, 15.0), (200, 20.0)):
        for family in FALLS:
            said = [one for one in settings.said(family, answers, points) if one.fell]
            if not said:
                yield family, f"{answers:,}", f"{points:.0f}", "0", *[""] * 7
                continue
            onset = np.array([one.onset_error for one in said])
            is_dated = np.isfinite(onset)
            away = np.abs(onset[is_dated])
            yield (
                family,
                f"{answers:,}",
                f"{points:.0f}",
                str(len(said)),
                f"{np.mean([one.drop_error for one in said]):+.1f}",
                percent(one.is_drop_covered for one in said),
                f"{np.median(away):.1f} / {np.quantile(away, 0.9):.1f}" if away.size else "no date",
                percent(away <= 3.0),
                percent(one.is_onset_covered for one in said),
                f"{np.nanmedian([one.width_ratio for one in said]):.1f}",
                percent(one.progress == one.true_progress for one in said),
            )


def words_table(settings: Settings) -> Iterator[Row]:
    """The words for the shape of every family, and for how it ends."""
    for family in FALLS:
        said = settings.said(family, 1400)
        shapes = Counter(one.shape for one in said)
        yield family, _counted(shapes), _counted(Counter(one.progress or "(none)" for one in said))


def healthy_runs_table(settings: Settings) -> Iterator[Row]:
    """Scenario by scenario, then their sum."""
    everything: list[Diagnosed] = []
    yield from _scenario_rows(settings, everything, falls=False)
    yield "**all**", *_healthy_cells(everything)


def falling_runs_table(settings: Settings) -> Iterator[Row]:
    """Scenario by scenario, then the sums that the targets speak of."""
    everything: list[Diagnosed] = []
    yield from _scenario_rows(settings, everything, falls=True)
    caused, others = (
        [one for one in everything if bool(SCENARIOS[one.case.scenario].cause) == is_caused]
        for is_caused in (True, False)
    )
    yield "**all with a cause**", *_falling_cells(caused, True)
    yield "**all without a recorded cause**", *_falling_cells(others, False)
    yield "**all falls**", *_falling_cells(everything, False)


def _scenario_rows(
    settings: Settings, everything: list[Diagnosed], *, falls: bool
) -> Iterator[Row]:
    for number, scenario in enumerate(SCENARIOS):
        if scenario.falls != falls:
            continue
        cases = [RunCase(number, index, settings.seed) for index in range(settings.runs)]
        said = settings.each(judge_run, cases)
        everything += said
        is_caused = bool(scenario.cause)
        cells = _falling_cells(said, is_caused) if falls else _healthy_cells(said)
        yield scenario.name, *cells


def _healthy_cells(said: Sequence[Diagnosed]) -> Row:
    found = Counter(finding for one in said for finding in one.findings)
    return (
        percent(one.has_drop for one in said),
        percent(bool(one.findings) for one in said),
        _counted(found, 3),
    )


def _falling_cells(said: Sequence[Diagnosed], is_caused: bool) -> Row:
    wrong = Counter(
        cause
        for one in said
        for cause, is_right in zip(one.causes, one.is_right, strict=True)
        if not is_right
    )
    return (
        percent(one.has_drop for one in said),
        percent(bool(one.is_right) and one.is_right[0] for one in said) if is_caused else "",
        percent(any(one.is_right) for one in said) if is_caused else "",
        percent(not all(one.is_right) for one in said),
        _counted(wrong, 3),
    )


def _counted(words: Counter[str], most: int = 6) -> str:
    return ", ".join(f"{word} {number}" for word, number in words.most_common(most))


SECTIONS: tuple[tuple[str, str, str, Row, Callable[[Settings], Iterator[Row]]], ...] = (
    (
        "falls",
        "Falls called falls",
        "Percent of series called fallen, by the size of the fall in points; 12 to 100 "
        "evaluations. Asked for: 95 of falls of 10 at 1,400 answers, and of 20 at 100.",
        ("family", "answers", *(f"{points:.0f}" for points in POINTS)),
        falls_table,
    ),
    (
        "lengths",
        "Length of the run",
        "Percent called fallen: all families of falls, of 10 and of 20 points, all healthy ones.",
        ("evaluations", "answers", "falls of 10", "falls of 20", "healthy"),
        lengths_table,
    ),
    (
        "healthy",
        "Healthy runs",
        "Percent of series called fallen, by answers, and the words used for all. Asked for: at "
        "most 5. A run that swings is judged by where it truly ends.",
        ("family", *(f"{answers:,}" for answers in ANSWERS), "words"),
        healthy_table,
    ),
    (
        "measures",
        "Numbers of a fall",
        "Of those called fallen. Drop: mean error in points, and whether its interval holds the "
        "true drop under any usual name of best and end level. Onset: error in evaluations, "
        "median / 90 %, to the nearer of two falls; its interval may miss by one evaluation. "
        "Width: told / true, median.",
        (
            "family",
            "answers",
            "points",
            "called",
            "drop error",
            "drop covered",
            "onset error",
            "onset within 3",
            "onset covered",
            "width",
            "progress right",
        ),
        measures_table,
    ),
    (
        "words",
        "Words for a fall",
        "1,400 answers, falls of 15 points: shapes, and how they are said to end.",
        ("family", "shape", "progress"),
        words_table,
    ),
    (
        "healthy-runs",
        "Healthy whole runs",
        "Percent of runs. Findings: any that is neither about accuracy nor a description. Asked "
        "for: at most 5. At the end, what was found most often.",
        ("scenario", "drop told", "findings", ""),
        healthy_runs_table,
    ),
    (
        "falling-runs",
        "Whole runs that fall",
        "Percent of runs. Asked for: cause first at least 90, wrong suspects at most 5. At the "
        "end, what was wrong most often.",
        ("scenario", "drop told", "cause first", "cause named", "wrong suspects", ""),
        falling_runs_table,
    ),
)
"""Name, title, caption, header and rows of every table."""
