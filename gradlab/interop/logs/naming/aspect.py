"""Read the gradient diagnostics of ASPECT by role: norms, shares of sequences, cosines of pairs.

`grad_diag/sp/role/R/grad_norm`, `grad_diag/sp/pair/A…B/cosine` of a shared policy (sp), and the
same under `ip` of isolated ones. They are sampled: two sequences of a group, every few updates.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

from gradlab.interop.logs.naming.targets import Target

OF_ROLE = re.compile(
    r"^grad_diag/(?P<sharing>sp|ip)/(?:role/)?(?P<role>[^/]+)/(?P<name>\w+)$", re.I
)
OF_PAIR = re.compile(r"^grad_diag/sp/pair/(?P<pair>.+)/(?P<name>\w+)$", re.I)
FIELDS = {"grad_norm": ("Gradient", "norm"), "sequence_share": ("RoleLedger", "loss_weight")}
"""The share of sequences is that of the loss where the loss weighs sequences alike."""


def aspect_roles(metrics: Iterable[str]) -> tuple[tuple[str, ...], bool]:
    """Roles with diagnostics of their own, and whether each has a policy to itself."""
    found = [match for metric in metrics if (match := OF_ROLE.match(metric))]
    named = [match for match in found if match["name"].lower() in FIELDS]
    is_apart = bool(named) and all(match["sharing"].lower() == "ip" for match in named)
    return tuple(dict.fromkeys(match["role"] for match in named)), is_apart


def aspect_of(metric: str, roles: tuple[str, ...]) -> tuple[Target, ...]:
    """The fields of one of its metrics; none for other names."""
    found = OF_ROLE.match(metric)
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
