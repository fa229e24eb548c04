"""Turn an action into options of `gradlab train` with their values, and into a command to paste.

The one place where the analysis names options of gradlab: correct them here.
"""

from __future__ import annotations

import math
import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from analysis.explain.vocabulary import Action
from gradlab.run_directory import STORE, continuable, is_trained
from gradlab.store.run import Run

Options = dict[str, str]
"""Option -> its value, '' for one that takes none; empty: there is nothing to change."""
ANCHOR = 0.05
"""Coefficient of a KL anchor where there was none."""
BONUS = 0.001
"""Weight of an entropy bonus where there was none."""


def run_directory(run: Run) -> Path | None:
    """The directory of a run that `gradlab train` can begin again; None for any other store."""
    folder = run.path.parent
    return folder if run.path.name == STORE and is_trained(folder) else None


def options_for(run: Run, action: Action, roles: tuple[str, ...], rate: float) -> Options:
    """What to give to `gradlab train` for an action about these roles; empty if it changes nothing.

    `rate`: the learning rate in force when things went wrong.
    """
    config = run.meta.config
    role = roles[0] if roles else ""
    if action == "lower rate":
        now = rate if math.isfinite(rate) else _number(config, "learning_rate", math.nan)
        if not math.isfinite(now):
            return {}
        if given := _pairs(config, "policy_learning_rate"):
            base = _number(config, "learning_rate", now)
            halved = _told({policy: value / 2 for policy, value in given.items()})
            return {"--learning-rate": f"{base / 2:.2g}", "--policy-learning-rate": halved}
        return {"--learning-rate": f"{now / 2:.2g}"}
    if action == "anchor":
        roles = tuple(one for one in roles if one not in run.meta.frozen)
        given = _pairs(config, "kl_coefficient")
        for one in roles:
            given[one] = max(ANCHOR, 2 * given.get(one, 0.0))
        return {"--kl-coefficient": _told(given)} if roles else {}
    if action == "entropy":
        now = _number(config, "entropy_coefficient", 0.0)
        return {"--entropy-coefficient": f"{max(BONUS, 2 * now):g}"}
    if action == "clip":
        now = _number(config, "clip_norm", 1.0)
        return {"--clip-norm": f"{min(0.5, now / 2) if now > 0 else 0.5:g}"}
    if action == "raise limit":
        limit = _number(config, "max_response_tokens", 16)
        if given := _pairs(config, "role_max_response_tokens"):
            own = {role: 2 * given.get(role, limit)} if role else {}
            return {"--role-max-response-tokens": _told(given | own)}
        return {"--max-response-tokens": f"{2 * limit:.0f}"}
    if action == "more samples":
        return {"--samples": f"{2 * _number(config, 'samples', 8):.0f}"}
    if action == "evaluate more":
        every = max(1, int(_number(config, "eval_every", 5)) // 2)
        return {
            "--eval-problems": f"{2 * _number(config, 'eval_problems', 100):.0f}",
            "--eval-every": f"{every}",
        }
    return _of_roles(run, action, role)


def _of_roles(run: Run, action: Action, role: str) -> Options:
    """Options that are about several roles or agents; empty where there is but one."""
    config = run.meta.config
    if action == "fewer updates":
        own = {"--partial-minibatch": "own"} if config.get("partial_minibatch") == "full" else {}
        is_least = config.get("updates") == "fixed" and config.get("fixed_updates") == 1
        return {} if is_least else {"--updates": "fixed", "--fixed-updates": "1"} | own
    if action == "fewer agents":
        name = {"voting": "votes", "orchestrator_workers": "workers"}.get(run.meta.workflow)
        least = name is None or _number(config, name, 3) <= 2
        return {} if least else {f"--{name}": "2"}
    if role not in run.roles or role in run.meta.frozen or len(run.roles) == 1:
        return {}
    together = {agent.role for policy in run.policies_of(role) for agent in policy.agents}
    if action == "pay own work":
        return {} if config.get("reward", "outcome") != "outcome" else {"--reward": "mix"}
    if config.get("equalize") or config.get("probe") == "off":
        return {}  # which --max-share does not go with, nor a policy for each role
    if action == "cap share" and len(together) > 1:
        cap = min(1 / len(together), _pairs(config, "max_share").get(role, 1.0))
        return {"--max-share": _told(_pairs(config, "max_share") | {role: cap})}
    if action == "own adapter" and len(together) > 1:
        return {"--routing": "isolated"}
    return {}


def command(run: Run, folder: Path, start: int, options: Options) -> str:
    """`gradlab train --from …` that begins at the checkpoint of step `start`, or at 0 anew."""
    name = folder.name or folder.resolve().name
    beside = folder.parent if folder.name else folder.resolve().parent
    out = beside / f"{name}-from-{start}"
    number = 2
    while out.exists():
        out = beside / f"{name}-from-{start}-{number}"
        number += 1
    if options.get("--routing") == "isolated" and _pairs(run.meta.config, "max_share"):
        options = options | {"--max-share": ""}  # which a role alone cannot have
    parts = (
        f"gradlab train --from {shlex.quote(str(folder))} --at {start}",
        flags(options),
        f"--out {shlex.quote(str(out))}",
    )
    return " ".join(part for part in parts if part)


def shown_at(folder: Path, step: int) -> str:
    """`gradlab show …`, which lists the problems of a step and what each answer was paid; '' where
    no episodes of it are kept."""
    kept = (folder / "episodes" / f"step-{step:06d}.jsonl.gz").is_file()
    return f"gradlab show {shlex.quote(str(folder))} --step {step}" if kept else ""


def flags(options: Options) -> str:
    return " ".join(f"{name} {value}".strip() for name, value in options.items())


def checkpoint_before(folder: Path, *latest: int) -> int:
    """Step of the newest checkpoint that can be continued from, up to the first of these steps that
    has one; 0, the beginning, where none has."""
    steps = continuable(folder)
    for step in latest:
        early = [at for at in steps if at <= step]
        if early:
            return max(early)
    return 0


def _number(config: Mapping[str, Any], name: str, default: float) -> float:
    value = config.get(name)
    if isinstance(value, bool) or not isinstance(value, int | float):
        return default
    return float(value)


def _pairs(config: Mapping[str, Any], name: str) -> dict[str, float]:
    given = config.get(name)
    return dict(given) if isinstance(given, dict) else {}


def _told(pairs: Mapping[str, float]) -> str:
    return " ".join(f"{role} {value:.3g}" for role, value in pairs.items())
