"""Show that another commit computes the same: trains, diagnoses and draws with both, and compares.

    python bench/same_numbers.py COMMIT

Runs of the three workflows are trained from fixed seeds with this tree and with a checkout of
COMMIT; all arrays of their stores, their diagnoses as JSON and the numbers behind their figures are
compared. Gradients, losses and everything the probe keeps must be equal to the last bit; sums of
the step ledger may differ by the order in which they were added, at most `ROUNDING` of their size.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import zarr

ROOT = Path(__file__).resolve().parent.parent
ROUNDING = 1e-12
RUNS = {
    "voting-isolated": ["--workflow", "voting", "--routing", "isolated",
                        "--sketch-buckets", "4093"],
    "voting-shared": ["--workflow", "voting", "--routing", "shared", "--equalize"],
    "evaluator_optimizer": ["--workflow", "evaluator_optimizer", "--routing", "isolated"],
    "orchestrator_workers": ["--workflow", "orchestrator_workers", "--routing", "shared",
                             "--kl-coefficient", "worker", "0.02", "--old-logprobs", "trainer"],
}  # fmt: skip
SIZES = ["--model", "tiny-0.3m", "--steps", "8", "--eval-every", "2", "--eval-problems", "20",
         "--problems-per-step", "4", "--samples", "4", "--threads", "1"]  # fmt: skip
CHANGES_BY_ITSELF = re.compile(r"seconds|time|started|created|commit|version|run_id", re.I)
"""Names of what differs between two runs of one commit."""


def gradlab(tree: Path, *arguments: str, cwd: Path) -> str:
    """The output of a command of `tree`."""
    has_main = (tree / "gradlab" / "__main__.py").exists()
    old = "gradlab.cli" if (tree / "gradlab" / "cli.py").exists() else "gradlab.commands.main"
    done = subprocess.run(
        [sys.executable, "-P", "-m", "gradlab" if has_main else old, *arguments],
        cwd=cwd,
        env={**os.environ, "PYTHONPATH": str(tree), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode not in (0, 1):
        raise SystemExit(f"{tree}: gradlab {' '.join(arguments)} failed:\n{done.stderr[-3000:]}")
    return done.stdout


def produce(tree: Path, where: Path) -> dict[str, Any]:
    """Everything that is compared, by name; `where` is an empty folder."""
    found: dict[str, Any] = {}
    for name, options in RUNS.items():
        gradlab(tree, "train", *SIZES, *options, "--out", name, cwd=where)
        store = zarr.open_group(where / name / "run.zarr", mode="r")
        for path, member in sorted(store.members(max_depth=None)):
            if isinstance(member, zarr.Array):
                found |= columns(f"{name}/{path}", member)
        told = gradlab(tree, "diagnose", name, "--json", "--no-page", cwd=where)
        found |= flat(f"{name}/diagnosis", json.loads(told))
    gradlab(tree, "figures", *RUNS, "--out", "figures", cwd=where)
    for table in sorted((where / "figures").rglob("*.csv")):
        found[f"figures/{table.name}"] = table.read_text(encoding="utf-8")
    return found


def columns(name: str, array: zarr.Array[Any]) -> dict[str, Any]:
    """An array, or where its last axis is one of metrics, an array of each, by name."""
    values = np.asarray(array[...])
    metrics = [*array.attrs.get("metrics", ())]
    parts = {f"{name}/{metric}": values[..., i] for i, metric in enumerate(metrics)}
    return {
        path: part
        for path, part in (parts or {name: values}).items()
        if not CHANGES_BY_ITSELF.search(path)
    }


def flat(name: str, value: Any) -> dict[str, Any]:
    """A JSON value as its leaves, by their path."""
    if isinstance(value, dict):
        parts = {str(key): one for key, one in value.items()}
    elif isinstance(value, list):
        parts = {str(i): one for i, one in enumerate(value)}
    else:
        return {} if CHANGES_BY_ITSELF.search(name) else {name: value}
    return {
        path: leaf
        for key, one in parts.items()
        for path, leaf in flat(f"{name}/{key}", one).items()
    }


def difference(mine: Any, theirs: Any) -> float:
    """0 if equal to the last bit; the largest relative difference of numbers; infinite of text."""
    if isinstance(mine, str) and isinstance(theirs, str) and mine != theirs:
        return difference_of_text(mine, theirs)
    a, b = np.asarray(mine), np.asarray(theirs)
    if a.shape != b.shape or a.dtype.kind != b.dtype.kind:
        return float("inf")
    if a.dtype.kind in "fc":
        unlike = ~((a == b) | (np.isnan(a) & np.isnan(b)))
        if not unlike.any():
            return 0.0
        with np.errstate(invalid="ignore", divide="ignore"):
            off = np.abs(a - b)[unlike] / np.maximum(np.abs(a), np.abs(b))[unlike]
        return float(np.nan_to_num(off, nan=np.inf).max())
    return 0.0 if bool(np.all(a == b)) else float("inf")


def difference_of_text(mine: str, theirs: str) -> float:
    """Largest relative difference of the numbers in two texts that are otherwise equal."""
    number = re.compile(r"-?\d+\.?\d*(?:e[-+]?\d+)?")
    if number.sub("#", mine) != number.sub("#", theirs):
        return float("inf")
    pairs = zip(number.findall(mine), number.findall(theirs), strict=True)
    return max(difference(float(a), float(b)) for a, b in pairs)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("commit", help="a commit of this repository, or the folder of a checkout")
    given = parser.parse_args().commit
    with tempfile.TemporaryDirectory() as folder:
        there, here, tree = (Path(folder) / name for name in ("then", "now", "tree"))
        there.mkdir(), here.mkdir()
        is_folder = Path(given).is_dir()
        if not is_folder:
            git = ["git", "-C", str(ROOT), "worktree"]
            subprocess.run([*git, "add", "-q", "--detach", str(tree), given], check=True)
        try:
            now = produce(ROOT, here)
            then = produce(Path(given).resolve() if is_folder else tree, there)
        finally:
            if not is_folder:
                subprocess.run([*git, "remove", "--force", str(tree)], check=True)
    return tell(now, then)


def tell(now: dict[str, Any], then: dict[str, Any]) -> int:
    """Print what differs; 1 if anything does by more than rounding."""
    differences = {name: difference(now[name], then[name]) for name in now.keys() & then.keys()}
    off = {
        name: by
        for name, by in differences.items()
        if by > (ROUNDING if "/roles/" in name or "diagnosis" in name or "figures" in name else 0)
    }
    for name, by in sorted(off.items()):
        print(f"DIFFERS  {name}: by {by:.2g}")
    for kind, names in (("only now", now.keys() - then.keys()), ("gone", then.keys() - now.keys())):
        for name in sorted(names):
            print(f"{kind:8} {name}")
    equal = sum(by == 0 for by in differences.values())
    print(
        f"{len(differences)} compared: {equal} equal to the last bit, "
        f"{len(differences) - equal - len(off)} up to rounding, {len(off)} differ"
    )
    return 1 if off else 0


if __name__ == "__main__":
    sys.exit(main())
