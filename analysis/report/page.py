"""Tell a diagnosis on one self-contained HTML page: verdict, plots, what was said, what to try."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from html import escape
from pathlib import Path

import numpy as np

from analysis.detectors.role_capture import CAPTURE, CaptureRule
from analysis.detectors.table import KINDS
from analysis.findings import HELD_OUT, Diagnosis, Finding, SignalVerdict
from analysis.replays.propose import announced, propose
from analysis.report.glossary import glossary
from analysis.report.page_head import header, tiles
from analysis.report.shared import color_of, fall_of, lead_interval, moved, number
from analysis.report.transcripts import Lost, Said, Transcripts, transcripts
from analysis.signals import collect
from gradlab.palette import role_color
from gradlab.store.disk import put
from gradlab.store.run import Run

_NOTHING_MOVED = '<div class="card">No recorded signal clearly left its level.</div>'
PLOTTED = 3
"""Signals drawn beside the accuracy."""


def write_page(diagnosis: Diagnosis, run: Run, path: Path | str) -> Path:
    """One HTML file with everything inside: no network, no scripts; usually under 500 kB."""
    from analysis.report import plots

    accuracy_plot = ""
    if diagnosis.accuracy.num_evaluations > 1:
        caption = _accuracy_caption(diagnosis)
        if fall_of(diagnosis):
            caption += " Shaded: when the fall began."
        accuracy_plot = _figure(plots.accuracy_svg(diagnosis, run), caption)
    chosen = _plotted(diagnosis)
    moved_plot = ""
    if chosen:
        caption = "Dashed: when the signal left its level."
        if fall_of(diagnosis):
            caption += " Shaded: when accuracy began to fall."
        elif diagnosis.status in ("healthy", "unfinished"):
            caption += " Accuracy did not fall, so nothing leads to a drop."
        moved_plot = _figure(plots.moved_svg(diagnosis, run, collect(run), chosen), caption)
    roles_plot = ""
    if len(run.steps) > 1:
        captions = []
        if CaptureRule().num_tested(run) and _knows_loss(run):
            captions.append("Dashed horizontals: shares of the loss, the null of capture.")
        if diagnosis.of_kind(CAPTURE.name):
            captions.append("Dashed vertical: when the capture began.")
        roles_plot = _figure(plots.roles_svg(diagnosis, run), " ".join(captions))
    shown_levels = tiles(diagnosis, run)
    body = "\n".join(
        (
            header(diagnosis, run),
            shown_levels,
            accuracy_plot,
            glossary(diagnosis.verdict + diagnosis.confidence + shown_levels),
            _section("What moved", (moved_plot or _NOTHING_MOVED) + _candidate_list(diagnosis)),
            _section("The roles", roles_plot),
            _section("What was said", _said(transcripts(run, diagnosis), run.roles)),
            _section("Findings", "".join(_finding_card(f, run.roles) for f in diagnosis.findings)),
            _section("To try next", _remedy_table(diagnosis) + _replay_card(run, diagnosis)),
            _folded(f"Not judged ({len(diagnosis.not_judged)})", _open_questions(diagnosis)),
            _what_is_needed(),
            _folded(f"Every signal ({len(diagnosis.signals)})", _all_signals(diagnosis)),
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
    put(path, page.encode(), durable=True)  # a page that is there is a whole one
    return path


def _knows_loss(run: Run) -> bool:
    return any(np.isfinite(run.ledger("loss_weight", role).value_T).any() for role in run.roles)


def _accuracy_caption(diagnosis: Diagnosis) -> str:
    accuracy = diagnosis.accuracy
    outcome = accuracy.outcome.capitalize()
    if accuracy.outcome != HELD_OUT:
        return f"{outcome}, in place of held-out accuracy, which was not recorded."
    if not accuracy.num_samples:
        return f"{outcome}; the number of answers is unknown, so there is no interval."
    of = f"{accuracy.num_problems} problems"
    if not accuracy.num_problems:
        of = f"{accuracy.num_samples} answers"
    return f"{outcome} on {of}; band: 95 % sampling interval of each evaluation."


def _plotted(diagnosis: Diagnosis) -> list[SignalVerdict]:
    """The first signals that moved, one of each kind: two roles often move alike."""
    first: dict[str, SignalVerdict] = {}
    for signal in moved(diagnosis):
        first.setdefault(signal.kind, signal)
    return list(first.values())[:PLOTTED]


def _figure(svg: str, caption: str) -> str:
    text = f"<figcaption>{escape(caption)}</figcaption>" if caption else ""
    return f"<figure>{svg}{text}</figure>"


def _section(title: str, content: str) -> str:
    return f"<h2>{escape(title)}</h2>{content}{glossary(content)}" if content else ""


def _folded(title: str, content: str) -> str:
    if not content:
        return ""
    return f"<details><summary>{escape(title)}</summary>{content}{glossary(content)}</details>"


def _said(found: Transcripts | None, roles: Sequence[str]) -> str:
    """Lost problems, each with what every agent said before and after, side by side."""
    if found is None or not found.lost:
        return ""
    num = found.num_lost
    lost = "1 held-out episode is solved" if num == 1 else f"{num} held-out episodes are solved"
    intro = (
        f"<p>Step {found.before_step} is the last evaluation before the fall, step "
        f"{found.after_step} the first at which half of it had happened. {lost} at the one and not "
        "at the other. Who speaks last comes first.</p>"
    )
    return intro + "".join(_lost_card(lost, found, roles) for lost in found.lost)


def _lost_card(lost: Lost, found: Transcripts, roles: Sequence[str]) -> str:
    rows = "".join(
        f'<tr><td><span class="dot" style="background:{role_color(exchange.role, roles)}"></span>'
        f"{escape(exchange.title)}</td>{_cell(exchange.before)}{_cell(exchange.after)}</tr>"
        for exchange in lost.exchanges
    )
    reference = f" · reference {escape(lost.reference)}" if lost.reference else ""
    return (
        f'<div class="card scroll"><span class="kind">{escape(lost.problem)}{reference}</span>'
        f'<p class="question">{escape(lost.question)}</p><table class="said"><tr><th></th>'
        f"<th>step {found.before_step}, solved</th><th>step {found.after_step}, lost</th></tr>"
        f"{rows}</table></div>"
    )


def _cell(said: Said | None) -> str:
    if said is None:
        return "<td>–</td>"
    kind = "good" if said.mark == "right" else "bad"
    mark = f'<span class="mark {kind}">{escape(said.mark)}</span>' if said.mark else ""
    return f"<td><pre>{escape(said.text) or '(empty)'}</pre>{mark}</td>"


def _candidate_list(diagnosis: Diagnosis) -> str:
    if not diagnosis.candidates:
        return ""
    against = [f" Against: {'; '.join(c.against)}." if c.against else "" for c in diagnosis.causes]
    replayed = [
        "".join(f" {s}." for s in c.evidence if "replayed" in s).capitalize()
        for c in diagnosis.causes
    ]
    objections = [f"{one}{other}" for one, other in zip(replayed, against, strict=True)]
    lines = zip(diagnosis.candidates, (*objections, ""), strict=True)
    items = "".join(f"<li>{escape(name)}.{escape(said)}</li>" for name, said in lines)
    return (
        f'<div class="card"><div><b>{escape(diagnosis.separation)}</b></div>'
        '<span class="kind">Suspects, the best supported first</span>'
        f"<ul>{items}</ul></div>"
    )


def _finding_card(finding: Finding, roles: Sequence[str]) -> str:
    evidence = "".join(f"<li>{escape(sentence)}</li>" for sentence in finding.evidence)
    return (
        f'<div class="card"><span class="kind"><span class="dot" '
        f'style="background:{color_of(finding, roles)}"></span>{escape(finding.kind)} · '
        f"{escape(finding.subject)} · {finding.confidence} confidence</span>"
        f"<div><b>{escape(finding.summary)}</b></div>"
        f"<ul>{evidence}</ul></div>"
    )


def _remedy_table(diagnosis: Diagnosis) -> str:
    items = "".join(
        f"<li><b>{escape(remedy.title)}</b>: {escape(remedy.reason)}."
        f"<pre>{escape(remedy.option)}</pre></li>"
        for remedy in diagnosis.remedies
    )
    return f'<div class="card"><ol class="remedies">{items}</ol></div>' if items else ""


def _replay_card(run: Run, diagnosis: Diagnosis) -> str:
    """What --confirm would do; nothing where there is nothing to confirm."""
    if run.until is not None or fall_of(diagnosis) is None:
        return ""
    try:
        text = announced(run, propose(run, diagnosis))
    except ValueError:  # everything is tested already
        return ""
    return f'<div class="card"><b>To test it</b>: {escape(text)}</div>' if text else ""


def _open_questions(diagnosis: Diagnosis) -> str:
    return _plain_table(
        (question.what, escape(question.why), escape(question.to_do))
        for question in diagnosis.not_judged
    )


def _what_is_needed() -> str:
    """Every kind of finding, and what has to be recorded for it."""
    rows = "".join(
        f"<tr><td><b>{escape(kind.name)}</b></td><td>{escape(kind.needs)}</td></tr>"
        for kind in KINDS.values()
    )
    return (
        f"<details><summary>What each kind of finding needs ({len(KINDS)})</summary>"
        f'<div class="card scroll"><table>{rows}</table><p class="kind">Where that was not '
        "recorded, silence about the kind says nothing.</p></div></details>"
    )


def _plain_table(rows: Iterable[tuple[str, str, str]]) -> str:
    """A bold text and two cells of HTML per row; nothing without rows."""
    html = "".join(
        f"<tr><td><b>{escape(title)}</b></td><td>{middle}</td><td>{last}</td></tr>"
        for title, middle, last in rows
    )
    return f'<div class="card scroll"><table>{html}</table></div>' if html else ""


def _all_signals(diagnosis: Diagnosis) -> str:
    if not diagnosis.signals:
        return ""
    head = "".join(
        f"<th>{name}</th>"
        for name in ("signal", "to the drop", "moved at", "lead in steps", "from → to", "note")
    )
    rows = []
    for verdict in diagnosis.signals:
        mark = ' class="candidate"' if verdict.is_candidate else ""
        rows.append(
            f"<tr{mark}><td>{escape(verdict.title)}</td>"
            f"<td>{escape(verdict.when or verdict.order)}</td>"
            f'<td class="num">{escape(str(verdict.onset)) if verdict.onset else ""}</td>'
            f'<td class="num">{lead_interval(verdict)}</td>'
            f'<td class="num">{number(verdict.before)} → {number(verdict.after)}</td>'
            f"<td>{escape('; '.join(s for s in (verdict.told, verdict.note) if s))}</td></tr>"
        )
    return (
        f'<div class="card scroll"><table><tr>{head}</tr>{"".join(rows)}</table>'
        "<p class='kind'>Only order in time is claimed: precedes, coincides, follows, "
        "no evidence.</p></div>"
    )


def _details(diagnosis: Diagnosis, run: Run) -> str:
    def folded(title: str, content: object) -> str:
        text = json.dumps(content, indent=2, ensure_ascii=False, default=str)
        return _folded(title, f"<pre>{escape(text)}</pre>")

    return (
        folded("Configuration", dict(run.meta.config))
        + folded("Versions", dict(run.meta.versions))
        + folded("Thresholds of the detectors", diagnosis.settings)
        + "<footer>A terminal cliff, a role capture and an amplification are gradlab's own "
        "definitions. One run shows an order of events; a cause takes a repeated run with one "
        "thing changed.</footer>"
    )
