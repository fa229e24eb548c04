"""Read the gradient diagnostics of ASPECT by role: norms, shares of sequences, cosines of pairs.

Of a shared policy (sp) `grad_diag/sp/role/R/…` and `grad_diag/sp/pair/A__B/cosine`, of isolated
ones `grad_diag/ip/R/…`. They are sampled: a few sequences of a group, every few updates.
`grad_norm` is of the mean over a role's own sequences; its part of the update is
`contribution_norm`, that times the share of its sequences, and of a whole policy `resultant_norm`.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

from gradlab.interop.logs.naming.targets import Target

OF_ROLE = re.compile(
    r"^grad_diag/(?:(?P<sharing>sp)/role|(?P<apart>ip))/(?P<role>[^/]+)/(?P<name>\w+)$", re.I
)
OF_PAIR = re.compile(r"^grad_diag/sp/pair/(?P<pair>.+)/(?P<name>\w+)$", re.I)
FIELDS = {
    "contribution_norm": ("Gradient", "norm"),
    "resultant_norm": ("Gradient", "norm"),
    "grad_norm": ("Gradient", "norm"),
    "sequence_share": ("RoleLedger", "loss_weight"),
}
"""The share of sequences is that of the loss where the loss weighs sequences alike."""


def aspect_roles(metrics: Iterable[str]) -> tuple[tuple[str, ...], bool]:
    """Roles with diagnostics of their own, and whether each has a policy to itself."""
    found = [match for metric in metrics if (match := OF_ROLE.match(metric))]
    named = [match for match in found if match["name"].lower() in FIELDS]
    is_apart = bool(named) and all(match["apart"] for match in named)
    return tuple(dict.fromkeys(match["role"] for match in named)), is_apart


def aspect_of(metric: str, roles: tuple[str, ...], lower: set[str]) -> tuple[Target, ...]:
    """The fields of one of its metrics; none for other names. `lower`: all names."""
    found = OF_ROLE.match(metric)
    beside = metric.lower().replace("/grad_norm", "/contribution_norm")
    if beside != metric.lower() and beside in lower:
        return ()
    if found and found["role"] in roles and found["name"].lower() in FIELDS:
        kind, name = FIELDS[found["name"].lower()]
        return (Target(kind, name, (found["role"],)),)  # type: ignore[arg-type]
    pair = OF_PAIR.match(metric)
    if not pair or not pair["name"].lower().startswith("cos"):
        return ()
    for one in roles:
        for other in roles:
            apart = pair["pair"].removeprefix(one).removesuffix(other)
            if one != other and pair["pair"] == one + apart + other and not apart.isalnum():
                return (Target("Gradient", "cosine", (one, other)),)
    return ()
