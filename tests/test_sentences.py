"""Sentences on what moved are true: nothing is denied that was recorded, no trend gets a date."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path

from analysis.diagnosis import diagnose
from analysis.explain.agreement import agreed
from analysis.explain.separation import separation
from analysis.explain.signal_words import EARLY, LATE, told_later, told_order, told_outcomes
from analysis.findings import Finding, Onset, SignalVerdict
from analysis.report.page import write_page
from gradlab.interop.logs.importing import import_run
from gradlab.store.run import open_run


def verdict(kind: str, order: str, before: float, after: float, **also: object) -> SignalVerdict:
    values: dict[str, object] = {
        "key": f"{kind}:judge", "title": f"judge {kind}", "subject": "judge", "unit": "1",
        "order": order, "before": before, "after": after, "effect": 5.0, "onset": Onset(9, 8, 10),
        "lead": 0.0, "lead_lower": math.nan, "lead_upper": math.nan, "is_candidate": False,
        "is_outcome": False, "note": "", "p_value": 0.01, "change": "event", "told": "",
    }  # fmt: skip
    return SignalVerdict(**values | also)  # type: ignore[arg-type]


def trend(kind: str, told: str) -> SignalVerdict:
    return verdict(kind, "no evidence", 1, 2, onset=None, change="trend", told=told)


def test_a_trend_of_one_half_did_not_go_on_all_along() -> None:
    said = told_order(
        (trend("kl", f"rose steadily, {LATE}"), trend("entropy", f"rose {EARLY}"),
         trend("length_mean", "rose throughout")),
        (),
    )  # fmt: skip
    assert "all along: judge length_mean up." in said
    assert f"{LATE}, without a date: judge kl up." in said
    assert f"{EARLY}, without a date: judge entropy up." in said


def test_a_reward_that_fell_is_not_nothing() -> None:
    reward = verdict("reward_mean", "follows", 0.6, 0.1)
    said = separation((), (reward,))
    assert "Nothing that was recorded moved" not in said
    assert "Fell in training, which is the drop itself: judge reward_mean down (step 9)." in said
    assert told_later((reward,)) == ""
    assert told_outcomes((verdict("reward_mean", "follows", 0.1, 0.6),), ()) == ""
    spoken_for = ((frozenset({"reward_mean"}), "judge"),)
    assert told_outcomes((reward,), spoken_for) == "", "a suspect speaks for it"


def test_what_came_later_is_told_and_nothing_recorded_is_said_so() -> None:
    said = separation((), (verdict("truncated", "follows", 0.0, 1.0),))
    assert said.endswith("Came after it: judge truncated up (step 9).")
    assert "Nothing was recorded beside it" in separation((), ())


def test_a_log_without_evaluations_that_fell_gets_its_page(tmp_path: Path) -> None:
    """Training accuracy is all there is; the page says what a replay would do, or nothing."""
    level = [min(0.3 + 0.012 * i, 0.7) if i < 35 else max(0.05, 0.7 - 0.05 * (i - 34))
             for i in range(60)]  # fmt: skip
    rows = [
        json.dumps({"step": i, "rewards/accuracy_reward/mean": a + 0.02 * math.sin(7.3 * i),
                    "reward": a + 0.02 * math.sin(7.3 * i)})
        for i, a in enumerate(level, start=1)
    ]  # fmt: skip
    (tmp_path / "h.jsonl").write_text("\n".join(rows) + "\n")
    import_run([tmp_path / "h.jsonl"], tmp_path / "run")
    run = open_run(tmp_path / "run")
    found = diagnose(run)
    assert found.status in ("cliff", "fall")
    write_page(found, run, tmp_path / "report.html")
    assert "training accuracy" in (tmp_path / "report.html").read_text().lower()


def test_a_trend_that_a_finding_dates_is_not_called_undated() -> None:
    """KL is flat until step 55 and then rises: the finding says 56, and so does the signal."""
    kl = trend("kl", f"rose steadily, {LATE}, no date")
    found = Finding("KL drift", "judge", "", 2.0, "nats", "high", Onset(56, 52, 60), p_value=0.001)
    [said] = agreed((kl,), (found,))
    assert said.told.startswith("rose from between steps 52 and 60 on, 1 to 2")
    assert "no date" not in said.told
    words = told_order((said,), ())
    assert "without a date" not in words
    assert "between steps 52 and 60" in words
    of_another = replace(found, subject="solver")
    assert agreed((kl,), (of_another,)) == (kl,)
