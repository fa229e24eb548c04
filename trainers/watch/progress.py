"""Show a run's progress in the terminal: accuracy, gradient norms by role, time left."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import numpy as np
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
from rich.progress import Progress as Bar

from gradlab.records import EvalRecord, StepRecord
from trainers.config import TrainConfig
from trainers.policies import Policy


class Progress:
    """A progress bar on a terminal; one line per evaluation elsewhere."""

    def __init__(self, console: Console | None = None) -> None:
        self.console = console or Console()
        self.bar: Bar | None = None
        self.heldout = "…"

    @contextmanager
    def showing(self, config: TrainConfig, done: int) -> Iterator[None]:
        self.console.print(
            f"[bold]{config.out}[/bold]: {config.workflow}, {config.routing}, "
            f"{' + '.join(config.models)}, {config.task}, {config.steps} steps"
            + (f"; {config.frozen_words}" if config.freeze else "")
        )
        bar = Bar(
            TextColumn("step"),
            MofNCompleteColumn(),
            BarColumn(bar_width=20),
            TimeRemainingColumn(compact=True),
            TextColumn("{task.description}"),
            console=self.console,
            transient=True,
            disable=not self.console.is_terminal,
        )
        with bar:
            self.bar = bar
            bar.add_task("base model", total=config.steps, completed=done)
            yield

    def note(self, text: str) -> None:
        """Something to know about the run."""
        self.console.print(f"  {text}", soft_wrap=True, highlight=False)

    def trained(self, record: StepRecord, policies: Mapping[str, Policy]) -> None:
        norms = role_norms(policies)
        text = " ".join(f"|g {role}| {norm:.2g}" for role, norm in norms.items())
        if self.bar:
            self.bar.update(
                self.bar.task_ids[0],
                advance=1,
                description=f"held-out {self.heldout}  train {record.run.accuracy:.0%}  {text}",
            )

    def evaluated(self, record: EvalRecord) -> None:
        known = record.correct_PS[record.correct_PS != 255]
        self.heldout = f"{known.mean():.0%}" if known.size else "nothing measured"
        roles = ", ".join(
            f"{role} {evaluation.own_accuracy:.0%}"
            for role, evaluation in record.roles.items()
            if evaluation.own_accuracy == evaluation.own_accuracy
        )
        self.console.print(f"  step {record.step:4d}  held-out {self.heldout}  ({roles})")


def role_norms(policies: Mapping[str, Policy]) -> dict[str, float]:
    """Gradient norm of each role in its policy's last update, before clipping."""
    norms: dict[str, float] = {}
    for policy in policies.values():
        if policy.probe is None or policy.probe.last is None:
            continue
        gram_AA = policy.probe.last.gram_BAA.sum(0)
        members: dict[str, list[int]] = defaultdict(list)
        for index, agent in enumerate(policy.agents):
            members[agent.role].append(index)
        for role, indices in members.items():
            # A role's agents may train several policies.
            own2 = max(gram_AA[np.ix_(indices, indices)].sum(), 0.0)
            norms[role] = float(np.sqrt(norms.get(role, 0.0) ** 2 + own2))
    return norms
