"""List what a run does not hold, and how to have it next time."""

from __future__ import annotations

from analysis.cliff.accuracy import MIN_EVALUATIONS
from analysis.cliff.fall import Fall
from analysis.cliff.scan import FEW
from analysis.detect import Detectors
from analysis.explain.verdict import unfinished
from analysis.findings import HELD_OUT, NotJudged
from analysis.signals import Measured, divided
from gradlab.store.run import Run


def unjudged(
    run: Run,
    drop: Fall,
    signals: list[Measured],
    detectors: Detectors,
) -> list[NotJudged]:
    """What the run does not hold, and how to have it next time."""
    missing = _of_the_drop(run, drop)
    if unfinished(run):
        missing.append(
            NotJudged(
                "the end of the run",
                unfinished(run).rstrip("."),
                "diagnose again when it is done, or resume it (gradlab train --resume)"
                if run.until is None
                else "diagnose the whole run",
            )
        )
    if len(run.steps) < detectors.order.min_steps:
        missing.append(
            NotJudged(
                "what moved first",
                f"{len(run.steps)} steps recorded, {detectors.order.min_steps} needed",
                "train longer",
            )
        )
    missing += _of_divided_roles(run)
    absent: dict[str, list[str]] = {}
    for signal in signals:
        if not signal.is_present:
            absent.setdefault(signal.subject, []).append(signal.kind.title)
    for subject, titles in absent.items():
        missing.append(
            NotJudged(
                f"{subject}: {', '.join(titles)}",
                "recorded in fewer than half of the steps",
                "not needed for the verdict on accuracy",
            )
        )
    return missing


def _of_divided_roles(run: Run) -> list[NotJudged]:
    """What is told of pairs of roles elsewhere, and is not defined for one of several policies."""
    found = []
    for role, policies in divided(run).items():
        beside = dict.fromkeys(
            agent.role for policy in policies for agent in policy.agents if agent.role != role
        )
        if beside:
            found.append(
                NotJudged(
                    f"gradient cosines of {role} with {', '.join(beside)}",
                    f"its agents train {', '.join(policy.name for policy in policies)}, and "
                    "gradients of different policies have no common angle",
                    f"give all agents of {role} one policy (--routing); by agent, "
                    "Run.cosine(ROLE, Agent) reads them",
                )
            )
    return found


def _of_the_drop(run: Run, drop: Fall) -> list[NotJudged]:
    """Why nothing can be said on held-out accuracy, or less than could be."""
    is_imported = any(policy.mode == "imported" for policy in run.policies)
    if drop.outcome != HELD_OUT or drop.num_evaluations < MIN_EVALUATIONS:
        return [
            NotJudged(
                "held-out accuracy",
                "the run has no evaluations, or a single one",
                "import it again and name the metric with --accuracy"
                if is_imported
                else "train with held-out problems (--eval-every)",
            )
        ]
    if drop.is_assumed:
        return [
            NotJudged(
                "how noisy an evaluation is",
                f"{drop.num_evaluations} evaluations are rates without the number of answers "
                "behind them: it is inferred from how much they differ",
                "import the run again with --eval-size PROBLEMSxSAMPLES",
            )
        ]
    if drop.num_evaluations < FEW:
        return [
            NotJudged(
                "small losses",
                f"{drop.num_evaluations} evaluations recorded, {FEW} are a series",
                "train longer or evaluate more often",
            )
        ]
    return []
