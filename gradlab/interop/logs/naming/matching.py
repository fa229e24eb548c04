"""Match the metrics of a logged run with fields of our records: by a map, else by their names.

Legend: T steps.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace

import numpy as np

from gradlab.arrays import Floats
from gradlab.interop.logs.history import History
from gradlab.interop.logs.naming.known_names import KL_IN_REWARD, SCORE, WITH_PENALTY
from gradlab.interop.logs.naming.names import Named, named, plain
from gradlab.interop.logs.naming.targets import SHARES, ColumnMap, Target, scale_hint
from gradlab.interop.logs.reading.evaluated import Counted, with_counts

NO_FIELD = "no field for it"


@dataclass(frozen=True)
class Matched:
    """What of a log can be kept."""

    roles: tuple[str, ...]
    routing: Mapping[str, str]
    """role -> policy."""
    fields: Mapping[Target, Floats]
    """[T] values on the steps of the history."""
    taken: Mapping[str, tuple[Target, ...]]
    refused: Mapping[str, str]
    """Metric -> why it was not taken."""
    samples: int = 1
    """Answers per held-out problem."""
    history: History | None = None
    """With what was worked out of its metrics."""
    notes: list[str] = field(default_factory=list)


def match(
    history: History,
    given: ColumnMap,
    *,
    roles: tuple[str, ...] = (),
    routing: str | Mapping[str, str] | None = None,
    accuracy: str | None = None,
) -> Matched:
    """Fields and their values. `routing`: 'shared', 'isolated', or role -> policy."""
    absent = [column for column in given.columns if column not in history.metrics]
    if absent:
        raise ValueError(
            f"the map names {', '.join(map(repr, absent))}, which the run did not log; it has "
            f"{', '.join(sorted(history.metrics)) or 'no metrics'}"
        )
    mapped = [target for targets in given.columns.values() for target in targets]
    said = tuple(
        role
        for target in mapped
        if target.kind not in ("UpdateMetrics",)
        for role in target.subject
    )
    routed = tuple(routing) if isinstance(routing, Mapping) else ()
    roles = tuple(dict.fromkeys((*roles, *routed, *said)))
    has_accuracy = Target("Evaluation", "accuracy") in mapped
    counted: Counted | None = None
    if not has_accuracy and accuracy is None:
        history, counted = with_counts(history, given.columns)
        accuracy = counted.accuracy if counted else None
    others = [metric for metric in history.metrics if metric not in given.columns]
    found = named(others, roles=roles, accuracy=accuracy)
    policy_of = _routing(routing, found.roles, found.is_isolated, mapped)
    found = named(others, roles=found.roles, policy_of=policy_of, accuracy=accuracy)
    found = _with_percentages(history, found)
    notes = list(found.notes)
    if counted is not None:
        found = replace(found, targets={**found.targets, **counted.targets})
        notes += counted.notes
    elif accuracy is None:
        found = _without_shaped_rewards(history, found, notes)
    taken = dict(given.columns)
    refused = dict(found.refused)
    for metric, targets in found.targets.items():
        free = tuple(target for target in targets if target not in mapped)
        if has_accuracy and targets[0].kind == "Evaluation":
            free = ()
        if free:
            taken[metric] = free
        else:
            refused[metric] = f"the map takes {targets[0]} from elsewhere"
    for metric in history.metrics:
        if metric not in taken and metric not in refused:
            refused[metric] = NO_FIELD
    _check_policies(mapped, policy_of)
    _check_evaluations(mapped, taken)
    _tell_penalty(history, taken, refused, notes)
    must = {*given.columns, *([accuracy] if accuracy is not None else ())}
    fields = _fields(history, given, found, taken, refused, must)
    return Matched(found.roles, policy_of, fields, taken, refused, found.samples, history, notes)


def _routing(
    given: str | Mapping[str, str] | None,
    roles: tuple[str, ...],
    is_isolated: bool,
    mapped: list[Target],
) -> dict[str, str]:
    if isinstance(given, Mapping):
        without = [role for role in roles if role not in given]
        if without:
            raise ValueError(
                f"routing says nothing about {', '.join(without)}; expected a policy for each of "
                f"{', '.join(roles)}, such as {roles[0]}=shared"
            )
        return {role: given[role] for role in roles}
    if given not in (None, "shared", "isolated"):
        raise ValueError(
            f"routing is '{given}', expected 'shared', 'isolated' or role=policy,role=policy"
        )
    measured = {target.subject for target in mapped if target.kind == "Gradient"}
    if given is None and len(measured) > 1 and not is_isolated:
        raise ValueError(
            "the map gives gradients of several roles and does not say whether these share "
            "weights; add --routing shared (one policy: norms become shares), --routing isolated "
            "(one policy each), or --routing role=policy,role=policy"
        )
    is_apart = given == "isolated" or (given is None and is_isolated)
    return {role: re.sub(r"[^\w.-]", "_", role) if is_apart else "shared" for role in roles}


def _check_policies(mapped: list[Target], routing: Mapping[str, str]) -> None:
    for target in mapped:
        if target.kind == "UpdateMetrics" and target.subject[0] not in routing.values():
            raise ValueError(
                f"the map has {target}, and no role is routed to a policy '{target.subject[0]}'; "
                f"the policies are {', '.join(dict.fromkeys(routing.values()))}"
            )
        if target.name == "cosine":
            first, second = target.subject
            if first == second or routing.get(first) != routing.get(second):
                raise ValueError(
                    f"the map has {target}: expected two roles of one policy; {first} trains "
                    f"'{routing.get(first)}', {second} trains '{routing.get(second)}'"
                )


def _check_evaluations(mapped: list[Target], taken: Mapping[str, tuple[Target, ...]]) -> None:
    """What belongs to an evaluation has no place without its accuracy."""
    accuracy = Target("Evaluation", "accuracy")
    if any(accuracy in targets for targets in taken.values()):
        return
    for target in mapped:
        if target.kind in ("Evaluation", "RoleEvaluation"):
            raise ValueError(
                f"the map has {target} and no column for Evaluation.accuracy, which every "
                f"evaluation has; add it, or leave {target} out"
            )


def _with_percentages(history: History, found: Named) -> Named:
    """Accuracies of 0 to 100 are percentages, and so are taken, which is told."""
    metric = found.held_out.metric
    if metric is None or not re.search(r"acc|pass|correct|success", metric, re.IGNORECASE):
        return found
    known = history.metrics[metric][np.isfinite(history.metrics[metric])]
    if not len(known) or known.min() < 0 or not 2 < np.median(known) <= known.max() <= 100:
        return found
    note = f"'{metric}' reaches {known.max():g}: taken for percentages, and divided by 100"
    return replace(found, notes=(*found.notes, note), scaled={**found.scaled, metric: (0.0, 0.01)})


def _without_shaped_rewards(history: History, found: Named, notes: list[str]) -> Named:
    """A mean of rewards is an accuracy where rewards are 0 or 1, and not where they are others."""
    metric = found.held_out.metric
    if metric is None or not found.held_out.is_reward:
        return found
    shaped = _shaped(history)
    if not shaped:
        notes.append(f"held-out accuracy is the reward '{metric}': right if rewards are 0 or 1")
        return found
    why = (
        f"a mean of rewards that are not 0 or 1 ({shaped}) is no accuracy; if it is one, say "
        f"--accuracy {metric}"
    )
    targets = {name: t for name, t in found.targets.items() if name != metric}
    return replace(found, targets=targets, refused={**found.refused, metric: why})


def _shaped(history: History) -> str:
    """What shows that the rewards of training are not 0 or 1; '' if nothing does."""
    for metric, value_T in history.metrics.items():
        name = plain(metric)
        is_extreme = name in ("critic/score/max", "critic/score/min", "reward/max", "reward/min")
        is_mean = name in (SCORE, "reward", "rollout/raw_reward", "scores", "reward/mean")
        for step, value in zip(history.step_T.tolist(), value_T.tolist(), strict=True):
            is_wrong = (is_extreme and value not in (0.0, 1.0)) or (is_mean and not 0 <= value <= 1)
            if is_wrong and math.isfinite(value):
                return f"{metric} is {value:g} at step {step}"
    return ""


def _tell_penalty(
    history: History,
    taken: dict[str, tuple[Target, ...]],
    refused: dict[str, str],
    notes: list[str],
) -> None:
    """Whether verl's reward has the KL penalty inside, and what was taken for the reward."""
    by_name = {metric.lower(): metric for metric in history.metrics}
    reward, score = by_name.get(WITH_PENALTY), by_name.get(SCORE)
    penalties = [metric for metric in taken if metric.endswith("/reward_kl_penalty")]
    notes += [
        f"the KL is '{penalty}', by the estimator that algorithm.kl_penalty names (verl's own "
        f"choice is the mean of log p - log q, which may be negative), and not k3"
        for penalty in penalties
    ]
    if reward is None or reward not in taken:
        return
    kept = Target("RunLedger", "penalized_reward") in taken[reward]
    if score is not None and kept:
        values = history.metrics[reward], history.metrics[score]
        both = np.isfinite(values[0]) & np.isfinite(values[1])
        if np.allclose(values[0][both], values[1][both], rtol=1e-3, atol=1e-3):
            del taken[reward]
            refused[reward] = f"the same as '{score}': there is no KL penalty in it"
            return
        notes.append(
            f"the reward is '{score}'; '{reward}' differs from it (by {_difference(*values):.3g} "
            f"on average): it has the KL penalty inside and is kept as penalized reward"
        )
    elif kept:
        notes.append(
            f"'{reward}' has the KL penalty inside ('{by_name[KL_IN_REWARD]}' is in the log): it "
            f"is kept as penalized reward; the reward itself, '{SCORE}', was not logged"
        )
    elif any(target.name == "reward_mean" for target in taken[reward]):
        notes.append(
            f"the reward is '{reward}', into which verl puts the KL penalty where "
            f"algorithm.use_kl_in_reward is on; '{SCORE}' would be without it"
        )


def _difference(reward_T: Floats, score_T: Floats) -> float:
    known = np.isfinite(reward_T) & np.isfinite(score_T)
    return float(np.mean(reward_T[known] - score_T[known]))


def _fields(
    history: History,
    given: ColumnMap,
    found: Named,
    taken: dict[str, tuple[Target, ...]],
    refused: dict[str, str],
    must: set[str],
) -> dict[Target, Floats]:
    """Values by field; a metric whose values cannot be the field's is refused, or an error if
    somebody asked for it. Several metrics of one field are its parallel agents: their mean."""
    columns: dict[Target, list[Floats]] = {}
    for metric, targets in list(taken.items()):
        plus, times = found.scaled.get(metric, (0.0, 1.0))
        if metric in given.columns:
            plus, times = given.plus.get(metric, 0.0), given.times.get(metric, 1.0)
        value_T = (history.metrics[metric] + plus) * times
        wrong = _wrong(history, value_T, targets, plus != 0 or times != 1)
        if wrong and metric in given.columns:
            raise ValueError(f"'{metric}' goes to {targets[0]}, but is {wrong}")
        if wrong and metric in must:
            raise ValueError(f"{metric} is {wrong}")
        if wrong:
            refused[metric] = f"is {wrong}"
            del taken[metric]
            continue
        for target in targets:
            columns.setdefault(target, []).append(value_T)
    return {target: _mean(values) for target, values in columns.items()}


def _wrong(history: History, value_T: Floats, targets: tuple[Target, ...], is_scaled: bool) -> str:
    """What no value of the field can be, where it is first, and what may help; '' if all can."""
    for target in targets:
        for step, value in zip(history.step_T.tolist(), value_T.tolist(), strict=True):
            if wrong := target.wrong(value):
                found, _, expected = wrong.partition(", ")
                hint = "" if is_scaled or target.name not in SHARES else scale_hint(value_T)
                return f"{found} at step {step}, {expected}{hint}"
    return ""


def _mean(values: list[Floats]) -> Floats:
    """[T] mean of what is known."""
    stacked = np.stack(values)
    known = np.isfinite(stacked)
    if len(values) == 1:
        return values[0]
    count = known.sum(axis=0)
    total = np.where(known, stacked, 0.0).sum(axis=0)
    mean: Floats = np.where(count > 0, total / np.maximum(count, 1), math.nan)
    return mean
