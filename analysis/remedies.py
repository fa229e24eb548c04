"""Map each kind of finding to what to change and the `gradlab train` option that changes it.

The one place where the analysis names options: correct them here.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

from analysis.findings import Finding, Remedy, SignalVerdict

BY_FINDING: dict[str, tuple[Remedy, ...]] = {
    "cliff": (
        Remedy(
            "Go back to checkpoints/{checkpoint}",
            "the newest one from before the fall at step {step}",
            "copy the run without its later checkpoints, then gradlab train --resume --out <copy>",
        ),
        Remedy(
            "Halve the learning rate",
            "the cheapest test of whether the steps were too long: does the fall move or vanish?",
            "--learning-rate {half_rate}",
        ),
    ),
    "slow decay": (
        Remedy(
            "Stop at the peak, or lower the learning rate",
            "accuracy decays steadily from step {step}: more training of this kind costs accuracy",
            "--learning-rate {half_rate}",
        ),
    ),
    "unresolved drop": (
        Remedy(
            "Evaluate on more problems, or more often",
            "the drop is there, its shape is not resolved",
            "--eval-problems <more> --eval-every <fewer steps>",
        ),
    ),
    "capture": (
        Remedy(
            "Cap {role}'s share of the step mass",
            "takes away the capture and as little else as possible",
            "--max-share {role} {share}",
        ),
        Remedy(
            "Anchor {role} to the reference policy",
            "its gradient owns the shared weights; a KL term on this role alone slows it",
            "--kl-coefficient {role} 0.05",
        ),
        Remedy(
            "Give each role its own adapter",
            "without a shared policy nothing can be captured",
            "--routing isolated",
        ),
    ),
    "dominance": (),
    "role breakdown": (
        Remedy(
            "Anchor {role} to the reference policy",
            "a KL term on this role alone keeps the format that it lost",
            "--kl-coefficient {role} 0.05",
        ),
        Remedy(
            "Pay {role} for its own work",
            "under a broadcast outcome a fallback earns the reward that its format no longer does",
            "--reward mix",
        ),
        Remedy(
            "Halve the learning rate",
            "formats break under long steps",
            "--learning-rate {half_rate}",
        ),
    ),
    "amplification": (
        Remedy(
            "Hold {role}'s updates fixed",
            "its parallel agents repeat one another on shared prompts: more rows are not more "
            "evidence",
            "--updates fixed",
        ),
        Remedy(
            "Use fewer parallel agents, or let them see different prompts",
            "agents that share prompts are worth fewer independent ones",
            "--votes 2, or --workers 2",
        ),
    ),
    "path amplification": (
        Remedy(
            "Give every role the same number of optimizer steps",
            "{role} takes more steps than the others, which Adam turns into a longer path",
            "--updates fixed",
        ),
    ),
    "entropy collapse": (
        Remedy(
            "Keep {role}'s entropy up",
            "samples that hardly differ carry no advantage",
            "--entropy-coefficient 0.001",
        ),
    ),
    "length blow-up": (
        Remedy(
            "Bound {role}'s responses",
            "longer text costs steps and runs into the token limit",
            "--kl-coefficient {role} 0.05",
        ),
    ),
    "KL drift": (
        Remedy(
            "Anchor {role} to the reference policy",
            "it has left the reference",
            "--kl-coefficient {role} 0.05",
        ),
    ),
    "advantage starvation": (
        Remedy(
            "Feed problems that still teach",
            "groups whose rewards are all equal have no gradient",
            "--samples <more>",
        ),
    ),
    "rollout gap": (
        Remedy(
            "Check the adapter sync between sampler and trainer",
            "rollouts no longer come from the weights that are trained",
            "compare logprob_gap right after a sync",
        ),
    ),
    "gradient spike": (
        Remedy(
            "Clip harder", "single updates are far longer than their neighbours", "--clip-norm 0.5"
        ),
    ),
    "still adapter": (
        Remedy(
            "Find out why nothing moves before training on",
            "updates change no parameter",
            "gradlab show, and the finding's evidence",
        ),
    ),
    "instrumentation": (
        Remedy(
            "Repair the measurement first",
            "figures of updates that the measurement does not explain are not to be trusted",
            "see the finding, and the probe's warnings in the training log",
        ),
    ),
    "no gradient": (
        Remedy(
            "Find out why the loss does not reach the trained parameters",
            "rewards differ and the gradient is exactly zero",
            "which parameters require gradients, and which ones the optimizer holds",
        ),
    ),
    "not finite": (
        Remedy(
            "Go back to before the first value that is not finite",
            "parameters that met one such update are lost",
            "a checkpoint from before step {step}, with a lower learning rate or harder clipping",
        ),
    ),
    "all cut": (
        Remedy(
            "Raise the token limit",
            "a response that is cut can hardly be right",
            "--max-response-tokens <more>",
        ),
    ),
    "no spread": (
        Remedy(
            "Train on problems that are solved sometimes",
            "groups that are all right or all wrong have no gradient",
            "--samples <more>, or easier or harder problems",
        ),
    ),
    "nothing learned": (
        Remedy(
            "Ask what the gradient does before training longer",
            "accuracy stood still while the run trained",
            "learning rate, reward spread and update length in gradlab show",
        ),
    ),
    "length collapse": (
        Remedy(
            "Look at what the reward pays for in short responses",
            "{role} found something that silence earns",
            "read the responses before and after step {step}",
        ),
    ),
    "reward hacking": (
        Remedy(
            "Read responses that earned the reward and check them by hand",
            "what is rewarded and what is measured have come apart",
            "the episodes around step {step}",
        ),
    ),
    "form change": (
        Remedy(
            "Anchor {role} to the reference policy",
            "a KL term on this role alone keeps the form of its responses",
            "--kl-coefficient {role} 0.05",
        ),
    ),
    "work moved": (
        Remedy(
            "Give each role its own adapter, or pay each for its own work",
            "one role does what another was there for",
            "--routing isolated",
        ),
    ),
    "changed evaluation set": (
        Remedy(
            "Evaluate the checkpoints of both sides on one set",
            "accuracies on different problems cannot be compared",
            "the same problems in the same order from the first step to the last",
        ),
    ),
}

BY_SIGNAL: dict[str, Remedy] = {
    "learning_rate": Remedy(
        "Lower the learning rate", "it rose before the drop", "--learning-rate {half_rate}"
    ),
    "logprob_gap": Remedy(
        "Check the adapter sync between sampler and trainer",
        "rollouts no longer come from the weights that are trained",
        "compare logprob_gap right after a sync",
    ),
    "grad_norm": Remedy(
        "Clip harder", "{role}'s gradient norm rose before the drop", "--clip-norm 0.5"
    ),
    "update_norm": Remedy(
        "Shorten the steps",
        "the optimizer's steps grew before the drop",
        "--learning-rate {half_rate}",
    ),
    "kl": Remedy(
        "Anchor {role} to the reference policy",
        "it left the reference before the drop",
        "--kl-coefficient {role} 0.05",
    ),
    "drift": Remedy(
        "Anchor {role} to the reference policy",
        "its output changed before the drop",
        "--kl-coefficient {role} 0.05",
    ),
    "entropy": Remedy(
        "Keep {role}'s entropy up",
        "it fell before the drop",
        "--entropy-coefficient 0.001",
    ),
    "ratio_std": Remedy(
        "Take fewer off-policy steps",
        "importance ratios spread before the drop",
        "--updates fixed",
    ),
    "length_mean": Remedy(
        "Bound {role}'s responses",
        "their length grew before the drop",
        "--kl-coefficient {role} 0.05",
    ),
    "truncated": Remedy(
        "Raise the token limit", "{role} was cut before the drop", "--max-response-tokens <more>"
    ),
    "parse_failures": Remedy(
        "Protect {role}'s format",
        "its responses stopped parsing before the drop",
        "--kl-coefficient {role} 0.05",
    ),
    "zero_variance_groups": Remedy(
        "Feed problems that still teach",
        "groups without reward spread rose before the drop",
        "--samples <more>",
    ),
}
"""For a signal that rose before the drop, or fell if it is one of `BAD_WHEN_LOWER`."""

BAD_WHEN_LOWER = frozenset({"entropy"})


def remedies_for(
    findings: tuple[Finding, ...],
    signals: tuple[SignalVerdict, ...],
    learning_rate: float = math.nan,
    checkpoint: str | None = None,
    shares: Mapping[str, str] | None = None,
) -> tuple[Remedy, ...]:
    """Remedies in the order of the findings, then of the candidates; one per option.

    `learning_rate` is the one in force when things went wrong, `checkpoint` the newest one from
    before; without it nothing is said about going back. `shares`: the share of every role of its
    policy's mass if all had the same, 0.5 if not given.
    """
    half = f"{learning_rate / 2:.2g}" if math.isfinite(learning_rate) else "<half of this run's>"
    chosen: dict[str, Remedy] = {}
    for finding in findings:
        step = str(finding.onset.step) if finding.onset else "the first one"
        words = {"role": finding.subject, "step": step, "half_rate": half}
        words["checkpoint"] = checkpoint or ""
        words["share"] = (shares or {}).get(finding.subject, "0.5")
        for remedy in BY_FINDING[finding.kind]:
            if "{checkpoint}" in remedy.title and checkpoint is None:
                continue
            filled = _filled(remedy, words)
            chosen.setdefault(filled.option, filled)
    for verdict in signals:
        kind = verdict.kind
        known = BY_SIGNAL.get(kind)
        is_worse = (verdict.after < verdict.before) == (kind in BAD_WHEN_LOWER)
        if verdict.is_candidate and known and is_worse:
            filled = _filled(known, {"role": verdict.subject, "half_rate": half})
            chosen.setdefault(filled.option, filled)
    return tuple(chosen.values())


def _filled(remedy: Remedy, words: dict[str, str]) -> Remedy:
    """The remedy with its {placeholders} replaced."""
    return Remedy(
        remedy.title.format(**words), remedy.reason.format(**words), remedy.option.format(**words)
    )
