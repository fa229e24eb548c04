"""Find the metric that holds the held-out accuracy, by the names that trainers give it."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

HELD_OUT = re.compile(r"^(?:eval|val|valid|validation|test|dev|held_?out)(?:[/_-]|$)", re.I)
"""Names of evaluations: nothing in training has them, and no role is called so."""
BENCHMARK = (
    r"\w*(?:aime|math|gsm|amc|olympiad|minerva|gpqa|mmlu|livecode|lcb|humaneval|mbpp|hmmt|"
    r"countdown|ifeval|bbh|codeforces|dapo|deepcoder|theorem|arc_)[\w.-]*"
)
PATTERNS = (
    (r"val/(?P<data>.+)/pass@1", False),
    (r"val/(?P<data>)pass@1", False),
    (r"val-core/(?P<data>.+)/acc/mean@(?P<samples>\d+)", False),
    (r"val-core/(?P<data>.+)/(?:reward|score)/mean@(?P<samples>\d+)", True),
    (r"val/test_score/(?P<data>.+)", True),
    (r"val/(?P<data>.+)/test_score", True),
    (r"validation/(?P<data>)(?:env_state_)?success_rate", False),
    (r"(?:val|validation)/(?P<data>)success_rate", False),
    (r"eval/(?P<data>)objective/verifiable_correct_rate", False),
    (
        r"(?:eval|val|valid|validation|test|dev)[/_](?:rewards/)?(?P<data>)"
        r"\w*(?:accuracy|correct)\w*(?:/mean)?",
        False,
    ),
    (r"(?:eval|val|valid|validation|test|dev)[/_](?P<data>(?:\w+[/_])?)acc", False),
    (r"(?:eval|val|valid|validation|test|dev)/(?P<data>.+)/(?:acc|accuracy|pass@1)", False),
    (r"(?:eval/)?eval_(?P<data>\w+)_pass1", True),
    (r"eval/(?P<data>\w+)_pass1", True),
    (r"eval/all/(?P<data>)pass_at_1", False),
    (r"val_correct/(?P<data>)all/mean", False),
    (r"val_correct/(?P<data>\w+)/mean", False),
    (r"eval/(?P<data>[\w.-]+)/avg@(?P<samples>\d+)", True),
    (r"eval/all/(?P<data>)avg_score", True),
    (r"eval/(?P<data>[\w.-]+)/avg_score", True),
    (r"eval-rollout/(?P<data>)(?:task_)?reward(?:/avg)?", True),
    (rf"eval/(?P<data>{BENCHMARK})", True),
)
"""As rLLM, verl, PettingLLMs, open-instruct, TRL, NeMo-RL, OpenRLHF, SkyRL, ROLL, prime-rl, AReaL
and slime name it, the surest first; True: it is a mean of rewards, and an accuracy only where those
are 0 or 1."""
COMPILED = tuple((re.compile(rf"^{text}$", re.IGNORECASE), flag) for text, flag in PATTERNS)
OTHERWISE = re.compile(
    r"token|format|count|number|num_|length|len_|incorrect|loss|truncated|(?:^|[/_])std", re.I
)
"""Of these an evaluation logs accuracies and shares that are not those of answers."""


@dataclass(frozen=True)
class HeldOut:
    """The held-out accuracy of a run."""

    metric: str | None
    samples: int = 1
    """Answers per problem, where the name says so."""
    others: frozenset[str] = frozenset()
    """Further metrics that could be it."""
    is_reward: bool = False
    """It is a mean of rewards."""


def is_held_out(metric: str) -> bool:
    return bool(HELD_OUT.match(metric)) or metric.lower().startswith(("val-core/", "val-aux/"))


def held_out(metrics: Sequence[str], accuracy: str | None) -> HeldOut:
    """The metric with the held-out accuracy; `accuracy` is the one that somebody named."""
    if accuracy is not None and accuracy not in metrics:
        raise ValueError(
            f"no metric '{accuracy}' to take as held-out accuracy; the run logged "
            f"{', '.join(sorted(metrics))}"
        )
    matches = [
        (metric, pattern, is_reward)
        for pattern, is_reward in COMPILED
        for metric in metrics
        if pattern.match(metric) and not OTHERWISE.search(metric)
    ]
    candidates = frozenset(metric for metric, _, _ in matches)
    if accuracy is not None:
        matches = [one for one in matches if one[0] == accuracy]
    if not matches:
        return HeldOut(accuracy, 1, candidates - {accuracy or ""})
    first = matches[0][1]
    found = [one for one in matches if one[1] is first]
    if len(found) > 1:
        raise ValueError(
            f"{len(found)} metrics could be the held-out accuracy: "
            f"{', '.join(sorted(metric for metric, _, _ in found))}; choose one with "
            f"--accuracy NAME"
        )
    metric, pattern, is_reward = found[0]
    match = pattern.match(metric)
    samples = int((match.groupdict() if match else {}).get("samples") or 1)
    return HeldOut(metric, samples, candidates - {metric}, is_reward)
