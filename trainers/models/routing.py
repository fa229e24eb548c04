"""Read which policy every agent trains: all one, one per role, one per agent, or a map."""

from __future__ import annotations

import re
from collections.abc import Sequence

from gradlab.records import Agent


def parse_routing(
    routing: str, agents: Sequence[Agent], frozen: Sequence[str] = ()
) -> dict[Agent, str]:
    """Resolve 'shared', 'isolated', 'agents' or 'role=policy,role[0]=policy,…' to policy names.

    In a map an agent's own entry goes before its role's; roles in `frozen` may be missing. Raises
    ValueError for an unknown role or agent, one without policy, or a malformed map.
    """
    if routing == "shared":
        return dict.fromkeys(agents, "shared")
    if routing == "isolated":
        return {agent: agent.role for agent in agents}
    num = {agent.role: sum(other.role == agent.role for other in agents) for agent in agents}
    if routing == "agents":
        alone = {a: a.role if num[a.role] == 1 else f"{a.role}-{a.number}" for a in agents}
        if len(set(alone.values())) < len(agents):
            raise ValueError(
                "--routing agents would give two agents one policy of "
                f"{', '.join(alone.values())}; rename a role of the workflow, or give a map"
            )
        return alone
    given = _read_map(routing, agents)
    found, missing = {}, []
    for agent in agents:
        policy = given.get(str(agent), given.get(agent.role))
        if policy is not None:
            found[agent] = policy
        elif agent.role not in frozen:
            missing.append(agent)
    if missing:
        bare = [role for role in num if all(a in missing for a in agents if a.role == role)]
        names = [*bare, *(str(agent) for agent in missing if agent.role not in bare)]
        raise ValueError(f"--routing gives no policy to {', '.join(names)}; {_expected(list(num))}")
    return found


def _read_map(routing: str, agents: Sequence[Agent]) -> dict[str, str]:
    """Role or agent, as text -> policy."""
    roles = list(dict.fromkeys(agent.role for agent in agents))
    known, given = {*roles, *map(str, agents)}, dict[str, str]()
    for part in routing.split(","):
        who, mark, policy = (text.strip() for text in part.partition("="))
        if not mark or not who or not policy:
            raise ValueError(f"--routing: cannot read '{part}'; {_expected(roles)}")
        if who not in known:
            role, _, number = who.partition("[")
            if role in roles and number:
                last = max(agent.number for agent in agents if agent.role == role)
                raise ValueError(
                    f"--routing names agent '{who}'; the workflow has {role}[0]"
                    + (f" to {role}[{last}]" if last else " alone")
                )
            raise ValueError(f"--routing names role '{who}'; the workflow has {', '.join(roles)}")
        if who in given:
            raise ValueError(f"--routing names role '{who}' twice; {_expected(roles)}")
        if not re.fullmatch(r"\w[\w-]*", policy) or not policy.strip("_-"):
            raise ValueError(
                f"--routing: policy name '{policy}' must be letters, digits, _ or -, and not begin "
                "with -"
            )
        given[who] = policy
    return given


def _expected(roles: Sequence[str]) -> str:
    return (
        "expected 'shared', 'isolated', 'agents' or a policy for each role, e.g. "
        f"--routing {','.join(f'{role}=policy{i}' for i, role in enumerate(roles))}"
    )
