"""Train on disks that are too small, make room, and check that the run ends as on a large one.

    sudo python bench/full_disk.py       # mounts small tmpfs; writes bench/results/full_disk.md

Sizes are chosen so that a run stops at its beginning, at checkpoints and at the store. It has to
stop with status 2 and a message, leave a store that can be read and nothing half-written, stop
again as long as there is no room, and end as the straight run once there is.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
from pathlib import Path

import torch
from dying import Heard, forked
from kill import RUNS, check_end, lost

from gradlab.run_directory import STORE
from gradlab.store.run import open_run

SIZES = (60, 200, 420, 600, 900, 1300, 1800)
"""KiB; the whole run takes about 1,800."""
RESULTS = Path(__file__).parent / "results" / "full_disk.md"
OPTIONS = RUNS["voting"].split()


def fill_up(size: int, disk: Path, straight: Path) -> str:
    """Train on a disk of `size` KiB; a line of the table that says what happened."""
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}k", "tmpfs", disk], check=True)
    try:
        out = disk / "run"
        log = disk.with_name(f"{size}.log")  # not on the disk that is full
        out.with_suffix(".log").symlink_to(log)
        heard = forked(out, OPTIONS, None)
        said = [line for line in log.read_text().splitlines() if line.startswith("gradlab train:")]
        if os.waitstatus_to_exitcode(heard.status) != 2 or len(said) != 1:
            lost(f"{size} KiB: status {heard.status}, see {log}")
        steps = open_run(out).steps.tolist() if (out / STORE).exists() else []
        if steps != list(range(1, len(steps) + 1)) or [*out.rglob("*.partial")]:
            lost(f"{size} KiB: the store holds steps {steps}, or something is half-written")
        if os.waitstatus_to_exitcode(forked(out, OPTIONS, None).status) != 2:
            lost(f"{size} KiB: went on without room, see {log}")
        subprocess.run(["mount", "-o", "remount,size=64m", disk], check=True)
        if forked(out, OPTIONS, None).status != 0:
            lost(f"{size} KiB: did not go on with room, see {log}")
        check_end(out, straight, Heard())
    finally:
        subprocess.run(["umount", disk], check=True)
    message = said[0].removeprefix("gradlab train: ").replace(str(out), "RUN")
    return f"| {size} | {len(steps)} | {message} |"


def main() -> None:
    torch.set_num_threads(1)
    directory = Path(tempfile.mkdtemp(prefix="gradlab-disk-"))
    straight, disk = directory / "straight", directory / "disk"
    disk.mkdir()
    if forked(straight, OPTIONS, None).status != 0:
        lost(f"the straight run failed, see {straight.with_suffix('.log')}")
    lines = [
        "# Training on a full disk",
        "",
        "`python bench/full_disk.py`. Each run stopped with the message below, its store could be",
        "read, nothing was left half-written; it stopped again while the disk was full, and once",
        "there was room it ended as the run on a large disk, bit for bit (but times).",
        "",
        "| disk, KiB | steps recorded | message |",
        "|---|---|---|",
        *(fill_up(size, disk, straight) for size in SIZES),
    ]
    shutil.rmtree(directory)
    print("\n".join(lines))
    RESULTS.write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
