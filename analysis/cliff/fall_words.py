"""Say in sentences how accuracy ended: the fact, its width, what it did when the run stopped.

Every number is that of `analysis.cliff.cliff.Fall`, with the name of the estimator where it is
shown.
"""

from __future__ import annotations

import math

from analysis.cliff.fall import Fall
from analysis.cliff.scan import FEW
from analysis.findings import HELD_OUT, Confidence, Finding

SIMILAR = 0.5
"""Share of a fall from which on a swing elsewhere is called like it."""

LARGE = 0.1
"""Loss that nobody calls small, as a share."""


def findings_of(fall: Fall) -> list[Finding]:
    """The loss as a finding; none for a run that held its level, or lost little."""
    if fall.shape == "last evaluation low":
        summary = f"{name_of(fall)}: {_last_low(fall)}"
        return [Finding(fall.shape, "run", summary, fall.drop, _unit(fall), "low")]
    if fall.onset is None:
        return []
    return [
        Finding(
            fall.shape,
            "run",
            what_fell(fall),
            fall.drop,
            _unit(fall),
            certainty(fall),
            fall.onset,
            fall.p_value,
            tuple(evidence(fall)),
            fall.drop_lower,
            fall.drop_upper,
        )
    ]


def certainty(fall: Fall) -> Confidence:
    """That it fell, whatever the reason."""
    return "high" if fall.p_value <= 0.01 else "moderate"


def name_of(fall: Fall) -> str:
    """What the run is judged by, to begin a sentence with."""
    return fall.outcome[0].upper() + fall.outcome[1:]


def best_level(fall: Fall) -> str:
    """'58 % (mean of 3 evaluations around step 80)'."""
    if fall.window == 1:
        return f"{fall.level(fall.top)} (step {fall.top_step})"
    where = f"mean of {fall.window} {_points(fall)} around step {fall.top_step}"
    return f"{fall.level(fall.top)} ({where})"


def last_level(fall: Fall) -> str:
    """'42 % (last evaluation)'."""
    if fall.end_window == 1:
        return f"{fall.level(fall.bottom)} (last {_points(fall)[:-1]}, step {fall.last_step})"
    return f"{fall.level(fall.bottom)} (mean of the last {fall.end_window} {_points(fall)})"


def what_fell(fall: Fall) -> str:
    """The fact: how much, from where to where."""
    interval = f"{fall.loss(max(fall.drop_lower, 0.0))} to {fall.loss(fall.drop_upper)}"
    if fall.outcome != "training reward":
        interval = f"{100 * max(fall.drop_lower, 0.0):.0f} to {100 * fall.drop_upper:.0f}"
    verb = "swings, and ended" if fall.shape == "swings" else "fell by"
    size = f"{fall.loss(fall.drop)} (95 % interval {interval})"
    if fall.shape == "swings":
        size += " below its best level"
    return f"{name_of(fall)} {verb} {size}: from {best_level(fall)} to {last_level(fall)}."


def how_it_fell(fall: Fall) -> str:
    """Since when, over how many steps, and what it was doing when the run stopped."""
    assert fall.onset is not None
    sentences = []
    if fall.kind == "early collapse":
        sentences.append("It collapsed at the very beginning, before any gain.")
    so_far = " so far" if fall.progress == "still falling" else ""
    sentences.append(
        f"The fall began between steps {fall.onset.lower} and {fall.onset.upper} and took "
        f"{_width(fall)}{so_far}{_doing(fall)}."
    )
    if fall.end_window == 1 and fall.onset.step >= fall.onset_step_T[-3:][0]:
        sentences.append(f"It rests on the last {_points(fall)}: evaluate again before acting.")
    if fall.kind == "two falls":
        sentences.append(f"It came in two falls, the second after step {fall.second_step}.")
    if fall.bottom < fall.base - 0.05:
        sentences.append(f"That is below the first {_points(fall)[:-1]} ({fall.level(fall.base)}).")
    return " ".join(sentences)


def _width(fall: Fall) -> str:
    """'70 steps (35 % of the run)', or the range of the plausible beginnings."""
    low, high = fall.width_interval
    shares = [round(100 * width / max(fall.run_steps, 1)) for width in (low, high)]
    if low == high:
        return f"{low} steps ({shares[0]} % of the run)"
    return f"{max(low, 1)} to {high} steps ({shares[0]} to {shares[1]} % of the run)"


def _doing(fall: Fall) -> str:
    if fall.progress == "still falling":
        return f"; it was still falling at the last {_points(fall)[:-1]} (step {fall.last_step})"
    if fall.progress == "settled":
        return "; it has settled since"
    if fall.progress == "coming back":
        return (
            f"; it is coming back from its lowest level, {fall.level(fall.low)} around step "
            f"{fall.low_step}"
        )
    return "; whether it goes on cannot be told yet"


def elsewhere(fall: Fall) -> str:
    """Whether such swings happened elsewhere in the run: what qualifies a fall as an event."""
    like = [s for s in fall.swings if s.size >= SIMILAR * fall.drop]
    largest = max((swing.size for swing in fall.swings), default=0.0)
    if like:
        return (
            f"Swings like it happened elsewhere in the run: {len(like)}, the largest of "
            f"{fall.loss(largest)}, which came back."
        )
    words = f"Elsewhere it strays from its trend by about {fall.loss(fall.wander)}"
    if fall.swings:
        words += f", and swung by {fall.loss(largest)} at most"
    return f"{words}: nothing like this fall."


def swung(fall: Fall) -> str:
    """What came back in a run that did not fall; '' where nothing did."""
    if not fall.swings:
        return ""
    steps = fall.swing_step_T
    if len(fall.swings) == 1:
        swing = fall.swings[0]
        return (
            f"It lost {fall.loss(swing.size)} around step {int(steps[swing.low])} and "
            f"{'regained them' if swing.regained >= 0.8 * swing.size else 'regained most of it'}."
        )
    largest = max(fall.swings, key=lambda swing: swing.size)
    return (
        f"It swings: {len(fall.swings)} losses came back, the largest of "
        f"{fall.loss(largest.size)} around step {int(steps[largest.low])}."
    )


def evidence(fall: Fall) -> list[str]:
    """The test, the noise that it allows for, and how the run moves elsewhere."""
    return [
        f"p = {fall.p_value:.3f} that a run which only rises ends this far below its best level",
        elsewhere(fall),
        noise_of(fall),
    ]


def noise_of(fall: Fall) -> str:
    """What one evaluation is taken to vary by, and where that comes from."""
    size = fall.loss(fall.sigma)
    found = f"losses of {fall.loss(fall.detectable_drop)} or more are found in 4 of 5 such runs"
    if fall.is_assumed:
        return (
            f"noise assumed: {size} (standard deviation), from how much successive values differ, "
            f"since no number of answers is recorded; {found}"
        )
    return (
        f"one evaluation varies by {size} (standard deviation; {fall.dispersion:.2f} times the "
        f"binomial variance); {found}"
    )


def no_fall(fall: Fall) -> str:
    """A run that did not fall, with what would have been found."""
    few = fall.num_evaluations < FEW
    start = (
        f"{name_of(fall)} went from {fall.level(fall.base)} (step {fall.first_step}) to "
        f"{last_level(fall)}; its best level was {best_level(fall)}."
    )
    size = fall.loss(fall.detectable_drop)
    found = f"A loss of {size} or more would have been found in 4 of 5 such runs."
    if few:
        return (
            f"Only {fall.num_evaluations} evaluations: no fall beyond noise, but little would be "
            f"seen. {start} {found}"
        )
    if fall.shape == "never learned":
        return (
            f"Nothing learned: {start} A gain of {fall.loss(fall.detectable_gain)} or more would "
            f"have been found in 4 of 5 such runs. No fall either."
        )
    parts = [f"No fall: {_small(start)}", swung(fall), found]
    return " ".join(part for part in parts if part)


def small_loss(fall: Fall) -> str:
    """A loss that is real and small."""
    beyond = "barely beyond noise" if fall.p_value > 0.01 else "beyond noise"
    interval = f"{fall.loss(max(fall.drop_lower, 0.0))} to {fall.loss(fall.drop_upper)}"
    return (
        f"{_size(fall)}, {beyond} (p = {fall.p_value:.3f}): {_small(name_of(fall))} ended "
        f"{fall.loss(fall.drop)} (95 % interval {interval}) below its best level, at "
        f"{last_level(fall)} after {best_level(fall)}; it began at {fall.level(fall.base)}. "
        f"{swung(fall)}"
    ).rstrip()


def _size(fall: Fall) -> str:
    """A loss is small, or its interval only reaches down to what is."""
    return "A loss that may be a small one" if may_be_large(fall) else "A small loss"


def may_be_large(fall: Fall) -> bool:
    """Does the interval of a small loss reach to what would be a fall without a doubt?"""
    return not fall.is_scaled and fall.drop_upper >= LARGE


def changed_set(fall: Fall) -> str:
    """Other problems from some moment on."""
    return (
        f"Not a fall that can be told: the evaluation set changed where {fall.outcome} seems to "
        f"fall, from {fall.level(fall.top)} to {fall.level(fall.bottom)}. Problems solved before "
        f"and after agree no better than chance."
    )


def last_low(fall: Fall) -> str:
    """Only the last evaluation is low."""
    return f"Cannot tell a fall from an outlier: {_small(_last_low(fall))}"


def _last_low(fall: Fall) -> str:
    return (
        f"Only the last {_points(fall)[:-1]} is low: {fall.level(fall.last)} at step "
        f"{fall.last_step}, after a best level of {best_level(fall)}; evaluate again before acting."
    )


def _small(sentence: str) -> str:
    return sentence[0].lower() + sentence[1:]


def _points(fall: Fall) -> str:
    """What one point of the series is."""
    return "evaluations" if fall.outcome == HELD_OUT else "points"


def _unit(fall: Fall) -> str:
    if fall.outcome == "training reward":
        return "reward" if math.isfinite(fall.drop) and not fall.is_scaled else "share of its range"
    return "share of held-out answers" if fall.outcome == HELD_OUT else "share"
