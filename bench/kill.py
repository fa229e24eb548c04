"""Kill `gradlab train` again and again, and check that no row and no bit of the run is lost.

    python bench/kill.py             # 150 kills, six minutes; writes bench/results/kill.md
    python bench/kill.py --kills 20

Each attempt is the real command in a process of its own, forked from one that has torch loaded. It
dies by SIGKILL in a phase of training (rollout, backward, a store append, …): at a random moment,
sent from outside, or by its own hand right before the n-th change to the run's files or in the
middle of a write to its journal, where a kill from outside seldom falls. After every kill the store
has to open and hold every row that the command had appended, bit for bit those of a run that was
never killed; then the run is resumed, and killed again. In the end measurements, episodes, adapters
and optimizer states must be the same.
"""

from __future__ import annotations

import argparse
import functools
import os
import shutil
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
import torch
from dying import Heard, Kill, forked
from numpy.typing import NDArray
from safetensors.torch import load_file

from gradlab.run_directory import CONFIG, STORE
from gradlab.store.run import open_run
from trainers.rundir.checkpoint import last_checkpoint
from trainers.rundir.transcripts import read_episodes

RESULTS = Path(__file__).parent / "results" / "kill.md"
SMALL = (
    "--steps 6 --checkpoint-every 2 --eval-every 3 --problems-per-step 2 --samples 3 "
    "--eval-problems 2 --lora-rank 2 --max-response-tokens 8 --threads 1 --device cpu "
)
RUNS = {
    "voting": SMALL + "--routing isolated --keep-states 2",
    "evaluator-optimizer": SMALL + "--routing shared --workflow evaluator_optimizer "
    "--sketch-buckets 4093 --warmup-steps 4",
}
"""Options of the runs that are killed, in turn."""
PHASES = (
    *("start", "open", "rollout", "episodes", "learn", "backward", "append", "flush"),
    *("evaluation", "checkpoint", "close", "rest"),
)
MOST = 10
"""Kills of one run before it may finish."""


# -- what must hold ----------------------------------------------------------------------------


def measurements(out: Path) -> dict[str, NDArray[Any]]:
    """Every array of a run's store but the clock's, by group/array; rows first."""
    found = {}
    for node in open_run(out).to_xarray().subtree:
        for name, array in node.data_vars.items():
            if name == "wall_time":
                continue
            for dim in ("run_metric", "update_metric"):
                if dim in array.dims:
                    timed = [label for label in array[dim].values if label.endswith("_seconds")]
                    array = array.drop_sel({dim: timed})
            found[f"{node.path}/{name}".lstrip("/")] = array.values
    return found


def lost(what: str) -> NoReturn:
    raise SystemExit(f"NOT RELIABLE: {what}")


def check_rows(out: Path, straight: Path, heard: Heard, checkpoint: int | None) -> None:
    """The store holds what was appended, and nothing but what the straight run holds."""
    expected = measurements(straight)
    if not (out / STORE).exists():
        if heard.appended:
            lost(f"{out}: no store, but rows were appended")
        return
    for name, rows in measurements(out).items():
        reference = expected[name]
        if len(rows) > len(reference) or rows.tobytes() != reference[: len(rows)].tobytes():
            lost(f"{out}: {name} differs from the straight run's")
        group, _, array = name.rpartition("/")
        if array == "step":
            kept = 0 if checkpoint is None else int((reference <= checkpoint).sum())
            appended = sum(where == group for where, _ in heard.appended)
            if len(rows) < kept + appended:
                lost(f"{out}: {group} has {len(rows)} rows, appended were {kept} + {appended}")


def tensors(path: Path) -> dict[str, Any]:
    """The leaves of a checkpoint file by path inside it."""
    if path.suffix == ".safetensors":
        return dict(load_file(path))
    return dict(leaves(torch.load(path, weights_only=True)))


def leaves(value: Any, name: str = "") -> Iterator[tuple[str, Any]]:
    if isinstance(value, list | tuple):
        value = dict(enumerate(value))
    if not isinstance(value, dict):
        yield name, value
        return
    for key, item in value.items():
        yield from leaves(item, f"{name}/{key}")


def check_end(out: Path, straight: Path, heard: Heard) -> None:
    """The finished run is the straight one: measurements, episodes, checkpoints."""
    check_rows(out, straight, heard, None)
    mine, theirs = measurements(out), measurements(straight)
    if {k: len(v) for k, v in mine.items()} != {k: len(v) for k, v in theirs.items()}:
        lost(f"{out}: rows are missing at the end")
    for folder in ("episodes", "checkpoints"):
        files = [
            sorted(str(p.relative_to(run)) for p in (run / folder).rglob("*") if p.is_file())
            for run in (out, straight)
        ]
        if files[0] != files[1]:
            lost(f"{out}: {folder} holds {files[0]}, expected {files[1]}")
        for name in files[0]:
            if name.endswith((".safetensors", ".pt")):
                one, other = tensors(out / name), tensors(straight / name)
                same = one.keys() == other.keys() and all(
                    torch.equal(v, other[k]) if isinstance(v, torch.Tensor) else v == other[k]
                    for k, v in one.items()
                )
            elif name.endswith(".jsonl.gz"):
                same = [*read_episodes(out / name)] == [*read_episodes(straight / name)]
            else:
                continue
            if not same:
                lost(f"{out}: {name} differs from the straight run's")


# -- many kills --------------------------------------------------------------------------------


@dataclass
class Score:
    outside: Counter[str] = field(default_factory=Counter)
    inside: Counter[str] = field(default_factory=Counter)
    resumed: int = 0
    rows: int = 0
    runs: int = 0

    @property
    def kills(self) -> int:
        return self.outside.total() + self.inside.total()


def draw(generator: np.random.Generator, whole: Heard, score: Score, begun: bool) -> Kill:
    """A kill in an attempt like `whole`, sooner in a phase that few kills fell into.

    A run that has begun has less left to do.
    """
    weights = np.array([1 / (1 + score.outside[p] + score.inside[p]) ** 2 for p in PHASES])
    phase = PHASES[generator.choice(len(PHASES), p=weights / weights.sum())]
    share = 6 if begun else 1
    if whole.changes[phase] and generator.random() < 0.6:
        most = max(1, whole.changes[phase] // share)
        return Kill(phase, 0, 0.0, int(generator.integers(1, most + 1)))
    entry = int(generator.integers(1, max(1, whole.entries[phase] // share) + 1))
    return Kill(phase, entry, generator.random() * whole.seconds.get(phase, 0.0))


def kill_one_run(
    out: Path, straight: Path, options: list[str], pick: Callable[[bool], Kill], score: Score
) -> None:
    """Train a run to its end through kills, checking it after every one."""
    for number in range(MOST + 1):
        checkpoint = last_checkpoint(out)
        begun = (out / CONFIG).exists()
        kill = pick(begun) if number < MOST else None
        heard = forked(out, options, kill)
        if not os.WIFSIGNALED(heard.status):
            if heard.status:
                lost(f"{out}: failed by itself, see {out.with_suffix('.log')}")
            break
        assert kill is not None
        (score.inside if kill.change else score.outside)[heard.phase] += 1
        score.resumed += begun
        score.rows += len(heard.appended)
        check_rows(out, straight, heard, checkpoint)
    check_end(out, straight, Heard())
    score.runs += 1


def survive(directory: Path, kills: int, seed: int = 0) -> Score:
    """Kill runs until `kills` have died; raises SystemExit naming what was lost."""
    torch.set_num_threads(1)  # before the first product: a pool of threads would not survive a fork
    generator, score = np.random.default_rng(seed), Score()
    straight: dict[str, tuple[Path, Heard]] = {}
    while score.kills < kills:
        name = list(RUNS)[score.runs % len(RUNS)]
        if name not in straight:
            path = directory / f"straight-{name}"
            straight[name] = path, forked(path, RUNS[name].split(), None)
            if straight[name][1].status:
                lost(f"{path} failed, see {path.with_suffix('.log')}")
        path, whole = straight[name]
        out = directory / f"run-{score.runs}"
        pick = functools.partial(draw, generator, whole, score)
        kill_one_run(out, path, RUNS[name].split(), pick, score)
        shutil.rmtree(out)
        print(f"{score.kills} kills, {score.runs} runs", flush=True)
    return score


def report(score: Score, seconds: float) -> str:
    """The results as a page."""
    text = f"""# Killing a run

`python bench/kill.py`: {score.kills} kills (SIGKILL) of `gradlab train`, {score.resumed} of them of
a resumed run; {score.runs} runs trained to the end through {score.kills / score.runs:.1f} kills
each, in {seconds / 60:.0f} minutes on two shared cores.

After each kill the store opened. {score.rows} rows had been appended by processes that were then
killed: none was missing, none differed in a bit from the run that was never killed. All runs ended
with its measurements (but times), episodes, adapters and optimizer states, bit for bit.

| killed in | at a random moment | at a change of files |
|---|---|---|
"""
    rows = [f"| {phase} | {score.outside[phase]} | {score.inside[phase]} |" for phase in PHASES]
    return text + "\n".join(rows) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kills", type=int, default=150)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    started = time.perf_counter()
    directory = Path(tempfile.mkdtemp(prefix="gradlab-kill-"))
    score = survive(directory, options.kills, options.seed)
    shutil.rmtree(directory)
    text = report(score, time.perf_counter() - started)
    print(text)
    if options.kills >= 100:
        RESULTS.write_text(text)


if __name__ == "__main__":
    main()
