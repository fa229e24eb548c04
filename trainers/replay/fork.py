"""Begin a run where another one was: its checkpoint, with settings and policies changed.

Policies may be divided or joined. A role that gets a policy of its own starts with a copy of the
adapter it shared, so that the model answers as before. Joining has no such start: the mean of two
low-rank products is no low-rank product, and the mean of their factors is neither's model. So a
joined policy starts as one role's adapter, which has to be named, and the others start over from
there. Optimizer moments come with the adapter; the agents' parts of them only where a policy keeps
all its agents.
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from gradlab.records import Agent
from gradlab.run_directory import PROBLEMS, STATE, checkpoint_path
from trainers.config import TrainConfig
from trainers.policies import rate_state
from trainers.rundir.checkpoint import checked, seal
from trainers.rundir.directory import read_run_directory, versions, write_description
from trainers.rundir.own_parts import check_parts, copy_parts
from trainers.tasks.problem import Task
from trainers.tasks.problem_list import write_problem_list


def fork(
    source: Path, step: int, original: TrainConfig, config: TrainConfig, merge_from: str | None
) -> None:
    """Make `config.out` an arm of a replay, which continues `source` from its checkpoint of `step`.

    The directory gets its name when it is whole. Raises ValueError for policies that have no start.
    """
    origins = policy_origins(original, config, merge_from)
    about = read_run_directory(source)
    check_parts(source, about)
    target = config.out
    about |= {
        "run_id": f"{about['run_id']}-{target.parent.name}-{target.name}",
        "config": replace(config, resume=False).to_json(),
        "versions": versions(),
        "replay": {"of": about["run_id"], "step": step},
    }
    write_fork(source, step, original, config, origins, about)


def write_fork(
    source: Path,
    step: int,
    original: TrainConfig,
    config: TrainConfig,
    origins: Mapping[str, str],
    about: Mapping[str, Any],
    task: Task | None = None,
) -> None:
    """Write `config.out` with the checkpoint of another run, changed where the configuration is.

    `origins` as `policy_origins` gives it; `task`: whose problems are listed in the directory.
    """
    checked(checkpoint_path(source, step))  # what is sealed below would pass for whole
    target = config.out
    temporary = target.with_name(f".{target.name}.partial")
    shutil.rmtree(temporary, ignore_errors=True)
    directory = checkpoint_path(temporary, step)
    directory.mkdir(parents=True)
    for name, origin in origins.items():
        shutil.copytree(checkpoint_path(source, step) / origin, directory / name)
        state = torch.load(directory / name / STATE, map_location="cpu", weights_only=True)
        agents = [
            (agent.role, agent.number)
            for agent, policy in config.policy_by_agent().items()
            if policy == name
        ]
        with open(directory / name / STATE, "wb") as file:
            torch.save(changed_state(state, original, config, agents, (origin, name)), file)
    seal(directory, step, list(origins))
    if task is not None:
        write_problem_list(temporary / PROBLEMS, task)
    copy_parts(temporary, about.get("parts", {}))
    write_description(temporary, about)
    target.parent.mkdir(parents=True, exist_ok=True)
    temporary.rename(target)


def policy_origins(
    original: TrainConfig, config: TrainConfig, merge_from: str | None
) -> dict[str, str]:
    """New policy -> the old one it starts as a copy of.

    Raises ValueError for policies that would be joined, unless `merge_from` says whose adapter the
    joined one begins with.
    """
    old, new = original.policy_by_agent(), config.policy_by_agent()
    by_name = {str(agent): policy for agent, policy in old.items()}
    roles = dict.fromkeys(agent.role for agent in old)
    by_name |= {role: policy for role in roles if (policy := _only(old, role))}
    if merge_from is not None and merge_from not in by_name:
        raise ValueError(
            f"--with merge:{merge_from}: no such role; the run has {', '.join(by_name)}"
        )
    origins = {}
    for policy in config.policies:
        agents = [agent for agent, name in new.items() if name == policy]
        # An agent that the run did not have begins as the others of its role.
        starts = [by_name.get(str(agent), by_name.get(agent.role)) for agent in agents]
        found = list(dict.fromkeys(start for start in starts if start))
        if not found:
            raise ValueError(
                f"policy '{policy}' of {', '.join(dict.fromkeys(a.role for a in agents))} has no "
                "adapter in the run, where the role was frozen; train with that from the start"
            )
        names = {*(agent.role for agent in agents), *map(str, agents)}
        if len(found) > 1 and merge_from not in names:
            raise ValueError(
                f"policy '{policy}' would join {', '.join(found)}, which have no common start: "
                f"say whose adapter it begins with in a replay, gradlab replay RUN --with "
                f"merge:{agents[0].role if agents[0].role in by_name else agents[0]}, or train "
                "with that routing from the start"
            )
        origin = found[0] if len(found) == 1 else by_name[str(merge_from)]
        was = original.lora_rank_of(origin), original.lora_alpha_of(origin)
        becomes = config.lora_rank_of(policy), config.lora_alpha_of(policy)
        if was != becomes:
            raise ValueError(
                f"policy '{policy}' would begin as '{origin}', an adapter of rank and alpha {was}, "
                f"with {becomes}: it would not answer as before; give it the same with "
                "--policy-lora-rank and --policy-lora-alpha, or train from the start"
            )
        models = original.model_of_policy(origin), config.model_of_policy(policy)
        if models[0] != models[1]:
            raise ValueError(
                f"policy '{policy}' would begin as '{origin}', an adapter of {models[0]}, on "
                f"{models[1]}; give it the same with --policy-model, or train from the start"
            )
        origins[policy] = origin
    return origins


def _only(policy_by_agent: Mapping[Agent, str], role: str) -> str | None:
    """The policy of a role whose agents have the same; None where they have several."""
    found = {policy for agent, policy in policy_by_agent.items() if agent.role == role}
    return found.pop() if len(found) == 1 else None


def changed_state(
    state: dict[str, Any],
    original: TrainConfig,
    config: TrainConfig,
    agents: list[tuple[str, int]],
    names: tuple[str, str],
) -> dict[str, Any]:
    """A policy's trainer state under another configuration, its old and new names given."""
    state["schedule"] = _changed_rate(state["schedule"], original, config, names)
    for group in state["optimizer"]["param_groups"]:
        group["weight_decay"] = config.weight_decay_of(names[1])
    probe = state["probe"]
    if probe is not None and [tuple(agent) for agent in probe["agents"]] != agents:
        # What the new agents' parts of the moments would be, nobody measured.
        state["probe"] = {**probe, "agents": agents, "moment_AP": None, "decay_P": None}
    if probe is not None and names[0] != names[1]:
        slots = [(renamed(slot, *names), shape) for slot, shape in probe["slots"]]
        state["probe"] = {**state["probe"], "slots": slots}
    return state


def _changed_rate(
    schedule: Mapping[str, Any], original: TrainConfig, config: TrainConfig, names: tuple[str, str]
) -> dict[str, Any]:
    """The rate there is, which --alarm slow may have lowered, on the new configuration's scale.

    The place in a warm-up stays: the factor at it is the new configuration's.
    """
    base, ticks = rate_state(schedule)
    old, new = original.learning_rate_of(names[0]), config.learning_rate_of(names[1])
    # The new one itself, not its rounding.
    return {"base": new if base == old else new / old * base, "ticks": ticks}


def renamed(parameter: str, old: str, new: str) -> str:
    """Name of an adapter's parameter under another adapter name: the last part but one."""
    *path, adapter, last = parameter.split(".")
    return ".".join([*path, new if adapter == old else adapter, last])
