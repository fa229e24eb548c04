"""Lead the metric names of a run to the fields that mean the same, and say why others have none.

One value for all roles is nobody's own: it goes to a role only if there is one. Names are compared
without regard to case.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from gradlab.interop.logs.naming.aspect import aspect_of, aspect_roles
from gradlab.interop.logs.naming.heldout import BENCHMARK, HeldOut, held_out, is_held_out
from gradlab.interop.logs.naming.known_names import (
    KL_IN_REWARD,
    ONE_POLICY,
    ONE_ROLE,
    POLICY,
    ROLE,
    ROLE_WORD,
    RUN,
    SCALED,
    SCORE,
    WITH_PENALTY,
    refusal,
)
from gradlab.interop.logs.naming.targets import Target

SOLE = "agent"
"""Name of the one role of a run that tells no roles apart."""

ACTOR = re.compile(r"^actor/(?:([^/]+)/)?([^/]+)$", re.IGNORECASE)
ROLE_ACCURACY = re.compile(r"^(?:batch/)?([A-Za-z]\w*?)_acc$", re.IGNORECASE)
NO_ROLE = re.compile(
    rf"^(?:(?:mean_)?token|train|training|batch|mean|avg|average|overall|total|best|final|top\d*|"
    rf"format|answer|reward|{BENCHMARK})$",
    re.IGNORECASE,
)
"""What stands before '_acc' and is no role."""
PARALLEL = re.compile(r"^(.*?\D)_?(\d+)$")
TRAINING_ACCURACY = re.compile(r"^rewards/\w*(?:accuracy|correct)\w*(?:/mean)?$", re.IGNORECASE)
SUCCESS = re.compile(r"^validation/agent_(.+)/success_rate$", re.IGNORECASE)
"""PettingLLMs: an agent's own rate in an evaluation."""
ALL_ROLES = "one value for all roles"


@dataclass(frozen=True)
class Named:
    """What the metric names of a run say."""

    roles: tuple[str, ...]
    is_isolated: bool
    """Roles log gradients of their own: each has a policy to itself."""
    targets: Mapping[str, tuple[Target, ...]]
    refused: Mapping[str, str]
    """Metric -> why it was not taken."""
    samples: int = 1
    """Answers per held-out problem, where the name of the accuracy says so."""
    notes: tuple[str, ...] = ()
    average: Mapping[str, str] = field(default_factory=dict)
    """Metrics of parallel agents -> the role that their mean belongs to."""
    scaled: Mapping[str, tuple[float, float]] = field(default_factory=dict)
    """Metric -> what is added to it, and by what the sum is multiplied."""
    held_out: HeldOut = field(default_factory=lambda: HeldOut(None))


def named(
    metrics: Iterable[str],
    *,
    roles: tuple[str, ...] = (),
    policy_of: Mapping[str, str] | None = None,
    accuracy: str | None = None,
) -> Named:
    """Match the metrics of a run with the fields of the records.

    `roles` and `policy_of` overrule what the names say; `accuracy` is the metric to take as
    held-out accuracy.
    """
    metrics = list(metrics)
    trained = _roles_trained(metrics, roles)
    diagnosed, is_apart = aspect_roles(metrics)
    graded, average, notes = _roles_graded(metrics, (*roles, *trained))
    mentioned = tuple(
        role for metric in metrics if (role := split(metric, (*roles, *_players(metrics)))[0])
    )
    found = tuple(dict.fromkeys((*roles, *trained, *diagnosed, *graded, *mentioned))) or (SOLE,)
    is_isolated = bool(trained) or is_apart
    routing = policy_of or {role: role if is_isolated else "shared" for role in found}
    evaluated = held_out(metrics, accuracy)
    lower = {metric.lower() for metric in metrics}
    targets: dict[str, tuple[Target, ...]] = {}
    refused: dict[str, str] = {}
    for metric in metrics:
        taken, why = _one(metric, found, routing, lower)
        graded_as = ROLE_ACCURACY.match(metric)
        own = average.get(metric) or (graded_as[1] if graded_as else None)
        if metric == evaluated.metric:
            taken, why = (Target("Evaluation", "accuracy"),), ""
        elif metric in evaluated.others:
            taken, why = (), f"held-out accuracy was taken from '{evaluated.metric}'"
            if evaluated.metric is None:
                why = "may be the held-out accuracy; choose it with --accuracy"
        elif own in found:
            taken, why = (Target("RoleLedger", "own_accuracy", (own,)),), ""
        if taken:
            targets[metric] = taken
        elif why:
            refused[metric] = why
    targets = _without_second_sources(targets, refused, average)
    return Named(
        found,
        is_isolated,
        targets,
        refused,
        evaluated.samples,
        notes,
        average,
        {metric: SCALED[plain(metric)] for metric in targets if plain(metric) in SCALED},
        evaluated,
    )


def plain(metric: str) -> str:
    """A name in lower case, without what wandb and OpenRLHF put before those of training."""
    return re.sub(r"^(?:train|ppo_actor|grpo_actor)/", "", metric.lower())


def split(metric: str, known: tuple[str, ...] = ()) -> tuple[str | None, str]:
    """Role and name of 'critic/<role>/score/mean', 'agent_0/kl', 'reward/<role>/mean'."""
    if is_held_out(metric) or metric.lower().startswith("grad_diag/"):
        return None, metric
    actor = ACTOR.match(metric)
    if actor:
        return None, metric
    pieces = metric.split("/")
    for i, piece in enumerate(pieces):
        rest = plain("/".join(pieces[:i] + pieces[i + 1 :]))
        is_name = rest in ONE_ROLE or rest in ONE_POLICY or rest == WITH_PENALTY
        is_name = is_name or bool(
            ACTOR.match(rest) and rest.partition("/")[2] in {**ROLE, **POLICY}
        )
        if is_name and (piece in known or ROLE_WORD.match(piece)) and rest != plain(metric):
            return piece, rest
    return None, metric


def _one(
    metric: str, roles: tuple[str, ...], routing: Mapping[str, str], lower: set[str]
) -> tuple[tuple[Target, ...], str]:
    """Fields of one metric, or why it has none; '' where there is simply no field for it."""
    policies = tuple(dict.fromkeys(routing.values()))
    name = plain(metric)
    taken = aspect_of(metric, roles, lower)
    if taken:
        return taken, ""
    if why := refusal(name) or refusal(metric.lower()):
        return (), why
    success = SUCCESS.match(metric)
    for player in (success[1], f"agent_{success[1]}") if success else ():
        if player in roles:
            return (Target("RoleEvaluation", "own_accuracy", (player,)),), ""
    actor = ACTOR.match(metric)
    if actor and actor[1] is not None:
        if actor[1] not in roles:
            return (), ""
        return _of_actor(actor[2].lower(), (actor[1],), (routing[actor[1]],), routing)
    if actor:
        return _of_actor(actor[2].lower(), roles, policies, routing)
    role, rest = split(metric, roles)
    if role is not None:
        return _of_role(rest, role, routing, lower) if role in roles else ((), "")
    if name == WITH_PENALTY:
        return _with_penalty(roles, lower)
    return _of_run(name, roles, policies)


def _of_run(
    name: str, roles: tuple[str, ...], policies: tuple[str, ...]
) -> tuple[tuple[Target, ...], str]:
    """Fields of a value over all rows."""
    is_alone = len(roles) == 1
    targets = []
    if name in RUN:
        targets.append(Target("RunLedger", RUN[name]))
    if TRAINING_ACCURACY.match(name):
        targets.append(Target("RunLedger", "accuracy"))
    if name in ONE_POLICY and len(policies) == 1:
        targets.append(Target("UpdateMetrics", ONE_POLICY[name], policies))
        if ONE_POLICY[name] == "grad_norm" and is_alone:
            targets.append(Target("Gradient", "norm", roles))
    if name in ONE_ROLE and is_alone:
        targets.append(Target("RoleLedger", ONE_ROLE[name], roles))
    if targets:
        return tuple(targets), ""
    return (), ALL_ROLES if name in ONE_ROLE or name in ONE_POLICY else ""


def _with_penalty(roles: tuple[str, ...], lower: set[str]) -> tuple[tuple[Target, ...], str]:
    """verl's reward is the score with a KL penalty inside, if any: kept apart beside a score."""
    if SCORE in lower or KL_IN_REWARD in lower:
        return (Target("RunLedger", "penalized_reward"),), ""
    targets = [Target("RunLedger", "reward_mean")]
    if len(roles) == 1:
        targets.append(Target("RoleLedger", "reward_mean", roles))
    return tuple(targets), ""


def _of_role(
    name: str, role: str, routing: Mapping[str, str], lower: set[str]
) -> tuple[tuple[Target, ...], str]:
    """Fields of a value that is a role's own: `name` is what is left without the role."""
    policy = routing[role]
    is_alone = list(routing.values()).count(policy) == 1
    actor = ACTOR.match(name)
    if actor:
        return _of_actor(actor[2], (role,), (policy,), routing)
    targets = []
    if name in ONE_POLICY:
        if is_alone or ONE_POLICY[name] == "learning_rate":  # a setting, the same for both
            targets.append(Target("UpdateMetrics", ONE_POLICY[name], (policy,)))
        if ONE_POLICY[name] == "grad_norm":
            targets.append(Target("Gradient", "norm", (role,)))
    if name in ONE_ROLE:
        targets.append(Target("RoleLedger", ONE_ROLE[name], (role,)))
    if name == WITH_PENALTY:
        beside = f"critic/{role.lower()}/score/mean"
        if beside in lower:
            return (), f"it may have the KL penalty inside; '{beside}' is the reward"
        targets.append(Target("RoleLedger", "reward_mean", (role,)))
    return tuple(targets), ""


def _of_actor(
    name: str, roles: tuple[str, ...], policies: tuple[str, ...], routing: Mapping[str, str]
) -> tuple[tuple[Target, ...], str]:
    """'actor/<name>' of these roles: a setting holds for each, a measurement over all for none."""
    targets: list[Target] = []
    if name == "lr":
        return tuple(Target("UpdateMetrics", "learning_rate", (one,)) for one in policies), ""
    if name == "grad_norm" and len(roles) == 1:
        targets.append(Target("Gradient", "norm", roles))
    has_policy_to_itself = len(policies) == 1 and all(
        role in roles for role, policy in routing.items() if policy == policies[0]
    )
    if name in POLICY and has_policy_to_itself:
        targets.append(Target("UpdateMetrics", POLICY[name], policies))
    if name in ROLE and len(roles) == 1:
        targets.append(Target("RoleLedger", ROLE[name], roles))
    if targets:
        return tuple(targets), ""
    return (), ALL_ROLES if name in ROLE or name in POLICY else ""


def _players(metrics: list[str]) -> tuple[str, ...]:
    """MARTI's agents, whatever they are called: each logs a loss and a rate as OpenRLHF does."""
    lower = {metric.lower() for metric in metrics}
    heads = [metric[: -len("/policy_loss")] for metric in metrics
             if metric.lower().endswith("/policy_loss")]  # fmt: skip
    return tuple(
        name
        for head in heads
        if f"{head}/actor_lr".lower() in lower
        and (name := head.rpartition("/")[2]).lower() not in ("train", "actor", "policy")
    )


def _roles_trained(metrics: list[str], roles: tuple[str, ...]) -> tuple[str, ...]:
    """Roles that log a gradient norm or a loss of their own."""
    names: dict[str, None] = {}
    for metric in metrics:
        actor = ACTOR.match(metric)
        if actor and actor[1] and actor[2].lower() in ("grad_norm", "pg_loss"):
            names[actor[1]] = None
        role, rest = split(metric, (*roles, *_players(metrics)))
        own = ONE_POLICY.get(rest) or POLICY.get(rest.removeprefix("actor/"))
        if role is not None and own in ("grad_norm", "loss"):
            names[role] = None
    return tuple(name for name in names if not roles or name in roles)


def _roles_graded(
    metrics: list[str], known: tuple[str, ...]
) -> tuple[tuple[str, ...], dict[str, str], tuple[str, ...]]:
    """Roles of '<role>_acc'; generator0, generator1, … are one role's agents."""
    by_name = {
        match[1]: metric
        for metric in metrics
        if (match := ROLE_ACCURACY.match(metric))
        and not is_held_out(match[1])
        and (match[1] in known or (ROLE_WORD.match(match[1]) and not NO_ROLE.match(match[1])))
    }
    stems: dict[str, list[str]] = {}
    for name in by_name:
        parallel = PARALLEL.match(name)
        if parallel and name not in known:
            stems.setdefault(parallel[1], []).append(name)
    average: dict[str, str] = {}
    notes = []
    for stem, names in stems.items():
        numbers = sorted(int(name.removeprefix(stem).lstrip("_")) for name in names)
        in_row = numbers in (list(range(len(names))), list(range(1, len(names) + 1)))
        if stem in known or (len(names) > 1 and in_row):
            average |= {by_name[name]: stem for name in names}
            notes.append(f"{', '.join(names)} are agents of role '{stem}': their mean was taken")
    names = [average.get(metric, name) for name, metric in by_name.items()]
    return tuple(dict.fromkeys(names)), average, tuple(notes)


def _without_second_sources(
    targets: dict[str, tuple[Target, ...]], refused: dict[str, str], average: Mapping[str, str]
) -> dict[str, tuple[Target, ...]]:
    """Every field from one metric: the first that was logged, but for the mean over agents."""
    source: dict[Target, str] = {}
    result: dict[str, tuple[Target, ...]] = {}
    for metric, wanted in targets.items():
        free = tuple(t for t in wanted if t not in source or metric in average)
        for target in free:
            source.setdefault(target, metric)
        if free:
            result[metric] = free
        else:
            refused[metric] = f"{wanted[0]} was taken from '{source[wanted[0]]}'"
    return result
