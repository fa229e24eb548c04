"""gradlab show: print what every agent said."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from tyro.conf import Positional

from gradlab.commands.parsing import parse


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


def show(arguments: Sequence[str]) -> int:
    """Print what every agent said."""
    options = parse(ShowOptions, "show", arguments)
    from trainers.inspect.episodes import show_episodes

    show_episodes(
        options.run,
        options.step,
        problem=options.problem,
        sample=options.sample,
        is_evaluation=options.eval,
    )
    return 0
