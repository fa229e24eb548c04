"""Decide whether a role's parallel agents repeat one another, and whether it walks a longer path.

Two things are called amplification. *Coherence*: agents on shared prompts push the same way, so N
of them are worth fewer independent ones. The naive ratio ||sum g||^2 / sum ||g||^2 is no evidence,
since agents on disjoint prompts already reach 2.3 of 3; the test is the cross-covariance centred
over prompts, the effect size DEFF = 1 + (N - 1) ICC. *Path*: under updates by samples, a role of N
agents takes N optimizer steps where a single agent takes one, which under Adam is a longer path
whatever the gradients say.

Legend: T steps, U updates, A agents.
"""

from __future__ import annotations

import math
from collections.abc import Container
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.special import stdtr, stdtrit

from analysis.detectors.shape import Context, Detector, Judged, Kind
from analysis.findings import Confidence, Finding, NotJudged, percent
from analysis.signals import aligned, divided, parallel_parts, part_of
from gradlab.arrays import Floats
from gradlab.records import PolicyMeta
from gradlab.store.run import Run


@dataclass(frozen=True)
class Components:
    """Row statistics of one role, one value per training step, in loss units squared."""

    total_T: Floats
    signal_T: Floats
    prompt_T: Floats
    episode_T: Floats
    crosscov_T: Floats


@dataclass(frozen=True)
class Coherence:
    """What the parallel agents of one role share, pooled over steps."""

    num_steps: int
    num_agents: int
    icc: float
    """Share of a row's variance that it has in common with another agent's on the prompt."""
    deff: float
    deff_lower: float
    deff_upper: float
    """95 % jackknife interval."""
    p_value: float
    """One-sided, of the centred cross-covariance."""
    signal_share: float
    """Share of a row's energy that is the common direction."""
    prompt_share: float
    episode_share: float


AMPLIFICATION = Kind(
    "amplification",
    "row statistics of a role with parallel agents, over at least 10 steps",
    (
        ("fewer updates", "parallel agents repeat one another: more rows are not more evidence"),
        ("fewer agents", "agents that share prompts are worth fewer independent ones"),
    ),
    describes=True,
    raises_alarm=False,
    family_share=0.2,
    term=(
        r"\bamplification",
        "Parallel agents of a role push the same way because they saw the same prompts: more rows, "
        "not more evidence.",
    ),
)
PATH = Kind(
    "path amplification",
    "optimizer steps of a role with parallel agents and of one without",
    (
        (
            "fewer updates",
            "{role} takes more optimizer steps than the others, which Adam turns into a longer "
            "path",
        ),
    ),
    describes=True,
    raises_alarm=False,
)


@dataclass(frozen=True)
class AmplificationTest(Detector):
    """Thresholds; size and power on planted runs in bench/results/detectors.md."""

    kinds: tuple[Kind, ...] = (AMPLIFICATION, PATH)
    alpha: float = 0.01
    """Largest p-value: with hundreds of steps the test is sharp, and 1 % costs no power."""
    min_deff: float = 1.1
    """N agents are worth N / DEFF: 10 % lost is the least worth a word. Significance alone comes
    with enough steps."""
    min_steps: int = 10
    """A t-test of fewer has no power at 1 %."""
    block: int = 5
    """Steps averaged before the t-test, since neighbouring steps are alike."""
    min_path_ratio: float = 1.5
    """Optimizer steps over those of a one-agent role: half as many again changes what Adam does."""

    def num_tested(self, run: Run) -> int:
        """Roles with parallel agents, in each policy that several of them train."""
        return len(parallel_parts(run))

    def thresholds(self) -> dict[str, float]:
        return {
            "amplification: alpha": self.alpha,
            "amplification: smallest DEFF": self.min_deff,
        }

    def judge(self, context: Context) -> Judged:
        """Findings on every role with parallel agents, and what could not be judged."""
        run = context.run
        findings: list[Finding] = []
        apart = divided(run)
        open_questions = _apart(run)
        for role, policy in parallel_parts(run):
            components = _components(run, role, policy.name)
            coherence = self.measure(components, len(part_of(role, policy)))
            if coherence is None:
                known = int(_known(components).sum())
                gap = run.row_statistics_gap
                reason = f"{known} steps with row statistics; the test needs {self.min_steps}"
                open_questions.append(
                    NotJudged(
                        f"amplification of {_named(role, policy, apart)}",
                        reason if gap is None else f"{reason}; {gap}",
                        "train with --row-statistics 1"
                        if gap
                        else "train longer, and tag rows with prompts and samples"
                        if known
                        else "tag rows with prompts and samples",
                    )
                )
            elif coherence.p_value < self.alpha and coherence.deff >= self.min_deff:
                findings.append(_coherence_finding(run, role, policy, coherence))
            path = None if role in apart else self._path_finding(run, role)
            if path:
                findings.append(path)
        return Judged(tuple(findings), tuple(open_questions))

    def measure(self, components: Components, num_agents: int) -> Coherence | None:
        """Test one role; None with too few steps.

        Every step is divided by its mean row energy first, so that no single step of exploding
        gradients decides for the whole run.
        """
        known = _known(components)
        if known.sum() < self.min_steps:
            return None
        total = components.total_T[known]
        signal = components.signal_T[known] / total
        prompt = components.prompt_T[known] / total
        episode = components.episode_T[known] / total
        episode = np.where(np.isfinite(episode), episode, 0.0)  # one sample per prompt: no episode
        shared = _blocks(prompt + episode, self.block)
        own = _blocks(1.0 - signal, self.block)
        cross = _blocks(components.crosscov_T[known] / total, self.block)
        spread = float(cross.std(ddof=1))
        statistic = float(cross.mean()) / (spread / math.sqrt(len(cross))) if spread > 0 else 0.0
        deff, half_width = _ratio(shared, own, num_agents)
        return Coherence(
            int(known.sum()),
            num_agents,
            (deff - 1.0) / (num_agents - 1),
            deff,
            deff - half_width,
            deff + half_width,
            float(stdtr(len(cross) - 1, -statistic)),
            float(signal.mean()),
            float(prompt.mean()),
            float(episode.mean()),
        )

    def _path_finding(self, run: Run, role: str) -> Finding | None:
        """Steps and path length per training step, relative to the roles with one agent."""
        single = [other for other in run.roles if len(run.agents(other)) == 1]
        if not single:
            return None
        steps_T = aligned(run.steps, run.ledger("optimizer_steps", role))
        others = [aligned(run.steps, run.ledger("optimizer_steps", other)) for other in single]
        steps, reference = _typical(steps_T), [_typical(other_T) for other_T in others]
        ratio = steps / float(np.mean(reference)) if np.mean(reference) > 0 else math.nan
        if not ratio >= self.min_path_ratio:
            return None
        own_path = _typical(path_length(run, role))
        other_path = float(np.mean([_typical(path_length(run, other)) for other in single]))
        evidence = [
            f"{steps:g} optimizer steps per training step against {np.mean(reference):g} of "
            f"{', '.join(single)}",
            "a confound to rule out before gradients are blamed: hold the steps fixed and compare",
        ]
        if math.isfinite(own_path) and other_path > 0:
            evidence.insert(1, f"path length per step {own_path / other_path:.1f} times theirs")
        return Finding(
            "path amplification",
            role,
            f"{role} takes {ratio:.1f} times as many optimizer steps as the one-agent roles.",
            ratio,
            "ratio of optimizer steps",
            "high",
            evidence=tuple(evidence),
            lower=ratio - 1.96 * _relative_error(steps_T) * ratio,
            upper=ratio + 1.96 * _relative_error(steps_T) * ratio,
        )


def path_length(run: Run, role: str) -> Floats:
    """[T] sum over the step's updates of the length of the role's part of the optimizer step."""
    policy = run.policy_of(role).name
    gram = run.gram(policy)
    mine = np.array([agent.role == role for agent in gram.agents])
    length_U = np.sqrt(
        np.maximum(run.update_gram(policy)[:, mine][:, :, mine].sum(axis=(1, 2)), 0.0)
    )
    if mine.all():  # alone in its policy: the whole step is the role's
        whole_U = np.asarray(run.update_metric("update_norm", policy).value_T, dtype=np.float64)
        length_U = np.where(np.isfinite(length_U), length_U, whole_U)
    path_T = np.full(len(run.steps), math.nan)
    known = np.isfinite(length_U) & np.isin(gram.step_U, run.steps)
    row = np.searchsorted(run.steps, gram.step_U[known])
    total_T = np.bincount(row, length_U[known], minlength=len(run.steps))
    has_row = np.bincount(row, minlength=len(run.steps)) > 0
    path_T[has_row] = total_T[has_row]
    return path_T


def _named(role: str, policy: PolicyMeta, apart: Container[str]) -> str:
    """The role, or those of its agents that train the policy where others train another."""
    return ", ".join(map(str, part_of(role, policy))) if role in apart else role


def _apart(run: Run) -> list[NotJudged]:
    """Of roles whose agents train several policies: agents that no other trains beside, and paths,
    of which each policy has its own."""
    open_questions = []
    for role, policies in divided(run).items():
        alone = [part_of(role, policy)[0] for policy in policies if len(part_of(role, policy)) == 1]
        if alone:
            open_questions.append(
                NotJudged(
                    f"amplification of {', '.join(map(str, alone))}",
                    "no other agent of the role trains the same policy: gradients of different "
                    "policies have no common angle",
                    f"give all agents of {role} one policy (--routing)",
                )
            )
        open_questions.append(
            NotJudged(
                f"path amplification of {role}",
                f"its optimizer steps are those of {len(policies)} policies together",
                f"give all agents of {role} one policy (--routing)",
            )
        )
    return open_questions


def _components(run: Run, role: str, policy: str) -> Components:
    def read(name: str) -> Floats:
        return aligned(run.steps, run.row_statistic(name, role, policy))

    return Components(
        read("total"), read("signal"), read("prompt"), read("episode"), read("crosscov")
    )


def _known(components: Components) -> NDArray[np.bool_]:
    known: NDArray[np.bool_] = (
        (components.total_T > 0)
        & np.isfinite(components.signal_T)
        & np.isfinite(components.prompt_T)
        & np.isfinite(components.crosscov_T)
    )
    return known


def _blocks(value_T: Floats, block: int) -> Floats:
    """Means of `block` neighbours, or the values themselves while that leaves under 8 blocks."""
    num_blocks = len(value_T) // block
    if num_blocks < 8:
        return value_T
    means: Floats = value_T[: num_blocks * block].reshape(num_blocks, block).mean(axis=1)
    return means


def _ratio(shared: Floats, own: Floats, num_agents: int) -> tuple[float, float]:
    """DEFF and half its 95 % interval, leaving out one block at a time."""

    def deff(numerator: Floats | float, denominator: Floats | float) -> Floats:
        return np.asarray(1.0 + (num_agents - 1) * numerator / np.maximum(denominator, 1e-12))

    whole = float(deff(float(shared.sum()), float(own.sum())))
    without = deff(shared.sum() - shared, own.sum() - own)
    num_blocks = len(shared)
    variance = (num_blocks - 1) / num_blocks * float(((without - without.mean()) ** 2).sum())
    return whole, float(stdtrit(num_blocks - 1, 0.975)) * math.sqrt(variance)


def _coherence_finding(run: Run, role: str, policy: PolicyMeta, coherence: Coherence) -> Finding:
    of_policy = f" of policy '{policy.name}'" if role in divided(run) else ""
    worth = coherence.num_agents / coherence.deff
    confidence: Confidence = "high" if coherence.deff_lower > 1.1 else "moderate"
    coherent = aligned(run.steps, run.row_statistic("coherence", role, policy.name))
    evidence = [
        f"centred cross-covariance between agents, p = {coherence.p_value:.2g} over "
        f"{coherence.num_steps} steps",
        f"DEFF {coherence.deff:.2f} (95 % interval {coherence.deff_lower:.2f} to "
        f"{coherence.deff_upper:.2f}), ICC {coherence.icc:.2f}",
        f"of a row's gradient energy, {percent(coherence.signal_share)} is the common direction, "
        f"{percent(coherence.prompt_share)} the shared prompt, "
        f"{percent(coherence.episode_share)} the shared episode",
    ]
    if np.isfinite(coherent).any():
        evidence.append(
            f"coherence {np.nanmedian(coherent):.2f} of {coherence.num_agents} "
            "(not evidence by itself: it grows with the batch)"
        )
    return Finding(
        "amplification",
        role,
        f"The {coherence.num_agents} {role} agents{of_policy} repeat one another on shared "
        f"prompts: they are worth {worth:.1f} independent ones.",
        coherence.deff,
        "DEFF",
        confidence,
        p_value=coherence.p_value,
        evidence=tuple(evidence),
        lower=coherence.deff_lower,
        upper=coherence.deff_upper,
    )


def _relative_error(value_T: Floats) -> float:
    """Standard error of the mean over the mean."""
    finite = value_T[np.isfinite(value_T)]
    if len(finite) < 2 or finite.mean() == 0:
        return 0.0
    return float(finite.std(ddof=1) / math.sqrt(len(finite)) / finite.mean())


def _typical(value_T: Floats) -> float:
    finite = value_T[np.isfinite(value_T)]
    return float(np.mean(finite)) if len(finite) else math.nan
