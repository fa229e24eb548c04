"""gradlab import: turn another trainer's log into a run, and say what was taken."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from tyro.conf import Positional

from gradlab.commands.parsing import parse


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


def import_log(arguments: Sequence[str]) -> int:
    """Turn another trainer's log into a run."""
    options = parse(ImportOptions, "import", arguments)
    from gradlab.interop.logs.importing import import_run
    from gradlab.interop.logs.summary import told

    for source in options.sources:
        if (count := options.sources.count(source)) > 1:
            raise ValueError(f"{source} is given {count} times; expected each source once")
    routing: str | dict[str, str] | None = options.routing
    if options.routing is not None and "=" in options.routing:
        routing = _pairs("--routing", options.routing)
    about = {key: getattr(options, key) for key in ("workflow", "task", "model")}
    imported = import_run(
        options.sources,
        options.out,
        kind=options.kind,
        column_map=options.map,
        step=options.step,
        run=options.run,
        where=_pairs("--where", options.where),
        roles=tuple(role.strip() for role in (options.roles or "").split(",") if role.strip()),
        routing=routing,
        accuracy=options.accuracy,
        eval_size=options.eval_size,
        about={key: value for key, value in about.items() if value is not None},
    )
    for line in told(imported):
        print(line)
    return 0


def _pairs(option: str, text: str | None) -> dict[str, str]:
    """'a=b,c=d' as a mapping."""
    pairs = [pair.partition("=") for pair in text.split(",")] if text else []
    if not all(equals and name.strip() for name, equals, _ in pairs):
        raise ValueError(f"{option} is '{text}'; expected name=value,name=value")
    return {name.strip(): value.strip() for name, _, value in pairs}
