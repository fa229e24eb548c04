"""The page of a diagnosis in a real browser: it draws, shows its words, and asks for nothing."""

from __future__ import annotations

import re
import shutil
import struct
import subprocess
from pathlib import Path

import pytest

from analysis.diagnosis import diagnose
from analysis.report.page import write_page
from analysis.synthetic.runs import Capture, Cliff, synthetic_run
from gradlab.store.run import open_run

BROWSER = next(
    (
        path
        for name in ("chromium", "chromium-browser", "google-chrome")
        if (path := shutil.which(name))
    ),
    None,
)


@pytest.mark.skipif(BROWSER is None, reason="no Chromium to open the page with")
def test_the_page_is_drawn_and_self_contained(tmp_path: Path) -> None:
    path = synthetic_run(
        tmp_path / "run.zarr", steps=200, evals=41, cliff=Cliff(130, 0.3),
        capture=Capture("generator", 100, 8.0),
    )  # fmt: skip
    run = open_run(path)
    page = write_page(diagnose(run), run, tmp_path / "report.html")
    assert page.stat().st_size < 3_000_000
    assert BROWSER is not None
    command = [
        BROWSER, "--headless", "--no-sandbox", "--disable-gpu", "--disable-background-networking",
        "--host-resolver-rules=MAP * ~NOTFOUND", f"--user-data-dir={tmp_path / 'profile'}",
        "--window-size=1000,2400",
    ]  # fmt: skip
    picture = tmp_path / "page.png"
    subprocess.run(
        [*command, f"--screenshot={picture}", page.as_uri()], check=True, capture_output=True
    )
    width, height = struct.unpack(">II", picture.read_bytes()[16:24])
    assert (width, height) == (1000, 2400)
    assert picture.stat().st_size > 60_000  # an empty page of this size takes 10 kB
    done = subprocess.run(
        [*command, "--dump-dom", page.as_uri()], check=True, capture_output=True, text=True
    )
    assert "Held-out accuracy fell by" in done.stdout
    assert done.stdout.count("<svg") >= 3


@pytest.mark.skipif(BROWSER is None, reason="no Chromium to open the page with")
def test_a_phone_shows_the_page_without_scrolling_sideways(tmp_path: Path) -> None:
    """390 pixels wide, in a frame: a window of Chromium cannot be that narrow everywhere."""
    out = tmp_path / ("a-long-name-without-any-place-to-break-it" * 2)
    path = synthetic_run(
        out, steps=200, evals=41, cliff=Cliff(130, 0.3), capture=Capture("generator", 100, 8.0)
    )
    run = open_run(path)
    page = write_page(diagnose(run), run, tmp_path / "report.html").read_text(encoding="utf-8")
    ask = "<script>parent.postMessage(document.documentElement.scrollWidth, '*')</script>"
    (tmp_path / "asking.html").write_text(page.replace("</body>", ask + "</body>"))
    frame = tmp_path / "frame.html"
    frame.write_text(
        "<body><p id=said></p><script>onmessage = e => said.textContent = 'width ' + e.data"
        "</script><iframe src=asking.html width=390 height=800 frameborder=0></iframe></body>"
    )
    assert BROWSER is not None
    done = subprocess.run(
        [
            BROWSER, "--headless", "--no-sandbox", "--disable-gpu", "--virtual-time-budget=4000",
            f"--user-data-dir={tmp_path / 'profile'}", "--dump-dom", frame.as_uri(),
        ],
        check=True, capture_output=True, text=True,
    )  # fmt: skip
    width = re.search(r"width (\d+)", done.stdout)
    assert width, done.stdout[:500]
    assert int(width[1]) <= 390
