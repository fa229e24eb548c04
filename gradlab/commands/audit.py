"""gradlab audit: check the gradients of agents against those of their own rows."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from tyro.conf import Positional

from gradlab.commands.parsing import parse


@dataclass(frozen=True)
class AuditOptions:
    """Check that every agent's gradient is that of its own rows.

    Replays one update of every policy from the last checkpoint, then once more per agent with all
    other rows at weight zero, and compares. Status 0 if all are right, 1 if not. Takes about as
    long as a training step with one backward per agent; the run is not changed.
    """

    run: Positional[Path]
    """Run directory with a checkpoint."""


def audit(arguments: Sequence[str]) -> int:
    """Check that every agent's gradient is that of its own rows."""
    options = parse(AuditOptions, "audit", arguments)
    from trainers.inspect.audit import audit_run

    step, audits = audit_run(options.run)
    print(
        f"{options.run}: one update from the checkpoint of step {step - 1}, on the problems of "
        f"step {step}"
    )
    for found in audits:
        print(f"\npolicy {found.policy}\n{found}")
    return 0 if all(found.is_right for found in audits) else 1
