"""Tell a diagnosis to people: one screen of text, or one self-contained page with its plots."""

from __future__ import annotations

import json
import math
from html import escape
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.padding import Padding
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from analysis.findings import Diagnosis, Finding, SignalVerdict, percent
from analysis.signals import collect
from gradlab.palette import GREY, role_color
from gradlab.store import Run

STATUS_STYLE = {
    "healthy": "green",
    "unfinished": "yellow",
    "cliff": "red",
    "slow decay": "red",
    "unresolved drop": "yellow",
    "role breakdown": "yellow",
    "not judged": "cyan",
}
MAX_SIGNALS = 7
"""Rows of the signal table in the terminal; the page has all."""
WIDE = 100
"""Columns that the whole signal table needs."""
_NOTHING_MOVED = '<div class="card">No recorded signal clearly left its level.</div>'
PLOTTED = 3
"""Signals drawn beside the accuracy."""


def print_text(diagnosis: Diagnosis, console: Console) -> None:
    """The diagnosis on one screen, verdict first."""
    style = STATUS_STYLE[diagnosis.status]
    say = Text(diagnosis.verdict, style="bold")
    say.append(f"\nConfidence: {diagnosis.confidence}.", style="not bold dim")
    title = f"{diagnosis.name}: {diagnosis.status}"
    console.print(Panel(say, title=title, title_align="left", border_style=style))
    console.print(Text(_accuracy_line(diagnosis), style="dim"))
    for finding in diagnosis.findings:
        console.print(_finding_text(finding))
        for sentence in finding.evidence[:3]:
            console.print(Padding(Text(f"· {sentence}", style="dim"), (0, 0, 0, 4)))
    moved = _moved(diagnosis)
    if moved:
        console.print(_signal_table(moved, is_narrow=console.width < WIDE))
    if diagnosis.candidates:
        console.print(Text("Candidates: ", style="bold") + Text("; ".join(diagnosis.candidates)))
    if diagnosis.remedies:
        table = Table(box=None, show_header=False, padding=(0, 2, 0, 0))
        for remedy in diagnosis.remedies[:4]:
            table.add_row(Text(remedy.title, style="bold"), Text(remedy.option, style="cyan"))
        console.print(Text("To try next", style="bold"))
        console.print(Padding(table, (0, 0, 0, 2)))
    for question in diagnosis.not_judged[:3]:
        console.print(Text(f"Not judged: {question.what} ({question.why}).", style="yellow"))
    if len(diagnosis.not_judged) > 3:
        console.print(Text(f"… and {len(diagnosis.not_judged) - 3} more, see the page.", "yellow"))


def _moved(diagnosis: Diagnosis) -> list[SignalVerdict]:
    """Signals that changed, without accuracy in other words."""
    return [v for v in diagnosis.signals if v.onset and not v.is_outcome]


def _plotted(diagnosis: Diagnosis) -> list[SignalVerdict]:
    """The first signals that moved, one of each kind: two roles often move alike."""
    first: dict[str, SignalVerdict] = {}
    for signal in _moved(diagnosis):
        first.setdefault(signal.key.split(":")[0], signal)
    return list(first.values())[:PLOTTED]


def _accuracy_line(diagnosis: Diagnosis) -> str:
    accuracy = diagnosis.accuracy
    if not accuracy.num_evaluations:
        return "No evaluations."
    return (
        f"Accuracy: base {percent(accuracy.base)}, best level {percent(accuracy.peak)} around "
        f"step {accuracy.peak_step}, at the end {percent(accuracy.terminal)} "
        f"({accuracy.num_evaluations} evaluations of {accuracy.num_samples} answers)."
    )


def _finding_text(finding: Finding) -> Text:
    text = Text("• ", style=_color(finding))
    text.append(finding.summary, style="bold")
    return text.append(f" [{finding.confidence} confidence]", style="not bold dim")


def _color(finding: Finding) -> str:
    """The role's; red for a drop; grey for a policy."""
    if finding.kind in ("cliff", "slow decay", "unresolved drop"):
        return "#c2410c"
    return GREY if finding.kind == "instrumentation" else role_color(finding.subject)


def _signal_table(moved: list[SignalVerdict], *, is_narrow: bool) -> Table:
    """One line per signal; a narrow one leaves out the interval of the lead."""
    table = Table(box=None, padding=(0, 1 if is_narrow else 2, 0, 0), header_style="dim")
    columns = ["signal that moved", "at step", "from → to"]
    if any(math.isfinite(verdict.lead) for verdict in moved):
        columns += ["to the drop"] if is_narrow else ["to the drop", "steps before"]
    for column in columns:
        table.add_column(column, no_wrap=True)
    for verdict in moved[:MAX_SIGNALS]:
        cells: list[str | Text] = [
            Text(verdict.title, style="bold" if verdict.is_candidate else ""),
            f"{verdict.onset.step}" if verdict.onset else "",
            f"{_number(verdict.before)} → {_number(verdict.after)}",
        ]
        if math.isfinite(verdict.lead) and is_narrow:
            by = "" if verdict.order == "coincides" else f" by {abs(verdict.lead):.0f}"
            cells.append(verdict.order if verdict.order == "no evidence" else verdict.order + by)
        elif math.isfinite(verdict.lead):
            cells += [
                verdict.order,
                f"{verdict.lead:.0f} ({verdict.lead_lower:.0f} to {verdict.lead_upper:.0f})",
            ]
        table.add_row(*cells)
    if len(moved) > MAX_SIGNALS:
        table.add_row(Text(f"… {len(moved) - MAX_SIGNALS} more", style="dim"))
    return table


def write_page(diagnosis: Diagnosis, run: Run, path: Path | str) -> Path:
    """One HTML file with everything inside: no network, no scripts; usually under 500 kB."""
    from analysis import plots  # matplotlib: 0.4 s that only the page needs

    accuracy_plot = ""
    if diagnosis.accuracy.num_evaluations > 1:
        caption = (
            f"Held-out accuracy on {diagnosis.accuracy.num_problems} problems; band: 95 % "
            "sampling interval of each evaluation."
        )
        if diagnosis.of_kind("cliff", "slow decay", "unresolved drop"):
            caption += " Shaded: when the fall began."
        accuracy_plot = _figure(plots.accuracy_svg(diagnosis, run), caption)
    chosen = _plotted(diagnosis)
    moved_plot = ""
    if chosen:
        caption = "Dashed: when the signal left its level. " + (
            "Shaded: when accuracy began to fall."
            if diagnosis.of_kind("cliff", "slow decay", "unresolved drop")
            else "Accuracy did not fall, so nothing leads to a drop."
        )
        moved_plot = _figure(plots.moved_svg(diagnosis, run, collect(run), chosen), caption)
    roles_plot = ""
    if len(run.steps) > 1:
        caption = "Dashed horizontals: each role's share of the loss, the null of capture."
        has_shares = len(run.policies) < len(run.roles)
        roles_plot = _figure(plots.roles_svg(diagnosis, run), caption if has_shares else "")
    body = "\n".join(
        (
            _header(diagnosis, run),
            _tiles(diagnosis),
            accuracy_plot,
            _section("What moved", (moved_plot or _NOTHING_MOVED) + _candidate_list(diagnosis)),
            _section("The roles", roles_plot),
            _section("Findings", "".join(_finding_card(f) for f in diagnosis.findings)),
            _section("To try next", _remedy_table(diagnosis)),
            _section("Not judged", _open_questions(diagnosis)),
            _section("Every signal", _all_signals(diagnosis)),
            _details(diagnosis, run),
        )
    )
    style = Path(__file__).with_name("page.css").read_text(encoding="utf-8")
    page = (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{escape(diagnosis.name)}: {escape(diagnosis.status)}</title>"
        f"<style>{style}</style></head><body><main>\n{body}\n</main></body></html>\n"
    )
    path = Path(path)
    path.write_text(page, encoding="utf-8")
    return path


def _header(diagnosis: Diagnosis, run: Run) -> str:
    meta = run.meta
    steps = f"{len(run.steps)} steps" + ("" if run.closed else ", not finished")
    routing = ", ".join(f"{role} → {policy}" for role, policy in meta.routing.items())
    kind = diagnosis.status.split()[0]
    return (
        f"<header><h1>{escape(diagnosis.name)}</h1>"
        f"<p>{escape(meta.workflow)} on {escape(meta.task)} with {escape(meta.model)} · {steps} "
        f"· {escape(routing)}</p></header>"
        f'<section class="card verdict {kind}"><p class="say">{escape(diagnosis.verdict)}</p>'
        f'<p class="sure">Confidence: {escape(diagnosis.confidence)}.</p></section>'
    )


def _tiles(diagnosis: Diagnosis) -> str:
    accuracy = diagnosis.accuracy
    if not accuracy.num_evaluations:
        return ""
    tiles = [
        (percent(accuracy.base), "base model"),
        (percent(accuracy.peak), f"best level, around step {accuracy.peak_step}"),
        (percent(accuracy.terminal), "at the end"),
    ]
    drops = diagnosis.of_kind("cliff", "slow decay", "unresolved drop")
    if drops:
        tiles.append((f"−{100 * drops[0].strength:.0f} points", "drop from the level before"))
    if math.isfinite(accuracy.detectable_drop):
        tiles.append(
            (f"{100 * accuracy.detectable_drop:.0f} points", "smallest drop this run would show")
        )
    cells = "".join(
        f'<div class="tile"><b>{escape(value)}</b><span>{escape(name)}</span></div>'
        for value, name in tiles
    )
    return f'<div class="tiles">{cells}</div>'


def _figure(svg: str, caption: str) -> str:
    text = f"<figcaption>{escape(caption)}</figcaption>" if caption else ""
    return f"<figure>{svg}{text}</figure>"


def _section(title: str, content: str) -> str:
    return f"<h2>{escape(title)}</h2>{content}" if content else ""


def _candidate_list(diagnosis: Diagnosis) -> str:
    if not diagnosis.candidates:
        return ""
    items = "".join(f"<li>{escape(candidate)}</li>" for candidate in diagnosis.candidates)
    return (
        '<div class="card"><span class="kind">Candidates, in no order of probability</span>'
        f"<ul>{items}</ul></div>"
    )


def _finding_card(finding: Finding) -> str:
    evidence = "".join(f"<li>{escape(sentence)}</li>" for sentence in finding.evidence)
    return (
        f'<div class="card"><span class="kind"><span class="dot" '
        f'style="background:{_color(finding)}"></span>{escape(finding.kind)} · '
        f"{escape(finding.subject)} · {finding.confidence} confidence</span>"
        f"<div><b>{escape(finding.summary)}</b></div>"
        f"<ul>{evidence}</ul></div>"
    )


def _remedy_table(diagnosis: Diagnosis) -> str:
    if not diagnosis.remedies:
        return ""
    rows = "".join(
        f"<tr><td><b>{escape(remedy.title)}</b></td><td>{escape(remedy.reason)}</td>"
        f"<td><code>{escape(remedy.option)}</code></td></tr>"
        for remedy in diagnosis.remedies
    )
    return f'<div class="card scroll"><table>{rows}</table></div>'


def _open_questions(diagnosis: Diagnosis) -> str:
    if not diagnosis.not_judged:
        return ""
    rows = "".join(
        f"<tr><td><b>{escape(question.what)}</b></td><td>{escape(question.why)}</td>"
        f"<td>{escape(question.to_do)}</td></tr>"
        for question in diagnosis.not_judged
    )
    return f'<div class="card scroll"><table>{rows}</table></div>'


def _all_signals(diagnosis: Diagnosis) -> str:
    if not diagnosis.signals:
        return ""
    head = "".join(
        f"<th>{name}</th>"
        for name in ("signal", "to the drop", "moved at", "steps before", "from → to", "note")
    )
    rows = []
    for verdict in diagnosis.signals:
        dated = math.isfinite(verdict.lead)
        lead = f"{verdict.lead:.0f} ({verdict.lead_lower:.0f} to {verdict.lead_upper:.0f})"
        mark = ' class="candidate"' if verdict.is_candidate else ""
        rows.append(
            f"<tr{mark}><td>{escape(verdict.title)}</td><td>{escape(verdict.order)}</td>"
            f'<td class="num">{escape(str(verdict.onset)) if verdict.onset else ""}</td>'
            f'<td class="num">{lead if dated else ""}</td>'
            f'<td class="num">{_number(verdict.before)} → {_number(verdict.after)}</td>'
            f"<td>{escape(verdict.note)}</td></tr>"
        )
    return (
        f'<div class="card scroll"><table><tr>{head}</tr>{"".join(rows)}</table>'
        "<p class='kind'>Only order in time is claimed: precedes, coincides, follows, "
        "no evidence.</p></div>"
    )


def _details(diagnosis: Diagnosis, run: Run) -> str:
    def folded(title: str, content: object) -> str:
        text = json.dumps(content, indent=2, ensure_ascii=False, default=str)
        return f"<details><summary>{title}</summary><pre>{escape(text)}</pre></details>"

    return (
        folded("Configuration", dict(run.meta.config))
        + folded("Versions", dict(run.meta.versions))
        + folded("Thresholds of the detectors", diagnosis.settings)
        + "<footer>A terminal cliff, a role capture and an amplification are gradlab's own "
        "definitions. One run shows an order of events; a cause takes a repeated run with one "
        "thing changed.</footer>"
    )


def _number(value: float) -> str:
    if not math.isfinite(value):
        return "–"
    if value != 0 and (abs(value) < 1e-3 or abs(value) >= 1e5):
        return f"{value:.1e}"
    return f"{float(np.format_float_positional(value, 3, fractional=False)):g}"
