"""gradlab diagnose: text, JSON and page of a diagnosis."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from tyro.conf import Positional

from gradlab.commands.note import note
from gradlab.commands.parsing import parse
from gradlab.commands.replay import confirm
from gradlab.run_directory import page_path


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


def diagnose(arguments: Sequence[str]) -> int:
    """Say why a run fell, or that it did not."""
    options = parse(DiagnoseOptions, "diagnose", arguments)
    # Before numpy: its matrices are small here, and threads that wait cost ten times the work.
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
    from rich.console import Console

    from analysis.diagnosis import diagnose as run_diagnosis
    from analysis.report.page import write_page
    from analysis.report.terminal import print_text
    from gradlab.store.run import open_run

    if options.no_page and options.page is not None:
        raise ValueError(f"--no-page writes no page, and --page {options.page} is one; give one")
    if options.page is not None and options.page.is_dir():
        raise ValueError(f"--page {options.page} is a folder; expected the file to write")
    if options.page is not None and not options.page.parent.is_dir():
        raise ValueError(f"--page {options.page}: there is no folder {options.page.parent}")
    if options.until is not None and options.until < 0:
        raise ValueError(f"--until is {options.until}; expected a training step, 0 or more")
    if options.until is not None and options.confirm:
        raise ValueError("--until looks at a part of the run; expected it without --confirm")
    run = open_run(options.run, until=options.until)
    if options.until is not None:
        steps = open_run(options.run).steps
        last = int(steps[-1]) if len(steps) else 0
        if options.until >= last:
            note(f"--until {options.until}: the run ends at step {last}; all of it is looked at")
    diagnosis = run_diagnosis(run)
    refused: ValueError | None = None
    if options.confirm:
        try:
            confirm(options.run, run, diagnosis)
            diagnosis = run_diagnosis(run)
        except ValueError as error:  # the diagnosis was asked for, too
            refused = error
    if options.json:
        print(diagnosis.to_json())
    else:
        print_text(diagnosis, Console())
    if not options.no_page:
        page = options.page or page_path(options.run, options.until)
        write_page(diagnosis, run, page)
        print(f"page: {page}", file=sys.stderr)
    if refused is not None:
        raise ValueError(f"--confirm: {refused}")
    return 0
