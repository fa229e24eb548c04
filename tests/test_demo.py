"""The demo does what the README says of it (minutes: -m slow)."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from analysis.diagnosis import diagnose
from gradlab.commands.main import main
from gradlab.store.run import open_run


@pytest.mark.slow
def test_the_demo_climbs_twice_and_falls_once(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "demo"
    assert main(["demo", "--out", str(out)]) == 0
    runs = {name: open_run(out / name) for name in ("shared", "isolated", "cliff")}
    for name, run in runs.items():
        for policy in run.policies:
            residual_U = run.update_metric("residual", policy.name).value_T
            assert (residual_U < 1e-5).all(), f"{name}, {policy.name}: {residual_U.max():.1e}"
        assert (out / name / "report.html").stat().st_size < 3_000_000
    accuracy = {name: run.evaluations().accuracy().value_T for name, run in runs.items()}
    for name in ("shared", "isolated"):
        assert accuracy[name][-5:].mean() > accuracy[name][0] + 0.15
        assert diagnose(runs[name]).status not in {"cliff", "slow decay"}
    assert accuracy["cliff"].max() > accuracy["cliff"][0] + 0.1
    assert accuracy["cliff"][-1] < 0.1
    fallen = diagnose(runs["cliff"])
    assert fallen.status in {"cliff", "slow decay"}
    assert "fell" in fallen.verdict or "decayed" in fallen.verdict
    assert len(list((out / "figures").glob("*.pdf"))) == 6
    assert not np.isnan(runs["shared"].step_mass("update")["generator"].value_T).all()
    printed = capsys.readouterr().out
    assert "report.html" in printed
    assert main(["demo", "--out", str(out)]) == 0  # finished runs are kept
    assert capsys.readouterr().out.count("finished before, kept") == 3
