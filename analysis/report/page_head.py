"""Begin a page: what was judged and found, where the run comes from, and its levels."""

from __future__ import annotations

import json
import math
import time
from html import escape

from analysis.findings import HELD_OUT, Diagnosis, level, points
from analysis.report.shared import fall_of, number
from gradlab.run_directory import CONFIG, beginning, directory_of
from gradlab.store.run import Run


def header(diagnosis: Diagnosis, run: Run) -> str:
    meta = run.meta
    steps = f"{len(run.steps)} steps" + (
        "" if run.closed else ", not finished" if run.until is None else ", later ones left out"
    )
    routing = ", ".join(f"{role} → {policy}" for role, policy in meta.routing.items())
    kind = diagnosis.status.split()[0]
    lines = [
        f"{escape(meta.workflow)} on {escape(meta.task)} with {escape(meta.model)} · {steps} · "
        f"{escape(routing)}",
        " · ".join(f"{name} <code>{escape(value)}</code>" for name, value in origin(run)),
    ]
    if begun := meta.config.get("from"):
        lines.append(escape(beginning(begun)))
    return (
        f"<header><h1>{escape(diagnosis.name)}</h1>"
        f"{''.join(f'<p>{line}</p>' for line in lines)}</header>"
        f'<section class="card verdict {kind}"><p class="say">{escape(diagnosis.verdict)}</p>'
        f'<p class="sure">Confidence: {escape(diagnosis.confidence)}.</p></section>'
    )


def origin(run: Run) -> list[tuple[str, str]]:
    """Where a run lies, when and from what it was made; what is not known is left out."""
    config, versions = run.meta.config, run.meta.versions
    folder = directory_of(run.path)
    found = [("run", str(folder)), ("id", run.meta.run_id)]
    about = folder / CONFIG
    created = ""
    if about.is_file():
        try:
            created = str(json.loads(about.read_text(encoding="utf-8")).get("created", ""))
        except (ValueError, AttributeError):
            created = ""  # a page without its date is better than none
    if created:
        found.append(("begun", created.replace("T", " ").replace("Z", " UTC")))
    else:
        written = (run.path / "zarr.json").stat().st_mtime
        found.append(("written", time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime(written))))
    seeds = ("seed", "replay_seed")
    found += [(n.replace("_", " "), str(config[n])) for n in seeds if config.get(n) is not None]
    found += [(n, str(versions[n])) for n in ("commit", "gradlab") if versions.get(n)]
    return found


def tiles(diagnosis: Diagnosis, run: Run) -> str:
    accuracy = diagnosis.accuracy
    if not accuracy.num_evaluations:
        return ""
    outcome = accuracy.outcome
    known = run.evaluations().step_E if outcome == HELD_OUT else run.steps
    first = int(known[0]) if len(known) else 0
    start = "base model" if not first else f"step {first}, the first"
    shown = [
        (level(accuracy.base, outcome), f"{outcome}: {start}"),
        (
            level(accuracy.peak, outcome),
            f"{outcome}: best level, mean of {max(accuracy.window, 1)} around step "
            f"{accuracy.peak_step}",
        ),
        (
            level(accuracy.terminal, outcome),
            f"{outcome}: last level, mean of {max(accuracy.end_window, 1)}",
        ),
    ]
    size = number if outcome.endswith("reward") else points
    if fall_of(diagnosis):
        shown.append((f"−{size(accuracy.drop)}", "best level minus last level"))
    if math.isfinite(accuracy.detectable_drop):
        shown.append((size(accuracy.detectable_drop), "smallest drop this run would show"))
    cells = "".join(
        f'<div class="tile"><b>{escape(value)}</b><span>{escape(name)}</span></div>'
        for value, name in shown
    )
    return f'<div class="tiles">{cells}</div>'
