"""Write one Slurm array script whose tasks take cells by their number."""

from __future__ import annotations

import shlex
import shutil
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

from trainers.matrix.folder import Folder
from trainers.matrix.product import OWN_FOLDER

SCRIPT = "slurm.sh"
WARNING_SECONDS = 180
"""Before the time limit, cells are asked to finish the step in hand and save."""


@dataclass(frozen=True)
class Job:
    """What every task of the array gets."""

    threads: int = 1
    gpus: int = 0
    at_once: int = 0
    """Most tasks at a time; 0 leaves it to Slurm."""
    options: Sequence[str] = ()
    """Of sbatch, e.g. --partition=gpu."""
    retry_failed: bool = False


def ranges(numbers: Sequence[int]) -> str:
    """Numbers in ascending order as Slurm writes them: 0-2,5,7-8."""
    found: list[list[int]] = []
    for last, number in pairwise([-2, *sorted(numbers)]):
        if number == last + 1:
            found[-1][1:] = [number]
        else:
            found.append([number])
    return ",".join("-".join(map(str, one)) for one in found)


def script(folder: Folder, names: Sequence[str], job: Job) -> str:
    """The text of the array script for these cells."""
    number_of = {cell.name: number for number, cell in enumerate(folder.cells)}
    array = ranges([number_of[name] for name in names])
    own = (folder.out / OWN_FOLDER).resolve()
    lines = [
        f"#SBATCH --job-name=gradlab-{folder.name}",
        f"#SBATCH --array={array}" + (f"%{job.at_once}" if job.at_once else ""),
        f"#SBATCH --cpus-per-task={job.threads}",
        *([f"#SBATCH --gpus-per-task={job.gpus}", "#SBATCH --ntasks=1"] if job.gpus else []),
        f"#SBATCH --output={own}/slurm-%A_%a.txt",
        "#SBATCH --open-mode=append",
        f"#SBATCH --signal=B:TERM@{WARNING_SECONDS}",
        *(f"#SBATCH {option}" for option in job.options),
    ]
    retry = " --retry-failed" if job.retry_failed else ""
    return "\n".join(
        [
            "#!/bin/bash",
            *lines,
            f"# Cells of {folder.name} by their number in {own}/cells.json.",
            "set -eu",
            f"cd {shlex.quote(str(Path.cwd()))}",
            f"export OMP_NUM_THREADS={job.threads} MKL_NUM_THREADS={job.threads} "
            f"OPENBLAS_NUM_THREADS={job.threads}",
            "# exec: the signal before the time limit reaches Python, not a shell that waits.",
            f"exec {shlex.quote(sys.executable)} -m gradlab matrix --out "
            f'{shlex.quote(str(folder.out.resolve()))} --cell "$SLURM_ARRAY_TASK_ID" '
            f"--threads-each {job.threads}{retry}",
            "",
        ]
    )


def write_script(folder: Folder, names: Sequence[str], job: Job) -> Path:
    """Put the script into the folder of the matrix."""
    path = folder.out / OWN_FOLDER / SCRIPT
    path.write_text(script(folder, names, job))
    path.chmod(0o755)
    return path


def submit(path: Path) -> str:
    """Submit the script; what sbatch said.

    Raises RuntimeError where there is no sbatch, or it refuses.
    """
    if shutil.which("sbatch") is None:
        raise RuntimeError(
            f"--submit: there is no sbatch on this machine's PATH; submit {path} where there is one"
        )
    done = subprocess.run(["sbatch", str(path)], capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"sbatch refused {path}: {(done.stderr or done.stdout).strip()}")
    return done.stdout.strip()
