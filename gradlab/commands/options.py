"""What each command takes: the fields are the options, their docstrings the help."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Literal

import tyro
from tyro.conf import Positional


@dataclass(frozen=True)
class DiagnoseOptions:
    """Say why a run fell off the cliff, or that it did not."""

    run: Positional[Path]
    """Run directory, or a .zarr store."""
    json: bool = False
    """Print the diagnosis as JSON instead of text."""
    page: Path | None = None
    """Where to write the HTML page; default: report.html in the run directory."""
    no_page: bool = False
    """Write no page."""
    until: int | None = None
    """Diagnose the run as it was after this training step."""
    confirm: bool = False
    """Train the steps around the fall again, six times: with three seeds as the run was, and with
    the same three with the first suspect taken away that one change can take away (half the
    learning rate where there is none). Then compare where accuracy ends, and diagnose again."""


@dataclass(frozen=True)
class FiguresOptions:
    """Draw the figures of one or many runs, as PDF and PNG with the numbers as CSV."""

    runs: Positional[tuple[Path, ...]]
    """Run directories or .zarr stores."""
    out: Path = Path("figures-out")
    """Directory to write."""


@dataclass(frozen=True)
class ShowOptions:
    """Print what every agent said in an episode, with rewards and advantages."""

    run: Positional[Path]
    """Run directory."""
    step: int
    """Training step, or evaluation step with --eval."""
    problem: str | None = None
    """Problem id; without it the step's problems are listed."""
    sample: int | None = None
    """Only this episode of the problem."""
    eval: bool = False
    """Show evaluation episodes instead of training episodes."""


@dataclass(frozen=True)
class AuditOptions:
    """Check that every agent's gradient is that of its own rows.

    Replays one update of every policy from the last checkpoint, then once more per agent with all
    other rows at weight zero, and compares. Status 0 if all are right, 1 if not. Takes about as
    long as a training step with one backward per agent; the run is not changed.
    """

    run: Positional[Path]
    """Run directory with a checkpoint."""


@dataclass(frozen=True)
class ReplayOptions:
    """Repeat a run from a checkpoint with one thing changed, beside controls without it.

    Says whether the change gives back what was lost: confirmed, refuted, or cannot tell. A replay
    that was stopped goes on with the same command.
    """

    run: Positional[Path]
    """Run directory with checkpoints that have optimizer states."""
    changes: Annotated[tuple[str, ...], tyro.conf.arg(name="with"), tyro.conf.UseAppendAction] = ()
    """What to change, as in kl-anchor:aggregator=0.05, lr:0.5, max-share:generator=0.5, equalize,
    damping:0.3, isolate; may be given several times. --with help lists all."""
    start: Annotated[str, tyro.conf.arg(name="from")] = "before-onset"
    """before-onset: the last checkpoint before accuracy fell; or a step."""
    steps: int = 0
    """Steps to train in every arm; 0: to the end of the run."""
    seeds: int = 3
    """Seeds per arm, the run's own first; 3 are needed for a verdict."""
    name: str = ""
    """Folder in RUN/replays; default: what is changed."""
    dry_run: bool = False
    """Print what would be trained, and how long it would take."""


@dataclass(frozen=True)
class PromptsOptions:
    """Print what every role is asked, exactly as the model sees it.

    The workflow is played on a sample problem with canned replies. No weights are loaded.
    """

    workflow: str = "voting"
    """The workflow whose roles are asked: voting, evaluator_optimizer, orchestrator_workers, solo,
    or one of your own as my_flows.py:debate."""
    workflow_options: dict[str, str] = field(default_factory=dict)
    """Keyword arguments of a workflow of your own, e.g. rounds 4."""
    kind: Literal["math", "code", "expression"] = "math"
    """The kind of the sample problem."""
    model: str = "tiny"
    """Whose chat template: an embedded model, smollm2-135m, a hub id or a local directory."""
    history: Literal["own", "shared"] = "own"
    """What evaluator and refiner see: self-contained chats, or the paper's shared one."""
    examples: bool = False
    """Whether a worked example is shown first, to chat models."""
    votes: int = 3
    """Parallel generators of voting."""
    rounds: int = 3
    """Rounds of evaluator_optimizer; the canned verdict is no."""
    workers: int = 3
    """Workers of orchestrator_workers."""


@dataclass(frozen=True)
class ImportOptions:
    """Turn the log of another trainer into a run that diagnose and figures read.

    Reads console logs of verl, rLLM, TRL and ms-swift, wandb exports (CSV of the page, JSON lines
    of scan_history(), wandb-history.jsonl), TRL's trainer_state.json, TensorBoard event files, and
    any CSV or JSON lines with --map. Several sources are segments or further columns of one run.
    Says what was taken, what was not, and what the run lacks for a diagnosis. See docs/interop.md.
    """

    sources: Positional[tuple[Path, ...]]
    """Files, or folders that hold them."""
    out: Path
    """Run directory to write."""
    kind: Literal["console", "csv", "jsonl", "trainer-state", "tensorboard"] | None = None
    """What the sources are; by default told from their names and contents."""
    map: Path | None = None
    """YAML or JSON file: which column is which field."""
    step: str | None = None
    """Column that holds the training step."""
    run: str | None = None
    """Which run of a table, an export or a folder that holds several; an error names them."""
    where: str | None = None
    """Rows of a table to take: column=value,column=value."""
    roles: str | None = None
    """Names of the roles, comma-separated, where the metrics do not say."""
    routing: str | None = None
    """'shared', 'isolated', or role=policy,role=policy."""
    accuracy: str | None = None
    """Metric that holds the held-out accuracy."""
    eval_size: str | None = None
    """Problems of one evaluation, or problems x samples such as 30x8: without it, accuracies have
    no intervals and a drop is not judged."""
    workflow: str | None = None
    """What to call the workflow in figures."""
    task: str | None = None
    """What to call the task."""
    model: str | None = None
    """What to call the model."""


@dataclass(frozen=True)
class DemoOptions:
    """Train three runs on the embedded model, diagnose them and draw the figures."""

    out: Path = Path("runs/demo")
    """Directory to write; runs that are already finished there are kept."""
