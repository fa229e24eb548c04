"""Explain the terms of a page where they stand: a definition below every section that uses one."""

from __future__ import annotations

import re
from html import escape, unescape

from analysis.detectors.table import KINDS

TERMS: tuple[tuple[str, str, str], ...] = (
    (
        "best level",
        r"best level",
        "The highest mean of a few neighbouring evaluations; the highest single one is chance.",
    ),
    (
        "sampling interval",
        r"sampling interval",
        "Where accuracy would lie, in 95 of 100 cases, had other answers been drawn (Wilson's).",
    ),
    (
        "p",
        r"\bp [=<]",
        "The probability of at least this much if there were nothing to find: the smaller, the "
        "less it looks like chance.",
    ),
    (
        "wander",
        r"\bwander(s|ing|ed)?\b",
        "Slow ups and downs that a series makes by itself, without an event; a change has to stand "
        "out from them.",
    ),
    (
        "residual standard deviations",
        r"residual standard deviation",
        "The size of a change against the scatter of the series around its levels.",
    ),
    (
        "step mass",
        r"step mass",
        "A role's share of the sum of the roles' gradient norms in its policy: who pushes hardest.",
    ),
    (
        "pull",
        r"\bpull\b",
        "The part of a policy's gradient that lies along a role's own: who it ends up following.",
    ),
    (
        "share of the optimizer step",
        r"share of the optimizer step",
        "The part of the step that the optimizer took, momentum included, that came from a role.",
    ),
    (
        "share of the loss",
        r"share(s)? of the loss",
        "A role's weight among the tokens that are trained: what its step mass would be if all "
        "gradients were alike.",
    ),
    *((name, *kind.term) for name, kind in KINDS.items() if kind.term),
    (
        "DEFF",
        r"\bDEFF\b",
        "Design effect, 1 + (N - 1) ICC: N parallel agents are worth N / DEFF independent ones.",
    ),
    (
        "ICC",
        r"\bICC\b",
        "Intraclass correlation: how alike the gradients of agents are that saw one prompt; 0 is "
        "not at all.",
    ),
    (
        "coherence",
        r"\bcoherence\b",
        "How far gradients add up instead of cancelling: squared norm of the sum over the sum of "
        "squared norms.",
    ),
    (
        "KL",
        r"\bKL\b",
        "Kullback-Leibler divergence per token: how far the policy is from its reference model.",
    ),
    ("nats", r"\bnats\b", "Units of the natural logarithm; 1 nat is 1.44 bits."),
    (
        "entropy",
        r"\bentropy\b",
        "How open the choice of the next token is, in nats; near 0 the model says the same always.",
    ),
    (
        "output drift",
        r"output drift|drifts? towards|Jensen-Shannon",
        "How far the words of a role are from those of its first steps (Jensen-Shannon divergence "
        "of what is counted in them).",
    ),
    (
        "log-prob gap",
        r"log-prob gap|logprob_gap",
        "How differently sampler and trainer rate the same token; above rounding, they hold "
        "different weights.",
    ),
    (
        "importance ratio",
        r"importance ratio",
        "How much likelier the policy makes a token now than when it was sampled.",
    ),
    (
        "clip fraction",
        r"clip fraction",
        "The share of tokens whose importance ratio reached the bound of the loss.",
    ),
    (
        "groups without signal",
        r"groups? without (signal|reward spread)|starvation",
        "Answers to one problem that all got the same reward: nothing to learn from.",
    ),
)
"""Term, pattern of its uses, and what it means."""


def glossary(html: str) -> str:
    """Definitions of the terms that the text of some HTML uses; '' if it uses none."""
    text = unescape(re.sub(r"<[^>]*>", " ", re.sub(r"<style.*?</style>", " ", html, flags=re.S)))
    used = [
        f"<span><dfn>{escape(term)}</dfn> {escape(meaning)}</span>"
        for term, pattern, meaning in TERMS
        if re.search(pattern, text)
    ]
    return f'<p class="terms">{" ".join(used)}</p>' if used else ""
