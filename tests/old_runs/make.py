"""Make the runs of one version for the tests of later ones, and keep what it says of them.

    PYTHONPATH=CHECKOUT python tests/old_runs/make.py OUT

Per workflow, OUT/NAME.tar.gz holds a run directory, OUT/NAME.json what audit, diagnosis, replay and
figures said of it, and OUT/NAME.npz the arrays of the steps that it was then trained further.
`voting` was finished after 6 steps; the others were stopped by Ctrl-C after 4 of 6.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import os
import re
import shutil
import signal
import sys
import tarfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
import zarr
from safetensors.numpy import load_file
from transformers import AutoModelForCausalLM

import trainers
from analysis.online import Online
from gradlab.commands.main import main
from gradlab.records import StepRecord
from trainers.config import TrainConfig
from trainers.policies import Policy
from trainers.training import Interrupted, train
from trainers.watch.progress import Progress

SMALL: dict[str, Any] = {
    "model": "tiny-0.3m", "device": "cpu", "threads": 1, "lora_rank": 1, "lora_alpha": 1,
    "steps": 6, "eval_every": 2, "checkpoint_every": 3, "problems_per_step": 4, "samples": 4,
    "eval_problems": 8, "learning_rate": 0.002,
}  # fmt: skip
RUNS: dict[str, dict[str, Any]] = {
    "voting": {
        "workflow": "voting", "votes": 2, "routing": "shared", "rows_per_update": 64,
        "kl_coefficient": {"aggregator": 0.05},
    },
    "evaluator_optimizer": {
        "workflow": "evaluator_optimizer", "rounds": 2, "routing": "isolated",
        "rows_per_update": 32, "warmup_steps": 4, "scheduler_tick": "policy", "alarm": "tell",
        "checkpoint_every": 5,
    },
    "orchestrator_workers": {
        "workflow": "orchestrator_workers", "workers": 2,
        "routing": "orchestrator=lead,worker=solver,synthesizer=lead", "updates": "fixed",
        "probe": "fused", "coherence_damping": 0.3, "coherence_window": 8,
        "max_share": {"orchestrator": 0.5}, "checkpoint_every": 5,
    },
    "solo": {
        "workflow": "solo", "rows_per_update": 16, "sketch_buckets": 4093, "effective": True,
        "entropy_coefficient": 0.001, "checkpoint_every": 5,
    },
}  # fmt: skip
EXTENDED = 8
"""Steps to which all are trained further."""
REPLAYED = ("--with", "lr:0.5", "--steps", "2", "--seeds", "1", "--name", "half")


class Stopping(Progress):
    """Presses Ctrl-C after step 4."""

    def trained(self, record: StepRecord, policies: Mapping[str, Policy]) -> None:
        super().trained(record, policies)
        if record.step == 4:
            os.kill(os.getpid(), signal.SIGINT)


def make(name: str) -> Path:
    """Train one of the runs; its directory."""
    out = Path("runs") / name
    shutil.rmtree(out, ignore_errors=True)
    config = TrainConfig(**{**SMALL, **RUNS[name], "out": out})
    if name == "voting":
        return train(config, watch=Online())
    with contextlib.suppress(Interrupted):
        train(config, Stopping(), watch=Online())
    return out


def command(*arguments: object) -> tuple[int, str]:
    """Exit status and standard output of a command."""
    with contextlib.redirect_stdout(io.StringIO()) as said:
        status = main([str(argument) for argument in arguments])
    return status, said.getvalue()


def further(run: Path) -> None:
    """Finish a run, then train it further."""
    for extension in ((), ("--extend-to", EXTENDED)):
        status, said = command("train", "--resume", "--out", run, *extension)
        assert status == 0, said


def replayed(run: Path) -> dict[str, Any]:
    """Result of a replay, from the first checkpoint there is."""
    first = min(int(p.name.removeprefix("step-")) for p in (run / "checkpoints").iterdir())
    status, said = command("replay", run, "--from", first, *REPLAYED)
    assert status == 0, said
    result: dict[str, Any] = json.loads((run / "replays" / "half" / "result.json").read_text())
    return result


def drawn(run: Path, out: Path) -> dict[str, str]:
    """The numbers behind a run's figures."""
    status, said = command("figures", run, "--out", out)
    assert status == 0, said
    return {path.name: path.read_text() for path in sorted(out.glob("*.csv"))}


def recorded(run: Path, after: int) -> dict[str, np.ndarray]:
    """By path in the store: the rows after a step, and the names of the metrics in them.

    Of sketches and of the last adapters the SHA-256 alone is kept.
    """
    found: dict[str, np.ndarray] = {}
    store = zarr.open_group(run / "run.zarr", mode="r")
    arrays = {p: a for p, a in store.members(max_depth=None) if isinstance(a, zarr.Array)}
    for path, array in arrays.items():
        group, _, name = path.rpartition("/")
        if name.endswith("_metric"):
            found[path] = np.array(array[:].tolist())
        elif array.dtype.kind in "iuf" and name != "wall_time":
            rows = np.asarray(array[:])[np.asarray(arrays[f"{group}/step"][:]) > after]
            found[path] = digest(rows.tobytes()) if "sketch" in name else rows
    last = max((run / "checkpoints").glob("step-*"))
    for adapter in sorted(last.glob("*/adapter_model.safetensors")):
        tensors = load_file(adapter)
        together = b"".join(tensors[name].tobytes() for name in sorted(tensors))
        found[f"adapter/{adapter.parent.name}"] = digest(together)
    return found


def digest(data: bytes) -> np.ndarray:
    """SHA-256 as 32 bytes."""
    return np.frombuffer(hashlib.sha256(data).digest(), np.uint8)


def arithmetic() -> str:
    """Hash of what this processor and these libraries make of one forward and backward pass.

    Where it is another one than a run was made with, sums are rounded otherwise, and nothing can be
    expected bit for bit.
    """
    (weights,) = Path(trainers.__file__).parent.rglob("tiny-0.3m")
    model = AutoModelForCausalLM.from_pretrained(weights, dtype=torch.float32).eval()
    tokens = torch.arange(1, 61).reshape(3, 20) % model.config.vocab_size
    model(input_ids=tokens).logits.logsumexp(-1).square().mean().backward()
    parts = [parameter.grad.numpy().tobytes() for parameter in model.parameters()]
    return hashlib.sha256(b"".join(parts)).hexdigest()


def pack(run: Path, target: Path) -> None:
    """Archive a run directory, without what only says who made it and when."""
    root = run / "run.zarr" / "zarr.json"
    root.write_text(
        re.sub(r'"writer": ?"[^"]*"', '"writer": "process 1 on localhost"', root.read_text())
    )
    left_out = () if run.name == "solo" else ("problems.jsonl.gz",)  # 120 KB each

    def kept(entry: tarfile.TarInfo) -> tarfile.TarInfo | None:
        entry.uid = entry.gid = entry.mtime = 0
        entry.uname = entry.gname = ""
        return None if Path(entry.name).name in left_out else entry

    with tarfile.open(target, "w:gz", compresslevel=9) as archive:
        archive.add(run, run.name, filter=kept)


def keep(name: str, out: Path) -> None:
    """Make one run; write its archive, and what is said of it."""
    run = make(name)
    pack(run, out / f"{name}.tar.gz")
    other = Path("runs") / f"{name}-replayed"
    shutil.rmtree(other, ignore_errors=True)
    shutil.copytree(run, other)
    status, said = command("audit", run)
    assert status == 0, said
    _, diagnosis = command("diagnose", run, "--json", "--no-page")
    about = {
        "arithmetic": arithmetic(),
        "steps": last_step(run),
        "audit": said.splitlines(),
        "diagnosis": json.loads(diagnosis),
        "replay": replayed(other),
        "figures": drawn(run, Path("figures-out") / name),
    }
    (out / f"{name}.json").write_text(json.dumps(about, indent=1) + "\n")
    further(run)
    np.savez_compressed(out / f"{name}.npz", **recorded(run, about["steps"]))


def last_step(run: Path) -> int:
    """The step of the last checkpoint."""
    return max(int(path.name.removeprefix("step-")) for path in (run / "checkpoints").iterdir())


if __name__ == "__main__":
    out = Path(sys.argv[1]).resolve()
    out.mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(1)
    for name in RUNS:
        keep(name, out)
