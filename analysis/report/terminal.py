"""Tell a diagnosis on one screen of text, verdict first."""

from __future__ import annotations

from collections.abc import Iterable

from rich.console import Console
from rich.padding import Padding
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from analysis.findings import HELD_OUT, Diagnosis, Finding, SignalVerdict, level
from analysis.report.shared import at_step, color_of, from_to, lead_interval, moved

STATUS_STYLE = {
    "healthy": "green",
    "unfinished": "yellow",
    "cliff": "red",
    "fall": "red",
    "decay": "red",
    "swings": "yellow",
    "small loss": "yellow",
    "last evaluation low": "yellow",
    "never learned": "yellow",
    "role breakdown": "yellow",
    "not judged": "cyan",
}
MAX_OPEN = 1
"""Questions that could not be judged."""
MAX_SIGNALS = 5
"""Rows of the signal table in the terminal; the page has all."""
MAX_FINDINGS = 4
EVIDENCE = (3, 2, 0, 0)
"""Sentences of each finding: the screen is short, the page has all."""
WIDE = 100
"""Columns that the whole signal table needs."""


def print_text(diagnosis: Diagnosis, console: Console) -> None:
    """The diagnosis on one screen, verdict first."""
    style = STATUS_STYLE.get(diagnosis.status, "red")
    say = Text(diagnosis.verdict, style="bold")
    say.append(f"\nConfidence: {diagnosis.confidence}.", style="not bold dim")
    title = f"{diagnosis.name}: {status_in_words(diagnosis)}"
    console.print(Panel(say, title=title, title_align="left", border_style=style))
    console.print(Text(_accuracy_line(diagnosis), style="dim"))
    for number_of, finding in enumerate(diagnosis.findings[:MAX_FINDINGS]):
        subjects = [other.subject for other in diagnosis.findings]
        console.print(_finding_text(finding, subjects))
        for sentence in finding.evidence[: EVIDENCE[number_of]]:
            console.print(Padding(Text(f"· {sentence}", style="dim"), (0, 0, 0, 4)))
    if len(diagnosis.findings) > MAX_FINDINGS:
        more = len(diagnosis.findings) - MAX_FINDINGS
        console.print(Text(f"… and {more} more findings, see the page.", style="dim"))
    changed = moved(diagnosis)
    if changed:
        console.print(_signal_table(changed, is_narrow=console.width < WIDE))
    _print_causes(diagnosis, console)
    if diagnosis.remedies:
        console.print(Text("To try next", style="bold"))
        for remedy in diagnosis.remedies[:3]:
            console.print(Text(f"  {remedy.title}", style="bold"))
            is_command = remedy.option.startswith("gradlab ")  # to be pasted, however long
            option = Text(remedy.option, style="cyan")
            console.print(
                option if is_command else Padding(option, (0, 0, 0, 4)), soft_wrap=is_command
            )
    for question in diagnosis.not_judged[:MAX_OPEN]:
        console.print(Text(f"Not judged: {question.what} ({question.why}).", style="yellow"))
    if len(diagnosis.not_judged) > MAX_OPEN:
        console.print(
            Text(f"… and {len(diagnosis.not_judged) - MAX_OPEN} more, see the page.", "yellow")
        )


def status_in_words(diagnosis: Diagnosis) -> str:
    """The status, with what it is judged by where that is not held-out accuracy."""
    outcome = diagnosis.accuracy.outcome
    by = "" if outcome == HELD_OUT else f", by its {outcome}"
    return f"{diagnosis.status}{by}"


def _print_causes(diagnosis: Diagnosis, console: Console) -> None:
    """How far the evidence goes; each suspect with what confirms it or does not fit."""
    if not diagnosis.candidates:
        return
    never = f" Never excluded: {diagnosis.candidates[-1]}."
    console.print(Text("What explains it: ", style="bold") + Text(diagnosis.separation + never))
    for cause in diagnosis.causes[:3]:
        replayed = [sentence for sentence in cause.evidence if "replayed" in sentence]
        for sentence in (*replayed, *(f"against: {sentence}" for sentence in cause.against[:2])):
            console.print(Padding(Text(f"· {cause.name}, {sentence}", style="dim"), (0, 0, 0, 4)))


def _accuracy_line(diagnosis: Diagnosis) -> str:
    accuracy = diagnosis.accuracy
    if not accuracy.num_evaluations:
        return "No evaluations."
    held_out = accuracy.outcome == HELD_OUT
    size = f" of {accuracy.num_samples} answers" if accuracy.num_samples else ""
    size += " of unknown size" if held_out and not accuracy.num_samples else ""
    what = f"{accuracy.num_evaluations} {'evaluations' if held_out else 'points'}{size}"
    levels = [
        level(value, accuracy.outcome)
        for value in (accuracy.base, accuracy.peak, accuracy.terminal)
    ]
    return (
        f"{accuracy.outcome.capitalize()}: first {levels[0]}, best level {levels[1]} (mean of "
        f"{max(accuracy.window, 1)}, around step {accuracy.peak_step}), last level {levels[2]} "
        f"(mean of {max(accuracy.end_window, 1)}); {what}."
    )


def _finding_text(finding: Finding, among: Iterable[str]) -> Text:
    text = Text("• ", style=color_of(finding, among))
    text.append(finding.summary, style="bold")
    return text.append(f" [{finding.confidence} confidence]", style="not bold dim")


def _signal_table(changed: list[SignalVerdict], *, is_narrow: bool) -> Table:
    """One line per signal; a narrow one leaves out the interval of the lead."""
    table = Table(box=None, padding=(0, 1 if is_narrow else 2, 0, 0), header_style="dim")
    columns = ["signal that moved", "at step", "from → to"]
    if any(verdict.when for verdict in changed):
        columns += ["to the drop"] if is_narrow else ["to the drop", "lead in steps"]
    for column in columns:
        table.add_column(column, no_wrap=True)
    for verdict in changed[:MAX_SIGNALS]:
        cells: list[str | Text] = [
            Text(verdict.title, style="bold" if verdict.is_candidate else ""),
            at_step(verdict),
            from_to(verdict),
        ]
        if len(columns) > 3:
            cells.append(verdict.order if is_narrow or not verdict.when else verdict.when)
        if len(columns) > 4:
            cells.append(lead_interval(verdict))
        table.add_row(*cells)
    if len(changed) > MAX_SIGNALS:
        table.add_row(Text(f"… {len(changed) - MAX_SIGNALS} more", style="dim"))
    return table
